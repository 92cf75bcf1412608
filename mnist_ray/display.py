"""What a training run and a study print. On a terminal with a moving bar, elsewhere in lines."""

import shlex
import time
from collections.abc import Container
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_ray import results, tables
from mnist_ray.cluster import Share
from mnist_ray.config import TrainConfig, TuneConfig
from mnist_ray.data import Splits
from mnist_ray.model import Layer


def console() -> Console:
    """Prints to stdout. Lines are the terminal's to wrap, so that a long path can be copied."""
    # No markup: a path or an error may have brackets of its own.
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


class Training:
    """A training run, as it goes."""

    def __init__(self) -> None:
        self.console = console()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar = self.progress.add_task("starting", total=None)
        self.epochs = 0

    def begin(self, config: TrainConfig, share: Share, layers: list[Layer], splits: Splits) -> None:
        self.epochs = config.epochs
        table = Table("layer", box=None, pad_edge=False)
        table.add_column("output", justify="right")
        table.add_column("parameters", justify="right")
        for layer in layers:
            shape = " x ".join(str(size) for size in layer.output)
            table.add_row(layer.name, shape, f"{layer.parameters:,}" if layer.parameters else "")
        table.add_row("total", "", f"{sum(layer.parameters for layer in layers):,}")
        self.console.print(table)
        self.console.print(
            f"\n{len(splits.train.indices):,} training images, scored on"
            f" {len(splits.score.indices):,} {described(splits.scored_on)} images;"
            f" {described_workers(config.num_workers, share)}\n{recipe(config)}\n"
        )

    def __enter__(self) -> None:
        self.progress.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.progress.update(
            self.bar, description=f"epoch {epoch}/{self.epochs}", completed=step, total=steps
        )

    def epoch(self, metrics: dict[str, Any]) -> None:
        scored_on = "holdout" if "holdout_accuracy" in metrics else "test"
        self.console.print(
            f"epoch {metrics['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
            f"  loss {metrics['train_loss']:.4f}  train {metrics['train_accuracy']:.2%}"
            f"  {scored_on} {metrics[f'{scored_on}_accuracy']:.2%}"
            f"  {metrics['train_seconds']:.1f} s  {metrics['images_per_second']:,.0f} images/s"
        )

    def end(self, row: dict[str, Any], folder: Path, last: Path) -> None:
        where = described(row["scored_on"])
        self.console.print(
            f"\n{row['status']}: {where} accuracy {row['final_accuracy']:.2%} after the last epoch,"
            f" {row['best_accuracy']:.2%} at its best (epoch {row['best_epoch']})"
        )
        if row["scored_on"] == "holdout":
            self.console.print(
                f"test accuracy {row['test_accuracy']:.2%} after the last epoch, scored once"
            )
        self.console.print(
            f"{row['train_seconds']:.0f} s of training, {row['total_seconds']:.0f} s in all\n"
            f"last checkpoint  {last}\nbest checkpoint  {folder / row['checkpoint']}\n\n"
            f"Next: python -m mnist_ray.evaluate {shlex.quote(str(last))}"
        )


def described(scored_on: str) -> str:
    return {"holdout": "held-out", "test": "test"}[scored_on]


def described_workers(workers: int, share: Share) -> str:
    device = f"{share.cpus} core{'s' * (share.cpus > 1)}" + " and a GPU" * share.gpus
    return f"1 worker with {device}" if workers == 1 else f"{workers} workers with {device} each"


def recipe(config: TrainConfig, without: Container[str] = ()) -> str:
    """The recipe in one line, without what is switched off and the fields in `without`."""
    parts = {
        "lr": f"lr {config.lr:g}",
        "schedule": config.schedule,
        "momentum": f"momentum {config.momentum:g}",
        "nesterov": "nesterov" if config.nesterov else "",
        "batch_size": f"batch {config.batch_size}",
        "epochs": f"{config.epochs} epochs",
    }
    for name in ("weight_decay", "label_smoothing", "dropout", "rotation", "shift", "scale"):
        value = getattr(config, name)
        parts[name] = f"{name.replace('_', ' ')} {value:g}" if value else ""
    shown = [text for name, text in parts.items() if text and name not in without]
    return ", ".join(["SGD", *shown, f"seed {config.seed}"])


