"""What mnist_ray offers in Python: run a study, train once, open a run. `import mnist_ray` has it.

A call does what the command of the same purpose does, and leaves the process as it was: no Ray, no
signal handler, no environment variable and no log level stays behind. If the process is connected
to Ray already, the run uses that cluster, and the connection stays.
"""

import functools
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from typing_extensions import Unpack

from mnist_ray import restored, storage, terminal
from mnist_ray.config import (
    STUDY_RECIPE,
    PerWorker,
    Recipe,
    Resources,
    RunConfig,
    TrainRunConfig,
    TuneConfig,
    config_file,
)
from mnist_ray.errors import UserError
from mnist_ray.fields import Config, read_yaml, shown
from mnist_ray.storage import Place

if TYPE_CHECKING:  # pandas and PyTorch take seconds to import
    import pandas as pd

    from mnist_ray.learn import Classifier

RecipeLike: TypeAlias = Recipe | Mapping[str, Any] | str | Path
"""A recipe, some of its fields by their names, the name of one of the package's recipes, like best,
or the path or URI of a YAML file with such fields."""

RAY_TRAIN = {"RAY_TRAIN_V2_ENABLED": "1"}
"""The version of Ray Train that the package needs; Ray reads the variable when it is imported."""


class Settings(TypedDict, total=False):
    """Settings of a study and of a training run, as `--help` describes them."""

    cpus_per_worker: int | None
    use_gpu: bool | None
    data_dir: str | Path
    storage: str | Path
    name: str | None
    resume: bool
    max_failures: int
    verbose: bool
    track: str | None


class StudySettings(Settings, total=False):
    """Settings of a study, as `python -m mnist_ray.tune --help` describes them."""

    space: dict[str, str]
    num_trials: int | None
    search: str
    scheduler: str
    base: bool
    tries: list[str]
    start_from: str | None
    keep: int | None
    confirm: int | None
    confirm_seeds: int
    confirm_base: bool
    time_budget: float | str | None
    workers_per_trial: int
    max_concurrent: int | None
    trials_per_gpu: int | None


class TrainingSettings(Settings, total=False):
    """Settings of a training run, as `python -m mnist_ray.train --help` describes them."""

    num_workers: int | str
    min_workers: int | None
    in_process: bool | None


def run_study(
    recipe: RecipeLike | None = None, *, show: bool = True, **settings: Unpack[StudySettings]
) -> "Run":
    """Search hyperparameters, as `python -m mnist_ray.tune` does, and return the study's run.

    `recipe` is the base recipe, of which `space` varies some fields, like
    `space={"lr": "loguniform(0.003, 0.3)"}`. Fields that a mapping or a file leaves out are those
    of a study. A `Recipe` sets every field, so give it a `holdout`. Without `show`, nothing is
    printed.

    Raises UserError where a setting is wrong, RunFailed where no trial has a result, and
    KeyboardInterrupt after Ctrl-C, once the study is in order; `resume=True` and its `name` go on
    with it.
    """
    classes = (TuneConfig, Recipe, PerWorker, RunConfig)
    given = _given(recipe, settings, classes)
    tuning, base, per_worker, run = terminal.settle(given, "tune", *classes, defaults=STUDY_RECIPE)
    display = terminal.StudyDisplay(in_python=True, quiet=not show)
    with restored.environment(RAY_TRAIN):
        row = _imported("run_study")(base, tuning, per_worker, run, display)
    return open_run(storage.place("storage", run.storage) / row["run"])


def run_training(
    recipe: RecipeLike | None = None, *, show: bool = True, **settings: Unpack[TrainingSettings]
) -> "Run":
    """Train once, as `python -m mnist_ray.train` does, and return the run.

    Without `recipe`, the reference recipe trains: 20 epochs on all images. Without `show`, nothing
    is printed.

    Raises UserError where a setting is wrong, RunFailed where training stops with an error or the
    loss is not finite, and KeyboardInterrupt after Ctrl-C, once the run is in order; `resume=True`
    and its `name` go on with it.
    """
    classes = (Recipe, Resources, TrainRunConfig)
    given = _given(recipe, settings, classes)
    fields, needs, run = terminal.settle(given, "train", *classes)
    display = terminal.TrainingDisplay(in_python=True, quiet=not show)
    with restored.environment(RAY_TRAIN):
        row = _imported("train")(fields, needs, run, display)
    return open_run(storage.place("storage", run.storage) / row["run"])


