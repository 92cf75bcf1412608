"""The results tables: what is in them, writing them, and reading them back.

Parquet in and out through pyarrow; neither torch nor Ray is imported, so a table opens at once.
The types of the columns do not depend on the rows, so that any tool reads two runs together.
"""

import math
import os
import platform
import re
import subprocess
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import BaseModel

from mnist_ray import errors, storage
from mnist_ray.config import Recipe, Resources
from mnist_ray.storage import Place
from mnist_ray.verdict import Phase, Status

Row = dict[str, Any]
Epochs = dict[int, list[Row]]
"""Rows of the epochs table, by the number of the trial."""

TRIALS, EPOCHS, PREDICTIONS = "trials.parquet", "epochs.parquet", "predictions.parquet"


class Column(NamedTuple):
    """The type and the meaning of a column. Any column may be empty in a row."""

    type: pa.DataType
    meaning: str


FLAG, WHOLE, REAL, TEXT = pa.bool_(), pa.int64(), pa.float64(), pa.string()
TIME, BYTES = pa.timestamp("us", tz="UTC"), pa.binary()

TRIAL_COLUMNS = {
    "run": Column(TEXT, "name of the study or training run"),
    "trial": Column(WHOLE, "number of the trial, from 0 in the order in which they were sampled"),
    "phase": Column(
        TEXT,
        "of a study: screen (a short schedule for every configuration), search, confirm (the best"
        " again, with fresh seeds), final (the winner on all images); empty for a training run",
    ),
    "repeats": Column(
        WHOLE, "number of the trial whose configuration this one has, where it is not a new one"
    ),
    "origin": Column(
        TEXT,
        "of a study: where the configuration comes from: base (the base recipe), try (one that"
        " --try names) or sampled; empty for a training run",
    ),
    "winner": Column(
        FLAG,
        "true for the trial that its study takes for the best, so far or at its end; false for the"
        " study's other trials; empty for a training run",
    ),
    "status": Column(
        TEXT,
        "ok (all its epochs), stopped (by the scheduler), diverged (loss not finite), failed;"
        " running, of a training run that has not ended, or was killed",
    ),
    "scored_on": Column(
        TEXT,
        "the images behind best_ and final_, scored after every epoch: holdout, or test where"
        " nothing was held out",
    ),
    "best_accuracy": Column(
        REAL,
        "highest accuracy after any epoch, 0 to 1, the later of two equal ones; in phase final that"
        " after the last epoch",
    ),
    "best_epoch": Column(WHOLE, "the epoch of best_accuracy, from 1"),
    "best_loss": Column(REAL, "mean negative log-likelihood at best_epoch, nats"),
    "final_accuracy": Column(REAL, "accuracy after the last epoch trained, 0 to 1"),
    "final_loss": Column(REAL, "mean negative log-likelihood after the last epoch trained, nats"),
    "test_accuracy": Column(
        REAL, "accuracy on the 10,000 test images, 0 to 1; empty where they were not scored"
    ),
    "test_loss": Column(REAL, "mean negative log-likelihood on the test images, nats"),
    "epochs_trained": Column(WHOLE, "epochs trained before the trial ended"),
    "rung": Column(
        WHOLE, "epochs after which the scheduler stopped the trial; empty where it did not"
    ),
    "train_seconds": Column(REAL, "seconds spent training, without scoring"),
    "total_seconds": Column(REAL, "seconds from the start to the end of the trial"),
    "images_per_second": Column(REAL, "training images per second, over all its workers"),
    "checkpoint": Column(
        TEXT,
        "folder of the checkpoint of best_epoch, within the run's folder; of the last epoch, where"
        " the phase is final",
    ),
    "error": Column(TEXT, "one line, where status is failed"),
    "split_hash": Column(TEXT, "hash of which images were held out and which trained on"),
    "arithmetic": Column(TEXT, "of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "cpu or cuda"),
    "hardware": Column(TEXT, "processor and cores of the machine that launched the run"),
    "python": Column(TEXT, "version"),
    "torch": Column(TEXT, "version"),
    "ray": Column(TEXT, "version"),
    "mnist_ray": Column(TEXT, "version"),
    "commit": Column(
        TEXT,
        "of mnist_ray's own checkout, with + where tracked files of its source were changed; empty"
        " where it runs from anywhere else",
    ),
    "started": Column(TIME, "UTC time at which the run began; whole seconds in the CSV"),
    "ended": Column(TIME, "UTC time at which the trial ended; whole seconds in the CSV"),
}
"""The columns of the trials table that are not fields of the trial's recipe or resources."""

EPOCH_COLUMNS = {
    "run": Column(TEXT, "name of the study or training run"),
    "trial": Column(WHOLE, "number of the trial, as in the trials table"),
    "epoch": Column(WHOLE, "from 1"),
    "lr": Column(REAL, "learning rate at the epoch's last step"),
    "train_loss": Column(
        REAL, "mean loss over the epoch's training images, as trained (dropout on), nats"
    ),
    "train_accuracy": Column(REAL, "accuracy over the epoch's training images, as trained, 0 to 1"),
    "scored_on": Column(
        TEXT, "the images behind loss and accuracy: holdout, or test where nothing was held out"
    ),
    "loss": Column(REAL, "mean negative log-likelihood on these images, nats"),
    "accuracy": Column(REAL, "accuracy on these images, 0 to 1"),
    "train_seconds": Column(REAL, "seconds spent training"),
    "score_seconds": Column(REAL, "seconds spent scoring"),
    "images_per_second": Column(REAL, "training images per second"),
    "arithmetic": Column(TEXT, "of the convolutions in training: fp32 or bf16"),
    "device": Column(TEXT, "cpu or cuda"),
    "threads": Column(WHOLE, "threads that each worker computed with on the cpu"),
    "workers": Column(WHOLE, "that trained it, data-parallel"),
    "checkpoint": Column(
        TEXT, "folder of its checkpoint in the run's; only the best and the last are kept"
    ),
}

PREDICTION_COLUMNS = {
    "index": Column(WHOLE, "of the image in MNIST's test set, from 0"),
    "label": Column(WHOLE, "digit that it is"),
    "guess": Column(WHOLE, "digit that the winner takes it for"),
    "probability": Column(REAL, "that the winner gives its guess, 0 to 1"),
    "image": Column(
        BYTES,
        "the 784 pixels of one taken for another digit, row by row, a byte each; else empty",
    ),
}


def config_columns(config: type[BaseModel]) -> dict[str, Column]:
    """A column for each field of a config class: the type from its annotation, the meaning from its
    description. Raises ValueError for a field that is named like a column of the trials table."""
    if taken := sorted(set(config.model_fields) & set(TRIAL_COLUMNS)):
        raise ValueError(
            f"{config.__name__}.{taken[0]} is named like a column of the trials table; rename one"
            " of them."
        )
    return {
        name: Column(_arrow_type(name, field.annotation), field.description or "")
        for name, field in config.model_fields.items()
    }


ARROW_TYPES = {bool: FLAG, int: WHOLE, float: REAL, str: TEXT}


def _arrow_type(name: str, annotation: Any) -> pa.DataType:
    kinds = _python_types(annotation) - {types.NoneType}
    if len(kinds) != 1 or not kinds <= set(ARROW_TYPES):
        raise TypeError(f"{name} is a {annotation}, for which the trials table has no type.")
    return ARROW_TYPES[kinds.pop()]


def _python_types(annotation: Any) -> set[Any]:
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _python_types(inside[0])
    if origin is typing.Literal:
        return {type(value) for value in inside}
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_python_types, inside))
    return {annotation}


