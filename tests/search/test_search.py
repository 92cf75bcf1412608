"""Spaces and samplers, without training anything."""

import contextlib
import itertools
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray import search
from mnist_ray.config import STUDY_RECIPE, Recipe, TuneConfig
from mnist_ray.errors import UserError

BASE = Recipe(**STUDY_RECIPE)


def test_the_default_spaces_are_valid() -> None:
    for study, trials in ((TuneConfig(), 6), (TuneConfig(search="grid"), 9)):
        sampler = search.sampler(study, BASE)
        assert set(sampler.dimensions) == {"dropout", "lr", "momentum"}
        assert sampler.count == trials


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
        ("batch_size", "uniform(500, 1000)", "batch_size takes randint, lograndint or choice"),
        ("batch_norm", "uniform(0, 1)", "batch_norm takes choice"),
        ("nesterov", "randint(0, 1)", "nesterov takes choice"),
        ("lr", f"uniform(0.1, {'9' * 400})", "uniform takes two numbers"),
        ("lr", "randint(1, 2)", "lr takes uniform, loguniform or choice"),
        ("lr", "choice(2020-13-45)", "lr is 2020-13-45, but must be a number"),
        ("epochs", "randint(1.5, 3)", "randint takes whole numbers"),
        ("epochs", "lograndint(1, 3.0)", "lograndint takes whole numbers"),
        ("epochs", "randint(1, 3, 0.5)", "randint takes whole numbers"),
        ("epochs", "randint(1, 3, 1, 1)", "randint takes two numbers, and a step"),
        ("epochs", "lograndint(0, 3)", "its lower end 0 must be above 0"),
        ("epochs", "lograndint(1, 9, 2)", "lograndint takes two numbers, and no step"),
        ("lr", "loguniform(0.1, 0.9, 0.1)", "loguniform takes two numbers, and no step"),
        ("lr", "lograndint(1, 2)", "lr takes uniform, loguniform or choice"),
        ("lr", "qloguniform(1, 2)", "must be uniform(a, b), loguniform(a, b), randint(a, b), logr"),
        ("lr", "uniform(0.1, 0.5, 0)", "its step 0 must be above 0"),
        ("lr", "uniform(0.1, 0.5, -0.1)", "its step -0.1 must be above 0"),
        ("lr", "uniform(0.1, 0.5, .nan)", "uniform takes two numbers, and a step"),
        ("lr", "uniform(0.1, 0.5, .inf)", "uniform takes two numbers, and a step"),
        ("lr", "uniform(0.1, 0.5, true)", "uniform takes two numbers, and a step"),
        ("lr", "uniform(0.1, 0.5, null)", "uniform takes two numbers, and a step"),
        ("lr", "uniform(0.1, 0.5, 0.5)", "its step 0.5 is longer than the range"),
        ("lr", "uniform(0.1, 0.5, 1e-30)", "its step 1e-30 is too short: at most 1000000000 steps"),
        ("lr", "uniform(0.1, 0.5, 0.15)", "miss its upper end 0.5; the last one below it is 0.4."),
        ("epochs", "randint(1, 10, 4)", "steps of 4 from 1 miss its upper end 10; the last one be"),
        ("schedule", "choice(cosine)", "schedule is cosine, but must be one of"),
        ("momentum", "choice(0, 0.9)", "nesterov is on, but momentum is 0"),
        ("batch_size", "choice(64, 128, 64)", "but 64 is there twice; leave one out"),
        ("lr", "choice(0.1, 1e-1)", "but 0.1 is there twice"),
        ("train_size", "choice(1000, 1000.0)", "but 1000 is there twice"),
        ("precision", "choice(auto, bf16)", "auto is fp32 or bf16, whichever the machine is fast"),
    ],
)
def test_a_bad_space_is_refused_before_anything_runs(name: str, text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.parse({name: text}, BASE)
    assert says in str(caught.value)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(Recipe.model_fields)),
    st.text(max_size=30)
    | st.from_regex(r"(log)?(uniform|randint)\([^\n]*\)", fullmatch=True)
    | st.from_regex(r"(log)?(uniform|randint)\([0-9.e-]+(,[0-9.e-]+){1,2}\)", fullmatch=True)
    | st.from_regex(r"choice\([^\n]*\)", fullmatch=True),
)
def test_whatever_is_written_is_read_or_refused(name: str, text: str) -> None:
    with contextlib.suppress(UserError):
        search.parse({name: text}, BASE)


