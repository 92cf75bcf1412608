"""Ray: a cluster joined or started, a training run through Ray Train, a study through Ray Tune.

The only part that imports Ray. What it shows goes through the protocols of `show`, which the
terminal implements.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_ray.cluster.resources import WorkerResources
    from mnist_ray.cluster.study import run_study
    from mnist_ray.cluster.training import train

__all__ = ["WorkerResources", "run_study", "train"]


def __getattr__(name: str) -> Any:
    """Import the one that is asked for: a training run needs no Ray Tune, which takes a second."""
    if name == "train":
        from mnist_ray.cluster.training import train

        return train
    if name == "run_study":
        from mnist_ray.cluster.study import run_study

        return run_study
    if name == "WorkerResources":
        from mnist_ray.cluster.resources import WorkerResources

        return WorkerResources
    raise AttributeError(f"{__name__} has no {name}")
