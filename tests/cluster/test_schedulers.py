"""When trials are stopped, without training any."""

from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler

from mnist_ray import search
from mnist_ray.cluster import schedulers
from mnist_ray.config import STUDY_RECIPE, Recipe, TuneConfig
from mnist_ray.search.plan import Plan

BASE = Recipe(**STUDY_RECIPE)


def scheduler_of(name: str, epochs: int = 3) -> Any:
    study = TuneConfig(scheduler=name)
    base = Recipe(**{**STUDY_RECIPE, "epochs": epochs})
    return schedulers.scheduler(Plan(study, base, search.sampler(study, base)), {})


class FakeTrial:
    def __init__(self, name: str | int, phase: str = "search") -> None:
        self.trial_id, self.config = str(name), {"phase": phase, "trial": name}


def test_asha_stops_weak_trials_early_and_none_at_its_last_epoch() -> None:
    scheduler = scheduler_of("asha")

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


@pytest.mark.parametrize("name", ["asha", "median"])
def test_a_scheduler_knows_what_was_reported_before_its_study_was_resumed(name: str) -> None:
    def report(scheduler: Any, trial: FakeTrial, epoch: int, accuracy: float) -> str:
        row = {"epoch": epoch, "last": False, schedulers.METRIC: accuracy}
        return str(scheduler.on_trial_result(None, trial, row))

    accuracies = [0.9, 0.8, 0.95, 0.85, 0.7, 0.97]
    undisturbed = scheduler_of(name)
    decisions = []
    for number, accuracy in enumerate(accuracies):
        trial = FakeTrial(number)
        undisturbed.on_trial_add(None, trial)
        decisions.append(report(undisturbed, trial, 1, accuracy))
    assert set(decisions) == {"CONTINUE", "STOP"}

    # Four had reported, of which three had ended; the fourth goes on.
    study = TuneConfig(scheduler=name)
    plan = Plan(study, BASE, search.sampler(study, BASE))
    reported = {
        number: [{"epoch": 1, "last": False, schedulers.METRIC: accuracy}]
        for number, accuracy in enumerate(accuracies[:4])
    }
    for number in range(4):
        assert plan.next() is not None
        if number < 3:
            plan.tell({"trial": number, "status": "ok", "best_accuracy": accuracies[number]})
    resumed = schedulers.scheduler(plan, reported)
    fourth = FakeTrial(3)
    resumed.on_trial_add(None, fourth)
    later = []
    for number, accuracy in list(enumerate(accuracies))[4:]:
        trial = FakeTrial(number)
        resumed.on_trial_add(None, trial)
        later.append(report(resumed, trial, 1, accuracy))
    assert later == decisions[4:]
    # The fourth reports on, and one that had reported its last epoch ends without another.
    assert report(resumed, fourth, 2, 0.99) == "CONTINUE"
    resumed.on_trial_complete(None, fourth, {})
    fifth = FakeTrial(9)
    resumed.on_trial_add(None, fifth)
    assert report(resumed, fifth, 2, 0.99) == "CONTINUE"


def test_median_stops_what_is_below_the_others() -> None:
    scheduler = scheduler_of("median")
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
    assert type(scheduler_of("asha", epochs=1)) is FIFOScheduler
    assert type(scheduler_of("one-rung")) is FIFOScheduler
