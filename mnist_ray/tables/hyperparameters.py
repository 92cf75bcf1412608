"""The figures of accuracy against hyperparameters: each function takes rows of the trials table and
dimensions of the search space, and returns a Plotly figure, or None if there is nothing to show."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import optuna
import pandas as pd
import plotly.graph_objects as go

from mnist_ray import restored
from mnist_ray.search import Dimension
from mnist_ray.tables import axes
from mnist_ray.tables.axes import BLUE, COLOURS, GREY, ORANGE
from mnist_ray.tables.figures import by_phase

ENOUGH = 10
"""The least number of trials for which an importance is worth showing."""


def against(
    trials: pd.DataFrame, field: str, dimension: Dimension, winner: int | None
) -> go.Figure | None:
    """Draw the best accuracy of each trial against one field of its recipe."""
    figure = go.Figure()
    for phase, rows in by_phase(trials):
        is_winner = rows["trial"] == winner
        figure.add_scatter(
            x=rows[field].map(label) if dimension.kind == "choice" else rows[field],
            y=axes.log_error(rows["best_accuracy"]),
            customdata=rows[["trial", "best_accuracy"]],
            mode="markers",
            name=phase,
            marker={
                "color": is_winner.map({True: ORANGE, False: COLOURS[phase]}),
                "size": is_winner.map({True: 14, False: 8}),
                "symbol": is_winner.map({True: "star", False: "circle"}),
                "opacity": 0.8,
            },
            hovertemplate=f"trial %{{customdata[0]}}: {field} %{{x}},"
            " %{customdata[1]:.2%}<extra></extra>",
        )
    if not figure.data:
        return None
    figure.update_xaxes(title=field)
    if dimension.kind == "choice":
        choices = _choices(trials[field], dimension)
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=choices)
    else:
        if dimension.log:
            ticks = _round_values(trials[field])
            texts = [f"{tick:g}" for tick in ticks]
            figure.update_xaxes(type="log", tickvals=ticks, ticktext=texts)
        if dimension.whole and trials[field].nunique() <= 6:
            ticks = sorted(trials[field].unique())
            figure.update_xaxes(tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_layout(height=300, showlegend=False)
    return axes.accuracy_axis(figure, trials["best_accuracy"])


def parallel(trials: pd.DataFrame, space: Mapping[str, Dimension]) -> go.Figure | None:
    """Draw parallel coordinates: a line per configuration through its value of each field, for the
    phase with the most trials."""
    rows = _largest_phase(trials)
    if len(rows) < 2 or not space:
        return None
    places = axes.log_error(rows["best_accuracy"])
    ticks = axes.accuracy_ticks(places.min(), places.max())
    accuracy = {
        "label": "accuracy",
        "values": places,
        "tickvals": [axes.log_error(tick) for tick in ticks] or None,
        "ticktext": [f"{100 * tick:.4g} %" for tick in ticks],
    }
    figure = go.Figure(
        go.Parcoords(
            dimensions=[*(_axis(rows[name], name, each) for name, each in space.items()), accuracy],
            line={"color": places, "colorscale": [[0, GREY], [0.5, BLUE], [1, ORANGE]]},
            labelangle=0,
            rangefont={
                "size": 1,
                "color": "rgba(0,0,0,0)",
            },  # hides the ends, which have all digits
        )
    )
    figure.update_layout(margin={"l": 60, "r": 60, "t": 60, "b": 30})
    return figure


def importance(trials: pd.DataFrame, space: Mapping[str, Dimension]) -> go.Figure | None:
    """Draw how much of the variance of the trials' ranks each field explains alone, by functional
    ANOVA on a random forest (Hutter, Hoos and Leyton-Brown, ICML 2014), through Optuna."""
    rows = _largest_phase(trials)
    fields = [field for field in space if rows[field].nunique(dropna=False) > 1]
    if len(rows) < ENOUGH or not fields or rows["best_accuracy"].nunique() == 1:
        return None
    reached = {field: _reached(rows[field], space[field]) for field in fields}
    distributions = {field: dimension.distribution() for field, (dimension, _) in reached.items()}
    with restored.log_level("optuna", logging.WARNING):  # Optuna would print the study's name
        study = optuna.create_study(direction="maximize")
    # Ranks, because a single trial that diverged would explain most of the variance of accuracies.
    for i, rank in enumerate(rows["best_accuracy"].rank(method="max")):
        params = {field: values[i] for field, (_, values) in reached.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=rank)
        )
    # Not get_param_importances, which scales the shares to a sum of 1 and so hides the interplay.
    shares = pd.Series(optuna.importance.FanovaImportanceEvaluator(seed=0).evaluate(study))
    shares = shares.sort_values()
    figure = go.Figure(
        go.Bar(
            x=shares,
            y=shares.index,
            orientation="h",
            marker={"color": BLUE},
            texttemplate="%{x:.0%}",
            textposition="outside",  # inside a short bar the text would stand on its side
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title="share explained", tickformat=".0%", range=[0, 1.05])
    figure.update_layout(height=110 + 40 * len(shares))
    return figure


def label(value: Any) -> str:
    """Return the value of a recipe's field as people write it. In a column of pandas, None has
    become NaN and 64 may have become 64.0."""
    if pd.isna(value):
        return "none"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"
    return str(value)


def _largest_phase(trials: pd.DataFrame) -> pd.DataFrame:
    return max((rows for _, rows in by_phase(trials)), key=len, default=trials[:0])


def _choices(values: pd.Series, dimension: Dimension) -> list[str]:
    """Return the names of a dimension's choices in their order, then those of other `values`."""
    return list(dict.fromkeys(label(value) for value in (*dimension.values, *values)))


def _reached(values: pd.Series, dimension: Dimension) -> tuple[Dimension, list[Any]]:
    """Return the dimension, extended to all of `values`, and the values as they lie in it. The base
    recipe and configurations of `--try` may lie outside of the space that was searched."""
    if dimension.kind == "choice":
        return Dimension("choice", tuple(_choices(values, dimension))), [*map(label, values)]
    for value in values:
        dimension = dimension.reaching(value) or dimension
    return dimension, list(values)


def _round_values(values: pd.Series) -> list[float]:
    """Return ticks for a logarithmic axis: 1, 2, 5, 10, …, or powers of ten if these are many."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    ticks = [m * 10.0**e for e in range(low, high + 1) for m in (1, 2, 5)]
    ticks = [tick for tick in ticks if values.min() <= tick <= values.max()]
    return ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}"[0] == "1"]


def _axis(values: pd.Series, name: str, dimension: Dimension) -> dict[str, Any]:
    """Return an axis of the parallel coordinates."""
    if dimension.kind == "choice":
        choices = _choices(values, dimension)
        return {
            "label": name,
            "values": [choices.index(label(value)) for value in values],
            "tickvals": list(range(len(choices))),
            "ticktext": choices,
        }
    if not dimension.log:
        return {"label": name, "values": values}
    ticks = _round_values(values)
    return {
        "label": name,
        "values": [math.log10(value) for value in values],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
    }
