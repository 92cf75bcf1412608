"""Every private or undocumented name of Ray that mnist_ray uses, and what each is for.

Ray may drop any of them in its next version. Therefore pyproject.toml admits only the versions that
were tested, and a test looks for each name. Other modules import the names from here:
`from mnist_ray.cluster.ray_private import get_cluster_status`. Ray is imported when a name is
asked for.
"""

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple


class Private(NamedTuple):
    """A name in a module of Ray. `used_to` ends a sentence that begins "mnist_ray uses it to"."""

    module: str
    name: str
    used_to: str


NAMES = (
    Private(
        "ray._common.utils",
        "get_ray_address_file",
        "find the cluster that `ray start` began on this machine; without it, only RAY_ADDRESS"
        " could name a cluster",
    ),
    Private(
        "ray._private.grpc_utils",
        "init_grpc_channel",
        "connect to a cluster with Ray's own TLS settings and ask whether it answers, before"
        " joining it; Ray itself would try for minutes",
    ),
    Private(
        "ray._private.ray_constants",
        "GLOBAL_GRPC_OPTIONS",
        "ask whether a cluster answers, over a connection with the options of Ray's own clients",
    ),
    Private(
        "ray.core.generated.gcs_service_pb2",
        "GetClusterIdRequest",
        "ask whether a cluster answers, by the smallest request that there is",
    ),
    Private(
        "ray.core.generated.gcs_service_pb2_grpc",
        "NodeInfoGcsServiceStub",
        "ask whether a cluster answers, at the service that replies to this request",
    ),
    Private(
        "ray.autoscaler.v2.sdk",
        "get_cluster_status",
        "count the nodes that are being started, and wait for them; without it, a cluster that"
        " grows would be taken for one that is too small",
    ),
    Private(
        "ray._private.worker",
        "print_to_stdstream",
        "hide Ray's messages about processes that died, which mnist_ray reports in one line each",
    ),
    Private(
        "ray._private.worker",
        "_global_node",
        "see whether a signal interrupted Ray's start; without it, processes that Ray does not know"
        " of would outlive the command",
    ),
    Private(
        "ray._private.node",
        "Node.webui_url",
        "find the dashboard of a cluster that the caller started, for trials of several workers",
    ),
    Private(
        "ray._private.ray_constants",
        "ENABLE_RAY_CLUSTER",
        "make a private cluster listen on loopback alone; without it, the cluster would be open to"
        " the network",
    ),
    Private(
        "ray.train.v2._internal.constants",
        "CHECKPOINT_MANAGER_SNAPSHOT_FILENAME",
        "delete Ray Train's list of checkpoints if a kill left it half-written; otherwise Ray Train"
        " would refuse to resume",
    ),
    Private(
        "ray.tune.integration.ray_train",
        "CHECKPOINT_PATH_KEY",
        "find the checkpoint that the workers of a trial saved",
    ),
    *(
        Private(
            "ray.tune.result",
            name,
            "tell a trial's metrics from what Tune adds to them; without it, the epochs table could"
            " not be written",
        )
        for name in (
            "AUTO_RESULT_KEYS",
            "DEBUG_METRICS",
            "DONE",
            "EXPERIMENT_TAG",
            "SHOULD_CHECKPOINT",
        )
    ),
    Private(
        "ray.tune.experiment",
        "Trial.error_file",
        "say why a trial failed",
    ),
    Private(
        "ray.train._internal.storage",
        "StorageContext.trial_fs_path",
        "find the checkpoint that Tune stored for a trial",
    ),
    Private(
        "ray.tune.schedulers",
        "MedianStoppingRule._on_insufficient_samples",
        "keep Tune from pausing the first trials of a study and starting them again",
    ),
)
"""Names that are imported, read or overridden."""

