"""A study that starts from another one, without training anything."""

from typing import Any

import pytest
from test_plan import BASE, Simulation
from test_search import walk

from mnist_ray import search
from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.search.earlier import TAKEN


def earlier(
    study: TuneConfig, base: Recipe = BASE, **how: Any
) -> tuple[search.Earlier, Simulation]:
    """What a simulated study found, and the study."""
    done = Simulation(study, base=base, **how)
    rows = [
        {**base.replace(**done.plan.trials[row["trial"]].changes).model_dump(), **row}
        for row in done.rows
    ]
    recipe = base.model_dump()
    return search.Earlier(
        "old", recipe, search.configurations(rows, recipe, list(done.plan.dimensions))
    ), done


@pytest.mark.parametrize("scheduler", ["fifo", "one-rung"])
def test_the_best_come_first_by_their_confirmation_then_by_the_search(scheduler: str) -> None:
    study = TuneConfig(num_trials=12, scheduler=scheduler, confirm=2)
    old, done = earlier(
        study,
        accuracy=lambda trial: (
            -trial.changes["lr"] if trial.phase == "confirm" else trial.changes["lr"]
        ),
    )
    plan = done.plan
    known = {each.trial: each for each in old.trials}
    assert sorted(known) == plan.configured  # each configuration once
    for number, each in known.items():
        assert each.accuracy == plan.rows[number]["best_accuracy"]
        assert {name: each.values[name] for name in plan.dimensions} == {
            name: plan.trials[number].sampled[name] for name in plan.dimensions
        }
    order = [*plan.confirmed(), *plan.ranked("search"), *plan.ranked("screen")]
    firsts = [plan.trials[number].repeats for number in order]
    firsts = [
        first if first is not None else number for first, number in zip(firsts, order, strict=True)
    ]
    assert [each.trial for each in old.trials] == list(dict.fromkeys(firsts))
    assert old.trials[0].trial in (plan.winner(), plan.trials[plan.winner() or 0].repeats)


@pytest.mark.parametrize("kind", ["random", "tpe", "grid"])
@pytest.mark.parametrize(
    "space", [{"lr": "choice(0.05, 0.1, 0.2)", "batch_size": "choice(32, 64)"}, {}]
)
def test_a_new_study_tries_the_best_of_the_old_one_first(kind: str, space: dict[str, str]) -> None:
    old, _ = earlier(TuneConfig(num_trials=20))
    study = TuneConfig(search=kind, space=space, num_trials=None if kind == "grid" else 9)
    sampler = search.sampler(study.replace(tries=["lr=0.25"]), BASE, old)
    found = walk(sampler)
    assert [sampler.origin(i) for i in range(2 + TAKEN)] == [
        *("base", "try"),
        *(f"trial {each.trial} of old" for each in old.trials[:TAKEN]),
    ]
    for values, each in zip(found[2:], old.trials[:TAKEN], strict=False):
        assert each.values.items() <= values.items()
        assert set(values) == {*each.values, *sampler.dimensions}
    identities = [search.identity(BASE.replace(**values)) for values in found]
    assert len(set(identities)) == len(found) == sampler.count
    assert any(
        f"starts from old: tries its trials {old.trials[0].trial}, " in each
        for each in sampler.remarks
    )
    # More trials do not change the first ones.
    if kind != "grid":
        longer = search.sampler(study.replace(tries=["lr=0.25"], num_trials=20), BASE, old)
        assert walk(longer)[: len(found)] == found


def test_the_base_recipe_is_not_tried_twice() -> None:
    old, done = earlier(TuneConfig(num_trials=6), accuracy=lambda trial: -trial.changes["lr"])
    assert done.plan.trials[old.trials[0].trial].origin == "base"
    sampler = search.sampler(TuneConfig(), BASE, old)
    assert [sampler.origin(i) for i in range(5)] == [
        "base",
        *(f"trial {each.trial} of old" for each in old.trials[1 : 1 + TAKEN]),
        "sampled",
    ]


