"""What chooses the configurations of a study, and what stops its trials: an entry for each sampler
and for each scheduler that says what it can do.
"""

import contextlib
import itertools
import logging
import math
import random
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from mnist_ray import restored
from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import shown
from mnist_ray.search.space import (
    DEFAULT_GRID,
    DEFAULT_SPACE,
    Dimension,
    identity,
    parse,
    read_try,
    valid,
)

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

LAG = 4
"""Trials that a sampler that learns looks past, unless more are to run at a time."""

LISTED = 100_000
"""The most combinations of a finite space that are listed beforehand, and that a grid can have."""

ATTEMPTS = 10_000
"""How often a sampler may propose what is invalid or not new before it is given up."""


class Method(NamedTuple):
    """What a sampler can do. To add one of Optuna's, add an entry to SAMPLERS."""

    says: str
    """How it chooses, for `--help`."""
    make: "Callable[[int, int], BaseSampler] | None" = None
    """Makes Optuna's sampler, from a seed and the number of configurations; None where all
    combinations are tried in their order."""
    learns: bool = False
    """Whether it goes by the accuracies of the trials before."""
    outside: bool = False
    """Whether it learns from a configuration outside the space too. Most samplers of Optuna's take
    a dimension no more into account, and draw it at random, once any trial lies outside it."""


def _random(seed: int, count: int) -> "BaseSampler":
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed)