COLUMNS: dict[str, dict[str, Column]] = {
    TRIALS: {**TRIAL_COLUMNS, **config_columns(Recipe), **config_columns(Resources)},
    EPOCHS: EPOCH_COLUMNS,
    PREDICTIONS: PREDICTION_COLUMNS,
}
"""Every column of every table, with its type and its meaning."""

SCHEMAS = {
    table: pa.schema([(name, column.type) for name, column in columns.items()])
    for table, columns in COLUMNS.items()
}

CONTROL_METRICS = frozenset({"last"})
"""What the engine reports of an epoch to those that run it, and no table keeps."""


def epoch_row(run: str, trial: int, metrics: Row) -> Row:
    """A row of the epochs table, from what the engine reported, and from nothing else: raises
    ValueError for a metric that no column names."""
    row = {name: value for name, value in metrics.items() if name not in CONTROL_METRICS}
    _check(EPOCHS, row)
    return {"run": run, "trial": trial, **row}


def trial_row(config: Row, epochs: Sequence[Row], **known: Any) -> Row:
    """A row of the trials table, from the fields of a trial's recipe and resources, and its rows
    of the epochs table.

    `known` fills what these do not say, and wins over what they do.
    """
    row: Row = dict.fromkeys(TRIAL_COLUMNS) | config
    if epochs:
        final = epochs[-1]
        of_test = final["scored_on"] == "test"
        # Of the final runs no epoch is picked by the test set.
        best = final if known.get("phase") == Phase.FINAL else best_epoch(epochs)
        train_seconds = sum(epoch["train_seconds"] for epoch in epochs)
        images = sum(epoch["images_per_second"] * epoch["train_seconds"] for epoch in epochs)
        row |= {
            "status": _status(config, epochs),
            "scored_on": final["scored_on"],
            "best_accuracy": best["accuracy"],
            "best_epoch": best["epoch"],
            "best_loss": best["loss"],
            "final_accuracy": final["accuracy"],
            "final_loss": final["loss"],
            "test_accuracy": final["accuracy"] if of_test else None,
            "test_loss": final["loss"] if of_test else None,
            "epochs_trained": len(epochs),
            "rung": epochs[-1]["epoch"] if _status(config, epochs) == Status.STOPPED else None,
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
            "arithmetic": final.get("arithmetic"),
        }
    return row | known


