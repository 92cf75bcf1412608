"""Ray itself: joining a cluster or starting one here, and what it has room for."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ray

from mnist_ray.errors import RunFailed, UserError

API_SERVER = "RAY_API_SERVER_ADDRESS"
RECORD = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"


class Share(NamedTuple):
    """What each of some workers gets."""

    cpus: int
    gpus: int

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


@contextmanager
def connected(*, dashboard: bool, verbose: bool) -> Iterator[None]:
    """Inside, Ray is there: the cluster this machine is a node of, or one just for this block.

    `dashboard` is for a cluster started here. Trials that launch workers of their own need it: when
    one is stopped early, Ray Train asks the dashboard whether that trial's controller is dead, and
    gives its resources back only then.
    """
    # Ray Train asks its workers for news this often; at its default of 2 s a short epoch waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default from now on
    options: dict[str, Any] = {
        "include_dashboard": dashboard,
        "logging_level": "INFO" if verbose else "ERROR",
        "log_to_driver": verbose,
    }
    before = os.environ.get(API_SERVER)
    if dashboard:
        options["dashboard_port"] = use_dashboard_port()
    try:
        try:
            # Joins the cluster of RAY_ADDRESS, or of `ray start` on this machine, or starts one.
            ray.init(address="local" if recorded_cluster_is_gone(RECORD) else None, **options)
        except Exception as error:  # Ray raises this very class where a machine is too busy
            raise RunFailed(f"Ray did not start: {error}") from error
        yield
    finally:
        ray.shutdown()
        os.environ.pop(API_SERVER, None)
        if before:
            os.environ[API_SERVER] = before


def recorded_cluster_is_gone(record: Path) -> bool:
    """Whether `ray start` left the address of a cluster that does not answer, as after a crash. Ray
    would wait for it for minutes."""
    if os.environ.get("RAY_ADDRESS") or not record.exists():
        return False
    host, _, port = record.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return True
    return False


def use_dashboard_port() -> int:
    """A free port for the dashboard of a cluster to be started. Its processes will find it there:
    by itself Ray looks for any cluster on this machine, and gives up where there are two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    return port


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
