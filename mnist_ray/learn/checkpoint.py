"""A checkpoint: a folder with one file, written whole or not at all, read without running code."""

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
"""Raised by one when a reader of the format before could not make sense of the file."""


class Checkpoint(NamedTuple):
    """`state` is what `engine.fit` takes as `start`. `epochs` are the metrics of every epoch up to
    it, so that a run that goes on from here has its whole history."""

    state: dict[str, Any]
    recipe: Recipe
    epochs: list[dict[str, Any]]
    split_hash: str


def save(folder: Place, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, whole or not at all, replacing one that is there."""
    content = {"format": FORMAT, **checkpoint._asdict(), "recipe": checkpoint.recipe.model_dump()}
    archive = io.BytesIO()
    torch.save(content, archive)
    storage.make(folder)
    storage.write(folder / FILE, archive.getvalue())


def readable(folders: Iterable[Place]) -> dict[Place, Checkpoint]:
    """The checkpoints among `folders`, that of the most epochs last. What a kill left half-written
    is passed over."""
    found = {}
    for folder in folders:
        with contextlib.suppress(UserError):
            found[folder] = load(folder)
    return dict(sorted(found.items(), key=lambda pair: pair[1].state["epoch"]))


def load(folder: str | Place) -> Checkpoint:
    """Read a checkpoint onto the CPU; raises UserError where there is none that can be used."""
    path = place("checkpoint", folder) / FILE
    try:
        archive = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"checkpoint {folder} holds no {FILE} that can be read ({reason(error)});"
            " name a checkpoint's folder, as printed at the end of a run."
        ) from None
    try:
        # torch.load does not compare the checksums of its archive, and a flipped bit is a weight.
        if bad := zipfile.ZipFile(archive).testzip():
            raise ValueError(bad)
        archive.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign file's pickle; it is refused below
            content = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception:  # whatever a reader of damaged or foreign bytes raises
        raise UserError(
            f"checkpoint {path} is damaged, or not a checkpoint of mnist_ray."
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise UserError(f"checkpoint {path} is not a checkpoint of mnist_ray.")
    if (written := content.pop("format")) != FORMAT:
        which = "version 0.1.0" if written == 2 else "another version"
        raise UserError(
            f"checkpoint {path} was written by {which} of mnist_ray; read it with that."
        )
    try:
        saved = Checkpoint(**{**content, "recipe": build(Recipe, content["recipe"])})
        saved.state["model"], saved.state["optimizer"], saved.epochs[saved.state["epoch"] - 1]
    except (UserError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"checkpoint {path} is not a checkpoint of mnist_ray: {error}") from None
    return saved
