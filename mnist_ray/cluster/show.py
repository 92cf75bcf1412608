"""The protocols of a display: what a run reports while it goes. The terminal implements both; a
notebook may too."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from mnist_ray.cluster.resources import WorkerResources
from mnist_ray.config import Recipe, Resources
from mnist_ray.search import Plan, Planned
from mnist_ray.storage import Place

if TYPE_CHECKING:  # PyTorch takes a second to import
    from mnist_ray.learn import Layer, Splits


class Show(Protocol):
    """What the displays of training runs and of studies share. The display is entered, as a context
    manager, while epochs or trials run."""

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def say(self, text: str) -> None:
        """Show a line."""

    def waiting(self, what: str) -> AbstractContextManager[None]:
        """Return a context manager that shows what the command does before the run begins."""


class TrainingShow(Show, Protocol):
    """The display of a training run."""

    def begin(
        self,
        recipe: Recipe,
        needs: Resources,
        share: WorkerResources,
        layers: "list[Layer]",
        splits: "Splits",
        in_process: bool,
    ) -> None:
        """Show what will be trained and where, before training starts."""

    def go_on(self, epochs: int, lost: bool) -> None:
        """Show that the workers start, with `epochs` epochs done. `lost` says that they start again
        because a worker died."""

    def wait(self, why: str) -> None:
        """Show what the workers are waiting for."""

    def step(self, epoch: int, step: int, steps: int) -> None:
        """Show that step `step` of `steps`, from 1, of an epoch is done."""

    def epoch(self, metrics: dict[str, Any]) -> None:
        """Show the metrics of an epoch."""

    def stopped(self, resume: Sequence[str]) -> None:
        """Show the flags that resume this run, which did not end."""

    def end(self, row: dict[str, Any], folder: Place, last: Place) -> None:
        """Show the run's row of the trials table, its folder and its last checkpoint."""


class StudyShow(Show, Protocol):
    """The display of a study."""

    def begin(self, plan: Plan, share: WorkerResources) -> None:
        """Show what the study will run, before the first trial starts."""

    def start(self, number: int, trial: Planned) -> None:
        """Show that a trial starts."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Show a row of the epochs table."""

    def again(self, number: int, epochs: int, why: str) -> None:
        """Show that a trial failed and resumes after `epochs` epochs, which it had saved."""

    def wait(self, number: int, why: str) -> None:
        """Show what a trial is waiting for."""

    def end_trial(self, row: dict[str, Any]) -> None:
        """Show a trial that ended, by its row of the trials table."""

    def stopped(self, folder: Place, resume: Sequence[str]) -> None:
        """Show what was found so far, and the flags that resume the study."""

    def end(self, folder: Place, recipe_file: Place) -> None:
        """Show the winner, how it was chosen, and the file of its recipe."""
