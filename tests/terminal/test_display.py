"""The last lines of the display of a training run, which say how each score came about."""

from pathlib import Path

import pytest

from mnist_ray import tables
from mnist_ray.config import Recipe
from mnist_ray.terminal import training


def last_lines(capsys: pytest.CaptureFixture[str], scored_on: str, **more: float) -> str:
    """Return what the display prints at the end of a run of three epochs, scored on `scored_on`."""
    epochs = [
        {
            **{"epoch": i, "scored_on": scored_on, "accuracy": accuracy, "loss": 0.1},
            **{"train_loss": 0.1, "train_seconds": 1.0, "images_per_second": 1.0},
        }
        for i, accuracy in enumerate([0.9, 0.97, 0.96], 1)
    ]
    recipe = Recipe(epochs=3, holdout=100 if scored_on == "holdout" else 0)
    more |= {"total_seconds": 3.0, "checkpoint": "c"}
    row = tables.trial_row(recipe.model_dump(), epochs, **more)
    training.Training().end(row, Path("a"), last=Path("a/c"))
    return capsys.readouterr().out


def test_the_test_set_was_scored_after_every_epoch_where_nothing_is_held_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = last_lines(capsys, "test")
    assert (
        "ok: test accuracy 96.00% after the last epoch, 97.00% at its best (epoch 2), scored after"
        " every epoch\n" in said
    )
    assert "scored once" not in said


def test_the_test_set_was_scored_once_where_images_are_held_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = last_lines(capsys, "holdout", test_accuracy=0.955)
    assert "ok: held-out accuracy 96.00% after the last epoch" in said
    assert "test accuracy 95.50% after the last epoch, scored once\n" in said
