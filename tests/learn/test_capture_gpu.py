"""Captured steps on a GPU: `make gpu` runs these, on a machine that has one."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_engine import fit, weights
from torch import Tensor

from mnist_ray.config import Recipe
from mnist_ray.learn import capture
from mnist_ray.learn.capture import Captured, Graphs
from mnist_ray.learn.data import Mnist

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")

# 156 batches and one of 16 images an epoch. From the middle of the second epoch, images stay as
# they are, which is another graph.
ALL = Recipe(epochs=3, train_size=10_000, holdout=1000, lr=0.05, schedule="one-cycle", dropout=0.2)
ALL = ALL.replace(rotation=8, shift=1.5, scale=0.1, augment_until=0.5, weight_decay=1e-4)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an element for each graph that is captured."""
    found: list[int] = []
    real = Graphs.capture

    def counting(self: Graphs, function: Callable[[], None]) -> Callable[[], None]:
        found.append(1)
        return real(self, function)

    monkeypatch.setattr(capture.Graphs, "capture", counting)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"precision": "bf16", "batch_size": 512, "nesterov": True, "label_smoothing": 0.1},
        {"precision": "fp32", "batch_norm": False, "momentum": 0},
        {"precision": "bf16", "augment_until": 0},
    ],
)
def test_a_captured_run_has_the_bits_of_one_without(
    mnist: Mnist, captures: list[int], changes: dict[str, Any]
) -> None:
    """Would show that the graph computes what Python's calls do: batches, augmentation, dropout's
    masks, momentum, learning rate and totals, across epochs and with a smaller last batch."""
    config = ALL.replace(**changes)
    called, rows, states = fit(config, mnist, device=GPU, captured=False)
    assert not captures
    replayed, same, ends = fit(config, mnist, device=GPU)
    assert len(captures) == (1 if config.augment_until == 0 else 2)
    assert torch.equal(weights(called), weights(replayed))
    for name in ("lr", "train_loss", "train_accuracy", "loss", "accuracy"):
        assert [row[name] for row in rows] == [row[name] for row in same]
    before, after = states[3]["optimizer"]["state"], ends[3]["optimizer"]["state"]
    for index in before:
        assert torch.equal(before[index]["momentum_buffer"], after[index]["momentum_buffer"])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("epoch", [1, 2])
def test_a_resumed_captured_run_ends_with_the_same_bits(
    mnist: Mnist, captures: list[int], precision: str, epoch: int
) -> None:
    """Would show that a graph captured in a later epoch, on the momentum of a checkpoint and with
    that epoch's seed, goes on as the first run's graph did."""
    config = ALL.replace(precision=precision)
    whole, _, states = fit(config, mnist, device=GPU)
    resumed, _, _ = fit(config, mnist, device=GPU, start=states[epoch])
    assert captures
    assert torch.equal(weights(whole), weights(resumed))


def test_each_replay_draws_another_mask() -> None:
    """Would show that dropout's masks are not frozen in the graph, are those of calls without one,
    and follow a seed that is set between two replays."""
    ones, mask = torch.ones(64, device=GPU), torch.empty(64, device=GPU)

    def step(positions: Tensor, global_size: int, numbers: Tensor | None, lr: Any) -> None:
        mask.copy_(F.dropout(ones, 0.5))

    def masks(function: capture.Step) -> list[Tensor]:
        found = []
        for call in range(12):
            if call % 6 == 0:
                torch.manual_seed(call)
            function(torch.zeros(64, device=GPU), 64, None, torch.zeros((), device=GPU))
            found.append(mask.clone())
        return found

    called, replayed = masks(step), masks(Captured(step, 64, Graphs(GPU)))
    assert len({tuple(each.tolist()) for each in replayed}) == 12
    assert all(torch.equal(*pair) for pair in zip(called, replayed, strict=True))


def test_runs_after_each_other_have_the_same_bits_and_leave_no_memory(mnist: Mnist) -> None:
    """Would show that a run frees its graph, and that nothing of it reaches into the next run."""
    ends, held = [], []
    for _ in range(3):
        network, _, _ = fit(ALL.replace(epochs=1), mnist, device=GPU)
        ends.append(weights(network).cpu())
        del network
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
    assert held[1] == held[2]


def test_it_stops_when_the_loss_is_not_finite(mnist: Mnist) -> None:
    """Would show that the totals of replayed steps are seen while they run."""
    config = Recipe(lr=10, momentum=0.99, batch_norm=False, epochs=5, train_size=10_000)
    _, rows, _ = fit(config, mnist, device=GPU)
    assert len(rows) < 5
