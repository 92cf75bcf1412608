"""A dimension of a search space: which values a field can have, read from text such as
`uniform(0, 0.2)`."""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_ray.errors import UserError
from mnist_ray.fields import UNREADABLE, parse_yaml, shown

if TYPE_CHECKING:  # Optuna takes a quarter of a second to import, and `--help` needs none of it
    from optuna.distributions import BaseDistribution

REAL = ("uniform", "loguniform")
WHOLE = ("randint", "lograndint")
"""The kinds of ranges, of real and of whole numbers. Both ends belong to the range."""

WITH_STEP = ("uniform", "randint")
"""The kinds that take a step: on a logarithmic scale, equal steps have no meaning."""

MOST_STEPS = 10**9
"""The most steps of a range of real numbers. Optuna counts them with 28 digits."""


class Dimension(NamedTuple):
    """A dimension of a search space. `kind` is uniform, loguniform, randint, lograndint or choice.
    `values` are the choices, or the two ends of a range, which are included. With a `step`, the
    values of a range are its lower end, that plus the step, and so on up to its upper end."""

    kind: str
    values: tuple[Any, ...]
    step: float | None = None

    @property
    def log(self) -> bool:
        """Whether values are sampled, and plotted, on a logarithmic scale."""
        return self.kind in ("loguniform", "lograndint")

    @property
    def whole(self) -> bool:
        """Whether the dimension is a range of whole numbers."""
        return self.kind in WHOLE

    @property
    def size(self) -> float:
        """The number of values; infinite for a range of real numbers without a step."""
        if self.kind == "choice":
            return len(self.values)
        if self.step is None and not self.whole:
            return math.inf
        low, high = map(_exact, self.values)
        return int((high - low) / _exact(self.step or 1)) + 1

    def all(self) -> Sequence[Any]:
        """Return every value of a dimension of finite size."""
        if self.kind == "choice":
            return self.values
        if self.whole:
            return range(self.values[0], self.values[1] + 1, int(self.step or 1))
        return [self._at(place) for place in range(int(self.size))]

    def nearest(self, value: Any) -> Any:
        """Return the value of the dimension that is nearest to `value`, which Optuna proposed. For
        steps of real numbers, Optuna's values differ in their last digits."""
        if self.step is None or self.whole:
            return value
        return self._at(round((_exact(value) - _exact(self.values[0])) / _exact(self.step)))

    def _at(self, place: int) -> float:
        # In fractions, so that the fourth value of uniform(0, 1, 0.1) is 0.3. In floats, 3 * 0.1 is
        # a little more.
        return float(_exact(self.values[0]) + place * _exact(self.step))

    def has(self, value: Any) -> bool:
        """Return whether `value` is a value of the dimension."""
        if self.kind == "choice":
            return value in self.values
        if not is_number(value) or not self.values[0] <= value <= self.values[1]:
            return False
        if self.whole:
            return bool((value - self.values[0]) % (self.step or 1) == 0)
        return bool(self.nearest(value) == value)

    def distribution(self) -> "BaseDistribution":
        """Return Optuna's form of the dimension."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution(self.values)
        if self.whole:
            return distributions.IntDistribution(*self.values, log=self.log, step=self.step or 1)
        return distributions.FloatDistribution(*self.values, log=self.log, step=self.step)

    def reaching(self, value: Any) -> "Dimension | None":
        """Return the dimension, widened to include `value`, such as the base recipe's. Return None
        where a range cannot include `value`, or it is not among the choices."""
        if self.has(value):
            return self
        if self.kind == "choice" or not is_number(value) or (self.log and value <= 0):
            return None
        low, high = self.values
        return Dimension(self.kind, (min(low, value), max(high, value)))  # off the steps


def _exact(number: float | None) -> Fraction:
    """Return the number as it is written: 1/10 for 0.1, where the float is a little more."""
    return Fraction(str(number))


def is_number(value: Any) -> bool:
    """Return whether `value` is a number whose absolute value is below 2 to the power of 63."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63


def read_dimension(name: str, text: str) -> Dimension:
    """Read a dimension like `uniform(0, 0.2)` of the field `name`, without checking the field's
    bounds. Raises UserError where the text is no dimension."""
    wrong = f"space has {shown(name)}={shown(text)}, but "
    kinds = "|".join((*REAL, *WHOLE, "choice"))
    match = re.fullmatch(rf"\s*({kinds})\s*\((.*)\)\s*", text)
    if not match:
        ranges = ", ".join(f"{kind}(a, b)" for kind in (*REAL, *WHOLE))
        raise UserError(f"{wrong}must be {ranges} or choice(a, …).")
    kind = match[1]
    try:
        values = parse_yaml(f"[{match[2]}]")
    except UNREADABLE:
        values = []
    if not values or any(isinstance(value, (list, dict)) for value in values):
        raise UserError(f"{wrong}has no list of values in its brackets.")
    if kind == "choice":
        return Dimension(kind, tuple(values))
    most = 3 if kind in WITH_STEP else 2
    if not 2 <= len(values) <= most or not all(map(is_number, values)):
        takes = "two numbers, and a step" if kind in WITH_STEP else "two numbers, and no step"
        raise UserError(f"{wrong}{kind} takes {takes}.")
    if kind in WHOLE and not all(isinstance(value, int) for value in values):
        raise UserError(f"{wrong}{kind} takes whole numbers.")
    low, high, *steps = values
    if low >= high:
        raise UserError(f"{wrong}its lower end {low} is not below its upper end {high}.")
    if kind in ("loguniform", "lograndint") and low <= 0:
        raise UserError(f"{wrong}its lower end {low} must be above 0.")
    for step in steps:
        _check_step(wrong, low, high, step)
    return Dimension(kind, (low, high), *steps)


def _check_step(wrong: str, low: float, high: float, step: float) -> None:
    if step <= 0:
        raise UserError(f"{wrong}its step {step} must be above 0.")
    count = (_exact(high) - _exact(low)) / _exact(step)
    if count < 1:
        raise UserError(f"{wrong}its step {step} is longer than the range.")
    if count > MOST_STEPS:
        raise UserError(f"{wrong}its step {step} is too short: at most {MOST_STEPS} steps.")
    if count.denominator > 1:
        last = float(_exact(low) + int(count) * _exact(step))
        raise UserError(
            f"{wrong}steps of {step} from {low} miss its upper end {high}; the last one below it is"
            f" {last:.10g}."
        )
