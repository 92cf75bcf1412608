"""The axes of the report's figures: accuracies, and whatever a hyperparameter may be.

Accuracies lie on a scale of their logarithmic error, so that 99 % and 99.5 % are as far apart as
98 % and 99 %.
"""

import math
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mnist_ray.search import Dimension

TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def log_error(accuracy: float) -> float:
    """Where an accuracy lies on the axis; a perfect one as if it had one error in 20,000 images."""
    return -math.log10(max(1 - accuracy, 0.5e-4))


def accuracy_axis(figure: go.Figure, accuracies: pd.Series) -> go.Figure:
    """Give `figure` a vertical axis for `accuracies`, and return it."""
    low, high = log_error(accuracies.min()), log_error(accuracies.max())
    margin = 0.05 * (high - low) + 0.02
    ticks = accuracy_ticks(low - margin, high + margin)
    figure.update_yaxes(
        title="accuracy",
        range=[low - margin, high + margin],
        tickvals=[log_error(tick) for tick in ticks],
        ticktext=[f"{100 * tick:.4g} %" for tick in ticks],
    )
    return figure


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Accuracies whose heights lie from `low` to `high`."""
    ticks = [tick for tick in TICKS if low <= log_error(tick) <= high]
    if len(ticks) >= 3:
        return ticks
    for parts in (1000, 10_000):  # a narrow range: tenths of a point, or a narrower one: hundredths
        ticks = [i / parts for i in range(parts) if low <= log_error(i / parts) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: len(ticks) // 6 + 1]


def label(value: Any) -> str:
    """A value of a config's field as people write it; pandas turns none into NaN, 64 into 64.0."""
    if pd.isna(value):
        return "none"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return str(value)


def axis_values(values: pd.Series, dimension: Dimension) -> list[Any]:
    """What stands on the axis of a dimension: numbers, or the names of choices."""
    if dimension.kind == "choice":
        return [label(value) for value in values]
    return list(values)


def names(values: pd.Series, dimension: Dimension) -> list[str]:
    """The names of a dimension's choices in their order, and of what else was tried."""
    return list(dict.fromkeys(label(value) for value in (*dimension.values, *values)))


def round_values(values: pd.Series) -> list[float]:
    """1, 2, 5, 10, … within a logarithmic range; where these are many, the powers of ten."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if values.min() <= tick <= values.max()]
    return ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]


def parallel_axis(values: pd.Series, name: str, dimension: Dimension) -> dict[str, Any]:
    """An axis of parallel coordinates."""
    if dimension.kind == "choice":
        known = names(values, dimension)
        return {
            "label": name,
            "values": [known.index(label(value)) for value in values],
            "tickvals": list(range(len(known))),
            "ticktext": known,
        }
    if not dimension.log:
        return {"label": name, "values": list(values)}
    ticks = round_values(values)
    return {
        "label": name,
        "values": [math.log10(value) for value in values],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
    }


def as_seen(values: pd.Series, dimension: Dimension) -> tuple[Dimension, list[Any]]:
    """A dimension that has all of `values`, some of which may lie outside of the one that was
    searched, and the values in it."""
    if dimension.kind == "choice":
        return Dimension("choice", tuple(names(values, dimension))), axis_values(values, dimension)
    for value in values:
        dimension = dimension.reaching(value) or dimension
    return dimension, list(values)
