"""The Optuna journal of a study: Optuna finds in it what the tables hold, whatever happened."""

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from optuna_journal import assert_like_row, journal, trials

from mnist_ray import storage, tables
from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.search import Phase, Plan, sampler

BASE = Recipe(epochs=3, holdout=1000, lr=0.5)
TUNING = TuneConfig(
    num_trials=9,
    tries=["dropout=0.7 batch_size=32", "weight_decay=0.1"],
    space={
        "lr": "loguniform(0.01, 0.1)",  # the base recipe's lies outside
        "dropout": "uniform(0, 0.2)",
        "batch_size": "choice(16, 128)",
        "weight_decay": "loguniform(0.001, 0.01)",  # the base recipe's, 0, has no logarithm
        "train_size": "randint(1000, 2000)",  # the base recipe's is none
    },
)


def plan_of(tuning: TuneConfig = TUNING, rows: Any = ()) -> Plan:
    return Plan(tuning, BASE, sampler(tuning, BASE), 2, rows)


def outcome(plan: Plan, number: int) -> tuple[list[tables.Row], dict[str, Any]]:
    """Return the epochs of a trial and what else its row is to have: some trials diverge, fail or
    are stopped."""
    planned, rng = plan.trials[number], random.Random(number)
    recipe = BASE.replace(**planned.changes)
    kind = ("ok", "ok", "failed", "ok", "diverged")[number % 5]
    if planned.phase == Phase.SEARCH:
        kind = ("ok", "stopped")[number % 2]
    fewest = {"ok": recipe.epochs, "failed": 0}.get(kind, 1)
    trained = recipe.epochs if kind == "ok" else rng.randrange(fewest, max(2, recipe.epochs))
    epochs = [
        {
            **{"run": "a", "trial": number, "epoch": epoch, "accuracy": rng.random(), "loss": 1.0},
            **{"train_loss": math.nan if kind == "diverged" and epoch == trained else 1.0},
            **{"scored_on": "holdout" if recipe.holdout else "test", "checkpoint": f"c{epoch}"},
            **{"train_seconds": 2.0, "images_per_second": 100.0},
        }
        for epoch in range(1, trained + 1)
    ]
    return epochs, {"status": "failed", "error": "gone"} if kind == "failed" else {}


def steps(plan: Plan, epochs: tables.Epochs) -> Iterator[None]:
    """Run the study two trials at a time, and yield after each thing that happens."""
    coming: dict[int, Iterator[tables.Row]] = {}
    while True:
        while len(coming) < 2 and plan.next():
            number = len(plan.trials) - 1
            if number not in plan.rows:
                coming[number] = iter(outcome(plan, number)[0])
                epochs[number] = []
                yield
        if not coming:
            return
        for number in list(coming):
            if row := next(coming[number], None):
                epochs[number].append(row)
            else:
                del coming[number]
                planned = plan.trials[number]
                config = BASE.replace(**planned.changes).model_dump()
                known = {"phase": planned.phase, "repeats": planned.repeats}
                known |= {"origin": planned.origin, "total_seconds": 9.0}
                known |= {"run": "a", "trial": number, "ended": datetime.now(UTC)}
                more = outcome(plan, number)[1]
                row = tables.trial_row(config, epochs[number], **known, **more)
                plan.tell({**row, "checkpoint": "c" if epochs[number] else None})
            yield


def same(file: Path, plan: Plan, epochs: tables.Epochs) -> None:
    """Assert that the journal holds what the plan knows."""
    found = trials(file, "a")
    assert set(found) == set(epochs)
    for number, trial in found.items():
        assert trial.intermediate_values == {e["epoch"]: e["accuracy"] for e in epochs[number]}
        if number in plan.rows:
            assert_like_row(trial, plan.rows[number], plan.trials[number].sampled)
        else:
            assert trial.state == TrialState.RUNNING


