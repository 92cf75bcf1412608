"""Show what studies and training runs found: `python -m mnist_ray.results [PATH …]`.

Imports neither torch nor Ray, so a table opens at once. A report of a single run imports torch to
read the network that its readers can draw digits for.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray import errors, storage, terminal
from mnist_ray.config import RunConfig
from mnist_ray.storage import Place

if TYPE_CHECKING:  # pyarrow takes a tenth of a second to import, and `--help` needs none of it
    import pyarrow as pa

    from mnist_ray.learn import PlainLayer

STORAGE = RunConfig().storage


def load(folders: Sequence[Place], name: str) -> dict[Place, pa.Table]:
    """Return the table `name` of each run that has rows in it, by the run's folder, and say on
    stderr which runs have none yet. Raises UserError if a folder is not a run's."""
    from mnist_ray import tables

    found = {}
    for folder in dict.fromkeys(folders):  # a run that is named twice counts once
        try:
            table = tables.read(folder, name)
        except tables.NoTable:
            if not tables.is_run(folder):
                raise
            table = tables.empty(name)  # the run was killed before its first row
        if len(table):
            found[folder] = table
        else:
            print(f"{folder}: {name} has no rows yet", file=sys.stderr)
    return found


def network(folder: Place) -> list[PlainLayer] | None:
    """Return the network of the checkpoint that the run in `folder` hands back. If it cannot be
    read, say on stderr why, and return None."""
    from mnist_ray import tables

    checkpoint = tables.final_checkpoint(folder)
    if checkpoint is None:
        return None
    from mnist_ray import learn  # not before it is needed: torch takes seconds to import

    try:
        return learn.plain_layers(learn.load_model(learn.load_checkpoint(checkpoint)))
    except errors.UserError as error:
        print(f"the report gets no square to draw in: {error}", file=sys.stderr)
        return None


def parser() -> argparse.ArgumentParser:
    parser = terminal.command_parser("results", "Show what studies and training runs found.")
    parser.add_argument(
        "path", nargs="*", help="Folders of runs, or URIs (default: the newest run)."
    )
    parser.add_argument("--top", type=int, metavar="N", help="Show the first N rows only.")
    parser.add_argument(
        "--sort",
        metavar="COLUMN",
        help="Sort by this column (default: best_accuracy; with --epochs, as trained).",
    )
    parser.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json"],
        default="table",
        help="csv and json have all columns (default: table).",
    )
    parser.add_argument(
        "--where", metavar="CONDITION", help="Show only rows for which it holds, like 'lr > 0.05'."
    )
    parser.add_argument(
        "--over-seeds",
        action="store_true",
        help="Show one row for all trials that differ in their seed only: mean, standard deviation"
        " and number (n) of the trials that trained all their epochs.",
    )
    parser.add_argument("--epochs", action="store_true", help="Show a row per trial and epoch.")
    parser.add_argument(
        "--storage",
        metavar="DIR|URI",
        help=f"Where to look for the newest run (default: {STORAGE}).",
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="Write a page of figures (HTML) instead; the page of one run has a square to draw"
        " digits in, and says what the run's network takes them for.",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="With --report: write the page anew as trials end, until the runs have ended. A"
        " browser loads it again by itself.",
    )
    parser.add_argument("--verbose", action="store_true", help="Show the traceback of an error.")
    return parser


def main(argv: Sequence[str]) -> None:
    """Print the table that the flags in `argv` ask for, or write a report."""
    flags = parser()
    args = flags.parse_args(argv)
    import pyarrow as pa

    from mnist_ray import tables

    if args.top is not None and args.top < 1:
        raise errors.UserError(f"top is {args.top}, but must be at least 1.")
    if args.path and args.storage is not None:
        raise errors.UserError("storage is set, but so are paths; leave one of them out.")
    if args.epochs and args.over_seeds:
        raise errors.UserError("over_seeds is on, but epochs is too; leave one of them out.")
    if args.watch and not args.report:
        raise errors.UserError("watch is on, but report is not; add --report FILE.")
    folders = [storage.place("path", path) for path in args.path]
    folders = folders or [tables.newest_run(STORAGE if args.storage is None else args.storage)]
    if args.report:
        for flag in ("top", "sort", "format", "where", "over_seeds", "epochs"):
            if getattr(args, flag) != flags.get_default(flag):
                raise errors.UserError(
                    f"{flag} is set, but report shows whole runs; leave one of them out."
                )
        found = load(folders, tables.TRIALS)
        if args.watch:
            for number, page in enumerate(
                tables.watch_report([*dict.fromkeys(folders)], args.report)
            ):
                if not number:
                    print(page, flush=True)
            found = load(folders, tables.TRIALS)
        if not found:
            raise errors.UserError(f"path {folders[0]} has no row yet, and so nothing to report.")
        drawn_for = network(*found) if len(found) == 1 else None
        page = tables.write_report(list(found), args.report, drawn_for)
        if not args.watch:
            print(page)
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
    sort = tables.BEST if args.sort is None and not args.epochs else args.sort
    if sort is not None:
        table = tables.ranked(table, sort)
    if args.top:
        table = table.slice(0, min(args.top, len(table)))
    if args.format in ("table", "markdown") and not len(table):
        if found:
            print(f"{name} has no rows where {args.where}", file=sys.stderr)
        return
    if args.format in ("table", "markdown"):
        table = table if args.epochs else tables.summary(table)
        with_values = [name for name in table.column_names if table[name].null_count < len(table)]
        table = table.select(with_values)
        print(f"{', '.join(str(folder) for folder in found)}\n", file=sys.stderr)
    print(tables.render(table, args.format))


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
