"""The candidates for fast.yaml, two seeds each, scored on 10,000 held-out images: `screening.csv`.

Two at a time on one core each, about 20 minutes. Varies one thing at a time around a one-cycle
recipe, among them how much of the run the learning rate rises for, which is no field of the config.
"""

import csv
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mnist_ray import data, engine, process
from mnist_ray.config import RunConfig, TrainConfig

BASE: dict[str, Any] = {
    **{"schedule": "one-cycle", "nesterov": True, "weight_decay": 5e-4, "epochs": 3},
    **{"batch_size": 128, "lr": 0.2, "momentum": 0.9, "dropout": 0, "holdout": 10_000},
}
SMALL = {"batch_size": 64, "lr": 0.1}
CANDIDATES: dict[str, dict[str, Any]] = {
    "b128 lr.2": {},
    "b128 lr.1": {"lr": 0.1},
    "b128 lr.35": {"lr": 0.35},
    "b64 lr.1": SMALL,
    "b64 lr.2": {"batch_size": 64},
    "b128 lr.2 wd1e-3": {"weight_decay": 1e-3},
    "b128 lr.2 ls.05": {"label_smoothing": 0.05},
    "b128 lr.2 shift1": {"shift": 1},
    "b128 lr.2 m.85": {"momentum": 0.85},
    "b256 lr.4": {"batch_size": 256, "lr": 0.4},
    "b128 lr.2 rot5 shift.5": {"rotation": 5, "shift": 0.5},
    "b128 lr.2 do.02": {"dropout": 0.02},
    "b64 lr.1 rising 10%": {**SMALL, "rising": 0.1},
    "b64 lr.1 shift1": {**SMALL, "shift": 1},
    "b64 lr.07": {"batch_size": 64, "lr": 0.07},
    "b64 lr.1 rising 40%": {**SMALL, "rising": 0.4},
}


def run(job: tuple[str, int]) -> list[Any]:
    name, seed = job
    changes = {**BASE, **CANDIDATES[name], "seed": seed}
    rising = changes.pop("rising", 0.25)

    def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
        done = (step + 1) / (total_steps + 1)
        return config.lr * min(done / rising, (1 - done) / (1 - rising))

    warnings.simplefilter("ignore")
    process.prepare(1)
    engine.learning_rate = learning_rate
    config = TrainConfig(**changes)
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    accuracies: list[float] = []
    engine.fit(config, splits, on_epoch=lambda row, _: accuracies.append(row["holdout_accuracy"]))
    return [name, seed, *(round(100 * accuracy, 2) for accuracy in accuracies)]


if __name__ == "__main__":
    jobs = [(name, seed) for seed in (0, 1) for name in CANDIDATES]
    with (
        get_context("spawn").Pool(2) as pool,
        (Path(__file__).parent / "screening.csv").open("w", newline="") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["recipe", "seed", "epoch_1", "epoch_2", "epoch_3"])
        writer.writerows(pool.imap(run, jobs))
