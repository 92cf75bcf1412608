"""What an interrupted study left in its folder: the rows of trials that ended, and the checkpoints
of those that did not."""

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from mnist_ray import learn, storage, tables
from mnist_ray.config import Recipe
from mnist_ray.fields import counted
from mnist_ray.storage import Place


def ended(study: Place) -> tuple[list[tables.Row], tables.Epochs]:
    """Return the rows of the trials that ended, and the epochs of each. Raises UserError if the
    tables cannot be read."""
    if not (study / tables.TRIALS).exists():
        return [], {}
    rows = tables.read(study, needed=tables.TRIAL_COLUMNS).to_pylist()
    epochs: tables.Epochs = {row["trial"]: [] for row in rows}
    for row in tables.read(study, tables.EPOCHS).to_pylist():
        if row["trial"] in epochs:  # the other trials' epochs are in their checkpoints
            epochs[row["trial"]].append(row)
    return rows, epochs


COMPUTED_WITH = ("workers", "device", "threads", "arithmetic")
"""What decides the bits of a run besides its recipe: the keys of `learn.computed_with`."""


def other_bits(recorded: Iterable[Mapping[str, Any]], now: Mapping[str, Any]) -> str | None:
    """Return a sentence if a run computes with other workers, threads, device or arithmetic `now`
    than it began with; None if no difference is known. It began with the first value of each that
    its `recorded` rows have."""
    began: dict[str, Any] = {}
    for row in recorded:
        began |= {name: row.get(name) for name in COMPUTED_WITH if began.get(name) is None}
    known = [name for name, was in began.items() if was is not None and name in now]
    names = [name for name in known if began[name] != now[name]]
    if "threads" in names and "cuda" in (began["device"], now.get("device")):
        names.remove("threads")  # they do not change what a GPU computes
    if not names:
        return None
    was, goes_on = (
        " and ".join(_said(name, values[name]) for name in names) for values in (began, now)
    )
    return (
        f"begun with {was}, resumed with {goes_on}: the weights will differ slightly from an"
        " undisturbed run's"
    )


def _said(name: str, value: Any) -> str:
    if name in ("workers", "threads"):
        return counted(value, name.removesuffix("s"))
    return f"{name} {value}"


class Begun(NamedTuple):
    """The recipe and the epochs so far of a trial that saved a checkpoint and did not end."""

    recipe: Recipe
    epochs: list[tables.Row]


def begun(study: Place, ended: Container[int]) -> dict[int, Begun]:
    """Return the trials that saved a checkpoint and did not end, by their numbers."""
    numbers = sorted(tables.trial_numbers(study))
    found = {number: trial(study, number) for number in numbers if number not in ended}
    return {number: each for number, each in found.items() if each}


def trial(study: Place, number: int) -> Begun | None:
    """Return what a trial has saved so far, or None if it saved nothing."""
    folders = tables.trial_folders(study, number)
    saved = learn.readable_checkpoints(
        path for folder in folders for path in tables.checkpoints(folder)
    )
    if not saved:
        return None
    newest = list(saved.values())[-1]
    places = {each.state["epoch"]: storage.relative(path, study) for path, each in saved.items()}
    rows = [tables.epoch_row(study.name, number, metrics) for metrics in newest.epochs]
    epochs = [{**row, "checkpoint": places.get(row["epoch"])} for row in rows]
    return Begun(newest.recipe, epochs)
