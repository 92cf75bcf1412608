"""The recorder of a study: it writes the rows of the results tables as trials report and end."""

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from mnist_ray import errors, storage, tables
from mnist_ray.cluster import resources, resume
from mnist_ray.cluster.ray_private import (
    AUTO_RESULT_KEYS,
    CHECKPOINT_PATH_KEY,
    DEBUG_METRICS,
    DONE,
    EXPERIMENT_TAG,
    SHOULD_CHECKPOINT,
)
from mnist_ray.cluster.schedulers import Search
from mnist_ray.cluster.show import StudyShow
from mnist_ray.config import Recipe
from mnist_ray.search import Phase, Status
from mnist_ray.storage import Place

DEATHS = {
    errors.LOW_ON_MEMORY: "it was killed because its node ran low on memory; lower --max-concurrent"
    " or --batch-size",
    "worker process has died": "its process died",
    "node has died": "its node was lost",
    "temporarily unavailable": "its process was lost",
}
"""Words in Ray's message about a trial that was killed or lost, and what is said instead."""

TUNES_OWN = {
    *(*AUTO_RESULT_KEYS, *DEBUG_METRICS, DONE, EXPERIMENT_TAG, SHOULD_CHECKPOINT),
    CHECKPOINT_PATH_KEY,
}
"""Keys that Tune adds to the metrics that a trial reports."""


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps the rows of the results tables, and writes them as trials end.

    `epochs` are the rows of the epochs table so far, if the study is resumed; `known` are columns
    of the trials table that are the same in every row."""

    def __init__(
        self,
        folder: Place,
        base: Recipe,
        split_hash: Callable[[Recipe], str],
        show: StudyShow,
        searcher: Search,
        max_failures: int,
        epochs: tables.Epochs,
        why_waiting: Callable[[], str],
        waiting_launches: Callable[[], int],
        **known: Any,
    ) -> None:
        self.folder, self.base, self.split_hash, self.show = folder, base, split_hash, show
        self.plan, self.numbers, self.known = searcher.plan, searcher.numbers, known
        self.searcher, self.max_failures = searcher, max_failures
        self.why_waiting, self.waiting_launches = why_waiting, waiting_launches
        self.began: dict[int, float] = {}
        self.epochs = epochs
        self.journal = tables.study_journal(folder, self.plan)
        self.keeps_journal = True
        self.given_up: Counter[int] = Counter()
        self.looked, self.silent = 0.0, dict[str, float]()
        self.unwritten, self.write_after = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, and never reads the pickle back

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        now = time.monotonic()
        if self.unwritten and now > self.write_after:
            self.write()
        if now - self.looked < 1:
            return
        self.looked = now
        if not self.unwritten:
            self.keep_journal()
        silent = {trial.trial_id: trial for trial in trials if self._may_wait(trial)}
        self.silent = {trial_id: self.silent.get(trial_id, now) for trial_id in silent}
        long = [each for each, since in self.silent.items() if now - since > resources.PATIENCE]
        if not long:
            return
        # A trial that launches workers counts as running while its workers wait. As many trials
        # wait as launches do, and these are the newest ones.
        running = [each for each in silent if silent[each].status == Trial.RUNNING]
        busy = running[: max(0, len(running) - self.waiting_launches())] if running else []
        for trial_id in long:
            if trial_id not in busy:
                self.show.wait(self.numbers[trial_id], self.why_waiting())
                self.silent[trial_id] = now

    def _may_wait(self, trial: Trial) -> bool:
        """Return whether the trial may be waiting for resources, by its status."""
        if trial.status == Trial.RUNNING:
            return self.plan.tuning.workers_per_trial > 1
        return bool(trial.status == Trial.PENDING)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        number = self.numbers[trial.trial_id]
        if number not in self.began:
            rows = self.epochs.setdefault(number, [])
            self.began[number] = time.monotonic() - tables.seconds(rows)
            self.show.start(number, self.plan.trials[number])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: tables.Row, **_: Any
    ) -> None:
        number = self.numbers[trial.trial_id]
        self.silent.pop(trial.trial_id, None)
        metrics = {name: value for name, value in result.items() if name not in TUNES_OWN}
        row = tables.epoch_row(self.folder.name, number, metrics)
        # The trial's workers saved the checkpoint, or Tune copied it from the trial's report.
        saved = result.get(CHECKPOINT_PATH_KEY) or os.path.join(
            trial.storage.trial_fs_path, result["checkpoint_dir_name"]
        )
        row["checkpoint"] = storage.relative(saved, self.folder)
        # A trial that failed resumes from its last checkpoint, and may repeat an epoch.
        before = [each for each in self.epochs[number] if each["epoch"] < row["epoch"]]
        self.epochs[number] = [*before, row]
        kept = tables.kept(self.epochs[number])
        for each in before:
            if each["checkpoint"] and each not in kept:
                storage.remove(self.folder / each["checkpoint"])
                each["checkpoint"] = None
        self.show.epoch(row)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        number = self.numbers[trial.trial_id]
        # The trial resumes from its last checkpoint, which it may not have reported before it died.
        if saved := resume.trial(self.folder, number):
            known = {row["epoch"]: row for row in self.epochs.get(number, ())}
            self.epochs[number] = [known.get(row["epoch"], row) for row in saved.epochs]
        self.show.again(number, len(saved.epochs) if saved else 0, _why(trial.error_file))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self.on_trial_start(iteration, trials, trial)  # a trial may fail before it starts
        number, why = self.numbers[trial.trial_id], _why(trial.error_file)
        self.given_up[number] += 1
        # Tune gives a trial up at once if the process that it reuses dies just then.
        if max(trial.run_metadata.num_failures, self.given_up[number]) <= self.max_failures:
            self.searcher.try_again(trial.trial_id)
            if saved := resume.trial(self.folder, number):  # it will resume from there
                self.epochs[number] = saved.epochs
            self.show.again(number, len(self.epochs[number]), why)
        else:
            self._end(trial, status=Status.FAILED, error=why)

    def _end(self, trial: Trial, **known: Any) -> None:
        number = self.numbers[trial.trial_id]
        epochs = self.epochs[number]
        planned = self.plan.trials[number]
        config = self.base.replace(**planned.changes)
        if epochs:
            saved = epochs[-1] if planned.phase == Phase.FINAL else tables.best_epoch(epochs)
            known["checkpoint"] = saved["checkpoint"]
            known["split_hash"] = self.split_hash(config)
        row = tables.trial_row(
            config.model_dump(),
            epochs,
            run=self.folder.name,
            trial=number,
            phase=planned.phase,
            repeats=planned.repeats,
            origin=planned.origin,
            total_seconds=time.monotonic() - self.began[number],
            ended=datetime.now(UTC),
            **self.known,
            **known,
        )
        self.plan.tell(row)
        self.unwritten = True  # `on_step_end` writes it: at once, as long as writing is quick
        # Checkpoints from before the study was resumed too, and those that a trial's workers saved.
        tables.prune(self.folder, tables.trial_folders(self.folder, number), epochs)
        self.show.end_trial(row)

    def write(self) -> None:
        began = time.monotonic()
        winner = self.plan.winner()  # the best so far, until the study ends
        for number, row in self.plan.rows.items():
            row["winner"] = number == winner
        trials = [self.plan.rows[number] for number in sorted(self.plan.rows)]
        epochs = [row for number in sorted(self.epochs) for row in self.epochs[number]]
        tables.write(self.folder, trials, epochs)
        # Writing takes longer with every row, and may take a twentieth of the time at most. Until
        # a trial is in the tables, a resumed study finds its last checkpoint.
        self.unwritten, now = False, time.monotonic()
        self.write_after = now + 20 * (now - began)

    def keep_journal(self, end: bool = False) -> None:
        """Bring the Optuna journal up to date. It shows what the tables hold, so a study goes on
        without it. Trials end in it after they are in the tables, so a resumed study ends none
        twice."""
        if not self.keeps_journal:
            return
        try:
            self.journal.update(self.plan.rows, self.epochs)
            if end:
                self.journal.close(self.plan.winner() if self.plan.done else None)
        except Exception as error:  # a disk, a bucket, or what another program wrote into the file
            self.keeps_journal = False
            self.show.say(
                f"warning: {self.journal.file} cannot be written, and the study goes on without"
                f" it: {errors.reason(error)}"
            )


def _why(path: str | None) -> str:
    """Say in a line why a trial failed, from the file to which Tune appends each failure."""
    text = Path(path).read_text(encoding="utf-8").strip() if path else ""
    newest = text[text.rfind("Failure # ") :] if "Failure # " in text else text
    last = newest.splitlines()[-1] if newest else "no message"
    if errors.NO_SPACE in last:
        raise OSError(last)  # the study stops, and can be resumed when there is room
    for sign, words in DEATHS.items():
        # Ray's message about memory has many lines, and its last one is about Ray's settings.
        if sign in (newest if sign == errors.LOW_ON_MEMORY else last):
            return words
    return last
