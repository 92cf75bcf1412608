"""A study as an Optuna journal, which `optuna-dashboard` shows live and `optuna.load_study` opens.

Accuracies of different phases cannot be compared, so each phase is an Optuna study of its own: the
search has the run's name, and the others have the phase's name after it, like `NAME confirm`.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend, JournalFileOpenLock
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mnist_ray import restored, storage
from mnist_ray.search import Dimension, Phase, Plan, Status
from mnist_ray.storage import Place
from mnist_ray.tables.schema import Epochs, Row

STATES = {
    Status.OK: TrialState.COMPLETE,
    Status.STOPPED: TrialState.PRUNED,
    Status.DIVERGED: TrialState.FAIL,
    Status.FAILED: TrialState.FAIL,
}

SAID_AT_THE_END = ("status", "error", "best_epoch", "final_accuracy", "train_seconds", "checkpoint")
"""The columns of the trials table that become user attributes of a trial that ended."""

UPLOAD_EVERY = 60
"""Seconds between two uploads of the journal of a study in a bucket."""


class Journal:
    """Writes the trials of the study that follows `plan` to `file`, in a folder or in a bucket.

    Nothing is read or written before the first `update`. A trial's value is what its phase ranks it
    by. Its parameters are the values that were sampled; its phase, its number and its seed are user
    attributes, as is a value that lies outside the distribution of its parameter.
    """

    def __init__(self, file: Place, plan: Plan) -> None:
        self.file, self.name, self.plan = file, file.parent.name, plan
        self.dimensions = {
            name: _widened(each, [first[name] for first in plan.sampler.first])
            for name, each in plan.dimensions.items()
        }
        self.distributions = {name: each.distribution() for name, each in self.dimensions.items()}
        self.backend: _File | _Memory | None = None
        self.studies: dict[str, int] = {}
        """Optuna's id of each phase's study, by the phase."""
        self.known: set[int] = set()
        """The numbers of the trials that are in the journal."""
        self.running: dict[int, tuple[int, dict[int, float]]] = {}
        """Optuna's id of each trial that has not ended, and its accuracies by epoch."""
        self.uploaded = time.monotonic()

    def update(self, rows: Mapping[int, Row], epochs: Epochs) -> None:
        """Add what is not in the journal yet: trials that started, epochs and ends. `rows` are the
        rows of the trials that ended, by number, and `epochs` the epochs of all that started.

        Raises OSError if the file cannot be written, and whatever Optuna raises if another program
        wrote something into it that does not fit.
        """
        if self.backend is None:
            self._open(rows)
        assert self.backend is not None
        for number in sorted(set(epochs) - self.known):
            if number < len(self.plan.trials):
                self._create(number, epochs[number], rows.get(number))
        with self.backend.at_once():
            for number in list(self.running):
                self._report(number, epochs.get(number, ()))
                if number in rows:
                    self._end(number, rows[number])
        if time.monotonic() - self.uploaded > UPLOAD_EVERY:
            self._upload()

    def close(self, winner: int | None) -> None:
        """Write down the study's winner, if it is known, and upload the journal to its bucket."""
        if winner is not None:
            self.storage.set_study_user_attr(self.studies[Phase.SEARCH], "winner", winner)
        self._upload()

    def _open(self, rows: Mapping[int, Row]) -> None:
        """Open the journal, or begin it. A resumed study goes on with its journal; one that
        cannot be read or does not fit the tables is replaced."""
        if isinstance(self.file, Path):
            _cut_half_line(self.file)
            try:
                self._read(_File(self.file), rows)
            except OSError:
                raise
            except Exception:  # damaged lines raise many kinds
                self.file.unlink()
                self._read(_File(self.file), rows)
        else:
            self._read(_Memory(), rows)
        self._study(Phase.SEARCH)  # `optuna.load_study` finds it from the beginning

    def _read(self, backend: "_File | _Memory", rows: Mapping[int, Row]) -> None:
        """Find out which trials are in the journal."""
        self.backend, self.storage = backend, JournalStorage(backend)
        names = {each.study_name for each in self.storage.get_all_studies()}
        self.studies = {
            phase: self.storage.get_study_id_from_name(self._name(phase))
            for phase in Phase
            if self._name(phase) in names
        }
        for study in self.studies.values():
            for place, each in enumerate(self.storage.get_all_trials(study)):
                if (number := each.user_attrs.get("trial")) is None:
                    continue  # the user added it in the dashboard
                self.known.add(number)
                if not each.state.is_finished():
                    trial = self.storage.get_trial_id_from_study_id_trial_number(study, place)
                    self.running[number] = (trial, dict(each.intermediate_values))
        if self.known - set(self.running) - set(rows):  # the tables are of another time
            for study in self.studies.values():
                self.storage.delete_study(study)
            self.studies, self.known, self.running = {}, set(), {}

    def _name(self, phase: Phase) -> str:
        return self.name if phase == Phase.SEARCH else f"{self.name} {phase}"

    def _study(self, phase: Phase) -> int:
        """Return Optuna's id of the study of a phase, which is made if it does not exist."""
        if phase not in self.studies:
            with restored.log_level("optuna", logging.WARNING):  # it would log that it made one
                study: int = self.storage.create_new_study(
                    [StudyDirection.MAXIMIZE], self._name(phase)
                )
            self.studies[phase] = study
        return self.studies[phase]

    def _create(self, number: int, epochs: Sequence[Row], row: Row | None) -> None:
        planned = self.plan.trials[number]
        params = {
            name: planned.sampled[name]
            for name, each in self.dimensions.items()
            if each.reaching(planned.sampled[name]) == each
        }
        trial: FrozenTrial = optuna.trial.create_trial(
            state=STATES[row["status"]] if row else TrialState.RUNNING,
            value=_value(row),
            params=params,
            distributions={name: self.distributions[name] for name in params},
            user_attrs={
                **{name: each for name, each in planned.sampled.items() if name not in params},
                **{"trial": number, "phase": str(planned.phase), "origin": planned.origin},
                "seed": planned.changes.get("seed", self.plan.base.seed),
                **({} if planned.repeats is None else {"repeats": planned.repeats}),
                **_end_attributes(row),
            },
            intermediate_values=_accuracies(epochs),
        )
        if row:
            ended: datetime = row["ended"].astimezone().replace(tzinfo=None)  # as Optuna has them
            trial.datetime_start = ended - timedelta(seconds=row["total_seconds"])
            trial.datetime_complete = ended
        created = self.storage.create_new_trial(self._study(planned.phase), trial)
        self.known.add(number)
        if not row:
            self.running[number] = (created, _accuracies(epochs))

    def _report(self, number: int, epochs: Sequence[Row]) -> None:
        trial, told = self.running[number]
        for epoch, accuracy in _accuracies(epochs).items():
            if told.get(epoch) != accuracy:
                self.storage.set_trial_intermediate_value(trial, epoch, accuracy)
                told[epoch] = accuracy

    def _end(self, number: int, row: Row) -> None:
        trial, _ = self.running.pop(number)
        for name, value in _end_attributes(row).items():
            self.storage.set_trial_user_attr(trial, name, value)
        value = _value(row)
        values = None if value is None else [value]
        self.storage.set_trial_state_values(trial, STATES[row["status"]], values)

    def _upload(self) -> None:
        if isinstance(self.backend, _Memory):
            storage.write(self.file, self.backend.content())
        self.uploaded = time.monotonic()


