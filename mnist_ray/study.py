"""A study: many trials of `engine.fit`, with Ray Tune.

A trial is the base recipe with the sampled fields replaced. One with a single worker trains in the
trial's own process; one with more launches a TorchTrainer, which takes some 16 seconds to start.
"""

import os
from datetime import datetime, timezone
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import torch
import yaml
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from mnist_ray import (
    checkpoint,
    cluster,
    data,
    display_study,
    engine,
    runs,
    schedulers,
    scoring,
    search,
    tables,
    tracking,
    trainer,
)
from mnist_ray.checkpoint import Checkpoint
from mnist_ray.config import RunConfig, TrainConfig, TuneConfig
from mnist_ray.errors import RunFailed, UserError
from mnist_ray.plan import Plan
from mnist_ray.recorder import Recorder
from mnist_ray.schedulers import METRIC

WORTH = "worth_keeping"
"""By this Tune keeps a trial's best checkpoint."""

LAUNCHER_CPUS, SPARED_CPUS = 0.001, 0.05
"""A trial that launches workers needs a little of a CPU for itself (Tune refuses 0). Its workers
ask for that much less than the cores they compute on, so that w workers of c cores fit on w x c."""


def trial(sampled: dict[str, Any], shared: dict[str, Any]) -> None:
    """Train one configuration in this process."""
    config = _config(sampled, shared)
    share: cluster.Share = shared["share"]
    engine.prepare_process(share.cpus)
    splits = data.split(ray.get(shared["mnist"]), config.holdout, config.train_size)

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        with TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), Checkpoint(state, config, metrics, splits.hash))
            worth = metrics.get(METRIC, metrics["epoch"])  # the last epoch's, without a holdout
            tune.report(
                {**metrics, WORTH: worth}, checkpoint=tune.Checkpoint.from_directory(folder)
            )

    start = None
    if saved := tune.get_checkpoint():  # of this trial, or of one that it is to go on from
        with saved.as_directory() as folder:
            start = checkpoint.load(Path(folder)).state
    device = torch.device("cuda" if share.gpus else "cpu")
    engine.fit(config, splits, device=device, on_epoch=on_epoch, start=start)


def launching_trial(sampled: dict[str, Any], shared: dict[str, Any]) -> None:
    """Train one configuration on workers of its own."""
    share: cluster.Share = shared["share"]
    trainer.trainer(
        _config(sampled, shared),
        shared["mnist"],
        share,
        cpus_per_worker=share.cpus - SPARED_CPUS,
        storage=shared["folder"] / "workers",
        name=tune.get_context().get_trial_id(),
        keep=None,  # a trial that is stopped may have saved one more epoch than it was asked for
        callbacks=[TuneReportCallback()],
    ).fit()


def _config(sampled: dict[str, Any], shared: dict[str, Any]) -> TrainConfig:
    base: TrainConfig = shared["base"]
    return base.replace(**{name: value for name, value in sampled.items() if name != "phase"})


def study(
    base: TrainConfig, study: TuneConfig, run: RunConfig, show: display_study.Study
) -> tables.Row:
    """Run a study, write its tables, and score its winner on the test set. Returns the winner's row
    of the trials table.

    Raises UserError for what cannot be run, RunFailed if no trial has a result.
    """
    base = base.replace(num_workers=study.workers_per_trial)
    if not base.holdout:
        raise UserError(
            "holdout is 0, but a study chooses by held-out images and must not see the test set;"
            " use at least 1, such as 10000."
        )
    dimensions = search.parse(study.dimensions(), base)
    search.check(study, dimensions)
    folder = runs.folder(run, "tune")
    trackers = tracking.callbacks(study.track, folder.name)
    mnist = data.load(run.data_dir)
    launches = study.workers_per_trial > 1
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune's own goes on as if all were done
    # The final runs hold nothing out, and so do not report what schedulers go by.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    if not run.verbose:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one prints even at verbose=0
    with cluster.connected(dashboard=launches, verbose=run.verbose):
        share = cluster.share(study.workers_per_trial, base.cpus_per_worker or 1, base.use_gpu)
        plan = Plan(study, base, dimensions, _concurrency(study, share))
        runs.claim(folder)
        searcher = schedulers.Search(plan)
        recorder = Recorder(
            folder,
            base,
            lambda config: data.split(mnist, config.holdout, config.train_size).hash,
            show,
            plan,
            searcher.numbers,
            device=share.device,
            started=datetime.now(timezone.utc),
            **tables.provenance(),
        )
        shared = {"base": base, "mnist": ray.put(mnist), "share": share, "folder": folder}
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(launching_trial if launches else trial, shared=shared),
                {"CPU": LAUNCHER_CPUS} if launches else {"CPU": share.cpus, "GPU": share.gpus},
            ),
            tune_config=tune.TuneConfig(
                num_samples=-1,  # the plan says when it is done
                search_alg=searcher,
                scheduler=schedulers.scheduler(plan),
                trial_dirname_creator=lambda trial: f"trial_{searcher.numbers[trial.trial_id]:05}",
                reuse_actors=not launches,  # starting a process takes two seconds
            ),
            run_config=tune.RunConfig(
                name=folder.name,
                storage_path=str(folder.parent),
                callbacks=[recorder, *trackers],
                verbose=1 if run.verbose else 0,
                checkpoint_config=tune.CheckpointConfig(
                    # And the last, always. Others of a population may yet need an older one.
                    num_to_keep=3 if study.scheduler == "pbt" else 1,
                    checkpoint_score_attribute=WORTH,
                ),
            ),
        )
        show.begin(plan, share)
        try:
            with show:
                tuner.fit()
        finally:
            recorder.write()  # also what an interrupted study found so far
    winner = plan.winner()
    if winner is None:
        outcomes = {f"{row['status']}: {row['error'] or ''}" for row in plan.rows.values()}
        raise RunFailed(f"no trial has a result ({'; '.join(sorted(outcomes))}); see {folder}.")
    best = plan.rows[winner]
    finals = [plan.rows[i] for i in plan.ranked("final")]
    saved = checkpoint.load(
        folder / min(finals, key=itemgetter("trial"), default=best)["checkpoint"]
    )
    network, test = scoring.load_model(saved), data.test_part(mnist)
    tables.write_predictions(folder, scoring.predictions(network, test))
    if not finals:
        score = engine.evaluate(network, test)
        best |= {"test_accuracy": score.accuracy, "test_loss": score.loss}
    recorder.write()
    recipe = folder / "best.yaml" if study.scheduler != "pbt" else None
    if recipe:
        recipe.write_text(_recipe(base, dimensions, best), encoding="utf-8")
    show.end(folder, recipe)
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


def _recipe(base: TrainConfig, dimensions: dict[str, Any], best: tables.Row) -> str:
    """The best trial's recipe as YAML, without what belongs to the study it was found in."""
    values = {**base.model_dump(), **{name: best[name] for name in dimensions}}
    found = (
        f"# Trial {best['trial']} of {best['run']}: {best['best_accuracy']:.2%} of the holdout.\n"
    )
    for name in (*search.FIXED, "seed", "train_size"):
        del values[name]
    return found + yaml.safe_dump(values, sort_keys=False)
