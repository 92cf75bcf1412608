"""The study that a new study starts from: found, read, and written down in the new one's folder."""

from typing import Any

import yaml

from mnist_ray import search, storage, tables
from mnist_ray.config import Recipe, RunConfig
from mnist_ray.errors import UserError
from mnist_ray.fields import read_yaml, shown
from mnist_ray.storage import Place

FILE = "started_from.yaml"
"""The file that says what a study took from another one. A resumed study reads it, because the
other study may be gone or have more trials by then."""


def read(start_from: str, run: RunConfig) -> search.Earlier:
    """Return the study that `start_from` names by its folder, its URI or its name in the storage.
    Raises UserError if it has no configuration with a result."""
    if run.resume and (own := tables.folder_of(run, "tune") / FILE).is_file():
        written = read_yaml(own)
        try:
            trials = [search.Known(**each) for each in written["trials"]]
            return search.Earlier(written["run"], written["recipe"], trials)
        except (KeyError, TypeError):
            raise UserError(f"config {own} is not as it was written.") from None
    try:
        return _found(_folder(start_from, run))
    except UserError as error:
        raise UserError(f"start_from is {shown(start_from)}: {error}") from None


def write(folder: Place, earlier: search.Earlier) -> None:
    """Write down in a study's folder what it starts from."""
    trials = [known._asdict() for known in earlier.trials]
    content = {"run": earlier.run, "recipe": earlier.recipe, "trials": trials}
    if not (folder / FILE).is_file():
        storage.write(folder / FILE, yaml.safe_dump(content, sort_keys=False).encode())


def _folder(start_from: str, run: RunConfig) -> Place:
    folder = storage.place("path", start_from)
    if "/" not in start_from and not folder.is_dir():
        return storage.place("storage", run.storage) / start_from
    return folder


def _found(folder: Place) -> search.Earlier:
    needed = (*tables.TRIAL_COLUMNS, *Recipe.model_fields)
    rows: list[dict[str, Any]] = tables.read(folder, needed=needed).to_pylist()
    if not (folder / "tune.yaml").is_file():
        raise UserError(f"path {folder} is not a study's: it holds no tune.yaml.")
    settings = read_yaml(folder / "tune.yaml")
    recipe = {
        name: settings.get(name, field.default) for name, field in Recipe.model_fields.items()
    }
    recipe = Recipe().replace(**recipe).model_dump()
    trials = search.configurations(rows, recipe, list(tables.space(folder)))
    if not trials:
        raise UserError(f"path {folder} has no trial with a result yet.")
    return search.Earlier(folder.name, recipe, trials)
