"""Joining a Ray cluster, or starting a private one on this machine."""

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
from collections.abc import Iterator
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
from mnist_ray.cluster.show import Show
from mnist_ray.errors import RunFailed, UserError
from mnist_ray.fields import counted

API_SERVER = ray_private.API_SERVER
ANSWER_WITHIN = 10
"""Seconds within which a cluster must answer. Ray itself asks for minutes before it gives up."""

SOCKETS = "/mnist_ray-12345678/session_2026-11-26_00-00-00_000000_1234567/sockets/plasma_store"
LONGEST_TMPDIR = (103 if sys.platform == "darwin" else 107) - len(SOCKETS)
"""The most bytes that the path of RAY_TMPDIR may have: the system limits the paths of sockets."""


@contextmanager
def connected(*, dashboard: bool, verbose: bool, show: Show) -> Iterator[None]:
    """Connect to Ray for a block: join the cluster that this machine belongs to, or start a private
    one, which listens on loopback alone and leaves nothing behind. `show` is told which cluster is
    joined. If the caller has connected this process to Ray, use that cluster, and stay connected
    after the block.

    `dashboard` starts the dashboard of a private cluster. Trials that launch workers need it: when
    such a trial is stopped early, Ray Train asks the dashboard whether the trial's controller is
    dead, and frees its resources only then.

    After the block, whatever Ray and this function replaced in the process is put back: signal
    handlers, log levels, environment variables, and the function that prints workers' output.
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
            # The recorder says in one line what failed and how the trial goes on.
            exits.enter_context(restored.log_level("ray.tune", logging.CRITICAL))
            silent = ray_private.replaced("print_to_stdstream", lambda *_, **__: None)
            exits.enter_context(silent)
        if ray.is_initialized():
            exits.enter_context(_cluster_of_the_caller(dashboard))
            errors.heed_signals()
            yield
            return
        if address := to_join():
            options["address"] = None  # Ray finds it in the same way
            exits.callback(ray.shutdown)
            if urllib.request.getproxies():
                around = _around_proxies("localhost", "127.0.0.1", address.rpartition(":")[0])
                options["runtime_env"] = {"env_vars": around}
        else:
            options |= {"address": "local", "include_dashboard": dashboard, "num_cpus": cores()}
            options |= exits.enter_context(_private_cluster(dashboard, verbose))
        starting = f"joining the Ray cluster at {address}" if address else "starting Ray"
        try:
            with show.waiting(starting):
                ray.init(**options)
        except Exception as error:  # on a busy machine, Ray raises a plain Exception
            raise RunFailed(f"Ray did not start: {error}") from error
        except SystemExit:  # from the handler of SIGTERM that Ray sets while it starts
            errors.interrupt(signal.SIGTERM)
        errors.heed_signals()
        if "include_dashboard" not in options:
            nodes, address = cluster_nodes(), ray.get_runtime_context().gcs_address
            show.say(
                f"joined the Ray cluster at {address}: {counted(len(nodes), 'node')},"
                f" {counted(sum(node.cpus for node in nodes), 'CPU')}\n"
            )
        yield


@contextmanager
def _cluster_of_the_caller(dashboard: bool) -> Iterator[None]:
    """Set the environment for the cluster that this process is connected to. Raises UserError where
    a run cannot use it."""
    if ray.util.client.ray.is_connected():
        raise UserError(
            "this process is connected to Ray as a client, through an address like ray://HOST,"
            " but a run needs a machine of the cluster; call ray.shutdown() first to run without"
            " the cluster, or run there."
        )
    if not dashboard:
        yield
        return
    address = ray_private._global_node.webui_url
    if not address:
        raise UserError(
            "this process is connected to Ray without its dashboard, which trials of several"
            " workers need when they are stopped; call ray.shutdown() first, or start Ray with"
            " include_dashboard=True."
        )
    with restored.environment(unless_set={API_SERVER: f"http://{address}"}):
        yield


@contextmanager
def _private_cluster(dashboard: bool, verbose: bool) -> Iterator[dict[str, Any]]:
    """Set up the folder and environment of a private cluster; give the options for ray.init."""
    folder = _temporary_folder()
    if not verbose:  # with --verbose, somebody wants to read Ray's logs
        # Registered first, so that it runs after Ray's own exit handlers.
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    options: dict[str, Any] = {"_temp_dir": str(folder)}
    environment = {"TMPDIR": str(folder)}  # a killed worker leaves its temporary files there
    environment |= _around_proxies("localhost", "127.0.0.1") | _token()
    if dashboard:
        options["dashboard_port"] = port = free_port()
        # Without this address, Ray looks for any cluster on this machine, and fails if there are
        # two.
        environment[API_SERVER] = f"http://127.0.0.1:{port}"
    try:
        # With this switch off, Ray listens on loopback alone. Ray reads it from the environment
        # when it is imported, which is too early for us.
        loopback = ray_private.replaced("ENABLE_RAY_CLUSTER", False)
        not_set = ray_private.FOR_PRIVATE_CLUSTER
        with restored.environment(environment, unless_set=not_set), loopback:
            try:
                yield options
            finally:
                _shut_down(folder)
    finally:
        if not verbose:
            shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    """Make the folder for the logs and sockets of a private cluster; raises UserError where that
    cannot be done."""
    named = os.environ.get("RAY_TMPDIR")
    try:
        # Asked in any case: Python remembers the first answer, and TMPDIR changes for the block.
        usual = tempfile.gettempdir()
        place = os.path.abspath(named or usual)
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
    """Shut down the private cluster in `folder`. If a signal came while Ray started, Ray does not
    know all of its processes, so the others are killed here."""
    started = [] if ray.is_initialized() else _processes(folder)
    if not ray_private._global_node:
        _kill(started)
    # Ray waits a second for its helpers to end. They are written in Python and save nothing.
    for process in _processes(folder):
        with contextlib.suppress(psutil.Error):  # it may have just ended
            if process.name().startswith("python"):
                _kill([process])
    ray.shutdown()
    _kill(started)


def _processes(folder: Path) -> list[psutil.Process]:
    """Return the processes of the private cluster in `folder`, parents before their children."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                found += [child, *child.children(recursive=True)]
    return found


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.suspend()  # so that it cannot start another process
            for child in (*process.children(recursive=True), process):
                child.kill()


