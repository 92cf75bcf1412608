"""How fast, and compared with what: `make bench`, about ten minutes on 2 idle cores.

Speeds that are compared run in turns, each in a process of its own that waits while another is
measured, and what is reported of a comparison is the median over the rounds. A ratio means
something on other machines too; a figure in images/s belongs to the hardware in its record.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import plain
import torch
import torch.distributed as dist
from torch import nn

from mnist_ray import learn, tables
from mnist_ray.config import Recipe, RunConfig

WINDOW = 6000
"""Images, about, in one measured stretch."""

processes = multiprocessing.get_context("spawn")


def plain_loop(conn: Connection, threads: int, batch_size: int, root: str) -> None:
    torch.set_num_threads(threads)
    batches = plain.loader(RunConfig().data_dir.expanduser(), Path(root), batch_size)
    for speed in plain.speeds(batches, dropout=0.1, steps=WINDOW // batch_size):
        conn.send(speed)
        conn.recv()


def engine_loop(
    conn: Connection,
    threads: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    at: str = "",
) -> None:
    learn.prepare_process(threads)
    config = Recipe(batch_size=batch_size, epochs=1000)
    window = WINDOW // batch_size
    began, done = time.perf_counter(), 0

    def on_step(epoch: int, step: int, steps: int) -> None:
        nonlocal began, done
        done += 1
        if done % window == 0:
            conn.send(window * batch_size / (time.perf_counter() - began))
            conn.recv()
            began = time.perf_counter()

    def wrap(network: nn.Module) -> nn.Module:
        if world_size == 1:
            return network
        # Ray Train's prepare_model does the same.
        return learn.wait_awake(
            nn.parallel.DistributedDataParallel(
                network, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        )

    warnings.simplefilter("ignore", FutureWarning)  # of DDP's options
    if world_size > 1:
        dist.init_process_group("gloo", f"file://{at}", rank=rank, world_size=world_size)
    splits = learn.split(learn.load_mnist(Recipe(), RunConfig().data_dir), 0)
    learn.fit(config, splits, rank=rank, world_size=world_size, wrap=wrap, on_step=on_step)


class Loops:
    """Training loops that run only while they are measured. The first stretch is a warm-up."""

    def __init__(self, *loops: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
        self.ends, self.processes = [], []
        for loop, arguments in loops:
            end, other = processes.Pipe()
            process = processes.Process(target=loop, args=(other, *arguments), daemon=True)
            process.start()
            self.ends.append(end)
            self.processes.append(process)
        self._speeds()

    def _speeds(self) -> list[float]:
        return [end.recv() for end in self.ends]

    def measure(self) -> list[float]:
        for end in self.ends:
            end.send("go")
        return self._speeds()

    def stop(self) -> None:
        for each in self.processes:
            each.terminate()
            each.join()


def in_turns(rounds: int, *loops: Loops) -> list[list[float]]:
    """For each of `loops`, what it reached in each round: the sum over its processes."""
    speeds = [[sum(each.measure()) for each in loops] for _ in range(rounds)]
    for each in loops:
        each.stop()
    return [list(column) for column in zip(*speeds, strict=True)]


def ratio(of: Sequence[float], to: Sequence[float]) -> str:
    ratios = sorted(a / b for a, b in zip(of, to, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def median(speeds: Sequence[float]) -> str:
    return f"{statistics.median(speeds):,.0f}"


def against_the_plain_loop(rounds: int, cores: int) -> list[tuple[str, str, str]]:
    rows = []
    flop = training_flop()
    for threads in sorted({1, cores}):
        with tempfile.TemporaryDirectory() as root:
            slow, fast = in_turns(
                rounds,
                Loops((plain_loop, (threads, 64, root))),
                Loops((engine_loop, (threads, 64))),
            )
        arithmetic = learn.resolve_precision("auto", torch.device("cpu"))
        ceiling = matrix_product(threads, arithmetic)
        share = statistics.median(fast) * flop / ceiling
        where = f"{threads} thread{'s' * (threads > 1)}, batch 64"
        rows += [
            (f"plain loop, {where}", median(slow), "images/s"),
            (f"engine in {arithmetic}, {where}", median(fast), "images/s"),
            (f"engine against plain loop, {where}", ratio(fast, slow), "times"),
            (
                f"matrix products in {arithmetic}, {threads} thread{'s' * (threads > 1)}",
                f"{ceiling / 1e9:.0f}",
                "GFLOP/s",
            ),
            (f"engine's share of that, {where}", f"{share:.0%}", ""),
        ]
    return rows


def two_at_a_time(rounds: int) -> list[tuple[str, str, str]]:
    one, two = in_turns(
        rounds, Loops((engine_loop, (1, 128))), Loops(*[(engine_loop, (1, 128))] * 2)
    )
    return [("two trials at a time against one, 1 core each", ratio(two, one), "times")]


def data_parallel(rounds: int) -> list[tuple[str, str, str]]:
    rows = []
    for batch_size in (64, 128, 512):
        with tempfile.TemporaryDirectory() as folder:
            at = f"{folder}/rendezvous"
            workers = [(engine_loop, (1, batch_size, rank, 2, at)) for rank in (0, 1)]
            one, two = in_turns(rounds, Loops((engine_loop, (1, batch_size))), Loops(*workers))
        # Each of the two reports the images of both.
        halves = [speed / 2 for speed in two]
        what = f"two data-parallel workers against one, 1 core each, global batch {batch_size}"
        rows.append((what, ratio(halves, one), "times"))
    return rows


def training_flop() -> float:
    """Floating-point operations to train on one image: a multiplication and an addition per weight
    and place it is used at, forward, for the gradient of the weights and for that of the input,
    which the first layer does not need."""
    flop = 0.0
    for index, layer in enumerate(learn.layers(learn.build_network(Recipe()))):
        if layer.name.startswith("Conv"):
            places = layer.output[1] * layer.output[2]
            flop += 2 * layer.parameters * places * (2 if index == 0 else 3)
    return flop


def matrix_product(threads: int, arithmetic: str) -> float:
    """Floating-point operations per second in products of square matrices."""
    torch.set_num_threads(threads)
    a = torch.randn(2048, 2048).to(torch.bfloat16 if arithmetic == "bf16" else torch.float32)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - began)
    return 2 * 2048**3 / min(seconds)


def command(*flags: str) -> tuple[float, list[tuple[float, str]]]:
    """Seconds that a command took, and its lines with the second at which each was printed."""
    began = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", *flags], stdout=subprocess.PIPE, text=True
    )
    assert running.stdout
    lines = [(time.perf_counter() - began, line) for line in running.stdout]
    if running.wait():
        raise SystemExit(f"{' '.join(flags)} ended with {running.returncode}")
    return time.perf_counter() - began, lines


def overhead_per_trial(storage: str) -> list[tuple[str, str, str]]:
    """Of trials that train on ten images: what every further one adds to a study."""
    nothing = ["--train-size", "10", "--holdout", "10", "--batch-size", "10", "--epochs", "1"]
    all_alike = ["--scheduler", "fifo", "--confirm", "0", "--no-base"]
    flags = ["mnist_ray.tune", *nothing, *all_alike, "--storage", storage]

    def per_trial(few: int, many: int, *more: str) -> str:
        seconds = [command(*flags, "--num-trials", str(n), *more)[0] for n in (few, many)]
        return f"{(seconds[1] - seconds[0]) / (many - few):.2f}"

    return [
        ("a further trial in its own process, 2 at a time", per_trial(2, 34), "s"),
        (
            "a further trial that launches 2 workers",
            per_trial(1, 3, "--workers-per-trial", "2"),
            "s",
        ),
    ]


def first_steps(storage: str, rounds: int = 3) -> list[tuple[str, str, str]]:
    """Seconds from a command to its first step, in turns with importing PyTorch, the floor: nothing
    can train before that. One step is all that these runs train."""
    small = ["--train-size", "10", "--batch-size", "10", "--epochs", "1", "--storage", storage]
    study = [*small, "--holdout", "10", "--num-trials", "1", "--no-base", "--confirm", "0"]
    commands = {
        "train in its own process": ["mnist_ray.train", *small, "--in-process"],
        "train on one of Ray's workers": ["mnist_ray.train", *small, "--no-in-process"],
        "a study": ["mnist_ray.tune", *study],
        "a study whose trial launches 2 workers": [
            *("mnist_ray.tune", *study),
            *("--workers-per-trial", "2"),
        ],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    floor = []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        floor.append(time.perf_counter() - began)
        for name, words in commands.items():
            _, lines = command(*words)
            first = next(at for at, line in lines if re.match(r"epoch |search +0 ", line))
            seconds[name].append(first)
    rows = [("import torch", f"{statistics.median(floor):.1f}", "s")]
    for name, all_rounds in seconds.items():
        rows.append(
            (f"{name}, until one step is done", f"{statistics.median(all_rounds):.1f}", "s")
        )
        rows.append((f"{name}, against importing torch", ratio(all_rounds, floor), "times"))
    return rows


def start_up(storage: str) -> list[tuple[str, str, str]]:
    rows = []
    for name in ("train", "tune", "evaluate", "results"):
        seconds = statistics.median(command(f"mnist_ray.{name}", "--help")[0] for _ in range(5))
        rows.append((f"{name} --help", f"{seconds:.2f}", "s"))
    rows += first_steps(storage)
    shown = statistics.median(
        command("mnist_ray.results", "--storage", storage)[0] for _ in range(5)
    )
    return [*rows, ("results, of one run", f"{shown:.2f}", "s")]


def memory_of_a_trial(storage: str) -> list[tuple[str, str, str]]:
    """The most that a process of a trial was seen to hold: all that is mapped into it, and its part
    of that, where what several processes share (libraries, MNIST) is split evenly among them."""
    flags = ["--train-size", "20000", "--epochs", "1", "--num-trials", "4", "--storage", storage]
    running = subprocess.Popen(
        [sys.executable, "-m", "mnist_ray.tune", *flags], stdout=subprocess.DEVNULL
    )
    most = {"Rss": 0, "Pss": 0}
    while running.poll() is None:
        listing = subprocess.run(["pgrep", "-f", "^ray::.*ImplicitFunc"], capture_output=True)
        for pid in listing.stdout.split():
            with contextlib.suppress(OSError):  # it may have ended
                smaps = Path(f"/proc/{int(pid)}/smaps_rollup").read_text()
                for name, kilobytes in re.findall(r"^(Rss|Pss): +(\d+) kB", smaps, re.MULTILINE):
                    most[name] = max(most[name], int(kilobytes))
        time.sleep(0.2)
    return [
        ("memory of a trial's process, at most", f"{most['Rss'] / 1024:,.0f}", "MB"),
        ("its part of that, sharing what is shared", f"{most['Pss'] / 1024:,.0f}", "MB"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="Of each comparison (default: 7).")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="Threads at most.")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "records")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as storage:
        parts = (
            lambda: against_the_plain_loop(args.rounds, args.cores),
            lambda: two_at_a_time(args.rounds),
            lambda: data_parallel(args.rounds),
            lambda: overhead_per_trial(storage),
            lambda: start_up(storage),
            lambda: memory_of_a_trial(storage),
        )
        rows = []
        for part in parts:
            for row in part():
                print(f"{row[0]:<70} {row[1]:>22} {row[2]}", flush=True)
                rows.append(row)
    where = tables.provenance()
    lines = [
        f"# Benchmarks, {date.today()}",
        "",
        f"{where['hardware']}; torch {where['torch']}, Ray {where['ray']}, Python"
        f" {where['python']}; commit {where['commit']}. Medians (least to most) of {args.rounds}.",
        "",
        "| what | figure | unit |",
        "| --- | ---: | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    args.into.mkdir(exist_ok=True)
    record = args.into / f"{date.today()}.md"
    record.write_text("\n".join(lines) + "\n")
    print(f"\nwritten to {record}")


if __name__ == "__main__":
    main()
