"""Ray itself: joining a cluster, or starting one here."""

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
from ray.autoscaler.sdk import request_resources

from mnist_ray import errors, restored
from mnist_ray.cluster import ray_private
from mnist_ray.cluster.ray_private import (
    GLOBAL_GRPC_OPTIONS,
    GetClusterIdRequest,
    NodeInfoGcsServiceStub,
    get_cluster_status,
    get_ray_address_file,
    init_grpc_channel,
)
from mnist_ray.cluster.resources import (
    PATIENCE,
    WorkerResources,
    cluster_nodes,
    cores,
    workers_that_fit,
)
from mnist_ray.errors import RunFailed, UserError

API_SERVER = ray_private.API_SERVER
ANSWER_WITHIN = 10
"""Seconds that a cluster has to answer. Ray itself would go on asking for minutes."""

SOCKETS = "/mnist_ray-12345678/session_2026-11-26_00-00-00_000000_1234567/sockets/plasma_store"
LONGEST_TMPDIR = (103 if sys.platform == "darwin" else 107) - len(SOCKETS)
"""Bytes of the folder in which a cluster's folder is made: the paths of its sockets are bounded."""


@contextmanager
def connected(*, dashboard: bool, verbose: bool, say: Callable[[str], None]) -> Iterator[None]:
    """Inside, Ray is there: the cluster that this machine is a node of, or one just for this block,
    which listens on loopback alone and leaves nothing behind. It is said which one is joined.

    `dashboard` is for a cluster started here. Trials that launch workers of their own need it: when
    one is stopped early, Ray Train asks the dashboard whether that trial's controller is dead, and
    gives its resources back only then.

    What Ray and this function replace in the process is put back afterwards: signal handlers, log
    levels, environment variables and the function that prints what workers print.
    """
    options: dict[str, Any] = {
        "logging_level": "INFO" if verbose else "ERROR",
        "log_to_driver": verbose,
    }
    with contextlib.ExitStack() as exits:
        exits.enter_context(
            restored.environment(unless_set=ray_private.FOR_RAY, also=ray_private.SET_BY_RAY),
        )
        exits.enter_context(restored.signal_handlers())
        exits.enter_context(restored.log_level("ray"))  # ray.init sets it
        if not verbose:
            # What failed, and what became of it, is told in a line of our own.
            exits.enter_context(restored.log_level("ray.tune", logging.CRITICAL))
            silent = ray_private.replaced("print_to_stdstream", lambda *_, **__: None)
            exits.enter_context(silent)
        if address := to_join():
            options["address"] = None  # Ray finds it in the same way
            exits.callback(ray.shutdown)
            if urllib.request.getproxies():
                around = _around_proxies("localhost", "127.0.0.1", address.rpartition(":")[0])
                options["runtime_env"] = {"env_vars": around}
        else:
            options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": cores()}
            options |= exits.enter_context(_private_cluster(dashboard, verbose))
        try:
            ray.init(**options)
        except Exception as error:  # Ray raises this very class where a machine is too busy
            raise RunFailed(f"Ray did not start: {error}") from error
        except SystemExit:  # so Ray heeds SIGTERM while it starts
            errors.interrupt(signal.SIGTERM)
        errors.heed_signals()
        if "include_dashboard" not in options:
            nodes, address = cluster_nodes(), ray.get_runtime_context().gcs_address
            say(
                f"joined the Ray cluster at {address}: {len(nodes)} node{'s' * (len(nodes) > 1)},"
                f" {sum(node.cpus for node in nodes)} CPUs\n"
            )
        yield


@contextmanager
def _private_cluster(dashboard: bool, verbose: bool) -> Iterator[dict[str, Any]]:
    """What a cluster of its own needs besides: Ray's options for that, and the environment."""
    folder = _temporary_folder()
    if not verbose:  # or its logs are what one wants to read
        # Last of all, after Ray's own, where a signal came while it started.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options: dict[str, Any] = {"_temp_dir": str(folder)}
    environment = {"TMPDIR": str(folder)}  # where a worker that is killed leaves its own
    environment |= _around_proxies("localhost", "127.0.0.1") | _token()
    if dashboard:
        options["dashboard_port"] = port = free_port()
        # By itself Ray looks for any cluster on this machine, and gives up where there are two.
        environment[API_SERVER] = f"http://127.0.0.1:{port}"
    try:
        # Otherwise Ray listens on every interface. This is its switch for laptops, which it reads
        # from the environment when it is imported.
        loopback = ray_private.replaced("ENABLE_RAY_CLUSTER", False)
        with restored.environment(environment), loopback:
            try:
                yield options
            finally:
                _shut_down(folder)
    finally:
        if not verbose:
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    """Make the folder of a cluster's logs and sockets; raises UserError where it cannot."""
    named = os.environ.get("RAY_TMPDIR")
    try:
        place = os.path.abspath(named or tempfile.gettempdir())
        if len(os.fsencode(place)) > LONGEST_TMPDIR:
            if named:
                raise UserError(
                    f"RAY_TMPDIR is {named}, {len(os.fsencode(place))} bytes long, but Ray's"
                    f" sockets need one of at most {LONGEST_TMPDIR}; name a shorter one."
                )
            place = "/tmp"
        return Path(tempfile.mkdtemp(prefix="mnist_ray-", dir=place))
    except OSError as error:
        raise UserError(
            f"{f'RAY_TMPDIR {named}' if named else 'the folder of temporary files'} cannot be"
            f" used: {errors.reason(error)}. Set RAY_TMPDIR to a folder that can be written."
        ) from None