def seconds(epochs: Sequence[Row]) -> float:
    """That these epochs took, by themselves."""
    return float(sum(epoch["train_seconds"] + epoch["score_seconds"] for epoch in epochs))


def kept(epochs: Sequence[Row]) -> list[Row]:
    """The epochs whose checkpoints are kept: the best and the last."""
    return [best_epoch(epochs), epochs[-1]] if epochs else []


def best_epoch(epochs: Sequence[Row]) -> Row:
    """The epoch of the highest accuracy, the later of two equal ones: the one Ray keeps as best."""
    return max(epochs, key=lambda epoch: (epoch["accuracy"], epoch["epoch"]))


def _status(config: Row, epochs: Sequence[Row]) -> str:
    if not all(math.isfinite(epochs[-1][name]) for name in ("train_loss", "loss")):
        return Status.DIVERGED
    return Status.OK if epochs[-1]["epoch"] == config["epochs"] else Status.STOPPED


def provenance() -> Row:
    """The columns that say where a run was made."""
    row: Row = {
        "hardware": _hardware(),
        "python": platform.python_version(),
        "commit": _commit(PACKAGE),
    }
    for package in ("torch", "ray", "mnist_ray"):
        try:
            row[package] = version(package)
        except PackageNotFoundError:
            row[package] = None
    return row


def write(folder: Place, trials: Sequence[Row], epochs: Sequence[Row]) -> None:
    """Write both tables into `folder`, as Parquet and as CSV, each file replaced whole. The epochs
    go first, so that those of every trial in the one table are in the other."""
    for name, rows in ((EPOCHS, epochs), (TRIALS, trials)):
        _check(name, set().union(*rows))
        columns = {each: [row.get(each) for row in rows] for each in SCHEMAS[name].names}
        table = _table(name, columns)
        storage.write(folder / name, _parquet(table))
        storage.write(folder / name.replace(".parquet", ".csv"), csv(table))


