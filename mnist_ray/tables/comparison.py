"""Several runs in one report: their curves in the same figures and their winners in one table.

Only accuracies on the same images can be compared, so runs are drawn together only if they were
scored on the same images of the same data.
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import pyarrow as pa

from mnist_ray import search
from mnist_ray.search import Phase, Status
from mnist_ray.tables import axes, figures, overview, page, views
from mnist_ray.tables.axes import BLUE, GREEN, GREY, ORANGE

STYLES = [(colour, dash) for dash in ("solid", "dash", "dot") for colour in (BLUE, ORANGE, GREEN)]
STYLES = [*STYLES, (GREY, "solid"), (GREY, "dash")]


class Run(NamedTuple):
    """A run as its tables hold it. `table` is the trials table, of which `trials` is a copy."""

    name: str
    table: pa.Table
    trials: pd.DataFrame
    epochs: pd.DataFrame

    @property
    def best(self) -> pd.DataFrame:
        """The row of the study's winner so far, or of the training run; empty if there is none."""
        if not overview.is_study(self.trials):
            return self.trials[:1]
        return self.trials[self.trials["trial"] == overview.winner(self.trials)]

    @property
    def tried(self) -> pd.DataFrame:
        """The trials that tried a configuration, and have an accuracy, as they ended."""
        rows = self.trials[~self.trials["phase"].isin(figures.REPEATED)]
        return rows.dropna(subset=["ended", "best_accuracy"]).sort_values("ended")

    @property
    def images(self) -> str:
        """The images that the run is scored on after every epoch, in words."""
        row = self.trials[~self.trials["phase"].isin(figures.REPEATED)].bfill()
        row = (row if len(row) else self.trials).iloc[0]
        if pd.isna(row["scored_on"]):
            return "not scored yet"
        if row["scored_on"] == "test":
            return "scored on the test images"
        return f"scored on {row['holdout']:,.0f} held-out images"

    @property
    def splits(self) -> dict[tuple[int, int], str]:
        """The hash of the split for each number of held-out and of training images. It depends on
        the data, and so tells runs on other data apart."""
        rows = self.trials.dropna(subset=["split_hash"])
        sizes = rows["train_size"].fillna(0)
        keys = zip(rows["holdout"].astype(int), sizes.astype(int), strict=True)
        return dict(zip(keys, rows["split_hash"], strict=True))

    def is_like(self, other: "Run") -> bool:
        """Return whether the accuracies of both runs are of the same images, as far as known."""
        ours, theirs = self.splits, other.splits
        same_data = all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())
        return self.images == other.images and same_data


