"""Ten-epoch runs that ask which images to train on: `python augment.py`. Writes augment.csv.

Runs that augment.csv has already are skipped. Two processes with a thread each.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from leads import MEASURED, PROTOTYPE, fitted, name, record
from torch import Tensor

from mnist_ray import data
from mnist_ray.config import TrainConfig

TABLE = Path(__file__).parent / "augment.csv"
COLUMNS = ["change", "seed", *MEASURED, "seconds"]
BASE = PROTOTYPE.replace(lr=0.15, weight_decay=1e-4, augment_until=0.7, epochs=10)
CHANGES: list[dict[str, Any]] = [
    {},
    {"elastic": 1.5},
    {"shear": 0.2},
    {"weight_decay": 4e-4},
    {"rotation": 15, "scale": 0.2},
    {"lr": 0.16, "weight_decay": 4.4e-4, "rotation": 6.7, "shift": 0.76, "augment_until": 0.91},
    {"batch_size": 32, "lr": 0.1},
    {"augment_until": 0.85},
    {"batch_size": 128, "lr": 0.2},
]
"""`shear` slants by up to so many pixels per pixel; `elastic` moves the points of a 4 x 4 mesh by
so many pixels (standard deviation), and what lies between smoothly (Simard et al., ICDAR 2003).
"""

AGAIN: list[dict[str, Any]] = [{}, {"batch_size": 128, "lr": 0.2}, {"epochs": 20}]
"""With a second seed."""


def augment(images: Tensor, config: TrainConfig, rng: torch.Generator, **more: float) -> Tensor:
    """`data.augment`, with `shear` and `elastic` besides."""
    n = len(images)
    amount = torch.rand(5, n, generator=rng).mul_(2).sub_(1)
    angle = amount[0] * math.radians(config.rotation)
    zoom = 1 / (1 + amount[1] * config.scale)
    move = amount[2:4] * config.shift * 2 / 28
    slant = amount[4] * more.get("shear", 0)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    matrix = torch.stack(
        [
            torch.stack([cos, cos * slant - sin, move[0]], 1),
            torch.stack([sin, sin * slant + cos, move[1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    if pixels := more.get("elastic"):
        mesh = torch.randn(n, 2, 4, 4, generator=rng) * pixels * 2 / 28
        field = F.interpolate(mesh, size=(28, 28), mode="bicubic", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    background = -data.MEAN / data.STD
    return F.grid_sample(images - background, grid, align_corners=False) + background


def run(job: tuple[dict[str, Any], int]) -> dict[str, Any]:
    change, seed = job
    fields = dict(change)
    more = {each: fields.pop(each) for each in ("shear", "elastic") if each in fields}
    if more:
        data.augment = lambda images, config, rng: augment(images, config, rng, **more)
    config = BASE.replace(seed=seed, **fields)
    return {"change": name(change), "seed": seed, **fitted(config)[0]}


if __name__ == "__main__":
    jobs = [(change, 1) for change in CHANGES] + [(change, 2) for change in AGAIN]
    record(TABLE, COLUMNS, run, {(name(job[0]), str(job[1])): job for job in jobs})
