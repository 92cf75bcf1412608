"""Which cluster a command joins, and what it needs of the machine where it starts one itself."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from ray.core.generated.gcs_service_pb2 import GetClusterIdReply
from ray.core.generated.gcs_service_pb2_grpc import (
    NodeInfoGcsServiceServicer,
    add_NodeInfoGcsServiceServicer_to_server,
)

from mnist_ray import errors, tune
from mnist_ray.cluster import connect
from mnist_ray.cluster.connect import to_join
from mnist_ray.cluster.resources import cores
from mnist_ray.errors import UserError


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connect, "ANSWER_WITHIN", 1)


class Gcs(NodeInfoGcsServiceServicer):  # type: ignore[misc]
    """What answers of a Ray cluster, or of one that asks for a token."""

    def __init__(self, token: bool) -> None:
        self.token = token

    def GetClusterId(self, request: Any, context: grpc.ServicerContext) -> Any:
        if self.token:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return GetClusterIdReply()


@pytest.fixture(params=[False, True], ids=["open", "token"])
def gcs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(2))
    add_NodeInfoGcsServiceServicer_to_server(Gcs(request.param), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of something that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_the_cluster_of_this_machine_is_joined_if_it_answers(
    gcs: str, deaf: str, tmp_path: Path
) -> None:
    record = tmp_path / "ray_current_cluster"
    assert to_join(record) is None
    record.write_text(gcs)
    assert to_join(record) == gcs
    for gone in (deaf, f"127.0.0.1:{connect.free_port()}", "nonsense", ""):
        record.write_text(gone)
        assert to_join(record) is None
    record.unlink()
    record.mkdir()  # as little to be read as another user's
    assert to_join(record) is None


def test_an_address_that_was_asked_for(
    gcs: str, deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "ray_current_cluster"
    monkeypatch.setenv("RAY_ADDRESS", gcs)
    assert to_join(record) == gcs
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert to_join(record) is None
    for elsewhere in ("http://127.0.0.1:8265", "ray://127.0.0.1:10001"):
        monkeypatch.setenv("RAY_ADDRESS", elsewhere)
        with pytest.raises(UserError, match=f"RAY_ADDRESS is {elsewhere}, but .*HOST:6379"):
            to_join(record)
    for gone in (deaf, "nonsense", "auto", "no-such-host:6379"):
        monkeypatch.setenv("RAY_ADDRESS", gone)
        with pytest.raises(UserError, match=f"RAY_ADDRESS is {gone}, but no Ray cluster answers"):
            to_join(record)
    record.write_text(gcs)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert to_join(record) == gcs


def test_a_command_says_which_address_is_wrong(
    deaf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", deaf)
    assert errors.run(tune.main, ["--storage", str(tmp_path)]) == 2
    shown = capfd.readouterr()
    assert shown.err.startswith(f"error: RAY_ADDRESS is {deaf}, but no Ray cluster answers there;")
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def alone(**environment: str) -> dict[str, Any]:
    """What a cluster of its own is started with, in this environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        before = dict(os.environ)
        with connect._private_cluster(dashboard=False, verbose=False) as options:
            inside = dict(os.environ)
        assert dict(os.environ) == before
        assert not Path(options["_temp_dir"]).exists()
    return options | inside


def test_a_folder_for_its_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._private.node import validate_socket_filepath

    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = Path("/tmp") / ("x" * (connect.LONGEST_TMPDIR - len("/tmp/")))
    longest.mkdir()
    try:
        folder = alone(RAY_TMPDIR=str(longest))["_temp_dir"]
    finally:
        longest.rmdir()
    assert Path(folder).parent == longest
    validate_socket_filepath(f"{longest}{connect.SOCKETS}")
    with pytest.raises(OSError, match="cannot exceed"):
        validate_socket_filepath(f"{longest}x{connect.SOCKETS}")
    with pytest.raises(UserError, match=r"RAY_TMPDIR is /tmp/x+, 25 bytes long, but .* shorter"):
        alone(RAY_TMPDIR=f"{longest}x")
    with pytest.raises(UserError, match="RAY_TMPDIR /tmp/none cannot be used: No such file"):
        alone(RAY_TMPDIR="/tmp/none")
    with pytest.raises(UserError, match="RAY_TMPDIR /dev/null cannot be used: Not a directory"):
        alone(RAY_TMPDIR="/dev/null")
    assert Path(alone()["_temp_dir"]).parent == Path("/tmp")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # as on a Mac: long, and no one's choice
    assert Path(alone()["_temp_dir"]).parent == Path("/tmp")


def test_its_processes_are_not_asked_through_a_proxy() -> None:
    def hosts(**environment: str) -> set[str]:
        found = alone(**environment)
        assert found["no_proxy"] == found["NO_PROXY"]
        return set(found["no_proxy"].split(","))

    assert hosts(no_proxy="a,b", NO_PROXY="b,c") == {"a", "b", "c", "localhost", "127.0.0.1"}
    assert hosts(no_proxy="*", NO_PROXY="") == {"*"}


def test_a_token_where_there_is_no_home_to_keep_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    assert "RAY_AUTH_TOKEN" not in alone(HOME=str(tmp_path))
    (tmp_path / "file").touch()
    token = alone(HOME=str(tmp_path / "file"))["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert alone(HOME="/proc")["RAY_AUTH_TOKEN"] != token


@pytest.mark.parametrize(
    ("files", "mine", "expected"),
    [
        ({}, "0::/\n", 2),
        ({"cpu.max": "max 100000"}, "0::/\n", 2),
        ({"cpu.max": "150000 100000"}, "0::/\n", 1),
        ({"cpu.max": "50000 100000"}, "0::/\n", 1),
        ({"cpu.max": "400000 100000"}, "0::/\n", 2),
        # The quota of a job, a service or a pod, seen from outside the container.
        ({"a.slice/b.scope/cpu.max": "100000 100000"}, "0::/a.slice/b.scope\n", 1),
        ({"a.slice/cpu.max": "100000 100000"}, "0::/a.slice/b.scope\n", 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/\n0::/\n", 2),
        (
            {"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"},
            "2:memory:/job\n1:cpu,cpuacct:/job\n",
            1,
        ),
        ({"cpu.max": "nonsense"}, "0::/\n", 2),
    ],
)
def test_cores_by_the_quotas_of_cgroups(
    files: dict[str, str],
    mine: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "cgroup").write_text(mine)
    assert cores(tmp_path, tmp_path / "cgroup") == expected
    assert cores(tmp_path, tmp_path / "none") == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU masks")
def test_cores_by_the_mask() -> None:
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from mnist_ray.cluster.resources import cores; print(cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