def _around_proxies(*hosts: str) -> dict[str, str]:
    """Return environment variables that keep requests to `hosts` from going through a proxy. Ray
    asks its dashboard with a library that obeys http_proxy, and waits for ever if a proxy answers.
    """
    names = ("no_proxy", "NO_PROXY")
    excepted = [host for name in names for host in os.environ.get(name, "").split(",") if host]
    value = "*" if "*" in excepted else ",".join(dict.fromkeys([*excepted, *hosts]))
    return dict.fromkeys(names, value)


def _token() -> dict[str, str]:
    """Return an environment variable with a token for a private cluster, if Ray cannot keep its own
    token in ~/.ray."""
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
    """Return the address of the cluster to join, or None if there is none. It is the address in
    RAY_ADDRESS, or that of a cluster that `ray start` began on this machine.

    Raises UserError if no cluster answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS") or None
    if address == "local":
        return None
    if address and "://" in address:
        raise UserError(
            f"RAY_ADDRESS is {address}, but a command runs on a machine of the cluster, whose"
            " address is like HOST:6379. From any other machine, use `ray job submit`."
        )
    if address in (None, "auto"):
        # The recorded cluster may have crashed, or the record may belong to another user.
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
    """Return whether a Ray cluster answers at an address like HOST:6379."""
    if not address.rpartition(":")[2].isdigit():
        return False
    channel = init_grpc_channel(address, GLOBAL_GRPC_OPTIONS)
    try:
        NodeInfoGcsServiceStub(channel).GetClusterId(
            GetClusterIdRequest(), timeout=ANSWER_WITHIN, wait_for_ready=True
        )
    except grpc.RpcError as error:
        return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)  # ray.init sends the token
    finally:
        channel.close()
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for_nodes(each: WorkerResources, workers: int) -> int:
    """Return how many workers fit on the cluster, up to `workers`. If the cluster can start nodes,
    ask for enough of them and wait until they have joined."""
    fits = workers_that_fit(each, cluster_nodes())
    if fits >= workers or not to_join() or _starting() is None:
        return fits
    print(f"waiting for nodes: room for {fits} of {counted(workers, 'worker')}", flush=True)
    request_resources(bundles=[{"CPU": each.cpus, "GPU": each.gpus}] * workers)
    asked = time.monotonic()
    try:
        while fits < workers and (_starting() or time.monotonic() < asked + PATIENCE):
            time.sleep(1)
            fits = workers_that_fit(each, cluster_nodes())
    finally:  # without a request, new nodes stay while they have work, and the idle time after it
        request_resources(bundles=[])
    return fits


def _starting() -> int | None:
    """Return how many nodes are being started; None if the cluster has no autoscaler."""
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    if status.stats.autoscaler_version in (None, "0"):
        return None
    return len(status.pending_launches) + len(status.pending_nodes)
