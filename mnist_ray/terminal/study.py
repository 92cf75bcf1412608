"""The display of a study: a line per finished trial, and on a terminal the running trials below."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from mnist_ray import search, storage
from mnist_ray.config import TRAIN_IMAGES
from mnist_ray.errors import UserError
from mnist_ray.fields import counted
from mnist_ray.search import Phase, Plan, Planned, Status, against_base, verdict
from mnist_ray.storage import Place
from mnist_ray.terminal import command
from mnist_ray.terminal.training import Display, described_recipe, described_workers

if TYPE_CHECKING:  # Ray and torch take seconds to import
    from mnist_ray.cluster import WorkerResources


class Study(Display):
    """The display of a study; implements the protocol `StudyShow` of cluster/show.py."""

    live: Live
    plan: Plan
    started: float

    def __init__(self, in_python: bool = False, quiet: bool = False) -> None:
        super().__init__(in_python, quiet)
        self.latest: dict[int, dict[str, Any]] = {}
        self.running: dict[int, Planned] = {}
        self.said_time_left = False

    def begin(self, plan: Plan, per_worker: WorkerResources) -> None:
        self.plan = plan
        base, tuning = plan.base, plan.tuning
        trials = plan.outline()
        self.console.print(
            f"{counted(sum(trials.values()), 'trial')}, {plan.concurrent} at a time, each on"
            f" {described_workers(tuning.workers_per_trial, per_worker)}\n"
            f"{tuning.search} search, {tuning.scheduler} scheduler, seed {base.seed}"
        )
        if tuning.time_budget:
            self.console.print(f"time budget {duration(tuning.time_budget)}")
        full = counted(plan.epochs, "epoch")
        configurations = f"configuration{'s' * (next(iter(trials.values())) > 1)}"
        which = "of these" if Phase.SCREEN in trials else configurations
        what = {
            Phase.SCREEN: f"{configurations}, each for 1 epoch with a whole schedule of its own",
            Phase.SEARCH: f"{which} for {full}",
            Phase.CONFIRM: f"to repeat the best {plan.confirm}"
            + (" and the base recipe" if tuning.confirm_base else "")
            + " with fresh seeds",
            Phase.FINAL: "of the winner with no image held out, scored on the test set",
        }
        for phase, count in trials.items():
            self.console.print(f"  {phase:<9}{count:>4} {what[phase]}")
        for remark in plan.sampler.remarks:
            self.console.print(remark)
        if plan.rows:
            self.console.print(f"going on after {counted(len(plan.rows), 'finished trial')}")
        if plan.added:
            tried = len(plan.configured)
            self.console.print(f"adds {counted(plan.added, 'configuration')} to the {tried} before")
        space = tuning.space
        self.console.print("search space")
        width = max(map(len, space))
        for name, spec in space.items():
            self.console.print(f"  {name:<{width}} {spec}")
        self.console.print(
            f"the rest: {described_recipe(base, without=space)}\n"
            f"trials are compared on {base.holdout:,} held-out images\n"
        )
        if left := plan.seconds_left():
            self.console.print(f"about {duration(left)} to go, by a few timed steps\n")

    def __enter__(self) -> None:
        self.started = time.monotonic()
        self.live = Live(
            get_renderable=self._running_table,
            console=self.console,
            refresh_per_second=2,
            transient=True,
        )
        if self.console.is_terminal:
            self.live.start()

    def start(self, number: int, trial: Planned) -> None:
        self.running[number] = trial

    def epoch(self, row: dict[str, Any]) -> None:
        self.latest[row["trial"]] = row

    def again(self, number: int, epochs: int, why: str) -> None:
        after = f"goes on after epoch {epochs}" if epochs else "starts again"
        self.console.print(f"{self.plan.trials[number].phase:<7} {number:>3}  {after}: {why}")

    def wait(self, number: int, why: str) -> None:
        self.console.print(f"{self.plan.trials[number].phase:<7} {number:>3}  waits: {why}")

    def stopped(self, folder: Place, resume: Sequence[str]) -> None:
        if self.plan.rows and not self.in_python:
            with contextlib.suppress(UserError):  # the storage may be what failed
                self._print_table(folder, "status != ''")
        if not self.in_python:
            self.console.print(f"tables  {folder}")
        self.say_how_to_go_on("tune", "study", resume)

    def end_trial(self, row: dict[str, Any]) -> None:
        trial = self.running.pop(row["trial"])
        if row["status"] == Status.FAILED:
            outcome = f"failed  {row['error']}"
        else:
            diverged = row["status"] == Status.DIVERGED
            outcome = "diverged" if diverged else f"{row['final_accuracy']:.2%}"
            outcome += f"  epoch {row['epochs_trained']}/{row['epochs']}"
            outcome += f"  {row['total_seconds']:3.0f} s"
        self.console.print(
            f"{trial.phase:<7} {row['trial']:>3}  {outcome}  {described_trial(trial)}"
        )
        if not self.said_time_left and (left := self.plan.seconds_left()):
            self.said_time_left = True
            self.console.print(f"about {duration(left)} to go")

    def end(self, folder: Place, recipe_file: Place) -> None:
        plan = self.plan
        number = plan.winner()
        assert number is not None
        best = plan.rows[number]
        if not self.in_python:
            self._print_table(folder, "phase == 'search' or status in ('diverged', 'failed')")
        for skipped in plan.skipped:
            self.console.print(f"the time budget left no time for {skipped}")
        sampled = described_values({name: best[name] for name in plan.dimensions})
        self.console.print(
            f"best trial       {number}: {sampled}\n"
            f"held-out         {best['best_accuracy']:.2%} after epoch {best['best_epoch']}"
        )
        against = against_base(list(plan.rows.values()), number)
        for label, words in (("confirmed", verdict(plan.confirmed())), ("base recipe", against)):
            if words:
                self.console.print(f"{label:<17}" + words.replace("; ", "\n" + 17 * " "))
        finals = [plan.rows[i] for i in plan.finals()]
        saved = (finals or [best])[0]["checkpoint"]
        if finals:
            test = search.in_percent([row["final_accuracy"] for row in finals])
            test += f", trained on {trained_on(plan, finals[0]['trial'])}"
            test += ", each scored after its last epoch"
        else:
            test = f"{best['test_accuracy']:.2%} of its checkpoint, scored once"
        took = duration(time.monotonic() - self.started)
        self.console.print(f"test accuracy    {test}")
        if self.in_python:
            self.console.print(f"time             {took}")
            return
        megabytes = storage.size(folder) / 1e6
        self.console.print(
            f"checkpoint       {folder / saved}\n"
            f"tables           {folder}, {megabytes:,.1f} MB with its checkpoints\n"
            f"time             {took}\n\n"
            "Next:\n"
            f"  {command.typed('results', str(folder), '--report', 'report.html')}\n"
            f"  {command.typed('evaluate', str(folder / saved))}\n"
            f"  {command.typed('train', '--config', str(recipe_file), '--holdout', '0')}"
        )

    def _print_table(self, folder: Place, condition: str) -> None:
        from mnist_ray import tables  # after the flags: pyarrow takes a while to import

        rows = tables.ranked(tables.where(tables.read(folder), condition))
        self.console.print(f"\n{tables.render(tables.summary(rows), 'table')}\n")

    def _running_table(self) -> Table:
        # Rich calls this in its own thread while the study goes on, so it works on copies.
        running, rows = dict(self.running), list(self.latest.values())
        accuracies = [row["accuracy"] for row in rows if row["scored_on"] == "holdout"]
        ended = len(self.plan.rows)
        to_come = max(sum(self.plan.outline().values()) - ended - len(running), 0)
        left = self.plan.seconds_left()
        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"{counted(ended, 'trial')} done, {len(running)} running, {to_come} to come"
            f"  best {f'{max(accuracies):.2%}' if accuracies else '-'}"
            f"  {duration(time.monotonic() - self.started)}"
            + (f", about {duration(left)} to go" if left else "")
        )
        if not running and not ended:
            table.add_row("starting the first trial's process")
        for number, trial in running.items():
            row = self.latest.get(number)
            done = f"epoch {row['epoch']}  {row['accuracy']:.2%}" if row else "first epoch"
            table.add_row(f"{trial.phase:<7} {number:>3}  {described_trial(trial)}  {done}")
        return table


def trained_on(plan: Plan, number: int) -> str:
    """Return in words how many images the trial `number` trained on."""
    images = plan.images_of(number)
    return f"{'all ' if images == TRAIN_IMAGES else ''}{counted(images, 'image')}"


def duration(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}" if seconds >= 60 else f"{seconds:.0f} s"


def described_trial(trial: Planned) -> str:
    shown = trial.sampled if "seed" not in trial.more else {"seed": trial.more["seed"]}
    again = "" if trial.repeats is None else f"trial {trial.repeats} again"
    return "  ".join(text for text in (again, described_values(shown)) if text)


def described_values(sampled: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sampled.items()
    )
