"""One page that shows what a study found: `python -m mnist_ray.results PATH --report FILE`.

A single file with all it needs, Plotly's script included, so that it opens offline.
"""

import base64
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mnist_ray import axes, errors, figures, results, tables
from mnist_ray.storage import Place

MOST_MISTAKES = 60

STYLE = """
:root { color-scheme: light dark;
  --text: #1b1b1b; --paper: #ffffff; --soft: #6a6a6a; --line: #d8d8d8 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --paper: #14161a; --soft: #a0a0a0; --line: #3a3d44 } }
@media print { :root { --text: #000; --paper: #fff; --soft: #444; --line: #bbb } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem }
body.printing { --text: #000; --paper: #fff; --soft: #444; --line: #bbb; width: 42rem }
p { margin: .3rem 0 } .caption, dt, small { color: var(--soft) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem }
dd { margin: 0; overflow-wrap: anywhere }
section { break-inside: avoid } .fields { display: grid; gap: 0 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)) }
.fields > div { min-width: 0 }
.mistakes { display: grid; gap: .6rem;
  grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)) }
.mistakes figure { margin: 0; text-align: center; font-size: .75rem; break-inside: avoid }
.mistakes img { width: 100%; max-width: 6rem; image-rendering: pixelated;
  border: 1px solid var(--line) }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
td, th { padding: .15rem .6rem; border-bottom: 1px solid var(--line); text-align: right }
"""

SCRIPT = """
const css = name => getComputedStyle(document.body).getPropertyValue(name).trim();
const plots = () => document.querySelectorAll('.js-plotly-plot');
function paint() {
  for (const plot of plots()) {
    const change = {'font.color': css('--text')};
    for (const key of Object.keys(plot.layout)) if (/^[xy]axis/.test(key)) {
      change[key + '.gridcolor'] = css('--line'); change[key + '.linecolor'] = css('--line');
    }
    Plotly.relayout(plot, change);
    // It was drawn before the page had its layout.
    if (!document.body.classList.contains('printing')) Plotly.Plots.resize(plot);
  }
}
paint();
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', paint);
// Plotly knows neither paper nor its width: its figures would keep those of the screen.
addEventListener('beforeprint', () => {
  document.body.classList.add('printing');
  for (const plot of plots()) Plotly.relayout(plot, {width: plot.parentNode.clientWidth});
  paint();
});
addEventListener('afterprint', () => {
  document.body.classList.remove('printing');
  for (const plot of plots()) Plotly.relayout(plot, {width: null, autosize: true});
  paint();
});
"""


def write(folders: Sequence[Place], path: Path) -> Path:
    """Write the report of the runs in `folders` to `path`, whole or not at all, and return the full
    path. Raises UserError where a table cannot be read or the file cannot be written."""
    full = errors.usable("report", path)
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
    title = escape(", ".join(folder.name for folder in folders))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head>\n<body>\n{body}\n"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


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
    yield _section(
        "With fresh seeds",
        "Each dot is a run of the same configuration with another seed; the bar is the mean,"
        " the whiskers the standard deviation. Where they overlap far, the order may be chance.",
        figures.confirmation(trials),
    )
    yield _section(
        "Every trial, epoch by epoch",
        "Accuracy on the held-out images. The axis is logarithmic in the error, so that small"
        " differences near the top can be seen. A cross is where a trial was stopped.",
        figures.curves(trials, epochs, winner),
    )
    plots = [figures.against(trials, field, winner) for field in fields]
    yield _section(
        "Against each hyperparameter",
        "Best accuracy of each trial; grey dots are the screening, the star is the winner.",
        *plots,
    )
    yield _section(
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
        yield _section("What mattered", what, shares, always=True)
    yield _section(
        "The best so far",
        "How good the best trial was, while the study went on.",
        figures.best_so_far(trials),
    )
    yield _section("Where the time went", _cost(trials), figures.budget(trials))
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
    yield _section(
        "What the winner gets wrong",
        f"{len(wrong)} of {len(predictions):,} test images. Green is right.",
        figures.confusion(predictions),
    )
    images = "".join(
        f'<figure><img alt="image {row.index_}" src="data:image/png;base64,{_png(row.image)}">'
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


def _section(title: str, caption: str, *plots: go.Figure | None, always: bool = False) -> str:
    shown = [_plot(plot) for plot in plots if plot is not None]
    if not shown and not always:
        return ""
    inside = f'<div class="fields">{"".join(shown)}</div>' if len(shown) > 1 else "".join(shown)
    return (
        f'<section><h2>{escape(title)}</h2><p class="caption">{escape(caption)}</p>{inside}'
        "</section>"
    )


def _plot(figure: go.Figure) -> str:
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 13},
        legend={"orientation": "h", "y": 1.08, "x": 0},
        height=figure.layout.height or 380,
        margin=figure.layout.margin
        if figure.layout.margin.l
        else {"l": 70, "r": 15, "t": 35, "b": 55},
    )
    figure.update_xaxes(automargin=True, zeroline=False)
    figure.update_yaxes(automargin=True, zeroline=False)
    html: str = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        config={"responsive": True, "displayModeBar": False},
    )
    return f"<div>{html}</div>"


def _png(pixels: bytes) -> str:
    """28 x 28 grey pixels as a PNG in base64 (RFC 2083): dark ink on white."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    inverted = bytes(255 - pixel for pixel in pixels)
    rows = b"".join(b"\0" + inverted[28 * i : 28 * (i + 1)] for i in range(28))
    header = struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0)
    whole = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return base64.b64encode(whole).decode()
