"""The report's figures, one function each: rows of the results tables in, a Plotly figure out, or
None where there is nothing to show. Neither torch nor Ray is imported.
"""

import itertools
import logging
from collections.abc import Mapping

import optuna
import pandas as pd
import plotly.graph_objects as go

from mnist_ray import restored, search
from mnist_ray.search import Dimension, Phase, Status
from mnist_ray.tables import axes

BLUE, ORANGE, GREEN, GREY = "#3A93D0", "#D55E00", "#009E73", "#888888"
"""Colours that the colour-blind can tell apart (after Wong, Nature Methods 8, 2011, p. 441), on
white and on black."""

COLOURS: dict[str, str] = {
    Phase.SCREEN: GREY,
    Phase.SEARCH: BLUE,
    Phase.CONFIRM: GREEN,
    Phase.FINAL: ORANGE,
}

ENOUGH = 10
"""Trials from which an importance is worth showing."""


def curves(trials: pd.DataFrame, epochs: pd.DataFrame, winner: int | None) -> go.Figure | None:
    """Accuracy after each epoch, a line per trial; a cross where the scheduler stopped it."""
    figure = go.Figure()
    if "phase" in trials:  # the confirmation has a figure of its own
        again = trials[trials["phase"].isin([Phase.CONFIRM, Phase.FINAL])]
        epochs = epochs[~epochs["trial"].isin(again["trial"])]
    whose = scored_on(epochs)
    if whose is None:
        return None
    epochs = epochs[epochs["scored_on"] == whose]
    # The winner last, so that it lies on top.
    numbers = sorted(epochs["trial"].unique(), key=lambda number: (number == winner, number))
    shown: set[str] = set()
    for number in numbers:
        of_trial = epochs[epochs["trial"] == number]
        rows = trials[trials["trial"] == number]
        row = rows.iloc[0] if len(rows) else None
        phase = None if row is None or pd.isna(row.get("phase")) else str(row["phase"])
        stopped = row is not None and row["status"] == Status.STOPPED
        name = "the winner" if number == winner else phase or f"trial {number}"
        colour = ORANGE if number == winner else COLOURS.get(phase or "", BLUE)
        figure.add_scatter(
            x=of_trial["epoch"],
            y=[axes.log_error(accuracy) for accuracy in of_trial["accuracy"]],
            customdata=[[accuracy] for accuracy in of_trial["accuracy"]],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            showlegend=name not in shown,
            line={
                "color": colour,
                "width": 3 if number == winner else 1,
            },
            marker={
                "size": [4] * (len(of_trial) - 1) + [11 if stopped else 4],
                "symbol": ["circle"] * (len(of_trial) - 1) + ["x-thin" if stopped else "circle"],
                "line": {"width": 2, "color": colour},
            },
            opacity=1 if number == winner else 0.6,
            hovertemplate=f"trial {number}, epoch %{{x}}: %{{customdata[0]:.2%}}<extra></extra>",
        )
        shown.add(name)
    figure.update_xaxes(title="epoch", dtick=1 if epochs["epoch"].max() <= 12 else None)
    return axes.accuracy_axis(figure, epochs["accuracy"])


def against(
    trials: pd.DataFrame, field: str, dimension: Dimension, winner: int | None
) -> go.Figure | None:
    """Best accuracy of each trial against one field of its config."""
    figure = go.Figure()
    for phase, rows in _by_phase(trials):
        is_winner = rows["trial"] == winner
        figure.add_scatter(
            x=axes.axis_values(rows[field], dimension),
            y=[axes.log_error(accuracy) for accuracy in rows["best_accuracy"]],
            customdata=rows[["trial", "best_accuracy"]],
            mode="markers",
            name=phase,
            marker={
                "color": [ORANGE if it else COLOURS[phase] for it in is_winner],
                "size": [14 if it else 8 for it in is_winner],
                "symbol": ["star" if it else "circle" for it in is_winner],
                "opacity": 0.8,
            },
            hovertemplate=f"trial %{{customdata[0]}}: {field} %{{x}},"
            " %{customdata[1]:.2%}<extra></extra>",
        )
    if not figure.data:
        return None
    figure.update_xaxes(title=field)
    if dimension.kind == "choice":
        known = axes.names(trials[field], dimension)
        figure.update_xaxes(type="category", categoryorder="array", categoryarray=known)
    elif dimension.kind == "randint" and trials[field].nunique() <= 6:
        figure.update_xaxes(tickvals=trials[field].unique())
    elif dimension.log:
        ticks = axes.round_values(trials[field])
        figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    figure.update_layout(height=300, showlegend=False)
    return axes.accuracy_axis(figure, trials["best_accuracy"])


