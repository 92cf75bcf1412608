"""Which trials a study runs, and in which order, simulated without training."""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray import search
from mnist_ray.config import STUDY_RECIPE, Recipe, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.search.plan import Plan
from mnist_ray.search.trials import Planned
from mnist_ray.tables.rows import Row

BASE = Recipe(**{**STUDY_RECIPE, "epochs": 5})
PACE = 1e-4
"""Seconds per image."""


class Simulation:
    """Simulates a study on a clock of its own.

    `accuracy` returns the accuracy of a trial, or None for a failure. A trial takes PACE seconds
    per image, times `speed` of its number. `rows` are the rows of the trials in the order in which
    they ended; `planned` is how many trials were planned before the first row and after each row.
    `recorded` rows and the recipes of `unfinished` trials of an earlier simulation resume it, and
    `change` then replaces its settings; `changes` are those of resumed simulations before.
    """

    def __init__(
        self,
        study: TuneConfig,
        accuracy: Callable[[Planned], float | None] = lambda trial: trial.changes["lr"],
        concurrent: int = 1,
        speed: Callable[[int], float] = lambda number: 1.0,
        base: Recipe = BASE,
        recorded: Sequence[Row] = (),
        unfinished: dict[int, Recipe] | None = None,
        change: TuneConfig | None = None,
        changes: Sequence[tuple[int, TuneConfig]] = (),
    ) -> None:
        self.now = 0.0
        self.rows: list[Row] = []
        self.planned = [0]
        newest = change or [study, *(tuning for _, tuning in changes)][-1]
        self.plan = Plan(
            study,
            base,
            search.sampler(newest, base),
            concurrent,
            recorded,
            unfinished,
            lambda: self.now,
            changes,
        )
        running: list[tuple[float, int]] = []
        self.plan.replay()
        self.changes = list(changes)
        if change:
            self.changes.append((self.plan.change(change), change))
        self.unfinished = self.plan.begun()
        go_on = list(self.unfinished)
        while not self.plan.done:
            number = None
            if len(running) < concurrent:
                if go_on:
                    number = go_on.pop(0)
                elif self.plan.next() is not None:
                    number = len(self.plan.trials) - 1
            if number is not None:
                config = base.replace(**self.plan.trials[number].changes)
                images = config.epochs * (60_000 - config.holdout)
                heapq.heappush(running, (self.now + images * PACE * speed(number), number))
            elif running:
                began = self.now
                self.now, number = heapq.heappop(running)
                trial = self.plan.trials[number]
                config = base.replace(**trial.changes)
                value = accuracy(trial)
                self.rows.append(
                    {
                        **trial.changes,
                        "phase": trial.phase,
                        "trial": number,
                        "status": "failed" if value is None else "ok",
                        "best_accuracy": value,
                        "final_accuracy": value,
                        "repeats": trial.repeats,
                        "origin": trial.origin,
                        "epochs_trained": None if value is None else config.epochs,
                        "train_seconds": config.epochs * (60_000 - config.holdout) * PACE,
                        "total_seconds": config.epochs * (60_000 - config.holdout) * PACE,
                    }
                )
                self.planned.append(len(self.plan.trials))
                self.plan.tell(self.rows[-1])
                assert self.now >= began

    def of(self, phase: str) -> list[Planned]:
        return [trial for trial in self.plan.trials if trial.phase == phase]


def test_one_rung_screens_all_and_trains_the_best_in_full() -> None:
    done = Simulation(TuneConfig(num_trials=12, keep=3, confirm=2, confirm_seeds=2))
    screened, searched = done.of("screen"), done.of("search")
    assert len(screened) == 12
    assert all(trial.more == {"epochs": 1} for trial in screened)
    best = sorted((trial.sampled["lr"] for trial in screened), reverse=True)
    assert [trial.changes["lr"] for trial in searched] == best[:3]
    assert all("epochs" not in trial.changes for trial in searched)
    assert [trial.repeats for trial in searched] == done.plan.ranked("screen")[:3]
    confirmed = done.of("confirm")
    assert [(trial.sampled["lr"], trial.more["seed"]) for trial in confirmed] == [
        *((best[0], 1), (best[1], 1)),
        *((best[0], 2), (best[1], 2)),
    ]
    final = done.of("final")
    assert [trial.more for trial in final] == [{"seed": 1, "holdout": 0}, {"seed": 2, "holdout": 0}]
    assert {trial.repeats for trial in final} == {done.plan.winner()}
    counts = {phase: len(done.of(phase)) for phase in ("screen", "search", "confirm", "final")}
    assert counts == done.plan.outline()
    assert done.plan.skipped == []


