"""Views of the results tables: filtered, sorted, averaged over seeds, and written as text."""

import json
import math
from typing import Any

import pyarrow as pa

from mnist_ray import errors, search
from mnist_ray.search import Phase, Status
from mnist_ray.tables.rows import as_csv
from mnist_ray.tables.run_folder import checkpoint_name
from mnist_ray.tables.schema import SHARES, TRIAL_COLUMNS, Row

SUMMARY = (
    "run",
    "trial",
    "phase",
    "status",
    "scored_on",
    "best_accuracy",
    "test_accuracy",
    "epochs_trained",
    "train_seconds",
)
"""The columns that a terminal shows, beside the config fields that differ between the rows. With
three such fields the table fits in 80 characters. csv and json have all columns."""

BEST = "best_accuracy"


def ranked(table: pa.Table, sort: str = BEST) -> pa.Table:
    """Return the table sorted by a column: accuracies and speeds from the highest, all others from
    the lowest. By best accuracy, the last phase of a study comes first. Raises UserError if the
    table has no column `sort`."""
    if sort not in table.column_names:
        raise errors.UserError(
            f"sort is {sort}, but must be a column: {', '.join(table.column_names)}."
        )
    downwards = sort in SHARES or sort.endswith("_per_second")
    order = [(sort, "descending" if downwards else "ascending")]
    if sort == BEST and "phase" in table.column_names:
        # Phases differ in images or epochs, and so their accuracies cannot be compared.
        places = {phase: place for place, phase in enumerate(reversed(Phase))}
        place = pa.array([places.get(phase) for phase in table["phase"].to_pylist()], pa.int64())
        return table.append_column("_", place).sort_by([("_", "ascending"), *order]).drop(["_"])
    return table.sort_by(order)


def best(table: pa.Table) -> Row | None:
    """Return the row of a study's winner, so far or at its end, or the row of a training run. None
    if nothing has a result. A table that names no winner, as those of the first versions, gives the
    trial with the best accuracy of the last phase."""
    rows = [row for row in ranked(table).to_pylist() if row[BEST] is not None]
    return next((row for row in rows if row.get("winner")), rows[0] if rows else None)


def of_model(table: pa.Table) -> Row | None:
    """Return the row whose checkpoint holds a run's trained network: the first of the final runs of
    a study's winner, which train it on all images, or else the row that is `best`. Of a training
    run that was scored on the test set, it is the last checkpoint, not the best: the test set
    chooses nothing."""
    won = best(table)
    if won and won.get("checkpoint") and not won.get("phase") and won["scored_on"] == "test":
        return won | {"checkpoint": checkpoint_name(won["epochs_trained"])}
    finals = [
        row
        for row in table.to_pylist()
        if (row.get("phase"), row["status"]) == (Phase.FINAL, Status.OK)
        and won
        and row.get("repeats") in (won["trial"], None)
    ]
    return min(finals, key=lambda row: row["trial"], default=won)


def where(table: pa.Table, condition: str) -> pa.Table:
    """Return the rows for which a condition like `lr > 0.05 and status == "ok"` is true, in the
    language of pandas.DataFrame.query. Raises UserError if it is no condition on rows."""
    import pandas as pd

    rows = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    try:
        holds = rows.eval(condition)
        if not isinstance(holds, pd.Series) or not pd.api.types.is_bool_dtype(holds):
            raise ValueError("it is not true or false for each row")
        return table.filter(pa.array(holds.fillna(False).astype(bool)))
    except Exception as error:  # a bad expression raises many kinds
        reason = " ".join(str(error).split())[:100]
        raise errors.UserError(
            f"where is {condition!r}, but must be a condition on columns, like 'lr > 0.05 and"
            f" epochs_trained == 3' ({reason})."
        ) from None


ALIKE = ("phase", "arithmetic")
"""The columns whose values a mean over seeds never mixes. A trial of the search was picked because
its accuracy is high, so it would raise the mean of the runs that confirm it."""


