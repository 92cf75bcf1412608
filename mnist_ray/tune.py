"""Search hyperparameters, with Ray Tune: `python -m mnist_ray.tune`.

A trial is the base recipe with the sampled fields replaced. One with a single worker trains in the
trial's own process; one with more launches a TorchTrainer, which takes ten seconds longer.
"""

import os
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import yaml
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from mnist_ray import (
    checkpoint,
    cluster,
    data,
    display,
    engine,
    errors,
    evaluate,
    flags,
    results,
    search,
    train,
)
from mnist_ray.checkpoint import Checkpoint
from mnist_ray.config import STUDY_RECIPE, RunConfig, TrainConfig, TuneConfig
from mnist_ray.errors import RunFailed, UserError

LAUNCHER_CPUS, SPARED_CPUS = 0.001, 0.05
"""A trial that launches workers needs a little of a CPU for itself (Tune refuses 0). Its workers
ask for that much less than the cores they compute on, so that w workers of c cores fit on w x c."""


def trial(sampled: dict[str, Any], shared: dict[str, Any]) -> None:
    """Train one configuration in this process."""
    config: TrainConfig = shared["base"].replace(**sampled)
    share: cluster.Share = shared["share"]
    engine.prepare_process(share.cpus)
    splits = data.split(ray.get(shared["mnist"]), config.holdout, config.train_size)

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        with TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), Checkpoint(state, config, metrics, splits.hash))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    engine.fit(
        config, splits, device=torch.device("cuda" if share.gpus else "cpu"), on_epoch=on_epoch
    )


def launching_trial(sampled: dict[str, Any], shared: dict[str, Any]) -> None:
    """Train one configuration on workers of its own."""
    share: cluster.Share = shared["share"]
    train.trainer(
        shared["base"].replace(**sampled),
        shared["mnist"],
        share,
        cpus_per_worker=share.cpus - SPARED_CPUS,
        storage=shared["folder"] / "workers",
        name=tune.get_context().get_trial_id(),
        keep=None,  # a trial that is stopped may have saved one more epoch than it was asked for
        callbacks=[TuneReportCallback()],
    ).fit()


class Recorder(tune.Callback):  # type: ignore[misc]
    """Keeps the rows of the results tables, and writes them whenever a trial ends."""

    def __init__(
        self,
        folder: Path,
        base: TrainConfig,
        split_hash: Callable[[TrainConfig], str],
        show: display.Study,
        **known: Any,
    ) -> None:
        self.folder, self.base, self.split_hash, self.show = folder, base, split_hash, show
        self.known = known
        self.numbers: dict[str, int] = {}
        self.began: dict[str, float] = {}
        self.epochs: dict[str, list[results.Row]] = {}
        self.rows: dict[str, results.Row] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks; a terminal cannot be pickled, and the data need not be.
        return {**self.__dict__, "show": None, "split_hash": None}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        if trial.trial_id not in self.numbers:
            self.numbers[trial.trial_id] = trials.index(trial)
            self.began[trial.trial_id] = time.monotonic()
            self.epochs[trial.trial_id] = []
            self.show.start(self.numbers[trial.trial_id], trial.config)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: results.Row, **_: Any
    ) -> None:
        row = results.epoch_row(self.folder.name, self.numbers[trial.trial_id], result)
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
        if epochs:
            known["checkpoint"] = results.best_epoch(epochs, "holdout")["checkpoint"]
            known["split_hash"] = self.split_hash(self.base.replace(**trial.config))
        row = results.trial_row(
            {**self.base.model_dump(), **trial.config},
            epochs,
            run=self.folder.name,
            trial=self.numbers[trial.trial_id],
            total_seconds=time.monotonic() - self.began[trial.trial_id],
            **self.known,
            **known,
        )
        self.rows[trial.trial_id] = row
        self.write()
        self.show.end_trial(row)

    def write(self) -> None:
        trials = sorted(self.rows.values(), key=lambda row: row["trial"])
        epochs = sorted(
            (row for rows in self.epochs.values() for row in rows),
            key=lambda row: (row["trial"], row["epoch"]),
        )
        results.write(self.folder, trials, epochs)


