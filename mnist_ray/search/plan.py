"""What a study runs, one phase after the other, decided by what came out so far. Without Ray.

The phases are those of `verdict.Phase`.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import fmean, median
from typing import Any, NamedTuple

from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.search import outcome
from mnist_ray.search.outcome import Phase, Row
from mnist_ray.search.samplers import Sampler, lag, policy

RUNG = 1
"""Epochs of the screening."""


class Planned(NamedTuple):
    """A trial. `sampled` are its values in the search space, `more` other fields in which it
    departs from the study's recipe; `repeats` is the trial whose configuration it has, and `origin`
    where that comes from: base, try or sampled."""

    phase: Phase
    sampled: dict[str, Any]
    more: dict[str, Any]
    repeats: int | None = None
    origin: str = "sampled"

    @property
    def changes(self) -> dict[str, Any]:
        return {**self.sampled, **self.more}


class Plan:
    """Gives the next trial to run, and is told the row of each that ended.

    It decides by the rows alone, so that a study of the same seed takes the same course however
    many trials run at a time, unless a time budget or a scheduler that stops trials cuts in.
    """

    def __init__(
        self,
        study: TuneConfig,
        base: Recipe,
        sampler: Sampler,
        concurrent: int = 1,
        recorded: Iterable[Row] = (),
        begun: Mapping[int, Recipe] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.study, self.base, self.concurrent, self.clock = study, base, concurrent, clock
        self.sampler, self.dimensions = sampler, sampler.dimensions
        self.recorded = {row["trial"]: row for row in recorded}
        self.begun = begun or {}
        if sampler.learns:  # it waits for more to have ended
            self.concurrent = min(concurrent, lag(study))
        epochs = self.dimensions.get("epochs")
        self.epochs = max(epochs.values) if epochs else base.epochs
        self.began = clock()
        self.trials: list[Planned] = []
        self.rows: dict[int, Row] = {}
        self.skipped: list[str] = []
        self.kept: list[int] | None = None
        """The screened trials whose configurations are trained in full, once that is decided."""
        self.candidates: list[int] | None = None
        """The trials of the search that are confirmed, once that is decided."""
        self.done = False
        self._course = self._phases()

    @property
    def keep(self) -> int:
        few = max(2, self.sampler.count // 6, self.study.confirm or 0)
        return min(self.study.keep or few, self.sampler.count)

    @property
    def confirm(self) -> int:
        """How many trials of the search are confirmed, the base recipe's apart."""
        if self.study.confirm is None:
            return 2 if self.competing >= 2 else 0
        return min(self.study.confirm, self.competing)

    @property
    def screening(self) -> bool:
        screens = policy(self.study).screens
        return screens and self.epochs > RUNG and self.keep < self.sampler.count

    @property
    def competing(self) -> int:
        """How many trials the search has; at most, as long as the screening goes on."""
        if not self.screening:
            return self.sampler.count
        if self.kept is not None:
            return len(self.kept)
        return min(self.keep + self.study.confirm_base, self.sampler.count)

    @property
    def confirming(self) -> int:
        """How many trials are confirmed; at most, as long as the search goes on."""
        if self.candidates is not None:
            return len(self.candidates)
        extra = self.study.confirm_base and self.confirm > 0
        return min(self.confirm + extra, self.competing)

    def seeds(self) -> list[int]:
        """Those that the confirmation trains with; the search has the one before."""
        return [(self.base.seed + 1 + i) % 2**32 for i in range(self.study.confirm_seeds)]

    def outline(self) -> dict[Phase, int]:
        """How many trials each phase has, if all goes on to its end."""
        screened = {Phase.SCREEN: self.sampler.count} if self.screening else {}
        again: dict[Phase, int] = {Phase.CONFIRM: self.confirming * self.study.confirm_seeds}
        again[Phase.FINAL] = self.study.confirm_seeds
        return {**screened, Phase.SEARCH: self.competing, **(again if self.confirming else {})}

    def next(self) -> Planned | None:
        """The next trial, or None: then it waits for one that runs, or the study is `done`."""
        step = next(self._course, None)
        if step is not None:
            self.trials.append(step)
        elif len(self.rows) == len(self.trials):
            self.done = True
        return step

    def tell(self, row: Row) -> None:
        """The row of the trials table of a trial that ended."""
        self.rows[row["trial"]] = row

    def replay(self) -> list[int]:
        """Take the course again that led to the recorded rows. Returns the trials that had begun by
        then and not ended; raises UserError where the rows are not of this plan."""
        while len(self.rows) < len(self.recorded):
            planned = self.next()
            number = len(self.trials) - 1
            row = self.recorded.get(number)
            if planned is None or (row and not _is_of(row, planned)):
                raise UserError(
                    f"trial {number} of the results table is not the one that these settings lead"
                    " to; resume a study with the versions that it began with, and leave its files"
                    " as they are."
                )
            if row:
                self.tell(row)
        return [number for number in range(len(self.trials)) if number not in self.rows]

    def ranked(self, phase: Phase) -> list[int]:
        """Return the trials of `phase` that have a result, the best first."""
        return outcome.ranked(list(self.rows.values()), phase)

    def confirmed(self) -> dict[int, list[float | None]]:
        """Return the accuracies of each confirmed trial's repetitions, as `verdict.confirmed`."""
        return outcome.confirmed(list(self.rows.values()))

    def winner(self) -> int | None:
        """Return the number of the best trial: by the confirmation, or else by the search."""
        return outcome.winner(list(self.rows.values()))

    def seconds_left(self) -> float | None:
        """An estimate, by the trials that ended so far, as if none to come were stopped early; None
        before the first."""
        to_come = self.outline()
        for i in list(self.rows):  # a copy, because the display asks from a thread of its own
            to_come[self.trials[i].phase] -= 1
        return self._seconds({phase: max(count, 0) for phase, count in to_come.items()})

    def _phases(self) -> Iterator[Planned | None]:
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
                    self.skipped.append("more of the best in full")
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
        """The best trials of `phase`, and the base recipe's if it is to be confirmed."""
        ranked = self.ranked(phase)
        more = [i for i in ranked[count:] if self.trials[i].origin == "base"]
        return [*ranked[:count], *(more if self.study.confirm_base else ())]

    def _again(self, phase: Phase, number: int, **more: Any) -> Planned:
        """The configuration of the trial `number` once more."""
        planned = self.trials[number]
        return Planned(phase, planned.sampled, more, repeats=number, origin=planned.origin)

    def _all_ended(self) -> Iterator[None]:
        while len(self.rows) < len(self.trials):
            yield None

    def _in_time(self, phase: Phase) -> bool:
        """Whether another trial of `phase`, and what must come after, would end within the budget.
        Time for confirming is kept free as long as that leaves half of the budget to the search."""
        budget = self.study.time_budget
        if budget is None:
            return True
        if (decided := self._decided(len(self.trials))) is not None:
            return decided == phase
        outline = self.outline()
        again: dict[Phase, int] = {
            each: outline[each] for each in (Phase.CONFIRM, Phase.FINAL) if each in outline
        }
        confirming = self._seconds(again)
        if confirming is None:
            return True
        if phase == Phase.CONFIRM:
            needed = confirming
        else:
            search: dict[Phase, int] = (
                {Phase.SEARCH: outline[Phase.SEARCH]} if phase == Phase.SCREEN else {}
            )
            needed = self._seconds({phase: 1, **search}) or 0.0
            needed += confirming if confirming <= budget / 2 else 0.0
        return self.clock() - self.began + needed <= budget

    def _decided(self, number: int) -> Phase | None:
        """The phase of the trial `number` before the study was resumed, or of the next one known:
        between two phases all must have ended."""
        known = {each: Phase(row["phase"]) for each, row in self.recorded.items()}
        for each, config in self.begun.items():
            if config.holdout == 0:
                known[each] = Phase.FINAL
            elif config.seed in self.seeds() and "seed" not in self.dimensions:
                known[each] = Phase.CONFIRM
            else:
                known[each] = (
                    Phase.SCREEN if self.screening and config.epochs == RUNG else Phase.SEARCH
                )
        later = [each for each in known if each >= number]
        return known[min(later)] if later else None

    def _seconds(self, trials: Mapping[Phase, int]) -> float | None:
        """What that many trials of each phase take, at the pace of those that ended."""
        ended = [row for row in list(self.rows.values()) if row["status"] in outcome.WITH_RESULT]
        if not ended:
            return None
        pace = fmean(
            row["train_seconds"] / (row["epochs_trained"] * self.images_of(row["trial"]))
            for row in ended
        )
        besides: float = median(row["total_seconds"] - row["train_seconds"] for row in ended)
        return sum(
            math.ceil(count / self.concurrent)
            * (self._epochs(phase) * self.images(phase) * pace + besides)
            for phase, count in trials.items()
        )

    def _epochs(self, phase: Phase) -> int:
        return RUNG if phase == Phase.SCREEN else self.epochs

    def images_of(self, number: int) -> int:
        """How many images the trial `number` trains on in an epoch."""
        return self.base.replace(**self.trials[number].changes).images

    def images(self, phase: Phase) -> int:
        """How many images a trial of `phase` trains on in an epoch, at most."""
        base = self.base.replace(holdout=0) if phase == Phase.FINAL else self.base
        sizes = self.dimensions.get("train_size")
        return max(size or base.images for size in sizes.values) if sizes else base.images

    def _of(self, phase: Phase) -> list[int]:
        return [i for i, trial in enumerate(self.trials) if trial.phase == phase]

    def _accuracies(self) -> dict[int, float | None]:
        return {i: row["best_accuracy"] for i, row in self.rows.items()}


def _is_of(row: Row, planned: Planned) -> bool:
    values = {**planned.changes, "phase": planned.phase, "repeats": planned.repeats}
    return all(row.get(name) == value for name, value in values.items())
