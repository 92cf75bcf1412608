"""The last lines of the display of a training run, which say how each score came about."""

from pathlib import Path
from typing import Literal

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


def test_a_field_that_has_no_words_of_its_own_is_described_by_its_name() -> None:
    class Wider(Recipe):
        network: Literal["cnn", "wide"] = "cnn"
        clip_norm: float | None = None
        fancy: bool = False

    usual = "lr 0.01, constant, momentum 0.9, batch 64, 20 epochs, dropout 0.1, seed 0"
    assert training.described_recipe(Wider()) == training.described_recipe(Recipe()) == usual
    said = training.described_recipe(Wider(network="wide", clip_norm=0.5, fancy=True))
    assert "network wide, clip norm 0.5, fancy True, seed 0" in said
    assert "wide" not in training.described_recipe(Wider(network="wide"), without=["network"])


def test_a_field_that_changes_nothing_is_not_described_unless_a_trial_may_use_it() -> None:
    recipe = Recipe(augment_until=0.5)
    assert training.described_recipe(recipe) == training.described_recipe(Recipe())
    assert "augment until 0.5" in training.described_recipe(recipe.replace(shift=2))
    assert "augment until 0.5" in training.described_recipe(recipe, without=["rotation"])
