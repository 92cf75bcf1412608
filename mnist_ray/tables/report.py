"""The report: `python -m mnist_ray.results PATH --report FILE` writes one HTML page.

Everything the page needs is in the file, Plotly's script included, so it opens offline.
"""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from mnist_ray import errors, search, storage
from mnist_ray.fields import counted
from mnist_ray.search import Phase, Status
from mnist_ray.storage import Place
from mnist_ray.tables import (
    changes,
    comparison,
    draw,
    figures,
    hyperparameters,
    overview,
    page,
    run_folder,
    views,
)
from mnist_ray.tables.rows import empty, read
from mnist_ray.tables.schema import COLUMNS, EPOCHS, PREDICTIONS, TRIALS

MOST_MISTAKES = 60

Network = Sequence[Mapping[str, Any]]
"""A network as the layers that `learn.plain_layers` returns."""

RELOAD_EVERY = 10
"""Seconds after which the page of a run that goes on loads itself again."""


def write(
    folders: Sequence[Place], path: Path, network: Network | None = None, goes_on: bool = False
) -> Path:
    """Write the report of the runs in `folders` to `path`, and return its full path. With the
    `network` of a single run, the page has a square to draw digits in for it. If a run `goes_on`,
    the page loads itself again every few seconds."""
    with storage.writing("report", path) as full:  # fails before seconds of drawing
        storage.write(full, render(folders, network, goes_on).encode())
    return full


def render(folders: Sequence[Place], network: Network | None = None, goes_on: bool = False) -> str:
    """Return the page as HTML."""
    names = _names(folders)
    runs = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    parts = [*comparison.render(runs)]
    for folder, run in zip(folders, runs, strict=True):
        parts += _run(folder, run, network)
    if goes_on:
        note = f"Still running: this page loads itself again every {RELOAD_EVERY} seconds."
        parts.insert(0, f'<p class="caption">{note}</p>')
    return page.document(", ".join(names), "".join(parts), RELOAD_EVERY if goes_on else None)


def _names(folders: Sequence[Place]) -> list[str]:
    """Return the folders' names, with as much of the paths before them as tells them apart."""
    parts = [str(folder).split("/") for folder in folders]
    lengths = range(1, max(map(len, parts)) + 1)
    all_names = (["/".join(each[-length:]) for each in parts] for length in lengths)
    return next(names for names in all_names if len(set(names)) == len(set(folders)))


def _read(folder: Place, name: str) -> comparison.Run:
    found = read(folder)
    if not len(found):
        raise errors.UserError(f"path {folder} has no trial that ended, and so nothing to report.")
    table = _with_all_columns(found)
    return comparison.Run(name, table, table.to_pandas(), read(folder, EPOCHS).to_pandas())


def _with_all_columns(found: pa.Table) -> pa.Table:
    """Give a table of trials that an earlier version wrote the columns of today, without values."""
    return pa.concat_tables([empty(TRIALS), found], promote_options="permissive")


def _run(folder: Place, run: comparison.Run, network: Network | None) -> Iterator[str]:
    table, trials, epochs = run.table, run.trials, run.epochs
    space = run_folder.space(folder)
    space = {name: each for name, each in space.items() if name in trials.dropna(axis=1, how="all")}
    winner = overview.winner(trials)
    against_base = search.against_base(table.to_pylist(), winner)
    yield f"<h1>{'Study' if overview.is_study(trials) else 'Run'} {escape(run.name)}</h1>"
    goes_on = changes.goes_on(folder)
    row = views.of_model(table)
    checkpoint = (row["checkpoint"] if row else None) or ""
    yield page.definitions(
        overview.lines(trials, epochs, list(space), against_base, checkpoint, goes_on)
    )
    if network:
        yield '<p id="to-draw"><a href="#draw">Draw a digit for the network</a></p>'
    yield page.section(
        "Confirmation with fresh seeds",
        "Each row is a configuration that was trained again with new seeds; it names the mean"
        " accuracy ± standard deviation and the number of runs, n. A dot is a run, the upright bar"
        " their mean, and the whiskers reach one standard deviation to each side. Where the"
        " whiskers of two configurations overlap far, their order may be chance. The orange row is"
        " the winner on the test set, trained with no image held out.",
        figures.confirmation(overview.of_winner(trials)),
    )
    yield page.section(
        "Every trial, epoch by epoch",
        f"Accuracy on the {overview.IMAGES.get(figures.scored_on(epochs) or '', '')} images, scored"
        " after every epoch; each line is a trial. The axis is logarithmic in the error, so that"
        " small differences near the top can be seen. A cross is where the scheduler stopped a"
        " trial.",
        figures.curves(trials, epochs, winner),
    )
    yield page.section(
        "Against each hyperparameter",
        "Each dot is a trial: its best accuracy after any epoch, over its value of the"
        " hyperparameter. Grey dots are the screening, blue ones the search; the star is the"
        " winner.",
        *(hyperparameters.against(trials, name, each, winner) for name, each in space.items()),
    )
    yield from _together(trials, space)
    yield page.section(
        "The best so far",
        "Each dot is a trial, at the time when it ended and with its best accuracy on the held-out"
        " images. The line is the highest accuracy until then.",
        figures.best_so_far(trials),
    )
    yield page.section("Where the epochs went", _cost(trials), figures.budget(trials))
    if network:
        yield from draw.section(network, "The winner" if overview.is_study(trials) else "The run")
    if (folder / PREDICTIONS).is_file():
        yield from _mistakes(read(folder, PREDICTIONS).to_pandas())
    failed = trials[trials["error"].notna()]
    if len(failed):
        yield "<h2>Trials that failed</h2>"
        yield page.definitions({f"trial {row.trial}": row.error for row in failed.itertuples()})
    yield _all_trials(table)


