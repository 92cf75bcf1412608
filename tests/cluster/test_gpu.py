"""On a GPU: `make gpu` runs these, on a machine that has one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_engine import fit, weights

from mnist_ray import tables
from mnist_ray.config import Recipe
from mnist_ray.learn import checkpoint, data, engine, scoring
from mnist_ray.learn.data import Mnist

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_ends_with_the_same_bits(mnist: Mnist, precision: str) -> None:
    config = Recipe(epochs=2, train_size=10_000, lr=0.05, rotation=10, precision=precision)
    whole, _, states = fit(config, mnist, device=GPU)
    resumed, _, _ = fit(config, mnist, device=GPU, start=states[1])
    assert torch.equal(weights(whole), weights(resumed))


def test_it_computes_what_the_cpu_does(mnist: Mnist) -> None:
    config = Recipe(epochs=1, train_size=150, dropout=0, precision="fp32", rotation=8, scale=0.1)
    there, (row,), _ = fit(config, mnist, device=GPU)
    here, (same,), _ = fit(config, mnist)
    assert torch.allclose(weights(there).cpu(), weights(here), atol=1e-4)
    assert row["train_loss"] == pytest.approx(same["train_loss"], abs=1e-4)


def test_a_network_scores_the_same_on_both(mnist: Mnist) -> None:
    config = Recipe(epochs=1, train_size=10_000, lr=0.05, precision="bf16")
    network, _, _ = fit(config, mnist, device=GPU)
    part = data.test_part(mnist)
    there, here = engine.evaluate(network, part.to(GPU)), engine.evaluate(network.cpu(), part)
    assert there.accuracy == here.accuracy > 0.9
    assert there.loss == pytest.approx(here.loss, abs=1e-5)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("train", ["--epochs", "2"]),
        ("train", ["--epochs", "1", "--no-in-process"]),
        ("tune", ["--num-trials", "2", "--scheduler", "fifo", "--epochs", "1", "--confirm", "0"]),
    ],
)
def test_a_command_trains_on_it(
    command: str, flags: list[str], tmp_path: Path, mnist: Mnist
) -> None:
    where = ["--use-gpu", "--train-size", "10000", "--storage", str(tmp_path), "--name", "run"]
    subprocess.run([sys.executable, "-m", f"mnist_ray.{command}", *flags, *where], check=True)
    rows = tables.read(tmp_path / "run", tables.TRIALS).to_pylist()
    assert {row["device"] for row in rows} == {"cuda"}
    for row in rows:
        saved = checkpoint.load(tmp_path / "run" / row["checkpoint"])
        part = data.split(mnist, saved.recipe.holdout).score
        score = engine.evaluate(scoring.load_model(saved), part)
        assert score.accuracy == row["best_accuracy"] > 0.9


def test_a_trial_that_shares_a_gpu_has_the_bits_of_one_alone(tmp_path: Path, mnist: Mnist) -> None:
    """Would show that what a trial computes does not depend on its neighbours."""
    study = ["--num-trials", "3", "--trials-per-gpu", "3", "--scheduler", "fifo", "--confirm", "0"]
    small = ["--use-gpu", "--epochs", "1", "--train-size", "10000", "--no-base"]
    where = ["--storage", str(tmp_path), "--name", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray.tune", *study, *small, *where],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "3 at a time" in done.stdout
    assert "1/3 of a GPU" in done.stdout
    rows = tables.read(tmp_path / "run", tables.TRIALS).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3
    for row in rows:
        saved = checkpoint.load(tmp_path / "run" / row["checkpoint"])
        alone, _, _ = fit(saved.recipe, mnist, device=GPU)
        assert torch.equal(weights(alone).cpu(), weights(scoring.load_model(saved)))