def test_the_journal_holds_what_the_tables_hold(tmp_path: Path) -> None:
    file = tmp_path / "a" / tables.JOURNAL
    file.parent.mkdir()
    plan, epochs = plan_of(), tables.Epochs()
    written = tables.study_journal(file.parent, plan)
    for _ in steps(plan, epochs):
        written.update(plan.rows, epochs)
        same(file, plan, epochs)
    written.close(plan.winner())
    statuses = {row["status"] for row in plan.rows.values()}
    assert statuses == {"ok", "stopped", "failed", "diverged"}
    assert {row["phase"] for row in plan.rows.values()} == set(Phase)
    there = journal(file)
    study = optuna.load_study(study_name="a", storage=there)
    full = [i for i in plan.ranked(Phase.SEARCH) if plan.rows[i]["status"] == "ok"]
    assert study.best_trial.user_attrs["trial"] == full[0]
    assert study.user_attrs == {"winner": plan.winner()}
    # Optuna wants the same distribution of a parameter in all trials.
    screened = optuna.load_study(study_name="a screen", storage=there).trials
    for name in TUNING.space:
        used = {str(each.distributions.get(name)) for each in screened} - {"None"}
        assert len(used) == 1


@pytest.mark.parametrize("how", ["as it was", "half a line", "damaged", "lost", "of another time"])
def test_a_study_that_was_killed_goes_on_with_its_journal(how: str, tmp_path: Path) -> None:
    total = sum(1 for _ in steps(plan_of(), {}))
    for killed in range(2, total, 17):
        file = tmp_path / str(killed) / "a" / tables.JOURNAL
        file.parent.mkdir(parents=True)
        plan, epochs = plan_of(), tables.Epochs()
        written = tables.study_journal(file.parent, plan)
        for step, _ in enumerate(steps(plan, epochs), 1):
            written.update(plan.rows, epochs)
            if step == killed:
                break
        rows, content = list(plan.rows.values()), file.read_bytes()
        if how == "half a line":
            file.write_bytes(content[: len(content) - 1 - killed % 40])
        elif how == "damaged":
            file.write_bytes(content.replace(b"op_code", b"op\xffcode", 3))
        elif how == "lost":
            file.unlink()
        elif how == "of another time":
            rows = []
        ended = {row["trial"] for row in rows}
        plan = plan_of(rows=rows)
        plan.replay()
        epochs = {number: each for number, each in epochs.items() if number in ended}
        written = tables.study_journal(file.parent, plan)
        written.update(plan.rows, epochs)
        for _ in steps(plan, epochs):
            pass
        written.update(plan.rows, epochs)
        same(file, plan, epochs)


def test_what_a_user_writes_in_the_dashboard_stays_and_disturbs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a" / tables.JOURNAL
    file.parent.mkdir()
    for session in range(2):
        plan, epochs = plan_of(), tables.Epochs()
        written = tables.study_journal(file.parent, plan)
        for step, _ in enumerate(steps(plan, epochs)):
            written.update(plan.rows, epochs)
            dashboard = journal(file)
            if step == 3 and not session:
                mine = optuna.create_study(study_name="mine", storage=dashboard)
                mine.add_trial(optuna.trial.create_trial(value=1.0))
                study = optuna.load_study(study_name="a screen", storage=dashboard)
                study.set_user_attr("note", "a good one")
                study.enqueue_trial({"lr": 0.05})
                break
    there = journal(file)
    study = optuna.load_study(study_name="a screen", storage=there)
    assert study.user_attrs == {"note": "a good one"}
    assert len(study.get_trials(states=[TrialState.WAITING])) == 1
    mine = optuna.load_study(study_name="mine", storage=there)
    assert [trial.value for trial in mine.trials] == [1.0]
    numbers = [trial.user_attrs.get("trial") for trial in study.trials]
    assert sorted(number for number in numbers if number is not None) == list(range(9))


def test_a_bucket_gets_it_every_minute_and_at_the_end(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = storage.place("storage", f"{bucket}/{tmp_path.name}/a")
    plan, epochs, now = plan_of(), tables.Epochs(), [0.0]
    monkeypatch.setattr("mnist_ray.tables.journal.time.monotonic", lambda: now[0])
    written = tables.study_journal(folder, plan)
    file = tmp_path / "copy"
    for _ in steps(plan, epochs):
        written.update(plan.rows, epochs)
        now[0] += 7
        if now[0] in (63, 126):  # the ninth update is the last one within a minute
            assert (folder / tables.JOURNAL).exists() == (now[0] > 63)
    written.update(plan.rows, epochs)
    written.close(plan.winner())
    file.write_bytes((folder / tables.JOURNAL).read_bytes())
    same(file, plan, epochs)