def _together(trials: pd.DataFrame, space: dict[str, search.Dimension]) -> Iterator[str]:
    """Show all hyperparameters of a study at once, and which of them matter."""
    if not space:
        return
    note = ""
    if (trials["phase"] == Phase.SCREEN).any():
        note = " The accuracies are those of the screening, after its one epoch."
    elif (trials["status"] == Status.STOPPED).any():
        note = " A trial that was stopped counts with its best accuracy by then."
    yield page.section(
        "All hyperparameters at once",
        "Each line is a configuration. It meets each axis at its value of the hyperparameter, and"
        " the last axis at its best accuracy: orange lines are the most accurate, grey ones the"
        f" least.{note} Drag along an axis to pick out lines.",
        hyperparameters.parallel(trials, space),
    )
    yield page.section(
        "What mattered",
        "How much of the differences between the trials' ranks each hyperparameter explains alone,"
        " by functional ANOVA (Hutter et al., ICML 2014). What is missing to 100 % is their"
        f" interplay.{note} It is an estimate from these trials, and a rough one from few.",
        hyperparameters.importance(trials, space),
    ) or page.heading(
        "What mattered",
        f"An estimate needs at least {hyperparameters.ENOUGH} configurations with a result.",
    )


def _cost(trials: pd.DataFrame) -> str:
    """Say how many epochs the search saved by screening its configurations and stopping trials."""
    text = (
        "The number of epochs trained: a bar for each phase and each epoch after which trials of"
        " the phase ended."
    )
    screened = trials[trials["phase"] == Phase.SCREEN]
    searched = trials[trials["phase"] == Phase.SEARCH]
    if len(searched):
        spent = screened["epochs_trained"].sum() + searched["epochs_trained"].sum()
        in_full = searched["epochs"].sum()
        if len(screened):
            in_full = len(screened) * searched["epochs"].max()
        took = counted(int(spent), "epoch")
        text += (
            f" The search{' and its screening' * (len(screened) > 0)} took {took};"
            f" training every configuration to its end would have taken {in_full:.0f}."
        )
    return text


def _mistakes(predictions: pd.DataFrame) -> Iterator[str]:
    wrong = predictions[predictions["label"] != predictions["guess"]]
    wrong = wrong.sort_values("probability", ascending=False)
    yield page.section(
        "What the winner gets wrong",
        f"It takes {len(wrong)} of {len(predictions):,} test images for another digit. A row is the"
        " digit in the image, a column the digit that the winner takes it for, and each cell counts"
        " images: right ones in green, mistakes on orange.",
        figures.confusion(predictions),
    )
    yield page.heading(
        f"Its mistakes, {'all' if len(wrong) <= MOST_MISTAKES else f'the {MOST_MISTAKES} surest'}",
        "The digit in the image → the winner's guess, and the probability that it gives this guess."
        " The surest guess comes first.",
    )
    images = "".join(
        f'<figure><img alt="image {number}" src="data:image/png;base64,{page.png(row.image)}">'
        f"<figcaption>{row.label} → {row.guess}<br><small>{row.probability:.1%}</small>"
        "</figcaption></figure>"
        for number, row in wrong.head(MOST_MISTAKES).set_index("index").iterrows()
    )
    yield f'<div class="mistakes">{images}</div>'


def _all_trials(table: pa.Table) -> str:
    table = views.summary(views.ranked(table))
    names, *rows = views.cells(table)
    with pd.option_context("display.max_colwidth", None):  # or pandas cuts long texts
        cells = pd.DataFrame(rows, columns=names).to_html(index=False, border=0)
    meanings = {
        shown: COLUMNS[TRIALS][name].meaning.replace("0 to 1", "in percent")
        for shown, name in zip(names, table.column_names, strict=True)
        if name in COLUMNS[TRIALS]
    }
    return (
        f"<h2>All trials</h2><details><summary>{counted(len(rows), 'row')}</summary>"
        f'<div class="table">{cells}</div>{page.definitions(meanings)}</details>'
    )
