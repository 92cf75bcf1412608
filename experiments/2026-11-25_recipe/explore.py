"""Run a stage of the exploration: `python explore.py STAGE`. Adds a row to runs.csv as each ends.

Runs that runs.csv has already are skipped. Two processes with a thread each.
"""

import csv
import itertools
import math
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mnist_ray import data, engine, model, process
from mnist_ray.config import RunConfig, TrainConfig

RUNS = Path(__file__).parent / "runs.csv"
OVER = [0.005, 0.02, 0.05, 0.15]
"""Shares of the run over which weights are averaged on the side."""

RENORMED = [0.05, 0.15]
"""Those whose batch norm statistics are also measured anew."""

Fields = dict[str, Any]

COMMON: Fields = {
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "one-cycle",
    "holdout": 10_000,
    "precision": "fp32",
}
PROTOTYPE: Fields = {
    "lr": 0.1,
    "batch_size": 64,
    "weight_decay": 5e-4,
    "rotation": 10,
    "shift": 2,
    "scale": 0.1,
    "label_smoothing": 0,
    "dropout": 0,
    "epochs": 20,
}
LEVERS: dict[str, tuple[float, float]] = {
    "lr": (0.05, 0.15),
    "batch_size": (64, 128),
    "weight_decay": (1e-4, 5e-4),
    "rotation": (5, 10),
    "shift": (1, 2),
    "scale": (0.05, 0.15),
    "label_smoothing": (0, 0.05),
}
COLUMNS = ["stage", *PROTOTYPE, "seed", "accuracy", "loss"]
COLUMNS += [f"{what}_{over:g}" for over in OVER for what in ("accuracy", "loss")]
COLUMNS += [f"{what}_{over:g}_renormed" for over in RENORMED for what in ("accuracy", "loss")]
COLUMNS += ["train_accuracy", "seconds", "accuracies"]


def screen() -> list[Fields]:
    """2^(7-4): three levers vary freely, each other one is a product of these."""
    runs = []
    for number, (a, b, c) in enumerate(itertools.product((-1, 1), repeat=3)):
        signs = [a, b, a * b, c, a * c, b * c, a * b * c]
        levels = {
            name: pair[sign > 0] for (name, pair), sign in zip(LEVERS.items(), signs, strict=True)
        }
        runs.append({**levels, "dropout": 0, "epochs": 10, "seed": number + 1})
    return runs


def seeded(*changes: Fields, seeds: int = 3) -> list[Fields]:
    """Every change of the prototype with every seed."""
    return [
        {**PROTOTYPE, **change, "seed": seed} for seed in range(1, seeds + 1) for change in changes
    ]


AROUND: list[Fields] = [
    {"lr": 0.2},
    {"batch_size": 32},
    {"weight_decay": 2e-4},
    {"rotation": 7, "shift": 1},
    {"label_smoothing": 0.05},
]
STAGES = {
    "screen": screen,
    "full": lambda: seeded({}),
    "around": lambda: seeded(*AROUND),
}


def run(fields: Fields) -> Fields:
    """Train once; the columns of runs.csv, but for the stage."""
    process.prepare(1)
    config = TrainConfig(**COMMON, **fields)
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    assert splits.scored_on == "holdout"
    networks: list[torch.nn.Module] = []
    averages: dict[float, list[torch.Tensor]] = {}
    metrics = []

    def wrap(network: torch.nn.Module) -> torch.nn.Module:
        networks.append(network)
        averages.update({over: [t.clone() for t in learned(network)] for over in OVER})
        return network

    def on_step(epoch: int, step: int, steps: int) -> None:
        now = learned(networks[0])
        done, total = (epoch - 1) * steps + step - 1, config.epochs * steps
        for over, average in averages.items():
            torch._foreach_lerp_(average, now, share(over * total, done))

    began = time.perf_counter()
    engine.fit(
        config,
        splits,
        wrap=wrap,
        on_step=on_step,
        on_epoch=lambda row, state: metrics.append(row),
    )
    seconds = time.perf_counter() - began
    result = {
        **fields,
        "accuracy": metrics[-1]["holdout_accuracy"],
        "loss": metrics[-1]["holdout_loss"],
        "train_accuracy": metrics[-1]["train_accuracy"],
        "seconds": round(seconds),
        "accuracies": " ".join(f"{row['holdout_accuracy']:.4f}" for row in metrics),
    }
    for over, average in averages.items():
        network = model.build(config)
        for tensor, value in zip(learned(network), average, strict=True):
            tensor.copy_(value)
        score = engine.evaluate(network, splits.score)
        result |= {f"accuracy_{over:g}": score.accuracy, f"loss_{over:g}": score.loss}
        if over in RENORMED:
            renorm(network, config, splits.train)
            score = engine.evaluate(network, splits.score)
            result |= {
                f"accuracy_{over:g}_renormed": score.accuracy,
                f"loss_{over:g}_renormed": score.loss,
            }
    return result


def share(over: float, step: int) -> float:
    """What the weights after `step` count in the average of those after each step up to it, where
    one from `over` steps before counts 1/e of it (Szegedy et al., arXiv:1512.00567, section 8). As
    the shares add up to one, nothing is left of the first, random weights.
    """
    return math.expm1(-1 / over) / math.expm1(-(step + 1) / over)


def renorm(network: torch.nn.Module, config: TrainConfig, part: data.Part) -> None:
    """Measure batch norm's statistics of this very network, on 5,000 images as trained on."""
    network.train()
    rng = data.generator(0)
    with torch.no_grad():
        for number, positions in enumerate(torch.arange(5_000).split(250)):
            for layer in network.modules():
                if isinstance(layer, torch.nn.BatchNorm2d):
                    layer.momentum = 1 / (number + 1)  # the mean of all batches so far
            network(data.augment(part.take(positions)[0], config, rng))


def learned(network: torch.nn.Module) -> list[torch.Tensor]:
    """Weights and batch norm's running statistics."""
    return [t.detach() for t in network.state_dict().values() if t.is_floating_point()]


def key(row: Fields) -> tuple[float, ...]:
    return tuple(float(row[name]) for name in (*PROTOTYPE, "seed"))


def main(stage: str) -> None:
    if not RUNS.exists():
        RUNS.write_text(",".join(COLUMNS) + "\n")
    with RUNS.open() as file:
        done = {key(row) for row in csv.DictReader(file)}
    todo = [fields for fields in STAGES[stage]() if key(fields) not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(run, todo):
            with RUNS.open("a") as file:
                csv.DictWriter(file, COLUMNS).writerow({"stage": stage, **result})
            print({name: result[name] for name in ("accuracy", "loss", "seconds")}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