def parallel(trials: pd.DataFrame, space: Mapping[str, Dimension]) -> go.Figure | None:
    """Parallel coordinates: a line per configuration, through its value of each field."""
    _, rows = max(_by_phase(trials), key=lambda pair: len(pair[1]), default=("", trials[:0]))
    if len(rows) < 2 or not space:
        return None
    heights = [axes.log_error(accuracy) for accuracy in rows["best_accuracy"]]
    dimensions = [axes.parallel_axis(rows[name], name, each) for name, each in space.items()]
    ticks = axes.accuracy_ticks(min(heights), max(heights))
    dimensions.append(
        {
            "label": "accuracy",
            "values": heights,
            "tickvals": [axes.log_error(tick) for tick in ticks] or None,
            "ticktext": [f"{100 * tick:.4g} %" for tick in ticks],
        }
    )
    line = {"color": heights, "colorscale": [[0, GREY], [0.5, BLUE], [1, ORANGE]]}
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line=line,
            labelangle=0,
            rangefont={"size": 1, "color": "rgba(0,0,0,0)"},  # the ends, in all their digits
        )
    )
    figure.update_layout(margin={"l": 60, "r": 60, "t": 60, "b": 30})
    return figure


def best_so_far(trials: pd.DataFrame) -> go.Figure | None:
    """The highest held-out accuracy that the study had seen, over the time since it began."""
    if "ended" not in trials:
        return None
    figure = go.Figure()
    rows = trials[trials["ended"].notna() & trials["best_accuracy"].notna()].sort_values("ended")
    rows = rows[rows["scored_on"] == "holdout"]
    if "phase" in rows:  # a repetition that was lucky with its seed is nothing new found
        rows = rows[~rows["phase"].isin([Phase.CONFIRM, Phase.FINAL])]
    if not len(rows):
        return None
    minutes = (rows["ended"] - rows["started"]).dt.total_seconds() / 60
    figure.add_scatter(
        x=minutes,
        y=[axes.log_error(accuracy) for accuracy in rows["best_accuracy"].cummax()],
        mode="lines",
        line={"shape": "hv", "color": ORANGE, "width": 2},
        name="best so far",
        hoverinfo="skip",
    )
    for phase, some in _by_phase(rows):
        figure.add_scatter(
            x=minutes[some.index],
            y=[axes.log_error(accuracy) for accuracy in some["best_accuracy"]],
            customdata=some[["trial", "best_accuracy"]],
            mode="markers",
            name=phase,
            marker={"color": COLOURS[phase], "size": 7},
            hovertemplate="trial %{customdata[0]}: %{customdata[1]:.2%}<extra></extra>",
        )
    figure.update_xaxes(title="minutes since the study began", rangemode="tozero")
    return axes.accuracy_axis(figure, rows["best_accuracy"])


