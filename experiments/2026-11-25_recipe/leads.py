"""Six-epoch runs that look for a lead, one change at a time: `python leads.py`. Writes leads.csv.

One seed, so that all start from the same weights and see the same images in the same order. Runs
that leads.csv has already are skipped. Two processes with a thread each.
"""

import csv
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mnist_ray import data, engine, process
from mnist_ray.config import RunConfig, TrainConfig

LEADS = Path(__file__).parent / "leads.csv"
MEASURED = ["train_loss", "train_accuracy", "holdout_loss", "holdout_accuracy"]
COLUMNS = ["change", *MEASURED, "seconds"]
PROTOTYPE = TrainConfig(
    lr=0.1,
    momentum=0.9,
    nesterov=True,
    schedule="one-cycle",
    weight_decay=5e-4,
    dropout=0,
    rotation=10,
    shift=2,
    scale=0.1,
    batch_size=64,
    epochs=6,
    holdout=10_000,
    precision="fp32",
    seed=1,
)
CHANGES: list[dict[str, Any]] = [
    {},
    {"muon": 0.2},
    {"lr": 0.2},
    {"augment_until": 0.7},
    {"lr": 0.2, "weight_decay": 1e-4},
    {"muon": 0.1, "weight_decay": 0},
    {"lr": 0.1, "weight_decay": 1e-4},
    {"lr": 0.2, "weight_decay": 3e-5},
    {"lr": 0.2, "weight_decay": 1e-4, "augment_until": 0.7},
    {"lr": 0.4, "weight_decay": 1e-4},
]


class Muon(torch.optim.Optimizer):
    """Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024), for convolutions:
    their step is Nesterov's with singular values near 1, times `share` of the learning rate. Batch
    norm's weights take Nesterov's steps as they are.
    """

    share = 0.0

    def __init__(self, params: Any, lr: float, momentum: float, weight_decay: float, **_: Any):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                total = self.state[p].setdefault("total", torch.zeros_like(p))
                total.mul_(group["momentum"]).add_(p.grad)
                step = p.grad.add(total, alpha=group["momentum"])
                if p.ndim == 4:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    step = self.share * orthogonal(step.flatten(1)).view_as(step)
                p.sub_(group["lr"] * step)


def orthogonal(m: torch.Tensor) -> torch.Tensor:
    """Five steps of the quintic Newton-Schulz iteration."""
    rows, columns = m.shape
    m = m if rows <= columns else m.T
    m = m / (m.norm() + 1e-7)
    for _ in range(5):
        a = m @ m.T
        m = 3.4445 * m + (-4.775 * a + 2.0315 * a @ a) @ m
    return (m if rows <= columns else m.T) * max(1, rows / columns) ** 0.5


def run(change: dict[str, Any]) -> dict[str, Any]:
    fields = dict(change)
    if share := fields.pop("muon", None):
        Muon.share = share
        torch.optim.SGD = Muon  # type: ignore[misc, assignment]
    return {"change": name(change), **fitted(PROTOTYPE.replace(**fields))[0]}


def fitted(
    config: TrainConfig, wrap: Callable[[nn.Module], nn.Module] = lambda model: model
) -> tuple[dict[str, Any], nn.Module]:
    """What the last epoch measured, with the seconds of all, and the network."""
    process.prepare(1)
    splits = data.split(data.load(RunConfig().data_dir), config.holdout)
    began, rows = time.perf_counter(), []
    network = engine.fit(config, splits, wrap=wrap, on_epoch=lambda row, state: rows.append(row))
    last = {each: round(rows[-1][each], 6) for each in MEASURED}
    return {**last, "seconds": round(time.perf_counter() - began)}, network


def name(change: dict[str, Any]) -> str:
    return " ".join(f"{field}={value:g}" for field, value in change.items()) or "none"


def record(
    table: Path, columns: list[str], run: Callable[[Any], Any], jobs: dict[Any, Any]
) -> None:
    """Do the `jobs` whose key, a row's first texts, `table` lacks; a row for each as it ends."""
    if not table.exists():
        table.write_text(",".join(columns) + "\n")
    with table.open() as file:
        rows = list(csv.reader(file))
    todo = [job for key, job in jobs.items() if not any(row[: len(key)] == [*key] for row in rows)]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(run, todo, chunksize=1):
            with table.open("a") as file:
                csv.DictWriter(file, columns).writerow(result)


if __name__ == "__main__":
    record(LEADS, COLUMNS, run, {(name(change),): change for change in CHANGES})