def _imported(name: str) -> Any:
    """Return what `mnist_ray.cluster` calls `name`."""
    # In a notebook, Ray asks for ipywidgets, whose progress bars a run does not show.
    with warnings.catch_warnings(), restored.log_level("ray.widgets", logging.WARNING):
        warnings.filterwarnings("ignore", "IProgress not found")
        from mnist_ray import cluster

        return getattr(cluster, name)


def _given(
    recipe: RecipeLike | None, settings: Mapping[str, Any], classes: tuple[type[Config], ...]
) -> dict[str, Any]:
    """Return the fields that a caller gave, by their names. Raises UserError if one is unknown."""
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump()
    elif isinstance(recipe, str | Path):
        recipe = read_yaml(config_file(str(recipe)))
    fields = dict(recipe or {})
    if unknown := sorted(set(fields) - set(Recipe.model_fields)):
        raise UserError(
            f"{shown(unknown[0])} is not a field of a recipe; the fields are"
            f" {', '.join(Recipe.model_fields)}."
        )
    known = [name for cls in classes if cls is not Recipe for name in cls.model_fields]
    if unknown := sorted(set(settings) - set(known)):
        name = unknown[0]
        if name in Recipe.model_fields:
            raise UserError(f"{name} is a field of the recipe; write recipe={{{name!r}: ...}}.")
        raise UserError(f"{shown(name)} is not a setting; the settings are {', '.join(known)}.")
    return {**fields, **settings}


def open_run(path: str | Place) -> "Run":
    """Open the run of a study or of a training run in the folder `path`, or behind a URI, also
    while it goes on. Raises UserError if no run has begun there."""
    from mnist_ray import tables

    folder = storage.place("path", path)
    if not tables.is_run(folder):
        tables.read(folder)  # a folder may hold a run's tables alone
    return Run(folder)


class Run:
    """A study or a training run in its folder, as `open_run` found it.

    What is read is kept: open the run again to see what it did since. Every attribute raises
    UserError if its table cannot be read.
    """

    folder: Place
    """The folder that holds everything of the run."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    @functools.cached_property
    def trials(self) -> "pd.DataFrame":
        """The trials table, with a row per trial that ended; a training run has one row. The
        columns are those of trials.csv."""
        return _table(self.folder, "TRIALS").to_pandas()

    @functools.cached_property
    def epochs(self) -> "pd.DataFrame":
        """The epochs table, with a row per trial and epoch. The columns are those of epochs.csv."""
        return _table(self.folder, "EPOCHS").to_pandas()

    @functools.cached_property
    def best(self) -> "pd.Series[Any]":
        """The row of the study's winner, so far or at its end, or of the training run. Raises
        UserError if nothing has a result."""
        row = self._best()
        return self.trials[self.trials["trial"] == row["trial"]].iloc[0]

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe of `best`, to train with again. Of a study that has ended, it is that of
        best.yaml, which holds no images out. Raises UserError if nothing has a result."""
        from mnist_ray import tables

        file = self.folder / tables.BEST_RECIPE
        ended = file.is_file() and not tables.adds_trials(self.folder)
        values = read_yaml(file) if ended else self._best()
        return Recipe(**{name: values[name] for name in Recipe.model_fields if name in values})

    def best_model(self) -> "Classifier":
        """Return the run's trained network, ready to predict: that of the study's first final run,
        which trained the winner on all images, or else that of the best epoch of `best`. Raises
        UserError if nothing has a result, or if the checkpoint cannot be read."""
        from mnist_ray import learn, tables

        row = tables.of_model(_table(self.folder, "TRIALS")) or self._best()
        saved = learn.load_checkpoint(self.folder / row["checkpoint"])
        return learn.Classifier(learn.load_model(saved), saved.recipe)

    def report(self, file: str | Path) -> Path:
        """Write a page of figures (HTML) to `file`, with a square to draw digits in for the run's
        network, and return its full path. Raises UserError if nothing has a result, the checkpoint
        cannot be read or the file cannot be written."""
        from mnist_ray import learn, tables

        network = learn.plain_layers(self.best_model().network)
        return tables.write_report([self.folder], Path(file), network)

    def _best(self) -> dict[str, Any]:
        from mnist_ray import tables

        row = tables.best(_table(self.folder, "TRIALS"))
        if row is None:
            raise UserError(f"path {self.folder} has no result yet.")
        return row


def _table(folder: Place, name: str) -> Any:
    """Return a run's table as Arrow's; it is empty if the run was killed before its first row."""
    from mnist_ray import tables

    file = getattr(tables, name)
    try:
        return tables.read(folder, file)
    except tables.NoTable:
        if tables.is_run(folder):
            return tables.empty(file)
        raise
