"""Compare the training loop with a plain PyTorch loop, a resumed run, and a run of two workers."""

import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.config import Recipe
from mnist_ray.learn import data, engine, model, process, recipe
from mnist_ray.learn.data import Mnist

CPU = torch.device("cpu")


def fit(config: Recipe, mnist: Mnist, **options: Any) -> tuple[nn.Module, list[dict], dict]:
    """Return the trained network, each epoch's metrics, and a copy of each epoch's state."""
    metrics, states = [], {}

    def on_epoch(row: engine.Metrics, state: engine.State) -> None:
        metrics.append(row)
        states[row["epoch"]] = torch.load(_saved(state), weights_only=True)

    splits = data.split(mnist, config.holdout, config.train_size)
    return engine.fit(config, splits, on_epoch=on_epoch, **options), metrics, states


def _saved(state: engine.State) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_an_epoch_equals_an_epoch_of_a_plain_loop(small: Mnist, label_smoothing: float) -> None:
    # Three batches, the last one smaller. Over many more, rounding errors grow without bound.
    config = Recipe(
        precision="fp32",
        dropout=0,
        epochs=1,
        train_size=150,
        weight_decay=1e-3,
        label_smoothing=label_smoothing,
    )
    splits = data.split(small, 0, 150)
    trained, (metrics,), _ = fit(config, small)

    torch.manual_seed(data.derive_seed(config.seed))
    network = model.build(config)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=1e-3)
    first = weights(network)
    order = splits.train.indices[torch.randperm(150, generator=data.generator(config.seed, 1))]
    images = (torch.tensor(small.train_images).float() / 255 - 0.1307) / 0.3081
    labels = torch.tensor(small.train_labels).long()
    right = 0
    for batch in order.split(64):
        log_probs = network(images[batch].unsqueeze(1))
        right += (log_probs.argmax(1) == labels[batch]).sum().item()
        loss = F.cross_entropy(log_probs, labels[batch], label_smoothing=label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (weights(network) - first).abs().max() > 0.1
    assert torch.allclose(weights(trained), weights(network), atol=1e-4)
    assert metrics["train_accuracy"] == right / 150

    network.eval()
    with torch.no_grad():
        test = (torch.tensor(small.test_images).float() / 255 - 0.1307) / 0.3081
        log_probs = network(test.unsqueeze(1))
    loss = F.nll_loss(log_probs, torch.tensor(small.test_labels).long())
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-3)


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": "one-cycle", "nesterov": True, "rotation": 10, "augment_until": 0.5}],
)
def test_a_resumed_run_ends_with_the_same_bits(small: Mnist, changes: dict) -> None:
    config = Recipe(epochs=3, train_size=300, holdout=100, **changes)
    whole, rows, states = fit(config, small)
    resumed, later, ends = fit(config, small, start=states[1])
    assert torch.equal(weights(whole), weights(resumed))
    assert _saved(states[3]).read() == _saved(ends[3]).read()
    timeless = [key for key in rows[0] if "second" not in key]
    assert [[row[key] for key in timeless] for row in rows[1:]] == [
        [row[key] for key in timeless] for row in later
    ]


def test_it_augments_until_a_fraction_of_the_run(small: Mnist) -> None:
    config = Recipe(epochs=2, train_size=300, rotation=10, shift=2)
    plain = config.replace(rotation=0, shift=0)
    _, _, always = fit(config, small)
    half, _, states = fit(config.replace(augment_until=0.5), small)
    went_on, _, _ = fit(plain, small, start=always[1])
    for one, other in zip(states[1]["model"].values(), always[1]["model"].values(), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(weights(half), weights(went_on))
    never, _, _ = fit(config.replace(augment_until=0), small)
    assert torch.equal(weights(never), weights(fit(plain, small)[0]))


def test_the_seed_decides_the_weights(small: Mnist) -> None:
    def trained(seed: int) -> torch.Tensor:
        return weights(fit(Recipe(epochs=1, train_size=128, seed=seed), small)[0])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


def test_it_stops_when_the_loss_is_not_finite(small: Mnist) -> None:
    config = Recipe(lr=10, momentum=0.99, batch_norm=False, epochs=5, train_size=500)
    _, rows, _ = fit(config, small)
    assert not math.isfinite(rows[-1]["train_loss"])
    assert len(rows) < 5


def test_bf16_computes_with_less_precision_and_keeps_float32_weights(small: Mnist) -> None:
    config = Recipe(epochs=1, train_size=256, precision="bf16", dropout=0)
    network, (row,), states = fit(config, small)
    exact, (other,), _ = fit(config.replace(precision="fp32"), small)
    assert (row["arithmetic"], other["arithmetic"]) == ("bf16", "fp32")
    assert all(value.dtype == torch.float32 for value in network.parameters())
    assert all(value.dtype in (torch.float32, torch.int64) for value in states[1]["model"].values())
    assert (weights(network) - weights(exact)).abs().max() > 0
    assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)


