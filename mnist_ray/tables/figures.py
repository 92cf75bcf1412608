"""The figures of how the trials went: each function takes rows of the results tables, and returns a
Plotly figure, or None if there is nothing to show.

Every column of the trials table must be there, if only without values.
"""

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mnist_ray import search
from mnist_ray.fields import counted
from mnist_ray.search import Phase, Status
from mnist_ray.tables import axes
from mnist_ray.tables.axes import BLUE, COLOURS, GREEN, ORANGE

REPEATED = (Phase.CONFIRM, Phase.FINAL)
"""The phases that try no new configuration. They have a figure of their own."""


def curves(trials: pd.DataFrame, epochs: pd.DataFrame, winner: int | None) -> go.Figure | None:
    """Draw the accuracy after each epoch, a line per trial; a cross is where the scheduler stopped
    the trial."""
    epochs = epochs[~epochs["trial"].isin(trials["trial"][trials["phase"].isin(REPEATED)])]
    epochs = epochs[epochs["scored_on"] == scored_on(epochs)]
    if not len(epochs):
        return None
    phases = trials.set_index("trial")["phase"].dropna()
    stopped = set(trials["trial"][trials["status"] == Status.STOPPED])
    figure = go.Figure()
    shown: set[str] = set()
    # The winner comes last, so that it lies on top.
    for number, rows in sorted(epochs.groupby("trial"), key=lambda pair: bool(pair[0] == winner)):
        phase = phases.get(number, "")
        name = "the winner" if number == winner else phase or f"trial {number}"
        colour = ORANGE if number == winner else COLOURS.get(phase, BLUE)
        cross = number in stopped
        figure.add_scatter(
            x=rows["epoch"],
            y=axes.log_error(rows["accuracy"]),
            customdata=rows[["accuracy"]],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            line={"color": colour, "width": 3 if number == winner else 1},
            marker={
                "size": [4] * (len(rows) - 1) + [11 if cross else 4],
                "symbol": ["circle"] * (len(rows) - 1) + ["x-thin" if cross else "circle"],
                "line": {"width": 2, "color": colour},
            },
            opacity=1 if number == winner else 0.6,
            hovertemplate=f"trial {number}, epoch %{{x}}: %{{customdata[0]:.2%}}<extra></extra>",
        )
        shown.add(name)
    figure.update_xaxes(title="epoch", dtick=1 if epochs["epoch"].max() <= 12 else None)
    return axes.accuracy_axis(figure, epochs["accuracy"])


def best_so_far(trials: pd.DataFrame) -> go.Figure | None:
    """Draw the highest held-out accuracy that the study had seen, over the time since it began."""
    # A repeated trial that is lucky with its seed finds nothing new.
    rows = trials[trials["scored_on"].eq("holdout") & ~trials["phase"].isin(REPEATED)]
    rows = rows.dropna(subset=["ended", "best_accuracy"]).sort_values("ended")
    if not len(rows):
        return None
    rows["minutes"] = (rows["ended"] - rows["started"]).dt.total_seconds() / 60
    figure = go.Figure()
    figure.add_scatter(
        x=rows["minutes"],
        y=axes.log_error(rows["best_accuracy"].cummax()),
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        name="best so far",
        hoverinfo="skip",
    )
    for phase, some in by_phase(rows):
        figure.add_scatter(
            x=some["minutes"],
            y=axes.log_error(some["best_accuracy"]),
            customdata=some[["trial", "best_accuracy"]],
            mode="markers",
            name=phase,
            marker={"color": COLOURS[phase], "size": 7},
            hovertemplate="trial %{customdata[0]}: %{customdata[1]:.2%}<extra></extra>",
        )
    figure.update_xaxes(title="minutes since the study began", rangemode="tozero")
    return axes.accuracy_axis(figure, rows["best_accuracy"])


