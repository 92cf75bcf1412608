"""What a study's driver notes down as its trials go: the rows of the results tables."""

import os
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from mnist_ray import checkpoint, display_study, errors, resources, resume, runs, storage, tables
from mnist_ray.config import TrainConfig
from mnist_ray.ray_private import (
    AUTO_RESULT_KEYS,
    CHECKPOINT_PATH_KEY,
    DEBUG_METRICS,
    DONE,
    EXPERIMENT_TAG,
    SHOULD_CHECKPOINT,
)
from mnist_ray.schedulers import Search
from mnist_ray.storage import Place
from mnist_ray.verdict import Phase, Status

DEATHS = {
    errors.LOW_ON_MEMORY: "it was killed because its node ran low on memory; lower --max-concurrent"
    " or --batch-size",
    "worker process has died": "its process died",
    "node has died": "its node was lost",
    "temporarily unavailable": "its process was lost",
}
"""What Ray says of a trial that did not fail by itself, and we in its place."""

TUNES_OWN = {
    *(*AUTO_RESULT_KEYS, *DEBUG_METRICS, DONE, EXPERIMENT_TAG, SHOULD_CHECKPOINT),
    CHECKPOINT_PATH_KEY,
}
"""What Tune adds to the metrics that a trial reports."""


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps the rows of the results tables, and writes them as trials end. `epochs` are
    those of each trial so far, where the study is resumed."""

    def __init__(
        self,
        folder: Place,
        base: TrainConfig,
        split_hash: Callable[[TrainConfig], str],
        show: display_study.Study,
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
        self.given_up: Counter[int] = Counter()
        self.looked, self.silent = 0.0, dict[str, float]()
        self.unwritten, self.write_after = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its callbacks, and reads them never

    def on_step_end(self, iteration: int, trials: list[Trial], **_: Any) -> None:
        now = time.monotonic()
        if self.unwritten and now > self.write_after:
            self.write()
        if now - self.looked < 1:
            return
        self.looked = now
        silent = {trial.trial_id: trial for trial in trials if self._may_wait(trial, trials)}
        self.silent = {trial_id: self.silent.get(trial_id, now) for trial_id in silent}
        long = [each for each, since in self.silent.items() if now - since > resources.PATIENCE]
        if not long:
            return
        # A trial that launches workers runs while these wait: as many as wait, the newest ones.
        running = [each for each in silent if silent[each].status == Trial.RUNNING]
        busy = running[: max(0, len(running) - self.waiting_launches())] if running else []
        for trial_id in long:
            if trial_id not in busy:
                self.show.wait(self.numbers[trial_id], self.why_waiting())
                self.silent[trial_id] = now

    def _may_wait(self, trial: Trial, trials: list[Trial]) -> bool:
        """Whether the trial may be waiting for resources, as far as its status says."""
        if trial.status == Trial.RUNNING:
            return self.plan.base.num_workers > 1
        if trial.status == Trial.PENDING and self.plan.study.scheduler == "pbt":
            # A population takes turns.
            return all(each.status != Trial.RUNNING for each in trials)
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
        # Where the trial's workers saved it, or else where Tune put what the trial reported.
        saved = result.get(CHECKPOINT_PATH_KEY) or os.path.join(
            trial.storage.trial_fs_path, result["checkpoint_dir_name"]
        )
        row["checkpoint"] = storage.relative(saved, self.folder)
        # A trial that failed goes on from its last checkpoint, and may repeat an epoch.
        before = [each for each in self.epochs[number] if each["epoch"] < row["epoch"]]
        self.epochs[number] = [*before, row]
        if self.plan.study.scheduler != "pbt":  # of which another trial may yet need one
            best = tables.best_epoch(self.epochs[number])
            for each in before:
                if each["checkpoint"] and each is not best:
                    storage.remove(self.folder / each["checkpoint"])
                    each["checkpoint"] = None
        self.show.epoch(row)

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        number = self.numbers[trial.trial_id]
        # What it will go on from, which it may have saved without having told of it yet.
        saved = resume.trial(self.folder, number)
        self.show.again(number, len(saved.epochs) if saved else 0, _why(trial.error_file))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self.on_trial_start(iteration, trials, trial)  # it may have failed before it started
        number, why = self.numbers[trial.trial_id], _why(trial.error_file)
        self.given_up[number] += 1
        # Tune gives up at once where the process of the trial before dies while this one takes it.
        if max(trial.run_metadata.num_failures, self.given_up[number]) <= self.max_failures:
            self.searcher.try_again(trial.trial_id)
            if saved := resume.trial(self.folder, number):  # which it will go on from
                self.epochs[number] = saved.epochs
            self.show.again(number, len(self.epochs[number]), why)
        else:
            self._end(trial, status=Status.FAILED, error=why)

    def _end(self, trial: Trial, **known: Any) -> None:
        number = self.numbers[trial.trial_id]
        epochs = self.epochs[number]
        planned = self.plan.trials[number]
        # The trial's own values, because a scheduler may have changed them on the way.
        changes = {name: trial.config[name] for name in planned.changes}
        config = {**self.base.model_dump(), **changes}
        if epochs:
            saved = epochs[-1] if planned.phase == Phase.FINAL else tables.best_epoch(epochs)
            known["checkpoint"] = saved["checkpoint"]
            known["split_hash"] = self.split_hash(self.base.replace(**changes))
        row = tables.trial_row(
            config,
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
        self.unwritten = True  # `on_step_end` writes it, at once as long as that is quickly done
        if self.plan.study.scheduler != "pbt":  # of which another trial may yet need one
            self._prune(number, {row["checkpoint"], *(each["checkpoint"] for each in epochs[-1:])})
        self.show.end_trial(row)

    def _prune(self, number: int, keep: set[str | None]) -> None:
        """Delete a trial's checkpoints but its best and its last: those it made before the study
        was resumed too, and all epochs of one that launched workers."""
        for folder in runs.trial_folders(self.folder, number):
            for saved in checkpoint.folders(folder):
                if storage.relative(saved, self.folder) not in keep:
                    storage.remove(saved)

    def write(self) -> None:
        began = time.monotonic()
        winner = self.plan.winner()  # so far, until the study has ended
        for number, row in self.plan.rows.items():
            row["winner"] = number == winner
        trials = [self.plan.rows[number] for number in sorted(self.plan.rows)]
        epochs = [row for number in sorted(self.epochs) for row in self.epochs[number]]
        tables.write(self.folder, trials, epochs)
        # Writing all rows takes longer with each; it shall not take more than a twentieth of the
        # time. A trial that is not in the tables yet has its last checkpoint to go on from.
        self.unwritten, now = False, time.monotonic()
        self.write_after = now + 20 * (now - began)


def _why(path: str | None) -> str:
    """In a line, from a trial's file of errors, in which each failure follows those before."""
    text = Path(path).read_text(encoding="utf-8").strip() if path else ""
    newest = text[text.rfind("Failure # ") :] if "Failure # " in text else text
    last = newest.splitlines()[-1] if newest else "no message"
    if errors.NO_SPACE in last:
        raise OSError(last)  # no trial's fault: the study stops, and can go on when there is room
    for sign, words in DEATHS.items():
        # Ray's text about memory has many lines, and ends with advice on Ray's own settings.
        if sign in (newest if sign == errors.LOW_ON_MEMORY else last):
            return words
    return last
