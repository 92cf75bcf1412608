"""A study of many short trials, whose processes are killed at random; and the same without kills.

Writes trials.csv (a row per trial of both studies), memory.csv (the driver's, a row per second of
the study with kills) and kills.csv.
"""

import argparse
import csv
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from mnist_ray import tables

HERE = Path(__file__).parent
SAME = ["trial", "status", "epochs_trained", "lr", "momentum", "dropout", "final_loss"]


def start(storage: Path, name: str, trials: int) -> subprocess.Popen[bytes]:
    short = ["--train-size", "1000", "--batch-size", "50", "--epochs", "3"]
    all_alike = ["--scheduler", "fifo", "--confirm", "0", "--num-trials", str(trials)]
    where = ["--storage", str(storage), "--name", name, "--max-failures", "10"]
    command = [sys.executable, "-u", "-m", "mnist_ray.tune", *short, *all_alike, *where]
    with (storage / f"{name}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def trial_processes() -> list[psutil.Process]:
    named = psutil.process_iter(["cmdline"])
    return [each for each in named if "ray::ImplicitFunc" in " ".join(each.info["cmdline"] or [])]


def with_kills(study: subprocess.Popen[bytes], every: float) -> tuple[list[dict], list[dict]]:
    """Kill one trial's process after the other, until the study ends."""
    driver, began = psutil.Process(study.pid), time.monotonic()
    rng = random.Random(0)
    memory, kills, next_kill = [], [], 15.0
    while study.poll() is None:
        now = time.monotonic() - began
        if now > next_kill and (found := trial_processes()):
            victim = rng.choice(found)
            victim.kill()
            kills.append({"seconds": round(now, 1), "process": victim.pid})
            next_kill = now + every * rng.uniform(0.5, 1.5)
        memory.append({"seconds": round(now, 1), "mb": round(driver.memory_info().rss / 2**20, 1)})
        time.sleep(1)
    return memory, kills


def write(name: str, rows: list[dict]) -> None:
    with (HERE / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--every", type=float, default=10, help="Seconds between kills.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        storage = Path(folder)
        study = start(storage, "killed", args.trials)
        memory, kills = with_kills(study, args.every)
        undisturbed = start(storage, "undisturbed", args.trials)
        if study.wait() or undisturbed.wait():
            raise SystemExit((storage / "killed.log").read_text()[-2000:])
        rows = [
            {"study": name} | {column: row[column] for column in SAME}
            for name in ("killed", "undisturbed")
            for row in tables.read(storage / name).to_pylist()
        ]
        epochs = tables.read(storage / "killed", tables.EPOCHS).num_rows
        log = (storage / "killed.log").read_text()
    write("trials.csv", rows)
    write("memory.csv", memory)
    write("kills.csv", kills)
    killed, calm = (
        [row for row in rows if row["study"] == name] for name in ("killed", "undisturbed")
    )
    numbers = [row["trial"] for row in killed]
    print(
        f"{len(kills)} kills, {log.count(': its process')} trials hit on the way\n"
        f"{len(killed)} trials, {len(set(numbers))} of them different, {epochs} epochs\n"
        f"{sum(row['status'] == 'ok' for row in killed)} ok\n"
        f"{sum(a | {'study': 0} == b | {'study': 0} for a, b in zip(killed, calm, strict=True))}"
        " with the values and the final loss of the study without kills, to the last bit\n"
        f"driver: {memory[len(memory) // 5]['mb']} MB after a fifth of the time,"
        f" {memory[-2]['mb']} MB at the end"
    )


if __name__ == "__main__":
    main()
