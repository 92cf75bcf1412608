"""A cluster that starts nodes when they are asked for, as `ray up` makes it: real raylets here."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from conftest import ANY_PORT
from ray.cluster_utils import Cluster

from mnist_ray import errors, tables, tune
from mnist_ray.cluster import connect
from mnist_ray.learn.data import Mnist

HEAD = "f" * 51 + "00000"
"""What Ray's provider for such tests calls the head."""


@pytest.fixture
def growing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A head of one CPU, to which two workers of one CPU may come."""
    port, dashboard = connect.free_port(), connect.free_port()
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = {
        "cluster_name": "growing",
        "max_workers": 2,
        "idle_timeout_minutes": 1,
        "provider": {"type": "external", "module": provider, "gcs_address": address},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2},
        },
        **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
        **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("initialization_commands", "cluster_synced_files")},
    }
    config["provider"] |= {"head_node_id": HEAD, "launch_multiple": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name, value in {
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
        connect.API_SERVER: f"http://127.0.0.1:{dashboard}",
    }.items():
        monkeypatch.setenv(name, value)
    head = {"num_cpus": 1, "gcs_server_port": port, "dashboard_port": dashboard}
    head |= {"include_dashboard": True, "autoscaling_config": str(tmp_path / "config.json")}
    others = set(psutil.Process().children(recursive=True))
    nodes = Cluster(initialize_head=True, head_node_args={**head, **ANY_PORT})
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    yield
    started = set(psutil.Process().children(recursive=True)) - others
    nodes.shutdown()
    for each in started:  # the workers' too, which outlive what started them
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()


@pytest.mark.launcher
def test_a_study_gets_the_nodes_that_it_asks_for(
    growing: None, storage: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-trials", "3", "--epochs", "1", "--train-size", "300", "--confirm", "0"]
    flags = [*flags, "--holdout", "101", "--storage", str(storage), "--max-concurrent"]
    assert errors.run(tune.main, [*flags, "4", "--name", "too-many"]) == 2
    assert "only 1 trial can run" in capfd.readouterr().err
    assert errors.run(tune.main, [*flags, "3", "--name", "it"]) == 0
    shown = capfd.readouterr().out
    assert "waiting for nodes: room for 1 of 3 workers" in shown
    assert "3 trials, 3 at a time" in shown
    rows = tables.read(storage / "it", tables.TRIALS).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3
