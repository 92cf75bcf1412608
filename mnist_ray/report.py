"""One page that shows what a study found: `python -m mnist_ray.results PATH --report FILE`.

A single file with all it needs, Plotly's script included, so that it opens offline.
"""

import os
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd

from mnist_ray import axes, errors, figures, page, results, tables
from mnist_ray.storage import Place, local

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
    table = tables.read(folder)
    if not len(table):
        raise errors.UserError(f"path {folder} has no trial that ended, and so nothing to report.")
    trials = table.to_pandas()
    epochs = tables.read(folder, tables.EPOCHS).to_pandas()
    fields = _searched(trials)
    winner = _winner(trials)
    yield f"<h1>{escape(folder.name)}</h1>"
    yield _summary(trials, epochs, fields, winner)
    yield page.section(
        "With fresh seeds",
        "Each dot is a run of the same configuration with another seed; the bar is the mean,"
        " the whiskers the standard deviation. Where they overlap far, the order may be chance.",
        figures.confirmation(trials),
    )
    yield page.section(
        "Every trial, epoch by epoch",
        "Accuracy on the held-out images. The axis is logarithmic in the error, so that small"
        " differences near the top can be seen. A cross is where a trial was stopped.",
        figures.curves(trials, epochs, winner),
    )
    plots = [figures.against(trials, field, winner) for field in fields]
    yield page.section(
        "Against each hyperparameter",
        "Best accuracy of each trial; grey dots are the screening, the star is the winner.",
        *plots,
    )
    yield page.section(
        "All hyperparameters at once",
        "A line per configuration, orange ones are the most accurate. Drag along an axis to pick"
        " some out.",
        figures.parallel(trials, fields),
    )
    shares = figures.importance(trials, fields)
    what = (
        "Share of each hyperparameter in how the trials' ranks vary over the space, by functional"
        " ANOVA (Hutter et al., ICML 2014); the rest is their interplay."
        " It is an estimate from these trials alone, and a rough one from few."
    )
    if "phase" in trials and (trials["phase"] == "screen").any():
        what += " The accuracies are those of the screening, after its one epoch."
    elif (trials["status"] == "stopped").any():
        what += " A trial that was stopped counts with the accuracy it had by then."
    if shares is None and fields:
        what = f"An estimate needs at least {figures.ENOUGH} configurations with a result."
    if fields:
        yield page.section("What mattered", what, shares, always=True)
    yield page.section(
        "The best so far",
        "How good the best trial was, while the study went on.",
        figures.best_so_far(trials),
    )
    yield page.section("Where the time went", _cost(trials), figures.budget(trials))
    predictions = folder / tables.PREDICTIONS
    if predictions.is_file():
        yield from _mistakes(tables.read(folder, tables.PREDICTIONS).to_pandas())
    yield _failures(trials)
    yield _all_trials(folder)


def _searched(trials: pd.DataFrame) -> list[str]:
    """The fields of the config in which trials of one phase differ."""
    fields = [name for name in trials if name not in tables.TRIAL_COLUMNS and name != "seed"]
    phases = trials["phase"] if "phase" in trials else pd.Series("", index=trials.index)
    groups = [trials[phases == phase] for phase in phases.unique() if phase not in ("final",)]
    return [
        field
        for field in fields
        if any(group[field].astype(str).nunique() > 1 for group in groups if len(group))
    ]


def _winner(trials: pd.DataFrame) -> int | None:
    """The trial whose configuration the final runs have, or else the best of the search."""
    if "phase" in trials:
        final = trials.loc[trials["phase"] == "final", "repeats"].dropna()
        if len(final):
            return int(final.iloc[0])
        confirmed = trials[(trials["phase"] == "confirm") & trials["repeats"].notna()]
        if len(confirmed):
            # One that failed counts as 0, as it does where the study chooses.
            scores = confirmed["final_accuracy"].where(confirmed["status"] == "ok", 0.0)
            return int(scores.groupby(confirmed["repeats"]).mean().idxmax())
        if (trials["phase"] == "search").any():
            trials = trials[trials["phase"] == "search"]
    ranked = trials[trials["status"].isin(["ok", "stopped"]) & trials["best_accuracy"].notna()]
    return int(ranked.loc[ranked["best_accuracy"].idxmax(), "trial"]) if len(ranked) else None


def _summary(
    trials: pd.DataFrame, epochs: pd.DataFrame, fields: list[str], winner: int | None
) -> str:
    # Not the first row's: a trial that failed knows neither its arithmetic nor its checkpoint.
    first = trials.bfill().iloc[0]
    counts = [f"{n} {status}" for status, n in trials["status"].value_counts().items()]
    lines = {
        "run": f"{len(trials)} trials ({', '.join(counts)}),"
        f" {len(epochs)} epochs, {trials['train_seconds'].sum() / 60:.1f} minutes of training,"
        f" {first['arithmetic']} on {first['device']}",
        "made on": f"{first['hardware']}; torch {first['torch']}, Ray {first['ray']},"
        f" commit {first['commit']}",
    }
    best = trials[trials["trial"] == winner]
    if len(best):
        row = best.iloc[0]
        values = ", ".join(f"{name} {axes.label(row[name])}" for name in fields)
        lines["winner"] = f"trial {winner}" + (f": {values}" if values else "")
        what = {"holdout": "held-out", "test": "test"}[row["scored_on"]]
        lines[f"{what} accuracy"] = (
            f"{row['best_accuracy']:.2%} after epoch {row['best_epoch']:.0f}"
        )
        final = trials[trials["phase"] == "final"] if "phase" in trials else trials[:0]
        final = final[final["status"] == "ok"]
        scored = final["final_accuracy"]
        if len(scored):
            spread = f" ± {scored.std():.2%}" if len(scored) > 1 else ""
            lines["test accuracy"] = f"{scored.mean():.2%}{spread}, n = {len(scored)}"
        elif pd.notna(row["test_accuracy"]):
            lines["test accuracy"] = f"{row['test_accuracy']:.2%}, scored once"
        lines["checkpoint"] = str((final if len(scored) else best)["checkpoint"].iloc[0])
    rows = "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in lines.items())
    return f"<dl>{rows}</dl>"


def _cost(trials: pd.DataFrame) -> str:
    spent = trials["epochs_trained"].sum()
    text = "Epochs trained, by phase and by where trials ended."
    if "phase" not in trials:
        return text
    tried = trials[trials["phase"] == "screen"]
    searched = trials[trials["phase"] == "search"]
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
    table = results.summary(results.ranked(tables.read(folder)))
    shown = results.cells(table)
    head = "".join(f"<th>{escape(name)}</th>" for name in shown[0])
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown[1:]
    )
    return (
        f"<h2>All trials</h2><details><summary>{len(table)} rows</summary>"
        f'<div class="table"><table><tr>{head}</tr>{rows}</table></div></details>'
    )
