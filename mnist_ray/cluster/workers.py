"""Ray Train's workers: the function that each of them runs, and the trainer that launches them.

Every worker calls `learn.fit`, which decides what is learned. This file gives it the data, a device
and its cores, and passes on what it reports.
"""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from mnist_ray import learn, storage, tables
from mnist_ray.cluster import resources
from mnist_ray.cluster.ray_private import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from mnist_ray.config import Recipe, Resources
from mnist_ray.learn import Checkpoint, Mnist
from mnist_ray.storage import Place

REPORT_EVERY = 0.5
"""Seconds between two updates of the progress bar, at least."""


Tell = Callable[[str, Any], None]
"""Takes a message of the worker of rank 0: `begin` with the epochs that are done and what decides
the bits besides the recipe, `step` with (epoch, step, steps), or `epoch` with its metrics."""


def worker(job: dict[str, Any]) -> None:
    """Train as one of Ray Train's workers, or as the only one in local mode. `job` holds the
    arguments of `trainer` that a worker needs."""
    recipe: Recipe = job["recipe"]
    # 1. Ray Train says which of how many workers this process is.
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    tell: Tell = job["tell"] if job["tell"] and rank == 0 else lambda kind, content: None
    learn.prepare_process(job["cpus"])
    # 2. MNIST comes from Ray's object store, where all workers of a node share one copy.
    mnist = ray.get(job["mnist"]) if isinstance(job["mnist"], ray.ObjectRef) else job["mnist"]
    splits = learn.split(mnist, recipe.holdout, recipe.train_size)
    epochs, start = [], None
    if before := _before(job["folder"]):
        epochs, start = before.epochs, before.state
    device = torch.device("cuda", 0) if job["in_process"] and job["gpus"] else None
    device = device or ray.train.torch.get_device()
    tell("begin", (epochs, learn.computed_with(recipe, device, world_size)))
    if epochs and epochs[-1]["last"]:
        return
    last_told = time.monotonic()

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal last_told
        if step == steps or time.monotonic() - last_told > REPORT_EVERY:
            last_told = time.monotonic()
            tell("step", (epoch, step, steps))

    # 3. The metrics, and rank 0's checkpoint, go to Ray Train after each epoch.
    def on_epoch(metrics: learn.Metrics, state: learn.State) -> None:
        epochs.append(metrics)
        saved = Checkpoint(state, recipe, epochs, splits.hash)
        if job["in_process"]:  # in local mode Ray Train keeps no checkpoint
            learn.save_checkpoint(job["folder"] / tables.checkpoint_name(metrics["epoch"]), saved)
            ray.train.report(metrics)
            tell("epoch", metrics)
        elif rank:
            ray.train.report(metrics)
        else:
            tell("epoch", metrics)  # before the report, which waits until it was collected
            with TemporaryDirectory() as folder:
                learn.save_checkpoint(Path(folder), saved)
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    learn.fit(
        recipe,
        splits,
        device=device,
        rank=rank,
        world_size=world_size,
        wrap=lambda network: learn.wait_awake(
            ray.train.torch.prepare_model(
                network,
                # The engine averages these once an epoch; DDP would send rank 0's at every step.
                parallel_strategy_kwargs={"broadcast_buffers": False},
            )
        ),
        on_step=on_step,
        on_epoch=on_epoch,
        start=start,
    )


def _before(folder: Place) -> Checkpoint | None:
    """Return what this run saved before it failed or was interrupted: the checkpoint that Ray Train
    knows, or the newest one in `folder` that can be read; None for a new run."""
    known = ray.train.get_checkpoint()
    saved = learn.readable_checkpoints([folder / Path(known.path).name] if known else [])
    saved = saved or learn.readable_checkpoints(tables.checkpoints(folder))
    return next(reversed(saved.values()), None)


def trainer(
    recipe: Recipe,
    needs: Resources,
    mnist: ray.ObjectRef | Mnist,
    share: resources.WorkerResources,
    *,
    in_process: bool = False,
    cpus_per_worker: float | None = None,
    tell: Tell | None = None,
    home: Place,
    name: str,
    keep: int | None = 1,
    max_failures: int,
    callbacks: list[ray.train.UserCallback] | None = None,
) -> ray.train.torch.TorchTrainer:
    """Make Ray Train's trainer for `recipe`. It keeps the `keep` best checkpoints, or all, and the
    last one, and resumes from the last one where `home` holds a run of that `name`.

    `in_process` chooses Ray Train's local mode: one worker, in this process, without a Ray
    cluster; then the worker saves every checkpoint itself. `cpus_per_worker` is what is asked of
    Ray for each worker, by default the cores that it computes on.
    """
    folder = home / name
    _drop_snapshot(folder, only_torn=not in_process)
    workers = (needs.min_workers, needs.num_workers) if needs.min_workers else needs.num_workers
    job = {"recipe": recipe, "mnist": mnist, "in_process": in_process, "tell": tell}
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={**job, "cpus": share.cpus, "gpus": share.gpus, "folder": folder},
        scaling_config=ray.train.ScalingConfig(
            num_workers=0 if in_process else workers,
            use_gpu=bool(share.gpus),
            resources_per_worker={
                "CPU": share.cpus if cpus_per_worker is None else cpus_per_worker,
                **({"GPU": share.gpus} if share.gpus else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(home),
            callbacks=callbacks,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=keep,
                checkpoint_score_attribute="accuracy",
            ),
        ),
    )


def _drop_snapshot(folder: Place, only_torn: bool) -> None:
    """Delete Ray Train's list of its checkpoints; with `only_torn`, only where a kill left it
    half-written, because Ray Train would refuse to start. Without the list, the workers find the
    newest checkpoint themselves."""
    snapshot = folder / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    if not snapshot.exists():
        return
    if only_torn:
        with contextlib.suppress(ValueError):
            json.loads(snapshot.read_text(encoding="utf-8"))
            return
    storage.remove_file(snapshot)
