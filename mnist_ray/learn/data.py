"""MNIST in memory: 70,000 images as uint8, how they are split, and which of them make a batch.

Getting the files onto the disk is `fetch.py`'s. Reading them takes a tenth of a second and the
whole set is 55 MB, so there is no DataLoader: a batch is an index into one tensor.
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
"""Of the training pixels, scaled to 0..1."""

SPLIT_SEED = 0
"""The same images are held out whatever a run's seed, so that runs can be compared."""


class Mnist(NamedTuple):
    """The raw set as NumPy arrays, which Ray's object store shares between processes unpickled.

    Images are uint8 (n, 28, 28), labels uint8 (n,).
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


class Part(NamedTuple):
    """Some images of a set: `images` uint8 (n, 28, 28), `labels` uint8 (n,), `indices` int64."""

    images: Tensor
    labels: Tensor
    indices: Tensor

    def to(self, device: torch.device) -> "Part":
        return Part(*(tensor.to(device) for tensor in self))

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (b, 1, 28, 28) float32 and labels (b,) int64 at `positions`."""
        chosen = self.indices[positions]
        return normalise(self.images[chosen]), self.labels[chosen].long()


class Splits(NamedTuple):
    """What a run trains on, and what it is scored on after each epoch.

    `score` is the holdout, or the test set where nothing is held out; `scored_on` says which.
    """

    train: Part
    score: Part
    scored_on: Literal["holdout", "test"]
    hash: str

    def to(self, device: torch.device) -> "Splits":
        return self._replace(train=self.train.to(device), score=self.score.to(device))


def load(recipe: Recipe, data_dir: Path) -> Mnist:
    """Return the images that `recipe` learns from, fetched into `data_dir` first if they are not
    there; raises UserError."""
    files = fetch(recipe, data_dir)
    # An IDX file is a header (16 bytes before images, 8 before labels), then the bytes themselves.
    images = [np.frombuffer(files[name], np.uint8, offset=16) for name in FILES if "idx3" in name]
    labels = [np.frombuffer(files[name], np.uint8, offset=8) for name in FILES if "idx1" in name]
    train, test = (array.reshape(-1, 28, 28) for array in images)
    return Mnist(train, labels[0], test, labels[1])


def split(mnist: Mnist, holdout: int, train_size: int | None = None) -> Splits:
    """Cut the training set into a holdout and what is trained on, both stratified by label."""
    order = stratified_order(mnist.train_labels)
    held_out = np.sort(order[:holdout])
    end = None if train_size is None else holdout + train_size
    trained_on = np.sort(order[holdout:end])
    digest = hashlib.sha256(held_out.astype("<i8").tobytes() + b"|")
    digest.update(trained_on.astype("<i8").tobytes())
    train = _part(mnist.train_images, mnist.train_labels, trained_on)
    score = _part(mnist.train_images, mnist.train_labels, held_out) if holdout else test_part(mnist)
    return Splits(train, score, "holdout" if holdout else "test", digest.hexdigest()[:16])


def test_part(mnist: Mnist) -> Part:
    return _part(mnist.test_images, mnist.test_labels, np.arange(len(mnist.test_labels)))


def stratified_order(labels: np.ndarray) -> np.ndarray:
    """A fixed random order in which every prefix has each label in its share, to within one image.

    The j-th image of a class of size n sorts at (j + 0.5) / n.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(place, kind="stable")


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
    """This worker's positions in each global batch of one epoch, and that global batch's size.

    The order depends on (seed, epoch) alone; each worker takes every `world_size`-th position, so
    all workers together see the batches that one would. At most `world_size - 1` images at the
    epoch's end are left out, where they would leave a worker without any.
    """
    order = torch.randperm(n, generator=generator(seed, epoch)).to(device)
    for start in range(0, n, batch_size):
        batch = order[start : start + batch_size]
        if len(batch) >= world_size:
            yield batch[rank::world_size], len(batch)


def steps_per_epoch(n: int, batch_size: int, world_size: int) -> int:
    """How many batches `batches` yields."""
    return n // batch_size + (n % batch_size >= world_size)


def generator(*key: int) -> torch.Generator:
    """A random number generator that is a function of `key`, such as (seed, epoch, rank)."""
    return torch.Generator().manual_seed(derive_seed(*key))


def derive_seed(*key: int) -> int:
    """A seed for `key`, well mixed; another for any other key."""
    # The length goes in too, because SeedSequence takes no notice of zeros at the end.
    return int(
        np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def normalise(images: Tensor) -> Tensor:
    """uint8 (b, 28, 28) to float32 (b, 1, 28, 28) of mean 0 and variance 1 over MNIST."""
    return images.unsqueeze(1).float().sub_(255 * MEAN).div_(255 * STD)


def _part(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> Part:
    with warnings.catch_warnings():
        # Arrays from the object store are read-only, and nothing here writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return Part(torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(indices))
