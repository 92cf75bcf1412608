"""What a call replaces in its process is put back, so that a notebook goes on as it was."""

import contextlib
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
import torch

from mnist_ray import errors, restored
from mnist_ray.cluster import ray_private, study, training
from mnist_ray.config import PerWorker, Recipe, Resources, RunConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.learn import data, engine
from mnist_ray.learn.data import Mnist
from mnist_ray.terminal import StudyDisplay, TrainingDisplay

NAME = "MNIST_RAY_TEST"


def test_environment_variables_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{NAME}_SET", "before")
    before = dict(os.environ)
    values = {NAME: "1", f"{NAME}_SET": "2"}
    with contextlib.suppress(ZeroDivisionError), restored.environment(values):
        assert (os.environ[NAME], os.environ[f"{NAME}_SET"]) == ("1", "2")
        raise ZeroDivisionError
    assert dict(os.environ) == before
    with restored.environment(unless_set=values):
        assert (os.environ[NAME], os.environ[f"{NAME}_SET"]) == ("1", "before")
        del os.environ[NAME]  # by what is called
    assert dict(os.environ) == before


def test_the_level_of_a_logger_in_a_block() -> None:
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.INFO)
    with contextlib.suppress(ZeroDivisionError), restored.log_level(NAME, logging.CRITICAL):
        assert logger.level == logging.CRITICAL
        raise ZeroDivisionError
    assert logger.level == logging.INFO
    with restored.log_level(NAME):
        assert logger.level == logging.INFO
        logger.setLevel(logging.ERROR)
    assert logger.level == logging.INFO


def test_signal_handlers_set_in_a_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ZeroDivisionError), restored.signal_handlers():
        errors.heed_signals()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is errors.interrupt
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_signal_handlers_in_a_thread_that_may_set_none() -> None:
    raised: list[BaseException] = []

    def call() -> None:
        try:
            with restored.signal_handlers():
                entered.set()
                go_on.wait(10)
        except BaseException as error:
            raised.append(error)

    entered, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    with restored.signal_handlers():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        go_on.set()
        thread.join()
    assert raised == []


@pytest.fixture
def imported(small: Mnist) -> None:
    """What is imported at the first use, and changes warnings or the environment by itself."""
    engine.fit(Recipe(epochs=1), data.split(small, 101))


class Snapshot:
    """What is the process's, and not a call's."""

    def __init__(self) -> None:
        cudnn = torch.backends.cudnn
        flags = ("enabled", "benchmark", "deterministic", "allow_tf32")
        loggers = {
            name: logger
            for name, logger in logging.root.manager.loggerDict.items()
            if isinstance(logger, logging.Logger) and name in LOGGERS
        }
        self.of: dict[str, Any] = {
            "signal": {each: signal.getsignal(each) for each in signal.valid_signals()},
            "environment": dict(os.environ),
            "level": {name: logger.level for name, logger in loggers.items()},
            "handlers": {name: list(logger.handlers) for name, logger in loggers.items()},
            "root logger": {"level": logging.root.level, "handlers": list(logging.root.handlers)},
            "hook": {name: getattr(sys, name) for name in ("excepthook", "unraisablehook")},
            "stream": {name: getattr(sys, name) for name in ("stdout", "stderr")},
            "cudnn": {name: getattr(cudnn, name) for name in flags},
            "ray": {name: getattr(ray_private, name) for name in REPLACED},
            "other": {
                "optuna": optuna.logging.get_verbosity(),
                "threads": torch.get_num_threads(),
                "warnings": list(warnings.filters),
            },
        }

    def changed_since(self) -> list[str]:
        now = Snapshot().of
        return [
            f"{what} {name}: {was.get(name)} is now {now[what].get(name)}"
            for what, was in self.of.items()
            for name in sorted(was.keys() | now[what].keys())
            if was.get(name) != now[what].get(name)
        ]


REPLACED = ("print_to_stdstream", "ENABLE_RAY_CLUSTER")
LOGGERS = ("ray", "ray.tune", "ray.train", "optuna", "mlflow")

SMALL = Recipe(train_size=300, holdout=101, batch_size=50, epochs=1)
ONE_TRIAL = TuneConfig(num_trials=1, base=False, confirm=0, scheduler="fifo")


@pytest.mark.usefixtures("imported")
def test_cudnns_flags_are_put_back(small: Mnist) -> None:
    before = Snapshot()
    splits = data.split(small, 101)
    seen = []

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        seen.append((torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        engine.fit(Recipe(epochs=1), splits, on_epoch=on_epoch)
    assert seen == [(True, False)]
    assert before.changed_since() == []


def test_optunas_verbosity_is_put_back() -> None:
    from mnist_ray import search

    before = Snapshot()
    search.sampler(TuneConfig(), Recipe())
    assert before.changed_since() == []


def train(storage: Path, name: str, **resources: Any) -> None:
    run = RunConfig(storage=storage, name=name)
    training.train(SMALL, Resources(**resources), run, TrainingDisplay())


def tune(storage: Path, name: str, **settings: Any) -> None:
    run = RunConfig(storage=storage, name=name)
    study.study(SMALL, ONE_TRIAL.replace(**settings), PerWorker(), run, StudyDisplay())


@pytest.mark.usefixtures("imported", "ray_cluster")
@pytest.mark.parametrize("call", [train, tune])
def test_nothing_is_left_behind_on_a_cluster_that_was_joined(
    call: Any, storage: Path, mnist: Mnist
) -> None:
    before = Snapshot()
    call(storage, "one")
    assert before.changed_since() == []


@pytest.mark.usefixtures("imported", "ray_cluster")
@pytest.mark.parametrize(
    ("call", "wrong"), [(train, {"num_workers": 5}), (tune, {"max_concurrent": 5})]
)
def test_nothing_is_left_behind_by_an_error(
    call: Any, wrong: dict[str, Any], storage: Path, mnist: Mnist
) -> None:
    before = Snapshot()
    with pytest.raises(UserError, match="5"):
        call(storage, "one", **wrong)
    assert before.changed_since() == []


@pytest.mark.usefixtures("imported", "alone")
@pytest.mark.parametrize("call", [train, tune])
def test_nothing_is_left_behind_by_a_cluster_of_its_own(
    call: Any, storage: Path, mnist: Mnist
) -> None:
    before = Snapshot()
    call(storage, "one")
    assert not ray.is_initialized()
    assert before.changed_since() == []


@pytest.mark.usefixtures("imported", "alone")
def test_nothing_is_left_behind_where_ray_does_not_start(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    before = Snapshot()
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        train(storage, "one")
    assert before.changed_since() == []
