"""The overview at the top of a run's part of the report: what ran, on what, and what came out."""

from collections.abc import Mapping

import pandas as pd

from mnist_ray import search
from mnist_ray.fields import counted
from mnist_ray.search import Phase, Status
from mnist_ray.tables.hyperparameters import label

IMAGES = {"holdout": "held-out", "test": "test"}
"""What the report calls the images of `scored_on`."""

ENDED = {Status.OK: "trained to the end", Status.STOPPED: "stopped early"}
"""What the report calls a status whose name does not explain it."""


def is_study(trials: pd.DataFrame) -> bool:
    """Return whether the trials are a study's. The first versions wrote no phases."""
    return len(trials) > 1 or bool(trials["phase"].notna().any())


def winner(trials: pd.DataFrame) -> int | None:
    """Return the number of the study's winner, or None if the table names none."""
    won = trials["trial"][trials["winner"].eq(True)]
    return int(won.iloc[0]) if len(won) else None


def of_winner(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the trials without the final runs of an earlier winner. A study that went on after it
    had ended may have another winner now."""
    number = winner(trials)
    others = trials["repeats"].notna() & (trials["repeats"] != number) & (number is not None)
    return trials[~(others & (trials["phase"] == Phase.FINAL))]


def lines(
    trials: pd.DataFrame,
    epochs: pd.DataFrame,
    fields: list[str],
    against_base: str,
    checkpoint: str,
    goes_on: bool = False,
) -> Mapping[str, str]:
    """Return the lines of the overview by their names. `fields` are the hyperparameters that were
    searched, `against_base` compares the winner with the base recipe, and `checkpoint` is the
    folder of the checkpoint that the run hands back. `goes_on` says that the study had ended and
    adds trials now."""
    first = trials.bfill().iloc[0]  # a trial that failed knows no arithmetic and no device
    counts = trials["status"].value_counts().items()
    statuses = ", ".join(f"{count} {ENDED.get(status, status)}" for status, count in counts)
    minutes = trials["train_seconds"].sum() / 60
    found = {
        "trained": _joined(
            f"{counted(len(trials), 'trial')} ({statuses})",
            f"{counted(len(epochs), 'epoch')} in {minutes:.1f} minutes of training in all",
            _joined(_known(first, "arithmetic"), _known(first, "device", "on "), by=" "),
        ),
        "made with": _joined(
            _known(first, "hardware"),
            _known(first, "torch", "torch "),
            _known(first, "ray", "Ray "),
            _known(first, "commit", "commit "),
            by="; ",
        ),
    }
    number = winner(trials)
    final, best = _final(trials), _best(trials)
    if len(best):
        ended = not goes_on and (len(final) > 0 or bool(best["test_accuracy"].notna().any()))
        found |= _outcome(best.iloc[0], fields, number, ended)
        found["checkpoint"] = checkpoint
        found["base recipe"] = against_base
    elif trials["winner"].isna().all():
        found["winner"] = "not known: the table is of an earlier version, which did not name it"
    else:
        found["winner"] = "none: no trial that competed has a result"
    if len(final):
        accuracies = list(final["final_accuracy"])
        runs = f"mean ± standard deviation of {len(accuracies)} runs"
        runs = runs if len(accuracies) > 1 else "a single run"
        found["test accuracy"] = (
            f"{search.in_percent(accuracies)} after the last epoch, {runs} of the winner with no"
            " image held out"
        )
        found["checkpoint"] = checkpoint
    return {name: text for name, text in found.items() if text}


def _outcome(row: pd.Series, fields: list[str], winner: int | None, ended: bool) -> dict[str, str]:
    """Return the lines about a study's winner, or about a training run if `winner` is None. `ended`
    says that the study has scored its winner on the test set."""
    found = {}
    if winner is not None:
        values = ", ".join(f"{name} {label(row[name])}" for name in fields)
        name = "winner" if ended else "best so far"
        found[name] = f"trial {winner}" + (f": {values}" if values else "")
    if pd.notna(row["best_accuracy"]):
        images = "training images held out" if row["scored_on"] == "holdout" else "test images"
        trained = f"epoch {row['epochs_trained']:.0f} of {row['epochs']}"
        found[f"{IMAGES[row['scored_on']]} accuracy"] = (
            f"{row['final_accuracy']:.2%} after"
            f" {'the last epoch' if row['status'] == Status.OK else trained},"
            f" {row['best_accuracy']:.2%} at its best (epoch {row['best_epoch']:.0f}),"
            f" scored after every epoch on the {images}"
        )
    if row["scored_on"] == "holdout" and pd.notna(row["test_accuracy"]):
        scored = "after the last epoch" if winner is None else "of its checkpoint"
        found["test accuracy"] = f"{row['test_accuracy']:.2%} {scored}, scored once"
    return found


def _final(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the winner's final runs that trained to their end."""
    trials = of_winner(trials)
    return trials[(trials["phase"] == Phase.FINAL) & (trials["status"] == Status.OK)]


def _best(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the winner's row, if there is a winner. A training run has a single row, which is no
    winner, but this one."""
    return trials[trials["trial"] == winner(trials)] if is_study(trials) else trials


def _known(row: pd.Series, name: str, before: str = "") -> str:
    """Return the value of a column as text after `before`; empty if the column has no value."""
    return f"{before}{row[name]}" if pd.notna(row[name]) else ""


def _joined(*parts: str, by: str = ", ") -> str:
    return by.join(part for part in parts if part)
