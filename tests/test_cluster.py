import socket
from pathlib import Path

import pytest

from mnist_ray.cluster import is_to_join


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_cluster_that_crashed_is_not_waited_for(tmp_path: Path) -> None:
    record = tmp_path / "ray_current_cluster"
    assert not is_to_join(record)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        record.write_text(f"127.0.0.1:{server.getsockname()[1]}")
        assert is_to_join(record)
    assert not is_to_join(record)
    record.write_text("nonsense")
    assert not is_to_join(record)


@pytest.mark.parametrize(("address", "joined"), [("10.0.0.1:6379", True), ("local", False)])
def test_an_address_that_was_asked_for_is_used(
    address: str, joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert is_to_join(tmp_path / "none") == joined
