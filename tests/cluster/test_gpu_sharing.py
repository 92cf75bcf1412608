"""Trials that share a GPU, on a cluster whose GPUs are only counted: the trials compute on the
CPU."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ANY_PORT
from ray import cloudpickle

from mnist_ray import errors, tables, tune
from mnist_ray.cluster import driver, resources, trial
from mnist_ray.cluster.resources import Node, WorkerResources
from mnist_ray.config import Resources
from mnist_ray.errors import UserError
from mnist_ray.learn.data import Mnist

TWO_GPUS = [Node(8, 1), Node(4, 1), Node(16, 0)]


def test_workers_that_share_gpus() -> None:
    def share(per_gpu: int, **needs: Any) -> WorkerResources:
        return resources.share(Resources(cpus_per_worker=1, **needs), TWO_GPUS, per_gpu)

    assert share(4) == WorkerResources(1, 4)
    assert (share(4).gpus, share(4).and_a_gpu) == (0.25, " and 1/4 of a GPU")
    assert (share(1).gpus, share(1).and_a_gpu) == (1, " and a GPU")
    assert share(4, use_gpu=False) == WorkerResources(1, 0)
    assert (share(4, use_gpu=False).gpus, share(4, use_gpu=False).and_a_gpu) == (0, "")
    fits = {each: resources.workers_that_fit(each, TWO_GPUS) for each in (share(1), share(4))}
    assert list(fits.values()) == [2, 8]
    assert resources.workers_that_fit(share(8), TWO_GPUS) == 8 + 4  # cores of the second node
    assert resources.workers_that_fit(WorkerResources(1, 0), TWO_GPUS) == 28
    with pytest.raises(UserError, match="9 workers need 9 GPUs and there are 2"):
        share(4, num_workers=9, use_gpu=True)


@pytest.mark.parametrize(
    ("cpus", "nodes", "memory", "expected"),
    [
        (1, [Node(16, 1)], [80], 16),
        (2, [Node(16, 1)], [80], 8),
        (1, [Node(16, 1)], [8], 4),
        (1, [Node(16, 4), Node(8, 0)], [], 4),
        (1, [Node(1, 2)], [], 1),
        (1, [Node(2, 0)], [], 1),
    ],
)
def test_how_many_trials_share_a_gpu_by_default(
    cpus: int, nodes: list[Node], memory: list[int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    found = [SimpleNamespace(total_memory=each * 2**30) for each in memory]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)
    assert resources.trials_per_gpu(cpus, nodes) == expected


def test_workers_of_a_trial_do_not_share(capfd: pytest.CaptureFixture[str]) -> None:
    assert errors.run(tune.main, ["--trials-per-gpu", "2", "--workers-per-trial", "2"]) == 2
    assert "trials_per_gpu is 2, but workers_per_trial is 2" in capfd.readouterr().err


def on_the_cpu(sampled: dict[str, Any], shared: trial.Shared) -> None:
    """Train a trial that was given a share of a GPU on the CPU."""
    import ray

    (gpu,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    assert gpu == "0"
    cores = WorkerResources(shared.share.cpus, 0)
    trial.trial(sampled, shared._replace(share=cores))


def test_two_trials_at_a_time_on_one_gpu(
    storage: Path, mnist: Mnist, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    instead = SimpleNamespace(**{**vars(trial), "trial": on_the_cpu})
    monkeypatch.setattr(driver, "trial", instead)
    head = {"num_cpus": 2, "num_gpus": 1, "include_dashboard": False, **ANY_PORT}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    small = ["--train-size", "300", "--holdout", "101", "--batch-size", "50", "--epochs", "1"]
    flags = [*small, "--num-trials", "3", "--confirm", "0", "--storage", str(storage)]
    try:
        assert errors.run(tune.main, [*flags, "--name", "it"]) == 0
        shown = capfd.readouterr().out
        assert "3 trials, 2 at a time, each on 1 worker with 1 core and 1/2 of a GPU" in shown
        one = ["--trials-per-gpu", "1", "--max-concurrent", "2"]
        assert errors.run(tune.main, [*flags, *one, "--name", "too-many"]) == 2
        assert "1 CPU and a GPU each only 1 trial can run" in capfd.readouterr().err
    finally:
        cluster.shutdown()
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    rows = tables.read(storage / "it").to_pylist()
    assert [(row["status"], row["device"]) for row in rows] == [("ok", "cuda")] * 3
