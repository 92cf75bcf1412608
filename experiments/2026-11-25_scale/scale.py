"""How the driver's cost grows with trials, and the data's way with nodes: trials.csv, nodes.csv."""

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import ray
from ray.cluster_utils import Cluster

from mnist_ray import learn, tables
from mnist_ray.config import Recipe, RunConfig

HERE = Path(__file__).parent
NOTHING = ["--train-size", "10", "--holdout", "10", "--batch-size", "10", "--epochs", "1"]
ALL_ALIKE = ["--scheduler", "fifo", "--confirm", "0"]


def study(trials: int, storage: str) -> dict[str, float]:
    """A study of trials that train on ten images: its seconds, its driver's memory, its files."""
    folder = Path(storage) / str(trials)
    flags = [*NOTHING, *ALL_ALIKE, "--num-trials", str(trials), "--storage", storage]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_ray.tune", *flags, "--name", str(trials)],
        stdout=subprocess.DEVNULL,
    )
    driver, memory = psutil.Process(process.pid), [0]
    while process.poll() is None:
        memory.append(driver.memory_info().rss)
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    assert process.returncode == 0
    rows = tables.read(folder).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * trials
    return {
        "trials": trials,
        "seconds": round(seconds, 1),
        "driver_mb": round(max(memory) / 1e6),
        "tables_mb": round(sum((folder / n).stat().st_size for n in _TABLES) / 1e6, 3),
        "tune_state_mb": round(
            sum(path.stat().st_size for path in folder.glob("experiment_state*")) / 1e6, 3
        ),
    }


_TABLES = (tables.TRIALS, tables.EPOCHS)


def distribution(nodes: int, mnist: learn.Mnist) -> dict[str, float]:
    """Seconds until each of so many nodes, with an object store of its own, has read MNIST."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1, object_store_memory=150_000_000)
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    class Reader:
        def ready(self) -> str:
            import mnist_ray.data  # torch takes seconds

            assert mnist_ray.data
            return str(ray.get_runtime_context().get_node_id())

        def read(self, reference: list[ray.ObjectRef]) -> int:
            return int(ray.get(reference[0]).train_images.sum())

    readers = [Reader.remote() for _ in range(nodes)]
    assert len(set(ray.get([each.ready.remote() for each in readers]))) == nodes
    began = time.perf_counter()
    reference = ray.put(mnist)
    put = time.perf_counter() - began
    began = time.perf_counter()
    ray.get([each.read.remote([reference]) for each in readers])
    read = time.perf_counter() - began
    began = time.perf_counter()
    ray.get([each.read.remote([reference]) for each in readers])
    again = time.perf_counter() - began
    ray.shutdown()
    cluster.shutdown()
    seconds = {"put_seconds": put, "read_seconds": read, "again_seconds": again}
    return {"nodes": nodes, **{name: round(value, 2) for name, value in seconds.items()}}


def record(name: str, rows: list[dict[str, float]]) -> None:
    with (HERE / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print((HERE / name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1000])
    parser.add_argument("--nodes", type=int, nargs="*", default=[1, 2, 4, 8])
    args = parser.parse_args()
    if args.trials:
        with tempfile.TemporaryDirectory() as storage:
            record("trials.csv", [study(trials, storage) for trials in args.trials])
    if args.nodes:
        mnist = learn.load_mnist(Recipe(), RunConfig().data_dir)
        record("nodes.csv", [distribution(nodes, mnist) for nodes in args.nodes])
    where = tables.provenance()
    print(f"{where['hardware']}; Ray {where['ray']}; commit {where['commit']}")


if __name__ == "__main__":
    main()
