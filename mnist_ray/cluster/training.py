"""Train once, with Ray Train: launch the workers, tell what they report, write it down."""

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import ray
import ray.exceptions
import ray.train
import ray.train.torch
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray import errors, learn, storage, tables
from mnist_ray.cluster import connect, resources, resume, workers
from mnist_ray.cluster.show import TrainingShow
from mnist_ray.config import Recipe, Resources, RunConfig, check_batch
from mnist_ray.errors import RunFailed
from mnist_ray.search import Status
from mnist_ray.storage import Place


def train(recipe: Recipe, needs: Resources, run: RunConfig, show: TrainingShow) -> dict[str, Any]:
    """Train through Ray Train and write the results tables. Returns the row of the trials table.

    Raises UserError where the workers do not fit, RunFailed where training stops with an error.
    """
    check_batch(recipe, needs)
    folder = tables.folder_of(run, "train")
    settings = {**recipe.model_dump(), **needs.model_dump()}
    recorded = tables.recorded_settings(run, "train") if run.resume else settings
    mnist = learn.load_mnist(recipe, run.data_dir)
    splits = learn.split(mnist, recipe.holdout, recipe.train_size)
    known: tables.Row = {
        **{"trial": 0, "split_hash": splits.hash},
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
            done, now = content
            epochs[:] = [tables.epoch_row(folder.name, 0, metrics) for metrics in done]
            if not begun:
                clock -= tables.seconds(epochs)
            show.go_on(len(epochs), lost=begun)
            if (words := resume.other_bits(done, now)) and not done[-1]["last"]:
                show.say(words)
            begun = True
        write(status=Status.RUNNING)

    def on_wait() -> None:
        show.wait(resources.why_waiting(share, needs.min_workers or needs.num_workers))

    def write(**more: Any) -> tables.Row:
        now = {"total_seconds": time.monotonic() - clock, "ended": datetime.now(UTC)}
        row = tables.trial_row(settings, epochs, **{**known, **now, **more})
        tables.write(folder, [row], epochs)
        return row

    with connect.connected(dashboard=False, verbose=run.verbose, say=show.say):
        share = resources.share(needs)
        resources.check_shared(folder.parent)
        claimed = tables.locked(folder, "train", settings, run.resume, not run.name)
        with claimed as folder:
            known |= {"run": folder.name, "device": share.device}
            show.begin(recipe, needs, share, learn.layers(learn.build_network(recipe)), splits)
            # Beside this process, because another node may be lost.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
            queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
            job = workers.trainer(
                recipe,
                needs,
                ray.put(mnist),
                share,
                queue=queue,
                storage=folder.parent,
                name=folder.name,
                max_failures=run.max_failures,
            )
            try:
                with show, errors.explain_storage_errors(folder):
                    _fit(job, queue, on_message, on_wait)
            except (RunFailed, KeyboardInterrupt) as error:
                if begun:
                    with contextlib.suppress(OSError):  # of a full disk
                        write(status=Status.FAILED, error=str(error) or "interrupted")
                show.stopped(tables.resume_flags(folder, run, settings, recorded))
                raise
    saved = learn.readable_checkpoints(tables.checkpoints(folder))
    places = {each.state["epoch"]: path for path, each in saved.items()}
    last = places[epochs[-1]["epoch"]]
    for epoch in epochs:
        place = places.get(epoch["epoch"])
        epoch["checkpoint"] = storage.relative(place, folder) if place else None
    tables.prune(folder, [folder], epochs)  # Ray Train knows none from before an interruption
    best = tables.best_epoch(epochs)
    row = write(checkpoint=best["checkpoint"])
    if splits.scored_on == "holdout":
        score = learn.score_test(last, mnist)
        row = write(checkpoint=best["checkpoint"], **tables.scores("test", score._asdict()))
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
            if time.monotonic() - heard > resources.PATIENCE:
                on_wait()
                heard = time.monotonic()
        except ray.exceptions.RayError as error:  # the queue is a process too, and may be killed
            raise RunFailed(f"training stopped: {cause(error)}") from error
    if isinstance(outcome[0], ray.train.TrainingFailedError):
        raise RunFailed(f"training stopped: {cause(outcome[0])}") from outcome[0]
    if isinstance(outcome[0], BaseException):
        raise outcome[0]


def _started(folder: Place) -> datetime:
    """When the run began, also where it is resumed now."""
    if (folder / tables.TRIALS).exists():
        began: datetime = tables.read(folder)["started"][0].as_py()
        return began
    return datetime.now(UTC)


def cause(error: BaseException) -> str:
    """The last line of the innermost error, which is the one that says what happened."""
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
