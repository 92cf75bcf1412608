"""Many trainings at a time on one GPU: `python plan.py 1 | python many.py 1 [--teachers N]`.

Reads a run's fields per line, as JSON; runs.csv gets a row for each run as it ends. A step of this
network is some 150 small kernels, which take longer to launch one by one than to compute. Here each
run's steps are recorded once as a CUDA graph, on a stream of its own, and replayed; what differs
from step to step lies in tensors that the graph reads. The network, its optimizer and what it is
trained on are those of mnist_ray, written anew because a graph can hold neither Python's branches
nor its random numbers. On a CPU the same steps run without a graph.
"""

import argparse
import csv
import json
import math
import random
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray import data
from mnist_ray.config import RunConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
UNROLL = 4
"""Steps in a graph; an epoch leaves out what does not fill one."""

RUNS = Path(__file__).parent / "runs.csv"
MEASURED = ["train_loss", "holdout_loss", "holdout_accuracy"]
MEASURED += ["recalibrated_loss", "recalibrated_accuracy"]

DRAIN = 85
"""Seconds that runs may go on after the time is up."""

BACKGROUND = -data.MEAN / data.STD

BASE: dict[str, Any] = {
    # experiments/best.yaml
    "lr": 0.21,
    "momentum": 0.9,
    "weight_decay": 1.9e-4,
    "batch_size": 64,
    "rotation": 8.3,
    "shift": 1.6,
    "scale": 0.1,
    "augment_until": 0.98,
    "epochs": 20,
    "seed": 0,
    "label_smoothing": 0.0,
    # What else is drawn from images: the height alone is resized by up to `stretch`, slanted by up
    # to `shear` pixels per pixel, points of a 5 x 5 mesh are moved by `elastic` pixels (standard
    # deviation), strokes thickened or thinned by up to `thickness` of what a 3 x 3 maximum or
    # minimum does, a square of `cutout` pixels made background. All amounts end at 1 - `fade` of
    # their size.
    "stretch": 0.0,
    "shear": 0.0,
    "elastic": 0.0,
    "thickness": 0.0,
    "cutout": 0,
    "fade": 0.0,
    "bicubic": False,
    # The loss: `margin` is taken off the label's logit, errors are weighted by (1 - p)^`focal`.
    "margin": 0.0,
    "focal": 0.0,
    # A teacher of networks 4 times as wide has `share` of the loss at `temperature`: of the same
    # augmented image (online), or its mean over 8 augmentations of the image (fixed).
    "teacher": "none",
    "temperature": 1.0,
    "share": 0.9,
    # The first weights (default, orthogonal, kaiming), the share of the run in which the rate
    # rises, whether it falls as a cosine, whether batch norm's weights decay, sgd or adamw.
    "init": "default",
    "warm_up": 0.25,
    "cosine": False,
    "norm_decay": True,
    "optimizer": "sgd",
    # Times as many channels everywhere.
    "width": 1,
}

Part = tuple[Tensor, Tensor]


def build(width: int, init: str) -> nn.Sequential:
    """mnist_ray's network, to logits, with `width` times its channels."""

    def block(inputs: int, outputs: int, padding: int = 0) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)
        return [convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(outputs)]

    w = width
    network = nn.Sequential(
        *block(1, 16 * w),
        *block(16 * w, 32 * w),
        nn.Conv2d(32 * w, 10 * w, 1, bias=False),
        nn.MaxPool2d(2),
        *block(10 * w, 16 * w),
        *block(16 * w, 16 * w),
        *block(16 * w, 16 * w),
        *block(16 * w, 16 * w, 1),
        nn.AvgPool2d(6),
        nn.Conv2d(16 * w, 10, 1, bias=False),
        nn.Flatten(),
    )
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            layer.num_batches_tracked = None
        if isinstance(layer, nn.Conv2d) and init == "orthogonal":
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
        elif isinstance(layer, nn.Conv2d) and init == "kaiming":
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network.to(DEVICE).to(memory_format=torch.channels_last)