@pytest.mark.parametrize("able", [True, False])
def test_auto_is_bf16_only_where_it_is_native(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"amx_bf16": able, "avx512_bf16": False}
    )
    expected = "bf16" if able else "fp32"
    assert engine.resolve_precision("auto", CPU) == expected
    assert engine.resolve_precision("fp32", CPU) == "fp32"
    assert engine.resolve_precision("bf16", CPU) == "bf16"


class TestSchedule:
    def test_constant_is_constant(self) -> None:
        assert {recipe.learning_rate(Recipe(lr=0.3), step, 10) for step in range(10)} == {0.3}

    def test_one_cycle_rises_to_its_peak_and_falls_to_nearly_zero(self) -> None:
        config = Recipe(lr=0.4, schedule="one-cycle")
        rates = [recipe.learning_rate(config, step, 999) for step in range(999)]
        peak = rates.index(max(rates))
        assert peak == 249
        assert max(rates) == pytest.approx(0.4)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
        assert 0 < rates[-1] < 0.001

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_one_cycle_of_very_few_steps_stays_within_bounds(self, steps: int) -> None:
        config = Recipe(lr=0.4, schedule="one-cycle")
        assert all(0 < recipe.learning_rate(config, s, steps) <= 0.4 for s in range(steps))


# Two processes run the functions below, which must therefore be importable.


class FrozenNorm(nn.Module):
    """A wrapper that keeps batch norm in eval mode, where the result for an image does not depend
    on the other images of a worker's batch."""

    def __init__(self, network: nn.Module, parallel: nn.Module) -> None:
        super().__init__()
        self.parallel, self.norms = parallel, network
        self.train()

    def train(self, mode: bool = True) -> "FrozenNorm":
        super().train(mode)
        for layer in self.norms.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parallel(x)


def train_as(rank: int, world_size: int, config: Recipe, mnist: Mnist) -> dict[str, Any]:
    """Train one epoch as worker `rank`, and return the gradients of the first and the last step,
    the weights and the metrics."""
    networks, gradients = [], []

    def wrap(network: nn.Module) -> nn.Module:
        networks.append(network)
        parallel = DistributedDataParallel(network) if world_size > 1 else network
        return FrozenNorm(network, process.wait_awake(parallel))

    def on_step(epoch: int, step: int, steps: int) -> None:
        if step in (1, steps):
            gradients.append(torch.cat([p.grad.flatten() for p in networks[0].parameters()]))

    torch.set_num_threads(1)
    trained, (row,), _ = fit(
        config, mnist, rank=rank, world_size=world_size, wrap=wrap, on_step=on_step
    )
    return {"gradients": torch.stack(gradients), "weights": weights(trained), "metrics": row}


