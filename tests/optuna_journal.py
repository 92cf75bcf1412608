"""What Optuna finds in a study's journal, compared with the rows of the study's tables."""

from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mnist_ray import tables
from mnist_ray.storage import Place

STATES = {"ok": "COMPLETE", "stopped": "PRUNED", "diverged": "FAIL", "failed": "FAIL"}


def journal(file: Path) -> JournalStorage:
    """Open a journal as Optuna's dashboard does."""
    return JournalStorage(JournalFileBackend(str(file)))


def trials(file: Path, run: str) -> dict[int, optuna.trial.FrozenTrial]:
    """Return the trials of all phases by their numbers in the tables."""
    there, found = journal(file), {}
    for name in optuna.get_all_study_names(there):
        study = optuna.load_study(study_name=name, storage=there)
        assert study.direction.name == "MAXIMIZE"
        assert name.split()[0] == run
        for trial in study.trials:
            number, phase = trial.user_attrs["trial"], trial.user_attrs["phase"]
            assert name == (run if phase == "search" else f"{run} {phase}")
            assert number not in found  # none is there twice
            found[number] = trial
    return found


def assert_like_row(trial: optuna.trial.FrozenTrial, row: tables.Row, space: Any) -> None:
    said = {**trial.user_attrs, **trial.params}
    shown = ["trial", "phase", "origin", "seed", "repeats", "status", "error", "checkpoint", *space]
    assert {name: said.get(name) for name in shown} == {name: row[name] for name in shown}
    assert trial.state.name == STATES[row["status"]]
    value = row["final_accuracy" if row["phase"] == "confirm" else "best_accuracy"]
    assert trial.value == (None if trial.state.name == "FAIL" else value)
    assert trial.duration is not None


def assert_like_tables(folder: Place, space: Any, copy: Path | None = None) -> None:
    """Assert that the journal of the ended study in `folder` holds what its tables hold. `copy` is
    where to put a file from a bucket, which Optuna cannot open there."""
    file = folder / tables.JOURNAL
    if copy:
        copy.write_bytes(file.read_bytes())
        file = copy
    assert isinstance(file, Path)
    rows = {row["trial"]: row for row in tables.read(folder).to_pylist()}
    epochs = tables.read(folder, tables.EPOCHS).to_pylist()
    found = trials(file, folder.name)
    assert set(found) == set(rows)
    for number, trial in found.items():
        assert_like_row(trial, rows[number], space)
        mine = {row["epoch"]: row["accuracy"] for row in epochs if row["trial"] == number}
        assert trial.intermediate_values == mine
