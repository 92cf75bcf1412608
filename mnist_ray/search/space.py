"""Search spaces and configurations to try, read from the text that users write."""

import math
import re
import typing
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_ray.config import Recipe, Resources, check_batch
from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, field_value, parse_yaml, shown

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.distributions import BaseDistribution

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


class Dimension(NamedTuple):
    """A dimension of a search space. `kind` is uniform, loguniform, randint or choice. `values` are
    the choices, or the two ends of a range, which are included."""

    kind: str
    values: tuple[Any, ...]

    @property
    def log(self) -> bool:
        """Whether values are sampled, and plotted, on a logarithmic scale."""
        return self.kind == "loguniform"

    @property
    def size(self) -> float:
        """The number of values; infinite for a range of real numbers."""
        if self.kind == "choice":
            return len(self.values)
        return self.values[1] - self.values[0] + 1 if self.kind == "randint" else math.inf

    def all(self) -> Sequence[Any]:
        """Return every value of a dimension of finite size."""
        return self.values if self.kind == "choice" else range(self.values[0], self.values[1] + 1)

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's form of the dimension."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        if self.kind == "randint":
            return distributions.IntDistribution(*self.values)
        return distributions.FloatDistribution(*self.values, log=self.log)

    def reaching(self, value: Any) -> "Dimension | None":
        """Return the dimension, widened to include `value`, such as the base recipe's. Return None
        where a range cannot include `value`, or it is not among the choices."""
        if self.kind == "choice":
            return self if value in self.values else None
        if not _is_number(value) or (self.log and value <= 0):
            return None
        low, high = self.values
        return Dimension(self.kind, (min(low, value), max(high, value)))


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
        needed = {"uniform": float, "loguniform": float, "randint": int}.get(dimension.kind)
        types = typing.get_args(annotation) or (annotation,)
        if needed and needed not in types:
            kinds = "uniform, loguniform or choice" if float in types else "choice"
            kinds = "randint or choice" if int in types else kinds
            raise UserError(f"{wrong}, but {name} takes {kinds}.")
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


def read_dimension(name: str, text: str) -> Dimension:
    """Read a dimension like `uniform(0, 0.2)` of the field `name`, without checking the field's
    bounds. Raises UserError where the text is no dimension."""
    wrong = f"space has {shown(name)}={shown(text)}, but "
    match = re.fullmatch(r"\s*(uniform|loguniform|randint|choice)\s*\((.*)\)\s*", text)
    if not match:
        raise UserError(
            f"{wrong}must be uniform(a, b), loguniform(a, b), randint(a, b) or choice(a, …)."
        )
    kind = match[1]
    try:
        values = parse_yaml(f"[{match[2]}]")
    except UNREADABLE:
        values = []
    if not values or any(isinstance(value, (list, dict)) for value in values):
        raise UserError(f"{wrong}has no list of values in its brackets.")
    if kind == "choice":
        return Dimension(kind, tuple(values))
    if len(values) != 2 or not all(_is_number(value) for value in values):
        raise UserError(f"{wrong}{kind} takes two numbers.")
    low, high = values
    if low >= high:
        raise UserError(f"{wrong}its lower end {low} is not below its upper end {high}.")
    if kind == "loguniform" and low <= 0:
        raise UserError(f"{wrong}its lower end {low} must be above 0.")
    if kind == "randint" and not (isinstance(low, int) and isinstance(high, int)):
        raise UserError(f"{wrong}randint takes two whole numbers.")
    return Dimension(kind, (low, high))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63


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
