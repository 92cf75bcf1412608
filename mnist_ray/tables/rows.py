"""Rows of the results tables: made, written and read back. Parquet in and out through pyarrow."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mnist_ray import errors, storage
from mnist_ray.search import Phase, Status
from mnist_ray.storage import Place
from mnist_ray.tables.schema import (
    COLUMNS,
    CONTROL_METRICS,
    EPOCHS,
    PREDICTION_COLUMNS,
    PREDICTIONS,
    REAL,
    SCHEMAS,
    TRIAL_COLUMNS,
    TRIALS,
    Row,
)


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
            **scores("best", best),
            **scores("final", final),
            **(scores("test", final) if of_test else {}),
            "epochs_trained": len(epochs),
            "rung": epochs[-1]["epoch"] if _status(config, epochs) == Status.STOPPED else None,
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
            "arithmetic": final.get("arithmetic"),
        }
    return row | known


def scores(prefix: str, metrics: Row) -> Row:
    """Return the columns of the trials table that begin with `prefix` (best, final or test), from
    the metrics of the epoch or of the score that they describe."""
    columns = [name for name in TRIAL_COLUMNS if name.startswith(f"{prefix}_")]
    return {name: metrics[name.removeprefix(f"{prefix}_")] for name in columns}


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