def test_one_epoch_leaves_nothing_to_screen() -> None:
    done = Simulation(TuneConfig(num_trials=4), base=BASE.replace(epochs=1))
    assert [trial.phase for trial in done.plan.trials[:5]] == ["search"] * 4 + ["confirm"]
    done = Simulation(TuneConfig(num_trials=2))  # all are kept, so none is screened
    assert [trial.phase for trial in done.plan.trials[:3]] == ["search"] * 2 + ["confirm"]


def test_the_confirmation_decides_and_not_the_lucky_run() -> None:
    def accuracy(trial: Planned) -> float:
        lucky = trial.phase == "search" and trial.sampled["lr"] == 0.1
        return 0.999 if lucky else 0.99 - trial.sampled["lr"] / 100

    space = {"lr": "choice(0.1, 0.05, 0.2)"}
    study = TuneConfig(search="grid", space=space, scheduler="fifo", confirm_seeds=3, base=False)
    plan = Simulation(study, accuracy).plan
    assert plan.trials[plan.ranked("search")[0]].sampled == {"lr": 0.1}
    winner = plan.winner()
    assert winner is not None
    assert plan.trials[winner].sampled == {"lr": 0.05}


@pytest.mark.parametrize("name", ["random", "grid", "tpe"])
@pytest.mark.parametrize("scheduler", ["fifo", "one-rung"])
@pytest.mark.parametrize(
    "space", [{}, {"lr": "choice(0.1, 0.2, 0.3)", "batch_size": "choice(32, 64, 128, 256)"}]
)
def test_the_seed_decides_whatever_the_concurrency(
    name: str, scheduler: str, space: dict[str, str]
) -> None:
    def course(concurrent: int, seed: int) -> list[Planned]:
        durations = random.Random(seed)
        lasts = [durations.uniform(0.1, 3) for _ in range(100)]
        count = None if name == "grid" else 12
        study = TuneConfig(search=name, scheduler=scheduler, num_trials=count, space=space)
        return Simulation(study, concurrent=concurrent, speed=lambda i: lasts[i]).plan.trials

    alone = course(1, 0)
    assert len(alone) > 8
    for concurrent, seed in itertools.product((1, 2, 4), (1, 2)):
        assert course(concurrent, seed) == alone


@given(
    name=st.sampled_from(["random", "grid", "tpe"]),
    scheduler=st.sampled_from(["fifo", "one-rung"]),
    concurrent=st.integers(1, 4),
    cut=st.integers(0, 20),
    seed=st.integers(0, 100),
    budget=st.none() | st.floats(100, 400),
    more=st.sampled_from(
        [
            {},
            {"tries": ["lr=0.2"], "confirm_base": True},
            {"space": {"lr": "choice(0.1, 0.2)", "batch_size": "choice(64, 128)"}},
        ]
    ),
)
@settings(deadline=None, max_examples=60)
def test_a_study_that_is_resumed_takes_the_course_that_it_would_have(
    name: str,
    scheduler: str,
    concurrent: int,
    cut: int,
    seed: int,
    budget: float | None,
    more: dict[str, Any],
) -> None:
    study = TuneConfig(search=name, scheduler=scheduler, time_budget=budget, **more)
    durations = random.Random(seed)
    lasts = [durations.uniform(0.1, 3) for _ in range(100)]
    whole = Simulation(study, concurrent=concurrent, speed=lambda i: lasts[i])
    recorded = whole.rows[:cut]
    ended = {row["trial"] for row in recorded}
    unfinished = {
        number: BASE.replace(**whole.plan.trials[number].changes)
        for number in range(whole.planned[len(recorded)])
        if number not in ended
    }
    rest = Simulation(study, concurrent=concurrent, recorded=recorded, unfinished=unfinished)
    assert not ended & {row["trial"] for row in rest.rows}  # none runs again
    assert rest.unfinished == sorted(set(range(max(ended, default=-1) + 1)) - ended)
    assert sorted(rest.plan.rows) == list(range(len(rest.plan.trials)))  # none is missing
    if budget is None:
        assert rest.plan.trials == whole.plan.trials
        assert rest.plan.winner() == whole.plan.winner()
    for number in ended | unfinished.keys():  # whatever the clock says now
        assert rest.plan.trials[number] == whole.plan.trials[number]


