"""Other places to log a study to, through Ray's own callbacks: MLflow and Weights & Biases."""

import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray import tune

from mnist_ray import restored
from mnist_ray.errors import UserError, reason

ANSWER_WITHIN = 20
"""Seconds in which MLflow must answer before a study starts."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Environment variables. By default MLflow asks for minutes, while the study stands still."""


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow give up soon in a block, unless the user has set for how long it asks, and tell
    warnings alone."""
    quiet = restored.log_level("mlflow", logging.WARNING)
    with restored.environment(unless_set=PATIENCE), quiet:
        yield


def check(track: str | None) -> None:
    """Raise UserError where the package for `mlflow`, `mlflow=URI`, `wandb` or `wandb=PROJECT` is
    not installed, or MLflow's server does not answer."""
    if not track:
        return
    which, _, where = track.partition("=")
    found = importlib.util.find_spec(which)
    # A folder of that name, as W&B makes one for its files, is found too: a package without a file.
    if found is None or found.origin is None:
        raise UserError(
            f"track is {track}, but {which} is not installed; pip install 'mnist_ray[{which}]'."
        )
    if which == "mlflow":
        with impatient():
            why = _why_not(where or None)
        if why:
            raise UserError(f"track is {track}, but MLflow cannot log there: {why}.")


def _why_not(where: str | None) -> str:
    """Say why MLflow cannot log at a URI, or at its default; empty where it can."""
    import mlflow

    outcome = [f"no answer within {ANSWER_WITHIN} seconds"]

    def ask() -> None:
        try:
            mlflow.MlflowClient(tracking_uri=where).search_experiments(max_results=1)
            outcome[0] = ""
        except Exception as error:  # whatever MLflow raises for a URI, a server or its store
            outcome[0] = reason(error)

    # In a thread, because for a database it has a patience of its own, of minutes.
    with restored.log_level("mlflow", logging.CRITICAL):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER_WITHIN)
    return outcome[0]


def callbacks(track: str | None, name: str) -> list[tune.Callback]:
    """Make what logs the study `name`. What `track` does not name is taken from the packages' own
    environment variables. A study goes on without it where it fails."""
    if not track:
        return []
    which, _, where = track.partition("=")
    if which == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return [_forgiving(MLflowLoggerCallback(where or None, experiment_name=name), which)]
    from ray.air.integrations.wandb import WandbLoggerCallback

    return [_forgiving(WandbLoggerCallback(project=where or "mnist_ray", group=name), which)]


HOOKS = ("setup", "log_trial_start", "log_trial_result", "log_trial_end")


def _forgiving(callback: tune.Callback, which: str) -> tune.Callback:
    """Let a callback that raises be told once, and be asked no more."""
    failed = False

    def forgiving(hook: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(hook)
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal failed
            if failed:
                return
            try:
                hook(*args, **kwargs)
            except Exception as error:  # whatever a server that is gone comes to
                failed = True
                print(
                    f"warning: {which} failed, and the study goes on without it: {reason(error)}",
                    file=sys.stderr,
                )

        return call

    for name in HOOKS:
        setattr(callback, name, forgiving(getattr(callback, name)))
    return callback