@settings(deadline=None)
@given(
    low=st.floats(1e-6, 0.85),
    width=st.floats(1e-6, 0.04),
    kind=st.sampled_from(["uniform", "loguniform"]),
)
def test_what_is_sampled_is_accepted(low: float, width: float, kind: str) -> None:
    for value in sampled({"dropout": f"{kind}({low}, {low + width})"}, 20):
        assert low <= value <= low + width
        BASE.replace(dropout=value)


@pytest.mark.parametrize("kind", ["random", "tpe", "grid"])
@pytest.mark.parametrize(
    ("name", "text", "every"),
    [
        ("batch_size", "randint(1, 3)", {1, 2, 3}),
        ("batch_size", "randint(16, 64, 16)", {16, 32, 48, 64}),
        ("batch_size", "lograndint(1, 4)", {1, 2, 3, 4}),
        ("dropout", "uniform(0, 0.5, 0.1)", {0, 0.1, 0.2, 0.3, 0.4, 0.5}),
        ("lr", "uniform(0.01, 0.09, 0.04)", {0.01, 0.05, 0.09}),
        ("shift", "uniform(0, 4, 2)", {0, 2, 4}),
    ],
)
def test_a_range_of_finite_size_includes_both_ends_and_every_step(
    name: str, text: str, every: set[float], kind: str
) -> None:
    found = sampled({name: text}, None if kind == "grid" else 100, kind)
    assert len(found) == len(every)
    assert set(found) == every


@given(
    low=st.integers(1, 50),
    steps=st.integers(1, 6),
    step=st.integers(1, 20),
    scale=st.sampled_from([1000, 10**6, 10**9]),
    kind=st.sampled_from(["uniform", "randint", "lograndint"]),
    search_=st.sampled_from(["random", "tpe"]),
)
@settings(deadline=None, max_examples=100)
def test_whatever_is_sampled_lies_on_the_steps_of_its_range(
    low: int, steps: int, step: int, scale: int, kind: str, search_: str
) -> None:
    step = 1 if kind == "lograndint" else step
    scale = scale if kind == "uniform" else 1
    # Written in decimal, so that the values are the floats that people would write.
    places = [low + i * step for i in range(steps + 1)]
    written = [str(Decimal(place) / scale) for place in places]
    third = "" if kind == "lograndint" else f", {Decimal(step) / scale}"
    name = "weight_decay" if kind == "uniform" else "batch_size"
    dimension = search.parse({name: f"{kind}({written[0]}, {written[-1]}{third})"}, BASE)[name]
    expected = [float(text) if kind == "uniform" else int(text) for text in written]
    assert dimension.size == len(expected) == len(dimension.all())
    assert list(dimension.all()) == expected
    assert dimension.log == (kind == "lograndint")
    found = sampled({name: f"{kind}({written[0]}, {written[-1]}{third})"}, 40, search_)
    assert sorted(found) == expected  # it ends when all are tried, and both ends are among them
    assert {type(value) for value in found} == {type(expected[0])}
    assert all(map(dimension.has, found))
    assert not dimension.has(expected[0] + (expected[1] - expected[0]) / 3)
    # A value between the steps, such as the base recipe's, can still be told to a sampler.
    for value in (expected[0] / 3, (expected[0] + expected[-1]) / 2.1, *expected):
        reached = dimension.reaching(value if kind == "uniform" else max(1, int(value)))
        assert reached is not None
        reached.distribution()


