"""When trials are stopped, without training any."""

from ray.tune.schedulers import FIFOScheduler

from mnist_ray import schedulers
from mnist_ray.config import TuneConfig


class FakeTrial:
    def __init__(self, name: str, phase: str = "search") -> None:
        self.trial_id, self.config = name, {"phase": phase}


def test_asha_stops_weak_trials_early_and_none_at_its_last_epoch() -> None:
    scheduler = schedulers.scheduler(TuneConfig(scheduler="asha"), max_epochs=3)

    def report(trial: FakeTrial, epoch: int, accuracy: float, last: int = 3) -> str:
        result = {"epoch": epoch, "last": epoch == last, schedulers.METRIC: accuracy}
        return scheduler.on_trial_result(None, trial, {**result, "training_iteration": epoch})

    trials = [FakeTrial(str(number)) for number in range(6)]
    for trial in trials:
        scheduler.on_trial_add(None, trial)
    decisions = [report(trial, 1, 0.9 - 0.1 * i) for i, trial in enumerate(trials)]
    assert decisions[0] == "CONTINUE"
    assert decisions[1:] == ["STOP"] * 5
    assert report(trials[0], 2, 0.91) == "CONTINUE"
    assert report(trials[0], 3, 0.1) == "CONTINUE"
    short = FakeTrial("short")
    scheduler.on_trial_add(None, short)
    assert report(short, 1, 0.0, last=1) == "CONTINUE"
    again = FakeTrial("again", "confirm")
    scheduler.on_trial_add(None, again)
    assert report(again, 1, 0.0) == "CONTINUE"


def test_median_stops_what_is_below_the_others() -> None:
    scheduler = schedulers.scheduler(TuneConfig(scheduler="median"), max_epochs=3)
    trials = [FakeTrial(str(number)) for number in range(6)]

    def report(trial: FakeTrial, epoch: int, accuracy: float) -> str:
        result = {"epoch": epoch, "last": epoch == 3, schedulers.METRIC: accuracy}
        return scheduler.on_trial_result(None, trial, result)

    for trial in trials:
        scheduler.on_trial_add(None, trial)
    first = [report(trial, 1, 0.9) for trial in trials[:3]]  # nothing yet to compare with
    assert first == ["CONTINUE"] * 3
    assert report(trials[3], 1, 0.91) == "CONTINUE"
    assert report(trials[4], 1, 0.8) == "STOP"
    assert report(trials[3], 2, 0.5) == "CONTINUE"  # its best so far counts
    assert report(trials[3], 3, 0.5) == "CONTINUE"


def test_without_room_for_a_comparison_all_finish() -> None:
    assert type(schedulers.scheduler(TuneConfig(scheduler="asha"), 1)) is FIFOScheduler
    assert type(schedulers.scheduler(TuneConfig(), 9)) is FIFOScheduler
