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
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    gpus = [int(node.get("GPU", 0)) for node in nodes]
    if use_gpu is None:
        use_gpu = workers <= sum(gpus)
    if use_gpu and workers > sum(gpus):
        raise UserError(
            f"use_gpu with {workers} workers needs {workers} GPUs, but there are {sum(gpus)};"
            " use fewer workers or --no-use-gpu."
        )
    wanted = [cores] if cores else range(max(cpus), 0, -1)
    for each in wanted:
        fits = (min(c // each, g if use_gpu else c) for c, g in zip(cpus, gpus, strict=True))
        if sum(fits) >= workers:
            return Share(each, int(use_gpu))
    raise UserError(
        f"num_workers is {workers}, which takes {workers * (cores or 1)} CPUs with {cores or 1}"
        f" each, but there are {sum(cpus)}; use fewer workers."
    )
