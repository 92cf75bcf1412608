"""The display of a training run: lines, and on a terminal a bar that moves within the epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_ray.config import Recipe, Resources
from mnist_ray.errors import RunFailed
from mnist_ray.fields import counted
from mnist_ray.storage import Place
from mnist_ray.terminal import command

if TYPE_CHECKING:  # Ray and torch take seconds to import
    from mnist_ray.cluster import WorkerResources
    from mnist_ray.learn import Layer, Splits

SCORED_ON = {"holdout": "held-out", "test": "test"}
"""What the images are called, by the value of the column `scored_on`."""


def console(kind: type[Console] = Console, quiet: bool = False) -> Console:
    """Return a console that prints to stdout, or nothing if it is `quiet`. It leaves long lines to
    the terminal to wrap, so that a path can be copied."""
    # A notebook gets the lines that a file would: it takes no control codes, though it may say that
    # it is a terminal, and Rich would make an HTML element of each line.
    never_in_one = False if Console().is_jupyter else None
    # No markup: a path or an error may have brackets.
    return kind(
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
        quiet=quiet,
        force_jupyter=never_in_one,
        force_terminal=never_in_one,
    )


class _TrainingConsole(Console):
    def on_broken_pipe(self) -> None:
        with contextlib.suppress(SystemExit):  # would end the command without a word
            super().on_broken_pipe()
        raise RunFailed("its output was closed")


class Display:
    """The base of both displays: lines that stay and, during the run, a live part below them.

    `in_python` leaves out what a caller in Python has in hand: tables, paths and commands to copy.
    A `quiet` display shows nothing.
    """

    live: Live | Progress

    def __init__(self, in_python: bool = False, quiet: bool = False) -> None:
        self.in_python = in_python
        self.console = console(quiet=quiet)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def say_how_to_go_on(self, kind: str, what: str, resume: Sequence[str]) -> None:
        """Say how to resume a run of `kind` (train or tune), which is called `what`, by its flags
        `resume`."""
        if self.in_python:
            name = resume[resume.index("--name") + 1]
            self.console.print(f"stopped; go on with the {what} by name={name!r} and resume=True")
        else:
            line = command.typed(kind, *resume)
            self.console.print(f"\nTo go on with the {what}:\n  {line}")

    def say(self, text: str) -> None:
        self.console.print(text)

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        with self.console.status(what) if self.console.is_terminal else contextlib.nullcontext():
            yield


class Training(Display):
    """The display of a training run; implements the protocol `TrainingShow` of cluster/show.py."""

    live: Progress

    def __init__(self, in_python: bool = False, quiet: bool = False) -> None:
        super().__init__(in_python)
        self.console = console(_TrainingConsole, quiet)
        self.live = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar = self.live.add_task("", total=None)
        self.epochs = 0

    def begin(
        self,
        recipe: Recipe,
        needs: Resources,
        per_worker: WorkerResources,
        layers: list[Layer],
        splits: Splits,
        in_process: bool,
    ) -> None:
        self.epochs = recipe.epochs
        first = "first step (the first run on a machine compiles the loops for it)"
        waiting = first if in_process else "starting the workers"
        self.live.update(self.bar, description=waiting)
        table = Table("layer", box=None, pad_edge=False)
        table.add_column("output", justify="right")
        table.add_column("parameters", justify="right")
        for layer in layers:
            shape = " x ".join(str(size) for size in layer.output)
            table.add_row(layer.name, shape, f"{layer.parameters:,}" if layer.parameters else "")
        table.add_row("total", "", f"{sum(layer.parameters for layer in layers):,}")
        if not self.in_python:
            self.console.print(table)
            self.console.print()
        self.console.print(
            f"{counted(len(splits.train.indices), 'training image')}, scored on"
            f" {counted(len(splits.score.indices), f'{SCORED_ON[splits.scored_on]} image')};"
            f" {described_workers(needs.num_workers, per_worker, in_process)}\n"
            f"{described_recipe(recipe)}\n"
        )

    def __enter__(self) -> None:
        self.live.start()

    def go_on(self, epochs: int, lost: bool) -> None:
        after = f"going on after epoch {epochs}" if epochs else "starting again"
        if lost:
            self.console.print(f"a worker was lost; {after}")
        elif epochs:
            self.console.print(after)

    def wait(self, why: str) -> None:
        self.console.print(f"waiting for workers: {why}")

    def stopped(self, resume: Sequence[str]) -> None:
        self.say_how_to_go_on("train", "run", resume)

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.live.update(
            self.bar, description=f"epoch {epoch}/{self.epochs}", completed=step, total=steps
        )

    def epoch(self, metrics: dict[str, Any]) -> None:
        self.console.print(
            f"epoch {metrics['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
            f"  loss {metrics['train_loss']:.4f}  train {metrics['train_accuracy']:.2%}"
            f"  {metrics['scored_on']} {metrics['accuracy']:.2%}"
            f"  {metrics['train_seconds']:.1f} s  {metrics['images_per_second']:,.0f} images/s"
        )

    def end(self, row: dict[str, Any], folder: Place, last: Place) -> None:
        with contextlib.suppress(RunFailed):  # the run is done, though nobody reads this
            self.console.print(
                f"\n{row['status']}: {SCORED_ON[row['scored_on']]} accuracy"
                f" {row['final_accuracy']:.2%} after the last epoch, {row['best_accuracy']:.2%} at"
                f" its best (epoch {row['best_epoch']}), scored after every epoch"
            )
            if row["scored_on"] == "holdout":
                self.console.print(
                    f"test accuracy {row['test_accuracy']:.2%} after the last epoch, scored once"
                )
            self.console.print(
                f"{row['train_seconds']:.0f} s of training, {row['total_seconds']:.0f} s in all"
            )
            if self.in_python:
                return
            self.console.print(
                f"last checkpoint  {last}\nbest checkpoint  {folder / row['checkpoint']}\n\n"
                f"Next: {command.typed('evaluate', str(last))}"
            )


def described_workers(workers: int, per_worker: WorkerResources, in_process: bool = False) -> str:
    cores = per_worker.cpus
    device = f"{counted(cores, 'core')}{per_worker.and_a_gpu}"
    if in_process:
        return f"in this process, with {device}"
    return f"{counted(workers, 'worker')} with {device}{' each' * (workers > 1)}"


def described_recipe(recipe: Recipe, without: Container[str] = ()) -> str:
    """Return the recipe in one line, without the fields in `without` and those that change nothing.

    A field without words of its own is shown by its name if it departs from its default, so that a
    new field is never left out.
    """
    parts = {
        "lr": f"lr {recipe.lr:g}",
        "schedule": recipe.schedule,
        "momentum": f"momentum {recipe.momentum:g}",
        "nesterov": "nesterov" if recipe.nesterov else "",
        "batch_size": f"batch {recipe.batch_size}",
        "epochs": counted(recipe.epochs, "epoch"),
    }
    for name in ("weight_decay", "label_smoothing", "dropout", "rotation", "shift", "scale"):
        value = getattr(recipe, name)
        parts[name] = f"{name.replace('_', ' ')} {value:g}" if value else ""
    parts["batch_norm"] = "" if recipe.batch_norm else "no batch norm"
    parts["precision"] = "" if recipe.precision == "auto" else recipe.precision
    parts["train_size"] = counted(recipe.train_size, "image") if recipe.train_size else ""
    parts["holdout"] = ""  # another line of the display says it
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if name not in (*parts, "seed") and value != field.default:
            parts[name] = f"{name.replace('_', ' ')} {value}"
    # In a study, a field that changes nothing in the base recipe may change something in a trial.
    idle = () if without else recipe.idle
    left_out = [name for name in parts if name in without or name in idle]
    shown = [text for name, text in parts.items() if text and name not in left_out]
    return ", ".join([*shown, f"seed {recipe.seed}"])
