"""Train once: `python -m mnist_ray.train`. Reads the flags and calls `cluster.train`."""

from collections.abc import Sequence

from mnist_ray import errors, terminal
from mnist_ray.config import Recipe, Resources, TrainRunConfig


def main(argv: Sequence[str]) -> None:
    recipe, needs, run = terminal.parse_flags(
        argv,
        "train",
        Recipe,
        Resources,
        TrainRunConfig,
        description="Train the network once; without flags, with the reference recipe.",
    )
    show = terminal.TrainingDisplay()
    with show.waiting("loading PyTorch and Ray"):  # after the flags, because it takes seconds
        from mnist_ray.cluster import train
    train(recipe, needs, run, show)


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
