"""A checkpoint: a folder with one file, written whole or not at all, read without running code."""

import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mnist_ray.config import TrainConfig, build
from mnist_ray.errors import UserError, usable

FILE = "checkpoint.pt"
FORMAT = 1
"""Raised by one when a reader of the format before could not make sense of the file."""


class Checkpoint(NamedTuple):
    """`state` is what `engine.fit` takes as `start`; `metrics` are those of its epoch."""

    state: dict[str, Any]
    config: TrainConfig
    metrics: dict[str, Any]
    split_hash: str


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` into `folder`, replacing one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"format": FORMAT, **checkpoint._asdict(), "config": checkpoint.config.model_dump()}
    partial = folder / f".{FILE}.{os.getpid()}"
    torch.save(content, partial)
    os.replace(partial, folder / FILE)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU; raises UserError where there is none that can be used."""
    path = usable("checkpoint", folder) / FILE
    try:
        archive = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"checkpoint {folder} holds no {FILE} that can be read ({error.strerror});"
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
    if content.pop("format") != FORMAT:
        raise UserError(f"checkpoint {path} was written by another version of mnist_ray.")
    try:
        saved = Checkpoint(**{**content, "config": build(TrainConfig, content["config"])})
        saved.state["model"], saved.state["optimizer"], saved.state["epoch"]
    except (UserError, TypeError, LookupError, AttributeError) as error:
        raise UserError(f"checkpoint {path} is not a checkpoint of mnist_ray: {error}") from None
    return saved
