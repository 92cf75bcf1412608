"""Fixtures for all tests: MNIST, a small data set of noise, a bucket and a Ray cluster.

PyTorch and Ray are imported where they are needed, so that one unit test starts at once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mnist_ray.config import Recipe, RunConfig
from mnist_ray.storage import Place, place

if TYPE_CHECKING:
    from mnist_ray.learn.data import Mnist

if "PYTEST_XDIST_WORKER" in os.environ:
    # Two processes test at a time, and each may compute on all cores. A thread that waits for
    # another sleeps then; otherwise it would keep a core from the thread that it waits for.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files that have no test of a name given with `-k`. Most files import PyTorch or
    Ray, which takes seconds. A word that does not begin with test_ may be part of a parameter, so
    then every file is read."""
    words = set(re.findall(r"[\w.-]+", config.option.keyword.lower())) - {"or", "and"}
    if not words or not all(word.startswith("test_") for word in words):
        return None
    if collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    text = f"{collection_path}\n{collection_path.read_text()}".lower()
    return None if any(word in text for word in words) else True


@pytest.fixture(scope="session")
def mnist() -> Mnist:
    """MNIST itself, fetched if it is missing."""
    from mnist_ray.learn import data

    return data.load(Recipe(), RunConfig().data_dir)


@pytest.fixture(scope="session")
def small() -> Mnist:
    """Noise: 1,001 training images, which two workers cannot share equally, and 101 test images."""
    from mnist_ray.learn.data import Mnist

    rng = np.random.default_rng(1)

    def images(n: int) -> np.ndarray:
        return rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)

    def labels(n: int) -> np.ndarray:
        return rng.integers(0, 10, n, dtype=np.uint8)

    return Mnist(images(1001), labels(1001), images(101), labels(101))


@pytest.fixture(scope="session")
def winner(mnist: Mnist, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint that is right of most test images, after a short training."""
    import torch

    from mnist_ray import learn

    folder = tmp_path_factory.mktemp("winner")
    recipe = Recipe(
        lr=0.05, schedule="one-cycle", dropout=0, batch_size=32, epochs=1, precision="fp32"
    )
    recipe = recipe.replace(train_size=10_000, holdout=100)
    splits = learn.split(mnist, recipe.holdout, recipe.train_size)

    def keep(metrics: learn.Metrics, state: learn.State) -> None:
        saved = learn.Checkpoint(state, recipe, [metrics], splits.hash)
        learn.save_checkpoint(folder, saved)

    threads = torch.get_num_threads()
    learn.prepare_process(1)  # more would wait for each other where other processes compute too
    learn.fit(recipe, splits, on_epoch=keep)
    learn.prepare_process(threads)
    return folder


SECRET = "not-to-be-printed-or-kept"
"""The key of the bucket. Tests look for it in output and files."""


@contextlib.contextmanager
def s3_server() -> Iterator[subprocess.Popen[bytes]]:
    """Run an S3 server on this machine with the bucket `bucket`, and let the environment lead to
    it."""
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
        import pyarrow.fs

        system, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket/?allow_bucket_creation=true")
        system.create_dir("bucket")
        yield server
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URI of the bucket of an S3 server."""
    with s3_server():
        yield "s3://bucket"


@pytest.fixture(params=["folder", "bucket"])
def home(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A place that does not exist yet, in a folder and in a bucket."""
    if request.param == "folder":
        return tmp_path / "runs"
    uri = request.getfixturevalue("bucket")
    return place("storage", f"{uri}/{tmp_path.name}")


ANY_PORT = {"dashboard_agent_listen_port": None}
"""What keeps a head from the one port that all heads would have, as several may run here."""


@pytest.fixture(scope="session")
def ray_cluster(bucket: str) -> Iterator[None]:
    """Run one cluster of two CPUs for all tests with Ray. Commands join it through RAY_ADDRESS, and
    its processes can reach the bucket."""
    from ray.cluster_utils import Cluster

    from mnist_ray.cluster.connect import API_SERVER, free_port

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        # Without the address Ray looks for a cluster on this machine, and fails if it finds two.
        patch.setenv(API_SERVER, f"http://127.0.0.1:{port}")
        head = {"num_cpus": 2, "num_gpus": 0, "include_dashboard": True, "dashboard_port": port}
        cluster = Cluster(initialize_head=True, head_node_args={**head, **ANY_PORT})
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield
    cluster.shutdown()


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each run start a cluster of its own."""
    monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for a run's temporary files, with a path short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="t"))
    yield folder
    shutil.rmtree(folder)
