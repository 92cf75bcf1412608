"""Which configurations a study tries, and in which order."""

import itertools
import logging
import math
import random
from collections.abc import Hashable, Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mnist_ray import restored
from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import counted
from mnist_ray.search.dimension import Dimension
from mnist_ray.search.earlier import Earlier
from mnist_ray.search.samplers import check, method
from mnist_ray.search.space import DEFAULT_GRID, DEFAULT_SPACE, identity, parse, read_try, valid

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.trial import FrozenTrial

LAG = 4
"""The least `lag` of a sampler that learns, and its default."""

LISTED = 100_000
"""The most combinations of a grid, and of any other finite space that is listed beforehand."""

ATTEMPTS = 10_000
"""How many invalid or repeated proposals in a row end a study with an error."""

DEFAULT_COUNT = 6
"""How many configurations a study tries if its settings do not say it, unless it is a grid."""

PATIENCE = 20
"""After so many of these proposals, a new configuration is taken from the list of the space."""


class Sampler:
    """Gives the configurations of a study one by one: the base recipe, then the user's tries, then
    the best of an `earlier` study, then sampled ones. No configuration comes twice.

    The same seed gives the same configurations, however many trials run at a time. A sampler that
    learns chooses configuration i from the accuracies of the trials 0 to i - `lag`, even if later
    trials have ended already. A space of at most LISTED combinations is listed beforehand, so that
    a study can try all of them.

    Raises UserError where the space has no valid configuration, or too few or too many for the
    study.
    """

    def __init__(
        self,
        tuning: TuneConfig,
        dimensions: dict[str, Dimension],
        base: Recipe,
        earlier: Earlier | None = None,
    ) -> None:
        self.base, self.dimensions, self.workers = base, dimensions, tuning.workers_per_trial
        self.remarks: list[str] = []
        """Sentences about the space, to print before the study starts."""
        self.given: set[Hashable] = set()
        """Identities of the configurations given so far."""
        self.first: list[dict[str, Any]] = []
        """The base recipe's values, the user's tries, and the best of the earlier study."""
        self.origins: list[str] = []
        """Where each of the first configurations comes from: base, try or the earlier trial."""
        self.before: dict[int, float] = {}
        """The accuracies that the earlier study had of some of the first configurations."""
        self.known: list[tuple[dict[str, Any], float]] = []
        """The values and accuracies of the earlier study's other configurations in the space."""
        how = method(tuning)
        self._add_first(tuning)
        if earlier:
            given = [self._identity(values) for values in self.first]
            start = earlier.start(dimensions, base, given, self._identity, how.learns)
            for known, values in start.tried:
                self._add(values)
                self.first.append(values)
                self.origins.append(f"trial {known.trial} of {earlier.run}")
            self.before, self.known = start.before, start.known
            self.remarks += start.remarks
        grid = how.make is None
        self.listed = self._list(grid)
        self.grid = grid
        self.count = self.counted(tuning)
        """How many configurations the study tries."""
        if self.listed is not None:
            available = len(self.first) + len(self.listed)
            if grid and tuning.num_trials not in (None, self.combinations, available):
                raise UserError(
                    f"num_trials is {tuning.num_trials}, but the grid has {self.combinations}"
                    " combinations; leave num_trials out, or change the space."
                )
            if not grid and available < (tuning.num_trials or DEFAULT_COUNT):
                self.remarks.append(
                    f"there {'is' if available == 1 else 'are'} only"
                    f" {counted(available, 'configuration')} to try"
                )
        if self.count < len(self.first):
            names = "base, try and start_from" if earlier else "base and try"
            raise UserError(
                f"num_trials is {self.count}, but {names} name {len(self.first)} already;"
                " raise it, or leave the base recipe out with --no-base."
            )
        if self.count == 1 and self.origins == ["base"] and self.listed != []:
            raise UserError(
                "num_trials is 1, which the base recipe takes up; raise it, or leave the base"
                " recipe out with --no-base."
            )
        self.learns, self.outside = how.learns, how.outside
        self.lag = max(LAG, tuning.max_concurrent or 0) if self.learns else self.count
        if how.make:
            import optuna

            random.Random(base.seed).shuffle(self.listed or [])
            self.distributions = {name: each.distribution() for name, each in dimensions.items()}
            sampler = how.make(base.seed)
            with restored.log_level("optuna", logging.WARNING):  # it would log its own study
                self.optuna = optuna.create_study(direction="maximize", sampler=sampler)
            self.failed = optuna.trial.TrialState.FAIL
        self.sampled: list[dict[str, Any]] = []
        """The configurations that `sample` has returned."""
        self.asked: list[int | None] = []
        """Optuna's number of each configuration that Optuna proposed; None for the first ones."""
        self.told = 0
        """How many trials Optuna knows the accuracies of."""

    def counted(self, tuning: TuneConfig) -> int:
        """Return how many configurations a study with these settings tries."""
        wanted = tuning.num_trials or DEFAULT_COUNT
        if self.listed is None:
            return wanted
        available = len(self.first) + len(self.listed)
        return available if self.grid else min(wanted, available)

    def _add_first(self, tuning: TuneConfig) -> None:
        wanted = [("base", dict[str, Any]())] if tuning.base else []
        wanted += [("try", read_try(text, self.base, self.workers)) for text in tuning.tries]
        for origin, named in wanted:
            values = {name: getattr(self.base, name) for name in self.dimensions} | named
            if self._add(values):
                self.first.append(values)
                self.origins.append(origin)

    def _list(self, grid: bool) -> list[dict[str, Any]] | None:
        """Return the valid combinations that are not among the first configurations, each once;
        None where the space is infinite or too large to be listed."""
        finite = {name: dim for name, dim in self.dimensions.items() if dim.size < math.inf}
        self.combinations = int(math.prod(dim.size for dim in finite.values()))
        if self.combinations > LISTED:
            if grid:
                raise UserError(
                    f"space has {self.combinations} combinations, but a grid can have at most"
                    f" {LISTED}."
                )
            return None
        # Which choices go together does not depend on where in its range a real number lies.
        others = {
            name: dim.values[1] for name, dim in self.dimensions.items() if name not in finite
        }
        new, seen, errors = [], set(self.given), list[str]()
        for values in itertools.product(*(dim.all() for dim in finite.values())):
            named = dict(zip(finite, values, strict=True))
            try:
                same = self._identity({**others, **named})
            except UserError as error:
                errors.append(str(error))
                continue
            if same not in seen:
                seen.add(same)
                new.append(named)
        count = self.combinations - len(errors)
        if count < self.combinations / 100:
            raise UserError(
                f"space has {self.combinations} combinations, but only {count} are valid:"
                f" {errors[0]}"
            )
        if errors:
            self.remarks.append(
                f"{len(errors)} of {self.combinations} combinations are left out, as they are not"
                f" valid: {errors[0]}"
            )
        self.combinations = count
        return new if len(finite) == len(self.dimensions) else None

    def _identity(self, values: dict[str, Any]) -> Hashable:
        return identity(valid(self.base, values, self.workers))

    def _add(self, values: dict[str, Any]) -> bool:
        """Count the values as given; return False where they are invalid or were given before."""
        try:
            same = self._identity(values)
        except UserError:
            return False
        new = same not in self.given
        self.given.add(same)
        return new

    def origin(self, number: int) -> str:
        """Return where configuration `number` comes from: base, try, an earlier study's trial, or
        sampled."""
        return self.origins[number] if number < len(self.origins) else "sampled"

    def sample(self, number: int, accuracies: Mapping[int, float | None]) -> dict[str, Any] | None:
        """Return the values of configuration `number`, or None where more trials must end first.

        Call this for 0, 1, 2, … in order; a number that was given already gets the same values.
        `accuracies` has an entry for each configuration whose trial has ended, None for a trial
        without a result. The values do not depend on how many configurations are to come.
        """
        if number == len(self.sampled):
            values = self._next(number, accuracies)
            if values is None:
                return None
            self.sampled.append(values)
        return self.sampled[number]

    def _next(self, number: int, accuracies: Mapping[int, float | None]) -> dict[str, Any] | None:
        if number < len(self.first):
            self.asked.append(None)
            return self.first[number]
        if self.listed is not None and not self.learns:
            return self.listed[number - len(self.first)]
        while self.told <= number - self.lag:
            if self.told not in accuracies:
                return None
            self._tell(self.told, accuracies[self.told])
            self.told += 1
            if self.told == len(self.first):
                self._tell_known(accuracies)
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

    def _tell_known(self, accuracies: Mapping[int, float | None]) -> None:
        """Tell Optuna what the earlier study knows. Under other conditions, such as more epochs,
        its accuracies differ by about as much as those of the configurations that both tried."""
        from optuna.trial import create_trial

        new = {number: accuracies[number] for number in self.before}
        shifts = [value - self.before[number] for number, value in new.items() if value is not None]
        for values, accuracy in self.known if shifts else ():
            value = accuracy + fmean(shifts)
            trial = create_trial(params=values, distributions=self.distributions, value=value)
            self.optuna.add_trial(trial)

    def _propose(self) -> dict[str, Any]:
        """Return a valid and new configuration; raises UserError where none is found."""
        for attempt in range(ATTEMPTS):
            if self.listed and attempt == PATIENCE:
                self.optuna.enqueue_trial(
                    next(each for each in self.listed if self._identity(each) not in self.given)
                )
            asked = self.optuna.ask(self.distributions)
            dimensions = self.dimensions.items()
            params = {name: each.nearest(asked.params[name]) for name, each in dimensions}
            if self._add(params):
                self.asked.append(asked.number)
                return params
            self.optuna.tell(asked, state=self.failed)
        raise UserError(
            f"space has no further configuration: of {ATTEMPTS} proposals, none was valid and new."
        )


