"""One trial of a study, in a process that Ray Tune starts for it.

A trial trains the base recipe with the sampled fields replaced. A trial with one worker calls
`learn.fit` in its own process; a trial with more workers launches a TorchTrainer, which takes about
13 seconds to start.
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
"""CPUs that a trial asks for if it launches workers (Tune refuses 0), and how much less than its
cores each worker asks for, so that the trial and w workers of c cores fit on w x c cores."""


class Shared(NamedTuple):
    """What all trials of a study are given; `folder` is the study's."""

    base: Recipe
    needs: Resources
    mnist: ray.ObjectRef
    share: resources.WorkerResources
    folder: Place


def trial(sampled: dict[str, Any], shared: Shared) -> None:
    """Train the configuration `sampled` in this process."""
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
    """Train the configuration `sampled` on workers that this trial launches."""
    workers.trainer(
        _recipe(sampled, shared),
        shared.needs,
        shared.mnist,
        shared.share,
        cpus_per_worker=shared.share.cpus - SPARED_CPUS,
        home=shared.folder / tables.WORKERS,
        name=tables.trial_name(sampled["trial"]),  # Ray Train resumes a run of that name
        keep=None,  # the recorder deletes; a stopped trial may have saved one epoch too many
        max_failures=0,  # Tune starts this function again, and Ray Train resumes the run
        callbacks=[TuneReportCallback()],
    ).fit()


def _recipe(sampled: dict[str, Any], shared: Shared) -> Recipe:
    fields = {key: value for key, value in sampled.items() if key in Recipe.model_fields}
    return shared.base.replace(**fields)


def _saved(recipe: Recipe, folders: list[Place]) -> Checkpoint | None:
    """Return the checkpoint to resume from, or None to start fresh."""
    if mine := tune.get_checkpoint():  # this trial failed and is started again
        with contextlib.suppress(UserError), mine.as_directory() as folder:
            return learn.load_checkpoint(Path(folder))
    # Tune does not know of checkpoints from before the study was interrupted.
    saved = learn.readable_checkpoints(
        path for folder in folders for path in tables.checkpoints(folder)
    )
    last = next(reversed(saved.values()), None)
    return last if last and last.recipe == recipe else None