def cut_off(
    done: Simulation, count: int, before: Sequence[Row] = ()
) -> tuple[list[Row], dict[int, Recipe]]:
    """What a study leaves that is killed after so many of its rows: these, and the recipes of the
    trials that were running."""
    recorded = [*before, *done.rows[:count]]
    ended = {row["trial"] for row in recorded}
    started = max(done.planned[: count + 1][-1], len(done.unfinished))
    return recorded, {
        number: BASE.replace(**done.plan.trials[number].changes)
        for number in range(started)
        if number not in ended
    }


def key(trial: Planned) -> tuple[Any, ...]:
    """What a trial trains, whatever its number."""
    return (trial.phase, tuple(trial.sampled.items()), tuple(trial.more.items()))


@given(
    name=st.sampled_from(["random", "tpe"]),
    scheduler=st.sampled_from(["fifo", "one-rung"]),
    concurrent=st.integers(1, 4),
    first=st.integers(3, 15),
    more=st.integers(0, 20),
    confirm=st.none() | st.integers(1, 3),
    seeds=st.integers(2, 4),
    cuts=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    seed=st.integers(0, 100),
    space=st.sampled_from(
        [
            {},
            {"lr": "choice(0.1, 0.2, 0.15, 0.05)", "batch_size": "choice(32, 64, 128, 256, 512)"},
            {"lr": "uniform(0.01, 0.2, 0.01)"},
        ]
    ),
)
@settings(deadline=None, max_examples=150)
def test_trials_that_are_added_are_those_of_the_longer_study(
    name: str,
    scheduler: str,
    concurrent: int,
    first: int,
    more: int,
    confirm: int | None,
    seeds: int,
    cuts: tuple[int, int],
    seed: int,
    space: dict[str, str],
) -> None:
    """A study that ended, or was killed somewhere, gets more trials and seeds, is killed again,
    and goes on to its end."""
    durations = random.Random(seed)
    lasts = [durations.uniform(0.1, 3) for _ in range(200)]

    def accuracy(trial: Planned) -> float:
        return random.Random(str(key(trial))).random()

    how: Any = {"accuracy": accuracy, "concurrent": concurrent, "speed": lambda i: lasts[i]}
    study = TuneConfig(search=name, scheduler=scheduler, num_trials=first, space=space)
    longer = study.replace(num_trials=first + more, confirm=confirm, confirm_seeds=seeds)
    if confirm == 1:  # the default is 2, and it cannot get less
        longer = longer.replace(confirm=None)
    short = Simulation(study, **how)
    recorded, running = cut_off(short, cuts[0])
    if not more and longer == study:
        return
    grown = Simulation(study, recorded=recorded, unfinished=running, change=longer, **how)
    after = grown.changes[0][0]
    assert grown.plan.trials[:after] == short.plan.trials[:after]
    assert {row["trial"] for row in recorded} <= set(range(after))
    # It is killed again, and resumed without a change.
    again, running = cut_off(grown, cuts[1], recorded)
    done = Simulation(study, recorded=again, unfinished=running, changes=grown.changes, **how)
    assert done.plan.trials == grown.plan.trials
    assert {row["trial"]: row for row in again}.items() <= done.plan.rows.items()
    assert not {row["trial"] for row in done.rows} & {row["trial"] for row in again}
    # The configurations are those of a study that had so many from its start.
    long = Simulation(longer, **how)
    assert [done.plan.trials[i].sampled for i in done.plan.configured] == [
        trial.sampled for trial in long.plan.trials if trial.repeats is None
    ]
    trained = [key(trial) for trial in done.plan.trials]
    assert len(set(trained)) == len(trained)  # nothing is trained twice
    if scheduler == "fifo":
        assert set(trained) >= {key(trial) for trial in long.of("search")}
    # What is confirmed has every seed, and so do the winner's final runs.
    plan = done.plan
    best = plan.ranked("search")[: plan.confirm]
    confirmed = plan.confirmed()
    assert set(best) <= set(confirmed)
    assert {len(each) for each in confirmed.values()} == {seeds}
    assert len(plan.finals()) == seeds
    assert {plan.trials[i].repeats for i in plan.finals()} == {plan.winner()}
    assert {phase: len(done.of(phase)) for phase in plan.outline()} == plan.outline()
    assert plan.left.total() == 0


