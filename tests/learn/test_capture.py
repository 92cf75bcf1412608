"""A captured step, without a GPU: a tape stands in for the CUDA graph.

The tape records each operation of PyTorch that a step calls, and plays them again on the same
memory. So, like a graph, it repeats all that Python decided, and reads nothing but tensors.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
import torch
from test_engine import fit, weights
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mnist_ray.config import Recipe
from mnist_ray.learn import capture, engine, kernels, model
from mnist_ray.learn import recipe as defaults
from mnist_ray.learn.data import Mnist

READS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::lift_fresh")
"""Operations in which Python reads a tensor, or makes one of its own numbers. A GPU waits there."""


class Tape(TorchDispatchMode):
    """Records operations as they run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None):
        assert operation.name().split(".")[0] not in READS, f"{operation} waits for the GPU"
        results = operation(*args, **(kwargs or {}))
        self.calls.append((operation, args, kwargs or {}, results))
        return results

    @torch.no_grad()
    def play(self) -> None:
        for operation, args, kwargs, before in self.calls:
            inputs = {memory(tensor) for tensor in tensors((args, kwargs))}
            again = operation(*args, **kwargs)
            for old, new in zip(tensors(before), tensors(again), strict=True):
                if memory(old) not in inputs:
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tapes:
    """Has the methods of `capture.Graphs`. A step that is taped has an effect, which one that is
    captured has not, so a tape is first played when it is asked for the second time."""

    made: ClassVar[list[Tape]] = []

    def __init__(self, device: torch.device) -> None:
        Tapes.made.clear()

    def run(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        tape, asked = Tape(), itertools.count()
        with tape:
            function()
        Tapes.made.append(tape)
        return lambda: tape.play() if next(asked) else None


@pytest.fixture(autouse=True)
def taped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Capture with tapes, and compute with PyTorch's layers, as on a GPU."""
    monkeypatch.setattr(engine, "Graphs", Tapes)
    monkeypatch.setattr(kernels, "fits", lambda x: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a batch of 8 images is too few for more
    yield
    torch.set_num_threads(threads)


# Six batches and a smaller one an epoch; from the middle of the second, images stay as they are.
BASE = Recipe(epochs=3, train_size=53, batch_size=8, holdout=20, rotation=9, shift=1)
BASE = BASE.replace(augment_until=0.45, schedule="one-cycle", lr=0.05)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp32", "nesterov": True, "weight_decay": 1e-3, "label_smoothing": 0.1},
        {"precision": "fp32", "momentum": 0, "batch_norm": False, "augment_until": 1},
    ],
)
def test_a_replayed_step_has_the_bits_of_a_called_one(small: Mnist, changes: dict) -> None:
    config = BASE.replace(**changes)
    called, rows, states = fit(config, small)
    replayed, same, ends = fit(config, small, captured=True)
    assert len(Tapes.made) == (1 if config.augment_until == 1 else 2)
    assert torch.equal(weights(called), weights(replayed))
    for name in ("lr", "train_loss", "train_accuracy", "loss"):
        assert [row[name] for row in rows] == [row[name] for row in same]
    assert states[3]["optimizer"]["param_groups"] == ends[3]["optimizer"]["param_groups"]
    resumed, _, _ = fit(config, small, captured=True, start=states[1])
    assert torch.equal(weights(called), weights(resumed))


def read(recipe: Recipe, log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.sum() * (1 if log_probs.sum().item() else 2)


def made_of_a_number(recipe: Recipe, log_probs: Tensor, labels: Tensor) -> Tensor:
    return log_probs.sum() * torch.tensor(-1.0)


@pytest.mark.parametrize("loss", [read, made_of_a_number])
def test_a_step_for_which_a_gpu_would_wait_cannot_be_captured(small: Mnist, loss: Any) -> None:
    fit(BASE, small, loss=loss)
    with pytest.raises(AssertionError, match="waits for the GPU"):
        fit(BASE, small, loss=loss, captured=True)


def test_what_python_decides_is_fixed_in_a_captured_step(small: Mnist) -> None:
    """So no part is captured unasked that is not the recipe's own."""
    calls = []

    def loss(recipe: Recipe, log_probs: Tensor, labels: Tensor) -> Tensor:
        calls.append(1)
        return defaults.loss(recipe, log_probs, labels) * len(calls)

    one = BASE.replace(epochs=1, augment_until=1)
    called, _, _ = fit(one, small, loss=loss)
    assert len(calls) == 7
    calls.clear()
    replayed, _, _ = fit(one, small, loss=loss, captured=True)
    assert len(calls) == 3 + 1 + 1  # to warm up, to capture, and the smaller batch
    assert not torch.equal(weights(called), weights(replayed))


def test_what_is_captured_unasked() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    own = (model.build, defaults.loss, defaults.optimizer, defaults.augment)
    assert engine._can_capture(gpu, 1, own)
    assert not engine._can_capture(cpu, 1, own)
    assert not engine._can_capture(gpu, 2, own)
    for index in range(len(own)):
        other = (*own[:index], read, *own[index + 1 :])
        assert not engine._can_capture(gpu, 1, other)


def test_what_cannot_be_captured_is_refused(small: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "Graphs", capture.Graphs)
    with pytest.raises(ValueError, match="on CUDA, not on cpu"):
        fit(BASE, small, captured=True)
    with pytest.raises(ValueError, match="2 workers"):
        fit(BASE, small, captured=True, world_size=2)