@given(low=st.integers(1, 500), width=st.integers(1, 5000), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_whole_numbers_on_a_logarithmic_scale(low: int, width: int, seed: int) -> None:
    space = {"batch_size": f"lograndint({low}, {low + width})", "lr": "uniform(0.1, 0.2)"}
    study = TuneConfig(num_trials=20, space=space, base=False)
    found = [each["batch_size"] for each in walk(search.sampler(study, BASE.replace(seed=seed)))]
    assert all(type(value) is int and low <= value <= low + width for value in found)


def test_a_logarithmic_scale_gives_each_power_its_share() -> None:
    space = {"batch_size": "lograndint(1, 1000)", "lr": "uniform(0.1, 0.2)"}
    found = walk(search.sampler(TuneConfig(num_trials=300, space=space, base=False), BASE))
    shares = [sum(10**i <= each["batch_size"] < 10 ** (i + 1) for each in found) for i in range(3)]
    assert all(70 <= share <= 130 for share in shares)  # a third each, and not 3, 27 and 270


def test_a_long_list_of_steps_is_not_made() -> None:
    dimension = search.parse({"dropout": "uniform(0, 0.9, 0.000000001)"}, BASE)["dropout"]
    assert dimension.size == 900_000_001
    study = TuneConfig(num_trials=5, space={"dropout": "uniform(0, 0.9, 0.000000001)"}, base=False)
    assert len(walk(search.sampler(study, BASE))) == 5


def test_tpe_knows_of_the_steps() -> None:
    space = {"dropout": "uniform(0, 0.5, 0.1)", "batch_size": "lograndint(16, 256)"}
    sampler = search.sampler(TuneConfig(search="tpe", space=space), BASE)
    assert sampler.distributions["dropout"].step == 0.1
    assert sampler.distributions["batch_size"].log


def test_a_grid_is_every_combination() -> None:
    study = TuneConfig(search="grid", space={"lr": "choice(0.1, 0.2)", "dropout": "choice(0, 0.1)"})
    sampler = search.sampler(study.replace(base=False), BASE)
    assert sampler.count == 4
    variants = [sampler.sample(number, {}) for number in range(4)]
    assert len({(v["lr"], v["dropout"]) for v in variants if v}) == 4
    assert search.sampler(study, BASE).count == 5


def sampled(space: dict[str, str], n: int | None, kind: str = "random") -> list[Any]:
    """Return the values that a study samples for the one dimension of `space`."""
    study = TuneConfig(search=kind, num_trials=n, space=space, base=False)
    return [value for each in walk(search.sampler(study, BASE)) for value in each.values()]


@pytest.mark.parametrize(
    ("study", "says"),
    [
        (TuneConfig(search="grid", space={"lr": "uniform(0.1, 0.2)"}), "write lr=choice(a, b, …)"),
        (
            TuneConfig(search="grid", space={"lr": "choice(0.1, 0.2)"}, num_trials=4),
            "num_trials is 4, but the grid has 2 combinations",
        ),
    ],
)
def test_a_grid_that_is_none_is_refused(study: TuneConfig, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.sampler(study, BASE)
    assert says in str(caught.value)


def walk(sampler: search.Sampler) -> list[dict[str, Any]]:
    """Return all configurations of a sampler. It is told an accuracy after each, which rises with
    the lr and the batch size."""
    accuracies: dict[int, float | None] = {}
    found = []
    for number in range(sampler.count):
        values = sampler.sample(number, accuracies)
        assert values is not None
        found.append(values)
        accuracies[number] = values.get("lr", 0) + values.get("batch_size", 0) / 10_000
    return found


@pytest.mark.parametrize("kind", ["random", "tpe", "grid"])
@pytest.mark.parametrize("base", [True, False])
@pytest.mark.parametrize(
    "space",
    [
        {"batch_size": "choice(64, 128, 256)"},
        {"batch_size": "randint(1, 9)", "schedule": "choice(constant, one-cycle)"},
        {"nesterov": "choice(true, false)", "momentum": "choice(0, 0.5, 0.9)"},
        {"rotation": "choice(0, 10)", "augment_until": "choice(0.5, 0.75, 1)"},
        {"train_size": "choice(null, 50000, 20000)", "batch_norm": "choice(true, false)"},
    ],
)
def test_a_finite_space_is_walked_to_its_end_without_repetition(
    space: dict[str, str], base: bool, kind: str
) -> None:
    if kind == "grid" and "randint" in str(space):
        space = {**space, "batch_size": "choice(1, 2, 3)"}
    study = TuneConfig(search=kind, space=space, base=base)
    if kind != "grid":
        study = study.replace(num_trials=500)
    sampler = search.sampler(study, BASE)
    found = walk(sampler)
    known = [search.identity(BASE.replace(**values)) for values in found]
    assert len(set(known)) == len(known) == sampler.count
    # Every valid combination is there, and so is the base recipe, even from outside the space.
    every = set()
    for values in itertools.product(*(dim.all() for dim in sampler.dimensions.values())):
        with contextlib.suppress(UserError):
            named = dict(zip(sampler.dimensions, values, strict=True))
            every.add(search.identity(BASE.replace(**named)))
    assert set(known) == every | ({search.identity(BASE)} if base else set())
    assert found == walk(search.sampler(study, BASE))  # the same seed
    if kind != "grid":
        assert any(f"there are only {len(found)} configurations" in it for it in sampler.remarks)


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_part_of_a_finite_space_has_no_repetition_either(kind: str) -> None:
    space = {"batch_size": "randint(1, 100)", "schedule": "choice(constant, one-cycle)"}
    found = walk(search.sampler(TuneConfig(search=kind, space=space, num_trials=60), BASE))
    assert len({tuple(values.items()) for values in found}) == 60
    more = walk(search.sampler(TuneConfig(search=kind, space=space, num_trials=61), BASE))
    assert kind == "tpe" or more[:60] == found


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_combinations_that_are_not_valid_are_sampled_around(kind: str) -> None:
    space = {"nesterov": "choice(true, false)", "momentum": "choice(0, 0.9)"}
    for more in ({}, {"lr": "uniform(0.01, 0.3)"}):
        study = TuneConfig(search=kind, space={**space, **more}, num_trials=20)
        sampler = search.sampler(study, BASE)
        (remark,) = [remark for remark in sampler.remarks if "left out" in remark]
        assert remark.startswith("1 of 4 combinations are left out, as they are not valid: ")
        for values in walk(sampler):
            BASE.replace(**values)
    study = TuneConfig(search=kind, space={"batch_size": "randint(64, 128)"}, num_trials=100)
    two_workers = search.sampler(study.replace(workers_per_trial=2), BASE)
    assert sorted(each["batch_size"] for each in walk(two_workers)) == [*range(64, 129, 2)]


@pytest.mark.parametrize(
    "asked",
    [
        {"space": {"batch_size": "choice(64, 65)"}},
        {"tries": ["batch_size=65"]},
        {"space": {"batch_size": "choice(65)", "lr": "uniform(0.1, 0.2)"}},
    ],
)
def test_what_the_workers_of_a_trial_cannot_share_is_refused(asked: Any) -> None:
    study = TuneConfig(workers_per_trial=2, **asked)
    with pytest.raises(UserError, match="batch_size is 65, which 2 workers cannot share equally"):
        search.sampler(study, BASE)
    search.sampler(study.replace(workers_per_trial=1), BASE)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (
            {"nesterov": "choice(true)", "momentum": "choice(0)"},
            "space has 1 combinations, but only 0 are valid: nesterov is on, but momentum is 0",
        ),
        (
            {"batch_size": "choice(100, 200)", "train_size": "randint(1, 50)"},
            "space has 100 combinations, but only 0 are valid: batch_size is 100, more than the 1",
        ),
        (
            {"batch_size": "choice(200)", "train_size": "choice(50)", "lr": "uniform(0.1, 0.2)"},
            "only 0 are valid: batch_size is 200, more than the 50 training images",
        ),
    ],
)
def test_a_space_without_a_valid_configuration_is_refused(space: dict[str, str], says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.sampler(TuneConfig(space=space), BASE)
    assert says in str(caught.value)


def test_the_base_recipe_and_what_is_to_be_tried_come_first() -> None:
    tries = ["lr=0.2 momentum=0.9", "weight-decay=0, lr=0.1"]
    sampler = search.sampler(TuneConfig(tries=tries, num_trials=8), BASE)
    found = walk(sampler)
    named = {name: getattr(BASE, name) for name in ("dropout", "lr", "momentum")}
    assert found[:3] == [
        named,
        {**named, "lr": 0.2, "momentum": 0.9},
        {**named, "lr": 0.1, "weight_decay": 0.0},
    ]
    assert [sampler.origin(number) for number in range(8)] == ["base", "try", "try"] + [
        "sampled"
    ] * 5
    # The sampled configurations are the same as without a base recipe and tries.
    alone = search.sampler(TuneConfig(base=False, num_trials=5), BASE)
    assert walk(alone) == found[3:]
    # A try that equals the base recipe is not tried again.
    same = search.sampler(TuneConfig(tries=[f"lr={BASE.lr}"], num_trials=3), BASE)
    assert [same.origin(number) for number in range(3)] == ["base", "sampled", "sampled"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "try has lr, but must be like 'lr=0.1 momentum=0.9'"),
        ("", "try is empty"),
        ("lr=", "try has lr=, but must be like"),
        ("lr=20", "try has lr=20: lr is 20, but must be a number, above 0, at most 10"),
        ("lr=true", "lr is true, but must not be true or false"),
        ("lr=[1", "try has lr=[1, whose value cannot be read"),
        ("droput=0.1", "try has droput, but can only have lr, momentum"),
        ("holdout=1", "try has holdout, but can only have lr, momentum"),
        ("lr=0.1 lr=0.2", "try has lr twice"),
        ("momentum=0", "try has momentum=0: nesterov is on, but momentum is 0"),
        ("seed=3", "try has seed, but a confirmation has seeds of its own"),
        ("epochs=9", "try has epochs, but the scheduler one-rung"),
    ],
)
def test_what_cannot_be_tried_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.sampler(TuneConfig(tries=[text]), BASE)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_trials": 1}, "num_trials is 1, which the base recipe takes up"),
        ({"num_trials": 2, "tries": ["lr=0.1", "lr=0.2"]}, "base and try name 3 already"),
        ({"base": False, "confirm_base": True}, "the base recipe is left out"),
        ({"confirm": 0, "confirm_base": True}, "confirm_base is True, but confirm is 0"),
        ({"space": {"precision": "choice(fp32, bf16)"}}, "the base recipe's is auto"),
    ],
)
def test_a_base_recipe_that_has_no_place_is_refused(settings: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        search.sampler(TuneConfig(**settings), BASE)
    assert says in str(caught.value)


def test_tpe_learns_from_the_base_recipe_and_from_what_was_tried() -> None:
    space = {"lr": "loguniform(0.02, 0.3)", "batch_size": "choice(64, 256)"}
    # The base lr is below its range, the base batch size no choice, and weight_decay no dimension.
    tries = ["lr=0.2 batch_size=64", "weight_decay=0 batch_size=64"]
    study = TuneConfig(search="tpe", space=space, tries=tries, num_trials=12)
    sampler = search.sampler(study, BASE)
    walk(sampler)
    seen = [trial.params for trial in sampler.optuna.trials if trial.value is not None]
    assert {"lr": BASE.lr} in seen
    assert {"lr": 0.2, "batch_size": 64} in seen
    assert len(seen) == sampler.told - 1  # the one with another weight decay is left out
    known = {"lr": BASE.lr}, {"lr": 0.2, "batch_size": 64}
    assert all(0.02 <= each["lr"] <= 0.3 for each in seen if each not in known)


def test_tpe_keeps_to_the_space_when_it_knows_something_outside_of_it() -> None:
    space = {"lr": "loguniform(0.02, 0.3)", "batch_size": "randint(64, 256)"}
    base = BASE.replace(lr=0.001, batch_size=512)
    study = TuneConfig(search="tpe", space=space, num_trials=40)
    for values in walk(search.sampler(study, base))[1:]:
        assert 0.02 <= values["lr"] <= 0.3
        assert 64 <= values["batch_size"] <= 256


def test_a_sampler_from_outside_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.samplers import NSGAIISampler
    from optuna.search_space import intersection_search_space

    entry = search.Method(
        "evolves the better ones",
        lambda seed: NSGAIISampler(seed=seed, population_size=4),
        learns=True,
    )
    monkeypatch.setitem(search.SAMPLERS, "nsga2", entry)
    study = TuneConfig(search="nsga2", num_trials=30)
    sampler = search.sampler(study, BASE)
    found = walk(sampler)
    assert found == walk(search.sampler(study, BASE))
    assert len({search.identity(BASE.replace(**values)) for values in found}) == 30
    # It learns: for the last configuration, it knew all accuracies that the lag allows.
    assert sampler.told == 30 - search.LAG
    # But not of the base recipe, whose lr is outside the space: Optuna would draw lr at random.
    ended = [trial for trial in sampler.optuna.trials if trial.value is not None]
    assert len(ended) == sampler.told - 1
    assert intersection_search_space(ended) == sampler.distributions
    inside = search.sampler(study, BASE.replace(lr=0.1))
    walk(inside)
    assert sum(trial.value is not None for trial in inside.optuna.trials) == inside.told
    with pytest.raises(UserError, match="search is cma, but must be one of random, grid, tpe, ns"):
        search.sampler(TuneConfig(search="cma"), BASE)


def test_a_field_that_no_study_can_vary_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "fixed", (*Recipe.fixed, "schedule"))
    with pytest.raises(UserError, match="space has schedule, but can only have lr, "):
        search.parse({"schedule": "choice(constant, one-cycle)"}, BASE)
    with pytest.raises(UserError, match="try has schedule, but can only have lr, "):
        search.sampler(TuneConfig(tries=["schedule=constant"]), BASE)


def test_a_dimension_that_changes_nothing_is_refused() -> None:
    idle = {"lr": "choice(0.1, 0.2)", "augment_until": "uniform(0.5, 1)"}
    with pytest.raises(UserError, match="space has augment_until, but it changes nothing"):
        search.sampler(TuneConfig(space=idle), BASE)
    search.sampler(TuneConfig(space=idle), BASE.replace(shift=1))
    search.sampler(TuneConfig(space={**idle, "rotation": "choice(0, 5)"}), BASE)
    same = [BASE.replace(augment_until=until) for until in (0.5, 1)]
    assert len({search.identity(each) for each in same}) == 1
    assert len({search.identity(each.replace(shift=1)) for each in same}) == 2
