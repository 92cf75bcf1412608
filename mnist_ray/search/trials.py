"""The trials of a study: as they were planned, and the rows of those that ended."""

from typing import Any, NamedTuple

from mnist_ray.config import Recipe
from mnist_ray.search import outcome
from mnist_ray.search.outcome import Phase, Row


class Planned(NamedTuple):
    """A trial as planned: the study's base recipe, changed by `sampled`, its values in the search
    space, and by `more`, what its phase asks for. `repeats` is the number of the trial whose
    configuration it repeats, and `origin` where its configuration comes from: base, try, a
    trial of an earlier study, or sampled."""

    phase: Phase
    sampled: dict[str, Any]
    more: dict[str, Any]
    repeats: int | None = None
    origin: str = "sampled"

    @property
    def changes(self) -> dict[str, Any]:
        return {**self.sampled, **self.more}


class Trials:
    """The trials of a study around the recipe `base`, numbered as they were planned."""

    def __init__(self, base: Recipe) -> None:
        self.base = base
        self.trials: list[Planned] = []
        self.configured: list[int] = []
        """The number of each configuration's first trial, in the order of the sampler."""
        self.rows: dict[int, Row] = {}

    def add(self, planned: Planned) -> None:
        """Number another trial."""
        if planned.repeats is None:
            self.configured.append(len(self.trials))
        self.trials.append(planned)

    def begun(self) -> list[int]:
        """Return the numbers of the planned trials that have not ended."""
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

    def finals(self) -> list[int]:
        """Return the numbers of the winner's final runs that have a result, in order."""
        winner = self.winner()
        return sorted(n for n in self.ranked(Phase.FINAL) if self.trials[n].repeats == winner)

    def images_of(self, number: int) -> int:
        """Return how many images the trial `number` trains on in an epoch."""
        return self.base.replace(**self.trials[number].changes).images

    def planned(self, phase: Phase) -> list[Planned]:
        """Return the trials of `phase` that were planned so far, in order."""
        return [trial for trial in self.trials if trial.phase == phase]

    def repeated(self, phase: Phase) -> list[tuple[int, int]]:
        """Return which trials were repeated in `phase`, and with which seeds."""
        trials = self.planned(phase)
        return [(each.repeats, each.more["seed"]) for each in trials if each.repeats is not None]

    def accuracies(self) -> dict[int, float | None]:
        """Return the best accuracies of the configurations whose first trial has ended."""
        return {
            i: self.rows[number]["best_accuracy"]
            for i, number in enumerate(self.configured)
            if number in self.rows
        }
