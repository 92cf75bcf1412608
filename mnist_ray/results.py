"""The results tables: what is in them, writing them, and reading them back.

`python -m mnist_ray.results [PATH …]`. Parquet in and out through pyarrow; neither torch nor Ray is
imported, so a table opens at once.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mnist_ray import errors

Row = dict[str, Any]

TRIALS, EPOCHS = "trials.parquet", "epochs.parquet"

TRIAL_COLUMNS = {
    "run": "name of the study or training run",
    "trial": "number of the trial, from 0 in the order in which they were sampled",
    "status": "ok (all its epochs), stopped (by the scheduler), diverged (loss not finite), failed",
    "scored_on": "the images behind best_ and final_: holdout, or test where nothing was held out",
    "best_accuracy": "highest accuracy after any epoch, 0 to 1; of two equal ones, the later",
    "best_epoch": "the epoch of best_accuracy, from 1",
    "best_loss": "mean negative log-likelihood at best_epoch, nats",
    "final_accuracy": "accuracy after the last epoch trained, 0 to 1",
    "final_loss": "mean negative log-likelihood after the last epoch trained, nats",
    "test_accuracy": "accuracy on the 10,000 test images, 0 to 1; empty where they were not scored",
    "test_loss": "mean negative log-likelihood on the test images, nats",
    "epochs_trained": "epochs trained before the trial ended",
    "train_seconds": "seconds spent training, without scoring",
    "total_seconds": "seconds from the start to the end of the trial",
    "images_per_second": "training images per second, over all its workers",
    "checkpoint": "folder of the checkpoint of best_epoch, within the run's folder",
    "error": "one line, where status is failed",
    "split_hash": "hash of which images were held out and which trained on",
    "precision": "arithmetic of the network: fp32, or tf32 where a GPU's convolutions are",
    "device": "cpu or cuda",
    "hardware": "processor and cores of the machine that launched the run",
    "python": "version",
    "torch": "version",
    "ray": "version",
    "mnist_ray": "version",
    "commit": "of mnist_ray's source, with + where files were changed; empty outside a checkout",
    "started": "UTC time",
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
    "checkpoint": "folder of its checkpoint in the run's; only the best and the last are kept",
}

SUMMARY = (
    "run",
    "trial",
    "status",
    "best_accuracy",
    "best_epoch",
    "test_accuracy",
    "epochs_trained",
    "train_seconds",
)
"""What a terminal shows, with the config fields that differ; csv and json have all columns."""


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
        best, final = best_epoch(epochs, scored_on), epochs[-1]
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
            "train_seconds": train_seconds,
            "images_per_second": images / train_seconds,
        }
    return row | known


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


def write(folder: Path, trials: Sequence[Row], epochs: Sequence[Row]) -> None:
    """Write both tables into `folder`, each replaced whole."""
    for name, columns, rows in (
        (TRIALS, TRIAL_COLUMNS, trials),
        (EPOCHS, EPOCH_COLUMNS, epochs),
    ):
        names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        partial = folder / f".{name}.{os.getpid()}"
        pq.write_table(table, partial)
        os.replace(partial, folder / name)


def read(folder: Path, name: str = TRIALS) -> pa.Table:
    """A table of a run's folder; raises UserError where there is none that can be read."""
    path = errors.usable("path", folder) / name
    if not path.is_file():
        raise errors.UserError(f"path {folder} holds no {name}; name the folder of a run.")
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise errors.UserError(
            f"path {path} cannot be read: {str(error).splitlines()[0]}"
        ) from None
    if missing := sorted({"run", "trial"} - set(table.column_names)):
        raise errors.UserError(
            f"path {path} is not a results table: it has no column {missing[0]}."
        )
    return table


def newest_run(storage: Path) -> Path:
    """The run in `storage` whose tables were written last; raises UserError if there is none."""
    tables = list(errors.usable("storage", storage).glob(f"*/{TRIALS}"))
    if not tables:
        raise errors.UserError(f"storage {storage} holds no results yet; name a run's folder.")
    return max(tables, key=lambda path: path.stat().st_mtime).parent


