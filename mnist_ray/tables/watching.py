"""A report that is written anew while its runs go on."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from mnist_ray import errors, storage
from mnist_ray.search import Status
from mnist_ray.storage import Place
from mnist_ray.tables import report, run_folder
from mnist_ray.tables.rows import NoTable, read
from mnist_ray.tables.schema import EPOCHS, TRIALS

PAUSE = 2.0
"""Seconds between two looks at the tables."""


def watch(folders: Sequence[Place], path: Path) -> Iterator[Path]:
    """Write the report of `folders` to `path` each time that a table changes, until no run goes on,
    and yield its full path each time.

    Raises UserError if no run has a trial when all have ended, and RunFailed if a run was
    interrupted: the page then shows what it found.
    """
    seen: dict[Place, datetime] = {}
    write_after = 0.0
    try:
        while any(_runs(folder) for folder in folders):
            now, began = _written(folders), time.monotonic()
            if now != seen and began > write_after and (some := _with_rows(folders)):
                yield report.write(some, path, goes_on=True)
                # At most a tenth of the time, because the runs may need the same cores.
                seen, write_after = now, time.monotonic() + 10 * (time.monotonic() - began)
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        if seen and (some := _with_rows(folders)):
            report.write(some, path)  # nobody will write it again, so it need not load itself
        raise
    if seen:
        time.sleep(PAUSE)  # a training run scores the test set just after it gave its lock back
    if not (some := _with_rows(folders)):
        raise errors.UserError(f"path {folders[0]} has no row yet, and so nothing to report.")
    yield report.write(some, path)
    if cut := [folder for folder in folders if not _ended(folder)]:
        raise errors.RunFailed(
            f"{cut[0]} was interrupted before its end; the report shows what was found so far."
        )


def _runs(folder: Place) -> bool:
    """Return whether the run goes on: whether a process holds its lock or, where there are no
    locks, as in a bucket, whether it has not ended."""
    known = run_folder.goes_on(folder)
    return not _ended(folder) if known is None else known


def _ended(folder: Place) -> bool:
    """Return whether the run came to its end: a study writes its winner's recipe last. A folder
    that is not a run's own, such as one of copied tables, counts as ended."""
    if (folder / "tune.yaml").is_file():
        recipe, table = folder / run_folder.BEST_RECIPE, folder / TRIALS
        # A resumed study that was given more trials has the recipe of before.
        return recipe.is_file() and storage.modified(recipe) >= storage.modified(table)
    if (folder / "train.yaml").is_file():
        rows = _rows(folder)
        return bool(rows) and rows[0] != Status.RUNNING
    return True


def _rows(folder: Place) -> list[str]:
    """Return the status of each trial in the table; empty if there is no table."""
    try:
        statuses: list[str] = read(folder)["status"].to_pylist()
    except NoTable:
        return []
    return statuses


def _with_rows(folders: Sequence[Place]) -> list[Place]:
    return [folder for folder in folders if _rows(folder)]


def _written(folders: Sequence[Place]) -> dict[Place, datetime]:
    """Return when each table was written."""
    files = [folder / name for folder in folders for name in (EPOCHS, TRIALS)]
    return {file: storage.modified(file) for file in files if file.is_file()}
