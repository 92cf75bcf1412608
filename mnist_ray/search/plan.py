"""The plan of a study: which trials it runs, phase by phase, decided by the results so far."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import counted
from mnist_ray.search.budget import Budget
from mnist_ray.search.outcome import Phase, Row
from mnist_ray.search.samplers import policy
from mnist_ray.search.sampling import Sampler
from mnist_ray.search.trials import Planned, Trials

RUNG = 1
"""Epochs of a trial in the screening."""


CHANGEABLE = ("num_trials", "keep", "confirm", "confirm_seeds", "confirm_base", "time_budget")
"""The settings that a resumed study may change. They say how many trials of each phase there are,
and change none that was trained."""


class Plan(Trials):
    """Gives the next trial to run, and is told the row of each trial that ended.

    It decides from the rows alone. A study of the same seed therefore runs the same trials, however
    many run at a time, unless a time budget or a scheduler that stops trials intervenes.

    A resumed study hands in `recorded`, the rows of the trials that ended, `unfinished`, the
    recipes of the trials that started but did not end, by number, and `changes`: settings that
    replaced those before, each after so many trials. Then it calls `replay`, and `change` if the
    settings change once more. Trials keep their numbers: what a change adds comes after them.
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
        changes: Sequence[tuple[int, TuneConfig]] = (),
    ) -> None:
        super().__init__(base)
        self.sampler, self.changes = sampler, changes
        self.dimensions = sampler.dimensions
        self.recorded = {row["trial"]: row for row in recorded}
        self.unfinished = dict(unfinished or {})
        # A sampler that learns can run no more trials at a time than its lag.
        self.concurrent = min(concurrent, sampler.lag) if sampler.learns else concurrent
        epochs = self.dimensions.get("epochs")
        self.epochs = max(epochs.values) if epochs else base.epochs
        """Epochs of a trial after the screening, at most."""
        trial_images = {
            phase: self.images(phase) * (RUNG if phase == Phase.SCREEN else self.epochs)
            for phase in Phase
        }
        self.budget = Budget(trial_images, self.concurrent, clock)
        self.tuning, self.count = tuning, sampler.counted(tuning)
        self.screening = policy(tuning).screens and self.epochs > RUNG and self.keep < self.count
        """Whether the study screens its configurations before it trains the best in full. Later
        changes leave this as it is, because only alike trials can be compared."""
        self.added = 0
        """How many configurations the last change adds."""
        self._use(tuning)

    def _use(self, tuning: TuneConfig) -> None:
        """Plan with these settings what is still missing."""
        self.tuning, self.count = tuning, self.sampler.counted(tuning)
        self.budget.seconds = tuning.time_budget or math.inf
        self.skipped: list[str] = []
        """What the time budget left no time for, in words."""
        self.done = False
        self.left: Counter[Phase] = Counter()
        """How many trials of each phase are not planned yet: an upper bound until the trials that
        decide about it have ended. It includes those that the time budget leaves no time for."""
        self.left[self.first] = max(self.count - len(self.configured), 0)
        if self.screening:
            most = min(self.keep + self.tuning.confirm_base, self.count)
            self.left[Phase.SEARCH] = most if self.left[self.first] else len(self._to_search())
        if self.left.total():
            extra = self.tuning.confirm_base and self.confirm > 0
            most = min(self.confirm + extra, self.competing)
            confirmed = [trial.repeats for trial in self.planned(Phase.CONFIRM)]
            seeds = self.tuning.confirm_seeds
            self.left[Phase.CONFIRM] = (most + len({*confirmed})) * seeds - len(confirmed)
            self.left[Phase.FINAL] = seeds if most else 0
        else:
            self.left[Phase.CONFIRM] = len(self._to_confirm())
            self.left[Phase.FINAL] = len(self._to_score())
        self._steps = self._phases()

    @property
    def first(self) -> Phase:
        """The phase in which a configuration is trained for the first time."""
        return Phase.SCREEN if self.screening else Phase.SEARCH

    @property
    def keep(self) -> int:
        """How many screened configurations train in full, without the base recipe's extra place."""
        keep = self.tuning.keep or max(2, self.count // 6, self.tuning.confirm or 0)
        return min(keep, self.count)

    @property
    def confirm(self) -> int:
        """How many trials of the search are confirmed, without the base recipe's extra place."""
        if self.tuning.confirm is None:
            return 2 if self.competing >= 2 else 0
        return min(self.tuning.confirm, self.competing)

    @property
    def competing(self) -> int:
        """How many trials the search has: an upper bound until the screening has ended."""
        return self.outline().get(Phase.SEARCH, 0)

    def seeds(self) -> list[int]:
        """Return the seeds of the confirmation: the recipe's seed + 1, + 2, …"""
        return [(self.base.seed + 1 + i) % 2**32 for i in range(self.tuning.confirm_seeds)]

    def outline(self) -> dict[Phase, int]:
        """Return how many trials each phase has, if the time budget and the scheduler allow."""
        planned = Counter(trial.phase for trial in self.trials)
        counts = {phase: planned[phase] + self.left[phase] for phase in Phase}
        return {phase: count for phase, count in counts.items() if count}

    def next(self) -> Planned | None:
        """Return the next trial; None where the study is `done`, or a trial must end first."""
        planned = next(self._steps, None)
        if planned is not None:
            self.add(planned)
            self.left[planned.phase] -= 1
        elif len(self.rows) == len(self.trials):
            self.done = True
        return planned

    def tell(self, row: Row) -> None:
        """Take into account the row of a trial that ended."""
        self.rows[row["trial"]] = row
        self.budget.add(row, self.images_of(row["trial"]))

    def replay(self) -> None:
        """Plan the recorded trials again; raises UserError where the recorded rows do not follow
        from this plan."""
        for after, tuning in self.changes:
            self._replay(after)
            self._use(tuning)
        self._replay(max(self.recorded, default=-1) + 1)

    def _replay(self, count: int) -> None:
        while (number := len(self.trials)) < count:
            planned, row = self.next(), self.recorded.get(number)
            if planned is None or (row and not _matches(row, planned)):
                raise UserError(
                    f"trial {number} of the results table does not follow from the settings; resume"
                    " a study with the versions that it began with, and its files unchanged."
                )
            if row:
                self.tell(row)

    def change(self, tuning: TuneConfig) -> int:
        """Go on with other settings, and return how many trials come before them. Those that have
        started are among these, as far as their plan does not wait for others to end. Raises
        UserError where the study has gone beyond the new settings already."""
        while len(self.trials) <= max(self.unfinished, default=-1) and self.next():
            pass
        self.unfinished = {
            number: recipe
            for number, recipe in self.unfinished.items()
            if number < len(self.trials)
        }
        before, tried = self.tuning, len(self.configured)
        least = {"keep": self.keep, "confirm": self.confirm, "confirm_seeds": len(self.seeds())}
        asked, available = tuning.num_trials, self.sampler.counted(tuning)
        if asked and asked < tried:
            raise UserError(
                f"num_trials is {asked}, but the study has tried {counted(tried, 'configuration')}"
                f" already; use at least {tried}."
            )
        if asked and asked != before.num_trials and asked > available == tried:
            raise UserError(
                f"num_trials is {asked}, but the space has only"
                f" {counted(available, 'configuration')}, and all were tried; nothing can be added."
            )
        self._use(tuning)
        for name, was in least.items():
            value = getattr(tuning, name)
            if value not in (getattr(before, name), None) and value < was:
                raise UserError(
                    f"{name} is {value}, but the study has {was}, and can only get more."
                )
        self.added = self.left[self.first]
        return len(self.trials)

    def seconds_left(self) -> float | None:
        """Estimate the seconds left if no trial is stopped early; None without a measured pace."""
        # A copy of the rows, because the display calls this from a thread of its own.
        ended = Counter(self.trials[number].phase for number in list(self.rows))
        return self.budget.estimate(Counter(self.outline()) - ended)

    def _phases(self) -> Iterator[Planned | None]:
        """Yield the trials that the study lacks, in order, and None each time that a trial must end
        first. What was trained before the settings changed is not trained again."""
        shorter = {"epochs": RUNG} if self.screening else {}
        for number in range(len(self.configured), self.count):
            while (sampled := self.sampler.sample(number, self.accuracies())) is None:
                yield None
            if number and not self._in_time(self.first):
                left = self.count - number
                self.skipped.append(counted(left, "configuration"))
                break
            yield Planned(self.first, sampled, shorter, origin=self.sampler.origin(number))
        yield from self._all_ended()
        if self.screening:
            kept = self._to_search()
            self.left[Phase.SEARCH] = len(kept)
            for number in kept:
                if self.planned(Phase.SEARCH) and not self._in_time(Phase.SEARCH):
                    self.skipped.append("more of the screened configurations in full")
                    break
                yield self._again(Phase.SEARCH, number)
            yield from self._all_ended()
        confirmations = self._to_confirm()
        self.left[Phase.CONFIRM] = len(confirmations)
        if confirmations and not self._in_time(Phase.CONFIRM):
            self.skipped.append("the confirmation")
            return
        for number, seed in confirmations:
            yield self._again(Phase.CONFIRM, number, seed=seed)
        yield from self._all_ended()
        scores = self._to_score()
        self.left[Phase.FINAL] = len(scores)
        for number, seed in scores:
            yield self._again(Phase.FINAL, number, seed=seed, holdout=0)

    def _to_search(self) -> list[int]:
        """Return the screened trials that are to train in full and have not, the best first."""
        searched = {trial.repeats for trial in self.planned(Phase.SEARCH)}
        return [n for n in self._best(Phase.SCREEN, self.keep) if n not in searched]

    def _to_confirm(self) -> list[tuple[int, int]]:
        """Return the trials to confirm and the seeds that they lack. A trial that was confirmed
        gets every seed, even if it is no longer among the best: alike samples are compared."""
        if not self.confirm:
            return []
        confirmed = self.repeated(Phase.CONFIRM)
        numbers = [*self._best(Phase.SEARCH, self.confirm), *(n for n, _ in confirmed)]
        pairs = [(n, seed) for seed in self.seeds() for n in dict.fromkeys(numbers)]
        return [pair for pair in pairs if pair not in confirmed]

    def _to_score(self) -> list[tuple[int, int]]:
        """Return the winner and the seeds that its final runs lack; empty without a
        confirmation."""
        winner = self.winner() if self.planned(Phase.CONFIRM) else None
        pairs = [] if winner is None else [(winner, seed) for seed in self.seeds()]
        return [pair for pair in pairs if pair not in self.repeated(Phase.FINAL)]

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
        return self.budget.allows(phase, self.left)

    def _phase_of(self, recipe: Recipe) -> Phase:
        if recipe.holdout == 0:
            return Phase.FINAL
        if recipe.seed in self.seeds() and "seed" not in self.dimensions:
            return Phase.CONFIRM
        return Phase.SCREEN if self.screening and recipe.epochs == RUNG else Phase.SEARCH

    def images(self, phase: Phase) -> int:
        """Return how many images a trial of `phase` trains on in an epoch, at most."""
        base = self.base.replace(holdout=0) if phase == Phase.FINAL else self.base
        sizes = self.dimensions.get("train_size")
        return max(size or base.images for size in sizes.values) if sizes else base.images


def _matches(row: Row, planned: Planned) -> bool:
    values = {**planned.changes, "phase": planned.phase, "repeats": planned.repeats}
    return all(row.get(name) == value for name, value in values.items())