class Study:
    """A study, as it goes: a line per finished trial, and on a terminal the running ones below."""

    def __init__(self) -> None:
        self.console = console()
        self.began = time.monotonic()
        self.trials = 0
        self.max_epochs = 0
        self.ended: list[dict[str, Any]] = []
        self.sampled: dict[int, dict[str, Any]] = {}
        self.latest: dict[int, dict[str, Any]] = {}
        self.live = Live(
            get_renderable=self._running,
            console=self.console,
            refresh_per_second=2,
            transient=True,
        )

    def begin(
        self,
        base: TrainConfig,
        study: TuneConfig,
        trials: int,
        concurrent: int,
        share: Share,
    ) -> None:
        self.trials, self.max_epochs = trials, base.epochs
        self.console.print(
            f"{trials} trials, {concurrent} at a time, each on"
            f" {described_workers(base.num_workers, share)}\n"
            f"{study.search} search, {study.scheduler} scheduler, seed {base.seed}"
        )
        space = study.dimensions()
        for name, spec in space.items():
            self.console.print(f"  {name:<12} {spec}")
        self.console.print(
            f"around {recipe(base, without=space)}\nchosen by {base.holdout:,} held-out images\n"
        )

    def __enter__(self) -> None:
        self.began = time.monotonic()
        if self.console.is_terminal:
            self.live.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def start(self, trial: int, sampled: dict[str, Any]) -> None:
        self.sampled[trial] = sampled

    def epoch(self, row: dict[str, Any]) -> None:
        self.latest[row["trial"]] = row

    def end_trial(self, row: dict[str, Any]) -> None:
        self.ended.append(row)
        if row["status"] == "failed":
            outcome = f"failed  {row['error']}"
        else:
            diverged = row["status"] == "diverged"
            outcome = (
                f"{'diverged' if diverged else format(row['best_accuracy'], '.2%')}"
                f"  epoch {row['epochs_trained']}/{row['epochs']}  {row['total_seconds']:3.0f} s"
            )
        self.console.print(
            f"trial {row['trial']:>3}  {outcome}  {values(self.sampled[row['trial']])}"
        )

    def end(self, folder: Path, best: dict[str, Any], recipe_file: Path) -> None:
        table = results.summary(results.ranked(tables.read(folder)))
        self.console.print(f"\n{results.render(table, 'table')}\n")
        self.console.print(
            f"best trial       {best['trial']}: {values(self.sampled[best['trial']])}\n"
            f"held-out         {best['best_accuracy']:.2%} after epoch {best['best_epoch']}\n"
            f"test accuracy    {best['test_accuracy']:.2%} of that checkpoint, scored once\n"
            f"checkpoint       {folder / best['checkpoint']}\n"
            f"tables           {folder}\n"
            f"time             {time.monotonic() - self.began:.0f} s\n\n"
            "Next, the winner on all 60,000 images:\n"
            f"  python -m mnist_ray.train --config {shlex.quote(str(recipe_file))} --holdout 0"
        )

    def _running(self) -> Table:
        # In Rich's own thread: copies, because the study goes on.
        ended = {row["trial"] for row in list(self.ended)}
        running = [trial for trial in list(self.sampled) if trial not in ended]
        best = max((row["holdout_accuracy"] for row in list(self.latest.values())), default=None)
        seconds = int(time.monotonic() - self.began)
        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"{len(ended)} of {self.trials} trials done, {len(running)} running"
            f"  best {'-' if best is None else f'{best:.2%}'}"
            f"  {seconds // 60}:{seconds % 60:02}"
        )
        for trial in running:
            row = self.latest.get(trial)
            done = f"epoch {row['epoch']}  {row['holdout_accuracy']:.2%}" if row else "first epoch"
            table.add_row(f"trial {trial:>3}  {values(self.sampled[trial])}  {done}")
        return table


def values(sampled: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sampled.items()
    )
