"""Ray Tune's side of a study: the searcher that hands the plan's trials to Tune, and the schedulers
that stop trials."""

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)
from ray.tune.search import Searcher

from mnist_ray import tables
from mnist_ray.search import Phase, Plan, policy
from mnist_ray.storage import Place
from mnist_ray.tables import Epochs

METRIC = "accuracy"
"""The metric that schedulers compare: accuracy on the held-out images, in the search phase."""


class Search(Searcher):  # type: ignore[misc]
    """Gives Tune the plan's next trial when Tune asks for one, while fewer than `plan.concurrent`
    run. The recorder tells the plan how trials ended.

    `begun` are the numbers of trials that a resumed study finishes first."""

    def __init__(self, plan: Plan, folder: Place, begun: Sequence[int] = ()) -> None:
        super().__init__()
        self.plan, self.folder, self.begun = plan, folder, list(begun)
        self.ended_before = len(plan.rows)
        self.numbers: dict[str, int] = {}
        self.names: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher often, and never reads the pickle back

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        ended = len(self.plan.rows) - self.ended_before
        if len(self.numbers) - ended >= self.plan.concurrent:
            return None
        if self.begun:
            number = self.begun.pop(0)
        elif self.plan.next() is None:
            return self.FINISHED if self.plan.done else None
        else:
            number = len(self.plan.trials) - 1
        self.numbers[trial_id] = number
        trial = self.plan.trials[number]
        return {**trial.changes, "phase": trial.phase, "trial": number}

    def folder_name(self, trial: Trial) -> str:
        """Name the folder in which Tune keeps this trial."""
        if trial.trial_id not in self.names:
            # A new name: Tune knows nothing of what the trial saved before an interruption.
            number = self.numbers[trial.trial_id]
            self.names[trial.trial_id] = tables.new_trial_folder(self.folder, number)
        return self.names[trial.trial_id]

    def try_again(self, trial_id: str) -> None:
        """Give the trial to Tune once more, as a new one, after Tune gave it up."""
        self.begun.append(self.numbers.pop(trial_id))

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing, because the recorder tells the plan."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Save nothing, because the plan follows from the rows of the trials table."""


class FinishedTrial:
    """What a scheduler is shown of a trial that ended before the study was resumed."""

    def __init__(self, number: int) -> None:
        self.trial_id, self.config = f"ended-{number}", {"trial": number, "phase": Phase.SEARCH}


class _SearchOnly(TrialScheduler):  # type: ignore[misc]
    """A scheduler that stops trials of the search phase only, and no trial at its last epoch.

    A trial at its last epoch ends anyway. If it were killed while it shuts down, Ray Train would
    leak its resources, and the next trial would wait for them for ever. `reported` are the epochs
    that trials had reported before the study was resumed.
    """

    def __init__(self, reported: Epochs, **how: Any) -> None:
        super().__init__(time_attr="epoch", metric=METRIC, mode="max", grace_period=1, **how)
        self.reported = dict(reported)

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        super().on_trial_add(controller, trial)
        if trial.config["phase"] == Phase.SEARCH:
            # `pop`, because a trial that failed is added again.
            for row in self.reported.pop(trial.config["trial"], ()):
                super().on_trial_result(controller, trial, row)

    def on_trial_result(self, controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["phase"] != Phase.SEARCH or result["last"]:
            return str(self.CONTINUE)
        decision: str = super().on_trial_result(controller, trial, result)
        return decision


class Asha(_SearchOnly, ASHAScheduler):  # type: ignore[misc]
    """ASHA (Li et al., arXiv:1810.05934): after 1, 3, 9, … epochs only the best third continue."""

    def __init__(self, reported: Epochs, max_epochs: int) -> None:
        super().__init__(reported, max_t=max_epochs, reduction_factor=3)


class Median(_SearchOnly, MedianStoppingRule):  # type: ignore[misc]
    """The median stopping rule (Golovin et al., KDD 2017, p. 1487): stop a trial whose best
    accuracy so far is below the median of the other trials' running means."""

    def __init__(self, reported: Epochs, max_epochs: int) -> None:
        super().__init__(reported)

    def on_trial_add(self, controller: Any, trial: Trial) -> None:
        super().on_trial_add(controller, trial)
        self._stopped_trials.discard(trial)  # replaying its epochs may have marked it

    def on_trial_complete(self, controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        if "epoch" in result:  # a trial that had reported all its epochs before has no result
            super().on_trial_complete(controller, trial, result)

    def _on_insufficient_samples(self, *_: Any) -> str:
        return str(self.CONTINUE)  # Tune would pause the first trials and start them again


def scheduler(plan: Plan, reported: Epochs) -> TrialScheduler:
    """Return the scheduler of a study. `reported` are the epochs of each trial so far, if the study
    is resumed."""
    named = policy(plan.tuning).stops
    if named is None or plan.epochs == 1:
        return FIFOScheduler()
    stops: _SearchOnly = globals()[named](reported, plan.epochs)
    for number in plan.rows:
        if plan.trials[number].phase == Phase.SEARCH:
            stops.on_trial_add(None, FinishedTrial(number))
    return stops
