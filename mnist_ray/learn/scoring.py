"""What a trained network makes of images: its score, its errors, its guess for each image."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mnist_ray.errors import UserError
from mnist_ray.learn import checkpoint, data, engine, model
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place


class Report(NamedTuple):
    """A score with its errors. `confusion[i, j]`, int64 (10, 10), counts images of digit i that the
    network takes for j. `wrong` has (index, label, guess, probability of the guess) of each error,
    the most confident first."""

    score: engine.Score
    confusion: Tensor
    wrong: list[tuple[int, int, int, float]]


def load_model(saved: checkpoint.Checkpoint) -> nn.Sequential:
    """Return the trained network of a checkpoint, in eval mode. Raises UserError if its weights do
    not fit the network that its recipe builds."""
    network = model.build(saved.recipe)
    try:
        network.load_state_dict(saved.state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"checkpoint holds other weights than its recipe asks for: {str(error)[:200]}"
        ) from None
    return network.eval()


def score_test(folder: Place, mnist: Mnist) -> engine.Score:
    """Score the checkpoint in `folder` on the test set."""
    return engine.evaluate(load_model(checkpoint.load(folder)), data.test_part(mnist))


def report(network: nn.Module, part: data.Part) -> Report:
    """Score `network` on `part` and list its errors."""
    score, log_probs = engine.predict(network, part)
    probabilities, guesses = log_probs.exp().max(dim=1)
    labels = part.labels[part.indices].long()
    confusion = torch.bincount(10 * labels + guesses, minlength=100).reshape(10, 10)
    errors = torch.nonzero(guesses != labels).flatten()
    worst = errors[probabilities[errors].argsort(descending=True)]
    wrong = [
        (int(part.indices[i]), int(labels[i]), int(guesses[i]), float(probabilities[i]))
        for i in worst
    ]
    return Report(score, confusion, wrong)


def guesses(network: nn.Module, images: np.ndarray) -> list[tuple[int, float]]:
    """Return the digit that `network` takes each of the images for, uint8 (n, 28, 28), and its
    probability, 0 to 1."""
    unknown = np.zeros(len(images), np.uint8)
    part = data.test_part(Mnist(images, unknown, images, unknown))
    probabilities, digits = engine.predict(network, part)[1].exp().max(dim=1)
    return list(zip(digits.tolist(), probabilities.tolist(), strict=True))


def predictions(network: nn.Module, part: data.Part) -> tuple[engine.Score, dict[str, list[Any]]]:
    """Return the score of `network` on `part`, and the columns of `tables.PREDICTION_COLUMNS`, with
    a row for each image. `image` is its 784 pixels if the guess is wrong, or else None."""
    score, log_probs = engine.predict(network, part)
    probabilities, guesses = log_probs.exp().max(dim=1)
    labels = part.labels[part.indices]
    images = part.images[part.indices]
    wrong = guesses != labels
    return score, {
        "index": part.indices.tolist(),
        "label": labels.tolist(),
        "guess": guesses.tolist(),
        "probability": probabilities.tolist(),
        "image": [images[i].numpy().tobytes() if wrong[i] else None for i in range(len(labels))],
    }
