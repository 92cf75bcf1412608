"""The results: the rows and tables of a run, their views, the report, and the run's folder.

Never imports torch or Ray, so a table opens at once. Plotly and Optuna are imported for a report,
pandas for a report or a condition on rows.
"""

from collections.abc import Sequence
from pathlib import Path

from mnist_ray.storage import Place
from mnist_ray.tables.card import model_card, trained_by
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
    WORKERS,
    checkpoint_name,
    checkpoints,
    folder_of,
    is_run,
    locked,
    new_trial_folder,
    prune,
    recorded_settings,
    resume_flags,
    trial_folders,
    trial_name,
    trial_numbers,
)
from mnist_ray.tables.schema import (
    COLUMNS,
    EPOCH_COLUMNS,
    EPOCHS,
    PREDICTION_COLUMNS,
    PREDICTIONS,
    SCHEMAS,
    TRIAL_COLUMNS,
    TRIALS,
    Epochs,
    Row,
    config_columns,
)
from mnist_ray.tables.views import BEST, over_seeds, ranked, render, summary, where


def write_report(folders: Sequence[Place], path: Path) -> Path:
    """Write a report of the runs in `folders` to the file `path`, whole or not at all, and return
    its full path. Raises UserError if a table cannot be read or the file cannot be written."""
    from mnist_ray.tables import report  # Plotly, pandas and Optuna take seconds to import

    return report.write(folders, path)


__all__ = [
    "BEST",
    "BEST_RECIPE",
    "COLUMNS",
    "EPOCHS",
    "EPOCH_COLUMNS",
    "PREDICTIONS",
    "PREDICTION_COLUMNS",
    "SCHEMAS",
    "TRIALS",
    "TRIAL_COLUMNS",
    "WORKERS",
    "Epochs",
    "NoTable",
    "Row",
    "best_epoch",
    "checkpoint_name",
    "checkpoints",
    "config_columns",
    "empty",
    "epoch_row",
    "folder_of",
    "is_run",
    "kept",
    "locked",
    "model_card",
    "new_trial_folder",
    "newest_run",
    "over_seeds",
    "provenance",
    "prune",
    "ranked",
    "read",
    "recorded_settings",
    "render",
    "resume_flags",
    "scores",
    "seconds",
    "summary",
    "trained_by",
    "trial_folders",
    "trial_name",
    "trial_numbers",
    "trial_row",
    "where",
    "write",
    "write_predictions",
    "write_report",
]
