"""The cores and GPUs of this machine or of a Ray cluster, and how many workers fit on them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import ray
from ray.util import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.config import Resources
from mnist_ray.errors import UserError
from mnist_ray.fields import counted
from mnist_ray.storage import Place

PATIENCE = 30
"""Seconds that a trial or a worker may wait for resources before the display says why."""


class WorkerResources(NamedTuple):
    """The cores that each worker gets, and how many workers share a GPU; 0 is no GPU."""

    cpus: int
    per_gpu: int

    @property
    def gpus(self) -> float:
        """The share of a GPU that each worker gets, 0 to 1."""
        return 1 / self.per_gpu if self.per_gpu else 0

    @property
    def device(self) -> str:
        return "cuda" if self.per_gpu else "cpu"

    @property
    def and_a_gpu(self) -> str:
        """Words for what a worker gets besides its cores."""
        if self.per_gpu > 1:
            return f" and 1/{self.per_gpu} of a GPU"
        return " and a GPU" * self.per_gpu


class Node(NamedTuple):
    """A machine's cores and GPUs that workers can have."""

    cpus: int
    gpus: int


def this_machine() -> list[Node]:
    """Return one node: the cores and GPUs that this process may use. Needs no Ray."""
    import torch  # a study starts Ray before it imports PyTorch, which takes a second

    return [Node(cores(), torch.cuda.device_count())]


def cluster_nodes() -> list[Node]:
    """Return the nodes of the Ray cluster that are alive."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(int(each.get("CPU", 0)), int(each.get("GPU", 0))) for each in alive]


def share(needs: Resources, nodes: Sequence[Node], per_gpu: int = 1) -> WorkerResources:
    """Return what each worker gets on `nodes`: `cpus_per_worker` cores, or by default as many as
    all workers can have, and a GPU if wanted or, by default, if there are enough, which `per_gpu`
    workers share. Where `min_workers` is set and not all of `num_workers` fit, the cores are
    divided among as many as fit.

    Raises UserError where too few workers fit.
    """
    cpus, gpus = [node.cpus for node in nodes], [node.gpus for node in nodes]
    cores, needed = needs.cpus_per_worker, needs.min_workers or needs.num_workers
    use_gpu = needed <= sum(gpus) * per_gpu if needs.use_gpu is None else needs.use_gpu
    workers, verb = counted(needed, "worker"), "need" if needed > 1 else "needs"
    if use_gpu and needed > sum(gpus) * per_gpu:
        raise UserError(
            f"use_gpu is on, but {workers} {verb} {counted(needed, 'GPU')} and there are"
            f" {sum(gpus)}; use fewer workers or --no-use-gpu."
        )
    for count in range(needs.num_workers, needed - 1, -1):
        for each in [cores] if cores else range(max(cpus), 0, -1):
            if workers_that_fit(WorkerResources(each, use_gpu * per_gpu), nodes) >= count:
                return WorkerResources(each, use_gpu * per_gpu)
    each = cores or 1
    raise UserError(
        f"{workers} with {counted(each, 'CPU')}{' each' * (needed > 1)} {verb}"
        f" {counted(needed * each, 'CPU')}, but there are {sum(cpus)}; use fewer"
        + (" workers, or a lower cpus_per_worker." if cores else ".")
    )


TRIAL_MEMORY = 2 * 2**30
"""Bytes of a GPU's memory that a trial may take: PyTorch's own, and the activations of a batch."""


def trials_per_gpu(cpus: int, nodes: Sequence[Node]) -> int:
    """Return how many trials of `cpus` cores each should share a GPU of `nodes`, by the cores that
    there are for each GPU, and by the memory of this machine's GPUs."""
    import torch

    on_gpus = [node.cpus // (node.gpus * cpus) for node in nodes if node.gpus]
    devices = range(torch.cuda.device_count())
    memory = [torch.cuda.get_device_properties(each).total_memory for each in devices]
    by_memory = [each // TRIAL_MEMORY for each in memory]
    return max(1, min([*on_gpus, *by_memory], default=1))


def workers_that_fit(each: WorkerResources, nodes: Sequence[Node]) -> int:
    """Return how many workers fit on `nodes` at a time."""
    if not each.per_gpu:
        return sum(node.cpus // each.cpus for node in nodes)
    return sum(min(node.cpus // each.cpus, node.gpus * each.per_gpu) for node in nodes)


def check_shared(folder: Place) -> None:
    """Raise UserError if `folder` is a folder of this machine that a node of the cluster does not
    share."""
    if not isinstance(folder, Path):
        return
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    if not others:
        return
    with tempfile.NamedTemporaryFile(prefix=".mnist_ray-", dir=folder) as mark:
        looks = [
            _there.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(mark.name)
            for node in others
        ]
        for node, there in zip(others, ray.get(looks), strict=True):
            if not there:
                raise UserError(
                    f"storage {folder} is not shared: node {node['NodeManagerAddress']} does not"
                    " have it; use a folder that all nodes share, or a URI like s3://bucket/path."
                )


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _there(path: str) -> bool:
    return Path(path).exists()


def why_waiting(each: WorkerResources, workers: int) -> str:
    """Say what `workers` workers that have not started are waiting for."""
    free, total = ray.available_resources(), ray.cluster_resources()
    needed = {"CPU": workers * each.cpus, "GPU": workers * each.gpus}
    words = ", ".join(
        f"{counted(needed[name], name)} needed, {free.get(name, 0):g} of"
        f" {total.get(name, 0):g} free"
        for name in needed
        if needed[name]
    )
    short = any(free.get(name, 0) < needed[name] for name in needed)
    return f"{words}; {'something else uses the cluster' if short else 'processes are starting'}"


def waiting_launches(workers: int) -> int:
    """Return how many groups of `workers` workers wait for resources on the cluster."""
    groups = placement_group_table().values()
    return sum(each["state"] == "PENDING" and len(each["bundles"]) == workers for each in groups)


def cores(
    cgroups: Path = Path("/sys/fs/cgroup"), of_process: Path = Path("/proc/self/cgroup")
) -> int:
    """Return how many cores this process may use, by its CPU mask and the quotas of its cgroups.
    Ray counts all cores of the machine, and heeds only the quota of the outermost cgroup."""
    machine = os.cpu_count() or 1
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine
    return max(1, min([mask, *map(int, _quotas(cgroups, of_process))]))


def _quotas(cgroups: Path, of_process: Path) -> Iterator[float]:
    """Yield the number of cores that each cgroup of this process, or an outer one, allows."""
    with contextlib.suppress(OSError, ValueError):
        for line in of_process.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            inner = PurePosixPath(path.lstrip("/"))
            around = [inner, *inner.parents]
            if not controllers:  # version 2
                for folder in around:
                    yield from _quota(cgroups / folder / "cpu.max")
            elif "cpu" in controllers.split(","):
                for folder in around:
                    at = cgroups / "cpu" / folder
                    yield from _quota(at / "cpu.cfs_quota_us", at / "cpu.cfs_period_us")


def _quota(*files: Path) -> Iterator[float]:
    """Yield the quota in `files` in cores; nothing where there is no quota (`max`, or -1)."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        words = " ".join(file.read_text(encoding="utf-8") for file in files).split()
        quota, period = map(int, words)
        if quota > 0:
            yield quota / period
