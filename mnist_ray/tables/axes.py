"""The colours and the axis of accuracies that the report's figures share.

The axis is logarithmic in the error, so 99 % and 99.5 % are as far apart as 98 % and 99 %.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnist_ray.search import Phase

BLUE, ORANGE, GREEN, GREY = "#3A93D0", "#D55E00", "#009E73", "#888888"
"""Colours that colour-blind people can tell apart (after Wong, Nature Methods 8, 2011, p. 441), on
white and on black."""

COLOURS: dict[str, str] = {
    Phase.SCREEN: GREY,
    Phase.SEARCH: BLUE,
    Phase.CONFIRM: GREEN,
    Phase.FINAL: ORANGE,
}

TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)


def log_error(accuracy: Any) -> Any:
    """Return the place of an accuracy on the axis, or the places of a series of accuracies. An
    accuracy of 1, whose place would be infinite, lies at one error in 20,000 images."""
    return -np.log10(np.maximum(1 - accuracy, 0.5e-4))


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
    """Return accuracies for ticks on the part of the axis from `low` to `high`."""
    ticks = [tick for tick in TICKS if low <= log_error(tick) <= high]
    if len(ticks) >= 3:
        return ticks
    for parts in (1000, 10_000):  # in a narrow range, tenths or else hundredths of a percent
        ticks = [i / parts for i in range(parts) if low <= log_error(i / parts) <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: len(ticks) // 6 + 1]