def worker(rank: int, folder: str, config: Recipe, mnist: Mnist) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(train_as(rank, 2, config, mnist), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_workers_train_as_one_with_the_same_global_batch(small: Mnist, tmp_path: Path) -> None:
    # 133 training images, 101 scored images and a last batch of 5: two workers share none evenly.
    config = Recipe(batch_size=64, train_size=133, epochs=1, dropout=0, precision="fp32")
    alone = train_as(0, 1, config, small)
    torch.multiprocessing.spawn(worker, (str(tmp_path), config, small), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    assert alone["gradients"].abs().max() > 0.01
    for one in both:
        assert torch.allclose(one["gradients"], alone["gradients"], atol=1e-5)
        assert torch.allclose(one["weights"], alone["weights"], atol=1e-5)
        for key in ("train_accuracy", "accuracy"):
            assert one["metrics"][key] == alone["metrics"][key]
        for key in ("train_loss", "loss"):
            assert one["metrics"][key] == pytest.approx(alone["metrics"][key], abs=1e-6)
    assert torch.equal(both[0]["weights"], both[1]["weights"])


def test_two_workers_train_with_one_image_each(small: Mnist, tmp_path: Path) -> None:
    # Two batches with an image for each worker, a fifth image left out, and one image to score.
    config = Recipe(batch_size=2, train_size=5, holdout=1, epochs=1)
    torch.multiprocessing.spawn(worker, (str(tmp_path), config, small), nprocs=2)
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(both[0]["weights"], both[1]["weights"])
    assert both[0]["metrics"]["accuracy"] in (0, 1)
    for name in ("train_loss", "loss", "accuracy"):
        assert both[0]["metrics"][name] == both[1]["metrics"][name]
        assert math.isfinite(both[0]["metrics"][name])


def wide(config: Recipe) -> nn.Module:
    """Return a network of 20 and 64 channels, which the compiled loops do not fit."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5, stride=2),
        model.ReluNormDropout(20, config.batch_norm, config.dropout),
        nn.Conv2d(20, 64, 3, stride=2),
        model.ReluNormDropout(64, config.batch_norm, config.dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
        nn.LogSoftmax(dim=1),
    )


def adamw(config: Recipe, parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


def test_the_loop_takes_another_network_optimizer_loss_schedule_and_augmentation(
    mnist: Mnist,
) -> None:
    called = set()

    def squared(config: Recipe, log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        called.add("loss")
        return (log_probs.exp() - F.one_hot(labels.long(), 10)).square().sum()

    def halved(config: Recipe, step: int, steps: int) -> float:
        called.add("schedule")
        return config.lr if step < steps / 2 else config.lr / 2

    def noisy(config: Recipe, images: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        called.add("augment")
        return images + 0.1 * numbers[0].view(-1, 1, 1, 1) * torch.randn_like(images)

    config = Recipe(lr=0.01, train_size=4000, holdout=1000, epochs=2, precision="fp32")
    others = {"network": wide, "optimizer": adamw, "loss": squared}
    others |= {"schedule": halved, "augment": noisy}
    network, rows, states = fit(config, mnist, **others)
    assert called == {"loss", "schedule", "augment"}
    assert rows[1]["lr"] == 0.005
    assert rows[1]["accuracy"] > 0.85
    # They resume as the recipe's own do.
    again, _, _ = fit(config, mnist, start=states[1], **others)
    assert torch.equal(weights(again), weights(network))


def test_timing_a_few_steps_leaves_the_process_as_it_was(small: Mnist) -> None:
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    recipe = Recipe(train_size=200, holdout=101, batch_size=50)
    for each in (recipe, recipe.replace(train_size=50)):  # one step may be all there is
        seconds = engine.seconds_per_image(each, small, 1)
        assert 1e-6 < seconds < 0.5
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


def test_training_imports_no_compiler_of_pytorch() -> None:
    code = """
import sys
import numpy as np
from mnist_ray import learn
from mnist_ray.config import Recipe
images, labels = np.zeros((200, 28, 28), np.uint8), np.arange(200, dtype=np.uint8) % 10
few = learn.Mnist(images, labels, images, labels)
recipe = Recipe(train_size=50, holdout=50, batch_size=50, epochs=1)
states = []
fit = lambda **more: learn.fit(
    recipe, learn.split(few, 50, 50), on_epoch=lambda metrics, state: states.append(state), **more
)
fit()
fit(start={**states[0], "epoch": 0})
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_its_optimizer_is_pytorchs(small: Mnist) -> None:
    def plain(recipe: Recipe, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters, lr=recipe.lr, momentum=recipe.momentum, nesterov=True, weight_decay=1e-4
        )

    recipe = Recipe(train_size=200, holdout=101, batch_size=50, epochs=2)
    recipe = recipe.replace(nesterov=True, weight_decay=1e-4)
    splits = data.split(small, 101, 200)
    ours = engine.fit(recipe, splits).state_dict()
    theirs = engine.fit(recipe, splits, optimizer=plain).state_dict()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
