"""Spaces and samplers, without training anything."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray import search
from mnist_ray.config import STUDY_RECIPE, TrainConfig, TuneConfig
from mnist_ray.errors import UserError

BASE = TrainConfig(**STUDY_RECIPE)


def test_the_default_spaces_are_valid() -> None:
    for study, trials in ((TuneConfig(), 6), (TuneConfig(search="grid"), 8)):
        dimensions = search.parse(study.dimensions(), BASE)
        assert set(dimensions) == {"dropout", "lr", "momentum"}
        assert search.trials(study, dimensions) == trials


def test_every_kind_of_field_can_be_a_dimension() -> None:
    space = {
        "lr": "loguniform(1e-3, 1)",
        "dropout": "uniform(0, 0.5)",
        "epochs": "randint(1, 3)",
        "train_size": "choice(1000, 50000)",
        "schedule": "choice(constant, one-cycle)",
        "batch_norm": "choice(true, false)",
        "label_smoothing": "choice(0, 0.1)",
        "seed": "choice(0, 1, 2)",
    }
    dimensions = search.parse(space, BASE)
    assert dimensions["schedule"].values == ("constant", "one-cycle")
    assert dimensions["batch_norm"].values == (True, False)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("droput", "uniform(0, 1)", "space has droput, but can only have lr, momentum"),
        ("holdout", "choice(1, 2)", "space has holdout, but can only have"),
        ("num_workers", "choice(1, 2)", "space has num_workers, but can only have"),
        ("lr", "0.1", "must be uniform(a, b), loguniform(a, b)"),
        ("lr", "normal(0, 1)", "must be uniform(a, b), loguniform(a, b)"),
        ("lr", "__import__('os')", "must be uniform(a, b), loguniform(a, b)"),
        ("lr", "uniform()", "has no list of values in its brackets"),
        ("lr", "uniform([1], 2)", "has no list of values in its brackets"),
        ("lr", "uniform(0.1)", "uniform takes two numbers"),
        ("lr", "uniform(a, b)", "uniform takes two numbers"),
        ("lr", "uniform(.nan, 1)", "uniform takes two numbers"),
        ("lr", "uniform(0.2, 0.1)", "its lower end 0.2 is not below its upper end 0.1"),
        ("lr", "loguniform(0, 0.1)", "its lower end 0 must be above 0"),
        ("lr", "uniform(0.1, 11)", "lr is 11, but must be a number, above 0, at most 10"),
        ("dropout", "uniform(0, 1.5)", "dropout is 1.5, but must be a number, at least 0"),
        ("batch_size", "uniform(500, 1000)", "batch_size takes randint or choice"),
        ("batch_norm", "uniform(0, 1)", "batch_norm takes choice"),
        ("nesterov", "randint(0, 1)", "nesterov takes choice"),
        ("lr", f"uniform(0.1, {'9' * 400})", "uniform takes two numbers"),
        ("lr", "randint(1, 2)", "lr takes uniform, loguniform or choice"),
        ("lr", "choice(2020-13-45)", "lr is 2020-13-45, but must be a number"),
        ("epochs", "randint(1.5, 3)", "randint takes two whole numbers"),
        ("schedule", "choice(cosine)", "schedule is cosine, but must be one of"),
        ("momentum", "choice(0, 0.9)", "nesterov is on, but momentum is 0"),
    ],
)
def test_a_bad_space_is_refused_before_anything_runs(name: str, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.parse({name: text}, BASE)
    assert says in str(caught.value)


@given(
    st.sampled_from(sorted(TrainConfig.model_fields)),
    st.text(max_size=30)
    | st.from_regex(r"(uniform|loguniform|randint|choice)\([^\n]*\)", fullmatch=True),
)
def test_whatever_is_written_is_read_or_refused(name: str, text: str) -> None:
    with contextlib.suppress(UserError):
        search.parse({name: text}, BASE)


@given(
    low=st.floats(1e-6, 0.85),
    width=st.floats(1e-6, 0.04),
    kind=st.sampled_from(["uniform", "loguniform"]),
)
def test_what_is_sampled_is_accepted(low: float, width: float, kind: str) -> None:
    for value in sampled({"dropout": f"{kind}({low}, {low + width})"}, 20):
        assert low <= value <= low + width
        BASE.replace(dropout=value)


def test_randint_includes_both_ends() -> None:
    assert set(sampled({"epochs": "randint(1, 3)"}, 100)) == {1, 2, 3}


def test_a_grid_is_every_combination() -> None:
    study = TuneConfig(search="grid", space={"lr": "choice(0.1, 0.2)", "dropout": "choice(0, 0.1)"})
    dimensions = search.parse(study.dimensions(), BASE)
    assert search.trials(study, dimensions) == 4
    sampler = search.Sampler(study, dimensions, seed=0)
    variants = [sampler.sample(number, {}) for number in range(4)]
    assert len({(v["lr"], v["dropout"]) for v in variants if v}) == 4


def sampled(space: dict[str, str], n: int) -> list[Any]:
    """What random search samples for the one dimension of `space`."""
    study = TuneConfig(num_trials=n, space=space)
    sampler = search.Sampler(study, search.parse(space, BASE), seed=0)
    configurations = [sampler.sample(number, {}) for number in range(n)]
    return [value for each in configurations if each for value in each.values()]


@pytest.mark.parametrize(
    ("study", "says"),
    [
        (TuneConfig(search="grid", space={"lr": "uniform(0.1, 0.2)"}), "write lr=choice(a, b, …)"),
        (
            TuneConfig(search="grid", space={"lr": "choice(0.1, 0.2)"}, num_trials=3),
            "num_trials is 3, but the grid has 2 combinations",
        ),
    ],
)
def test_a_grid_that_is_none_is_refused(study: TuneConfig, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.trials(study, search.parse(study.dimensions(), BASE))
    assert says in str(caught.value)
