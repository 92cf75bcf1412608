"""Every private or undocumented name of Ray that mnist_ray uses, and what each is for.

Ray may drop any of them in its next version, so pyproject.toml names the versions that were run,
and a test looks for each. Other modules import them from here by their plain names:
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
    """A name in a module of Ray, and what mnist_ray needs it for, as the end of a sentence."""

    module: str
    name: str
    used_to: str


NAMES = (
    Private(
        "ray._common.utils",
        "get_ray_address_file",
        "find the cluster that `ray start` began on this machine; RAY_ADDRESS alone could name it",
    ),
    Private(
        "ray._private.grpc_utils",
        "init_grpc_channel",
        "ask whether a cluster answers before it is joined, with Ray's own TLS settings; Ray itself"
        " asks for minutes before it gives up",
    ),
    Private(
        "ray._private.ray_constants",
        "GLOBAL_GRPC_OPTIONS",
        "ask whether a cluster answers, as Ray's own clients do",
    ),
    Private(
        "ray.core.generated.gcs_service_pb2",
        "GetClusterIdRequest",
        "ask whether a cluster answers: the smallest question that needs no token",
    ),
    Private(
        "ray.core.generated.gcs_service_pb2_grpc",
        "NodeInfoGcsServiceStub",
        "ask whether a cluster answers: the service that is asked",
    ),
    Private(
        "ray.autoscaler.v2.sdk",
        "get_cluster_status",
        "see how many nodes are being started, and wait for those; a cluster that grows would be"
        " taken for one that is too small",
    ),
    Private(
        "ray._private.worker",
        "print_to_stdstream",
        "keep Ray's messages about processes that died off the terminal, where mnist_ray says in a"
        " line of its own what became of them",
    ),
    Private(
        "ray._private.worker",
        "_global_node",
        "see whether Ray knows what it started when a signal came meanwhile; processes of it would"
        " outlive the command",
    ),
    Private(
        "ray._private.ray_constants",
        "ENABLE_RAY_CLUSTER",
        "let a cluster of this machine's own listen on loopback alone; it would be open to the"
        " network",
    ),
    Private(
        "ray.train.v2._internal.constants",
        "CHECKPOINT_MANAGER_SNAPSHOT_FILENAME",
        "remove what Ray Train had half written when it was killed; it would refuse to resume",
    ),
    Private(
        "ray.tune.integration.ray_train",
        "CHECKPOINT_PATH_KEY",
        "learn where a trial's own workers saved their checkpoint",
    ),
    *(
        Private(
            "ray.tune.result",
            name,
            "tell a trial's metrics from what Tune adds to them; the epochs table would not be"
            " written",
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
        "say why a trial failed; it would fail without a reason",
    ),
    Private(
        "ray.train._internal.storage",
        "StorageContext.trial_fs_path",
        "learn where Tune put a trial's checkpoint",
    ),
    Private(
        "ray.tune.schedulers",
        "MedianStoppingRule._on_insufficient_samples",
        "let the first trials of a study go on; Tune would pause them, and start them again",
    ),
)
"""Names that are imported, read or overridden."""

WORDS = (
    Private(
        "ray._private.worker",
        "_temp_dir",
        "keep the logs and sockets of a cluster of its own in a folder that is removed afterwards",
    ),
    Private(
        "ray.dashboard.utils",
        "RAY_API_SERVER_ADDRESS",
        "tell Ray Train which dashboard to ask; Ray gives up where there"
        " are two clusters on a machine",
    ),
    Private(
        "ray.train.v2._internal.constants",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S",
        "have Ray Train ask its workers for news more often than every two seconds, for which a"
        " short epoch would wait",
    ),
    Private(
        "ray._private.accelerators.accelerator",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO",
        "choose what will be Ray's default, and spare the warning that it will",
    ),
    Private(
        "ray._raylet",
        "prestart_worker_first_driver",
        "keep a private cluster from starting workers that Tune and Train cannot use, because these"
        " ask for workers with other environment variables",
    ),
    Private(
        "ray.tune.tune",
        "TUNE_DISABLE_SIGINT_HANDLER",
        "let Ctrl-C end a study; Tune would go on as if all trials were done",
    ),
    Private(
        "ray.tune.execution.tune_controller",
        "TUNE_GLOBAL_CHECKPOINT_S",
        "keep Tune from writing a record of its own, which nothing here reads, and which would take"
        " a third of the driver's time where there are a thousand trials",
    ),
    Private(
        "ray.tune.experimental.output",
        "RAY_AIR_NEW_OUTPUT",
        "keep Tune from printing tables of its own between those of mnist_ray, even at verbose=0",
    ),
    Private(
        "ray.tune.schedulers.median_stopping_rule",
        "_stopped_trials",
        "let a trial that was taken for stopped report again in a resumed study",
    ),
)
"""Environment variables, options and attributes, which can only be found in a module's source."""


API_SERVER = "RAY_API_SERVER_ADDRESS"

FOR_RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
FOR_PRIVATE_CLUSTER = {"RAY_prestart_worker_first_driver": "0"}
FOR_TUNE = {"TUNE_GLOBAL_CHECKPOINT_S": str(10**9)}
QUIET_TUNE = {"RAY_AIR_NEW_OUTPUT": "0"}
"""Environment variables, unless the user has set them."""

SET_BY_RAY = ("PYTHONBREAKPOINT", "RAY_USAGE_STATS_ENABLED")
"""Environment variables that ray.init sets. RAY_AUTH_MODE, which a private cluster sets to `token`,
is not among them: Ray keeps asking for tokens in this process, and what it starts must agree."""

ALWAYS_FOR_TUNE = {"TUNE_DISABLE_SIGINT_HANDLER": "1"}
"""Environment variables, whatever the user has set."""


def missing(private: Private) -> str | None:
    """Return a sentence that says that this name is gone from Ray, or None if Ray has it."""
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
    """Import one of NAMES from Ray; raise ImportError with that sentence if it is gone."""
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
