"""Search spaces and configurations to try, read from the text that users write."""

import typing
from collections.abc import Hashable, Mapping
from typing import Any

from mnist_ray.config import Recipe, Resources, check_batch
from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, field_value, parse_yaml, shown
from mnist_ray.search.dimension import REAL, WHOLE, Dimension, read_dimension

DEFAULT_SPACE = {
    "dropout": "uniform(0, 0.2)",
    "lr": "loguniform(0.02, 0.3)",
    "momentum": "uniform(0.8, 0.95)",
}
DEFAULT_GRID = {
    "dropout": "choice(0, 0.1)",
    "lr": "choice(0.05, 0.15)",
    "momentum": "choice(0.85, 0.92)",
}


def parse(space: dict[str, str], base: Recipe, workers: int = 1) -> dict[str, Dimension]:
    """Read and check a search space for trials with `workers` workers each. Every value is valid
    for its field, though perhaps not together with every value of the other dimensions.

    Raises UserError for an unknown field, a text that is no dimension, values outside the field's
    bounds, a choice with equal values, and a single dimension with a value that is invalid in
    `base`.
    """
    dimensions = {}
    for name, text in space.items():
        _check_name("space", name)
        dimension = read_dimension(name, text)
        wrong = f"space has {shown(name)}={shown(text)}"
        annotation = Recipe.model_fields[name].annotation
        types = typing.get_args(annotation) or (annotation,)
        kinds = REAL if float in types else WHOLE if int in types else ()
        if dimension.kind not in (*kinds, "choice"):
            takes = f"{', '.join(kinds)} or choice" if kinds else "choice"
            raise UserError(f"{wrong}, but {name} takes {takes}.")
        try:
            checked = tuple(field_value(Recipe, name, each) for each in dimension.values)
            if len(space) == 1:  # every trial has one of these values and the base recipe's others
                for value in checked:
                    valid(base, {name: value}, workers)
        except UserError as error:
            raise UserError(f"{wrong}: {error}") from None
        if dimension.kind == "choice":
            dimension = Dimension("choice", checked)  # the values in the field's type
            if twice := [value for i, value in enumerate(checked) if value in checked[:i]]:
                raise UserError(f"{wrong}, but {shown(twice[0])} is there twice; leave one out.")
        dimensions[name] = dimension
    if "precision" in dimensions and "auto" in dimensions["precision"].values:
        raise UserError(
            "space has precision=auto, but auto is fp32 or bf16, whichever the machine is fast at;"
            " name these two."
        )
    return dimensions


def _check_name(setting: str, name: str) -> None:
    varied = [field for field in Recipe.model_fields if field not in Recipe.fixed]
    if name not in varied:
        raise UserError(f"{setting} has {shown(name)}, but can only have {', '.join(varied)}.")


def identity(config: Recipe) -> Hashable:
    """Return a value that is the same for all recipes that train to the same weights."""
    values = config.model_dump()
    values |= {"train_size": config.images, **dict.fromkeys(config.idle)}
    return tuple(values.items())


def valid(base: Recipe, values: Mapping[str, Any], workers: int) -> Recipe:
    """Return the recipe of a trial with `values`; raises UserError where the recipe is invalid, or
    `workers` workers cannot share its batches."""
    recipe = base.replace(**values)
    check_batch(recipe, Resources(num_workers=workers))
    return recipe


def read_try(text: str, base: Recipe, workers: int = 1) -> dict[str, Any]:
    """Read a configuration to try, like `lr=0.1 momentum=0.9`; other fields stay as in `base`.

    Raises UserError where the text is no such list, or its recipe is not `valid`.
    """
    values: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not value:
            raise UserError(f"try has {shown(word)}, but must be like 'lr=0.1 momentum=0.9'.")
        _check_name("try", name)
        if name in values:
            raise UserError(f"try has {name} twice: {shown(text)}; leave one out.")
        try:
            values[name] = field_value(Recipe, name, parse_yaml(value))
        except UNREADABLE:
            raise UserError(f"try has {shown(word)}, whose value cannot be read.") from None
        except UserError as error:
            raise UserError(f"try has {shown(word)}: {error}") from None
    if not values:
        raise UserError("try is empty, but must be like 'lr=0.1 momentum=0.9'.")
    try:
        valid(base, values, workers)
    except UserError as error:
        raise UserError(f"try has {shown(text)}: {error}") from None
    return values