def test_tpe_learns_from_the_others_as_if_it_had_trained_them() -> None:
    old, _ = earlier(TuneConfig(num_trials=30, scheduler="fifo"))
    here = BASE.replace(epochs=9)
    sampler = search.sampler(TuneConfig(search="tpe", num_trials=12), here, old)
    assert any("old trained with epochs 5 (here 9)" in each for each in sampler.remarks)
    accuracies: dict[int, float | None] = {}
    for number in range(12):  # everything is 0.1 better with more epochs
        values = sampler.sample(number, accuracies)
        assert values is not None
        accuracies[number] = values["lr"] + 0.1
    known = [
        (trial.params, trial.value) for trial in sampler.optuna.trials if trial.value is not None
    ]
    shown = {tuple(params.items()): value for params, value in known if len(params) == 3}
    for each in old.trials:
        if each.values["lr"] >= 0.02:  # not the base recipe's
            values = {name: each.values[name] for name in sampler.dimensions}
            assert shown[tuple(values.items())] == pytest.approx(each.accuracy + 0.1)
    # It does not draw at random any more.
    alone = walk(search.sampler(TuneConfig(search="tpe", num_trials=12, base=False), here))
    assert not [values for values in walk(sampler)[8:] if values in alone]


def test_what_lies_outside_the_space_is_not_learned_from_and_said() -> None:
    old, _ = earlier(TuneConfig(num_trials=30, scheduler="fifo"))
    inside = [each for each in old.trials if 0.05 <= each.values["lr"] <= 0.1]
    space = {**search.space_of(TuneConfig()), "lr": "loguniform(0.05, 0.1)"}
    sampler = search.sampler(TuneConfig(search="tpe", space=space), BASE, old)
    assert len(sampler.known) == len(inside) > 0
    assert any(f"{30 - len(inside)} lie outside this space" in each for each in sampler.remarks)
    # The best are tried nevertheless, as --try may name what lies outside.
    assert sampler.first[1]["lr"] == old.trials[0].values["lr"] > 0.1
    # Where momentum is fixed, nothing that had another one tells about the lr alone.
    sampler = search.sampler(
        TuneConfig(search="tpe", space={"lr": "uniform(0.05, 0.1)"}), BASE, old
    )
    assert sampler.known == []
    assert any("30 lie outside this space" in each for each in sampler.remarks)
    # A dimension that was fixed there has its value from there.
    space = {**search.space_of(TuneConfig()), "weight_decay": "loguniform(0.00001, 0.001)"}
    sampler = search.sampler(TuneConfig(search="tpe", space=space, num_trials=40), BASE, old)
    assert {values["weight_decay"] for values, _ in sampler.known} == {BASE.weight_decay}
    walk(sampler)


def test_a_study_without_a_result_of_what_is_repeated_learns_nothing() -> None:
    old, _ = earlier(TuneConfig(num_trials=20))
    sampler = search.sampler(TuneConfig(search="tpe", num_trials=20), BASE, old)
    failed: dict[int, float | None] = dict.fromkeys(range(20))
    for number in range(20):
        assert sampler.sample(number, failed)
    assert not [trial for trial in sampler.optuna.trials if trial.value is not None]


def test_what_a_new_study_sets_itself_is_not_taken() -> None:
    space = {"seed": "choice(1, 2, 3)", "epochs": "choice(2, 3)", "lr": "choice(0.1, 0.2)"}
    old, _ = earlier(TuneConfig(space=space, num_trials=12, scheduler="fifo", confirm=0))
    sampler = search.sampler(TuneConfig(), BASE, old)
    assert not {"seed", "epochs"} & {name for values in sampler.first for name in values}


def test_a_study_that_nothing_can_be_taken_from_is_refused() -> None:
    space = {"batch_size": "choice(512, 1024)", "lr": "choice(0.1, 0.2)"}
    old, _ = earlier(TuneConfig(space=space, num_trials=4, base=False))
    with pytest.raises(UserError, match="none of its configurations is valid with this recipe: ba"):
        search.sampler(TuneConfig(), BASE.replace(train_size=300), old)
    with pytest.raises(UserError, match="base, try and start_from name 4 already; raise it"):
        search.sampler(TuneConfig(num_trials=3), BASE, old)
    failed, _ = earlier(TuneConfig(num_trials=4), accuracy=lambda trial: None)
    assert failed.trials == []
