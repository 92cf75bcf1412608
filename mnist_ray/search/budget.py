"""The time budget of a study: how long its trials take, and whether another one fits."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean, median

from mnist_ray.search.outcome import WITH_RESULT, Phase, Row


class Budget:
    """Estimates how long trials take, at the pace of the trials that ended with a result.

    The time budget starts when this object is made. `trial_images` is how many images a trial of
    each phase trains on, over all its epochs. `concurrent` trials run at a time.
    """

    def __init__(
        self,
        trial_images: Mapping[Phase, int],
        concurrent: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = math.inf
        """The time budget; infinity is no limit."""
        self.trial_images, self.concurrent = trial_images, concurrent
        self.clock, self.started = clock, clock()
        self.ended: list[tuple[Row, int]] = []
        """The row and the images per epoch of each trial that ended with a result."""
        self.guessed: tuple[float, float] | None = None
        """Seconds per image, and seconds per trial besides, until a trial has ended."""

    def guess(self, seconds_per_image: float, seconds_per_trial: float) -> None:
        """Estimate with these figures, measured otherwise, until a trial has ended."""
        self.guessed = seconds_per_image, seconds_per_trial

    def add(self, row: Row, images: int) -> None:
        """Take into account the row of a trial that ended, with `images` per epoch."""
        if row["status"] in WITH_RESULT:
            self.ended.append((row, images))

    def estimate(self, trials: Mapping[Phase, int]) -> float | None:
        """Return how many seconds so many trials of each phase take; None before the first trial
        has ended with a result, unless there is a guess."""
        ended = list(self.ended)  # a copy: the display calls this from a thread of its own
        if ended:
            pace = fmean(
                row["train_seconds"] / (row["epochs_trained"] * images) for row, images in ended
            )
            overhead: float = median(
                row["total_seconds"] - row["train_seconds"] for row, _ in ended
            )
        elif self.guessed:
            pace, overhead = self.guessed
        else:
            return None
        return sum(
            math.ceil(count / self.concurrent) * (self.trial_images[phase] * pace + overhead)
            for phase, count in trials.items()
        )

    def allows(self, phase: Phase, left: Mapping[Phase, int]) -> bool:
        """Say whether another trial of `phase`, and all that must follow, would end in time.

        The screening and the search leave time for the confirmation, unless it would take more
        than half of the budget. `left` is how many trials of each phase are still to come.
        """
        confirmation = {each: left.get(each, 0) for each in (Phase.CONFIRM, Phase.FINAL)}
        needed = self.estimate(confirmation)
        if needed is None or not self.ended:  # a guess is not sure enough to leave a trial out
            return True
        if phase != Phase.CONFIRM:
            if needed > self.seconds / 2:
                needed = 0.0
            following = {Phase.SEARCH: left[Phase.SEARCH]} if phase == Phase.SCREEN else {}
            needed += self.estimate({phase: 1, **following}) or 0.0
        return self.clock() - self.started + needed <= self.seconds
