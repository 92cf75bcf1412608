"""The settings of a run over time: those that it began with, and what a resumed study changed."""

from collections.abc import Mapping
from typing import Any

import yaml

from mnist_ray import storage
from mnist_ray.config import RunConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import read_yaml
from mnist_ray.storage import Place
from mnist_ray.tables.run_folder import folder_of, trial_folders, trial_numbers
from mnist_ray.tables.schema import PREDICTIONS

CHANGES = "changes.yaml"
"""The file that says what a resumed study changed of its settings."""


def recorded_settings(run: RunConfig, kind: str) -> dict[str, Any]:
    """Return the settings that the run to resume began with, and those that it has changed since;
    raises UserError."""
    folder = folder_of(run, kind)
    if kind == "tune":
        return settings_over_time(folder)[-1][1]
    return read_yaml(folder / f"{kind}.yaml")


def settings_over_time(study: Place) -> list[tuple[int, dict[str, Any]]]:
    """Return the settings that a study began with, and all settings after each change, with the
    number of trials before it. Raises UserError if a file cannot be read."""
    found = [(0, read_yaml(study / "tune.yaml"))]
    path = study / CHANGES
    changes = read_yaml(path).get("changes") if path.is_file() else []
    for change in changes if isinstance(changes, list) else [None]:
        if not isinstance(change, dict) or not isinstance(change.get("after"), int):
            raise UserError(f"config {path} must hold a list of changes, each after some trials.")
        changed = {name: value for name, value in change.items() if name != "after"}
        found.append((change["after"], {**found[-1][1], **changed}))
    return found


def record_change(study: Place, after: int, changed: Mapping[str, Any]) -> None:
    """Write down that a study goes on with other settings after `after` trials. It has no winner
    until it ends again, so delete the last winner's predictions and later trials' folders."""
    before = [
        {"after": number, **{name: settings[name] for name in changed}}
        for number, settings in settings_over_time(study)[1:]
        if number < after
    ]
    changes = {"changes": [*before, {"after": after, **changed}]}
    storage.write(study / CHANGES, yaml.safe_dump(changes, sort_keys=False).encode())
    if (study / PREDICTIONS).is_file():
        storage.remove_file(study / PREDICTIONS)
    for number in trial_numbers(study):
        if number >= after:
            for folder in trial_folders(study, number):
                storage.remove(folder)


def goes_on(study: Place) -> bool:
    """Return whether a study that had ended was resumed to add trials, and has not ended again."""
    return (study / CHANGES).is_file() and not (study / PREDICTIONS).is_file()
