"""The results tables: what is in them, writing them, and reading them back.

Parquet in and out through pyarrow; neither torch nor Ray is imported, so a table opens at once.
"""

import math
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from mnist_ray import errors, storage
from mnist_ray.storage import Place

Row = dict[str, Any]
Epochs = dict[int, list[Row]]
"""Rows of the epochs table, by the number of the trial."""

TRIALS, EPOCHS, PREDICTIONS = "trials.parquet", "epochs.parquet", "predictions.parquet"

TRIAL_COLUMNS = {
    "run": "name of the study or training run",
    "trial": "number of the trial, from 0 in the order in which they were sampled",
    "phase": "of a study: screen (a short schedule for every configuration), search, confirm (the"
    " best again, with fresh seeds), final (the winner on all images); empty for a training run",
    "repeats": "number of the trial whose configuration this one has, where it is not a new one",
    "origin": "of a study: where the configuration comes from: base (the base recipe), try (one"
    " that --try names) or sampled",
    "winner": "of a study: whether its best trial is this one, so far or, at its end, for good",
    "status": "ok (all its epochs), stopped (by the scheduler), diverged (loss not finite), failed;"
    " running, of a training run that has not ended, or was killed",
    "scored_on": "the images behind best_ and final_: holdout, or test where nothing was held out",
    "best_accuracy": "highest accuracy after any epoch, 0 to 1, the later of two equal ones; in"
    " phase final that after the last epoch",
    "best_epoch": "the epoch of best_accuracy, from 1",
    "best_loss": "mean negative log-likelihood at best_epoch, nats",
    "final_accuracy": "accuracy after the last epoch trained, 0 to 1",
    "final_loss": "mean negative log-likelihood after the last epoch trained, nats",
    "test_accuracy": "accuracy on the 10,000 test images, 0 to 1; empty where they were not scored",
    "test_loss": "mean negative log-likelihood on the test images, nats",
    "epochs_trained": "epochs trained before the trial ended",
    "rung": "epochs after which the scheduler stopped the trial; empty where it did not",
    "train_seconds": "seconds spent training, without scoring",
    "total_seconds": "seconds from the start to the end of the trial",
    "images_per_second": "training images per second, over all its workers",
    "checkpoint": "folder of the checkpoint of best_epoch, within the run's folder; of the last"
    " epoch, where the phase is final",
    "error": "one line, where status is failed",
    "split_hash": "hash of which images were held out and which trained on",
    "arithmetic": "of the convolutions in training: fp32 or bf16",
    "device": "cpu or cuda",
    "hardware": "processor and cores of the machine that launched the run",
    "python": "version",
    "torch": "version",
    "ray": "version",
    "mnist_ray": "version",
    "commit": "of mnist_ray's source, with + where files were changed; empty outside a checkout",
    "started": "UTC time at which the run began",
    "ended": "UTC time at which the trial ended",
}
"""Column and meaning; after these come the fields of the trial's TrainConfig."""

EPOCH_COLUMNS = {
    "run": "name of the study or training run",
    "trial": "number of the trial, as in the trials table",
    "epoch": "from 1",
    "lr": "learning rate at the epoch's last step",
    "train_loss": "mean loss over the epoch's training images, as trained (dropout on), nats",
    "train_accuracy": "accuracy over the epoch's training images, as trained, 0 to 1",
    "holdout_loss": "mean negative log-likelihood on the held-out images, nats",
    "holdout_accuracy": "accuracy on the held-out images, 0 to 1",
    "test_loss": "the same on the test images, where nothing was held out",
    "test_accuracy": "the same on the test images, where nothing was held out",
    "train_seconds": "seconds spent training",
    "score_seconds": "seconds spent scoring",
    "images_per_second": "training images per second",
    "arithmetic": "of the convolutions in training: fp32 or bf16",
    "device": "cpu or cuda",
    "threads": "that each worker computed with on the cpu",
    "workers": "that trained it, data-parallel",
    "checkpoint": "folder of its checkpoint in the run's; only the best and the last are kept",
}


PREDICTION_COLUMNS = {
    "index": "of the image in MNIST's test set, from 0",
    "label": "digit that it is",
    "guess": "digit that the winner takes it for",
    "probability": "that the winner gives its guess, 0 to 1",
    "image": "the 784 pixels of one taken for another digit, row by row, a byte each; else empty",
}


def epoch_row(run: str, trial: int, metrics: Row) -> Row:
    """A row of the epochs table, from what the engine reported."""
    known = {name: metrics[name] for name in EPOCH_COLUMNS if name in metrics}
    return {"run": run, "trial": trial, **known}


