"""What a training run and a study print. On a terminal with a moving bar, elsewhere in lines."""

from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_ray.cluster import Share
from mnist_ray.config import TrainConfig
from mnist_ray.data import Splits
from mnist_ray.model import Layer


def console() -> Console:
    """Prints to stdout; never wraps or cuts a line where there is no terminal to fit."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, soft_wrap=True)


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

    def begin(
        self, config: TrainConfig, share: Share, layers: list[Layer], splits: Splits
    ) -> None:
        self.epochs = config.epochs
        table = Table("layer", box=None, pad_edge=False)
        table.add_column("output", justify="right")
        table.add_column("parameters", justify="right")
        for layer in layers:
            shape = " x ".join(str(size) for size in layer.output)
            table.add_row(layer.name, shape, f"{layer.parameters:,}" if layer.parameters else "")
        table.add_row("total", "", f"{sum(layer.parameters for layer in layers):,}")
        self.console.print(table)
        device = "1 GPU" if share.gpus else f"{share.cpus} core{'s' * (share.cpus > 1)}"
        workers = f"{config.num_workers} worker{'s' * (config.num_workers > 1)}"
        self.console.print(
            f"\n{len(splits.train.indices):,} training images, scored on"
            f" {len(splits.score.indices):,} {described(splits.scored_on)} images;"
            f" {workers} with {device} each\n{recipe(config)}\n"
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
            f"last checkpoint  {last}\nbest checkpoint  {row['checkpoint']}\n\n"
            f"Next: python -m mnist_ray.evaluate {last}"
        )


def described(scored_on: str) -> str:
    return {"holdout": "held-out", "test": "test"}[scored_on]


def recipe(config: TrainConfig) -> str:
    """The recipe in one line, without what is switched off."""
    parts = [
        f"SGD lr {config.lr:g} {config.schedule}",
        f"momentum {config.momentum:g}{' nesterov' if config.nesterov else ''}",
        f"batch {config.batch_size}",
        f"{config.epochs} epochs",
    ]
    optional = ("weight_decay", "label_smoothing", "dropout", "rotation", "shift", "scale")
    parts += [
        f"{name.replace('_', ' ')} {value:g}" for name in optional if (value := getattr(config, name))
    ]
    return ", ".join([*parts, f"seed {config.seed}"])
