"""The Python face: it means what the flags mean, raises what commands print, and opens runs."""

import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import ray
from test_restored import Snapshot, random_states

import mnist_ray
from mnist_ray import api, errors, tables, terminal, train, tune
from mnist_ray.config import (
    STUDY_RECIPE,
    PerWorker,
    Recipe,
    Resources,
    RunConfig,
    TrainRunConfig,
    TuneConfig,
)
from mnist_ray.errors import RunFailed, UserError
from mnist_ray.learn.data import Mnist
from mnist_ray.search import Phase, Status

SMALL = {"train_size": 300, "batch_size": 50, "epochs": 2}
STUDY = (TuneConfig, Recipe, PerWorker, RunConfig)
TRAINING = (Recipe, Resources, TrainRunConfig)


def test_the_import_loads_nothing_slow_and_no_module_takes_a_name() -> None:
    code = """
import sys
import mnist_ray
assert set(mnist_ray.__all__) <= set(dir(mnist_ray))
slow = {"pydantic", "yaml", "rich", "numpy", "torch", "ray", "pandas", "pyarrow"} & set(sys.modules)
assert not slow, slow
import mnist_ray.train, mnist_ray.tune
from mnist_ray import *
assert callable(run_study) and callable(run_training) and callable(open_run)
assert not {"torch", "ray", "pandas", "pyarrow"} & set(sys.modules)
try:
    mnist_ray.other
except AttributeError as error:
    assert "has no attribute other" in str(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("typed", "classes"), [(api.StudySettings, STUDY), (api.TrainingSettings, TRAINING)]
)
def test_each_flag_is_a_keyword(typed: Any, classes: tuple[Any, ...]) -> None:
    fields = {name for cls in classes if cls is not Recipe for name in cls.model_fields}
    assert set(typed.__annotations__) | set(api.Settings.__annotations__) == fields


def test_keywords_mean_what_flags_mean(tmp_path: Path) -> None:
    flags = ["--lr", "0.05", "--space", "lr=loguniform(0.01,0.1)", "--time-budget", "2m"]
    flags += ["--try", "lr=0.02", "--no-base", "--cpus-per-worker", "2", "--storage", str(tmp_path)]
    asked = terminal.parse_flags(flags, "tune", *STUDY, description="", defaults=STUDY_RECIPE)
    settings: dict[str, Any] = {
        **{"space": {"lr": "loguniform(0.01,0.1)"}, "time_budget": "2m", "tries": ["lr=0.02"]},
        **{"base": False, "cpus_per_worker": 2, "storage": tmp_path},
    }
    (tmp_path / "recipe.yaml").write_text("lr: 0.05\n")
    whole = Recipe(**{**STUDY_RECIPE, "lr": 0.05})
    for recipe in ({"lr": 0.05}, whole, tmp_path / "recipe.yaml", str(tmp_path / "recipe.yaml")):
        given = api._given(recipe, settings, STUDY)
        assert terminal.settle(given, "tune", *STUDY, defaults=STUDY_RECIPE) == asked


@pytest.mark.parametrize(
    ("flags", "recipe", "settings"),
    [
        ("tune --holdout 0", {"holdout": 0}, {}),
        ("tune --lr 11", {"lr": 11}, {}),
        ("tune --num-trials 0", {}, {"num_trials": 0}),
        ("tune --space droput=uniform(0,1)", {}, {"space": {"droput": "uniform(0,1)"}}),
        ("tune --batch-size 3 --workers-per-trial 2", {"batch_size": 3}, {"workers_per_trial": 2}),
        ("tune --track foo", {}, {"track": "foo"}),
        ("tune --resume", {}, {"resume": True}),
        ("train --dropout 1.5", {"dropout": 1.5}, {}),
        ("train --batch-size 3 --num-workers 4", {"batch_size": 3}, {"num_workers": 4}),
        ("train --config {tmp}/none.yaml", "{tmp}/none.yaml", {}),
        ("train --name ../x", None, {"name": "../x"}),
        ("train --resume --name none", None, {"resume": True, "name": "none"}),
        ("train --in-process --num-workers 2", None, {"in_process": True, "num_workers": 2}),
    ],
)  # fmt: skip
def test_what_a_command_says_is_raised(
    flags: str, recipe: Any, settings: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *argv = flags.format(tmp=tmp_path).split()
    call = {"tune": mnist_ray.run_study, "train": mnist_ray.run_training}[command]
    main = {"tune": tune.main, "train": train.main}[command]
    assert errors.run(main, [*argv, "--storage", str(tmp_path)]) == 2
    said = capsys.readouterr().err.removeprefix("error: ").removesuffix("\n")
    if isinstance(recipe, str):
        recipe = recipe.format(tmp=tmp_path)
    with pytest.raises(UserError) as raised:
        call(recipe, storage=tmp_path, **settings)
    assert str(raised.value).replace("recipe /", "config /") == said
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="droput is not a field of a recipe; the fields are lr, "):
        mnist_ray.run_training({"droput": 0.1}, storage=tmp_path)
    with pytest.raises(UserError, match=r"epochs is a field of the recipe; write recipe=\{'epochs"):
        mnist_ray.run_training(epochs=3, storage=tmp_path)  # type: ignore[call-arg]
    with pytest.raises(UserError, match="trials is not a setting; the settings are num_trials, "):
        mnist_ray.run_study(trials=3, storage=tmp_path)  # type: ignore[call-arg]


@pytest.mark.usefixtures("alone")
def test_a_training_run_in_a_thread(
    tmp_path: Path, mnist: Mnist, capsys: pytest.CaptureFixture[str]
) -> None:
    before, states = Snapshot(), random_states()
    settings: dict[str, Any] = {"storage": tmp_path, "name": "it", "cpus_per_worker": 1}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        run = pool.submit(mnist_ray.run_training, SMALL, show=False, **settings).result()
    assert (before.changed_since(), random_states() == states) == ([], True)
    assert not ray.is_initialized()
    assert "".join(capsys.readouterr()) == ""
    assert (run.folder, repr(run)) == (tmp_path / "it", f"Run({str(tmp_path / 'it')!r})")
    assert run.trials.equals(pd.read_parquet(tmp_path / "it" / tables.TRIALS))
    assert run.epochs.equals(pd.read_parquet(tmp_path / "it" / tables.EPOCHS))
    assert run.recipe == Recipe(**SMALL)
    # With nothing held out, an epoch's accuracy is that of the test images.
    digits, probabilities = run.best_model().predict(mnist.test_images)
    assert (digits == mnist.test_labels).mean() == pytest.approx(run.best["best_accuracy"])
    assert (digits == probabilities.argmax(1)).all()
    assert (probabilities.shape, probabilities.dtype) == ((10_000, 10), np.float32)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-4)
    # Resumed, it has nothing left to do, and keeps its settings.
    again = mnist_ray.run_training(name="it", storage=tmp_path, resume=True)
    assert again.epochs.equals(run.epochs)
    assert str(tmp_path) not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"lr is 0\.5, but it began with 0\.01"):
        mnist_ray.run_training({"lr": 0.5}, name="it", storage=tmp_path, resume=True)
    assert random_states() == states


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """Let SIGINT raise KeyboardInterrupt, as Python does, whatever was set in this process."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("alone", "mnist", "ctrl_c_interrupts")
def test_ctrl_c_ends_a_run_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt() -> None:
        while not (tmp_path / "it" / tables.EVENTS).exists():  # written after the first epoch
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    before = Snapshot()
    recipe = {**SMALL, "holdout": 101, "epochs": 1000}
    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        mnist_ray.run_training(recipe, storage=tmp_path, name="it", cpus_per_worker=1)
    thread.join()
    assert before.changed_since() == []
    run = mnist_ray.open_run(tmp_path / "it")
    assert (run.best["status"], run.best["error"]) == ("failed", "interrupted")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "stopped; go on with the run by name='it' and resume=True"


