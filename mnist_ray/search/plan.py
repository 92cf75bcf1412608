"""The plan of a study: which trials it runs, phase by phase, decided by the results so far."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.search import outcome
from mnist_ray.search.budget import Budget
from mnist_ray.search.outcome import Phase, Row
from mnist_ray.search.samplers import policy
from mnist_ray.search.sampling import Sampler

RUNG = 1
"""Epochs of a trial in the screening."""


class Planned(NamedTuple):
    """A trial as planned: the study's base recipe, changed by `sampled`, its values in the search
    space, and by `more`, what its phase asks for. `repeats` is the number of the trial whose
    configuration it repeats, and `origin` where its configuration comes from: base, try or
    sampled."""

    phase: Phase
    sampled: dict[str, Any]
    more: dict[str, Any]
    repeats: int | None = None
    origin: str = "sampled"

    @property
    def changes(self) -> dict[str, Any]:
        return {**self.sampled, **self.more}


class Plan:
    """Gives the next trial to run, and is told the row of each trial that ended.

    It decides from the rows alone. A study of the same seed therefore runs the same trials, however
    many run at a time, unless a time budget or a scheduler that stops trials intervenes.

    A resumed study hands in `recorded`, the rows of the trials that ended, and `unfinished`, the
    recipes of the trials that started but did not end, by number; then it calls `replay`.
    """

    def __init__(
        self,
        tuning: TuneConfig,
        base: Recipe,
        sampler: Sampler,
        concurrent: int = 1,
        recorded: Iterable[Row] = (),
        unfinished: Mapping[int, Recipe] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tuning, self.base, self.sampler = tuning, base, sampler
        self.dimensions = sampler.dimensions
        self.recorded = {row["trial"]: row for row in recorded}
        self.unfinished = unfinished or {}
        # A sampler that learns can run no more trials at a time than its lag.
        self.concurrent = min(concurrent, sampler.lag) if sampler.learns else concurrent
        epochs = self.dimensions.get("epochs")
        self.epochs = max(epochs.values) if epochs else base.epochs
        """Epochs of a trial after the screening, at most."""
        trial_images = {
            phase: self.images(phase) * (RUNG if phase == Phase.SCREEN else self.epochs)
            for phase in Phase
        }
        self.budget = Budget(tuning.time_budget or math.inf, trial_images, self.concurrent, clock)
        self.trials: list[Planned] = []
        self.rows: dict[int, Row] = {}
        self.skipped: list[str] = []
        """What the time budget left no time for, in words."""
        self.kept: list[int] | None = None
        """The screened trials whose configurations train in full; None before this is decided."""
        self.candidates: list[int] | None = None
        """The trials of the search that are confirmed; None before this is decided."""
        self.done = False
        self._steps = self._phases()

    @property
    def keep(self) -> int:
        """How many screened configurations train in full, without the base recipe's extra place."""
        keep = self.tuning.keep or max(2, self.sampler.count // 6, self.tuning.confirm or 0)
        return min(keep, self.sampler.count)

    @property
    def confirm(self) -> int:
        """How many trials of the search are confirmed, without the base recipe's extra place."""
        if self.tuning.confirm is None:
            return 2 if self.competing >= 2 else 0
        return min(self.tuning.confirm, self.competing)

    @property
    def screening(self) -> bool:
        """Whether the study screens its configurations before it trains the best in full."""
        return policy(self.tuning).screens and self.epochs > RUNG and self.keep < self.sampler.count

    @property
    def competing(self) -> int:
        """How many trials the search has: an upper bound until the screening has ended."""
        if not self.screening:
            return self.sampler.count
        if self.kept is not None:
            return len(self.kept)
        return min(self.keep + self.tuning.confirm_base, self.sampler.count)

    @property
    def confirming(self) -> int:
        """How many trials are confirmed: an upper bound until the search has ended."""
        if self.candidates is not None:
            return len(self.candidates)
        extra = self.tuning.confirm_base and self.confirm > 0
        return min(self.confirm + extra, self.competing)

    def seeds(self) -> list[int]:
        """Return the seeds of the confirmation: the recipe's seed + 1, + 2, …"""
        return [(self.base.seed + 1 + i) % 2**32 for i in range(self.tuning.confirm_seeds)]

    def outline(self) -> dict[Phase, int]:
        """Return how many trials each phase has, if the time budget and the scheduler allow."""
        outline = {Phase.SCREEN: self.sampler.count} if self.screening else {}
        outline[Phase.SEARCH] = self.competing
        if self.confirming:
            outline[Phase.CONFIRM] = self.confirming * self.tuning.confirm_seeds
            outline[Phase.FINAL] = self.tuning.confirm_seeds
        return outline

    def next(self) -> Planned | None:
        """Return the next trial; None where the study is `done`, or a trial must end first."""
        planned = next(self._steps, None)
        if planned is not None:
            self.trials.append(planned)
        elif len(self.rows) == len(self.trials):
            self.done = True
        return planned

    def tell(self, row: Row) -> None:
        """Take into account the row of a trial that ended."""
        self.rows[row["trial"]] = row
        self.budget.add(row, self.images_of(row["trial"]))

    def replay(self) -> list[int]:
        """Plan the recorded trials again, and return the numbers of the unfinished ones; raises
        UserError where the recorded rows do not follow from this plan."""
        while len(self.rows) < len(self.recorded):
            planned = self.next()
            number = len(self.trials) - 1
            row = self.recorded.get(number)
            if planned is None or (row and not _matches(row, planned)):
                raise UserError(
                    f"trial {number} of the results table does not follow from the settings; resume"
                    " a study with the versions that it began with, and its files unchanged."
                )
            if row:
                self.tell(row)
        return [number for number in range(len(self.trials)) if number not in self.rows]

    def ranked(self, phase: Phase) -> list[int]:
        """Return the numbers of the trials of `phase` that have a result, the best first."""
        return outcome.ranked(self.rows.values(), phase)

    def confirmed(self) -> dict[int, list[float | None]]:
        """Return the final accuracies of each confirmed trial's repetitions, best mean first."""
        return outcome.confirmed(self.rows.values())

    def winner(self) -> int | None:
        """Return the number of the best trial: by the confirmation, or else by the search."""
        return outcome.winner(self.rows.values())

    def seconds_left(self) -> float | None:
        """Estimate the seconds left if no trial is stopped early; None without a measured pace."""
        # A copy of the rows, because the display calls this from a thread of its own.
        ended = Counter(self.trials[number].phase for number in list(self.rows))
        return self.budget.estimate(Counter(self.outline()) - ended)

    def _phases(self) -> Iterator[Planned | None]:
        """Yield the study's trials in order, and None each time that a trial must end first."""
        first, shorter = (Phase.SCREEN, {"epochs": RUNG}) if self.screening else (Phase.SEARCH, {})
        for number in range(self.sampler.count):
            while (sampled := self.sampler.sample(number, self._accuracies())) is None:
                yield None
            if number and not self._in_time(first):
                left = self.sampler.count - number
                self.skipped.append(f"{left} configuration{'s' * (left > 1)}")
                break
            yield Planned(first, sampled, shorter, origin=self.sampler.origin(number))
        yield from self._all_ended()
        if self.screening:
            self.kept = self._best(Phase.SCREEN, self.keep)
            for place, number in enumerate(self.kept):
                if place and not self._in_time(Phase.SEARCH):
                    self.skipped.append("more of the screened configurations in full")
                    break
                yield self._again(Phase.SEARCH, number)
            yield from self._all_ended()
        self.candidates = self._best(Phase.SEARCH, self.confirm) if self.confirm else []
        if self.candidates and not self._in_time(Phase.CONFIRM):
            self.skipped.append("the confirmation")
            return
        for seed in self.seeds():
            for number in self.candidates:
                yield self._again(Phase.CONFIRM, number, seed=seed)
        yield from self._all_ended()
        if self.candidates and (winner := self.winner()) is not None:
            for seed in self.seeds():
                yield self._again(Phase.FINAL, winner, seed=seed, holdout=0)

    def _best(self, phase: Phase, count: int) -> list[int]:
        """Return the best `count` trials of `phase`, and the base recipe's with `confirm_base`."""
        ranked = self.ranked(phase)
        more = [i for i in ranked[count:] if self.trials[i].origin == "base"]
        return [*ranked[:count], *(more if self.tuning.confirm_base else ())]

    def _again(self, phase: Phase, number: int, **more: Any) -> Planned:
        planned = self.trials[number]
        return Planned(phase, planned.sampled, more, repeats=number, origin=planned.origin)

    def _all_ended(self) -> Iterator[None]:
        while len(self.rows) < len(self.trials):
            yield None

    def _in_time(self, phase: Phase) -> bool:
        """Say whether the time budget allows another trial of `phase`. A resumed study repeats the
        decisions that it made before, whatever the clock says now."""
        if self.tuning.time_budget is None:
            return True
        phases = {number: Phase(row["phase"]) for number, row in self.recorded.items()}
        phases |= {number: self._phase_of(recipe) for number, recipe in self.unfinished.items()}
        if later := [number for number in phases if number >= len(self.trials)]:
            return phases[min(later)] == phase
        return self.budget.allows(phase, self.outline())

    def _phase_of(self, recipe: Recipe) -> Phase:
        if recipe.holdout == 0:
            return Phase.FINAL
        if recipe.seed in self.seeds() and "seed" not in self.dimensions:
            return Phase.CONFIRM
        return Phase.SCREEN if self.screening and recipe.epochs == RUNG else Phase.SEARCH

    def images_of(self, number: int) -> int:
        """Return how many images the trial `number` trains on in an epoch."""
        return self.base.replace(**self.trials[number].changes).images

    def images(self, phase: Phase) -> int:
        """Return how many images a trial of `phase` trains on in an epoch, at most."""
        base = self.base.replace(holdout=0) if phase == Phase.FINAL else self.base
        sizes = self.dimensions.get("train_size")
        return max(size or base.images for size in sizes.values) if sizes else base.images

    def _accuracies(self) -> dict[int, float | None]:
        return {i: row["best_accuracy"] for i, row in self.rows.items()}


def _matches(row: Row, planned: Planned) -> bool:
    values = {**planned.changes, "phase": planned.phase, "repeats": planned.repeats}
    return all(row.get(name) == value for name, value in values.items())