def budget(trials: pd.DataFrame) -> go.Figure | None:
    """Draw the epochs spent, a bar for each phase and each epoch after which its trials ended."""
    bars = trials.value_counts(["phase", "epochs_trained"]).reset_index()
    bars["place"] = bars["phase"].map([*COLOURS].index)
    bars = bars.sort_values(["place", "epochs_trained"])
    if not len(bars):
        return None
    figure = go.Figure(
        go.Bar(
            x=[f"{row.phase}<br>to epoch {row.epochs_trained:.0f}" for row in bars.itertuples()],
            y=bars["epochs_trained"] * bars["count"],
            marker={"color": bars["phase"].map(COLOURS)},
            text=[counted(count, "trial") for count in bars["count"]],
            hovertemplate="epochs: %{y}<extra></extra>",
        )
    )
    figure.update_yaxes(title="epochs trained")
    return figure


def confirmation(trials: pd.DataFrame) -> go.Figure | None:
    """Draw the accuracies of each confirmed configuration with every seed, with their mean and
    standard deviation, and the same for the winner's final runs on the test set."""
    figure = go.Figure()
    names = []
    for phase, images in ((Phase.CONFIRM, "held-out"), (Phase.FINAL, "test set")):
        rows = trials[(trials["phase"] == phase) & (trials["status"] == Status.OK)]
        for number, some in rows.groupby("repeats"):
            values = list(some["final_accuracy"])
            mean, deviation = search.mean_and_deviation(values)
            name = f"trial {number:.0f}, {images}<br>{search.in_percent(values)}, n = {len(values)}"
            names.append(name)
            figure.add_scatter(
                x=values,
                y=[name] * len(values),
                mode="markers",
                marker={"color": COLOURS[phase], "size": 9, "opacity": 0.7},
                hovertemplate="%{x:.2%}<extra></extra>",
            )
            figure.add_scatter(
                x=[mean],
                y=[name],
                error_x={"array": [deviation or 0], "thickness": 2},
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 22, "color": COLOURS[phase]},
                hovertemplate="mean %{x:.2%}<extra></extra>",
            )
    if not names:
        return None
    figure.update_xaxes(title="accuracy after the last epoch", tickformat=".2%", nticks=4)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(showlegend=False, height=120 + 55 * len(names))
    return figure


def confusion(predictions: pd.DataFrame) -> go.Figure:
    """Draw how often each digit was taken for each other. The colours count mistakes only."""
    counts = pd.crosstab(predictions["label"], predictions["guess"])
    counts = counts.reindex(index=range(10), columns=range(10), fill_value=0)
    figure = go.Figure(
        go.Heatmap(
            z=counts.where(~np.eye(10, dtype=bool)),
            text=counts.astype(str),
            colorscale=[[0, "rgba(213,94,0,0)"], [1, "rgba(213,94,0,0.9)"]],
            showscale=False,
            hovertemplate="a %{y}, taken for a %{x}: %{text}<extra></extra>",
        )
    )
    for (label, guess), count in counts.stack().items():
        if count:
            # Text without a colour of its own gets the page's: dark, or light on black.
            font = {"color": GREEN} if label == guess else {}
            figure.add_annotation(x=guess, y=label, text=str(count), showarrow=False, font=font)
    figure.update_xaxes(title="taken for", dtick=1, side="top", constrain="domain")
    figure.update_yaxes(title="digit", dtick=1, autorange="reversed", scaleanchor="x")
    figure.update_layout(xaxis_showgrid=False, yaxis_showgrid=False, height=460)
    return figure


def by_phase(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the trials of the screening and of the search that have an accuracy, by their phase. A
    trial without a phase counts as one of the search."""
    rows = trials[trials["best_accuracy"].notna()]
    phases = rows["phase"].fillna(Phase.SEARCH)
    pairs = [(phase, rows[phases == phase]) for phase in (Phase.SCREEN, Phase.SEARCH)]
    return [(phase, some) for phase, some in pairs if len(some)]


def scored_on(epochs: pd.DataFrame) -> str | None:
    """Return the images of the accuracies in the curves: holdout, or test if none was held out."""
    found = set(epochs["scored_on"])
    return next((images for images in ("holdout", "test") if images in found), None)