def _shut_down(folder: Path) -> None:
    """End the cluster whose folder this is. Where a signal came while Ray started, Ray does not
    know all that it started, and some would live on and write to the folder."""
    started = [] if ray.is_initialized() else _processes(folder)
    if not ray_private._global_node:
        _kill(started)
    ray.shutdown()
    _kill(started)


def _processes(folder: Path) -> list[psutil.Process]:
    """Return the processes of the cluster whose folder this is, parents before their children."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()  # so that it starts no other
            for child in (*process.children(recursive=True), process):
                child.kill()


def _around_proxies(*hosts: str) -> dict[str, str]:
    """The environment in which these hosts are asked directly. Ray asks its dashboard with a
    library that heeds http_proxy, and where a proxy answers instead, waits for ever."""
    names = ("no_proxy", "NO_PROXY")
    known = [host for name in names for host in os.environ.get(name, "").split(",") if host]
    value = "*" if "*" in known else ",".join(dict.fromkeys([*known, *hosts]))
    return dict.fromkeys(names, value)


def _token() -> dict[str, str]:
    """The environment with a token for a cluster of its own, where ~/.ray can keep none."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return {}
    try:
        folder = Path.home() / ".ray"
        if not os.access(folder / "auth_token", os.R_OK):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # there may be no home at all
        return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {}


def to_join(record: Path | None = None) -> str | None:
    """Return the address of the cluster to join, that of RAY_ADDRESS or of `ray start` on this
    machine, or None where there is none to join. Raises UserError for a RAY_ADDRESS that leads to
    none."""
    address = os.environ.get("RAY_ADDRESS") or None
    if address == "local":
        return None
    if address and "://" in address:
        raise UserError(
            f"RAY_ADDRESS is {address}, but a command runs on a machine of the cluster, whose"
            " address is like HOST:6379. Elsewhere, leave it to `ray job submit`."
        )
    if address in (None, "auto"):
        # A crash may leave the record of a cluster that is gone, or it may be another user's.
        with contextlib.suppress(OSError, ValueError):
            recorded = (record or Path(get_ray_address_file(None))).read_text(encoding="utf-8")
            if answers(recorded.strip()):
                return recorded.strip()
        if not address:
            return None
    elif answers(address):
        return address
    raise UserError(
        f"RAY_ADDRESS is {address}, but no Ray cluster answers there; correct it, or unset it to"
        " start a cluster for this run alone."
    )


def answers(address: str) -> bool:
    """Whether a Ray cluster answers at an address like HOST:6379."""
    if not address.rpartition(":")[2].isdigit():
        return False
    channel = init_grpc_channel(address, GLOBAL_GRPC_OPTIONS)
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(
            GetClusterIdRequest(), timeout=ANSWER_WITHIN, wait_for_ready=True
        )
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)  # the token comes later
    finally:
        channel.close()
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_nodes(each: WorkerResources, workers: int) -> int:
    """How many workers there is room for, after asking for room for `workers` where the cluster
    starts nodes when asked, and waiting while they come."""
    if workers_that_fit(each, cluster_nodes()) >= workers or not (
        to_join() and _starting() is not None
    ):
        return workers_that_fit(each, cluster_nodes())
    print(
        f"waits for nodes: room for {workers_that_fit(each, cluster_nodes())} of {workers} workers",
        flush=True,
    )
    request_resources(bundles=[{"CPU": each.cpus, "GPU": each.gpus}] * workers)
    asked = time.monotonic()
    try:
        while workers_that_fit(each, cluster_nodes()) < workers and (
            _starting() or time.monotonic() < asked + PATIENCE
        ):
            time.sleep(1)
    finally:  # those that came stay while they have work, and for the cluster's idle time after
        request_resources(bundles=[])
    return workers_that_fit(each, cluster_nodes())


def _starting() -> int | None:
    """How many nodes have been asked for and are not there yet; None where none ever come."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if status.stats.autoscaler_version in (None, "0"):
        return None
    return len(status.pending_launches) + len(status.pending_nodes)
