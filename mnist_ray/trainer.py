"""Train once, with Ray Train.

A thin launcher. What is learned is decided in `engine.fit`, which every worker runs; this file
gives it the data, a device and its share of the processor, and takes reports back to the terminal.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray import (
    checkpoint,
    cluster,
    data,
    display,
    engine,
    errors,
    model,
    runs,
    scoring,
    storage,
    tables,
)
from mnist_ray.checkpoint import Checkpoint
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.errors import RunFailed
from mnist_ray.storage import Place

REPORT_EVERY = 0.5
"""Seconds between two moves of the progress bar."""


def worker(job: dict[str, Any]) -> None:
    """What each of Ray Train's workers runs. `job` has the config, a reference to MNIST, the
    worker's cores, the run's folder, and the queue to the launcher, or None."""
    config: TrainConfig = job["config"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    engine.prepare_process(job["cpus"])
    splits = data.split(ray.get(job["mnist"]), config.holdout, config.train_size)
    queue: Queue | None = job["queue"] if rank == 0 else None
    epochs, start = [], None
    if before := _before(job["folder"]):
        epochs, start = before.epochs, before.state
    if queue is not None:
        queue.put(("begin", epochs))
    if epochs and epochs[-1]["last"]:
        return
    last_sent = time.monotonic()

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal last_sent
        if queue is not None and (step == steps or time.monotonic() - last_sent > REPORT_EVERY):
            last_sent = time.monotonic()
            queue.put(("step", (epoch, step, steps)))

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        if queue is not None:
            queue.put(("epoch", metrics))
        if rank:
            ray.train.report(metrics)
            return
        epochs.append(metrics)
        with TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), Checkpoint(state, config, epochs, splits.hash))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    engine.fit(
        config,
        splits,
        device=ray.train.torch.get_device(),
        rank=rank,
        world_size=world_size,
        wrap=lambda network: engine.wait_awake(
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
    saved = checkpoint.whole([folder / Path(noted.path).name] if noted else [])
    saved = saved or checkpoint.whole(folder.glob("checkpoint_*"))
    return next(reversed(saved.values()), None)


def trainer(
    config: TrainConfig,
    mnist: ray.ObjectRef,
    share: cluster.Share,
    *,
    cpus_per_worker: float | None = None,
    queue: Queue | None = None,
    storage: Place,
    name: str,
    keep: int | None = 1,
    max_failures: int,
    callbacks: list[ray.train.UserCallback] | None = None,
) -> ray.train.torch.TorchTrainer:
    """Ray Train's trainer for `config`. Keeps the `keep` best checkpoints, or all, and the last.
    Goes on from the last one where there is a run of that `name` in `storage`.

    `cpus_per_worker` is what is asked of Ray, if not the cores that a worker computes on.
    """
    scored_on = "holdout" if config.holdout else "test"
    _drop_torn_snapshot(storage / name)
    job = {"config": config, "mnist": mnist, "cpus": share.cpus, "queue": queue}
    return ray.train.torch.TorchTrainer(
        worker,
        train_loop_config={**job, "folder": storage / name},
        scaling_config=ray.train.ScalingConfig(
            num_workers=(config.min_workers, config.num_workers)
            if config.min_workers
            else config.num_workers,
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
                checkpoint_score_attribute=f"{scored_on}_accuracy",
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


def train(config: TrainConfig, run: RunConfig, show: display.Training) -> dict[str, Any]:
    """Train through Ray Train and write the results tables. Returns the row of the trials table.

    Raises UserError where the workers do not fit, RunFailed where training stops with an error.
    """
    folder = runs.folder(run, "train")
    mnist = data.load(run.data_dir)
    splits = data.split(mnist, config.holdout, config.train_size)
    known: tables.Row = {
        **{"run": folder.name, "trial": 0, "split_hash": splits.hash},
        **{"started": _started(folder), **tables.provenance()},
    }
    clock = time.monotonic()
    epochs: list[tables.Row] = []
    begun = False

    def on_message(kind: str, content: Any) -> None:
        nonlocal begun, clock
        if kind == "step":
            show.step(*content)
            return
        if kind == "epoch":
            epochs.append(tables.epoch_row(folder.name, 0, content))
            show.epoch(content)
        else:  # the workers begin, for the first time or again
            epochs[:] = [tables.epoch_row(folder.name, 0, metrics) for metrics in content]
            if not begun:
                clock -= tables.seconds(epochs)
            show.go_on(len(epochs), lost=begun)
            begun = True
        write(status="running")

    def on_wait() -> None:
        show.wait(cluster.why_waiting(share, config.min_workers or config.num_workers))

    def write(**more: Any) -> tables.Row:
        now = {"total_seconds": time.monotonic() - clock, "ended": datetime.now(timezone.utc)}
        row = tables.trial_row(config.model_dump(), epochs, **{**known, **now, **more})
        tables.write(folder, [row], epochs)
        return row

    with cluster.connected(dashboard=False, verbose=run.verbose, say=show.console.print):
        share = cluster.share(
            config.num_workers, config.cpus_per_worker, config.use_gpu, config.min_workers
        )
        known |= {"device": share.device}
        if isinstance(folder, Path):
            cluster.check_shared(folder.parent)
        with runs.claimed(folder, "train", config.model_dump(), run.resume):
            show.begin(config, share, model.layers(model.build(config)), splits)
            # Beside this process, because another node may be lost.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
            queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
            job = trainer(
                config,
                ray.put(mnist),
                share,
                queue=queue,
                storage=folder.parent,
                name=folder.name,
                max_failures=run.max_failures,
            )
            try:
                with show, errors.storage_told(folder):
                    _fit(job, queue, on_message, on_wait)
            except (RunFailed, KeyboardInterrupt) as error:
                if begun:
                    with contextlib.suppress(OSError):  # of a full disk
                        write(status="failed", error=str(error) or "interrupted")
                show.stopped(runs.resume_command(folder, run, "train"))
                raise
    saved = checkpoint.whole(folder.glob("checkpoint_*"))
    places = {each.state["epoch"]: path for path, each in saved.items()}
    last = places[epochs[-1]["epoch"]]
    kept = {last, places[tables.best_epoch(epochs, splits.scored_on)["epoch"]]}
    for path in folder.glob("checkpoint_*"):
        if path.is_dir() and path not in kept:  # Ray Train knows none from before an interruption
            storage.remove(path)
    for epoch in epochs:
        place = places.get(epoch["epoch"])
        epoch["checkpoint"] = storage.relative(place, folder) if place in kept else None
    best = tables.best_epoch(epochs, splits.scored_on)
    row = write(checkpoint=best["checkpoint"])
    if splits.scored_on == "holdout":
        score = scoring.score_test(last, mnist)
        row = write(
            checkpoint=best["checkpoint"], test_accuracy=score.accuracy, test_loss=score.loss
        )
    show.end(row, folder, last=last)
    return row


def _fit(
    job: ray.train.torch.TorchTrainer,
    queue: Queue,
    on_message: Callable[[str, Any], None],
    on_wait: Callable[[], None],
) -> None:
    """`job.fit()` in a thread, while this one passes the workers' messages on, and tells if none
    came for long."""
    outcome: list[Any] = []
    heard = time.monotonic()

    def target() -> None:
        try:
            outcome.append(job.fit())
        except BaseException as error:  # raised below, in the thread that asked
            outcome.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive() or not queue.empty():
        try:
            on_message(*queue.get(timeout=1))  # a long wait: each is a message to the queue
            heard = time.monotonic()
        except Empty:
            if time.monotonic() - heard > cluster.PATIENCE:
                on_wait()
                heard = time.monotonic()
    if isinstance(outcome[0], ray.train.TrainingFailedError):
        raise RunFailed(f"training stopped: {cause(outcome[0])}") from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def _started(folder: Place) -> datetime:
    """When the run began, also where it is resumed now."""
    if (folder / tables.TRIALS).exists():
        began: datetime = tables.read(folder)["started"][0].as_py()
        return began
    return datetime.now(timezone.utc)


def cause(error: BaseException) -> str:
    """The last line of the innermost error, which is the one that says what happened."""
    inner = getattr(error, "worker_failures", None)
    if inner:
        error = next(iter(inner.values()))
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
