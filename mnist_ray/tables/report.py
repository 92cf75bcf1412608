"""One page that shows what a study found: `python -m mnist_ray.results PATH --report FILE`.

A single file with all it needs, Plotly's script included, so that it opens offline.
"""

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from mnist_ray import errors, search
from mnist_ray.search import Phase, Status
from mnist_ray.storage import Place, local
from mnist_ray.tables import axes, figures, page, run_folder, views
from mnist_ray.tables.rows import read
from mnist_ray.tables.schema import EPOCHS, PREDICTIONS

MOST_MISTAKES = 60


def write(folders: Sequence[Place], path: Path) -> Path:
    """Write the report of the runs in `folders` to `path`, whole or not at all, and return the full
    path. Raises UserError where a table cannot be read or the file cannot be written."""
    full = local("report", path)
    partial = full.with_name(f".{full.name}.{os.getpid()}")
    try:
        if full.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        partial.touch()  # says so now, rather than after seconds of drawing
        try:
            partial.write_text(render(folders), encoding="utf-8")
            os.replace(partial, full)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(
            f"report {path} cannot be written: {error.strerror}; name a file in a folder that"
            " exists."
        ) from None
    return full


def render(folders: Sequence[Place]) -> str:
    """The page, as HTML."""
    body = "".join(part for folder in folders for part in _run(folder))
    title = ", ".join(folder.name for folder in folders)
    return page.document(title, body)


def _run(folder: Place) -> Iterator[str]:
    table = read(folder)
    if not len(table):
        raise errors.UserError(f"path {folder} has no trial that ended, and so nothing to report.")
    trials = table.to_pandas()
    epochs = read(folder, EPOCHS).to_pandas()
    space = {name: each for name, each in run_folder.space(folder).items() if name in trials}
    winner = _winner(trials)
    scored_on = figures.scored_on(epochs)
    yield f"<h1>{escape(folder.name)}</h1>"
    words = ""
    if "origin" in table.column_names:
        words = search.against_base(table.to_pylist(), winner)
    yield _summary(trials, epochs, list(space), words)
    yield page.section(
        "With fresh seeds",
        "Each dot is a run of the same configuration with another seed; the bar is the mean,"
        " the whiskers the standard deviation. Where they overlap far, the order may be chance.",
        figures.confirmation(trials),
    )
    yield page.section(
        "Every trial, epoch by epoch",
        f"Accuracy on the {WHOSE.get(scored_on or '', '')} images, scored after every epoch. The"
        " axis is logarithmic in the error, so that small differences near the top can be seen. A"
        " cross is where a trial was stopped.",
        figures.curves(trials, epochs, winner),
    )
    plots = [figures.against(trials, name, dimension, winner) for name, dimension in space.items()]
    yield page.section(
        "Against each hyperparameter",
        "Best accuracy of each trial; grey dots are the screening, the star is the winner.",
        *plots,
    )
    yield page.section(
        "All hyperparameters at once",
        "A line per configuration, orange ones are the most accurate. Drag along an axis to pick"
        " some out.",
        figures.parallel(trials, space),
    )
    shares = figures.importance(trials, space)
    what = (
        "Share of each hyperparameter in how the trials' ranks vary over the space, by functional"
        " ANOVA (Hutter et al., ICML 2014); the rest is their interplay."
        " It is an estimate from these trials alone, and a rough one from few."
    )
    if "phase" in trials and (trials["phase"] == Phase.SCREEN).any():
        what += " The accuracies are those of the screening, after its one epoch."
    elif (trials["status"] == Status.STOPPED).any():
        what += " A trial that was stopped counts with the accuracy it had by then."
    if shares is None and space:
        what = f"An estimate needs at least {figures.ENOUGH} configurations with a result."
    if space:
        yield page.section("What mattered", what, shares, always=True)
    yield page.section(
        "The best so far",
        "How good the best trial was, while the study went on.",
        figures.best_so_far(trials),
    )
    yield page.section("Where the time went", _cost(trials), figures.budget(trials))
    predictions = folder / PREDICTIONS
    if predictions.is_file():
        yield from _mistakes(read(folder, PREDICTIONS).to_pandas())
    yield _failures(trials)
    yield _all_trials(folder)


def _is_study(trials: pd.DataFrame) -> bool:
    """Whether the rows are of a study; in the first tables, no row says of which phase it is."""
    return len(trials) > 1 or ("phase" in trials and bool(trials["phase"].notna().any()))


def _winner(trials: pd.DataFrame) -> int | None:
    """The trial that the study took for its best; None where it has not come to that, or its table
    is of a version that did not write it down."""
    if "winner" not in trials:
        return None
    won = trials.loc[trials["winner"].eq(True), "trial"]
    return int(won.iloc[0]) if len(won) else None


