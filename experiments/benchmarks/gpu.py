"""How fast on this machine's GPU, in at most 8 minutes: `make gpu-bench`.

Each part runs in a process of its own with a time limit, and the record is written anew after each,
so that one that fails or hangs leaves the figures of the others. `--device cpu --images 256` runs
all parts on a few images without a GPU, to try the script.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import plain

from mnist_ray import learn, tables
from mnist_ray.config import Recipe, RunConfig

BEST = Path(__file__).parents[1] / "best.yaml"
MPS = "nvidia-cuda-mps-control"
"""Starts and ends CUDA's Multi-Process Service, which lets kernels of several processes run at the
same time. Without it, processes that share a GPU take turns."""

Row = tuple[str, str, str]
processes = multiprocessing.get_context("spawn")


class Settings(NamedTuple):
    device: str
    images: int
    seconds: float

    @property
    def recipe(self) -> Recipe:
        recipe = Recipe(lr=0.05, dropout=0.1, rotation=8, shift=1, holdout=1000)
        return recipe.replace(train_size=self.images, batch_size=min(64, self.images), epochs=2)

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"


def one_run(settings: Settings) -> Iterator[Row]:
    """The second epoch of a run, with and without a captured step."""
    import torch

    mnist = learn.load_mnist(settings.recipe, RunConfig().data_dir)
    for precision in ("bf16", "fp32"):
        for batch_size in (64, 512):
            for captured in (False, True) if settings.gpu else (False,):
                rows: list[learn.Metrics] = []
                recipe = settings.recipe.replace(precision=precision)
                recipe = recipe.replace(batch_size=min(batch_size, settings.images))
                learn.fit(
                    recipe,
                    learn.split(mnist, recipe.holdout, recipe.train_size),
                    device=torch.device(settings.device),
                    captured=captured,
                    on_epoch=lambda row, _, to=rows: to.append(row),
                )
                how = "captured" if captured else "launched by Python"
                speed = f"{rows[1]['images_per_second']:,.0f}"
                yield f"one run in {precision}, batch {batch_size}, {how}", speed, "images/s"


def trains(settings: Settings, seed: int, ready: Connection) -> None:
    """Train as a trial does; after an epoch, wait, then send the images per second of what is
    trained, scored and reported in the next seconds."""
    import torch

    learn.prepare_process(1)
    began, done = 0.0, -1
    recipe = settings.recipe.replace(epochs=1000, seed=seed, train_size=min(settings.images, 6400))

    def on_epoch(metrics: learn.Metrics, state: learn.State) -> None:
        nonlocal began, done
        done += 1
        if done == 0:
            ready.send("ready")
            ready.recv()
            began = time.perf_counter()
        elif time.perf_counter() - began > settings.seconds:
            ready.send(done * recipe.images / (time.perf_counter() - began))
            raise SystemExit

    mnist = learn.load_mnist(recipe, RunConfig().data_dir)
    splits = learn.split(mnist, recipe.holdout, recipe.train_size)
    learn.fit(recipe, splits, device=torch.device(settings.device), on_epoch=on_epoch)


def at_a_time(settings: Settings, count: int) -> float:
    """Images per second of `count` trials at a time, in all."""
    ends, running = [], []
    for seed in range(count):
        end, other = processes.Pipe()
        running.append(processes.Process(target=trains, args=(settings, seed, other)))
        running[-1].start()
        other.close()  # so that a process that fails is noticed here
        ends.append(end)
    for end in ends:
        end.recv()
    for end in ends:
        end.send("go")
    speeds = [end.recv() for end in ends]
    for process in running:
        process.join()
    return sum(speeds)


def many_runs(settings: Settings) -> Iterator[Row]:
    """Trials at a time, each in a process of its own, as Ray Tune's are."""
    for count in (1, 2, 4, 8, 16, 24) if settings.gpu else (1, 2):
        speed = f"{at_a_time(settings, count):,.0f}"
        yield f"{count} at a time, batch {settings.recipe.batch_size}", speed, "images/s"


def many_runs_with_mps(settings: Settings) -> Iterator[Row]:
    """Eight trials at a time once more, with the Multi-Process Service and then without."""
    if not shutil.which(MPS):
        yield "8 at a time with MPS", "not measured", f"{MPS} is not there"
        return
    with tempfile.TemporaryDirectory() as folder:
        where = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(where)
        subprocess.run([MPS, "-d"], check=True)
        try:
            yield "8 at a time with MPS", f"{at_a_time(settings, 8):,.0f}", "images/s"
        finally:
            subprocess.run([MPS], input="quit\n", text=True, check=True)
            for name in where:
                del os.environ[name]
    yield "8 at a time without MPS, after it", f"{at_a_time(settings, 8):,.0f}", "images/s"


