"""Score a checkpoint, image by image."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mnist_ray import errors
from mnist_ray.learn import checkpoint, data, engine, model
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place


class Report(NamedTuple):
    """`confusion[i, j]` counts images of digit i taken for j; `wrong` are (index, label, guess,
    probability of the guess), the most confident first."""

    score: engine.Score
    confusion: Tensor
    wrong: list[tuple[int, int, int, float]]


def load_model(saved: checkpoint.Checkpoint) -> nn.Sequential:
    """The trained network of a checkpoint, in eval mode; raises UserError if the weights are not
    those of the network that its recipe builds."""
    network = model.build(saved.recipe)
    try:
        network.load_state_dict(saved.state["model"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"checkpoint holds other weights than its recipe asks for: {str(error)[:200]}"
        ) from None
    return network.eval()


def score_test(folder: Place, mnist: Mnist) -> engine.Score:
    """Score a checkpoint on the test set."""
    return engine.evaluate(load_model(checkpoint.load(folder)), data.test_part(mnist))


def report(network: nn.Module, part: data.Part) -> Report:
    score = engine.evaluate(network, part)
    probabilities, guesses = engine.predict(network, part).exp().max(dim=1)
    labels = part.labels[part.indices].long()
    confusion = torch.zeros(10, 10, dtype=torch.int64)
    confusion.index_put_((labels, guesses), torch.ones_like(labels), accumulate=True)
    missed = torch.nonzero(guesses != labels).flatten()
    worst = missed[probabilities[missed].argsort(descending=True)]
    wrong = [
        (int(part.indices[i]), int(labels[i]), int(guesses[i]), float(probabilities[i]))
        for i in worst
    ]
    return Report(score, confusion, wrong)


def predictions(network: nn.Module, part: data.Part) -> dict[str, list[Any]]:
    """What `network` takes every image of `part` for: the columns of tables.PREDICTION_COLUMNS."""
    probabilities, guesses = engine.predict(network, part).exp().max(dim=1)
    labels = part.labels[part.indices]
    images = part.images[part.indices]
    wrong = guesses != labels
    return {
        "index": part.indices.tolist(),
        "label": labels.tolist(),
        "guess": guesses.tolist(),
        "probability": probabilities.tolist(),
        "image": [images[i].numpy().tobytes() if wrong[i] else None for i in range(len(labels))],
    }