def _summary(
    trials: pd.DataFrame, epochs: pd.DataFrame, fields: list[str], against_base: str
) -> str:
    # Not the first row's: a trial that failed knows neither its arithmetic nor its checkpoint.
    first = trials.bfill().iloc[0]
    counts = [f"{n} {status}" for status, n in trials["status"].value_counts().items()]
    lines = {
        "run": _joined(
            f"{len(trials)} trial{'s' * (len(trials) > 1)} ({', '.join(counts)})",
            f"{len(epochs)} epoch{'s' * (len(epochs) != 1)}",
            f"{trials['train_seconds'].sum() / 60:.1f} minutes of training",
            _joined(_known(first, "arithmetic"), _known(first, "device", "on "), by=" "),
        ),
        "made on": _joined(
            _known(first, "hardware"),
            _joined(
                _known(first, "torch", "torch "),
                _known(first, "ray", "Ray "),
                _known(first, "commit", "commit "),
            ),
            by="; ",
        ),
    }
    winner = _winner(trials)
    final = trials[trials["phase"] == Phase.FINAL] if "phase" in trials else trials[:0]
    final = final[final["status"] == Status.OK]
    # A training run has one row, which no other lost to.
    best = trials[trials["trial"] == winner] if _is_study(trials) else trials
    if len(best):
        lines |= _outcome(best.iloc[0], fields, winner, ended=len(final) > 0)
        lines["base recipe"] = against_base
    elif "winner" not in trials:
        lines["winner"] = "not known: the table is of an earlier version, which did not name it"
    else:
        lines["winner"] = "none: no trial that competed has a result"
    if len(final):
        scored = final["final_accuracy"]
        lines["test accuracy"] = (
            f"{search.in_percent(list(scored))} after the last epoch, n = {len(scored)}"
        )
        lines["checkpoint"] = _known(final.iloc[0], "checkpoint")
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines.items() if text
    )
    return f"<dl>{rows}</dl>"


WHOSE = {"holdout": "held-out", "test": "test"}


def _outcome(row: pd.Series, fields: list[str], winner: int | None, ended: bool) -> dict[str, str]:
    """What is known of the one trial that counts, which is a study's winner or a training run: its
    values, its accuracies and its checkpoint. A study has `ended` where it made its final runs, or
    else scored its winner on the test set."""
    lines = {}
    if winner is not None:
        values = ", ".join(f"{name} {axes.label(row[name])}" for name in fields)
        name = "winner" if ended or pd.notna(row["test_accuracy"]) else "best so far"
        lines[name] = f"trial {winner}" + (f": {values}" if values else "")
    if pd.notna(row["best_accuracy"]):
        trained = f"epoch {row['epochs_trained']:.0f} of {row['epochs']}"
        lines[f"{WHOSE[row['scored_on']]} accuracy"] = (
            f"{row['final_accuracy']:.2%} after"
            f" {'the last epoch' if row['status'] == 'ok' else trained},"
            f" {row['best_accuracy']:.2%} at its best (epoch {row['best_epoch']:.0f}),"
            " scored after every epoch"
        )
    if row["scored_on"] == "holdout" and pd.notna(row["test_accuracy"]):
        of = "after the last epoch" if winner is None else "of its checkpoint"
        lines["test accuracy"] = f"{row['test_accuracy']:.2%} {of}, scored once"
    lines["checkpoint"] = _known(row, "checkpoint")
    return lines


def _known(row: pd.Series, name: str, before: str = "") -> str:
    """The value of a column as text, behind what comes `before` it; empty where it has none."""
    return f"{before}{row[name]}" if pd.notna(row.get(name)) else ""


def _joined(*parts: str, by: str = ", ") -> str:
    return by.join(part for part in parts if part)


def _cost(trials: pd.DataFrame) -> str:
    spent = trials["epochs_trained"].sum()
    text = "Epochs trained, by phase and by where trials ended."
    if "phase" not in trials:
        return text
    tried = trials[trials["phase"] == Phase.SCREEN]
    searched = trials[trials["phase"] == Phase.SEARCH]
    if len(searched):
        spent = tried["epochs_trained"].sum() + searched["epochs_trained"].sum()
        in_full = len(tried) * searched["epochs"].max() if len(tried) else searched["epochs"].sum()
        text += (
            f" The search took {spent:.0f} epochs; every configuration to its end would have taken"
            f" {in_full:.0f}."
        )
    return text


def _mistakes(predictions: pd.DataFrame) -> Iterator[str]:
    wrong = predictions[predictions["label"] != predictions["guess"]]
    wrong = wrong.sort_values("probability", ascending=False)
    yield page.section(
        "What the winner gets wrong",
        f"{len(wrong)} of {len(predictions):,} test images. Green is right.",
        figures.confusion(predictions),
    )
    images = "".join(
        f'<figure><img alt="image {row.index_}" src="data:image/png;base64,{page.png(row.image)}">'
        f"<figcaption>{row.label} → {row.guess}<br><small>{row.probability:.1%}</small>"
        "</figcaption></figure>"
        for row in wrong.rename(columns={"index": "index_"}).head(MOST_MISTAKES).itertuples()
    )
    shown = f"the {MOST_MISTAKES} most confident" if len(wrong) > MOST_MISTAKES else "all"
    yield (
        f"<h2>Its mistakes, {shown}</h2>"
        '<p class="caption">The digit it is → what it was taken for, and with what probability.</p>'
        f'<div class="mistakes">{images}</div>'
    )


def _failures(trials: pd.DataFrame) -> str:
    """What went wrong in the trials that failed; empty where none did."""
    rows = trials[trials["error"].notna()]
    items = "".join(
        f"<dt>trial {row.trial}</dt><dd>{escape(str(row.error))}</dd>" for row in rows.itertuples()
    )
    return f"<h2>Trials that failed</h2><dl>{items}</dl>" if items else ""


def _all_trials(folder: Place) -> str:
    table = views.summary(views.ranked(read(folder)))
    shown = views.cells(table)
    head = "".join(f"<th>{escape(name)}</th>" for name in shown[0])
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown[1:]
    )
    return (
        f"<h2>All trials</h2><details><summary>{len(table)} rows</summary>"
        f'<div class="table"><table><tr>{head}</tr>{rows}</table></div></details>'
    )
