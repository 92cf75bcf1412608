"""Logging to MLflow or Weights & Biases: a study through Ray's own callbacks, a training run
directly."""

import functools
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mnist_ray import restored, tables
from mnist_ray.errors import UserError, reason

if TYPE_CHECKING:  # Ray Tune takes a second to import
    from ray import tune

ANSWER_WITHIN = 20
"""Seconds within which MLflow must answer before a run starts."""

PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Environment variables that let MLflow give up soon. By default it retries for minutes, while
the run stands still."""


@contextmanager
def impatient() -> Iterator[None]:
    """Let MLflow give up soon within a block, unless the user has set how long it retries, and
    log nothing below warnings. Afterwards, this process logs to MLflow where it did before."""
    quiet = restored.log_level("mlflow", logging.WARNING)
    where = _logging_to()
    with restored.environment(unless_set=PATIENCE, also=["MLFLOW_TRACKING_URI"]), quiet:
        try:
            yield
        finally:
            if _logging_to() != where:  # Ray's callback sets both for the whole process
                import mlflow

                mlflow.set_tracking_uri(where[0])  # type: ignore[arg-type] # None: the default
                mlflow.set_registry_uri(where[1])  # type: ignore[arg-type]


def _logging_to() -> tuple[str | None, str | None]:
    """Return the URIs of the tracking server and of the model registry that this process has set
    for MLflow, each None where it is MLflow's default."""
    mlflow = sys.modules.get("mlflow")
    if not mlflow or not mlflow.is_tracking_uri_set():
        return None, None
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    return tracking, None if registry == tracking else registry


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


class RunTracker(Protocol):
    """Where a training run is logged."""

    def log(self, epochs: Sequence[tables.Row]) -> None:
        """Log those of the run's epochs, rows of the epochs table, that are not logged yet."""

    def end(self, failed: bool) -> None:
        """Say that the run ended, or that it `failed` and may be resumed."""


def of_run(
    track: str | None, name: str, settings: Mapping[str, Any], began: datetime
) -> RunTracker | None:
    """Return where `track` says that the training run `name` is logged, or None. The same run is
    known by when it `began`: a resumed run goes on where it was logged before. If logging fails,
    the run continues without it."""
    if not track:
        return None
    which, _, where = track.partition("=")
    kind = _Mlflow if which == "mlflow" else _Wandb
    try:
        tracker = kind(where or None, name, settings, began)
    except Exception as error:  # whatever a lost server leads to
        _warn(which, "training", error)
        return None
    return _forgiving(tracker, which, hooks=("log", "end"), what="training")


EXPERIMENT = "mnist_ray"
"""The experiment of MLflow, and the project of W&B, that keeps training runs if none is named."""


class _Mlflow:
    """Logs a training run to MLflow, without a word to what else this process logs there."""

    def __init__(
        self, where: str | None, name: str, settings: Mapping[str, Any], began: datetime
    ) -> None:
        import mlflow
        from mlflow.entities import Param

        self.client = mlflow.MlflowClient(tracking_uri=where)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self.client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self.client.create_experiment(experiment)
        tag = {"mnist_ray.began": began.isoformat()}
        is_it = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tag.items())
        before = self.client.search_runs([number], filter_string=is_it, max_results=1)
        if before:
            self.run = before[0].info.run_id
            self.client.update_run(self.run, status="RUNNING")
        else:
            self.run = self.client.create_run(number, run_name=name, tags=tag).info.run_id
            params = [Param(key, str(value)) for key, value in settings.items()]
            self.client.log_batch(self.run, params=params)
        history = self.client.get_metric_history(self.run, "accuracy") if before else []
        self.logged = max((point.step for point in history), default=0)

    def log(self, epochs: Sequence[tables.Row]) -> None:
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        new = [row for row in epochs if row["epoch"] > self.logged]
        for row in new:
            values = [Metric(key, value, now, row["epoch"]) for key, value in _measured(row)]
            self.client.log_batch(self.run, metrics=values)
            self.logged = row["epoch"]

    def end(self, failed: bool) -> None:
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class _Wandb:
    """Logs a training run to Weights & Biases."""

    def __init__(
        self, where: str | None, name: str, settings: Mapping[str, Any], began: datetime
    ) -> None:
        import wandb

        self.run = wandb.init(
            project=where or os.environ.get("WANDB_PROJECT") or EXPERIMENT,
            name=name,
            id=f"{began:%Y%m%d-%H%M%S-%f}",
            resume="allow",
            config=dict(settings),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.logged = self.run.step - 1 if self.run.resumed else 0

    def log(self, epochs: Sequence[tables.Row]) -> None:
        for row in epochs:
            if row["epoch"] > self.logged:
                self.run.log(dict(_measured(row)), step=row["epoch"], commit=True)
                self.logged = row["epoch"]

    def end(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _measured(row: tables.Row) -> list[tuple[str, float]]:
    return [(name, row[name]) for name in tables.MEASURES if row.get(name) is not None]


HOOKS = ("setup", "log_trial_start", "log_trial_result", "log_trial_end")

Logger = TypeVar("Logger")


def _warn(which: str, what: str, error: Exception) -> None:
    print(
        f"warning: {which} failed, and {what} goes on without it: {reason(error)}",
        file=sys.stderr,
    )


def _forgiving(
    callback: Logger, which: str, hooks: Sequence[str] = HOOKS, what: str = "the study"
) -> Logger:
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
                _warn(which, what, error)

        return call

    for name in hooks:
        setattr(callback, name, forgiving(getattr(callback, name)))
    return callback
