"""Draw the figures of the records from their tables: `python experiments/figures.py [RECORD ...]`.

A RECORD is the name of a folder in experiments/, which gets a figure.svg; the default is all of
FIGURES.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import table
from matplotlib.axes import Axes

HERE = Path(__file__).parent
plt.rcParams |= {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.figsize": (7, 3.2),
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.alpha": 0.3,
    "svg.hashsalt": "mnist_ray",  # the same file from the same tables
}


def by_epoch(record: Path, ax: Axes) -> None:
    """Draw the accuracy of each run after each epoch, with a dot at the last, which counts."""
    epochs = pd.read_csv(record / "epochs.csv")
    if "accuracy" not in epochs:  # before 0.2.0, each kind of image had a column of its own
        epochs["scored_on"] = epochs["test_accuracy"].notna().map({True: "test", False: "holdout"})
        epochs["accuracy"] = epochs["test_accuracy"].fillna(epochs["holdout_accuracy"])
    runs = epochs.groupby("trial" if epochs["run"].nunique() == 1 else "run")
    lowest = 100.0
    for name, rows in runs:
        accuracy = 100 * rows["accuracy"]
        lowest = min(lowest, accuracy.iloc[-1], accuracy.median())
        label = name if runs.ngroups <= 6 else None
        (line,) = ax.plot(rows["epoch"], accuracy, linewidth=1, label=label)
        ax.plot(rows["epoch"].iloc[-1:], accuracy.iloc[-1:], "o", color=line.get_color(), ms=4)
    whose = "test" if (epochs["scored_on"] == "test").any() else "held-out"
    ax.set(xlabel="epoch", ylabel=f"{whose} accuracy, %", ylim=(lowest - 0.3, 99.7))
    ax.xaxis.get_major_locator().set_params(integer=True)
    if runs.ngroups <= 6:
        ax.legend(fontsize=7)


def early_stopping(record: Path, ax: Axes) -> None:
    rows = pd.read_csv(record / "schedulers.csv").iloc[::-1]
    bars = ax.barh(rows["scheduler"], rows["times fewer"])
    ax.bar_label(bars, [f"{accuracy:.2%}" for accuracy in rows["its accuracy"]], fontsize=7)
    ax.set(xlabel="times fewer epochs than all to the end; on each bar, its winner's accuracy")
    ax.tick_params(axis="y", labelsize=7)
    ax.margins(x=0.1)


def leads(record: Path, ax: Axes) -> None:
    runs = pd.read_csv(record / "leads.csv")
    ax.plot(runs["train_loss"], runs["holdout_loss"], "o")
    for _, row in runs.iterrows():
        at = row["train_loss"], row["holdout_loss"]
        ax.annotate(row["change"], at, xytext=(4, 3), textcoords="offset points", fontsize=6)
    ax.set(xlabel="loss on the images trained on, nats", ylabel="held-out loss, nats")
    ax.margins(x=0.15)


def scale(record: Path, ax: Axes) -> None:
    for name, label in (("trials_before", "before"), ("trials", "after")):
        rows = pd.read_csv(record / f"{name}.csv")
        ax.loglog(rows["trials"], rows["seconds"], "o-", label=label)
    ax.set(xlabel="trials that do nothing", ylabel="seconds")
    ax.legend()


def soak(record: Path, ax: Axes) -> None:
    memory = pd.read_csv(record / "memory.csv")
    ax.plot(memory["seconds"] / 60, memory["mb"], linewidth=1, label="the driver's memory")
    for i, second in enumerate(pd.read_csv(record / "kills.csv")["seconds"]):
        ax.axvline(second / 60, color="C3", linewidth=0.5, label=None if i else "a process killed")
    ax.set(xlabel="minutes", ylabel="MB", ylim=(0, None))
    ax.legend(loc="lower right")


def many_runs(record: Path, ax: Axes) -> None:
    rows = pd.read_csv(record / "effects.csv").iloc[:0:-1]  # the first is where all are zero
    ax.errorbar(rows["points"], rows["change"], xerr=2 * rows["points_error"], fmt="o", ms=3, lw=1)
    ax.axvline(0, color="black", linewidth=0.5)
    ax.set(xlabel="points of held-out accuracy, and two standard errors")
    ax.tick_params(axis="y", labelsize=6)
    ax.figure.set_size_inches(7, 5)


def recipes(of: dict[str, table.Record], record: Path, ax: Axes) -> None:
    """Draw the test accuracy of each seed after the last epoch, and the mean of each recipe."""
    for place, recipe in enumerate(of.values()):
        accuracy = 100 * pd.Series(recipe.accuracies())
        ax.plot(accuracy, place + 0.15 * (accuracy.rank(method="first") % 3 - 1), "o", ms=4)
        ax.plot([accuracy.mean()] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1)
    ax.set_yticks(range(len(of)), list(of))
    ax.set(xlabel="test accuracy after the last epoch, %", ylim=(-0.5, len(of) - 0.5))


EARLIER = {
    "first search, 20 epochs": table.FIRST_BEST,
    "fast.yaml, 3 epochs": table.FAST,
    "seed.yaml, 20 epochs": table.SEED,
}
BEST = {"best.yaml, 20 epochs": table.BEST, **EARLIER}
TAUGHT = {"best.yaml, taught": table.TAUGHT, "best.yaml": table.BEST}
THREE_FIELDS = {"from the study": table.THREE_FIELDS, "reference": table.SEED_BF16}

FIGURES: dict[str, Callable[[Path, Axes], None]] = {
    "2026-11-23_reference": by_epoch,
    "2026-11-23_first-study": by_epoch,
    "2026-11-23_fast": by_epoch,
    "2026-11-23_precision": by_epoch,
    "2026-11-24_early-stopping": early_stopping,
    "2026-11-25_soak": soak,
    "2026-11-25_recipe": leads,
    "2026-11-25_scale": scale,
    "2026-11-26_many-runs": many_runs,
    "2026-11-26_best": partial(recipes, EARLIER),
    "2026-11-26_second-search": partial(recipes, BEST),
    "2026-11-26_taught": partial(recipes, TAUGHT),
    "2026-11-26_three-fields": partial(recipes, THREE_FIELDS),
}


def main(records: list[str]) -> None:
    for name in records or FIGURES:
        figure, ax = plt.subplots()
        FIGURES[name](HERE / name, ax)
        figure.savefig(HERE / name / "figure.svg", metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
