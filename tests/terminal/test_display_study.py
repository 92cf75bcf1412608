"""What the display of a study says about the winner and the base recipe."""

from collections.abc import Callable

import pytest
from test_plan import BASE, Simulation

from mnist_ray.config import TuneConfig
from mnist_ray.search.outcome import Phase, against_base
from mnist_ray.search.plan import Planned
from mnist_ray.terminal.study import trained_on


def noisy(base_accuracy: float) -> Callable[[Planned], float]:
    """Return a function from a trial to its accuracy: `base_accuracy` for the base recipe, above
    0.9 for any other, and a little more with each seed."""

    def accuracy(trial: Planned) -> float:
        noise = 0.001 * trial.changes.get("seed", 0)
        if trial.origin == "base":
            return base_accuracy + noise
        return 0.9 + trial.changes["lr"] / 100 + noise

    return accuracy


@pytest.mark.parametrize(
    ("settings", "base_accuracy", "says"),
    [
        (
            {"confirm_base": True},
            0.8,
            [
                "place 3 of 3 in the search; confirmed 80.15 ± 0.07 %, the winner +10.",
                "points; n = 2 tells the difference from noise (Welch's t-test, p = 4.8e-05)",
            ],
        ),
        (
            {},
            0.8,
            [
                "trial 0, place 6 of 6 in the screening; one run each: 80.00%, and",
                "--confirm-base compares them over fresh seeds",
            ],
        ),
        ({"confirm": 0, "scheduler": "fifo"}, 0.8, ["place 6 of 6 in the search; one run each"]),
        ({}, 0.95, ["place 1 of 2 in the search; it is the winner: nothing that was tried beat"]),
        ({"base": False}, 0.95, []),
    ],
)
def test_where_the_base_recipe_came(settings: dict, base_accuracy: float, says: list[str]) -> None:
    plan = Simulation(TuneConfig(**settings), noisy(base_accuracy)).plan
    said = against_base(plan.rows.values(), plan.winner())
    assert bool(said) == bool(says)
    assert all(each in said for each in says), said


def test_a_base_recipe_that_failed_has_no_place() -> None:
    plan = Simulation(
        TuneConfig(), lambda trial: None if trial.origin == "base" else trial.changes["lr"]
    ).plan
    assert against_base(plan.rows.values(), plan.winner()) == "trial 0 failed, and so has no result"
    assert against_base(Simulation(TuneConfig(), lambda trial: None).rows, None) == ""


def test_only_a_winner_that_trained_on_all_images_says_all() -> None:
    space = {"train_size": "choice(10000, null)"}
    study = TuneConfig(search="grid", space=space, scheduler="fifo", base=False)
    for size, says in ((10_000, "10,000 images"), (None, "all 60,000 images")):
        plan = Simulation(study, lambda trial, best=size: trial.changes["train_size"] == best).plan
        (final, _) = plan.ranked(Phase.FINAL)
        assert trained_on(plan, final) == says
    plan = Simulation(TuneConfig(), base=BASE.replace(train_size=6000)).plan
    assert trained_on(plan, plan.ranked(Phase.FINAL)[0]) == "6,000 images"
