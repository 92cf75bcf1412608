"""Views of the results tables: rows chosen, sorted, summed up over seeds and shown. Neither torch
nor Ray is imported.
"""

import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray import errors, search
from mnist_ray.search import Phase, Status
from mnist_ray.tables.rows import csv as as_csv
from mnist_ray.tables.schema import SHARES, TRIAL_COLUMNS

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
"""What a terminal shows, with the config fields that differ: a study of three of them fits in 80
characters. csv and json have all columns."""


BEST = "best_accuracy"


def ranked(table: pa.Table, sort: str = BEST) -> pa.Table:
    """Sorted by a column: accuracies and speed from the highest, all else from the lowest. By best
    accuracy, a study's phases come one after the other, the last one first."""
    if sort not in table.column_names:
        raise errors.UserError(
            f"sort is {sort}, but must be a column: {', '.join(table.column_names)}."
        )
    downwards = sort in SHARES or sort.endswith("_per_second")
    order = [(sort, "descending" if downwards else "ascending")]
    if sort == BEST and "phase" in table.column_names:
        # Accuracies of different phases are not of the same images or number of epochs.
        phase = pc.index_in(
            table["phase"].cast(pa.string()),
            pa.array([*reversed(Phase)]),
        )
        return table.append_column("_", phase).sort_by([("_", "ascending"), *order]).drop(["_"])
    return table.sort_by(order)


def where(table: pa.Table, condition: str) -> pa.Table:
    """The rows for which a condition like `lr > 0.05 and status == "ok"` holds, in the language of
    pandas.DataFrame.query; raises UserError."""
    import pandas as pd

    rows = table.to_pandas(types_mapper={pa.bool_(): pd.BooleanDtype()}.get)
    try:
        holds = rows.eval(condition)
        if not isinstance(holds, pd.Series) or not pd.api.types.is_bool_dtype(holds):
            raise ValueError("it is neither true nor false of a row")
        return table.filter(pa.array(holds.fillna(False).astype(bool)))
    except Exception as error:  # whatever a parser of Python expressions raises
        reason = " ".join(str(error).split())[:100]
        raise errors.UserError(
            f"where is {condition!r}, but must be a condition on columns, like 'lr > 0.05 and"
            f" epochs_trained == 3' ({reason})."
        ) from None


ALIKE = ("phase", "arithmetic")
"""What trials over whose seeds a mean is taken have in common besides their config: a trial of the
search that was chosen for its accuracy says nothing of its configuration's."""


def over_seeds(table: pa.Table) -> pa.Table:
    """A row for all trials that differ in nothing but their seed: how many came to their end (`n`),
    of these the mean and the standard deviation of the sample of each accuracy (`_sd`, empty for
    one), and how many did not (`unfinished`): those that diverged, failed, were stopped or still
    run have no part in the means."""
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
        per_group = [
            search.mean_and_deviation(known) if known else (None, None)
            for known in (
                [accuracy for accuracy in seen if accuracy is not None]
                for seen in groups[f"{name}_list"].to_pylist()
            )
        ]
        columns[name] = pa.array([mean for mean, _ in per_group], pa.float64())
        columns[f"{name}_sd"] = pa.array([deviation for _, deviation in per_group], pa.float64())
    return pa.table({**columns, "train_seconds": groups["train_seconds_mean"]})


def render(table: pa.Table, form: str) -> str:
    """The table as csv, json (a list of objects), markdown, or aligned text for a terminal."""
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
    heads = [name.split() for name in names]
    deep = max(len(head) for head in heads)
    heads = [[""] * (deep - len(head)) + head for head in heads]
    lines = [[head[i] for head in heads] for i in range(deep)] + lines
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
    """`value` without NaN and infinity, which are losses of a trial that diverged: JSON has no such
    numbers."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


def cells(table: pa.Table) -> list[list[str]]:
    """The table as people read it: a row of names, and a row for each of its rows."""
    names = [name.removesuffix("_trained").replace("_", " ") for name in table.column_names]
    rows = table.to_pylist()
    return [names, *([_cell(name, row[name]) for name in table.column_names] for row in rows)]


def summary(table: pa.Table) -> pa.Table:
    """The columns of SUMMARY that say something, and the config fields in which trials differ."""

    def differs(name: str) -> bool:
        return len(pc.unique(table[name])) > 1

    shown = [name for name in SUMMARY if name in table.column_names]
    if "n" in table.column_names:  # over seeds
        shown = [name for name in table.column_names if name in (*ALIKE, "n", "unfinished")]
        shown += [name for name in table.column_names if name.removesuffix("_sd") in SHARES]
        shown.append("train_seconds")
    shown = [name for name in shown if table[name].null_count < len(table)]
    shown = [name for name in shown if name not in ("run", *ALIKE) or differs(name)]
    if "unfinished" in shown and not pc.any(table["unfinished"].cast(pa.bool_())).as_py():
        shown.remove("unfinished")
    # Final runs alone are scored on the test set in a study, and accuracies of others may differ.
    if "scored_on" in shown and not _scored_differently(table):
        shown.remove("scored_on")
    implied = ("epochs", "holdout") if "phase" in shown else ()
    fields = [name for name in table.column_names if name not in (*TRIAL_COLUMNS, *shown, *implied)]
    fields = [name for name in fields if differs(name)]
    return table.select([*shown[:-1], *fields, *shown[-1:]])


def _scored_differently(table: pa.Table) -> bool:
    if "phase" in table.column_names:
        table = table.filter(pc.not_equal(pc.fill_null(table["phase"], ""), Phase.FINAL))
    return len(pc.unique(table["scored_on"].drop_null())) > 1


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.removesuffix("_sd") in SHARES:
        return f"{value:.2%}"
    if name.endswith("_seconds"):
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
