"""The folder that a run fills with its tables and checkpoints."""

import os
from datetime import datetime
from pathlib import Path

from mnist_ray import errors
from mnist_ray.config import RunConfig
from mnist_ray.errors import UserError


def folder(run: RunConfig, kind: str) -> Path:
    """The folder that this run will fill; raises UserError if another run has that name."""
    name = run.name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = errors.usable("storage", run.storage) / name
    if folder.exists():
        raise UserError(f"name {name} is taken: {folder} exists. Choose another --name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"storage {run.storage} cannot be used: {error.strerror}.") from None
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"storage {run.storage} cannot be used: it may not be written to.")
    return folder


def claim(folder: Path) -> None:
    """Make a run's folder, once all else is checked; raises UserError if it was made meanwhile."""
    try:
        folder.mkdir()
    except FileExistsError:
        raise UserError(f"name {folder.name} was just taken. Choose another --name.") from None
    except OSError as error:
        raise UserError(f"storage {folder.parent} cannot be used: {error.strerror}.") from None
