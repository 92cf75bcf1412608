"""What came out: rows, tables, their views, the report, and where they lie in a run's folder.

Never imports torch or Ray, so that a table opens at once; Plotly, pandas and Optuna only for a
report.
"""

from collections.abc import Sequence
from pathlib import Path

from mnist_ray.storage import Place
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
    """Write the report of the runs in `folders` to `path`, whole or not at all, and return the full
    path. Raises UserError where a table cannot be read or the file cannot be written."""
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
    "checkpoints",
    "config_columns",
    "empty",
    "epoch_row",
    "folder_of",
    "is_run",
    "kept",
    "locked",
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
    "trial_folders",
    "trial_name",
    "trial_numbers",
    "trial_row",
    "where",
    "write",
    "write_predictions",
    "write_report",
]