class _File(JournalFileBackend):  # type: ignore[misc]
    """Optuna's journal in a file. Within `at_once`, all operations are written together at the end.

    Optuna would also wait for the disk after each operation, which takes milliseconds. An operation
    that is lost this way is added again from the tables when the study is resumed."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self.held: list[dict[str, Any]] | None = None
        # This lock needs no symbolic links, and the dashboard's respects it. A process that is
        # killed may leave it behind, and is waited for for 3 seconds.
        self.lock = JournalFileOpenLock(str(path), grace_period=3)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self.held is not None:
            self.held += logs
            return
        self.lock.acquire()
        try:
            with self.path.open("ab") as file:
                file.write(_lines(logs))
        finally:
            self.lock.release()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        held: list[dict[str, Any]] = []
        self.held = held
        try:
            yield
        finally:
            self.held = None
        if held:
            self.append_logs(held)


class _Memory(BaseJournalBackend):  # type: ignore[misc]
    """Optuna's journal in memory, for a study in a bucket, where no file can be appended to."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def content(self) -> bytes:
        return _lines(self.logs)


def _lines(logs: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs).encode()


def _cut_half_line(file: Path) -> None:
    """Cut off a last line without an end, which a killed process may leave: the next operation
    would continue it."""
    if file.exists():
        content = file.read_bytes()
        os.truncate(file, content.rfind(b"\n") + 1)


def _widened(dimension: Dimension, values: Sequence[Any]) -> Dimension:
    """Return the dimension, widened to `values` as far as it can be, because Optuna wants the same
    distribution of a parameter in all trials of a study."""
    for value in values:
        if dimension.kind == "choice" and value not in dimension.values:
            dimension = Dimension("choice", (*dimension.values, value))
        dimension = dimension.reaching(value) or dimension
    return dimension


def _accuracies(epochs: Sequence[Row]) -> dict[int, float]:
    return {row["epoch"]: row["accuracy"] for row in epochs}


def _value(row: Row | None) -> float | None:
    """Return the accuracy by which the trial's phase is ranked, or None without a result."""
    if row is None or STATES[row["status"]] == TrialState.FAIL:
        return None
    value: float = row["final_accuracy" if row["phase"] == Phase.CONFIRM else "best_accuracy"]
    return value


def _end_attributes(row: Row | None) -> dict[str, Any]:
    found = {name: row[name] for name in SAID_AT_THE_END} if row else {}
    return {name: value for name, value in found.items() if value is not None}
