"""Other places to log a study to, through Ray's own callbacks: MLflow and Weights & Biases."""

import importlib.util
import logging

from ray import tune

from mnist_ray.errors import UserError


def callbacks(track: str | None, name: str) -> list[tune.Callback]:
    """For `mlflow`, `mlflow=URI`, `wandb` or `wandb=PROJECT`; raises UserError where its package is
    not installed. What is not named is taken from their own environment variables."""
    if not track:
        return []
    which, _, where = track.partition("=")
    if importlib.util.find_spec(which) is None:
        raise UserError(
            f"track is {track}, but {which} is not installed; pip install 'mnist_ray[{which}]'."
        )
    if which == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        return [MLflowLoggerCallback(tracking_uri=where or None, experiment_name=name)]
    from ray.air.integrations.wandb import WandbLoggerCallback

    return [WandbLoggerCallback(project=where or "mnist_ray", group=name)]
