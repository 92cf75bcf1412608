"""The score of a network on a part of MNIST, over all workers."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ray.learn.data import Part


class Score(NamedTuple):
    """The score of all images of a part, over all workers. `loss` is the mean negative
    log-likelihood in nats, `accuracy` the fraction of correct guesses, 0 to 1.

    Each field is a metric of every epoch, and a column of the tables in tables/schema.py.
    """

    loss: float
    accuracy: float


def evaluate(model: nn.Module, part: Part, *, rank: int = 0, world_size: int = 1) -> Score:
    """Score each image of `part` once, on one of the workers, and leave `model` in eval mode."""
    return predict(model, part, rank=rank, world_size=world_size)[0]


def predict(
    model: nn.Module, part: Part, *, rank: int = 0, world_size: int = 1
) -> tuple[Score, Tensor]:
    """Return the score of `model` on `part`, over all workers, and the log-probabilities (n, 10),
    float32 on the CPU, of every image that this worker scored, in order."""
    totals = torch.zeros(3, dtype=torch.float64, device=part.images.device)
    found = []
    for log_probs, labels in _predictions(model, part, rank, world_size):
        totals += totals_of(F.nll_loss(log_probs, labels, reduction="sum"), log_probs, labels)
        found.append(log_probs.cpu())
    return score_of(totals, world_size)[0], torch.cat(found)


def _predictions(
    model: nn.Module, part: Part, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield log-probabilities and labels of the images that this worker scores."""
    model.eval()
    # These many fit a core's cache. On a GPU, few images take as long to launch as many.
    at_a_time = 250 if part.images.device.type == "cpu" else 1000
    own = torch.arange(rank, len(part.indices), world_size, device=part.images.device)
    with torch.inference_mode():
        for positions in torch.split(own, at_a_time):
            images, labels = part.take(positions)
            yield model(images), labels


def totals_of(loss: Tensor, log_probs: Tensor, labels: Tensor) -> Tensor:
    """Return float (3,): the summed loss, the number of correct guesses, the number of images."""
    correct = (log_probs.argmax(1) == labels).sum()
    return torch.stack([loss, correct, torch.full_like(correct, len(labels))])


def score_of(totals: Tensor, world_size: int) -> tuple[Score, int]:
    """Add up the workers' totals; return the score that they make, and the number of images."""
    if world_size > 1:
        dist.all_reduce(totals)
    loss, correct, images = totals.tolist()
    return Score(loss / images, correct / images), int(images)
