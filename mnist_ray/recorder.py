"""What a study's driver notes down as its trials go: the rows of the results tables."""

import os
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY

from mnist_ray import display_study, tables
from mnist_ray.config import TrainConfig
from mnist_ray.plan import Plan


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps the rows of the results tables, and writes them whenever a trial ends."""

    def __init__(
        self,
        folder: Path,
        base: TrainConfig,
        split_hash: Callable[[TrainConfig], str],
        show: display_study.Study,
        plan: Plan,
        numbers: dict[str, int],
        **known: Any,
    ) -> None:
        self.folder, self.base, self.split_hash, self.show = folder, base, split_hash, show
        self.plan, self.numbers, self.known = plan, numbers, known
        self.began: dict[str, float] = {}
        self.epochs: dict[str, list[tables.Row]] = {}
        self.rows: dict[str, tables.Row] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; a terminal cannot be pickled, and the data need not be.
        return {**self.__dict__, "show": None, "split_hash": None, "plan": None}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        if trial.trial_id not in self.began:
            self.began[trial.trial_id] = time.monotonic()
            self.epochs[trial.trial_id] = []
            number = self.numbers[trial.trial_id]
            self.show.start(number, self.plan.trials[number])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: tables.Row, **_: Any
    ) -> None:
        row = tables.epoch_row(self.folder.name, self.numbers[trial.trial_id], result)
        # Where the trial's workers saved it, or else where Tune put what the trial reported.
        saved = result.get(CHECKPOINT_PATH_KEY) or os.path.join(
            trial.storage.trial_fs_path, result["checkpoint_dir_name"]
        )
        row["checkpoint"] = str(Path(saved).relative_to(self.folder))
        self.epochs[trial.trial_id].append(row)
        self.show.epoch(row)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **_: Any
    ) -> None:
        self._end(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        self.on_trial_start(iteration, trials, trial)  # it may have failed before it started
        self._end(trial, status="failed", error=_last_line(trial.error_file))

    def _end(self, trial: Trial, **known: Any) -> None:
        epochs = self.epochs[trial.trial_id]
        number = self.numbers[trial.trial_id]
        planned = self.plan.trials[number]
        # The trial's own values, because a scheduler may have changed them on the way.
        changes = {name: trial.config[name] for name in planned.changes}
        config = {**self.base.model_dump(), **changes}
        if epochs:
            saved = epochs[-1] if planned.phase == "final" else tables.best_epoch(epochs, "holdout")
            known["checkpoint"] = saved["checkpoint"]
            known["split_hash"] = self.split_hash(self.base.replace(**changes))
        row = tables.trial_row(
            config,
            epochs,
            run=self.folder.name,
            trial=number,
            phase=planned.phase,
            repeats=planned.repeats,
            total_seconds=time.monotonic() - self.began[trial.trial_id],
            ended=datetime.now(timezone.utc),
            **self.known,
            **known,
        )
        self.rows[trial.trial_id] = row
        self.write()
        self.plan.tell(row)
        self.show.end_trial(row)

    def write(self) -> None:
        trials = sorted(self.rows.values(), key=lambda row: row["trial"])
        epochs = sorted(
            (row for rows in self.epochs.values() for row in rows),
            key=lambda row: (row["trial"], row["epoch"]),
        )
        tables.write(self.folder, trials, epochs)


def _last_line(path: str | None) -> str:
    lines = Path(path).read_text(encoding="utf-8").strip().splitlines() if path else []
    return lines[-1] if lines else "no message"
