"""What a call replaces in its process is put back, so that a notebook goes on as it was."""

import contextlib
import logging
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from mnist_ray import errors, restored
from mnist_ray.cluster import ray_private, study, training
from mnist_ray.config import PerWorker, Recipe, Resources, RunConfig, TrainRunConfig, TuneConfig
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
    with restored.environment(unless_set=values, also=[f"{NAME}_NEW"]):
        assert (os.environ[NAME], os.environ[f"{NAME}_SET"]) == ("1", "before")
        del os.environ[NAME]  # by what is called
        os.environ[f"{NAME}_SET"] = os.environ[f"{NAME}_NEW"] = "3"
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


def random_states() -> list[object]:
    """Return the states of the random generators that a caller may have seeded."""
    return [
        random.getstate(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        torch.random.get_rng_state().tolist(),
    ]


class Snapshot:
    """What is the process's, and not a call's."""

    def __init__(self) -> None:
        import mlflow  # noqa: F401 - its import gives its logger a handler, and takes a second

        cudnn = torch.backends.cudnn
        flags = ("enabled", "benchmark", "deterministic", "allow_tf32")
        loggers = {name: logging.getLogger(name) for name in LOGGERS}
        self.of: dict[str, Any] = {
            "signal": {each: signal.getsignal(each) for each in signal.valid_signals()},
            "environment": {name: os.environ[name] for name in os.environ if name not in LEFT},
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


LEFT = {
    "RAY_AUTH_MODE": "Ray goes on asking for tokens, and what it starts later must agree",
    "CRC32C_SW_MODE": "set by a package at import",
    "TORCHINDUCTOR_CACHE_DIR": "set by a package at import",
    "_MLFLOW_TELEMETRY_SESSION_ID": "set by a package at import",
    "_RJEM_MALLOC_CONF": "set by a package at import",
}
REPLACED = ("print_to_stdstream", "ENABLE_RAY_CLUSTER")
LOGGERS = ("ray", "ray.tune", "ray.train", "optuna", "mlflow")

SMALL = Recipe(train_size=300, holdout=101, batch_size=50, epochs=1)
ONE_TRIAL = TuneConfig(num_trials=1, base=False, confirm=0, scheduler="fifo")


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
    run = TrainRunConfig(storage=storage, name=name, in_process=False)
    training.train(SMALL, Resources(**resources), run, TrainingDisplay())


def tune(storage: Path, name: str, **settings: Any) -> None:
    run = RunConfig(storage=storage, name=name)
    study.run_study(SMALL, ONE_TRIAL.replace(**settings), PerWorker(), run, StudyDisplay())


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_is_left_behind_on_a_cluster_that_was_joined(storage: Path, mnist: Mnist) -> None:
    # test_in_process.py has the same of training runs.
    before = Snapshot()
    tune(storage, "one")
    assert before.changed_since() == []


@pytest.mark.usefixtures("ray_cluster")
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


@pytest.mark.usefixtures("alone", "mnist")
def test_nothing_is_left_behind_by_a_cluster_of_its_own(storage: Path) -> None:
    # In a process of its own, because Ray would go on asking for tokens in this one, and could not
    # join the cluster of the other tests, which has none.
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import ray
import test_restored
before = test_restored.Snapshot()
test_restored.tune(Path({str(storage)!r}), "one")
assert not ray.is_initialized()
assert before.changed_since() == [], before.changed_since()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("alone", "mnist")
def test_the_callers_ray_is_used_and_stays(storage: Path) -> None:
    code = f"""
import threading
import mnist_ray, ray
import test_restored
ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
small = dict(train_size=300, holdout=101, batch_size=50, epochs=1)
settings = dict(num_trials=1, base=False, confirm=0, scheduler="fifo", storage={str(storage)!r})
before, states, found = test_restored.Snapshot(), test_restored.random_states(), []
def study():
    found.append(mnist_ray.run_study(small, name="one", **settings))
thread = threading.Thread(target=study)  # where no signal handler can be set
thread.start()
thread.join()
assert len(found[0].trials) == 1 and found[0].best["status"] == "ok", found
assert ray.get(ray.put(1)) == 1
assert before.changed_since() == [], before.changed_since()
assert test_restored.random_states() == states
try:
    mnist_ray.run_study(small, name="two", workers_per_trial=2, **settings)
except mnist_ray.UserError as error:
    assert "connected to Ray without its dashboard" in str(error), error
assert ray.is_initialized() and before.changed_since() == []
ray.shutdown()
"""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("1 trial, 2 at a time"), done.stdout
    assert str(storage) not in done.stdout  # no paths, and no commands to copy


@pytest.mark.usefixtures("alone")
def test_nothing_is_left_behind_where_ray_does_not_start(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    before = Snapshot()
    with pytest.raises(UserError, match="RAY_TMPDIR"):
        train(storage, "one")
    assert before.changed_since() == []