WORDS = (
    Private(
        "ray._private.worker",
        "_temp_dir",
        "keep the logs and sockets of a private cluster in a folder that is deleted afterwards",
    ),
    Private(
        "ray.dashboard.utils",
        "RAY_API_SERVER_ADDRESS",
        "tell Ray Train which dashboard to ask; without it, Ray fails if this machine runs two"
        " clusters",
    ),
    Private(
        "ray.train.v2._internal.constants",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "make Ray Train poll its workers more often than every two seconds, so that a short epoch"
        " does not wait for the poll",
    ),
    Private(
        "ray._private.accelerators.accelerator",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "choose what will be Ray's default, and avoid the warning about the change",
    ),
    Private(
        "ray._raylet",
        "prestart_worker_first_driver",
        "keep a private cluster from starting workers early, which Tune and Train cannot use,"
        " because they ask for workers with other environment variables",
    ),
    Private(
        "ray.tune.tune",
        "TUNE_DISABLE_SIGINT_HANDLER",
        "let Ctrl-C end a study; without it, Tune would return as if all trials were done",
    ),
    Private(
        "ray.tune.execution.tune_controller",
        "TUNE_GLOBAL_CHECKPOINT_S",
        # Measured in experiments/2026-11-25_scale.
        "keep Tune from writing its own record of a study, which nothing here reads, and which took"
        " a third of the driver's time at 900 trials",
    ),
    Private(
        "ray.tune.experimental.output",
        "RAY_AIR_NEW_OUTPUT",
        "keep Tune from printing its own tables, which it does even with verbose=0",
    ),
    Private(
        "ray.tune.schedulers.median_stopping_rule",
        "_stopped_trials",
        "let a trial of a resumed study report again after replaying its epochs marked it as"
        " stopped",
    ),
)
"""Environment variables, options and attributes. `missing` looks for them in a module's source."""


API_SERVER = "RAY_API_SERVER_ADDRESS"

FOR_RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
FOR_PRIVATE_CLUSTER = {"RAY_prestart_worker_first_driver": "0"}
FOR_TUNE = {"TUNE_GLOBAL_CHECKPOINT_S": str(10**9)}
QUIET_TUNE = {"RAY_AIR_NEW_OUTPUT": "0"}
"""Environment variables that are set unless the user has set them: for Ray, for a private cluster,
for Tune, and for Tune without --verbose."""

SET_BY_RAY = ("PYTHONBREAKPOINT", "RAY_USAGE_STATS_ENABLED")
"""Environment variables that ray.init sets and that are restored afterwards. RAY_AUTH_MODE, which a
private cluster sets to `token`, is not restored: Ray goes on asking for tokens in this process, and
the processes that it starts later must do so, too."""

ALWAYS_FOR_TUNE = {"TUNE_DISABLE_SIGINT_HANDLER": "1"}
"""Environment variables that are set for Tune even if the user has set them."""


def missing(private: Private) -> str | None:
    """Return a sentence that says that Ray no longer has this name, or None if Ray has it."""
    try:
        if private not in WORDS:
            attrgetter(private.name)(importlib.import_module(private.module))
            return None
        spec = importlib.util.find_spec(private.module)
        if spec and spec.origin and private.name.encode() in Path(spec.origin).read_bytes():
            return None
    except (ImportError, AttributeError):
        pass
    return (
        f"Ray {importlib.metadata.version('ray')} has no {private.name} in {private.module}, which"
        f" mnist_ray uses to {private.used_to}."
    )


def __getattr__(name: str) -> Any:
    """Import one of NAMES from Ray. Raises ImportError, with the sentence of `missing`, if Ray no
    longer has it."""
    for each in NAMES:
        if each.name == name:
            if why := missing(each):
                raise ImportError(why)
            return getattr(importlib.import_module(each.module), name)
    raise AttributeError(f"{__name__} has no {name}")


@contextmanager
def replaced(name: str, value: object) -> Iterator[None]:
    """Replace one of NAMES within Ray for a block, and put it back afterwards."""
    before = __getattr__(name)
    module = next(importlib.import_module(each.module) for each in NAMES if each.name == name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)
