"""Train once: `python -m mnist_ray.train`. Reads the flags and calls `cluster.train`."""

from argparse import ArgumentParser
from collections.abc import Sequence

from mnist_ray import errors, terminal
from mnist_ray.config import Recipe, Resources, TrainRunConfig

CLASSES = (Recipe, Resources, TrainRunConfig)
DESCRIPTION = "Train the network once; without flags, with the reference recipe."


def parser() -> ArgumentParser:
    return terminal.flags_parser("train", *CLASSES, description=DESCRIPTION)


def main(argv: Sequence[str]) -> None:
    recipe, needs, run = terminal.parse_flags(argv, "train", *CLASSES, description=DESCRIPTION)
    show = terminal.TrainingDisplay()
    with show.waiting("loading PyTorch and Ray"):  # after the flags, because it takes seconds
        from mnist_ray.cluster import train
    train(recipe, needs, run, show)


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