def space_of(tuning: TuneConfig) -> dict[str, str]:
    """Return a study's search space as written, or the default space: dropout, lr and momentum."""
    return tuning.space or (DEFAULT_SPACE if method(tuning).make else DEFAULT_GRID)


def sampler(tuning: TuneConfig, base: Recipe, earlier: Earlier | None = None) -> Sampler:
    """Return the sampler of a study around the recipe `base`, which may start from what an
    `earlier` study found. Raises UserError where the study's settings contradict each other, its
    space or the recipe."""
    dimensions = parse(space_of(tuning), base, tuning.workers_per_trial)
    check(tuning, dimensions, base)
    return Sampler(tuning, dimensions, base, earlier)


def _as_seen(
    values: dict[str, Any], dimensions: dict[str, Dimension], accuracy: float
) -> "FrozenTrial":
    """Return the trial that Optuna would have recorded for `values`.

    A range is widened to include its value, because Optuna can learn from values outside the space.
    A value that no sample can have, such as another choice, is left out.
    """
    from optuna.trial import create_trial

    wide = {name: dimension.reaching(values[name]) for name, dimension in dimensions.items()}
    distributions = {name: each.distribution() for name, each in wide.items() if each}
    params = {name: values[name] for name in distributions}
    return create_trial(params=params, distributions=distributions, value=accuracy)