def augment(
    images: Tensor, amounts: Tensor, mesh: Tensor | None, c: dict[str, Any], size: Tensor
) -> Tensor:
    """`amounts` (8, b) are uniform in -1..1, `mesh` (b, 2, 5, 5) is normal; `size` scales all."""
    angle = amounts[0] * math.radians(c["rotation"]) * size
    zoom_x = 1 / (1 + amounts[1] * c["scale"] * size)
    zoom_y = 1 / (1 + amounts[5] * c["stretch"] * size) * zoom_x if c["stretch"] else zoom_x
    move = amounts[2:4] * (c["shift"] * 2 / 28) * size
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [
            torch.stack([cos * zoom_x, -sin * zoom_x, move[0]], 1),
            torch.stack([sin * zoom_y, cos * zoom_y, move[1]], 1),
        ],
        1,
    )
    if c["shear"]:
        slant = (amounts[4] * c["shear"] * size)[:, None]
        matrix[:, 0, :2] = matrix[:, 0, :2] + slant * matrix[:, 1, :2]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    if mesh is not None:
        moves = mesh * (c["elastic"] * 2 / 28) * size
        field = F.interpolate(moves, size=(28, 28), mode="bilinear", align_corners=True)
        grid = grid + field.permute(0, 2, 3, 1)
    mode = "bicubic" if c["bicubic"] else "bilinear"
    drawn = F.grid_sample(images - BACKGROUND, grid, mode=mode, align_corners=False) + BACKGROUND
    if c["thickness"]:
        by = (amounts[6] * c["thickness"] * size)[:, None, None, None]
        thicker = F.max_pool2d(drawn, 3, 1, 1) - drawn
        thinner = drawn + F.max_pool2d(-drawn, 3, 1, 1)
        drawn = drawn + torch.where(by > 0, by * thicker, by * thinner)
    if c["cutout"]:
        pixel = torch.arange(28, device=images.device)
        reach = c["cutout"] / 2 * size
        rows = (pixel - ((amounts[6] + 1) * 14)[:, None]).abs() < reach
        columns = (pixel - ((amounts[7] + 1) * 14)[:, None]).abs() < reach
        square = (rows[:, :, None] & columns[:, None, :])[:, None]
        drawn = torch.where(square, torch.full_like(drawn, BACKGROUND), drawn)
    return drawn