def render(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the part of the report that compares `runs`; nothing for a single run."""
    if len(runs) < 2:
        return
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if run.is_like(group[0]):
                group.append(run)
                break
        else:
            groups.append([run])
    yield f"<h1>{len(runs)} runs compared</h1>"
    if len(groups) > 1:
        yield (
            '<p class="caption">Not all of them can be compared, because they were not scored on'
            " the same images of the same data. Those that cannot are not drawn together.</p>"
        )
        yield "<ul>"
        for group in groups:
            alike = [other for other in groups if other[0].images == group[0].images]
            which = f", of data {alike.index(group) + 1}" if len(alike) > 1 else ""
            names = ", ".join(run.name for run in group)
            yield f"<li>{escape(names)}: {group[0].images}{which}</li>"
        yield "</ul>"
    for group in groups:
        if len(group) > 1:
            yield from _together(group)


def _together(runs: Sequence[Run]) -> Iterator[str]:
    images = runs[0].images
    yield page.section(
        "Accuracy of each run, epoch by epoch",
        f"A line is a training run, or the winner of a study, by now; {images} after every epoch."
        " The axis is logarithmic in the error.",
        curves(runs, "accuracy"),
    )
    yield page.section(
        "Loss of each run, epoch by epoch",
        "The same lines: mean negative log-likelihood on the same images, in nats.",
        curves(runs, "loss"),
    )
    studies = [run for run in runs if overview.is_study(run.trials)]
    if len(studies) > 1:
        yield page.section(
            "The best of each study, by what it cost",
            f"The highest accuracy until then, {images}, over the epochs that the trials of the"
            " screening and of the search had trained. A single run of a trial, chosen for its"
            " high accuracy: a small lead may be chance.",
            best_by_cost(studies),
        )
    yield page.heading(
        "The winner of each run",
        f"The trial that won a study, or the training run; the accuracy is {images}. Confirmed is"
        " its mean ± standard deviation with fresh seeds, on the same images. The test accuracy is"
        " scored at the end: of the winner, or of its final runs, which hold no image out.",
    )
    yield f'<div class="table">{_winners(runs)}</div>'


def curves(runs: Sequence[Run], column: str) -> go.Figure | None:
    """Draw the accuracy or the loss after each epoch, a line per run."""
    figure, shown = go.Figure(), []
    for run, (colour, dash) in zip(runs, _styles(len(runs)), strict=True):
        rows = run.epochs[run.epochs["trial"].isin(run.best["trial"])].dropna(subset=[column])
        if not len(rows):
            continue
        shown.append(rows)
        figure.add_scatter(
            x=rows["epoch"],
            y=axes.log_error(rows[column]) if column == "accuracy" else rows[column],
            customdata=rows[[column]],
            mode="lines+markers",
            name=run.name,
            line={"color": colour, "dash": dash, "width": 2},
            marker={"size": 4},
            hovertemplate=f"{escape(run.name)}, epoch %{{x}}: %{{customdata[0]:"
            + (".2%" if column == "accuracy" else ".4f")
            + "}<extra></extra>",
        )
    if not shown:
        return None
    together = pd.concat(shown)
    figure.update_xaxes(title="epoch", dtick=1 if together["epoch"].max() <= 12 else None)
    figure.update_layout(showlegend=True, legend_yanchor="bottom")
    if column == "accuracy":
        return axes.accuracy_axis(figure, together["accuracy"])
    figure.update_yaxes(title=column, rangemode="tozero")
    return figure


def best_by_cost(studies: Sequence[Run]) -> go.Figure | None:
    """Draw the highest accuracy so far over the epochs trained so far, a line per study."""
    figure, shown = go.Figure(), []
    for run, (colour, dash) in zip(studies, _styles(len(studies)), strict=True):
        if not len(rows := run.tried):
            continue
        shown.append(rows["best_accuracy"].cummax())
        figure.add_scatter(
            x=rows["epochs_trained"].cumsum(),
            y=axes.log_error(shown[-1]),
            customdata=rows[["trial"]].assign(best=shown[-1]),
            mode="lines+markers",
            name=run.name,
            line={"shape": "hv", "color": colour, "dash": dash, "width": 2},
            marker={"size": 4},
            hovertemplate=f"{escape(run.name)}, after trial %{{customdata[0]}}:"
            " %{customdata[1]:.2%}<extra></extra>",
        )
    if not shown:
        return None
    figure.update_xaxes(title="epochs trained", rangemode="tozero")
    figure.update_layout(showlegend=True, legend_yanchor="bottom")
    return axes.accuracy_axis(figure, pd.concat(shown))


def _styles(count: int) -> list[tuple[str, str]]:
    return [STYLES[i % len(STYLES)] for i in range(count)]


def _winners(runs: Sequence[Run]) -> str:
    """Return the table of the runs' winners as HTML."""
    won = [(run, run.table.take(list(run.best.index))) for run in runs if len(run.best)]
    if not won:
        return "No table names one: no trial has ended yet, or it is of an earlier version."
    rows = pa.concat_tables([table for _, table in won], promote_options="permissive")
    rows = rows.set_column(
        rows.column_names.index("run"), "run", pa.array([run.name for run, _ in won])
    )
    names, *lines = views.cells(views.summary(rows))
    table = pd.DataFrame(lines, columns=names)
    place = names.index("best accuracy") + 1 if "best accuracy" in names else len(names)
    table.insert(place, "confirmed", [_repeated(run, Phase.CONFIRM) for run, _ in won])
    finals = [_repeated(run, Phase.FINAL) for run, _ in won]
    scored = [row["test_accuracy"] for row in rows.to_pylist()]
    table["test accuracy"] = [
        final or ("" if score is None else f"{score:.2%}")
        for final, score in zip(finals, scored, strict=True)
    ]
    table = table.loc[:, table.ne("").any().to_numpy()]  # by place: two columns may be `epochs`
    with pd.option_context("display.max_colwidth", None):  # or pandas cuts long texts
        html: str = table.to_html(index=False, border=0)
    return html


def _repeated(run: Run, phase: Phase) -> str:
    """Return the mean and the deviation of the repetitions of the winner in `phase`, in percent."""
    rows = run.trials[(run.trials["phase"] == phase) & (run.trials["status"] == Status.OK)]
    rows = rows[rows["repeats"].isin(run.best["trial"])]
    accuracies = list(rows["final_accuracy"])
    return f"{search.in_percent(accuracies)} (n = {len(accuracies)})" if accuracies else ""