@pytest.mark.usefixtures("alone", "mnist")
def test_a_run_that_diverges_is_raised(tmp_path: Path) -> None:
    # A weight decay of 1 times a rate of 10 turns each weight into -9 times itself, at every step.
    recipe = {"lr": 10, "weight_decay": 1, "batch_norm": False, "holdout": 101, "epochs": 9}
    recipe |= {"train_size": 100, "batch_size": 10}
    with pytest.raises(RunFailed, match=r"the loss was not finite after epoch \d; lower the"):
        mnist_ray.run_training(recipe, storage=tmp_path, show=False, cpus_per_worker=1)


def trial(number: int, accuracy: float | None, phase: Phase, **known: Any) -> tables.Row:
    recipe = Recipe(lr=0.01 * (number + 1), holdout=100).model_dump()
    row = {"run": "it", "trial": number, "status": Status.OK, "scored_on": "holdout"}
    return {**recipe, **row, "phase": phase, "best_accuracy": accuracy, **known}


def test_the_best_of_a_study(tmp_path: Path) -> None:
    (tmp_path / "tune.yaml").touch()
    run = mnist_ray.open_run(tmp_path)
    assert (len(run.trials), len(run.epochs)) == (0, 0)
    for ask in (lambda: run.best, lambda: run.recipe, run.best_model, lambda: run.report("r.html")):
        with pytest.raises(UserError, match=f"path {tmp_path} has no result yet"):
            ask()
    # The winner is what the study says, not the highest accuracy.
    rows = [
        trial(0, 0.9, Phase.SEARCH, winner=True),
        trial(1, 0.95, Phase.SEARCH, winner=False),
        trial(2, None, Phase.SEARCH, winner=False, status=Status.FAILED),
        trial(4, 0.99, Phase.FINAL, winner=False),
        trial(3, 0.98, Phase.FINAL, winner=False),
    ]
    tables.write(tmp_path, rows, [])
    run = mnist_ray.open_run(str(tmp_path))
    assert run.best["trial"] == 0
    assert run.recipe == Recipe(holdout=100)
    (tmp_path / tables.BEST_RECIPE).write_text("lr: 0.25\n")
    assert mnist_ray.open_run(tmp_path).recipe == Recipe(lr=0.25)
    # A study that gets more trials has no winner's recipe until it ends again.
    (tmp_path / "tune.yaml").write_text("num_trials: 3\n")
    tables.record_change(tmp_path, 5, {"num_trials": 9})
    assert mnist_ray.open_run(tmp_path).recipe == Recipe(holdout=100)
    (tmp_path / "tune.yaml").unlink()
    of_model = tables.of_model(tables.read(tmp_path))
    assert of_model
    assert of_model["trial"] == 3
    # Before the final runs, and in a table of the first versions, which named no winner.
    tables.write(tmp_path, rows[:3], [])
    assert tables.of_model(tables.read(tmp_path)) == tables.best(tables.read(tmp_path))
    tables.write(tmp_path, [{**row, "winner": None} for row in rows[:3]], [])
    assert mnist_ray.open_run(tmp_path).best["trial"] == 1


def test_what_is_no_run(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="name the folder of a run"):
            mnist_ray.open_run(path)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 28, 28)), np.zeros((28, 28), np.uint8), np.zeros((2, 1, 28, 28), "u1")]
)
def test_images_that_are_none(images: np.ndarray) -> None:
    from mnist_ray import learn

    model = learn.Classifier(learn.build_network(Recipe()).eval(), Recipe())
    with pytest.raises(UserError, match=r"but must be uint8 \(n, 28, 28\)"):
        model.predict(images)
    digits, probabilities = model.predict(np.zeros((0, 28, 28), np.uint8))
    assert (digits.shape, probabilities.shape) == ((0,), (0, 10))
