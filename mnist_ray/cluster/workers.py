"""Ray Train's workers: what each of them runs, and the trainer that launches them.

What is learned is decided in `engine.fit`, which every worker runs; this file gives it the data, a
device and its share of the processor, and takes its reports back.
"""

import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.queue import Queue

from mnist_ray import learn, tables
from mnist_ray.cluster import resources
from mnist_ray.cluster.ray_private import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from mnist_ray.config import Recipe, Resources
from mnist_ray.learn import Checkpoint
from mnist_ray.storage import Place

REPORT_EVERY = 0.5
"""Seconds between two moves of the progress bar."""


def worker(job: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs. `job` has the recipe, a reference to MNIST, the
    worker's cores, the run's folder, and the queue to the launcher, or None."""
    recipe: Recipe = job["recipe"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    learn.prepare_process(job["cpus"])
    splits = learn.split(ray.get(job["mnist"]), recipe.holdout, recipe.train_size)
    queue: Queue | None = job["queue"] if rank == 0 else None
    epochs, start = [], None
    if before := _before(job["folder"]):
        epochs, start = before.epochs, before.state
    device = ray.train.torch.get_device()
    if queue is not None:
        queue.put(("begin", (epochs, learn.computed_with(recipe, device, world_size))))
    if epochs and epochs[-1]["last"]:
        return
    last_sent = time.monotonic()

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal last_sent
        if queue is not None and (step == steps or time.monotonic() - last_sent > REPORT_EVERY):
            last_sent = time.monotonic()
            queue.put(("step", (epoch, step, steps)))

    def on_epoch(metrics: learn.Metrics, state: learn.State) -> None:
        if queue is not None:
            queue.put(("epoch", metrics))
        if rank:
            ray.train.report(metrics)
            return
        epochs.append(metrics)
        with TemporaryDirectory() as folder:
            learn.save_checkpoint(Path(folder), Checkpoint(state, recipe, epochs, splits.hash))
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
    """What this run saved last, before it failed or was interrupted: what Ray Train took note of
    and reported, or if that cannot be read the newest that can."""
    noted = ray.train.get_checkpoint()
    saved = learn.readable_checkpoints([folder / Path(noted.path).name] if noted else [])
    saved = saved or learn.readable_checkpoints(tables.checkpoints(folder))
    return next(reversed(saved.values()), None)


def trainer(
    recipe: Recipe,
    needs: Resources,
    mnist: ray.ObjectRef,
    share: resources.WorkerResources,
    *,
    cpus_per_worker: float | None = None,
    queue: Queue | None = None,
    storage: Place,
    name: str,
    keep: int | None = 1,
    max_failures: int,
    callbacks: list[ray.train.UserCallback] | None = None,
) -> ray.train.torch.TorchTrainer:
    """Ray Train's trainer for `recipe`. Keeps the `keep` best checkpoints, or all, and the last.
    Goes on from the last one where there is a run of that `name` in `storage`.

    `cpus_per_worker` is what is asked of Ray, if not the cores that a worker computes on.
    """
    _drop_torn_snapshot(storage / name)
    job = {"recipe": recipe, "mnist": mnist, "cpus": share.cpus, "queue": queue}
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={**job, "folder": storage / name},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(needs.min_workers, needs.num_workers)
            if needs.min_workers
            else needs.num_workers,
            use_gpu=bool(share.gpus),
            resources_per_worker={
                "CPU": share.cpus if cpus_per_worker is None else cpus_per_worker,
                **({"GPU": share.gpus} if share.gpus else {}),
            },
        ),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=callbacks,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=keep,
                checkpoint_score_attribute="accuracy",
            ),
        ),
    )


def _drop_torn_snapshot(folder: Place) -> None:
    """Ray Train writes what it knows of its checkpoints in place. Where it was killed meanwhile, it
    would refuse to begin; what is to go on from, the workers find themselves."""
    snapshot = folder / CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
    try:
        json.loads(snapshot.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValueError:
        if isinstance(snapshot, Path):  # elsewhere it is written whole or not at all
            snapshot.unlink()