def importance(trials: pd.DataFrame, space: Mapping[str, Dimension]) -> go.Figure | None:
    """Each field's share in how much accuracy varies over the space, by functional ANOVA on a
    random forest (Hutter, Hoos and Leyton-Brown, ICML 2014), through Optuna."""
    _, rows = max(_by_phase(trials), key=lambda pair: len(pair[1]), default=("", trials[:0]))
    fields = [field for field in space if rows[field].nunique(dropna=False) > 1]
    if len(rows) < ENOUGH or not fields or rows["best_accuracy"].nunique() == 1:
        return None
    seen = {field: axes.as_seen(rows[field], space[field]) for field in fields}
    distributions = {field: dimension.distribution() for field, (dimension, _) in seen.items()}
    with restored.log_level("optuna", logging.WARNING):  # it would name its study
        study = optuna.create_study(direction="maximize")
    # Ranks rather than accuracies, or one that diverged would be all that there is to explain.
    ranks = rows["best_accuracy"].rank(method="max")
    for i, rank in enumerate(ranks):
        params = {field: values[i] for field, (_, values) in seen.items()}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=rank)
        )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    names = sorted(shares, key=lambda name: shares[name])
    figure = go.Figure(
        go.Bar(
            x=[shares[name] for name in names],
            y=names,
            orientation="h",
            marker={"color": BLUE},
            text=[f"{shares[name]:.0%}" for name in names],
            textposition="outside",  # inside a short bar it would stand on its side
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_xaxes(title="share", tickformat=".0%", range=[0, 1.05])
    figure.update_layout(height=110 + 40 * len(names))
    return figure


def budget(trials: pd.DataFrame) -> go.Figure | None:
    """Epochs spent, by phase and by the epoch after which trials ended."""
    rows = trials[trials["epochs_trained"].notna()]
    if "phase" not in rows or not len(rows):
        return None
    figure = go.Figure()
    groups = rows.groupby(["phase", "epochs_trained"])["epochs_trained"].agg(["sum", "count"])
    for phase, colour in COLOURS.items():
        some = groups[groups.index.get_level_values("phase") == phase]
        if len(some):
            ends = some.index.get_level_values("epochs_trained").astype(int)
            figure.add_bar(
                x=[f"{phase}<br>to epoch {end}" for end in ends],
                y=some["sum"],
                name=phase,
                marker={"color": colour},
                text=[f"{count} trial{'s' * (count > 1)}" for count in some["count"]],
                hovertemplate="%{y} epochs<extra></extra>",
            )
    if not figure.data:
        return None
    figure.update_yaxes(title="epochs trained")
    figure.update_layout(showlegend=False)
    return figure


def confirmation(trials: pd.DataFrame) -> go.Figure | None:
    """Of each confirmed configuration the accuracy with every seed, their mean and their standard
    deviation; and the winner's on the test set."""
    if "phase" not in trials:
        return None
    figure = go.Figure()
    seen = []
    for phase, where in ((Phase.CONFIRM, "held-out"), (Phase.FINAL, "test set")):
        rows = trials[(trials["phase"] == phase) & (trials["status"] == Status.OK)]
        for number, some in rows.groupby("repeats"):
            values = list(some["final_accuracy"])
            seen += values
            mean, deviation = search.mean_and_deviation(values)
            name = f"trial {int(number)}, {where}<br>{search.in_percent(values)}, n = {len(values)}"
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
    if not seen:
        return None
    figure.update_xaxes(title="accuracy after the last epoch", tickformat=".2%", nticks=4)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(showlegend=False, height=120 + 55 * len({d.y[0] for d in figure.data}))
    return figure


def confusion(predictions: pd.DataFrame) -> go.Figure:
    """How often each digit was taken for each other; the right ones are left out of the colours."""
    counts = pd.crosstab(predictions["label"], predictions["guess"])
    counts = counts.reindex(index=range(10), columns=range(10), fill_value=0)
    wrong = [[None if i == j else counts.loc[i, j] for j in range(10)] for i in range(10)]
    text = [[f"{counts.loc[i, j]}" for j in range(10)] for i in range(10)]
    figure = go.Figure(
        go.Heatmap(
            z=wrong,
            text=text,
            colorscale=[[0, "rgba(213,94,0,0)"], [1, "rgba(213,94,0,0.9)"]],
            showscale=False,
            hovertemplate="a %{y}, taken for a %{x}: %{text}<extra></extra>",
        )
    )
    for i, j in itertools.product(range(10), repeat=2):
        if counts.loc[i, j]:
            # The page sets the colour of text that has none of its own: dark, or light on black.
            font = {"color": GREEN} if i == j else {}
            figure.add_annotation(x=j, y=i, text=text[i][j], showarrow=False, font=font)
    figure.update_xaxes(title="taken for", dtick=1, side="top", constrain="domain")
    figure.update_yaxes(title="digit", dtick=1, autorange="reversed", scaleanchor="x")
    figure.update_layout(xaxis_showgrid=False, yaxis_showgrid=False)
    figure.update_layout(height=460)
    return figure


def _by_phase(trials: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The trials of the screening and of the search that have a held-out accuracy."""
    rows = trials[trials["best_accuracy"].notna()]
    if "phase" not in rows or not rows["phase"].notna().any():
        return [(Phase.SEARCH, rows)] if len(rows) else []
    pairs = [(phase, rows[rows["phase"] == phase]) for phase in (Phase.SCREEN, Phase.SEARCH)]
    return [(phase, some) for phase, some in pairs if len(some)]


def scored_on(epochs: pd.DataFrame) -> str | None:
    """Whose accuracies the curves show: holdout, or test where no trial held images out."""
    for whose in ("holdout", "test"):
        if epochs["scored_on"].eq(whose).any():
            return whose
    return None
