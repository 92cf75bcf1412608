"""Train two wide teachers, and ten small networks by what they say: `python taught.py FOLDER`.

Knowledge distillation (Hinton, Vinyals, Dean, arXiv:1503.02531, section 2) with a teacher that sees
the same augmented image as the student (Beyer et al., arXiv:2106.05237). The teachers are asked
once: every student sees the same 20 augmentations of each training image, one per epoch, in an
order of its own, and FOLDER keeps what the teachers say of them. A student's images and network
are best.yaml's, and its loop is mnist_ray's. Writes seeds.csv, and skips what is there already.
"""

import csv
import functools
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent / "2026-11-26_many-runs"))
import many

from mnist_ray import data, engine, process
from mnist_ray.config import RunConfig, TrainConfig
from mnist_ray.data import Part

TABLE = Path(__file__).parent / "seeds.csv"
COLUMNS = ["seed", "epochs", "precision", "arithmetic", "test_loss", "test_accuracy", "seconds"]
BEST = yaml.safe_load((Path(__file__).parent.parent / "best.yaml").read_text())
STUDENT = TrainConfig(**BEST, holdout=0, precision="bf16")
TEACHER = STUDENT.replace(
    lr=0.1, weight_decay=5e-4, rotation=10, scale=0.12, augment_until=1, epochs=12
)
WIDTH = 4
SEEDS = range(410, 420)
TEACHER_SEEDS = (401, 402)
BANK_SEED = 400
TEMPERATURE = 4.0
SHARE = 0.9


def wide(config: TrainConfig) -> nn.Sequential:
    """The network with four times its channels: 214,592 parameters."""
    return nn.Sequential(*many.build(WIDTH, "default"), nn.LogSoftmax(1))


def train_teacher(job: tuple[int, Path]) -> None:
    seed, path = job
    process.prepare(1)
    splits = data.split(data.load(RunConfig().data_dir), 0)
    # A teacher has no need of the test set.
    splits = splits._replace(score=splits.train._replace(indices=splits.train.indices[:1000]))
    engine.build = wide
    network = engine.fit(TEACHER.replace(seed=seed), splits, on_epoch=tell(f"teacher {seed}"))
    torch.save(network.state_dict(), path)


class Lesson:
    """What a student is shown at each step, and what the teachers say of it."""

    def __init__(self, targets: Tensor, steps_per_epoch: int) -> None:
        self.targets, self.steps_per_epoch, self.steps = targets, steps_per_epoch, 0

    def begin(self, positions: Tensor) -> None:
        self.positions, self.variant = positions, 0
        self.steps += 1

    def augment(self, images: Tensor, config: TrainConfig, rng: torch.Generator) -> Tensor:
        """In place of `data.augment`: each epoch's images as the teachers saw them."""
        self.variant = (self.steps - 1) // self.steps_per_epoch + 1
        return augmented(images, amounts(self.variant)[:, self.positions])

    def loss(self, log_probs: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """In place of the loop's, summed over the batch like that."""
        soft = F.log_softmax(log_probs.float() / TEMPERATURE, 1)
        said = self.targets[self.variant, self.positions].float()
        taught = -(TEMPERATURE**2) * (said * soft).sum()
        return (1 - SHARE) * F.nll_loss(log_probs, labels, reduction="sum") + SHARE * taught


class Taught(Part):
    """The training images, whose taking begins a step of the lesson."""

    lesson: Lesson

    def to(self, device: torch.device) -> Part:
        return self  # a copy would be a plain Part

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        self.lesson.begin(positions)
        return super().take(positions)


@functools.lru_cache(1)
def amounts(variant: int) -> Tensor:
    """How each training image is augmented in that epoch, (8, 60000) in -1..1."""
    return torch.rand(8, 60_000, generator=data.generator(BANK_SEED, variant)) * 2 - 1


def augmented(images: Tensor, amount: Tensor) -> Tensor:
    return many.augment(images, amount, None, many.BASE, torch.ones(()))


def ask(job: tuple[int, Path]) -> None:
    """Keep what the teachers say of all training images in one epoch's variant; 0 is plain."""
    variant, folder = job
    process.prepare(1)
    train = data.split(data.load(RunConfig().data_dir), 0).train
    teachers = []
    for seed in TEACHER_SEEDS:
        teachers.append(wide(TEACHER).eval())
        teachers[-1].load_state_dict(torch.load(folder / f"teacher_{seed}.pt"))
    said = []
    for positions in torch.arange(60_000).split(500):
        images, _ = train.take(positions)
        if variant:
            images = augmented(images, amounts(variant)[:, positions])
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            answers = [teacher(images).float() for teacher in teachers]
        said.append(many.mean_softmax(answers, TEMPERATURE).half())
    torch.save(torch.cat(said), folder / f"said_{variant:02}.pt")
    print("asked of variant", variant, flush=True)


def train_student(job: tuple[int, Path]) -> dict[str, Any]:
    seed, folder = job
    process.prepare(1)
    variants = range(STUDENT.epochs + 1)
    targets = torch.stack([torch.load(folder / f"said_{variant:02}.pt") for variant in variants])
    splits = data.split(data.load(RunConfig().data_dir), 0)
    train = Taught(*splits.train)
    train.lesson = Lesson(targets, data.steps_per_epoch(60_000, STUDENT.batch_size, 1))
    data.augment, engine._loss = train.lesson.augment, train.lesson.loss
    began, rows = time.perf_counter(), []

    def on_epoch(row: engine.Metrics, state: engine.State) -> None:
        rows.append(row)
        tell(f"student {seed}")(row, state)

    splits = splits._replace(train=train)
    network = engine.fit(STUDENT.replace(seed=seed), splits, on_epoch=on_epoch)
    torch.save(network.state_dict(), folder / f"student_{seed}.pt")
    last = {key: rows[-1][key] for key in ("arithmetic", "test_loss", "test_accuracy")}
    known = {"seed": seed, "epochs": rows[-1]["epoch"], "precision": STUDENT.precision}
    return {**known, **last, "seconds": round(time.perf_counter() - began)}


def tell(name: str) -> Any:
    def on_epoch(row: engine.Metrics, state: engine.State) -> None:
        shown = [f"{key} {row[key]:.5g}" for key in row if "loss" in key or "acc" in key]
        print(name, row["epoch"], *shown, f"{row['train_seconds']:.0f} s", flush=True)

    return on_epoch


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    teachers = [(seed, folder / f"teacher_{seed}.pt") for seed in TEACHER_SEEDS]
    variants = range(STUDENT.epochs + 1)
    if not TABLE.exists():
        TABLE.write_text(",".join(COLUMNS) + "\n")
    there = set(pd.read_csv(TABLE)["seed"])
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        pool.map(train_teacher, [job for job in teachers if not job[1].exists()], chunksize=1)
        unasked = [v for v in variants if not (folder / f"said_{v:02}.pt").exists()]
        pool.map(ask, [(variant, folder) for variant in unasked], chunksize=1)
        students = [(seed, folder) for seed in SEEDS if seed not in there]
        for row in pool.imap_unordered(train_student, students, chunksize=1):
            with TABLE.open("a") as file:
                csv.DictWriter(file, COLUMNS).writerow(row)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
