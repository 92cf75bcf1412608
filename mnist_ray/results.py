"""Show what studies and training runs found: `python -m mnist_ray.results [PATH …]`.

Without torch or Ray, so that a table opens at once.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from mnist_ray import errors, storage, tables, terminal
from mnist_ray.config import RunConfig
from mnist_ray.storage import Place

STORAGE = RunConfig().storage


def load(folders: Sequence[Place], name: str) -> dict[Place, pa.Table]:
    """The table `name` of each run that has rows in it; says on stderr which have none yet. Raises
    UserError for a folder that is no run's."""
    found = {}
    for folder in dict.fromkeys(folders):  # or a run named twice would count twice
        table = _table(folder, name)
        if len(table):
            found[folder] = table
        else:
            print(f"{folder}: {name} has no rows yet", file=sys.stderr)
    return found


def _table(folder: Place, name: str) -> pa.Table:
    try:
        return tables.read(folder, name)
    except tables.NoTable:
        if tables.is_run(folder):  # that was killed before its first row
            return tables.empty(name)
        raise


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog=terminal.typed("results"), description="Show what studies and training runs found."
    )
    parser.add_argument("path", nargs="*", help="Folders of runs, or URIs (default: the newest).")
    parser.add_argument("--top", type=int, metavar="N", help="Only the first N rows, at least 1.")
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help=f"Sort by (default: {tables.BEST}; with --epochs, as they were trained).",
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
        help="One row for trials that differ in their seed only and came to their end: mean,"
        " standard deviation, n.",
    )
    parser.add_argument("--epochs", action="store_true", help="A row per trial and epoch.")
    parser.add_argument(
        "--storage",
        metavar="DIR|URI",
        help=f"Where to look for the newest run (default: {STORAGE}).",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="Write a page of pictures (HTML) instead."
    )
    parser.add_argument("--verbose", action="store_true", help="Tracebacks.")
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 1:
        raise errors.UserError(f"top is {args.top}, but must be at least 1.")
    if args.path and args.storage is not None:
        raise errors.UserError("storage is set, but so are paths; leave one of them out.")
    if args.epochs and args.over_seeds:
        raise errors.UserError("over_seeds is on, but epochs is too; leave one of them out.")
    folders = [storage.place("path", path) for path in args.path]
    folders = folders or [tables.newest_run(STORAGE if args.storage is None else args.storage)]
    if args.report:
        for flag in ("top", "sort", "format", "where", "over_seeds", "epochs"):
            if getattr(args, flag) != parser.get_default(flag):
                raise errors.UserError(
                    f"{flag} is set, but report shows whole runs; leave one of them out."
                )
        if not (found := load(folders, tables.TRIALS)):
            raise errors.UserError(f"path {folders[0]} has no row yet, and so nothing to report.")
        print(tables.write_report(list(found), args.report))
        return
    name = tables.EPOCHS if args.epochs else tables.TRIALS
    found = load(folders, name)
    table = pa.concat_tables(
        list(found.values()) or [tables.empty(name)], promote_options="permissive"
    )
    if args.where is not None:
        table = tables.where(table, args.where)
    if args.over_seeds:
        table = tables.over_seeds(table)
    if args.sort is None and not args.epochs:
        table = tables.ranked(table)
    elif args.sort is not None:
        table = tables.ranked(table, args.sort)
    if args.top:
        table = table.slice(0, min(args.top, len(table)))
    if args.format in ("table", "markdown") and not len(table):
        if found:
            print(f"{name} has no rows where {args.where}", file=sys.stderr)
        return
    if args.format in ("table", "markdown"):
        table = table if args.epochs else tables.summary(table)
        full = [name for name in table.column_names if table[name].null_count < len(table)]
        table = table.select(full)
        print(f"{', '.join(str(folder) for folder in found)}\n", file=sys.stderr)
    print(tables.render(table, args.format))


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