def trial_row(config: Row, epochs: Sequence[Row], **known: Any) -> Row:
    """A row of the trials table, from a trial's config and its rows of the epochs table.

    `known` fills what these do not say, and wins over what they do.
    """
    row: Row = dict.fromkeys(TRIAL_COLUMNS)
    row |= {name: value for name, value in config.items() if name not in row}
    if epochs:
        scored_on = "holdout" if config["holdout"] else "test"
        final = epochs[-1]
        # Of the final runs no epoch is picked by the test set.
        best = final if known.get("phase") == "final" else best_epoch(epochs, scored_on)
        train_seconds = sum(epoch["train_seconds"] for epoch in epochs)
        images = sum(epoch["images_per_second"] * epoch["train_seconds"] for epoch in epochs)
        row |= {
            "status": _status(config, epochs),
            "scored_on": scored_on,
            "best_accuracy": best[f"{scored_on}_accuracy"],
            "best_epoch": best["epoch"],
            "best_loss": best[f"{scored_on}_loss"],
            "final_accuracy": final[f"{scored_on}_accuracy"],
            "final_loss": final[f"{scored_on}_loss"],
            "test_accuracy": final.get("test_accuracy"),
            "test_loss": final.get("test_loss"),
            "epochs_trained": len(epochs),
            "rung": epochs[-1]["epoch"] if _status(config, epochs) == "stopped" else None,
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
            "arithmetic": final.get("arithmetic"),
        }
    return row | known


def seconds(epochs: Sequence[Row]) -> float:
    """That these epochs took, by themselves."""
    return float(sum(epoch["train_seconds"] + epoch["score_seconds"] for epoch in epochs))


def best_epoch(epochs: Sequence[Row], scored_on: str) -> Row:
    """The epoch of the highest accuracy, the later of two equal ones: the one Ray keeps as best."""
    return max(epochs, key=lambda epoch: (epoch[f"{scored_on}_accuracy"], epoch["epoch"]))


def _status(config: Row, epochs: Sequence[Row]) -> str:
    losses = [value for name, value in epochs[-1].items() if name.endswith("_loss")]
    if not all(math.isfinite(loss) for loss in losses if loss is not None):
        return "diverged"
    return "ok" if epochs[-1]["epoch"] == config["epochs"] else "stopped"


def provenance() -> Row:
    """The columns that say where a run was made."""
    row: Row = {"hardware": _hardware(), "python": platform.python_version(), "commit": _commit()}
    for package in ("torch", "ray", "mnist_ray"):
        try:
            row[package] = version(package)
        except PackageNotFoundError:
            row[package] = None
    return row


def write(folder: Place, trials: Sequence[Row], epochs: Sequence[Row]) -> None:
    """Write both tables into `folder`, as Parquet and as CSV, each file replaced whole. The epochs
    go first, so that those of every trial in the one table are in the other."""
    for name, columns, rows in (
        (EPOCHS, EPOCH_COLUMNS, epochs),
        (TRIALS, TRIAL_COLUMNS, trials),
    ):
        names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        storage.write(folder / name, _parquet(table))
        csv = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, csv)
        storage.write(folder / name.replace(".parquet", ".csv"), csv.getvalue().to_pybytes())


def write_predictions(folder: Place, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the winner's predictions, as columns that PREDICTION_COLUMNS names."""
    storage.write(folder / PREDICTIONS, _parquet(pa.table(columns)))


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)  # or a flipped bit is another accuracy
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read(folder: Place, name: str = TRIALS, needed: Iterable[str] = ()) -> pa.Table:
    """A table of a run's folder; raises UserError where there is none that can be read, or one
    without a column that is `needed`."""
    path = storage.place("path", folder) / name
    try:
        content = pa.BufferReader(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise errors.UserError(
            f"path {folder} holds no {name}; name the folder of a run."
        ) from None
    except OSError as error:
        raise errors.UserError(f"path {path} cannot be read: {errors.reason(error)}.") from None
    try:
        # Not pq.read_table, one of whose threads may let go of the bytes as Python ends, and then
        # the process aborts.
        file = pq.ParquetFile(content, page_checksum_verification=True)
        table = file.read(use_threads=False)
        table.validate(full=True)
        present = set(table.column_names)
    except Exception as error:  # whatever a reader of damaged bytes raises
        reason = str(error).splitlines() or [type(error).__name__]
        raise errors.UserError(f"path {path} cannot be read: {reason[0]}") from None
    always = PREDICTION_COLUMNS if name == PREDICTIONS else ("run", "trial")
    if missing := sorted({*always, *needed} - present):
        raise errors.UserError(
            f"path {path} is not a results table: it has no column {missing[0]}."
        )
    return table


def newest_run(home: str) -> Place:
    """The run whose tables were written last; raises UserError if there is none."""
    tables: list[Place] = list(storage.place("storage", home).glob(f"*/{TRIALS}"))
    if not tables:
        raise errors.UserError(f"storage {home} holds no results yet; name a run's folder.")
    return max(tables, key=storage.modified).parent


def _hardware() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str | None:
    def git(*command: str) -> subprocess.CompletedProcess[str]:
        folder = str(Path(__file__).parent)
        return subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True)

    try:
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD").returncode
    except OSError:
        return None
    return None if head.returncode else head.stdout.strip() + "+" * bool(changed)
