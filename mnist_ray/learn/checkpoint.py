"""Checkpoints: a folder with one file, written whole or not at all, read without running code."""

import contextlib
import io
import warnings
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from mnist_ray import storage
from mnist_ray.config import Recipe
from mnist_ray.errors import UserError, reason
from mnist_ray.fields import build
from mnist_ray.storage import Place, place

FILE = "checkpoint.pt"
FORMAT = 3
"""The version of the file's layout. It is raised whenever an older reader would fail."""


class Checkpoint(NamedTuple):
    """All that a run needs to resume: `state` for `engine.fit` to start from, the metrics of every
    epoch so far, and `data.Splits.hash`."""

    state: dict[str, Any]
    recipe: Recipe
    epochs: list[dict[str, Any]]
    split_hash: str


def save(folder: Place, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, whole or not at all, in place of an earlier one."""
    content = {"format": FORMAT, **checkpoint._asdict(), "recipe": checkpoint.recipe.model_dump()}
    archive = io.BytesIO()
    torch.save(content, archive)
    storage.make(folder)
    storage.write(folder / FILE, archive.getvalue())


def readable(folders: Iterable[Place]) -> dict[Place, Checkpoint]:
    """Return the checkpoints among `folders` that can be read, in the order of their epochs, the
    newest last. One that is damaged or missing is left out: a run may have been killed."""
    found = {}
    for folder in folders:
        with contextlib.suppress(UserError):
            found[folder] = load(folder)
    return dict(sorted(found.items(), key=lambda pair: pair[1].state["epoch"]))


def load(folder: str | Place) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises UserError if it is missing, damaged, of another
    version or not a checkpoint."""
    path = place("checkpoint", folder) / FILE
    try:
        archive = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"checkpoint {folder} holds no {FILE} that can be read ({reason(error)});"
            " name a checkpoint's folder or a run's, as printed at the end of a run."
        ) from None
    try:
        # torch.load does not check its archive's checksums: a flipped bit would change a weight.
        if damaged := zipfile.ZipFile(archive).testzip():
            raise ValueError(damaged)
        archive.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a foreign file's pickle, which is refused below
            content = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception:  # damaged or foreign bytes raise many kinds
        raise UserError(
            f"checkpoint {path} is damaged, or not a checkpoint of mnist_ray."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"checkpoint {path} is not a checkpoint of mnist_ray.")
    if (version := content.pop("format")) != FORMAT:
        writer = "version 0.1.0" if version == 2 else "another version"
        raise UserError(
            f"checkpoint {path} was written by {writer} of mnist_ray; read it with that."
        )
    try:
        saved = Checkpoint(**{**content, "recipe": build(Recipe, content["recipe"])})
        # What resuming reads must be there.
        saved.state["model"], saved.state["optimizer"], saved.epochs[saved.state["epoch"] - 1]
    except (UserError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"checkpoint {path} is not a checkpoint of mnist_ray: {error}") from None
    return saved
