"""Shared: MNIST itself, a small set for tests that need no real digits, and one Ray cluster."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.fs
import pytest

from mnist_ray.config import Recipe, RunConfig
from mnist_ray.learn import data
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place, place


@pytest.fixture(scope="session")
def mnist() -> Mnist:
    """The real one, fetched if need be."""
    return data.load(Recipe(), RunConfig().data_dir)


@pytest.fixture(scope="session")
def small() -> Mnist:
    """1,001 training images, a number that two workers cannot share equally, and 101 to test on."""
    rng = np.random.default_rng(1)

    def images(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)

    def labels(n: int) -> np.ndarray:
        return rng.integers(0, 10, n, dtype=np.uint8)

    return Mnist(images(1001), labels(1001), images(101), labels(101))


SECRET = "not-to-be-printed-or-kept"


@contextlib.contextmanager
def s3_server() -> Iterator[subprocess.Popen[bytes]]:
    """An S3 server of our own, spoken to over HTTP, with a bucket; the environment leads to it."""
    from mnist_ray.cluster.connect import free_port

    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.1)
        system, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")
        system.create_dir("bucket")
        yield server
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """Its URI."""
    with s3_server():
        yield "s3://bucket"


@pytest.fixture(params=["folder", "bucket"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty place of either kind."""
    if request.param == "folder":
        return tmp_path / "runs"
    uri = request.getfixturevalue("bucket")
    return place("storage", f"{uri}/{tmp_path.name}")


@pytest.fixture(scope="session")
def ray_cluster(bucket: str) -> Iterator[None]:
    """One cluster of two CPUs for all tests with Ray; commands join it through RAY_ADDRESS. Its
    processes know of the bucket."""
    from ray.cluster_utils import Cluster

    from mnist_ray.cluster.connect import API_SERVER, free_port

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # Ray looks for any cluster on this machine, and gives up where there are two.
        patch.setenv(API_SERVER, f"http://127.0.0.1:{port}")
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": True, "dashboard_port": port}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run has a cluster of its own."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for a run's temporary files, of a name short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    yield folder
    shutil.rmtree(folder)