def plain_loop(settings: Settings) -> Iterator[Row]:
    """The loop of PyTorch's tutorials, with a DataLoader."""
    with tempfile.TemporaryDirectory() as root:
        batches = plain.loader(RunConfig().data_dir.expanduser(), Path(root), 64)
        steps = min(settings.images, 12_800) // 64
        speeds = plain.speeds(batches, dropout=0.1, steps=steps, device=settings.device)
        next(speeds)  # to warm up
        yield "plain PyTorch loop with a DataLoader, batch 64", f"{next(speeds):,.0f}", "images/s"


def command(*words: str) -> str:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], check=True)
    return f"{time.perf_counter() - began:.1f}"


def study(settings: Settings) -> Iterator[Row]:
    """The product's own command, from start to report."""
    trials, epochs, images = (64, 3, 50_000) if settings.gpu else (2, 1, settings.images)
    count = min(os.cpu_count() or 1, 24)
    flags = ["--num-trials", str(trials), "--epochs", str(epochs), "--train-size", str(images)]
    alike = ["--scheduler", "fifo", "--confirm", "0", "--no-base", "--holdout", "10000"]
    shared = ["--use-gpu", "--trials-per-gpu", str(count), "--cpus-per-worker", "1"]
    with tempfile.TemporaryDirectory() as storage:
        seconds = command(
            *("mnist_ray.tune", *flags, *alike, "--storage", storage),
            *(shared if settings.gpu else []),
        )
    at_once = f", {count} at a time" if settings.gpu else ""
    yield f"study of {trials} trials, {epochs} epochs, {images:,} images{at_once}", seconds, "s"


def best(settings: Settings) -> Iterator[Row]:
    """20 epochs of all 60,000 images, scored on the test set after each."""
    few = ["--train-size", str(settings.images), "--epochs", "1"]
    flags = ["--use-gpu"] if settings.gpu else few
    with tempfile.TemporaryDirectory() as storage:
        where = ["--storage", storage, "--in-process"]
        seconds = command("mnist_ray.train", "--config", str(BEST), *flags, *where)
    epochs = 20 if settings.gpu else 1
    yield f"{epochs} epochs of best.yaml, from start to end", seconds, "s"


PARTS: dict[Callable[[Settings], Iterator[Row]], int] = {
    one_run: 75,
    best: 50,
    study: 120,
    many_runs: 150,
    many_runs_with_mps: 50,
    plain_loop: 30,
}
"""Each part, and how many seconds it may take: 475 in all."""


def part(name: str, settings: Settings, rows: Connection) -> None:
    os.setsid()  # so that what it starts can be killed with it
    (run,) = [each for each in PARTS if each.__name__ == name]
    try:
        for row in run(settings):
            rows.send(row)
    except Exception as error:
        traceback.print_exc()
        rows.send((name, "failed", f"{type(error).__name__}: {error}".splitlines()[0][:100]))


def measured(run: Callable[[Settings], Iterator[Row]], settings: Settings) -> Iterator[Row]:
    """Yield the rows of a part as they come, and end it when its time is up."""
    end, other = processes.Pipe(duplex=False)
    process = processes.Process(target=part, args=(run.__name__, settings, other))
    process.start()
    other.close()
    until = time.monotonic() + PARTS[run]
    try:
        while end.poll(max(0, until - time.monotonic())):
            yield end.recv()
        yield run.__name__, "not finished", f"in {PARTS[run]} s"
    except EOFError:  # the part has ended
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--images", type=int, default=50_000, help="In an epoch, at most.")
    parser.add_argument("--seconds", type=float, default=5, help="Of each number at a time.")
    parser.add_argument("--only", nargs="*", choices=[run.__name__ for run in PARTS])
    parser.add_argument("--into", type=Path, default=Path(__file__).parent / "records")
    args = parser.parse_args()
    settings = Settings(args.device, args.images, args.seconds)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the part that runs, too
    # Another process asks, so that this one holds nothing on the GPU.
    asked = "import torch; print(torch.cuda.get_device_name())" if settings.gpu else "print('CPU')"
    card = subprocess.run([sys.executable, "-c", asked], check=True, stdout=subprocess.PIPE)
    where = tables.provenance()
    lines = [
        f"# On {card.stdout.decode().strip()}, {date.today()}",
        "",
        f"{where['hardware']}; torch {where['torch']}, Ray {where['ray']}, Python"
        f" {where['python']}; commit {where['commit']}. Each measured once.",
        "",
        "| what | figure | unit |",
        "| --- | ---: | --- |",
    ]
    args.into.mkdir(exist_ok=True)
    record = args.into / f"{date.today()}_gpu.md"
    for run in PARTS:
        if args.only and run.__name__ not in args.only:
            continue
        for row in measured(run, settings):
            print(f"{row[0]:<70} {row[1]:>16} {row[2]}", flush=True)
            lines.append(f"| {' | '.join(row)} |")
            record.write_text("\n".join(lines) + "\n")
    print(f"\nwritten to {record}")


if __name__ == "__main__":
    main()
