"""Show what studies and training runs found: `python -m mnist_ray.results [PATH …]`.

Without torch or Ray, so that a table opens at once.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from mnist_ray import command, errors, storage, tables
from mnist_ray.tables import EPOCHS, TRIAL_COLUMNS, TRIALS

SUMMARY = (
    "run",
    "trial",
    "phase",
    "status",
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
    downwards = sort.endswith(("_accuracy", "_per_second"))
    order = [(sort, "descending" if downwards else "ascending")]
    if sort == BEST and "phase" in table.column_names:
        # Accuracies of different phases are not of the same images or number of epochs.
        phase = pc.index_in(
            table["phase"].cast(pa.string()), pa.array(["final", "confirm", "search", "screen"])
        )
        return table.append_column("_", phase).sort_by([("_", "ascending"), *order]).drop(["_"])
    return table.sort_by(order)


def where(table: pa.Table, condition: str) -> pa.Table:
    """The rows for which a condition like `lr > 0.05 and status == "ok"` holds, in the language of
    pandas.DataFrame.query; raises UserError."""
    try:
        return table.take(pa.array(table.to_pandas().query(condition).index, pa.int64()))
    except Exception as error:  # whatever a parser of Python expressions raises
        reason = " ".join(str(error).split())[:100]
        raise errors.UserError(
            f"where is {condition!r}, but must be a condition on columns, like 'lr > 0.05 and"
            f" epochs_trained == 3' ({reason})."
        ) from None


def over_seeds(table: pa.Table) -> pa.Table:
    """A row for all trials that differ in nothing but their seed: how many have a result (`n`), and
    of each accuracy the mean and the standard deviation of the sample (`_sd`, empty for one)."""
    fields = [name for name in table.column_names if name not in TRIAL_COLUMNS and name != "seed"]
    # A trial of the search that was chosen for its accuracy says nothing of its configuration's.
    fields = [name for name in ("phase", *fields) if name in table.column_names]
    fields = [name for name in fields if not pa.types.is_null(table.schema.field(name).type)]
    measured = [
        name
        for name in ("best_accuracy", "final_accuracy", "test_accuracy")
        if table[name].null_count < len(table)
    ]
    groups = table.group_by(fields, use_threads=False).aggregate(
        [("best_accuracy", "count"), ("train_seconds", "mean")]
        + [(name, "mean") for name in measured]
        + [(name, "stddev", pc.VarianceOptions(ddof=1)) for name in measured]
    )
    columns = {name: groups[name] for name in fields}
    columns["n"] = groups["best_accuracy_count"]
    for name in measured:
        columns |= {name: groups[f"{name}_mean"], f"{name}_sd": groups[f"{name}_stddev"]}
    return pa.table({**columns, "train_seconds": groups["train_seconds_mean"]})


def render(table: pa.Table, form: str) -> str:
    """The table as csv, json (a list of objects), markdown, or aligned text for a terminal."""
    if form == "csv":
        sink = pa.BufferOutputStream()
        pyarrow.csv.write_csv(table, sink)
        text: str = sink.getvalue().to_pybytes().decode()
        return text.rstrip("\n")
    rows = table.to_pylist()
    if form == "json":
        # JSON has no NaN, which is the loss of a trial that diverged.
        rows = [
            {name: None if value != value else value for name, value in row.items()} for row in rows
        ]
        return json.dumps(rows, indent=2, default=str)
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
        shown = [name for name in table.column_names if name in ("phase", "n")]
        shown += [name for name in table.column_names if "_accuracy" in name]
        shown.append("train_seconds")
    shown = [name for name in shown if table[name].null_count < len(table)]
    shown = [name for name in shown if name not in ("run", "phase") or differs(name)]
    implied = ("epochs", "holdout") if "phase" in shown else ()
    fields = [name for name in table.column_names if name not in (*TRIAL_COLUMNS, *shown, *implied)]
    fields = [name for name in fields if differs(name)]
    return table.select([*shown[:-1], *fields, *shown[-1:]])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith(("_accuracy", "_accuracy_sd")):
        return f"{value:.2%}"
    if name.endswith("_seconds"):
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=command.typed("results"), description="Show what studies and training runs found."
    )
    parser.add_argument("path", nargs="*", help="Folders of runs, or URIs (default: the newest).")
    parser.add_argument("--top", type=int, metavar="N", help="Only the first N rows, at least 1.")
    parser.add_argument(
        "--sort", default=BEST, metavar="COLUMN", help="Sort by (default: %(default)s)."
    )
    parser.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json"],
        default="table",
        help="csv and json have all columns (default: table).",
    )
    parser.add_argument(
        "--where", metavar="CONDITION", help="Only rows for which it holds, like 'lr > 0.05'."
    )
    parser.add_argument(
        "--over-seeds",
        action="store_true",
        help="One row for trials that differ in their seed only: mean, standard deviation, n.",
    )
    parser.add_argument("--epochs", action="store_true", help="A row per trial and epoch.")
    parser.add_argument(
        "--storage",
        default="~/mnist_ray_results",
        metavar="DIR|URI",
        help="Where to look for the newest run (default: ~/mnist_ray_results).",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="Write a page of pictures (HTML) instead."
    )
    parser.add_argument("--verbose", action="store_true", help="Tracebacks.")
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 1:
        raise errors.UserError(f"top is {args.top}, but must be at least 1.")
    folders = [storage.place("path", path) for path in args.path]
    folders = folders or [tables.newest_run(args.storage)]
    if args.report:
        for flag in ("top", "sort", "format", "where", "over_seeds", "epochs"):
            if getattr(args, flag) != parser.get_default(flag):
                raise errors.UserError(
                    f"{flag} is set, but report shows whole runs; leave one of them out."
                )
        from mnist_ray import report  # Plotly, Optuna and pandas take seconds to import

        print(report.write(folders, args.report))
        return
    name = EPOCHS if args.epochs else TRIALS
    table = pa.concat_tables(
        [tables.read(folder, name) for folder in folders], promote_options="permissive"
    )
    if args.epochs and args.over_seeds:
        raise errors.UserError("over_seeds is on, but epochs is too; leave one of them out.")
    if args.where is not None:
        table = where(table, args.where)
    if args.over_seeds:
        table = over_seeds(table)
    if not args.epochs:
        table = ranked(table, args.sort)
    if args.top:
        table = table.slice(0, min(args.top, len(table)))
    if args.format in ("table", "markdown") and not len(table):
        why = f"has no rows where {args.where}" if args.where else "has no rows yet"
        print(f"{name} {why}", file=sys.stderr)
        return
    if args.format in ("table", "markdown"):
        table = table if args.epochs else summary(table)
        full = [name for name in table.column_names if table[name].null_count < len(table)]
        table = table.select(full)
        print(f"{', '.join(str(folder) for folder in folders)}\n", file=sys.stderr)
    print(render(table, args.format))


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
