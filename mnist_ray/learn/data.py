"""MNIST in memory: 70,000 images as uint8, how they are split, and which of them make a batch.

There is no DataLoader. The whole set is 55 MB and read in a tenth of a second, so a batch is an
index into one tensor.
"""

import hashlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnist_ray.config import Recipe
from mnist_ray.learn.fetch import FILES, fetch

MEAN, STD = 0.1307, 0.3081
"""Mean and standard deviation of the pixels of all training images, scaled to 0..1."""

SPLIT_SEED = 0
"""Fixed, so that runs with different seeds hold out the same images and can be compared."""


class Mnist(NamedTuple):
    """All of MNIST: images uint8 (n, 28, 28), labels uint8 (n,). They are NumPy arrays, because
    processes share these through Ray's object store without a copy."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Part(NamedTuple):
    """The images at `indices`, int64 (m,), of a set: `images` uint8 (n, 28, 28), `labels` uint8
    (n,)."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Part":
        return Part(*(tensor.to(device) for tensor in self))

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return images (b, 1, 28, 28) float32, with mean 0 and variance 1 over MNIST, and labels
        (b,) int64. `positions`, int64 (b,), count within the part."""
        chosen = self.indices[positions]
        images = self.images[chosen].unsqueeze(1).float().sub_(255 * MEAN).div_(255 * STD)
        return images, self.labels[chosen].long()


class Splits(NamedTuple):
    """The part that a run trains on and the part that it is scored on after each epoch.

    `score` is the holdout, or the test set if nothing is held out; `scored_on` says which. `hash`
    tells one choice of training and holdout images from another.
    """

    train: Part
    score: Part
    scored_on: Literal["holdout", "test"]
    hash: str

    def to(self, device: torch.device) -> "Splits":
        return self._replace(train=self.train.to(device), score=self.score.to(device))


def load(recipe: Recipe, data_dir: Path) -> Mnist:
    """Read the images that `recipe` learns from, which are always MNIST's, from `data_dir`, and
    fetch them first if they are not there. Raises UserError if they cannot be fetched, or if a file
    is damaged."""
    files = fetch(recipe, data_dir)
    # An IDX file is a header, of 16 bytes before images and 8 before labels, then the values.
    images = [np.frombuffer(files[name], np.uint8, offset=16) for name in FILES if "idx3" in name]
    labels = [np.frombuffer(files[name], np.uint8, offset=8) for name in FILES if "idx1" in name]
    train, test = (array.reshape(-1, 28, 28) for array in images)
    return Mnist(train, labels[0], test, labels[1])


def split(mnist: Mnist, holdout: int, train_size: int | None = None) -> Splits:
    """Split the training set into `holdout` images to score and `train_size` to train on (None: all
    others), both stratified by label. A smaller training set is part of a larger one."""
    order = _stratified_order(mnist.train_labels)
    held_out = np.sort(order[:holdout])
    trained_on = np.sort(order[holdout:][:train_size])
    digest = hashlib.sha256(held_out.astype("<i8").tobytes() + b"|")
    digest.update(trained_on.astype("<i8").tobytes())
    train = _part(mnist.train_images, mnist.train_labels, trained_on)
    score = _part(mnist.train_images, mnist.train_labels, held_out) if holdout else test_part(mnist)
    return Splits(train, score, "holdout" if holdout else "test", digest.hexdigest()[:16])


def test_part(mnist: Mnist) -> Part:
    """Return the whole test set."""
    return _part(mnist.test_images, mnist.test_labels, np.arange(len(mnist.test_labels)))


def unlabelled(images: np.ndarray) -> Part:
    """Return a part of all `images`, uint8 (n, 28, 28), to be predicted; its labels are all 0."""
    return _part(images, np.zeros(len(images), np.uint8), np.arange(len(images)))


def _stratified_order(labels: np.ndarray) -> np.ndarray:
    """Return the indices of `labels` in a fixed random order, of which every prefix has each label
    as often as the whole set in proportion, to within one image."""
    rng = np.random.default_rng(SPLIT_SEED)
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(quantile, kind="stable")


def batches(
    n: int,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, int]]:
    """Yield this worker's positions, int64, in each global batch of one epoch, and the size of that
    global batch.

    The order of the `n` positions depends on (seed, epoch) alone. A worker takes every
    `world_size`-th position of a batch, so all workers together see the batches that one worker
    would see alone. A last batch of fewer images than workers is left out.
    """
    order = torch.randperm(n, generator=generator(seed, epoch)).to(device)
    for start in range(0, n, batch_size):
        batch = order[start : start + batch_size]
        if len(batch) >= world_size:
            yield batch[rank::world_size], len(batch)


def steps_per_epoch(n: int, batch_size: int, world_size: int) -> int:
    """Return how many batches `batches` yields."""
    return n // batch_size + (n % batch_size >= world_size)


def generator(*key: int) -> torch.Generator:
    """Return a random number generator seeded by `key`, such as (seed, epoch, rank)."""
    return torch.Generator().manual_seed(derive_seed(*key))


def derive_seed(*key: int) -> int:
    """Return a seed below 2**63 for `key`; other keys give unrelated seeds."""
    # The length of the key is part of it, because SeedSequence ignores zeros at the end.
    sequence = np.random.SeedSequence((len(key), *key))
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1


def _part(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Part:
    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return Part(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(indices))
