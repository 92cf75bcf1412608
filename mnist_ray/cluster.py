"""Ray itself: joining a cluster or starting one here, and what it has room for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import ray

from mnist_ray.errors import RunFailed, UserError


class Share(NamedTuple):
    """What each of some workers gets."""

    cpus: int
    gpus: int


@contextmanager
def connected(*, dashboard: bool, verbose: bool) -> Iterator[None]:
    """Inside, Ray is there: the cluster this machine is a node of, or one just for this block.

    `dashboard` is for a cluster started here: trials that launch workers of their own need its
    process to give their resources back (see `tune.py`).
    """
    # Ray Train asks its workers for news this often; at its default of 2 s a short epoch waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default from now on
    quiet = {"logging_level": "INFO" if verbose else "ERROR", "log_to_driver": verbose}
    try:
        # Joins the cluster of RAY_ADDRESS, or of `ray start` on this machine, or else starts one.
        ray.init(include_dashboard=dashboard, **quiet)
    except (RuntimeError, OSError, ValueError) as error:  # ConnectionError is an OSError
        raise RunFailed(f"Ray did not start: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def share(workers: int, cores: int | None, use_gpu: bool | None) -> Share:
    """What each of `workers` gets: `cores`, or by default as many as all of them can have, and a
    GPU if wanted or, by default, if there are enough. Raises UserError where they do not fit.
    """
    cpus, gpus = _per_node("CPU"), _per_node("GPU")
    if use_gpu is None:
        use_gpu = workers <= sum(gpus)
    if use_gpu and workers > sum(gpus):
        raise UserError(
            f"use_gpu is on, but {workers} workers need {workers} GPUs and there are {sum(gpus)};"
            " use fewer workers or --no-use-gpu."
        )
    for each in [cores] if cores else range(max(cpus), 0, -1):
        if room(Share(each, int(use_gpu))) >= workers:
            return Share(each, int(use_gpu))
    each = cores or 1
    raise UserError(
        f"{workers} workers with {each} CPUs each need {workers * each} CPUs, but there are"
        f" {sum(cpus)}; use fewer."
    )


def room(each: Share) -> int:
    """How many workers fit on the cluster's nodes at a time."""
    nodes = zip(_per_node("CPU"), _per_node("GPU"), strict=True)
    return sum(min(cpus // each.cpus, gpus if each.gpus else cpus) for cpus, gpus in nodes)


def _per_node(resource: str) -> list[int]:
    return [int(node["Resources"].get(resource, 0)) for node in ray.nodes() if node["Alive"]]
