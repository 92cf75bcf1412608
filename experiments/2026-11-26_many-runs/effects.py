"""What each field did in the runs that were drawn: `python effects.py` writes effects.csv.

A linear fit with a small ridge, of the mean of a run's two held-out scores (as it ended, and with
recalibrated batch norm), over the runs of stages 1 and 2 that did not diverge.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

RUNS = Path(__file__).parent / "runs.csv"
RIDGE = 2.0


def features(c: Mapping[str, Any]) -> dict[str, float]:
    """Each about 0 at the centre of what was drawn, and 1 a usual step away from it."""
    effective = c["lr"] / (1 - c["momentum"]) * 0.1 / (c["batch_size"] / 64)
    decay, scale = math.log(c["weight_decay"] / 1e-4), (c["scale"] - 0.15) / 0.06
    taught = c["teacher"] != "none"
    return {
        "all at the centre": 1,
        "lr of momentum 0.9 and batch 64, times e": math.log(effective / 0.21),
        "weight decay, times e": decay,
        "weight decay, squared": decay**2,
        "momentum + 0.05": (c["momentum"] - 0.9) / 0.05,
        "batch size, doubled": math.log2(c["batch_size"] / 64),
        "rotation + 3 degrees": (c["rotation"] - 8) / 3,
        "shift + 0.5 pixels": (c["shift"] - 1.4) / 0.5,
        "scale + 0.06": scale,
        "scale, squared": scale**2,
        "augment_until + 0.05": (c["augment_until"] - 0.95) / 0.05,
        "fade to 0": c["fade"],
        "shear 0.15": c["shear"] / 0.15,
        "elastic 1 pixel": c["elastic"],
        "bicubic": c["bicubic"],
        "thickness 0.4": c["thickness"] / 0.4,
        "cutout 8 pixels": c["cutout"] / 8,
        "stretch 0.12": c["stretch"] / 0.12,
        "a margin": c["margin"] > 0,
        "label smoothing": c["label_smoothing"] > 0,
        "orthogonal first weights": c["init"] == "orthogonal",
        "Kaiming's first weights": c["init"] == "kaiming",
        "warm-up + 0.15 of the run": (c["warm_up"] - 0.25) / 0.15,
        "cosine": c["cosine"],
        "no decay of batch norm's weights": not c["norm_decay"],
        "teacher, online": c["teacher"] == "online",
        "teacher, fixed": c["teacher"] == "fixed",
        "teacher, temperature above 1": taught and c["temperature"] > 1,
    }


def matrix(rows: pd.DataFrame) -> np.ndarray:
    each = [list(features(row).values()) for row in rows.to_dict("records")]
    return np.array(each, dtype=float)


def read() -> pd.DataFrame:
    return pd.read_csv(RUNS, keep_default_na=False, na_values=[""])  # "none" is a teacher


def drawn(runs: pd.DataFrame) -> pd.DataFrame:
    """Those of stages 1 and 2 by SGD. One with a focal loss is not compared by its loss."""
    kept = (runs["stage"] < 3) & (runs["width"] == 1) & (runs["optimizer"] == "sgd")
    return runs[kept & (runs["focal"] == 0) & (runs["holdout_accuracy"] > 0.98)]


def fit(rows: pd.DataFrame, measured: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors."""
    x, y = matrix(rows), measured.to_numpy()
    ridge = np.diag([0.0] + [RIDGE] * (x.shape[1] - 1))
    inverse = np.linalg.inv(x.T @ x + ridge)
    coefficients = inverse @ x.T @ y
    residual = y - x @ coefficients
    variance = residual @ residual / (len(y) - x.shape[1])
    return coefficients, np.sqrt(np.diag(inverse @ (x.T @ x) @ inverse) * variance)


def accuracy(rows: pd.DataFrame) -> pd.Series:
    """Percent."""
    return (rows["holdout_accuracy"] + rows["recalibrated_accuracy"]) * 50


def loss(rows: pd.DataFrame) -> pd.Series:
    """Ten-thousandths of a nat."""
    return (rows["holdout_loss"] + rows["recalibrated_loss"]) * 5000


def main() -> None:
    rows = drawn(read())
    sharp = rows[rows["label_smoothing"] == 0]
    points, points_error = fit(rows, accuracy(rows))
    nats, nats_error = fit(sharp, loss(sharp))
    table = pd.DataFrame(
        {
            "change": list(features(rows.iloc[0])),
            "points": points.round(3),
            "points_error": points_error.round(3),
            "nats": (nats / 1e4).round(5),
            "nats_error": (nats_error / 1e4).round(5),
        }
    )
    table.loc[table["change"] == "label smoothing", ["nats", "nats_error"]] = None  # not compared
    table.to_csv(RUNS.with_name("effects.csv"), index=False)
    compare(read())


def compare(runs: pd.DataFrame) -> None:
    """Print the recipes of stage 3 beside best.yaml, and what is gained after a run's end."""
    plain = runs[(runs["width"] == 1) & (runs["holdout_accuracy"] > 0.98)]
    last = plain[plain["stage"] == 3]
    base = plain[plain["seed"] < 100]  # of stage 1
    base = pd.concat([base, last[last["lr"] == base["lr"].iloc[0]]])
    for lr, rows in [("best.yaml", base), *last.groupby("lr")]:
        p = ttest_ind(rows["holdout_accuracy"], base["holdout_accuracy"], equal_var=False).pvalue
        right, lost = 100 * rows["holdout_accuracy"], rows["holdout_loss"]
        print(f"lr {lr}, n = {len(rows)}: {right.mean():.2f} ± {right.std():.2f} %", end=", ")
        print(f"loss {lost.mean():.4f} ± {lost.std():.4f}, p = {p:.2f}")
    whats = ("average_500", "average_2000", "recalibrated")  # many.py has the last alone now
    for what in whats if "average_500_accuracy" in plain else whats[2:]:
        gain = 100 * (plain[f"{what}_accuracy"] - plain["holdout_accuracy"]).dropna()
        print(f"{what}, n = {len(gain)}: {gain.mean():+.3f} ± {gain.sem():.3f} points")


if __name__ == "__main__":
    main()
