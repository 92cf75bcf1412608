"""Train once: `python -m mnist_ray.train`. Reads the flags; the rest is `trainer.py`."""

from collections.abc import Sequence

from mnist_ray import errors, flags
from mnist_ray.config import Recipe, Resources, RunConfig
from mnist_ray.errors import RunFailed
from mnist_ray.verdict import Status


def main(argv: Sequence[str]) -> None:
    recipe, needs, run = flags.parse(
        argv,
        "train",
        Recipe,
        Resources,
        RunConfig,
        description="Train the network once. Without flags: the reference recipe.",
    )
    from mnist_ray import display, trainer  # after the flags: torch and Ray take seconds

    row = trainer.train(recipe, needs, run, display.Training())
    if row["status"] == Status.DIVERGED:
        raise RunFailed(
            f"the loss was not finite after epoch {row['epochs_trained']}; lower the learning rate."
        )


if __name__ == "__main__":
    raise SystemExit(errors.run(main))