def _tpe(seed: int, count: int) -> "BaseSampler":
    from optuna.samplers import TPESampler

    return TPESampler(seed=seed, n_startup_trials=max(4, count // 4))


SAMPLERS: dict[str, Method] = {
    "random": Method("draws at random", _random),
    "grid": Method("tries every combination of choices"),
    "tpe": Method(
        "models the better trials (Bergstra et al., NeurIPS 2011)", _tpe, learns=True, outside=True
    ),
}


class Policy(NamedTuple):
    """What a scheduler does with the trials of a study. To add one, add an entry to SCHEDULERS, and
    the class that it names to `schedulers`."""

    says: str
    """What it does, for `--help`."""
    screens: bool = False
    """Whether every configuration trains for one epoch first, and only the best in full."""
    stops: str | None = None
    """The class of `schedulers` that stops trials on the way; None where all come to their end."""


E = TypeVar("E")

SCHEDULERS: dict[str, Policy] = {
    "one-rung": Policy("trains all for 1 epoch and the best in full", screens=True),
    "asha": Policy("compares trials after 1, 3, 9, … epochs and stops the weak", stops="Asha"),
    "median": Policy("stops a trial that is below the median of the others", stops="Median"),
    "fifo": Policy("lets all finish"),
}


def method(study: TuneConfig) -> Method:
    """The sampler of a study; raises UserError where there is none of that name."""
    return _entry("search", study.search, SAMPLERS)


def policy(study: TuneConfig) -> Policy:
    """The scheduler of a study; raises UserError where there is none of that name."""
    return _entry("scheduler", study.scheduler, SCHEDULERS)


def _entry(field: str, name: str, entries: Mapping[str, E]) -> E:
    if name not in entries:
        raise UserError(f"{field} is {shown(name)}, but must be one of {', '.join(entries)}.")
    return entries[name]


def check(study: TuneConfig, dimensions: dict[str, Dimension], base: Recipe) -> None:
    """Raises UserError where the settings of a study contradict each other or its space."""

    def refuse(name: str, why: str) -> None:
        value = getattr(study, name, None)
        where = "space" if name in dimensions else "try"
        given = f"{name} is {value}" if name in TuneConfig.model_fields else f"{where} has {name}"
        raise UserError(f"{given}, but {why}.")

    for name, dimension in dimensions.items():
        if method(study).make is None and dimension.kind != "choice":
            refuse("search", f"{name} is {dimension.kind}; write {name}=choice(a, b, …)")
        if all(name in recipe.idle for recipe in _around(base, dimensions)):
            refuse(name, "it changes nothing, as the other fields are; leave it out")
    screens = policy(study).screens
    if study.keep and not screens:
        refuse("keep", f"the scheduler {study.scheduler} screens nothing; leave it out")
    if study.keep and study.keep < (study.confirm or 0):
        refuse("confirm", f"keep is {study.keep}; raise keep, or confirm fewer")
    varied = {*dimensions}.union(
        *(read_try(text, base, study.workers_per_trial) for text in study.tries)
    )
    if "seed" in varied and study.confirm != 0:
        refuse("seed", "a confirmation has seeds of its own; use --confirm 0")
    if "epochs" in varied and screens:
        refuse("epochs", f"the scheduler {study.scheduler} compares all after 1 epoch; use fifo")
    if "precision" in varied and study.base and base.precision == "auto":
        refuse(
            "precision",
            "the base recipe's is auto, which is one of them; add --precision fp32, or --no-base",
        )
    if study.confirm_base and not study.base:
        refuse("confirm_base", "the base recipe is left out; take back one of the two")
    if study.confirm_base and study.confirm == 0:
        refuse("confirm_base", "confirm is 0; raise it")


def _around(base: Recipe, dimensions: dict[str, Dimension]) -> Iterator[Recipe]:
    """Yield the base recipe, and with each end or choice of one dimension, where that is valid."""
    yield base
    for name, dimension in dimensions.items():
        for value in dimension.values:
            with contextlib.suppress(UserError):
                yield base.replace(**{name: value})


def lag(study: TuneConfig) -> int:
    """Trials that a sampler that learns looks past, and so how many may run at a time: that many
    when asked."""
    return max(LAG, study.max_concurrent or 0)


class Sampler:
    """Gives one configuration after the other, and none twice; the same seed the same ones, however
    many trials run at a time. The base recipe comes first, then those that the user wants tried.

    A space with at most LISTED combinations is listed, so that it can be walked to its end. For tpe
    there is a rule: configuration i is chosen knowing the outcomes of all trials but the `lag`
    before it, also of those that happen to have ended already.

    Raises UserError where the space has no valid configuration, or too few or too many for what is
    asked.
    """

    def __init__(self, study: TuneConfig, dimensions: dict[str, Dimension], base: Recipe) -> None:
        self.base, self.dimensions, self.workers = base, dimensions, study.workers_per_trial
        self.distributions = {name: dim.distribution() for name, dim in dimensions.items()}
        self.remarks: list[str] = []
        """What to say of the space before the study begins."""
        self.origins: list[str] = []
        self.known: set[Hashable] = set()
        self.first = self._first(study)
        how = method(study)
        self.rest = self._listed(grid=how.make is None)
        self.count = study.num_trials or 6
        if self.rest is not None:
            there = len(self.first) + len(self.rest)
            if how.make is None:
                if study.num_trials not in (None, self.combinations, there):
                    raise UserError(
                        f"num_trials is {study.num_trials}, but the grid has {self.combinations}"
                        " combinations; leave num_trials out, or change the space."
                    )
                self.count = there
            elif there < self.count:
                self.remarks.append(
                    f"there {'is' if there == 1 else 'are'} only {there}"
                    f" configuration{'s' * (there > 1)} to try"
                )
                self.count = there
            if how.make:
                random.Random(base.seed).shuffle(self.rest)
        if self.count < len(self.first):
            raise UserError(
                f"num_trials is {self.count}, but base and try name {len(self.first)} already;"
                " raise it, or leave the base recipe out with --no-base."
            )
        if self.count == 1 and self.origins == ["base"] and self.rest != []:
            raise UserError(
                "num_trials is 1, which the base recipe takes up; raise it, or leave the base"
                " recipe out with --no-base."
            )
        self.learns, self.outside = how.learns, how.outside
        self.lag = lag(study) if self.learns else self.count
        if how.make:
            import optuna

            sampler = how.make(base.seed, self.count)
            with restored.log_level("optuna", logging.WARNING):  # it would name its own study
                self.optuna = optuna.create_study(direction="maximize", sampler=sampler)
            self.failed = optuna.trial.TrialState.FAIL
        self.asked: list[int | None] = []
        """Optuna's number of each configuration that it proposed; None for the first ones."""
        self.told = 0

    def _first(self, study: TuneConfig) -> list[dict[str, Any]]:
        """The base recipe's values in the space, and those that the user wants tried."""
        first = []
        wanted = [("base", dict[str, Any]())] if study.base else []
        wanted += [("try", read_try(text, self.base, self.workers)) for text in study.tries]
        for origin, named in wanted:
            values = {name: getattr(self.base, name) for name in self.dimensions} | named
            if self._is_new(values):
                first.append(values)
                self.origins.append(origin)
        return first

    def _listed(self, grid: bool) -> list[dict[str, Any]] | None:
        """The valid combinations that are not among the first ones, each once; None where the space
        is not finite, or too large to be listed."""
        finite = {name: dim.all() for name, dim in self.dimensions.items() if dim.size < math.inf}
        self.combinations = math.prod(len(values) for values in finite.values())
        if self.combinations > LISTED:
            if grid:
                raise UserError(
                    f"space has {self.combinations} combinations, but a grid can have at most"
                    f" {LISTED}."
                )
            return None
        # Which values go together does not depend on where in its range a real number lies.
        others = {
            name: dim.values[1] for name, dim in self.dimensions.items() if name not in finite
        }
        new, seen, wrong = [], set(self.known), list[str]()
        for values in itertools.product(*finite.values()):
            named = dict(zip(finite, values, strict=True))
            try:
                same = self._identity({**others, **named})
            except UserError as error:
                wrong.append(str(error))
                continue
            if same not in seen:
                seen.add(same)
                new.append(named)
        valid = self.combinations - len(wrong)
        if valid < self.combinations / 100:
            raise UserError(
                f"space has {self.combinations} combinations, but only {valid} are valid:"
                f" {wrong[0]}"
            )
        if wrong:
            self.remarks.append(
                f"{len(wrong)} of {self.combinations} combinations are left out, as they are not"
                f" valid: {wrong[0]}"
            )
        self.combinations = valid
        return new if len(finite) == len(self.dimensions) else None

    def _identity(self, values: dict[str, Any]) -> Hashable:
        return identity(valid(self.base, values, self.workers))

    def _is_new(self, values: dict[str, Any]) -> bool:
        """Whether the values make a valid configuration that was not given yet; then it counts as
        given."""
        try:
            same = self._identity(values)
        except UserError:
            return False
        new = same not in self.known
        self.known.add(same)
        return new

    def origin(self, number: int) -> str:
        """Where configuration `number` comes from: base, try or sampled."""
        return self.origins[number] if number < len(self.origins) else "sampled"

    def sample(self, number: int, accuracies: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Configuration `number`, which is one more than that of the last call, or None if it must
        wait for more `accuracies` of those before; an accuracy of None is a trial without a result.
        """
        if number < len(self.first):
            self.asked.append(None)
            return self.first[number]
        if self.rest is not None and not self.learns:
            return self.rest[number - len(self.first)]
        while self.told <= number - self.lag:
            if self.told not in accuracies:
                return None
            self._tell(self.told, accuracies[self.told])
            self.told += 1
        return self._propose()

    def _tell(self, number: int, accuracy: float | None) -> None:
        asked = self.asked[number]
        if asked is None:
            if accuracy is not None and self.first[number].keys() == self.dimensions.keys():
                seen = _as_seen(self.first[number], self.dimensions, accuracy)
                if self.outside or seen.distributions == self.distributions:
                    self.optuna.add_trial(seen)
        elif accuracy is None:
            self.optuna.tell(asked, state=self.failed)
        else:
            self.optuna.tell(asked, accuracy)

    def _propose(self) -> dict[str, Any]:
        """A configuration that is valid and new; raises UserError where none is found."""
        for attempt in range(ATTEMPTS):
            if self.rest and attempt == 20:  # the sampler insists on what it knows
                self.optuna.enqueue_trial(
                    next(each for each in self.rest if self._identity(each) not in self.known)
                )
            asked = self.optuna.ask(self.distributions)
            params: dict[str, Any] = asked.params
            if self._is_new(params):
                self.asked.append(asked.number)
                return params
            self.optuna.tell(asked, state=self.failed)
        raise UserError(f"space has no further configuration: {ATTEMPTS} proposals were none.")


def space_of(study: TuneConfig) -> dict[str, str]:
    """The search space of a study as written, or the default one: dropout, lr and momentum."""
    return study.space or (DEFAULT_SPACE if method(study).make else DEFAULT_GRID)


def sampler(study: TuneConfig, base: Recipe) -> Sampler:
    """The sampler of a study around the recipe `base`; raises UserError where the study's settings
    contradict each other, its space or the recipe."""
    dimensions = parse(space_of(study), base, study.workers_per_trial)
    check(study, dimensions, base)
    return Sampler(study, dimensions, base)


def _as_seen(
    values: dict[str, Any], dimensions: dict[str, Dimension], accuracy: float
) -> "FrozenTrial":
    """A trial with `values` as Optuna would have recorded it. Values may lie outside a range, which
    Optuna can learn from; what no sample could be, such as another choice, is left out."""
    from optuna.trial import create_trial

    wide = {name: dimension.reaching(values[name]) for name, dimension in dimensions.items()}
    distributions = {name: each.distribution() for name, each in wide.items() if each}
    params = {name: values[name] for name in distributions}
    return create_trial(params=params, distributions=distributions, value=accuracy)
