"""Ray itself: joining a cluster, or starting one here."""

import atexit
import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._common.utils import get_ray_address_file
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_status

from mnist_ray import errors
from mnist_ray.errors import RunFailed
from mnist_ray.resources import PATIENCE, Share, per_node, room

API_SERVER = "RAY_API_SERVER_ADDRESS"


@contextmanager
def connected(*, dashboard: bool, verbose: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, Ray is there: the cluster that this machine is a node of, or one just for this block,
    which listens on loopback alone and leaves nothing behind. It is said which one is joined.

    `dashboard` is for a cluster started here. Trials that launch workers of their own need it: when
    one is stopped early, Ray Train asks the dashboard whether that trial's controller is dead, and
    gives its resources back only then.
    """
    # Ray Train asks its workers for news this often; at its default of 2 s a short epoch waits.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's default from now on
    options: dict[str, Any] = {
        "logging_level": "INFO" if verbose else "ERROR",
        "log_to_driver": verbose,
    }
    if not verbose:
        # What failed, and what became of it, is told in a line of our own.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        ray._private.worker.print_to_stdstream = lambda *_, **__: None
    with contextlib.ExitStack() as exits:
        if is_to_join():
            options["address"] = None  # RAY_ADDRESS, or the cluster of `ray start` here
        else:
            options |= {"address": "local", "include_dashboard": dashboard}
            options |= exits.enter_context(_alone(dashboard, verbose))
        exits.callback(ray.shutdown)
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises this very class where a machine is too busy
            raise RunFailed(f"Ray did not start: {error}") from error
        except SystemExit:  # so Ray heeds SIGTERM while it starts
            errors.interrupt(signal.SIGTERM)
        errors.heed_signals()
        if "include_dashboard" not in options:
            nodes, address = len(per_node("CPU")), ray.get_runtime_context().gcs_address
            say(
                f"joined the Ray cluster at {address}: {nodes} node{'s' * (nodes > 1)},"
                f" {sum(per_node('CPU'))} CPUs\n"
            )
        yield


@contextmanager
def _alone(dashboard: bool, verbose: bool) -> Iterator[dict[str, Any]]:
    """What a cluster of its own needs besides: Ray's options for that, and the environment."""
    place = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    # Short, because there are sockets in it, and their paths can have 107 characters.
    place = place if len(place) < 20 else "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="mnist_ray-", dir=place))
    if not verbose:  # or its logs are what one wants to read
        # Last of all, after Ray's own, where a signal came while it started.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options: dict[str, Any] = {"_temp_dir": str(folder)}
    environment = {"TMPDIR": str(folder)}  # where a worker that is killed leaves its own
    if dashboard:
        options["dashboard_port"] = port = free_port()
        # By itself Ray looks for any cluster on this machine, and gives up where there are two.
        environment[API_SERVER] = f"http://127.0.0.1:{port}"
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    # Otherwise Ray listens on every interface. This is its switch for laptops, which it reads from
    # the environment when it is imported.
    constants = ray._private.ray_constants
    was, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield options
    finally:
        constants.ENABLE_RAY_CLUSTER = was
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        if not verbose:
            shutil.rmtree(folder, ignore_errors=True)


def is_to_join(record: Path | None = None) -> bool:
    """Whether there is a cluster to join: that of RAY_ADDRESS, or of `ray start` on this machine. A
    crash may leave the record of one that is gone, for which Ray would wait for minutes."""
    if address := os.environ.get("RAY_ADDRESS"):
        return address != "local"
    record = record or Path(get_ray_address_file(None))
    if not record.exists():
        return False
    host, _, port = record.read_text().strip().rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError):
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def grown(each: Share, workers: int) -> int:
    """How many workers there is room for, after asking for room for `workers` where the cluster
    starts nodes when asked, and waiting while they come."""
    if room(each) >= workers or not (is_to_join() and _starting() is not None):
        return room(each)
    print(f"waits for nodes: room for {room(each)} of {workers} workers", flush=True)
    request_resources(bundles=[{"CPU": each.cpus, "GPU": each.gpus}] * workers)
    asked = time.monotonic()
    try:
        while room(each) < workers and (_starting() or time.monotonic() < asked + PATIENCE):
            time.sleep(1)
    finally:  # those that came stay while they have work, and for the cluster's idle time after
        request_resources(bundles=[])
    return room(each)


def _starting() -> int | None:
    """How many nodes have been asked for and are not there yet; None where none ever come."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if status.stats.autoscaler_version in (None, "0"):
        return None
    return len(status.pending_launches) + len(status.pending_nodes)