class Run:
    """One training: `capture`, `advance` until it says that it is done, `finish`."""

    def __init__(
        self,
        fields: dict[str, Any],
        train: Part,
        score: Part,
        teachers: list[nn.Module],
        targets: dict[float, Tensor],
    ) -> None:
        self.c = c = {**BASE, **fields}
        self.train, self.scored = train, score
        self.teachers, self.targets = teachers, targets
        self.stream = torch.cuda.Stream() if DEVICE == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None
        torch.manual_seed(1000003 * c["seed"] + 17)
        self.network = build(c["width"], c["init"])
        self.params = list(self.network.parameters())
        self.momenta = [torch.zeros_like(p) for p in self.params]
        self.squares = [torch.zeros_like(p) for p in self.params]  # AdamW's
        self.decay = [
            c["weight_decay"] if p.ndim > 1 or c["norm_decay"] else 0.0 for p in self.params
        ]
        self.n = len(train[0])
        self.steps = self.n // c["batch_size"] // UNROLL * UNROLL
        self.total = self.steps * c["epochs"]
        self.done = 0

        def on_device(values: np.ndarray) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=DEVICE)

        share = (np.arange(self.total) + 1) / (self.total + 1)
        fall = (1 - share) / (1 - c["warm_up"])
        if c["cosine"]:
            fall = 0.5 * (1 - np.cos(np.pi * np.clip(fall, 0, 1)))
        self.rates = on_device(c["lr"] * np.where(share < c["warm_up"], share / c["warm_up"], fall))
        share = np.arange(self.total) / self.total
        size = 1 - c["fade"] * share / c["augment_until"]
        self.sizes = on_device(np.where(share < c["augment_until"], size, 0))
        k = np.arange(1, self.total + 1)
        self.unbias = on_device(np.sqrt(1 - 0.99**k) / (1 - 0.9**k))
        self.step_of_run = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.step_of_epoch = torch.zeros(1, dtype=torch.int64, device=DEVICE)
        self.order = torch.zeros(self.n, dtype=torch.int64, device=DEVICE)
        self.amounts = torch.zeros(8, self.n, device=DEVICE)
        self.mesh = torch.zeros(self.n, 2, 5, 5, device=DEVICE) if c["elastic"] else None
        self.rng = torch.Generator(DEVICE)
        self.rng.manual_seed(7919 * c["seed"] + 5)
        self.within = torch.arange(c["batch_size"], device=DEVICE)
        self.classes = torch.arange(10, device=DEVICE)
        self.loss_sum = torch.zeros((), device=DEVICE)

    def mine(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(self.stream) if self.stream else nullcontext()

    def new_epoch(self) -> None:
        self.order.copy_(torch.randperm(self.n, device=DEVICE, generator=self.rng))
        self.amounts.copy_(torch.rand(8, self.n, device=DEVICE, generator=self.rng) * 2 - 1)
        if self.mesh is not None:
            self.mesh.normal_(generator=self.rng)
        self.step_of_epoch.zero_()
        self.loss_sum.zero_()

    def step(self) -> None:
        c = self.c
        spots = self.step_of_epoch * c["batch_size"] + self.within
        chosen = self.order[spots]
        images, labels = data.normalise(self.train[0][chosen]), self.train[1][chosen]
        size = self.sizes.index_select(0, self.step_of_run).squeeze(0)
        mesh = self.mesh[spots] if self.mesh is not None else None
        images = augment(images, self.amounts[:, spots], mesh, c, size)
        with torch.autocast(DEVICE, torch.bfloat16, cache_enabled=False):
            logits = self.network(images).float()
            if c["teacher"] == "online":
                with torch.no_grad():
                    said = mean_softmax(
                        [t(images).float() for t in self.teachers], c["temperature"]
                    )
        if c["teacher"] == "fixed":
            said = self.targets[c["temperature"]][chosen]
        hot = (labels[:, None] == self.classes).float()
        hot = hot * (1 - c["label_smoothing"]) + c["label_smoothing"] / 10
        log_probs = F.log_softmax(logits - c["margin"] * hot, 1)
        each = -(hot * log_probs).sum(1)
        if c["focal"]:
            each = each * (1 - (hot * log_probs).sum(1).exp()) ** c["focal"] * 2
        loss = each.mean()
        if c["teacher"] != "none":
            soft = F.log_softmax(logits / c["temperature"], 1)
            taught = -(c["temperature"] ** 2) * (said * soft).sum(1).mean()
            loss = (1 - c["share"]) * loss + c["share"] * taught
        grads = list(torch.autograd.grad(loss, self.params))
        with torch.no_grad():
            self.update(grads, self.rates.index_select(0, self.step_of_run).squeeze(0))
            self.loss_sum += loss.detach()
            self.step_of_run += 1
            self.step_of_epoch += 1

    def update(self, grads: list[Tensor], lr: Tensor) -> None:
        decayed = torch._foreach_mul(self.params, self.decay)
        if self.c["optimizer"] == "adamw":
            torch._foreach_lerp_(self.momenta, grads, 0.1)
            torch._foreach_mul_(self.squares, 0.99)
            torch._foreach_addcmul_(self.squares, grads, grads, 0.01)
            roots = torch._foreach_sqrt(self.squares)
            torch._foreach_add_(roots, 1e-8)
            update = torch._foreach_div(self.momenta, roots)
            torch._foreach_mul_(update, self.unbias.index_select(0, self.step_of_run).squeeze(0))
            torch._foreach_add_(update, decayed)
        else:
            torch._foreach_add_(grads, decayed)
            torch._foreach_mul_(self.momenta, self.c["momentum"])
            torch._foreach_add_(self.momenta, grads)
            update = torch._foreach_add(grads, self.momenta, alpha=self.c["momentum"])  # Nesterov
        torch._foreach_mul_(update, lr)
        torch._foreach_sub_(self.params, update)

    def capture(self) -> None:
        """Record the graph. Two steps before it, which are undone, settle cuDNN's choices."""
        if not self.stream:
            return
        state = [*self.params, *self.momenta, *self.squares, *self.network.buffers()]
        state += [self.step_of_run, self.step_of_epoch]
        before = [tensor.detach().clone() for tensor in state]
        self.stream.wait_stream(torch.cuda.current_stream())
        with self.mine():
            self.new_epoch()
            for _ in range(2):
                self.step()
            self.stream.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            self.graph.capture_begin(capture_error_mode="relaxed")
            for _ in range(UNROLL):
                self.step()
            self.graph.capture_end()
            with torch.no_grad():
                for tensor, value in zip(state, before, strict=True):
                    tensor.copy_(value)
            self.stream.synchronize()  # before what was copied from is freed
        self.rng.manual_seed(7919 * self.c["seed"] + 5)

    def advance(self) -> bool:
        with self.mine():
            if self.done % self.steps == 0:
                self.new_epoch()
            if self.graph:
                self.graph.replay()
            else:
                for _ in range(UNROLL):
                    self.step()
        self.done += UNROLL
        return self.done >= self.total

    def finish(self) -> dict[str, Any]:
        """The row: scored held-out as the run left it, and with batch norm's statistics those of
        all training images."""
        with self.mine(), torch.no_grad():
            row = {**self.c, "train_loss": round((self.loss_sum / self.steps).item(), 5)}
            self.network.eval()
            row["holdout_loss"], row["holdout_accuracy"] = self.score()
            norms = [layer for layer in self.network if isinstance(layer, nn.BatchNorm2d)]
            self.network.train()
            for k, images in enumerate(self.train[0].split(5000), 1):
                for norm in norms:
                    norm.momentum = 1 / k
                self.network(data.normalise(images))
            self.network.eval()
            row["recalibrated_loss"], row["recalibrated_accuracy"] = self.score()
        self.graph = None
        return row

    def score(self) -> tuple[float, float]:
        images, labels = self.scored
        parts = [self.network(data.normalise(part)) for part in images.split(2500)]
        log_probs = F.log_softmax(torch.cat(parts), 1)
        right = (log_probs.argmax(1) == labels).float().mean().item()
        return round(F.nll_loss(log_probs, labels).item(), 6), round(right, 5)


def mean_softmax(logits: list[Tensor], temperature: float) -> Tensor:
    return sum(
        (F.softmax(each / temperature, 1) for each in logits), start=torch.zeros_like(logits[0])
    ) / len(logits)


@torch.no_grad()
def fixed_targets(teachers: list[nn.Module], train: Part) -> dict[float, Tensor]:
    """For each temperature, what the teachers say of 8 augmentations of every training image."""
    images, _ = train
    targets = {t: torch.zeros(len(images), 10, device=DEVICE) for t in (1.0, 2.0, 4.0)}
    for _ in range(8):
        for start in range(0, len(images), 2000):
            some = data.normalise(images[start : start + 2000])
            amounts = torch.rand(8, len(some), device=DEVICE) * 2 - 1
            some = augment(some, amounts, None, BASE, torch.ones((), device=DEVICE))
            with torch.autocast(DEVICE, torch.bfloat16):
                logits = [teacher(some).float() for teacher in teachers]
            for temperature, target in targets.items():
                target[start : start + 2000] += mean_softmax(logits, temperature) / 8
    return targets


@torch.no_grad()
def together(teachers: list[nn.Module], score: Part) -> dict[str, Any]:
    images, labels = score
    parts = images.split(2500)
    said = [torch.cat([F.softmax(each(data.normalise(p)), 1) for p in parts]) for each in teachers]
    mean = torch.stack(said).mean(0)
    right = (mean.argmax(1) == labels).float().mean().item()
    loss = F.nll_loss(mean.log(), labels).item()
    return {"teacher": "these", "holdout_loss": round(loss, 6), "holdout_accuracy": round(right, 5)}


def train_all(
    plan: list[dict[str, Any]], stage: int, slots: int, seconds: float, teachers_wanted: int
) -> None:
    """At most `slots` at a time. Those that are taught wait for the teachers, which are in the plan
    as runs of more width. What has not begun after `seconds` is left out."""
    splits = data.split(data.load(RunConfig().data_dir), 10_000)
    train, score = (
        (part.images[part.indices].to(DEVICE), part.labels[part.indices].long().to(DEVICE))
        for part in (splits.train, splits.score)
    )
    began = time.monotonic()
    taught = [fields for fields in plan if fields.get("teacher", "none") != "none"]
    queue = [fields for fields in plan if fields not in taught]
    active: list[Run] = []
    teachers: list[nn.Module] = []
    targets: dict[float, Tensor] = {}
    while queue or active:
        passed = time.monotonic() - began
        if passed > seconds + DRAIN:
            print(f"left unfinished: {len(active)}")
            return
        if passed > seconds and queue:
            print(f"not begun: {len(queue)}")
            queue = []
        while queue and len(active) < slots:
            active.append(Run(queue.pop(0), train, score, teachers, targets))
            active[-1].capture()
        for run in list(active):
            if not run.advance():
                continue
            active.remove(run)
            write(stage, run.finish())
            if run.c["width"] > 1:
                teachers.append(run.network.requires_grad_(False))
                if len(teachers) == teachers_wanted:
                    write(stage, together(teachers, score))
                    targets = fixed_targets(teachers, train)
                    queue = taught + queue
                    random.Random(1).shuffle(queue)
                    if DEVICE == "cuda":
                        torch.cuda.synchronize()


def write(stage: int, row: dict[str, Any]) -> None:
    with RUNS.open("a") as file:
        rows = csv.DictWriter(file, ["stage", *BASE, *MEASURED])
        if not file.tell():
            rows.writeheader()
        rows.writerow({"stage": stage, **row})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("stage", type=int)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--teachers", type=int, default=0)
    given = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    plan = [json.loads(line) for line in sys.stdin]
    train_all(plan, given.stage, given.slots, given.seconds, given.teachers)
