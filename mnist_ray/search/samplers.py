"""The samplers and the schedulers that a study chooses from by name, and what each one can do."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import shown
from mnist_ray.search.dimension import Dimension
from mnist_ray.search.space import read_try

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.samplers import BaseSampler


class Method(NamedTuple):
    """What a sampler can do. To add one of Optuna's samplers, add an entry to SAMPLERS."""

    says: str
    """How the sampler chooses configurations, for `--help`."""
    make: "Callable[[int], BaseSampler] | None" = None
    """Makes Optuna's sampler from a seed; None where the study tries all combinations in order. It
    does not know how many configurations there will be, because a study can get more later."""
    learns: bool = False
    """Whether the sampler uses the accuracies of earlier trials."""
    outside: bool = False
    """Whether the sampler also learns from a configuration outside the space. Most of Optuna's
    samplers draw a dimension at random once any trial that they know of lies outside it."""


def _random(seed: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _tpe(seed: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=10)  # drawn at random before it models any


SAMPLERS: dict[str, Method] = {
    "random": Method("draws at random", _random),
    "grid": Method("tries every combination of choices"),
    "tpe": Method(
        "models the better trials (Bergstra et al., NeurIPS 2011)", _tpe, learns=True, outside=True
    ),
}


class Policy(NamedTuple):
    """What a scheduler does with the trials of a study. To add a scheduler, add an entry to
    SCHEDULERS and the class that the entry names to `cluster/schedulers.py`."""

    says: str
    """What the scheduler does, for `--help`."""
    screens: bool = False
    """Whether every configuration first trains for one epoch, and only the best train in full."""
    stops: str | None = None
    """The class in `cluster/schedulers.py` that stops trials early; None where every trial trains
    to its last epoch."""


SCHEDULERS: dict[str, Policy] = {
    "one-rung": Policy("trains all for 1 epoch and the best in full", screens=True),
    "asha": Policy("compares trials after 1, 3, 9, … epochs and stops the weak", stops="Asha"),
    "median": Policy("stops a trial that is below the median of the others", stops="Median"),
    "fifo": Policy("lets all finish"),
}


def method(tuning: TuneConfig) -> Method:
    """Return the sampler's entry in SAMPLERS; raises UserError for an unknown name."""
    return _entry("search", tuning.search, SAMPLERS)


def policy(tuning: TuneConfig) -> Policy:
    """Return the scheduler's entry in SCHEDULERS; raises UserError for an unknown name."""
    return _entry("scheduler", tuning.scheduler, SCHEDULERS)


E = TypeVar("E")


def _entry(field: str, name: str, entries: Mapping[str, E]) -> E:
    if name not in entries:
        raise UserError(f"{field} is {shown(name)}, but must be one of {', '.join(entries)}.")
    return entries[name]


def check(tuning: TuneConfig, dimensions: dict[str, Dimension], base: Recipe) -> None:
    """Raise UserError where a study's settings contradict each other, its space or its recipe."""

    def refuse(name: str, why: str) -> None:
        if name in TuneConfig.model_fields:
            given = f"{name} is {getattr(tuning, name)}"
        else:
            given = f"{'space' if name in dimensions else 'try'} has {name}"
        raise UserError(f"{given}, but {why}.")

    for name, dimension in dimensions.items():
        if method(tuning).make is None and dimension.size == math.inf:
            refuse(
                "search",
                f"{name} is {dimension.kind} without a step; write {name}=choice(a, b, …)",
            )
        if all(name in recipe.idle for recipe in _around(base, dimensions)):
            refuse(name, "it changes nothing with the other fields as they are; leave it out")
    screens = policy(tuning).screens
    if tuning.keep and not screens:
        refuse("keep", f"the scheduler {tuning.scheduler} screens nothing; leave it out")
    if tuning.keep and tuning.keep < (tuning.confirm or 0):
        refuse("confirm", f"keep is {tuning.keep}; raise keep, or confirm fewer")
    varied = {*dimensions}.union(
        *(read_try(text, base, tuning.workers_per_trial) for text in tuning.tries)
    )
    if "seed" in varied and tuning.confirm != 0:
        refuse("seed", "a confirmation has seeds of its own; use --confirm 0")
    if "epochs" in varied and screens:
        refuse("epochs", f"the scheduler {tuning.scheduler} compares all after 1 epoch; use fifo")
    if "precision" in varied and tuning.base and base.precision == "auto":
        refuse(
            "precision",
            "the base recipe's is auto, which may be either; add --precision fp32, or --no-base",
        )
    if tuning.confirm_base and not tuning.base:
        refuse("confirm_base", "the base recipe is left out; take back one of the two")
    if tuning.confirm_base and tuning.confirm == 0:
        refuse("confirm_base", "confirm is 0; raise it")


def _around(base: Recipe, dimensions: dict[str, Dimension]) -> Iterator[Recipe]:
    """Yield the base recipe, then each valid recipe that differs from it in one dimension, whose
    value is an end of its range or one of its choices."""
    yield base
    for name, dimension in dimensions.items():
        for value in dimension.values:
            with contextlib.suppress(UserError):
                yield base.replace(**{name: value})
