"""One training run with Ray Train: in this process or on workers, shown and recorded as it goes."""

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import ray
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray import errors, learn, restored, storage, tables
from mnist_ray.cluster import connect, resources, resume, tensorboard, tracking, workers
from mnist_ray.cluster.show import TrainingShow
from mnist_ray.config import Recipe, Resources, TrainRunConfig, check_batch
from mnist_ray.errors import RunFailed, UserError
from mnist_ray.search import Status
from mnist_ray.storage import Place

TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets. If all of them are set, Ray Train's local mode joins a
process group."""


@tracking.impatient()
def train(recipe: Recipe, needs: Resources, run: TrainRunConfig, show: TrainingShow) -> tables.Row:
    """Train through Ray Train and write the results tables. Return the row of the trials table.

    Raises UserError where the workers do not fit, RunFailed where training stops with an error or
    the loss is not finite.
    """
    check_batch(recipe, needs)
    folder = tables.folder_of(run, "train")
    settings = {**recipe.model_dump(), **needs.model_dump()}
    asked = {**settings, "track": run.track}
    recorded = tables.recorded_settings(run, "train") if run.resume else asked
    in_process = _in_process(needs, run)
    tracking.check(run.track)
    mnist = learn.load_mnist(recipe, run.data_dir)
    splits = learn.split(mnist, recipe.holdout, recipe.train_size)
    described: tables.Row = {
        **{"trial": 0, "split_hash": splits.hash},
        **{"started": _started(folder), **tables.provenance()},
    }
    clock = time.monotonic()
    epochs: list[tables.Row] = []
    started = False
    tracker: tracking.RunTracker | None = None

    def on_message(kind: str, content: Any) -> None:
        nonlocal started, clock
        if kind == "step":
            show.step(*content)
            return
        if kind == "epoch":
            row = tables.epoch_row(folder.name, 0, content)
            epochs.append(row)
            if in_process:
                row["checkpoint"] = tables.checkpoint_name(row["epoch"])
                tables.prune(folder, [folder], epochs)
            show.epoch(content)
        else:  # the workers start, for the first time or again
            done, now = content
            epochs[:] = _with_checkpoints(folder, done)
            if not started:
                clock -= tables.seconds(epochs)
            show.go_on(len(epochs), lost=started)
            if (words := resume.other_bits(done, now)) and not done[-1]["last"]:
                show.say(words)
            started = True
        write(status=Status.RUNNING)

    def on_wait() -> None:
        show.wait(resources.why_waiting(share, needs.min_workers or needs.num_workers))

    def write(**more: Any) -> tables.Row:
        now = {"total_seconds": time.monotonic() - clock, "ended": datetime.now(UTC)}
        row = tables.trial_row(settings, epochs, **{**described, **now, **more})
        tables.write(folder, [row], epochs)
        if epochs:
            tensorboard.write(folder, epochs, settings, row["started"])
        if tracker:
            tracker.log(epochs)
        return row

    with (
        _this_process(run.verbose)
        if in_process
        else connect.connected(dashboard=False, verbose=run.verbose, show=show)
    ):
        nodes = resources.this_machine() if in_process else resources.cluster_nodes()
        share = resources.share(needs, nodes)
        if not in_process:
            resources.check_shared(folder.parent)
        with tables.locked(folder, "train", asked, run.resume, not run.name) as folder:
            described |= {"run": folder.name, "device": share.device}
            began = described["started"]
            tracker = tracking.of_run(run.track, folder.name, settings, began)
            with torch.random.fork_rng():  # building a network draws its first weights
                layers = learn.layers(learn.build_network(recipe))
            show.begin(recipe, needs, share, layers, splits, in_process)
            trainer = functools.partial(
                workers.trainer,
                recipe,
                needs,
                share=share,
                home=folder.parent,
                name=folder.name,
                max_failures=run.max_failures,
            )
            try:
                with show, errors.explain_storage_errors(folder):
                    if in_process:
                        _fit_here(trainer(mnist=mnist, tell=on_message, in_process=True))
                    else:
                        _fit_on_workers(trainer, ray.put(mnist), on_message, on_wait)
                    epochs = _with_checkpoints(folder, epochs)
                    if not epochs[-1]["checkpoint"]:
                        raise RunFailed(
                            "the checkpoint of the last epoch is missing or damaged; resume the run"
                            " to train again what is lost."
                        )
            except (RunFailed, KeyboardInterrupt) as error:
                if started:
                    with contextlib.suppress(OSError):  # the disk may be full
                        write(status=Status.FAILED, error=str(error) or "interrupted")
                if tracker:
                    tracker.end(failed=True)
                show.stopped(tables.resume_flags(folder, run, asked, recorded))
                raise
    with errors.explain_storage_errors(folder):
        # Ray Train does not know, and so does not delete, checkpoints from before an interruption.
        tables.prune(folder, [folder], epochs)
        best, last = tables.best_epoch(epochs), folder / epochs[-1]["checkpoint"]
        row = write(checkpoint=best["checkpoint"])
        if splits.scored_on == "holdout":
            score = learn.score_test(last, mnist)
            row = write(checkpoint=best["checkpoint"], **tables.scores("test", score._asdict()))
    if tracker:
        tracker.end(failed=row["status"] != Status.OK)
    show.end(row, folder, last=last)
    if row["status"] == Status.DIVERGED:
        raise RunFailed(
            f"the loss was not finite after epoch {row['epochs_trained']}; lower the learning rate."
        )
    return row


def _in_process(needs: Resources, run: TrainRunConfig) -> bool:
    """Return whether to train in this process. Raises UserError where that was asked for but is
    impossible."""
    if run.in_process and needs.num_workers > 1:
        raise UserError(
            f"in_process is on, but num_workers is {needs.num_workers}, and a process is one"
            " worker; leave one of them out."
        )
    if run.in_process is not None:
        return run.in_process
    return needs.num_workers == 1 and not connect.to_join()


@contextlib.contextmanager
def _this_process(verbose: bool) -> Iterator[None]:
    """Put back after the block what training changes in this process: PyTorch's threads and random
    state, and the level of Ray Train's logger. Within it, torchrun's variables are unset."""
    threads = torch.get_num_threads()
    with (
        torch.random.fork_rng(),
        restored.environment(also=TORCHRUN),
        restored.log_level("ray.train", None if verbose else logging.WARNING),
    ):
        for name in TORCHRUN:
            os.environ.pop(name, None)
        try:
            yield
        finally:
            learn.prepare_process(threads)


def _fit_here(trainer: TorchTrainer) -> None:
    """Train in this process; raise RunFailed with the reason if that stops with an error."""
    try:
        trainer.fit()
    except Exception as error:
        raise RunFailed(f"training stopped: {cause(error)}") from error


def _fit_on_workers(
    trainer: Callable[..., TorchTrainer],
    mnist: ray.ObjectRef,
    on_message: workers.Tell,
    on_wait: Callable[[], None],
) -> None:
    """Train on Ray's workers. `TorchTrainer.fit` runs in a thread; this one passes the workers'
    messages on, and calls `on_wait` if none came for long."""
    # The queue's process runs on this node, because another node may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    job = trainer(mnist=mnist, tell=lambda kind, content: queue.put((kind, content)))
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
            # A long timeout, because each call of `get` sends the queue's process a message.
            on_message(*queue.get(timeout=1))
            heard = time.monotonic()
        except Empty:
            if time.monotonic() - heard > resources.PATIENCE:
                on_wait()
                heard = time.monotonic()
        except ray.exceptions.RayError as error:  # the queue is a process too, and may be killed
            raise RunFailed(f"training stopped: {cause(error)}") from error
    if isinstance(outcome[0], ray.train.TrainingFailedError):
        raise RunFailed(f"training stopped: {cause(outcome[0])}") from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def _with_checkpoints(folder: Place, epochs: Sequence[tables.Row]) -> list[tables.Row]:
    """Return rows of the epochs table, made from rows or from the metrics of `learn.fit`, with the
    checkpoints in the run's folder that can be read."""
    saved = learn.readable_checkpoints(tables.checkpoints(folder))
    places = {each.state["epoch"]: storage.relative(path, folder) for path, each in saved.items()}
    return [
        {**tables.epoch_row(folder.name, 0, epoch), "checkpoint": places.get(epoch["epoch"])}
        for epoch in epochs
    ]


def _started(folder: Place) -> datetime:
    """Return when the run began: for a resumed run as its table says, for a new run now."""
    if (folder / tables.TRIALS).exists():
        began: datetime = tables.read(folder)["started"][0].as_py()
        return began
    return datetime.now(UTC)


def cause(error: BaseException) -> str:
    """Return the last line of the innermost error, which says what happened."""
    inner = getattr(error, "worker_failures", None)
    if inner:
        error = next(iter(inner.values()))
    if errors.LOW_ON_MEMORY in str(error):
        return (
            "a process was killed because its node ran low on memory; lower --num-workers or"
            " --batch-size"
        )
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
