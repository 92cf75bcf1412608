"""What a study that was interrupted left in its folder. Without Ray."""

from collections.abc import Container, Iterable, Mapping
from typing import Any, NamedTuple

from mnist_ray import learn, storage, tables
from mnist_ray.config import Recipe
from mnist_ray.storage import Place


def ended(study: Place) -> tuple[list[tables.Row], tables.Epochs]:
    """The rows of the trials that ended, and their epochs; raises UserError where the tables cannot
    be read."""
    if not (study / tables.TRIALS).exists():
        return [], {}
    rows = tables.read(study, needed=tables.TRIAL_COLUMNS).to_pylist()
    epochs: tables.Epochs = {row["trial"]: [] for row in rows}
    for row in tables.read(study, tables.EPOCHS).to_pylist():
        if row["trial"] in epochs:  # those of the others are in their checkpoints
            epochs[row["trial"]].append(row)
    return rows, epochs


COMPUTED_WITH = ("workers", "device", "threads", "arithmetic")
"""What decides the bits of a run besides its recipe, as `engine.computed_with` names it."""


def other_bits(recorded: Iterable[Mapping[str, Any]], now: Mapping[str, Any]) -> str | None:
    """Say where what a run computes with `now` differs from the first that was `recorded`; None
    where nothing does, or nothing is known."""
    began: dict[str, Any] = {}
    for row in recorded:
        began |= {name: row.get(name) for name in COMPUTED_WITH if began.get(name) is None}
    known = [name for name, was in began.items() if was is not None and name in now]
    names = [name for name in known if began[name] != now[name]]
    if "threads" in names and "cuda" in (began["device"], now.get("device")):
        names.remove("threads")  # which do not make a GPU's bits
    if not names:
        return None
    was, goes_on = (
        " and ".join(_said(name, values[name]) for name in names) for values in (began, now)
    )
    return (
        f"begun with {was}, goes on with {goes_on}: it will end with other bits than an"
        " undisturbed run"
    )


def _said(name: str, value: Any) -> str:
    if name in ("workers", "threads"):
        return f"{value} {name.removesuffix('s')}{'s' * (value > 1)}"
    return f"{name} {value}"


class Begun(NamedTuple):
    """A trial that saved a checkpoint and did not end: its recipe, and its epochs so far."""

    recipe: Recipe
    epochs: list[tables.Row]


def begun(study: Place, ended: Container[int]) -> dict[int, Begun]:
    """The trials that had begun, by their numbers."""
    numbers = sorted(tables.trial_numbers(study))
    found = {number: trial(study, number) for number in numbers if number not in ended}
    return {number: each for number, each in found.items() if each}


def trial(study: Place, number: int) -> Begun | None:
    """What a trial has saved so far."""
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
