"""The results: the rows and tables of a run, their views, the report, and the run's folder.

Never imports torch or Ray, so a table opens at once. Plotly and Optuna are imported for a report,
pandas for a report or a condition on rows. A report needs the extra `report`.
"""

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import UserError
from mnist_ray.search import Plan
from mnist_ray.storage import Place, place
from mnist_ray.tables.card import model_card, trained_by
from mnist_ray.tables.changes import goes_on as adds_trials
from mnist_ray.tables.changes import record_change, recorded_settings, settings_over_time
from mnist_ray.tables.machine import provenance
from mnist_ray.tables.rows import (
    NoTable,
    best_epoch,
    empty,
    epoch_row,
    kept,
    newest_run,
    read,
    scores,
    seconds,
    trial_row,
    write,
    write_predictions,
)
from mnist_ray.tables.run_folder import (
    BEST_RECIPE,
    EVENTS,
    JOURNAL,
    WORKERS,
    checkpoint_name,
    checkpoints,
    folder_of,
    is_run,
    locked,
    new_trial_folder,
    prune,
    resume_flags,
    space,
    trial_folders,
    trial_name,
    trial_numbers,
)
from mnist_ray.tables.schema import (
    COLUMNS,
    EPOCH_COLUMNS,
    EPOCHS,
    MEASURES,
    PREDICTION_COLUMNS,
    PREDICTIONS,
    SCHEMAS,
    TRIAL_COLUMNS,
    TRIALS,
    Epochs,
    Row,
    config_columns,
)
from mnist_ray.tables.views import (
    BEST,
    best,
    of_model,
    over_seeds,
    ranked,
    render,
    summary,
    where,
)

if TYPE_CHECKING:
    from mnist_ray.tables.journal import Journal


def study_journal(folder: Place, plan: Plan) -> "Journal":
    """Return the journal of the study in `folder`, which writes nothing before it is updated."""
    from mnist_ray.tables.journal import Journal  # Optuna takes a quarter of a second to import

    return Journal(folder / JOURNAL, plan)


def write_report(
    folders: Sequence[Place], path: Path, network: Sequence[Mapping[str, Any]] | None = None
) -> Path:
    """Write a report of the runs in `folders` to the file `path`, whole or not at all, and return
    its full path. With the `network` of a single run, as `learn.plain_layers` returns it, the
    report has a square to draw digits in for this network. Raises UserError if a table cannot be
    read, if the file cannot be written, or if a package is missing that only reports need."""
    for package in ("plotly", "sklearn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"report is {path}, but {package} is not installed; pip install"
                " 'mnist_ray[report]'."
            )
    from mnist_ray.tables import report  # Plotly, pandas and Optuna take seconds to import

    return report.write(folders, path, network)


def final_checkpoint(folder: Place) -> Place | None:
    """Return the folder of the checkpoint that the run in `folder` hands back: of a training run,
    of a study's first final run, or of its winner if it made no final run. Return None if the
    table of trials names none. Raises UserError if there is no table."""
    row = of_model(read(folder))
    path = row.get("checkpoint") if row else None
    return folder / path if path else None


def checkpoint_at(named: str) -> Place:
    """Return the folder of the checkpoint that a user named: that folder or URI itself or, if a run
    lies there, the checkpoint that the run hands back. Raises UserError if the run has none."""
    folder = place("checkpoint", named)
    try:
        if not is_run(folder):
            return folder
    except OSError:
        return folder  # who reads the checkpoint says why it cannot be read
    found = final_checkpoint(folder)
    if found is None:
        raise UserError(f"checkpoint {named} is a run that has no result yet; wait for one.")
    return found


def watch_report(folders: Sequence[Place], path: Path) -> Iterator[Path]:
    """Write the report to `path` each time that a table changes, until no run of `folders` goes on,
    and yield its full path each time. While a run goes on, the page loads itself again.

    Raises UserError as `write_report` does, and RunFailed if a run was interrupted.
    """
    from mnist_ray.tables import watching

    return watching.watch(folders, path)


__all__ = [
    "BEST",
    "BEST_RECIPE",
    "COLUMNS",
    "EPOCHS",
    "EPOCH_COLUMNS",
    "EVENTS",
    "JOURNAL",
    "MEASURES",
    "PREDICTIONS",
    "PREDICTION_COLUMNS",
    "SCHEMAS",
    "TRIALS",
    "TRIAL_COLUMNS",
    "WORKERS",
    "Epochs",
    "NoTable",
    "Row",
    "adds_trials",
    "best",
    "best_epoch",
    "checkpoint_at",
    "checkpoint_name",
    "checkpoints",
    "config_columns",
    "empty",
    "epoch_row",
    "final_checkpoint",
    "folder_of",
    "is_run",
    "kept",
    "locked",
    "model_card",
    "new_trial_folder",
    "newest_run",
    "of_model",
    "over_seeds",
    "provenance",
    "prune",
    "ranked",
    "read",
    "record_change",
    "recorded_settings",
    "render",
    "resume_flags",
    "scores",
    "seconds",
    "settings_over_time",
    "space",
    "study_journal",
    "summary",
    "trained_by",
    "trial_folders",
    "trial_name",
    "trial_numbers",
    "trial_row",
    "watch_report",
    "where",
    "write",
    "write_predictions",
    "write_report",
]
