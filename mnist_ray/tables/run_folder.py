"""The folder of a run: its name, its recorded settings, its lock, and its trials' folders."""

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

JOURNAL = "optuna.log"
"""The file in which Optuna and its dashboard find a study's trials."""

EVENTS = "events.out.tfevents.mnist_ray"
"""The file, within the folder of a training run, that TensorBoard reads."""

WORKERS = "workers"
"""The folder, within a study's folder, in which the workers of its trials save checkpoints."""


def folder_of(run: RunConfig, kind: str) -> Place:
    """Return the folder of a run of `kind` (train or tune), which exists only if the run resumes.
    Raises UserError if another run has it, if there is none to resume, or if the storage cannot be
    written."""
    home = storage.place("storage", run.storage)
    if run.resume and not run.name:
        raise UserError("resume needs the name of the run to resume; add --name NAME.")
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


def space(folder: Place) -> dict[str, search.Dimension]:
    """Return the recorded search space of the study in this folder; empty if the folder is not a
    study's."""
    if not (folder / "tune.yaml").is_file():
        return {}
    recorded = read_yaml(folder / "tune.yaml")
    tuning = TuneConfig(search=recorded.get("search", "random"), space=recorded.get("space") or {})
    texts = search.space_of(tuning)
    return {name: search.read_dimension(name, text) for name, text in texts.items()}


def is_run(folder: Place) -> bool:
    """Return whether a run has begun in this folder."""
    return any((folder / f"{kind}.yaml").is_file() for kind in ("train", "tune"))


@contextmanager
def locked(
    folder: Place,
    kind: str,
    settings: Mapping[str, Any],
    resume: bool = False,
    rename: bool = False,
) -> Iterator[Place]:
    """Hold the run's folder for a block, so that no other process works on the run. A folder behind
    a URI has no lock.

    Unless the run resumes, make the folder, with the settings in it. Raises UserError if another
    process has locked the folder or just took its name; with `rename`, a taken name gets a number.
    """
    if not resume:
        folder = _make(folder, f"{kind}.yaml", settings, rename)
    recorded = folder / f"{kind}.yaml"
    if not isinstance(recorded, Path):
        yield folder
        return
    try:
        lock = recorded.open("r+", encoding="utf-8")  # NFS only locks files open for writing
    except OSError as error:
        raise UserError(f"{recorded} cannot be opened: {reason(error)}.") from None
    with lock:
        try:
            # The lock ends with the process, however the process ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in LOCKED:
                raise UserError(f"name {folder.name} is being run by another process.") from None
            if error.errno not in NO_LOCKS:
                raise UserError(f"{recorded} cannot be locked: {reason(error)}.") from None
        yield folder


def goes_on(folder: Place) -> bool | None:
    """Return whether a process works on the run in this folder; None if it cannot be known, because
    the folder is in a bucket or its file system has no locks."""
    recorded = [folder / f"{kind}.yaml" for kind in ("train", "tune")]
    for file in (each for each in recorded if each.is_file()):
        if not isinstance(file, Path):
            return None
        with file.open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return True if error.errno in LOCKED else None
    return False


LOCKED = (errno.EAGAIN, errno.EACCES)
"""The error numbers that say that another process has locked the file."""
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
"""The error numbers of a file system that has no locks."""


def _make(folder: Place, name: str, settings: Mapping[str, Any], rename: bool) -> Place:
    """Make a folder with a file `name` that holds the settings, and return the folder. If it exists
    already, `rename` tries the next numbers."""
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
    raise AssertionError  # count() does not end


def _make_new(folder: Place, name: str, content: bytes) -> bool:
    """Make the folder with a file in it, and return True; return False if the folder exists. A kill
    in between leaves no folder of this name."""
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
    """Make the folder in a bucket, with a file in it, and return True; return False if the folder
    exists. pyarrow can only overwrite, so each process first writes a file that claims the name. If
    several processes claim it at once, none gets it."""
    claim = folder / f"{name}.claim-{uuid.uuid4()}"
    storage.write(claim, b"")
    try:
        # Look for claims first: whoever has the name wrote the settings, then removed its claim.
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
    """Return the flags that resume the run in `folder`: its name, the fields of `run` that are not
    the defaults, and the settings `now` that differ from the `recorded` ones."""
    kept_fields = {"storage", "data_dir", "max_failures"}
    changed = run.model_dump(include=kept_fields, exclude_defaults=True)
    changed |= {name: value for name, value in now.items() if value != recorded.get(name, value)}
    if {"num_workers", "min_workers"} & set(changed):  # only both together are a range
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
    """Return the checkpoints in the folder of a run or a trial. They have the names that Ray gives:
    what somebody else put there, like checkpoint_best, is not among them and is never deleted."""
    return list(folder.glob("checkpoint_[0-9]*"))


def prune(run: Place, folders: Iterable[Place], epochs: Sequence[Row]) -> None:
    """Delete a trial's checkpoints in `folders`, except those of the best and of the last epoch. In
    the rows `epochs`, clear the paths of the others, which are relative to the folder `run`."""
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
    """Return the number of the trial whose folder has this name, or None if no trial's has:
    trial_00012 and trial_00012-2 belong to trial 12, trial_notes to nobody."""
    match = re.fullmatch(r"trial_([0-9]{5}|[1-9][0-9]{5,})(-[0-9]+)?", name)
    return int(match[1]) if match else None


def trial_numbers(study: Place) -> set[int]:
    """Return the numbers of the trials that have a folder in the study's folder."""
    found = (trial_number(path.name) for path in _in_both(study, "trial_*"))
    return {number for number in found if number is not None}


def trial_folders(study: Place, number: int) -> list[Place]:
    """Return the folders in which a trial of a study keeps its checkpoints: one for each time the
    study started or resumed, and one for the trial's workers."""
    places = _in_both(study, f"{trial_name(number)}*")
    return [path for path in places if trial_number(path.name) == number and path.is_dir()]


def new_trial_folder(study: Place, number: int) -> str:
    """Return a name for a trial's new folder that no earlier folder of the trial has."""
    name = trial_name(number)
    taken = {path.name for path in study.glob(f"{name}*")}
    numbered = (f"{name}-{count}" for count in itertools.count(1))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def _in_both(study: Place, pattern: str) -> list[Place]:
    """Return what matches `pattern` in the study's folder, and in that of its trials' workers."""
    return [*study.glob(pattern), *(study / WORKERS).glob(pattern)]
