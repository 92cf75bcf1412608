"""Trains the experiment's 24 configurations to the end, and in shorter ways, epoch by epoch.

What any scheduler would have seen, and so what it would have kept, can be read off the curves
afterwards: `python curves.py [WAY …]` appends to curves.csv, and skips what is there.
"""

import csv
import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mnist_ray import data, engine, process
from mnist_ray.config import STUDY_RECIPE, RunConfig, TrainConfig

HERE = Path(__file__).parent
TRIALS, EPOCHS = 24, 9
BASE = TrainConfig(**{**STUDY_RECIPE, "epochs": EPOCHS, "cpus_per_worker": 1})
WAYS = {  # what each configuration is trained as
    "full": {},
    "complete-1": {"epochs": 1},
    "constant-1": {"epochs": 1, "schedule": "constant"},
}
DECAYS = (0.98, 0.995)  # of the averages: over about 50 and 200 steps, where an epoch has 391
COLUMNS = [
    *("way", "trial", "dropout", "lr", "momentum", "epoch", "status"),
    *("accuracy", "loss", *(f"accuracy_ema_{decay}" for decay in DECAYS)),
]


def configurations() -> list[dict[str, float]]:
    """At random, from a space wide enough to hold bad ones."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {
        "dropout": optuna.distributions.FloatDistribution(0, 0.4),
        "lr": optuna.distributions.FloatDistribution(0.003, 1, log=True),
        "momentum": optuna.distributions.FloatDistribution(0.5, 0.98),
    }
    return [study.ask(space).params for _ in range(TRIALS)]


def curve(job: tuple[str, int]) -> list[dict[str, Any]]:
    way, trial = job
    process.prepare(1)
    sampled = configurations()[trial]
    config = BASE.replace(**sampled, **WAYS[way])
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    averages: dict[float, AveragedModel] = {}
    network: list[torch.nn.Module] = []
    rows = []

    def wrap(model: torch.nn.Module) -> torch.nn.Module:
        network.append(model)
        for decay in DECAYS:
            average = get_ema_multi_avg_fn(decay)
            averages[decay] = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        return model

    def on_step(epoch: int, step: int, steps: int) -> None:
        for average in averages.values():
            average.update_parameters(network[0])

    def on_epoch(metrics: engine.Metrics, state: engine.State) -> None:
        finite = metrics["train_loss"] == metrics["train_loss"]
        row = {"way": way, "trial": trial, **sampled, "epoch": metrics["epoch"]}
        row |= {"status": "ok" if finite else "diverged"}
        row |= {"accuracy": metrics["holdout_accuracy"], "loss": metrics["holdout_loss"]}
        for decay, average in averages.items():
            score = engine.evaluate(average.module, splits.score)
            row[f"accuracy_ema_{decay}"] = score.accuracy
        rows.append(row)

    engine.fit(config, splits, wrap=wrap, on_step=on_step, on_epoch=on_epoch)
    return rows


def main(ways: list[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = HERE / "curves.csv"
    if not table.exists():
        table.write_text(",".join(COLUMNS) + "\n")
    with table.open() as file:
        done = {(row["way"], int(row["trial"])) for row in csv.DictReader(file)}
    jobs = [(way, trial) for way in ways for trial in range(TRIALS)]
    jobs = [job for job in jobs if job not in done]
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(2, initializer=partial(optuna.logging.set_verbosity, 30)) as pool:
        for rows in pool.imap_unordered(curve, jobs):
            with table.open("a") as file:
                csv.DictWriter(file, COLUMNS).writerows(rows)
            last = rows[-1]
            print(*(f"{last[name]}" for name in COLUMNS), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(WAYS))