@given(budget=st.floats(20, 300), seed=st.integers(0, 20))
@settings(deadline=None, max_examples=50)
def test_a_longer_time_budget_does_what_there_was_no_time_for(budget: float, seed: int) -> None:
    study = TuneConfig(num_trials=12, time_budget=budget, confirm=2)
    base = BASE.replace(seed=seed)
    short = Simulation(study, base=base)
    unlimited = study.replace(time_budget=None)
    grown = Simulation(study, base=base, recorded=short.rows, change=unlimited)
    long = Simulation(unlimited, base=base)
    assert {key(trial) for trial in grown.of("screen")} == {key(t) for t in long.of("screen")}
    assert grown.plan.skipped == []
    assert {len(each) for each in grown.plan.confirmed().values()} == {2}
    assert grown.plan.trials[: len(short.plan.trials)] == short.plan.trials
    if not short.plan.skipped:
        assert not grown.rows


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_trials": 5}, "num_trials is 5, but the study has tried 6 configurations"),
        ({"confirm": 1}, "confirm is 1, but the study has 2, and can only get more"),
        ({"confirm": 0}, "confirm is 0, but the study has 2"),
        ({"confirm_seeds": 1}, "confirm_seeds is 1, but the study has 2"),
        ({"keep": 1, "num_trials": 9, "confirm": 1}, "keep is 1, but the study has 2"),
    ],
)
def test_a_study_gets_more_and_never_less(change: dict[str, Any], says: str) -> None:
    study = TuneConfig(num_trials=6)
    rows = Simulation(study).rows
    with pytest.raises(UserError) as caught:
        Simulation(study, recorded=rows, change=study.replace(**change))
    assert says in str(caught.value)


def test_fewer_trials_than_planned_are_no_fewer_than_tried() -> None:
    study = TuneConfig(num_trials=40, scheduler="fifo")
    recorded, running = cut_off(Simulation(study), 10)
    change = study.replace(num_trials=11)
    done = Simulation(study, recorded=recorded, unfinished=running, change=change)
    assert len(done.plan.configured) == 11
    change = study.replace(num_trials=9)
    with pytest.raises(UserError, match="but the study has tried 10 configurations"):
        Simulation(study, recorded=recorded, unfinished=running, change=change)


def test_a_space_without_further_configurations_gets_none() -> None:
    study = TuneConfig(num_trials=9, space={"lr": "choice(0.1, 0.2)"})
    rows = Simulation(study).rows
    with pytest.raises(UserError, match="the space has only 3 configurations, and all were tried"):
        Simulation(study, recorded=rows, change=study.replace(num_trials=12))
    few = study.replace(num_trials=2)
    done = Simulation(few, recorded=Simulation(few).rows, change=study)
    assert len(done.plan.configured) == 3
    grid = TuneConfig(search="grid", space={"lr": "choice(0.1, 0.2)"})
    with pytest.raises(UserError, match="num_trials is 9, but the grid has 2 combinations"):
        search.sampler(grid.replace(num_trials=9), BASE)


def test_what_is_left_to_train_is_what_is_foretold() -> None:
    study = TuneConfig(num_trials=6, scheduler="fifo", confirm=2)
    rows = Simulation(study).rows
    longer = study.replace(num_trials=10)
    plan = Plan(study, BASE, search.sampler(longer, BASE), recorded=rows)
    plan.replay()
    assert plan.seconds_left() == 0
    plan.change(longer)
    assert (plan.added, plan.left["search"], plan.left["confirm"], plan.left["final"]) == (
        4,
        4,
        4,
        2,
    )
    searched, final = 5 * 50_000 * PACE, 5 * 60_000 * PACE
    assert plan.seconds_left() == pytest.approx(8 * searched + 2 * final)
    # More seeds alone: two for each of the two confirmed, and two final runs.
    plan = Plan(study, BASE, search.sampler(study, BASE), recorded=rows)
    plan.replay()
    plan.change(study.replace(confirm_seeds=4))
    assert plan.seconds_left() == pytest.approx(4 * searched + 2 * final)


def test_rows_of_another_study_are_refused() -> None:
    rows = Simulation(TuneConfig(num_trials=3)).rows
    with pytest.raises(UserError, match="trial 1 of the results table does not follow"):
        Simulation(TuneConfig(num_trials=3), base=BASE.replace(seed=1), recorded=rows)


