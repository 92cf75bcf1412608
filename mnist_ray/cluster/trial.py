"""One trial of a study, in a process of its own: `engine.fit` under Ray Tune.

A trial is the base recipe with the sampled fields replaced. One with a single worker trains in the
trial's own process; one with more launches a TorchTrainer, which takes some 16 seconds to start.
"""

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from mnist_ray import learn, tables
from mnist_ray.cluster import resources, workers
from mnist_ray.config import Recipe, Resources
from mnist_ray.errors import UserError
from mnist_ray.learn import Checkpoint
from mnist_ray.storage import Place

LAUNCHER_CPUS, SPARED_CPUS = 0.001, 0.05
"""A trial that launches workers needs a little of a CPU for itself (Tune refuses 0). Its workers
ask for that much less than the cores they compute on, so that w workers of c cores fit on w x c."""


class Shared(NamedTuple):
    """What all trials of a study get; `folder` is the study's."""

    base: Recipe
    needs: Resources
    mnist: ray.ObjectRef
    share: resources.WorkerResources
    folder: Place


def trial(sampled: dict[str, Any], shared: Shared) -> None:
    """Train one configuration in this process."""
    recipe = _recipe(sampled, shared)
    learn.prepare_process(shared.share.cpus)
    splits = learn.split(ray.get(shared.mnist), recipe.holdout, recipe.train_size)
    epochs, start = [], None
    if saved := _saved(recipe, tables.trial_folders(shared.folder, sampled["trial"])):
        epochs, start = saved.epochs, saved.state
        if epochs[-1]["last"]:
            return

    def on_epoch(metrics: learn.Metrics, state: learn.State) -> None:
        epochs.append(metrics)
        with TemporaryDirectory() as folder:
            learn.save_checkpoint(Path(folder), Checkpoint(state, recipe, epochs, splits.hash))
            tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))

    device = torch.device("cuda" if shared.share.gpus else "cpu")
    learn.fit(recipe, splits, device=device, on_epoch=on_epoch, start=start)


def launching_trial(sampled: dict[str, Any], shared: Shared) -> None:
    """Train one configuration on workers of its own."""
    workers.trainer(
        _recipe(sampled, shared),
        shared.needs,
        shared.mnist,
        shared.share,
        cpus_per_worker=shared.share.cpus - SPARED_CPUS,
        home=shared.folder / tables.WORKERS,
        name=tables.trial_name(sampled["trial"]),  # Ray Train goes on with one that is there
        keep=None,  # a trial that is stopped may have saved one more epoch than it was asked for
        max_failures=0,  # Tune begins this again, and Ray Train goes on
        callbacks=[TuneReportCallback()],
    ).fit()


def _recipe(sampled: dict[str, Any], shared: Shared) -> Recipe:
    fields = {key: value for key, value in sampled.items() if key in Recipe.model_fields}
    return shared.base.replace(**fields)


def _saved(recipe: Recipe, folders: list[Place]) -> Checkpoint | None:
    """What the trial is to go on from, if it is not to begin."""
    if mine := tune.get_checkpoint():  # which failed
        with contextlib.suppress(UserError), mine.as_directory() as folder:
            return learn.load_checkpoint(Path(folder))
    # Or what the trial saved before the study was interrupted, of which Tune does not know.
    saved = learn.readable_checkpoints(
        path for folder in folders for path in tables.checkpoints(folder)
    )
    last = next(reversed(saved.values()), None)
    return last if last and last.recipe == recipe else None
