"""The folder that a run fills: its name, what the run began with, and who is at it now."""

import errno
import fcntl
import itertools
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from mnist_ray import search, storage
from mnist_ray.config import RunConfig, TuneConfig
from mnist_ray.errors import UserError, reason
from mnist_ray.fields import read_yaml
from mnist_ray.storage import Place
from mnist_ray.tables.rows import kept
from mnist_ray.tables.schema import Row

NOTHING: Mapping[str, Any] = MappingProxyType({})

BEST_RECIPE = "best.yaml"
"""The file of a study's winning recipe."""

WORKERS = "workers"
"""The folder within a study's of what its trials' own workers save."""


def folder_of(run: RunConfig, kind: str) -> Place:
    """The folder that this run of `kind` (train or tune) will fill, or goes on filling; raises
    UserError if it is another run's, or if there is none to go on with."""
    home = storage.place("storage", run.storage)
    if run.resume and not run.name:
        raise UserError("resume needs the name of the run that is to go on; add --name NAME.")
    folder = home / (run.name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        if run.resume:
            if not (folder / f"{kind}.yaml").is_file():
                raise UserError(
                    f"name {run.name} cannot be resumed: {folder} holds no {kind}.yaml."
                )
            return folder
        if run.name and folder.exists():
            raise UserError(
                f"name {folder.name} is taken: {folder} exists. Choose another --name, or go on"
                " with it: --resume."
            )
        storage.make(home)
    except OSError as error:
        raise _unusable(run.storage, reason(error)) from None
    if isinstance(home, Path) and not os.access(home, os.W_OK | os.X_OK):
        raise _unusable(run.storage, "you may not write to it")
    return folder


def _unusable(home: object, why: str) -> UserError:
    return UserError(
        f"storage {home} cannot be used: {why}. Name a folder that can be written: --storage."
    )


def recorded_settings(run: RunConfig, kind: str) -> dict[str, Any]:
    """What the run that is to go on began with; raises UserError."""
    return read_yaml(folder_of(run, kind) / f"{kind}.yaml")


def space(folder: Place) -> dict[str, search.Dimension]:
    """The search space of the study in this folder, as the study wrote it down; empty where there
    is none."""
    if not (folder / "tune.yaml").is_file():
        return {}
    began = read_yaml(folder / "tune.yaml")
    known = TuneConfig(search=began.get("search", "random"), space=began.get("space") or {})
    texts = search.space_of(known)
    return {name: search.read_dimension(name, text) for name, text in texts.items()}


def is_run(folder: Place) -> bool:
    """Whether a run has begun in this folder."""
    return any((folder / f"{kind}.yaml").is_file() for kind in ("train", "tune"))


@contextmanager
def locked(
    folder: Place,
    kind: str,
    settings: Mapping[str, Any],
    resume: bool = False,
    rename: bool = False,
) -> Iterator[Place]:
    """Give the run's folder, which is there inside, holds its settings, and is no other process's,
    which can be seen of a folder of this machine. Without `resume` it is made; where its name is
    taken and `rename` is set, as for a name that no one chose, it has the next that is free.

    Raises UserError where another process is at this run, or has just taken its name.
    """
    if not resume:
        folder = _make(folder, f"{kind}.yaml", settings, rename)
    recorded = folder / f"{kind}.yaml"
    if not isinstance(recorded, Path):
        yield folder
        return
    try:
        lock = recorded.open("r+", encoding="utf-8")  # NFS locks no file that is only read
    except OSError as error:
        raise UserError(f"{recorded} cannot be opened: {reason(error)}.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however
        except OSError as error:
            if error.errno in LOCKED:
                raise UserError(f"name {folder.name} is being run by another process.") from None
            if error.errno not in NO_LOCKS:
                raise UserError(f"{recorded} cannot be locked: {reason(error)}.") from None
        yield folder


LOCKED = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""What a file system says that another process has locked the file, and that it has no locks."""


def _make(folder: Place, name: str, settings: Mapping[str, Any], rename: bool) -> Place:
    """The folder with its settings, or none: a kill in between leaves nothing under its name."""
    content = yaml.safe_dump(dict(settings), sort_keys=False).encode()
    wanted = folder
    for number in itertools.count(2):
        try:
            if _make_new(folder, name, content):
                return folder
        except OSError as error:
            raise _unusable(folder.parent, reason(error)) from None
        if not rename:
            raise UserError(f"name {folder.name} was just taken. Choose another --name.")
        folder = wanted.parent / f"{wanted.name}-{number}"
    raise AssertionError  # numbers do not end


def _make_new(folder: Place, name: str, content: bytes) -> bool:
    """Make the folder with a file in it, or nothing, where there is a folder already."""
    if not isinstance(folder, Path):
        return _put_new(folder, name, content)
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        new.mkdir()
        (new / name).write_bytes(content)
        new.rename(folder)
    except OSError:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            return False
        raise
    return True


def _put_new(folder: Place, name: str, content: bytes) -> bool:
    """The same in a bucket, where pyarrow writes no file on the condition that there is none: each
    process first writes that it wants the name, and of several at once none gets it."""
    claim = folder / f"{name}.claim-{uuid.uuid4()}"
    storage.write(claim, b"")
    try:
        # In this order: who had the name wrote the settings before it took back its claim.
        if len(list(folder.glob(f"{name}.claim-*"))) > 1 or (folder / name).exists():
            return False
        storage.write(folder / name, content)
    finally:
        storage.remove_file(claim)
    return True


def resume_flags(
    folder: Place,
    run: RunConfig,
    now: Mapping[str, Any] = NOTHING,
    recorded: Mapping[str, Any] = NOTHING,
) -> list[str]:
    """Return the flags that go on with the run in `folder`, with those of its settings `now` that
    are not the `recorded` ones."""
    usual = {name: field.default for name, field in RunConfig.model_fields.items()}
    given = {name: getattr(run, name) for name in ("storage", "data_dir", "max_failures")}
    changed = {name: value for name, value in given.items() if value != usual[name]}
    changed |= {name: value for name, value in now.items() if value != recorded.get(name, value)}
    if {"num_workers", "min_workers"} & set(changed):  # they are a range only together
        changed |= {name: now[name] for name in ("num_workers", "min_workers")}
    words = ["--resume", "--name", folder.name]
    for name, value in changed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words


def checkpoint_name(epoch: int) -> str:
    """Name the folder of the checkpoint after `epoch` of a run that trains in its own process."""
    return f"checkpoint_{epoch:06}"


def checkpoints(folder: Place) -> list[Place]:
    """Return what may be checkpoints in the folder of a run or a trial, as Ray names them. What
    somebody put there, like checkpoint_best, is not among them, and so is never deleted."""
    return list(folder.glob("checkpoint_[0-9]*"))


def prune(run: Place, folders: Iterable[Place], epochs: Sequence[Row]) -> None:
    """Delete the checkpoints in `folders` of a run but those of its best and of its last epoch, as
    the rows of the epochs table name them."""
    keep = {row["checkpoint"] for row in kept(epochs)}
    for folder in folders:
        for path in checkpoints(folder):
            if storage.relative(path, run) not in keep:
                storage.remove(path)
    for row in epochs:
        if row["checkpoint"] not in keep:
            row["checkpoint"] = None


def trial_name(number: int) -> str:
    return f"trial_{number:05}"


def trial_number(name: str) -> int | None:
    """Return the number of the trial that a folder of this name belongs to, or None if it belongs
    to none: trial_00012 and trial_00012-2 are of trial 12, trial_notes is somebody's own."""
    match = re.fullmatch(r"trial_([0-9]{5,})(-[0-9]+)?", name)
    if not match or trial_name(int(match[1])) != f"trial_{match[1]}":
        return None
    return int(match[1])


def trial_numbers(study: Place) -> set[int]:
    """Return the numbers of the trials that a study's folder has folders of."""
    found = (trial_number(path.name) for path in _in_both(study, "trial_*"))
    return {number for number in found if number is not None}


def trial_folders(study: Place, number: int) -> list[Place]:
    """Return the folders in which a trial of a study keeps its checkpoints: one for each time that
    the study was begun or gone on with, and one of the trial's workers."""
    places = _in_both(study, f"{trial_name(number)}*")
    return [path for path in places if trial_number(path.name) == number and path.is_dir()]


def new_trial_folder(study: Place, number: int) -> str:
    """Name a folder for a trial that is not there yet, beside those from before an interruption."""
    name = trial_name(number)
    taken = {path.name for path in study.glob(f"{name}*")}
    again = (f"{name}-{count}" for count in itertools.count(1))
    return next(each for each in itertools.chain([name], again) if each not in taken)


def _in_both(study: Place, pattern: str) -> list[Place]:
    return [*study.glob(pattern), *(study / WORKERS).glob(pattern)]