def test_another_seed_samples_other_configurations() -> None:
    def sampled(name: str, seed: int) -> list[dict[str, float] | None]:
        study = TuneConfig(search=name)
        sampler = search.sampler(study, BASE.replace(seed=seed))
        return [sampler.sample(number, dict.fromkeys(range(number), 0.5)) for number in range(6)]

    for name in ("random", "tpe"):
        assert sampled(name, 0) == sampled(name, 0)
        assert sampled(name, 0) != sampled(name, 1)


def test_tpe_finds_what_is_good_sooner_than_chance() -> None:
    def best(name: str, seed: int) -> float:
        study = TuneConfig(search=name, scheduler="fifo", num_trials=40, confirm=0)
        study = study.replace(space={"lr": "uniform(0.01, 1)", "momentum": "uniform(0.1, 0.99)"})
        base = BASE.replace(seed=seed)
        plan, course = Plan(study, base, search.sampler(study, base)), []
        while (trial := plan.next()) is not None:
            value = -((trial.sampled["lr"] - 0.3) ** 2) - (trial.sampled["momentum"] - 0.7) ** 2
            course.append(value)
            row = {"trial": len(course) - 1, "phase": "search", "status": "ok"}
            plan.tell({**row, "best_accuracy": value})
        return max(course)

    seeds = range(5)
    assert sum(best("tpe", s) for s in seeds) > sum(best("random", s) for s in seeds)


@given(
    budget=st.floats(1, 2000),
    concurrent=st.integers(1, 4),
    scheduler=st.sampled_from(["fifo", "one-rung"]),
)
@settings(deadline=None, max_examples=200)
def test_nothing_begins_that_would_not_end_within_the_budget(
    budget: float, concurrent: int, scheduler: str
) -> None:
    study = TuneConfig(num_trials=10, scheduler=scheduler, time_budget=budget, confirm=2)
    done = Simulation(study, concurrent=concurrent)
    # Before the first trial ends, its duration is unknown, so any budget starts some trials. A
    # screening without one trial in full is worth nothing, so any budget trains one.
    screening, full = 50_000 * PACE, 5 * 50_000 * PACE
    first = screening + full if scheduler == "one-rung" else full
    assert done.now <= max(budget, first) + 1e-6
    assert done.of("search")
    assert bool(done.plan.skipped) == (len(done.plan.trials) < sum(done.plan.outline().values()))


def test_a_budget_searches_before_it_confirms() -> None:
    study = TuneConfig(num_trials=20, time_budget=200, confirm=2)  # all of it would take 295 s
    done = Simulation(study)
    assert len(done.of("screen")) == 20
    assert len(done.of("search")) == 3
    assert not done.of("confirm")
    assert done.plan.skipped == ["the confirmation"]


def test_trials_without_a_result_never_win() -> None:
    def accuracy(trial: Planned) -> float | None:
        return None if trial.sampled["lr"] > 0.1 else trial.sampled["lr"]

    plan = Simulation(TuneConfig(num_trials=12, confirm=2), accuracy).plan
    winner = plan.winner()
    assert winner is not None
    assert plan.trials[winner].sampled["lr"] <= 0.1
    assert Simulation(TuneConfig(), lambda trial: None).plan.winner() is None


def test_a_confirmation_without_a_result_does_not_win() -> None:
    space = {"lr": "choice(0.1, 0.2)"}
    study = TuneConfig(search="grid", space=space, scheduler="fifo", base=False)

    def accuracy(trial: Planned) -> float | None:
        lost = trial.phase == "confirm" and trial.sampled["lr"] == 0.2 and trial.more["seed"] == 1
        return None if lost else 0.9 + trial.sampled["lr"] / 10

    plan = Simulation(study, accuracy).plan
    assert plan.confirmed() == {0: [0.91, 0.91], 1: [None, 0.92]}
    assert plan.winner() == 0


