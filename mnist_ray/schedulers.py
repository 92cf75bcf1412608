"""Ray Tune's side of a plan: what hands its trials to Tune, and when a trial is stopped."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from mnist_ray.config import TuneConfig
from mnist_ray.plan import Plan

METRIC = "holdout_accuracy"


class Search(Searcher):  # type: ignore[misc]
    """Gives Tune the plan's trials, no more at a time than fit. The recorder tells the plan."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "plan": None}  # Tune pickles what it is given

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.numbers) - len(self.plan.rows) >= self.plan.concurrent:
            return None
        trial = self.plan.next()
        if trial is None:
            return self.FINISHED if self.plan.done else None
        self.numbers[trial_id] = len(self.numbers)
        return {**trial.changes, "phase": trial.phase}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The recorder tells the plan."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: a plan follows from the rows of the trials table."""


class _SearchOnly(TrialScheduler):  # type: ignore[misc]
    """Stops trials of the search only, and none at its last epoch, where it ends by itself: Ray
    Train leaks the resources of a run that is killed while it shuts down, and the next trial would
    wait for them for ever."""

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["phase"] != "search":
            return str(self.CONTINUE)
        decision: str = super().on_trial_result(controller, trial, result)
        return str(self.CONTINUE) if result["last"] else decision


class Asha(_SearchOnly, ASHAScheduler):  # type: ignore[misc]
    """Li et al., arXiv:1810.05934: after 1, 3, 9, … epochs only the best third go on."""


class Median(_SearchOnly, MedianStoppingRule):  # type: ignore[misc]
    """Golovin et al., KDD 2017, p. 1487: stops a trial whose best accuracy so far is below the
    median of the others' running means."""

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(self.CONTINUE)  # Tune's would pause the first trials, and start them again


def scheduler(study: TuneConfig, max_epochs: int) -> TrialScheduler:
    """When to stop a trial."""
    how: dict[str, Any] = {"time_attr": "epoch", "metric": METRIC, "mode": "max", "grace_period": 1}
    if study.scheduler == "asha" and max_epochs > 1:
        return Asha(max_t=max_epochs, reduction_factor=3, **how)
    if study.scheduler == "median":
        return Median(**how)
    return FIFOScheduler()
