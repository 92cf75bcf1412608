"""Logging a study to MLflow or Weights & Biases, through Ray's own callbacks."""

import functools
import importlib.util
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mnist_ray import restored
from mnist_ray.errors import UserError, reason

if TYPE_CHECKING:  # Ray Tune takes a second to import
    from ray import tune

ANSWER_WITHIN = 20
"""Seconds within which MLflow must answer before a study starts."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Environment variables that let MLflow give up soon. By default it retries for minutes, while
the study stands still."""


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow give up soon within a block, unless the user has set how long it retries, and
    log nothing below warnings."""
    quiet = restored.log_level("mlflow", logging.WARNING)
    with restored.environment(unless_set=PATIENCE), quiet:
        yield


def check(track: str | None) -> None:
    """Raise UserError if the package that `track` names (mlflow, mlflow=URI, wandb or
    wandb=PROJECT) is not installed, or if MLflow's server does not answer."""
    if not track:
        return
    which, _, where = track.partition("=")
    found = importlib.util.find_spec(which)
    # An empty folder of that name, such as W&B makes for its files, is found as a package too.
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
    """Return why MLflow cannot log at the URI `where`, or at its default; empty if it can."""
    import mlflow

    outcome = [f"no answer within {ANSWER_WITHIN} seconds"]

    def ask() -> None:
        try:
            mlflow.MlflowClient(tracking_uri=where).search_experiments(max_results=1)
            outcome[0] = ""
        except Exception as error:  # whatever MLflow raises for a URI, a server or its store
            outcome[0] = reason(error)

    # In a thread, because MLflow waits minutes for a database, whatever the variables above say.
    with restored.log_level("mlflow", logging.CRITICAL):
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWER_WITHIN)
    return outcome[0]


def callbacks(track: str | None, name: str) -> "list[tune.Callback]":
    """Return the callbacks that log the study `name`. What `track` leaves open, the packages read
    from their own environment variables. If logging fails, the study continues without it."""
    if not track:
        return []
    which, _, where = track.partition("=")
    if which == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return [_forgiving(MLflowLoggerCallback(where or None, experiment_name=name), which)]
    from ray.air.integrations.wandb import WandbLoggerCallback

    return [_forgiving(WandbLoggerCallback(project=where or "mnist_ray", group=name), which)]


HOOKS = ("setup", "log_trial_start", "log_trial_result", "log_trial_end")


def _forgiving(callback: "tune.Callback", which: str) -> "tune.Callback":
    """Change `callback` so that its first error is printed as a warning and its hooks do nothing
    from then on, and return it."""
    failed = False

    def forgiving(hook: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(hook)
        def call(*args: Any, **kwargs: Any) -> None:
            nonlocal failed
            if failed:
                return
            try:
                hook(*args, **kwargs)
            except Exception as error:  # whatever a lost server leads to
                failed = True
                print(
                    f"warning: {which} failed, and the study goes on without it: {reason(error)}",
                    file=sys.stderr,
                )

        return call

    for name in HOOKS:
        setattr(callback, name, forgiving(getattr(callback, name)))
    return callback
