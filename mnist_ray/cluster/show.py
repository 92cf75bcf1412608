"""What a run tells whoever shows it. The terminal implements both protocols; a notebook may too."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from mnist_ray.cluster.resources import WorkerResources
from mnist_ray.config import Recipe, Resources
from mnist_ray.learn import Layer, Splits
from mnist_ray.search import Plan, Planned
from mnist_ray.storage import Place


class Show(Protocol):
    """What training runs and studies have in common. It is entered while trials or epochs run."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, text: str) -> None:
        """Show a line."""


class TrainingShow(Show, Protocol):
    """Shows a training run as it goes."""

    def begin(
        self,
        recipe: Recipe,
        needs: Resources,
        share: WorkerResources,
        layers: list[Layer],
        splits: Splits,
        in_process: bool,
    ) -> None:
        """Show what will be trained and where, before training starts."""

    def go_on(self, epochs: int, lost: bool) -> None:
        """Show that the workers begin, after `epochs` that are done; `lost` says that one died."""

    def wait(self, why: str) -> None:
        """Show what the workers wait for."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Show that a step, from 1, of an epoch is done."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of an epoch."""

    def stopped(self, resume: Sequence[str]) -> None:
        """Show the flags that go on with a run that did not come to its end."""

    def end(self, row: dict[str, Any], folder: Place, last: Place) -> None:
        """Show the run's row of the trials table, its folder and its last checkpoint."""


class StudyShow(Show, Protocol):
    """Shows a study as it goes."""

    def begin(self, plan: Plan, share: WorkerResources) -> None:
        """Show what will be tried, before it is."""

    def start(self, number: int, trial: Planned) -> None:
        """Show that a trial starts."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Show a row of the epochs table."""

    def again(self, number: int, epochs: int, why: str) -> None:
        """Show that a trial failed and goes on after `epochs` that it saved."""

    def wait(self, number: int, why: str) -> None:
        """Show what a trial waits for."""

    def end_trial(self, row: dict[str, Any]) -> None:
        """Show the row of the trials table of a trial that ended."""

    def stopped(self, folder: Place, resume: Sequence[str]) -> None:
        """Show what was found so far, and the flags that go on with the study."""

    def end(self, folder: Place, recipe_file: Place) -> None:
        """Show the winner and how it was chosen."""