def write_predictions(folder: Place, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the winner's predictions, as the columns that PREDICTION_COLUMNS names."""
    _check(PREDICTIONS, columns)
    storage.write(folder / PREDICTIONS, _parquet(_table(PREDICTIONS, columns)))


def empty(name: str) -> pa.Table:
    """A table without rows."""
    return SCHEMAS[name].empty_table()


def csv(table: pa.Table) -> bytes:
    """A table as CSV: floats in as many digits as they need, and times in UTC to the second, like
    2026-11-26 22:57:45, because spreadsheets take finer ones for text."""
    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            seconds = table[i].cast(pa.timestamp("s", tz=field.type.tz), safe=False)
            table = table.set_column(i, field.name, seconds.cast(pa.timestamp("s")))
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _check(name: str, columns: Iterable[str]) -> None:
    if unknown := sorted(set(columns) - set(COLUMNS[name])):
        raise ValueError(f"{unknown[0]} is no column of {name}; describe it in tables.COLUMNS.")


def _table(name: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    schema = SCHEMAS[name]
    # Arrow's conversion to a given type would cut 64.5 to 64; its cast refuses.
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)  # or a flipped bit is another accuracy
    content: bytes = sink.getvalue().to_pybytes()
    return content


class NoTable(errors.UserError):
    """There is no such table in the folder."""


def read(folder: Place, name: str = TRIALS, needed: Iterable[str] = ()) -> pa.Table:
    """A table of a run's folder, in the types of its columns. One of an earlier version may lack
    columns and have others.

    Raises NoTable where there is none, and UserError for one that cannot be read, or lacks a column
    that is `needed`.
    """
    path = storage.place("path", folder) / name
    try:
        content = pa.BufferReader(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NoTable(f"path {folder} holds no {name}; name the folder of a run.") from None
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
    if missing := sorted({*always} - present):
        raise errors.UserError(
            f"path {path} is not a results table: it has no column {missing[0]}."
        )
    if missing := sorted({*needed} - present):
        raise errors.UserError(
            f"path {path} was written by another version of mnist_ray: it has no column"
            f" {missing[0]}."
        )
    return _typed(_of_now(table) if name == EPOCHS else table, name, path)


def _of_now(table: pa.Table) -> pa.Table:
    """A table of epochs with the columns of this version: before 0.2.0 the held-out images and the
    test images had columns of their own."""
    if "accuracy" in table.column_names or "train_accuracy" not in table.column_names:
        return table
    empty_column = pa.nulls(len(table), REAL)

    def old(name: str) -> pa.ChunkedArray:
        return table[name].cast(REAL) if name in table.column_names else empty_column

    held_out = pc.is_valid(old("holdout_accuracy"))
    new = {"scored_on": pc.if_else(held_out, "holdout", "test")}
    for name in ("loss", "accuracy"):
        new[name] = pc.coalesce(old(f"holdout_{name}"), old(f"test_{name}"))
    at = table.column_names.index("train_accuracy") + 1
    for offset, (name, values) in enumerate(new.items()):
        table = table.add_column(at + offset, name, values)
    gone = [f"{whose}_{name}" for whose in ("holdout", "test") for name in ("loss", "accuracy")]
    return table.drop_columns([name for name in gone if name in table.column_names])


def _typed(table: pa.Table, name: str, path: Place) -> pa.Table:
    """The table in the types of its columns: in those of an earlier version, a column without any
    value had none."""
    for i, field in enumerate(table.schema):
        if field.name in COLUMNS[name]:
            wanted = COLUMNS[name][field.name].type
            try:
                table = table.set_column(i, field.name, table[i].cast(wanted))
            except pa.ArrowException:
                raise errors.UserError(
                    f"path {path} is not a results table: its column {field.name} is"
                    f" {field.type}, not {wanted}."
                ) from None
    return table


def newest_run(home: str) -> Place:
    """The run whose tables were written last; raises UserError if there is none."""
    tables: list[Place] = list(storage.place("storage", home).glob(f"*/{TRIALS}"))
    if not tables:
        raise errors.UserError(f"storage {home} holds no results yet; name a run's folder.")
    return max(tables, key=storage.modified).parent


PACKAGE = Path(__file__).resolve().parent
PROJECT = r"""^name *= *["']mnist[-_.]ray["']"""
"""A line of mnist_ray's pyproject.toml."""
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
"""Variables by which git, within one of its hooks, names the repository that the hook is of."""


def _hardware() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _commit(package: Path) -> str | None:
    """The commit of mnist_ray's own checkout: a repository with this package at its top, and the
    project file that names it. One that it is installed in or copied into has other commits."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: v for name, v in os.environ.items() if name not in OTHER_REPOSITORY}
        return subprocess.run(
            ["git", "-C", str(package), *command], capture_output=True, text=True, env=environment
        )

    project = package.parent / "pyproject.toml"
    try:
        if not re.search(PROJECT, project.read_text(encoding="utf-8"), re.MULTILINE):
            return None
        top = git("rev-parse", "--show-toplevel")
        tracked = git("ls-files", "--error-unmatch", ".")
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".")
    except (OSError, UnicodeDecodeError):
        return None
    if top.returncode or tracked.returncode or head.returncode:
        return None
    if Path(top.stdout.rstrip("\n")).resolve() != package.parent:
        return None
    return head.stdout.strip() + "+" * (changed.returncode == 1)
