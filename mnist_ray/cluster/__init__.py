"""Ray: a cluster joined or started, a training run through Ray Train, a study through Ray Tune.

The only part that imports Ray. What it shows goes through the protocols of `show`, which the
terminal implements.
"""

from mnist_ray.cluster.resources import WorkerResources
from mnist_ray.cluster.study import study as run_study
from mnist_ray.cluster.training import train

__all__ = ["WorkerResources", "run_study", "train"]