def ranked(table: pa.Table, sort: str = "best_accuracy") -> pa.Table:
    """Sorted by a column: accuracies and speed from the highest, all else from the lowest."""
    if sort not in table.column_names:
        raise errors.UserError(
            f"sort is {sort}, but must be a column: {', '.join(table.column_names)}."
        )
    downwards = sort.endswith(("_accuracy", "_per_second"))
    return table.sort_by([(sort, "descending" if downwards else "ascending")])


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
    cells = [[_cell(name, row[name]) for name in table.column_names] for row in rows]
    names = [name.removesuffix("_trained").replace("_", " ") for name in table.column_names]
    if form == "markdown":
        lines = [names, ["---"] * len(names), *cells]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    # Headers wrap at their spaces, so that twelve columns fit 80 characters.
    heads = [name.split() for name in names]
    deep = max(len(head) for head in heads)
    heads = [[""] * (deep - len(head)) + head for head in heads]
    lines = [[head[i] for head in heads] for i in range(deep)] + cells
    widths = [max(len(line[i]) for line in lines) for i in range(len(names))]
    left = [pa.types.is_string(table.schema.field(name).type) for name in table.column_names]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in lines
    )


def summary(table: pa.Table) -> pa.Table:
    """The columns of SUMMARY that say something, and the config fields in which trials differ."""

    def differs(name: str) -> bool:
        return len(pc.unique(table[name])) > 1

    shown = [name for name in SUMMARY if name in table.column_names]
    shown = [name for name in shown if table[name].null_count < len(table)]
    shown = [name for name in shown if name != "run" or differs("run")]
    fields = [name for name in table.column_names if name not in TRIAL_COLUMNS and differs(name)]
    return table.select([*shown[:-1], *fields, *shown[-1:]])


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_accuracy"):
        return f"{value:.2%}"
    if name.endswith("_seconds"):
        return f"{value:.0f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


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


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mnist_ray.results", description="Show what studies and training runs found."
    )
    parser.add_argument("path", nargs="*", type=Path, help="Folders of runs (default: the newest).")
    parser.add_argument("--top", type=int, metavar="N", help="Only the first N rows.")
    parser.add_argument("--sort", default="best_accuracy", metavar="COLUMN", help="Sort by.")
    parser.add_argument(
        "--format",
        choices=["table", "markdown", "csv", "json"],
        default="table",
        help="csv and json have all columns (default: table).",
    )
    parser.add_argument("--epochs", action="store_true", help="A row per trial and epoch.")
    parser.add_argument(
        "--storage",
        type=Path,
        default=Path("~/mnist_ray_results"),
        metavar="DIR",
        help="Where to look for the newest run (default: ~/mnist_ray_results).",
    )
    parser.add_argument("--verbose", action="store_true", help="Tracebacks.")
    args = parser.parse_args(argv)
    if args.top is not None and args.top < 1:
        raise errors.UserError(f"top is {args.top}, but must be at least 1.")
    folders = args.path or [newest_run(args.storage)]
    name = EPOCHS if args.epochs else TRIALS
    table = pa.concat_tables(
        [read(folder, name) for folder in folders], promote_options="permissive"
    )
    if not args.epochs:
        table = ranked(table, args.sort)
    if args.top:
        table = table.slice(0, min(args.top, len(table)))
    if args.format in ("table", "markdown") and not len(table):
        print(f"{name} has no rows yet", file=sys.stderr)
        return
    if args.format in ("table", "markdown"):
        table = table if args.epochs else summary(table)
        full = [name for name in table.column_names if table[name].null_count < len(table)]
        table = table.select(full)
        print(f"{', '.join(str(folder) for folder in folders)}\n", file=sys.stderr)
    print(render(table, args.format))


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
