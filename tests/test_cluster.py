import socket
from pathlib import Path

import pytest

from mnist_ray.cluster import recorded_cluster_is_gone


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_cluster_that_crashed_is_not_waited_for(tmp_path: Path) -> None:
    record = tmp_path / "ray_current_cluster"
    assert not recorded_cluster_is_gone(record)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        record.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert not recorded_cluster_is_gone(record)
    assert recorded_cluster_is_gone(record)
    record.write_text("nonsense")
    assert recorded_cluster_is_gone(record)


def test_an_address_that_was_asked_for_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "ray_current_cluster"
    record.write_text("127.0.0.1:1")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not recorded_cluster_is_gone(record)
