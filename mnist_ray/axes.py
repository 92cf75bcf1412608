"""The axes of the report's figures: accuracies, and whatever a hyperparameter may be.

Accuracies lie on a scale of their logarithmic error, so that 99 % and 99.5 % are as far apart as
98 % and 99 %.
"""

import math
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go

TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def height(accuracy: float) -> float:
    """Where an accuracy lies on the axis; a perfect one as if it had one error in 20,000 images."""
    return -math.log10(max(1 - accuracy, 0.5e-4))


def accuracy_axis(figure: go.Figure, accuracies: pd.Series) -> go.Figure:
    """Give `figure` a vertical axis for `accuracies`, and return it."""
    low, high = height(accuracies.min()), height(accuracies.max())
    margin = 0.05 * (high - low) + 0.02
    ticks = accuracy_ticks(low - margin, high + margin)
    figure.update_yaxes(
        title="accuracy",
        range=[low - margin, high + margin],
        tickvals=[height(tick) for tick in ticks],
        ticktext=[f"{100 * tick:.4g} %" for tick in ticks],
    )
    return figure


def accuracy_ticks(low: float, high: float) -> list[float]:
    """Accuracies whose heights lie from `low` to `high`."""
    ticks = [tick for tick in TICKS if low <= height(tick) <= high]
    if len(ticks) >= 3:
        return ticks
    for parts in (1000, 10_000):  # a narrow range: tenths of a point, or a narrower one: hundredths
        ticks = [i / parts for i in range(parts) if low <= height(i / parts) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: len(ticks) // 6 + 1]


def is_numeric(values: pd.Series) -> bool:
    """Whether all are numbers; a field that may be none has NaN for it, which no axis can place."""
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    return bool(is_number and values.notna().all())


def label(value: Any) -> str:
    """A value of a config's field as people write it; pandas turns none into NaN, 64 into 64.0."""
    if pd.isna(value):
        return "none"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return str(value)


def is_logarithmic(values: pd.Series) -> bool:
    """Whether they lie more evenly on a logarithmic axis than on a linear one. Their range alone
    does not tell: uniform(0, 0.5) has a smallest value near 0 too."""
    if not is_numeric(values) or values.min() <= 0 or values.max() / values.min() < 8:
        return False

    def lopsided(values: pd.Series) -> float:
        share = (values.mean() - values.min()) / (values.max() - values.min())
        return abs(float(share) - 0.5)

    return lopsided(values.map(math.log10)) < lopsided(values)


def axis_values(values: pd.Series) -> list[Any]:
    return list(values) if is_numeric(values) else [label(value) for value in values]


def round_values(values: pd.Series) -> list[float]:
    """1, 2, 5, 10, … within a logarithmic range; where these are many, the powers of ten."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if values.min() <= tick <= values.max()]
    return ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]


def parallel_axis(values: pd.Series, name: str) -> dict[str, Any]:
    if is_logarithmic(values):
        ticks = round_values(values)
        return {
            "label": name,
            "values": [math.log10(value) for value in values],
            "tickvals": [math.log10(tick) for tick in ticks],
            "ticktext": [f"{tick:g}" for tick in ticks],
        }
    if is_numeric(values):
        return {"label": name, "values": list(values)}
    names = sorted({label(value) for value in values})
    return {
        "label": name,
        "values": [names.index(label(value)) for value in values],
        "tickvals": list(range(len(names))),
        "ticktext": names,
    }


def distribution(values: pd.Series) -> optuna.distributions.BaseDistribution:
    if not is_numeric(values):
        names = tuple(sorted({label(value) for value in values}))
        return optuna.distributions.CategoricalDistribution(names)
    log = is_logarithmic(values)
    if pd.api.types.is_integer_dtype(values):
        return optuna.distributions.IntDistribution(int(values.min()), int(values.max()), log=log)
    return optuna.distributions.FloatDistribution(values.min(), values.max(), log=log)
