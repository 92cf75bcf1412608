"""What a study says of trials that died or wait."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.experiment import Trial

from mnist_ray import tables
from mnist_ray.cluster import recorder, resources, training
from mnist_ray.cluster.recorder import Recorder
from mnist_ray.config import Recipe, TuneConfig
from mnist_ray.learn import checkpoint, model
from mnist_ray.learn.checkpoint import Checkpoint
from mnist_ray.search import Plan, sampler
from mnist_ray.tables import run_folder

# As Ray 2.60 says it, shortened within the lines.
OUT_OF_MEMORY = """\
1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1)
OOM kill reason: Memory usage 1523212288B exceeded threshold of 252765008B (1.0% of 25276502016B)
Top 10 memory users: PID    MEM(GB) COMMAND
4758    0.68    python -m mnist_ray.tune
Refer to the documentation on how to address the out of memory issue: https://docs.ray.io/
"""
DIED = """\
The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: Some common causes include: (1) the process was killed by the OOM killer due to high \
memory usage, (2) ray stop --force was called.
"""


@pytest.mark.parametrize(
    ("failures", "says"),
    [
        ([OUT_OF_MEMORY], "ran low on memory; lower --max-concurrent or --batch-size"),
        ([DIED], "its process died"),
        ([OUT_OF_MEMORY, DIED], "its process died"),
        ([DIED, OUT_OF_MEMORY], "ran low on memory"),
        (["Traceback\nValueError: no"], "ValueError: no"),
        ([], "no message"),
    ],
)
def test_why_a_trial_died(failures: list[str], says: str, tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    with file.open("w") as to:
        for number, text in enumerate(failures, 1):
            to.write(f"Failure # {number} (occurred at 2026-11-26_23-04-50)\n{text}\n")
    assert says in recorder._why(str(file))
    assert "\n" not in recorder._why(str(file))


def test_why_a_training_run_died() -> None:
    said = training.cause(RuntimeError(OUT_OF_MEMORY))
    assert said.endswith("ran low on memory; lower --num-workers or --batch-size")


def test_an_epoch_that_was_saved_and_not_told_is_not_lost(tmp_path: Path) -> None:
    config, again = Recipe(epochs=3), []
    metrics = [{"epoch": epoch, "train_loss": float(epoch)} for epoch in (1, 2)]
    state = {"model": model.build(config).state_dict(), "optimizer": {}, "epoch": 2}
    folder = tmp_path / run_folder.trial_name(0) / "checkpoint_000001"
    checkpoint.save(folder, Checkpoint(state, config, metrics, "0"))
    it = Recorder.__new__(Recorder)
    it.folder, it.numbers, it.epochs = tmp_path, {"a": 0, "b": 1}, {0: [], 1: []}
    it.show = SimpleNamespace(again=lambda *told: again.append(told))
    for trial_id in it.numbers:
        it.on_trial_recover(0, [], SimpleNamespace(trial_id=trial_id, error_file=None))
    assert again == [(0, 2, "no message"), (1, 0, "no message")]
    assert [row["train_loss"] for row in it.epochs[0]] == [1, 2]
    assert it.epochs[1] == []
    # What it had told is kept as it is noted.
    it.epochs[0][0]["checkpoint"] = "noted"
    it.on_trial_recover(0, [], SimpleNamespace(trial_id="a", error_file=None))
    assert it.epochs[0][0]["checkpoint"] == "noted"


class Clock:
    now = 1000.0


def waits(
    monkeypatch: pytest.MonkeyPatch, *, workers: int, waiting: int, statuses: str
) -> list[int]:
    """Trials that are told to wait once this has gone on for longer than the patience: P is one
    that is pending, R one that runs, S one that is paused."""
    told: list[int] = []
    it = Recorder.__new__(Recorder)
    it.looked, it.silent, it.unwritten, it.keeps_journal = 0.0, {}, False, False
    it.plan = SimpleNamespace(tuning=SimpleNamespace(workers_per_trial=workers))
    it.numbers = {str(number): number for number in range(len(statuses))}
    it.waiting_launches, it.why_waiting = lambda: waiting, lambda: "something"
    it.show = SimpleNamespace(wait=lambda number, why: told.append(number))
    names = {"P": Trial.PENDING, "R": Trial.RUNNING, "S": Trial.PAUSED}
    trials: list[Any] = [
        SimpleNamespace(trial_id=str(number), status=names[each])
        for number, each in enumerate(statuses)
    ]
    monkeypatch.setattr("mnist_ray.cluster.recorder.time.monotonic", lambda: Clock.now)
    for _ in range(resources.PATIENCE + 3):
        Clock.now += 1.1
        it.on_step_end(0, trials)
    return sorted(told)


@pytest.mark.parametrize(
    ("workers", "waiting", "statuses", "told"),
    [
        (1, 0, "RRPP", [2, 3]),
        (1, 0, "RR", []),
        (2, 0, "RR", []),  # that train long epochs
        (2, 1, "RR", [1]),
        (2, 2, "RR", [0, 1]),
        (2, 1, "RP", [0, 1]),
    ],
)
def test_what_waits(
    workers: int,
    waiting: int,
    statuses: str,
    told: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert told == waits(monkeypatch, workers=workers, waiting=waiting, statuses=statuses)


def test_a_journal_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    base, tuning = (
        Recipe(epochs=3, holdout=100),
        TuneConfig(num_trials=2, space={"lr": "loguniform(0.01, 1)"}),
    )
    it, said = Recorder.__new__(Recorder), list[str]()
    it.plan, it.epochs, it.keeps_journal = Plan(tuning, base, sampler(tuning, base)), {}, True
    it.journal, it.show = tables.study_journal(tmp_path, it.plan), SimpleNamespace(say=said.append)
    (tmp_path / tables.JOURNAL).mkdir()
    it.keep_journal()
    it.keep_journal(end=True)
    assert said == [
        f"warning: {tmp_path / tables.JOURNAL} cannot be written, and the study goes on without it:"
        " Is a directory"
    ]
