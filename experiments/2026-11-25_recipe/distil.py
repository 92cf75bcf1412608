"""Does the network learn more from four of its kind? `python distil.py`. Writes distil.csv.

Knowledge distillation (Hinton, Vinyals, Dean, arXiv:1503.02531) at temperature 1: the target is
the label by a tenth, and by nine tenths what the mean of four trained networks' log-probabilities
says of the same augmented image. Skips all if distil.csv exists.
"""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from augment import BASE, COLUMNS
from leads import fitted
from torch import Tensor, nn

from mnist_ray import data, engine
from mnist_ray.config import RunConfig
from mnist_ray.model import build

TABLE = Path(__file__).parent / "distil.csv"
TEACHER = BASE.replace(augment_until=1, precision="bf16")
STUDENT = BASE.replace(augment_until=0.85, precision="bf16")
SHARE = 0.9

State = dict[str, Tensor]


class Taught(nn.Module):
    """Keeps the images of the last step, for the teachers."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: Tensor) -> Tensor:
        self.images = images
        return self.student(images)


def teach(teachers: list[nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """`fit`'s wrap; replaces the loop's loss."""
    plain, taught = engine._loss, []

    def loss(log_probs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            said = sum(teacher(taught[0].images).float() for teacher in teachers) / len(teachers)
        soft = -(F.softmax(said, 1) * F.log_softmax(log_probs.float(), 1)).sum()
        return (1 - SHARE) * plain(log_probs, labels, smoothing) + SHARE * soft

    engine._loss = loss

    def wrap(model: nn.Module) -> nn.Module:
        taught.append(Taught(model))
        return taught[0]

    return wrap


def run(job: tuple[str, int, list[State]]) -> tuple[dict[str, Any], State]:
    role, seed, states = job
    if states:
        row, network = fitted(STUDENT.replace(seed=seed), teach(networks(states)))
    else:
        row, network = fitted(TEACHER.replace(seed=seed))
    return {"role": role, "seed": seed, **row}, network.state_dict()


def networks(states: list[State]) -> list[nn.Module]:
    models = []
    for state in states:
        model = build(TEACHER).eval().requires_grad_(False)
        model.load_state_dict(state)
        models.append(model)
    return models


def together(states: list[State]) -> dict[str, Any]:
    """The teachers' mean probabilities, held-out."""
    part = data.split(data.load(RunConfig().data_dir), TEACHER.holdout).score
    images, labels = part.take(torch.arange(len(part.indices)))
    with torch.inference_mode():
        probs = torch.stack([model(images).exp() for model in networks(states)]).mean(0)
    return {
        "role": "teachers together",
        "holdout_loss": round(F.nll_loss(probs.log(), labels).item(), 6),
        "holdout_accuracy": round((probs.argmax(1) == labels).float().mean().item(), 6),
    }


def main() -> None:
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        teachers = pool.map(run, [("teacher", seed, []) for seed in (11, 12, 13, 14)], chunksize=1)
        states = [state for _, state in teachers]
        students = pool.map(run, [("student", seed, states) for seed in (1, 2)], chunksize=1)
    rows = [row for row, _ in teachers] + [together(states)] + [row for row, _ in students]
    pd.DataFrame(rows, columns=["role", *COLUMNS[1:]]).to_csv(TABLE, index=False)


if __name__ == "__main__" and not TABLE.exists():
    main()
