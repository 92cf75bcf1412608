"""What a study prints: a line per finished trial, and on a terminal the running ones below."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.table import Table

from mnist_ray import search, storage, tables
from mnist_ray.config import TRAIN_IMAGES
from mnist_ray.errors import UserError
from mnist_ray.search import Phase, Plan, Planned, Status, against_base, verdict
from mnist_ray.storage import Place
from mnist_ray.terminal import command
from mnist_ray.terminal.training import console, described_recipe, described_workers

if TYPE_CHECKING:  # Ray and torch take seconds to import
    from mnist_ray.cluster import WorkerResources


class Study:
    """A study, as it goes."""

    def __init__(self) -> None:
        self.console = console()
        self.began = time.monotonic()
        self.plan: Plan
        self.latest: dict[int, dict[str, Any]] = {}
        self.running: dict[int, Planned] = {}
        self.foretold = False
        self.live: Live

    def begin(self, plan: Plan, share: WorkerResources) -> None:
        self.plan = plan
        self.live = Live(
            get_renderable=self._running,
            console=self.console,
            refresh_per_second=2,
            transient=True,
        )
        base, study = plan.base, plan.study
        trials = plan.outline()
        self.console.print(
            f"{sum(trials.values())} trials, {plan.concurrent} at a time, each on"
            f" {described_workers(study.workers_per_trial, share)}\n"
            f"{study.search} search, {study.scheduler} scheduler, seed {base.seed}"
        )
        if study.time_budget:
            self.console.print(f"within {minutes(study.time_budget)}")
        full = f"{plan.epochs} epoch{'s' * (plan.epochs > 1)}"
        which = "of these" if Phase.SCREEN in trials else "configurations"
        what = {
            Phase.SCREEN: "configurations for 1 epoch, a whole schedule of its own",
            Phase.SEARCH: f"{which} for {full}",
            Phase.CONFIRM: f"to confirm: the best {plan.confirm} again, with fresh seeds"
            + (", and the base recipe" if study.confirm_base else ""),
            Phase.FINAL: "of the winner with no image held out, scored on the test set",
        }
        for phase, count in trials.items():
            self.console.print(f"  {phase:<9}{count:>4} {what[phase]}")
        for remark in plan.sampler.remarks:
            self.console.print(remark)
        if plan.rows:
            self.console.print(f"going on after {len(plan.rows)} trials that are done")
        space = study.space
        self.console.print("over")
        width = max(map(len, space))
        for name, spec in space.items():
            self.console.print(f"  {name:<{width}} {spec}")
        self.console.print(
            f"around {described_recipe(base, without=space)}\n"
            f"chosen by {base.holdout:,} held-out images\n"
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

    def start(self, number: int, trial: Planned) -> None:
        self.running[number] = trial

    def epoch(self, row: dict[str, Any]) -> None:
        self.latest[row["trial"]] = row

    def again(self, number: int, epochs: int, why: str) -> None:
        after = f"goes on after epoch {epochs}" if epochs else "starts again"
        self.console.print(f"{self.plan.trials[number].phase:<7} {number:>3}  {after}: {why}")

    def wait(self, number: int, why: str) -> None:
        self.console.print(f"{self.plan.trials[number].phase:<7} {number:>3}  waits: {why}")

    def say(self, text: str) -> None:
        self.console.print(text)

    def stopped(self, folder: Place, resume: Sequence[str]) -> None:
        """Show what a study that did not come to its end has found so far, and say how to go on
        with it: by these flags of the command."""
        if self.plan.rows:
            with contextlib.suppress(UserError):  # where the storage is what failed
                self._table(folder, "status != ''")
        again = command.typed("tune", *resume)
        self.console.print(f"tables  {folder}\n\nTo go on with it:\n  {again}")

    def end_trial(self, row: dict[str, Any]) -> None:
        trial = self.running.pop(row["trial"])
        if row["status"] == Status.FAILED:
            outcome = f"failed  {row['error']}"
        else:
            diverged = row["status"] == Status.DIVERGED
            outcome = (
                f"{'diverged' if diverged else format(row['final_accuracy'], '.2%')}"
                f"  epoch {row['epochs_trained']}/{row['epochs']}  {row['total_seconds']:3.0f} s"
            )
        self.console.print(
            f"{trial.phase:<7} {row['trial']:>3}  {outcome}  {described_trial(trial)}"
        )
        if not self.foretold and (left := self.plan.seconds_left()):
            self.foretold = True
            self.console.print(f"about {minutes(left)} to go")

    def end(self, folder: Place, recipe_file: Place | None) -> None:
        plan = self.plan
        number = plan.winner()
        assert number is not None
        best = plan.rows[number]
        self._table(folder, "phase == 'search' or status in ('diverged', 'failed')")
        for skipped in plan.skipped:
            self.console.print(f"the time budget left no room for {skipped}")
        self.console.print(
            f"best trial       {number}: {values({name: best[name] for name in plan.dimensions})}\n"
            f"held-out         {best['best_accuracy']:.2%} after epoch {best['best_epoch']}"
        )
        rows = list(plan.rows.values())
        said = {"confirmed": verdict(plan.confirmed()), "base recipe": against_base(rows, number)}
        for label, words in said.items():
            if words:
                self.console.print(f"{label:<17}" + words.replace("; ", "\n" + 17 * " "))
        saved = best["checkpoint"]
        finals = [plan.rows[i] for i in sorted(plan.ranked(Phase.FINAL))]
        if finals:
            saved = finals[0]["checkpoint"]
            accuracies = [row["final_accuracy"] for row in finals]
            self.console.print(
                f"test accuracy    {search.in_percent(accuracies)}, trained on"
                f" {trained_on(plan, finals[0]['trial'])}, each scored after its last epoch"
            )
        else:
            self.console.print(
                f"test accuracy    {best['test_accuracy']:.2%} of its checkpoint, scored once"
            )
        megabytes = storage.size(folder) / 1e6
        self.console.print(
            f"checkpoint       {folder / saved}\n"
            f"tables           {folder}, {megabytes:,.1f} MB with its checkpoints\n"
            f"time             {minutes(time.monotonic() - self.began)}\n\n"
            "Next:\n"
            f"  {command.typed('results', str(folder), '--report', 'report.html')}\n"
            f"  {command.typed('evaluate', str(folder / saved))}"
        )
        if recipe_file:
            again = command.typed("train", "--config", str(recipe_file), "--holdout", "0")
            self.console.print(f"  {again}")

    def _table(self, folder: Place, condition: str) -> None:
        rows = tables.ranked(tables.where(tables.read(folder), condition))
        self.console.print(f"\n{tables.render(tables.summary(rows), 'table')}\n")

    def _running(self) -> Table:
        # In Rich's own thread: copies, because the study goes on.
        running, rows = dict(self.running), list(self.latest.values())
        accuracies = [row["accuracy"] for row in rows if row["scored_on"] == "holdout"]
        ended = len(self.plan.rows)
        to_come = max(sum(self.plan.outline().values()) - ended - len(running), 0)
        left = self.plan.seconds_left()
        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"{ended} trials done, {len(running)} running, {to_come} to come"
            f"  best {f'{max(accuracies):.2%}' if accuracies else '-'}"
            f"  {minutes(time.monotonic() - self.began)}"
            + (f", about {minutes(left)} to go" if left else "")
        )
        for number, trial in running.items():
            row = self.latest.get(number)
            done = "first epoch"
            if row:
                done = f"epoch {row['epoch']}  {row['accuracy']:.2%}"
            table.add_row(f"{trial.phase:<7} {number:>3}  {described_trial(trial)}  {done}")
        return table


def trained_on(plan: Plan, number: int) -> str:
    """Say how many images the trial `number` trained on."""
    images = plan.images_of(number)
    return f"{'all ' if images == TRAIN_IMAGES else ''}{images:,} images"


def minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}" if seconds >= 60 else f"{seconds:.0f} s"


def described_trial(trial: Planned) -> str:
    shown = trial.sampled if "seed" not in trial.more else {"seed": trial.more["seed"]}
    again = "" if trial.repeats is None else f"trial {trial.repeats} again"
    return "  ".join(text for text in (again, values(shown)) if text)


def values(sampled: dict[str, Any]) -> str:
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in sampled.items()
    )