def study(base: TrainConfig, study: TuneConfig, run: RunConfig, show: display.Study) -> results.Row:
    """Run a study, write its tables, and score its best trial on the test set. Returns that trial's
    row of the trials table.

    Raises UserError for what cannot be run, RunFailed if no trial has a result.
    """
    base = base.replace(num_workers=study.workers_per_trial)
    if not base.holdout:
        raise UserError(
            "holdout is 0, but a study chooses by held-out images and must not see the test set;"
            " use at least 1, such as 10000."
        )
    dimensions = search.parse(study.dimensions(), base)
    num_trials = search.trials(study, dimensions)
    folder = train.run_folder(run, "tune")
    mnist = data.load(run.data_dir)
    launches = study.workers_per_trial > 1
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own goes on as if all were done
    if not run.verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0
    with cluster.connected(dashboard=launches, verbose=run.verbose):
        share = cluster.share(study.workers_per_trial, base.cpus_per_worker or 1, base.use_gpu)
        concurrent = _concurrency(study, share)
        train.claim(folder)
        recorder = Recorder(
            folder,
            base,
            lambda config: data.split(mnist, config.holdout, config.train_size).hash,
            show,
            precision=share.precision,
            device=share.device,
            started=datetime.now(timezone.utc),
            **results.provenance(),
        )
        shared = {"base": base, "mnist": ray.put(mnist), "share": share, "folder": folder}
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(launching_trial if launches else trial, shared=shared),
                {"CPU": LAUNCHER_CPUS} if launches else {"CPU": share.cpus, "GPU": share.gpus},
            ),
            param_space=search.param_space(study, dimensions),
            tune_config=tune.TuneConfig(
                num_samples=1 if study.search == "grid" else num_trials,
                search_alg=search.algorithm(study, base.seed, num_trials, concurrent),
                scheduler=search.scheduler(study, search.max_epochs(dimensions, base)),
                trial_dirname_creator=lambda trial: f"trial_{trial.trial_id.split('_')[-1]}",
                reuse_actors=not launches,  # starting a process takes two seconds
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                callbacks=[recorder],
                verbose=1 if run.verbose else 0,
                checkpoint_config=tune.CheckpointConfig(
                    num_to_keep=1,  # and the last, always
                    checkpoint_score_attribute=search.METRIC,
                ),
            ),
        )
        show.begin(base, study, num_trials, concurrent, share)
        try:
            with show:
                tuner.fit()
        finally:
            recorder.write()  # also what an interrupted study found so far
    finished = [row for row in recorder.rows.values() if row["status"] in ("ok", "stopped")]
    if not finished:
        outcomes = {f"{row['status']}: {row['error'] or ''}" for row in recorder.rows.values()}
        raise RunFailed(f"no trial has a result ({'; '.join(sorted(outcomes))}); see {folder}.")
    best = max(finished, key=lambda row: (row["best_accuracy"], -row["trial"]))
    score = evaluate.score_test(folder / best["checkpoint"], mnist)
    best |= {"test_accuracy": score.accuracy, "test_loss": score.loss}
    recorder.write()
    recipe = folder / "best.yaml"
    recipe.write_text(_recipe(base, dimensions, best), encoding="utf-8")
    show.end(folder, best, recipe)
    return best


def _concurrency(study: TuneConfig, share: cluster.Share) -> int:
    """How many trials run at a time; raises UserError where more are asked for than fit."""
    fits = cluster.room(share) // study.workers_per_trial
    wanted = study.max_concurrent or fits
    if wanted > fits:
        unit = f"{share.cpus} CPU{'s' * (share.cpus > 1)}" + " and a GPU" * share.gpus
        raise UserError(
            f"max_concurrent is {wanted}, but at {study.workers_per_trial} workers a trial with"
            f" {unit} each only {fits} trials fit at a time; use at most {fits}."
        )
    return wanted


def _recipe(base: TrainConfig, dimensions: dict[str, Any], best: results.Row) -> str:
    """The best trial's recipe as YAML, without what belongs to the study it was found in."""
    values = {**base.model_dump(), **{name: best[name] for name in dimensions}}
    found = (
        f"# Trial {best['trial']} of {best['run']}: {best['best_accuracy']:.2%} of the holdout.\n"
    )
    for name in (*search.FIXED, "seed", "train_size"):
        del values[name]
    return found + yaml.safe_dump(values, sort_keys=False)


def _last_line(path: str | None) -> str:
    lines = Path(path).read_text(encoding="utf-8").strip().splitlines() if path else []
    return lines[-1] if lines else "no message"


def main(argv: Sequence[str]) -> None:
    base, settings, run = flags.parse(
        argv,
        TrainConfig,
        TuneConfig,
        RunConfig,
        prog="python -m mnist_ray.tune",
        description="Search hyperparameters. Without flags: dropout, lr and momentum.",
        defaults=STUDY_RECIPE,
        hide=["num_workers"],
    )
    study(base, settings, run, display.Study())


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
