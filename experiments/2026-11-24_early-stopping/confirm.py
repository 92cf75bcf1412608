"""Trains the winners again: `python confirm.py TRIAL …`, five fresh seeds each, to confirm.csv."""

import csv
import multiprocessing
import sys
from pathlib import Path

import curves

from mnist_ray import data, engine, process
from mnist_ray.config import RunConfig

TABLE = Path(__file__).parent / "confirm.csv"
COLUMNS = ["trial", "seed", "accuracy", "loss"]


def run(job: tuple[int, int]) -> dict[str, float]:
    trial, seed = job
    process.prepare(1)
    config = curves.BASE.replace(**curves.configurations()[trial], seed=seed)
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    metrics: list[engine.Metrics] = []
    engine.fit(config, splits, on_epoch=lambda each, state: metrics.append(each))
    last = metrics[-1]
    scores = {"accuracy": last["holdout_accuracy"], "loss": last["holdout_loss"]}
    return {"trial": trial, "seed": seed, **scores}


if __name__ == "__main__":
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n")
    with TABLE.open() as file:
        done = {(int(row["trial"]), int(row["seed"])) for row in csv.DictReader(file)}
    jobs = [(int(trial), seed) for seed in range(1, 6) for trial in sys.argv[1:]]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for row in pool.imap_unordered(run, [job for job in jobs if job not in done]):
            with TABLE.open("a") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)
            print(row, flush=True)