def over_seeds(table: pa.Table) -> pa.Table:
    """Return a table with one row for all trials that differ in their seed only.

    Column `n` counts the trials that trained all their epochs, and `unfinished` the others: they
    diverged, failed, were stopped or still run. Each accuracy is the mean over the `n` trials, and
    its `_sd` column the sample standard deviation, which is empty for a single trial.
    """
    import pyarrow.compute as pc

    fields = [name for name in table.column_names if name not in TRIAL_COLUMNS and name != "seed"]
    fields = [*(name for name in ALIKE if name in table.column_names), *fields]
    fields = [name for name in fields if not pa.types.is_null(table.schema.field(name).type)]
    ended = pc.equal(table["status"], Status.OK)
    accuracies = [name for name in table.column_names if name in SHARES]
    for name in (*accuracies, "train_seconds"):
        values = pc.if_else(ended, table[name], None)
        table = table.set_column(table.column_names.index(name), name, values)
    measured = [each for each in accuracies if each == BEST or table[each].null_count < len(table)]
    groups = table.group_by(fields, use_threads=False).aggregate(
        [([], "count_all"), ("best_accuracy", "count"), ("train_seconds", "mean")]
        + [(name, "list") for name in measured]
    )
    columns = {name: groups[name] for name in fields}
    columns["n"] = groups["best_accuracy_count"]
    columns["unfinished"] = pc.subtract(groups["count_all"], columns["n"])
    for name in measured:
        lists = groups[f"{name}_list"].to_pylist()
        known = [[value for value in values if value is not None] for values in lists]
        pairs = [search.mean_and_deviation(values) if values else (None, None) for values in known]
        columns[name] = pa.array([mean for mean, _ in pairs], pa.float64())
        columns[f"{name}_sd"] = pa.array([deviation for _, deviation in pairs], pa.float64())
    return pa.table({**columns, "train_seconds": groups["train_seconds_mean"]})


def render(table: pa.Table, form: str) -> str:
    """Return the table as text. `form` is csv, json (a list of objects), markdown, or table, which
    aligns the columns for a terminal."""
    if form == "csv":
        return as_csv(table).decode().rstrip("\n")
    rows = table.to_pylist()
    if form == "json":
        return json.dumps(_finite(rows), indent=2, default=str, allow_nan=False)
    names, *lines = cells(table)
    if form == "markdown":
        lines = [names, ["---"] * len(names), *lines]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    # Headers wrap at their spaces, so that twelve columns fit 80 characters.
    words = [name.split() for name in names]
    height = max(len(each) for each in words)
    padded = [[""] * (height - len(each)) + each for each in words]
    lines = [[head[i] for head in padded] for i in range(height)] + lines
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    left = [pa.types.is_string(table.schema.field(name).type) for name in table.column_names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def _finite(value: Any) -> Any:
    """Return `value` with None for every NaN and infinity. A trial that diverged has such losses,
    and JSON has no such numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def cells(table: pa.Table) -> list[list[str]]:
    """Return the table as text for people: a list of column names, and then a list for each row."""
    names = [name.removesuffix("_trained").replace("_", " ") for name in table.column_names]
    rows = table.to_pylist()
    return [names, *([_cell(name, row[name]) for name in table.column_names] for row in rows)]


def summary(table: pa.Table) -> pa.Table:
    """Return the columns of SUMMARY that say something, and the config fields that differ."""

    def differs(name: str) -> bool:
        return len(table[name].unique()) > 1

    shown = [name for name in SUMMARY if name in table.column_names]
    if "n" in table.column_names:  # over seeds
        shown = [name for name in table.column_names if name in (*ALIKE, "n", "unfinished")]
        shown += [name for name in table.column_names if name.removesuffix("_sd") in SHARES]
        shown.append("train_seconds")
    shown = [name for name in shown if table[name].null_count < len(table)]
    shown = [name for name in shown if name not in ("run", *ALIKE) or differs(name)]
    if "unfinished" in shown and not any(table["unfinished"].to_pylist()):
        shown.remove("unfinished")
    if "scored_on" in shown and not _scored_differently(table):
        shown.remove("scored_on")
    implied = ("epochs", "holdout") if "phase" in shown else ()
    fields = [name for name in table.column_names if name not in (*TRIAL_COLUMNS, *shown, *implied)]
    fields = [name for name in fields if differs(name)]
    return table.select([*shown[:-1], *fields, *shown[-1:]])


def _scored_differently(table: pa.Table) -> bool:
    """Return whether accuracies of different images are in the table. A study's final runs do not
    count: their phase says that they are scored on the test set."""
    has_phase = "phase" in table.column_names
    rows = table.select(["scored_on", "phase"] if has_phase else ["scored_on"]).to_pylist()
    return len({row["scored_on"] for row in rows if row.get("phase") != Phase.FINAL} - {None}) > 1


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.removesuffix("_sd") in SHARES:
        return f"{value:.2%}"
    if name.endswith("_seconds"):
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
