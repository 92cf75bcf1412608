"""Make the rows of the results tables, write them as Parquet and CSV, and read them back."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

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
    """Return the row of the epochs table for the metrics that the engine reported of an epoch;
    raises ValueError if a metric has no column."""
    row = {name: value for name, value in metrics.items() if name not in CONTROL_METRICS}
    _check(EPOCHS, row)
    return {"run": run, "trial": trial, **row}


def trial_row(config: Row, epochs: Sequence[Row], **known: Any) -> Row:
    """Return the row of the trials table for a trial. `config` holds the fields of its recipe and
    resources, `epochs` its rows of the epochs table, and `known` columns that override these."""
    row: Row = dict.fromkeys(TRIAL_COLUMNS) | config
    if epochs:
        final = epochs[-1]
        on_test_set = final["scored_on"] == "test"
        # A final run must not pick its epoch by the test set.
        best = final if known.get("phase") == Phase.FINAL else best_epoch(epochs)
        status = _status(config, epochs)
        train_seconds = sum(epoch["train_seconds"] for epoch in epochs)
        images = sum(epoch["images_per_second"] * epoch["train_seconds"] for epoch in epochs)
        row |= {
            "status": status,
            "scored_on": final["scored_on"],
            **scores("best", best),
            **scores("final", final),
            **(scores("test", final) if on_test_set else {}),
            "epochs_trained": len(epochs),
            "rung": final["epoch"] if status == Status.STOPPED else None,
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
    """Return the seconds that training and scoring took in these epochs."""
    return float(sum(epoch["train_seconds"] + epoch["score_seconds"] for epoch in epochs))


def kept(epochs: Sequence[Row]) -> list[Row]:
    """Return the epochs whose checkpoints are kept: the best and the last."""
    return [best_epoch(epochs), epochs[-1]] if epochs else []


def best_epoch(epochs: Sequence[Row]) -> Row:
    """Return the epoch with the highest accuracy, and of equal ones the latest: Ray, too, keeps
    that one's checkpoint as the best."""
    return max(epochs, key=lambda epoch: (epoch["accuracy"], epoch["epoch"]))


def _status(config: Row, epochs: Sequence[Row]) -> str:
    if not all(math.isfinite(epochs[-1][name]) for name in ("train_loss", "loss")):
        return Status.DIVERGED
    return Status.OK if epochs[-1]["epoch"] == config["epochs"] else Status.STOPPED


def write(folder: Place, trials: Sequence[Row], epochs: Sequence[Row]) -> None:
    """Write the trials and the epochs table into `folder`, as Parquet and as CSV, each file whole.
    Raises ValueError if a row has a key that is no column."""
    # The epochs first, so that whoever reads in between finds those of every trial in the table.
    for name, rows in ((EPOCHS, epochs), (TRIALS, trials)):
        _check(name, set().union(*rows))
        columns = {each: [row.get(each) for row in rows] for each in SCHEMAS[name].names}
        table = _table(name, columns)
        storage.write(folder / name, _parquet(table))
        storage.write(folder / name.replace(".parquet", ".csv"), as_csv(table))


def write_predictions(folder: Place, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write the winner's predictions into `folder`; `columns` are PREDICTION_COLUMNS by name."""
    _check(PREDICTIONS, columns)
    storage.write(folder / PREDICTIONS, _parquet(_table(PREDICTIONS, columns)))


def empty(name: str) -> pa.Table:
    """Return the table `name` without rows."""
    return SCHEMAS[name].empty_table()


def as_csv(table: pa.Table) -> bytes:
    """Return a table as CSV: floats with all their digits, times in UTC to the second, like
    2026-11-26 22:57:45, because a spreadsheet reads a finer time as text."""
    from pyarrow import csv  # like Parquet and compute below: `--help` needs none of them

    for i, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            whole_seconds = table[i].cast(pa.timestamp("s", tz=field.type.tz), safe=False)
            table = table.set_column(i, field.name, whole_seconds.cast(pa.timestamp("s")))
    sink = pa.BufferOutputStream()
    csv.write_csv(table, sink)
    return bytes(sink.getvalue())


def _check(name: str, columns: Iterable[str]) -> None:
    if unknown := sorted(set(columns) - set(COLUMNS[name])):
        raise ValueError(f"{unknown[0]} is no column of {name}; describe it in tables.COLUMNS.")


def _table(name: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    schema = SCHEMAS[name]
    # Arrow's conversion to a given type would cut 64.5 to 64; its cast refuses.
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in schema]
    return pa.table(arrays, schema=schema)


def _parquet(table: pa.Table) -> bytes:
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    # Without checksums, a bit that flips on the disk silently changes an accuracy.
    parquet.write_table(table, sink, write_page_checksum=True)
    return bytes(sink.getvalue())


class NoTable(errors.UserError):
    """A folder does not hold the table that was asked for."""


def read(folder: Place, name: str = TRIALS, needed: Iterable[str] = ()) -> pa.Table:
    """Read the table `name` of a run's folder, with its columns in the types of the schema. A table
    of an earlier version may lack columns, and have others. Raises NoTable if there is no table,
    and UserError if it cannot be read or lacks a column of `needed`."""
    from pyarrow import parquet

    path = storage.place("path", folder) / name
    try:
        content = pa.BufferReader(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NoTable(f"path {folder} holds no {name}; name the folder of a run.") from None
    except OSError as error:
        raise errors.UserError(f"path {path} cannot be read: {errors.reason(error)}.") from None
    try:
        # parquet.read_table has threads, and one may release the bytes while Python shuts down,
        # which aborts the process.
        file = parquet.ParquetFile(content, page_checksum_verification=True)
        table = file.read(use_threads=False)
        table.validate(full=True)
        present = set(table.column_names)
    except Exception as error:  # damaged bytes raise many kinds
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
    return _typed(_upgraded(table) if name == EPOCHS else table, name, path)


def _upgraded(table: pa.Table) -> pa.Table:
    """Return an epochs table with the columns of this version. Before 0.2.0 it had separate columns
    for the held-out and the test images."""
    import pyarrow.compute as pc

    if "accuracy" in table.column_names or "train_accuracy" not in table.column_names:
        return table

    def old(name: str) -> pa.ChunkedArray:
        return table[name].cast(REAL) if name in table.column_names else pa.nulls(len(table), REAL)

    held_out = pc.is_valid(old("holdout_accuracy"))
    new = {"scored_on": pc.if_else(held_out, "holdout", "test")}
    for name in ("loss", "accuracy"):
        new[name] = pc.coalesce(old(f"holdout_{name}"), old(f"test_{name}"))
    at = table.column_names.index("train_accuracy") + 1
    for offset, (name, values) in enumerate(new.items()):
        table = table.add_column(at + offset, name, values)
    replaced = {"holdout_loss", "holdout_accuracy", "test_loss", "test_accuracy"}
    return table.select([name for name in table.column_names if name not in replaced])


def _typed(table: pa.Table, name: str, path: Place) -> pa.Table:
    """Return the table with its columns in the types of the schema. Tables of earlier versions have
    no type for a column without a value."""
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
    """Return the folder of the run in `home` whose tables were written last; raises UserError if
    there is none."""
    tables: list[Place] = list(storage.place("storage", home).glob(f"*/{TRIALS}"))
    if not tables:
        raise errors.UserError(f"storage {home} holds no results yet; name a run's folder.")
    return max(tables, key=storage.modified).parent
