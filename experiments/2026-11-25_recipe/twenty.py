"""Twenty-epoch runs in bfloat16, after the shorter ones: `python twenty.py`. Writes twenty.csv.

Runs that twenty.csv has already are skipped. Two processes with a thread each.
"""

import time
from pathlib import Path
from typing import Any

from augment import BASE, COLUMNS
from leads import name, record

from mnist_ray import data, engine, process
from mnist_ray.config import RunConfig

TABLE = Path(__file__).parent / "twenty.csv"
CHANGES: list[dict[str, Any]] = [
    {"augment_until": 1},
    {"augment_until": 0.9, "weight_decay": 2e-4},
    {"augment_until": 0.9, "shift": 1.5, "rotation": 8},
    {"augment_until": 1, "weight_decay": 2e-4, "lr": 0.2},
]


def run(change: dict[str, Any]) -> dict[str, Any]:
    process.prepare(1)
    config = BASE.replace(epochs=20, precision="bf16", seed=1, **change)
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    began, rows = time.perf_counter(), []
    engine.fit(config, splits, on_epoch=lambda row, state: rows.append(row))
    last = {each: round(rows[-1][each], 6) for each in COLUMNS[2:-1]}
    seconds = round(time.perf_counter() - began)
    return {"change": name(change), "seed": 1, **last, "seconds": seconds}


if __name__ == "__main__":
    record(TABLE, COLUMNS, run, {(name(change), "1"): change for change in CHANGES})