@given(
    name=st.sampled_from(["random", "tpe", "grid"]),
    scheduler=st.sampled_from(["fifo", "one-rung"]),
    sizes=st.lists(st.sampled_from([16, 32, 64, 128, 256]), min_size=1, unique=True),
    rates=st.lists(st.sampled_from([0.01, 0.1, 0.2]), min_size=1, unique=True),
    more=st.fixed_dictionaries(
        {"base": st.booleans(), "tries": st.sampled_from([[], ["lr=0.1"], ["lr=0.3"]])}
    ),
    confirm=st.none() | st.integers(0, 4),
)
@settings(deadline=None, max_examples=60)
def test_no_configuration_runs_twice_but_to_repeat_it(
    name: str,
    scheduler: str,
    sizes: list[int],
    rates: list[float],
    more: dict[str, Any],
    confirm: int | None,
) -> None:
    space = {"batch_size": f"choice({str(sizes)[1:-1]})", "lr": f"choice({str(rates)[1:-1]})"}
    study = TuneConfig(search=name, scheduler=scheduler, space=space, confirm=confirm, **more)
    done = Simulation(study, lambda trial: trial.changes["lr"] / trial.changes["batch_size"])
    seen: dict[Any, list[Planned]] = {}
    for trial in done.plan.trials:
        same = search.identity(BASE.replace(**trial.changes))
        seen.setdefault(same, []).append(trial)
    assert all(len(trials) == 1 for trials in seen.values())
    for phase in ("screen", "search"):
        sampled = [tuple(trial.sampled.items()) for trial in done.of(phase)]
        assert len(set(sampled)) == len(sampled)
    again = [(tuple(t.sampled.items()), t.more["seed"]) for t in done.of("confirm")]
    assert len(set(again)) == len(again)


def test_the_base_recipe_is_confirmed_if_asked_to() -> None:
    # The base recipe's lr is the lowest, and so the worst.
    for settings_ in ({}, {"scheduler": "fifo"}, {"keep": 2, "confirm": 1}):
        study = TuneConfig(num_trials=6, confirm_base=True, **settings_)
        done = Simulation(study)
        count = (study.confirm or 2) + 1
        origins = [trial.origin for trial in done.of("confirm")]
        assert origins == (["sampled"] * (count - 1) + ["base"]) * 2
        assert len(done.plan.confirmed()) == count
        counts = {phase: len(done.of(phase)) for phase in done.plan.outline()}
        assert counts == done.plan.outline()
        (of_base,) = [i for i in done.plan.confirmed() if done.plan.trials[i].origin == "base"]
        assert done.plan.trials[of_base].phase == "search"
    # A base recipe among the best needs no extra place.
    best = Simulation(study.replace(confirm=2), lambda trial: -trial.changes["lr"])
    assert len(best.plan.confirmed()) == 2
    winner = best.plan.winner()
    assert winner is not None
    assert best.plan.trials[winner].origin == "base"


def test_how_many_images_a_trial_trains_on_is_its_own() -> None:
    space = {"train_size": "choice(10000, null)", "lr": "choice(0.1, 0.2)"}
    study = TuneConfig(search="grid", space=space, scheduler="fifo", base=False)
    plan = Simulation(study, lambda trial: 0.9 if trial.changes["train_size"] else 0.8).plan
    images = {(trial.phase, plan.images_of(i)) for i, trial in enumerate(plan.trials)}
    assert {count for phase, count in images if phase == "search"} == {10_000, 50_000}
    assert {count for phase, count in images if phase == "final"} == {10_000}
    assert (plan.images("search"), plan.images("final")) == (50_000, 60_000)


def test_tpe_runs_no_more_at_a_time_than_it_looks_past() -> None:
    study = TuneConfig(search="tpe")
    assert Plan(study, BASE, search.sampler(study, BASE), concurrent=16).concurrent == 4
    asked = TuneConfig(search="tpe", max_concurrent=8)
    assert Plan(asked, BASE, search.sampler(asked, BASE), concurrent=8).concurrent == 8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scheduler": "asha", "keep": 3}, "keep is 3, but the scheduler asha screens nothing"),
        ({"keep": 2, "confirm": 3}, "confirm is 3, but keep is 2"),
        ({"space": {"seed": "choice(0, 1)"}}, "space has seed, but a confirmation"),
        ({"space": {"epochs": "randint(1, 5)"}}, "space has epochs, but the scheduler one-rung"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, says: str) -> None:
    study = TuneConfig(**settings)
    with pytest.raises(UserError) as caught:
        search.sampler(study, BASE)
    assert says in str(caught.value)


def test_a_guess_foretells_the_time_until_a_trial_has_ended() -> None:
    tuning = TuneConfig(num_trials=4, scheduler="fifo", confirm=0, time_budget=1)
    plan = Plan(tuning, BASE, search.sampler(tuning, BASE), concurrent=2)
    assert plan.seconds_left() is None
    plan.budget.guess(seconds_per_image=0.001, seconds_per_trial=5)
    per_trial = plan.epochs * BASE.images * 0.001 + 5
    assert plan.seconds_left() == pytest.approx(2 * per_trial)
    assert plan.budget.allows(search.Phase.SEARCH, plan.outline())  # a guess leaves nothing out
