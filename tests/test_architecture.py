"""Who may know whom. The README's arrows are these."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_ray

PACKAGE = Path(mnist_ray.__file__).parent
ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")

MAY_IMPORT = {
    "errors": set(),
    "command": set(),
    "storage": {"errors"},
    "fields": {"errors", "storage"},
    "config": {"fields"},
    "flags": {"command", "config", "errors", "fields", "runs", "storage"},
    "fetch": {"errors", "storage"},
    "samples": set(),
    "restored": set(),
    "ray_private": set(),
    "data": {"fetch"},
    "recipe": {"config", "data"},
    "kernels": set(),
    "model": {"config", "kernels"},
    "checkpoint": {"config", "errors", "fields", "storage"},
    "engine": {"config", "data", "model", "recipe"},
    "process": {"kernels"},
    "scoring": {"checkpoint", "data", "engine", "errors", "model", "storage"},
    "evaluate": {"checkpoint", "command", "config", "data", "errors", "samples", "scoring"},
    "tables": {"config", "errors", "storage", "verdict"},
    "results": {
        "command",
        "config",
        "errors",
        "report",
        "runs",
        "samples",
        "storage",
        "tables",
        "verdict",
    },
    "axes": set(),
    "figures": {"axes", "restored", "samples", "verdict"},
    "page": set(),
    "report": {
        "axes",
        "errors",
        "figures",
        "page",
        "results",
        "samples",
        "storage",
        "tables",
        "verdict",
    },
    "resources": {"errors", "storage"},
    "cluster": {"errors", "ray_private", "resources", "restored"},
    "runs": {"command", "config", "errors", "fields", "storage"},
    "search": {"config", "errors", "fields", "restored"},
    "plan": {"config", "errors", "search", "tables", "verdict"},
    "resume": {"checkpoint", "config", "runs", "storage", "tables"},
    "display": {"command", "config", "data", "model", "resources", "storage"},
    "verdict": {"samples"},
    "display_study": {
        "command",
        "config",
        "display",
        "errors",
        "plan",
        "resources",
        "results",
        "samples",
        "storage",
        "tables",
        "verdict",
    },
    "schedulers": {"plan", "runs", "search", "storage", "tables", "verdict"},
    "tracking": {"errors", "restored"},
    "recorder": {
        "checkpoint",
        "config",
        "display_study",
        "errors",
        "ray_private",
        "resources",
        "resume",
        "runs",
        "schedulers",
        "storage",
        "tables",
        "verdict",
    },
    "trainer": {
        "checkpoint",
        "cluster",
        "config",
        "data",
        "display",
        "errors",
        "model",
        "resources",
        "resume",
        "runs",
        "scoring",
        "storage",
        "tables",
        "verdict",
        "workers",
    },
    "workers": {
        "checkpoint",
        "config",
        "data",
        "engine",
        "process",
        "ray_private",
        "resources",
        "storage",
    },
    "trial": {
        "checkpoint",
        "config",
        "data",
        "engine",
        "errors",
        "process",
        "resources",
        "runs",
        "storage",
        "workers",
    },
    "train": {"config", "display", "errors", "flags", "trainer", "verdict"},
    "study": {
        "checkpoint",
        "cluster",
        "config",
        "data",
        "display_study",
        "engine",
        "errors",
        "plan",
        "ray_private",
        "recorder",
        "resources",
        "restored",
        "resume",
        "runs",
        "schedulers",
        "scoring",
        "search",
        "storage",
        "tables",
        "tracking",
        "trial",
        "verdict",
    },
    "tune": {"config", "display_study", "errors", "flags", "study"},
    "__main__": {"command", "errors"},
}


def imports_of(room: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{room}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "mnist_ray":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mnist_ray."):
            found.add(str(node.module).split(".")[1])
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    assert imports_of(room) == MAY_IMPORT[room]


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_laptop_without_ray_trains_scores_and_reads_tables(tmp_path: Path) -> None:
    run_python(f"""
import sys
sys.modules["ray"] = None  # any import of it now fails
from pathlib import Path
import numpy as np
from mnist_ray import checkpoint, config, data, engine, plan, report, scoring, tables
folder = Path({str(tmp_path)!r})
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (200, 28, 28), np.uint8), rng.integers(0, 10, 200, np.uint8)
mnist = data.Mnist(images, labels, images, labels)
recipe, rows = config.TrainConfig(epochs=1), []
splits = data.split(mnist, 0)
def keep(metrics, state):
    rows.append(metrics)
    checkpoint.save(folder, checkpoint.Checkpoint(state, recipe, [metrics], splits.hash))
engine.fit(recipe, splits, on_epoch=keep)
assert scoring.score_test(folder, mnist).accuracy == rows[0]["accuracy"]
epochs = [tables.epoch_row("a", 0, metrics) for metrics in rows]
tables.write(folder, [tables.trial_row(recipe.model_dump(), rows)], epochs)
assert tables.read(folder)["final_accuracy"][0].as_py() == rows[0]["accuracy"]
""")


@pytest.mark.parametrize("command", ["results", "train", "tune", "evaluate"])
def test_tables_and_flags_need_neither_torch_nor_ray(command: str) -> None:
    loaded = run_python(f"import mnist_ray.{command}, sys; print(*sys.modules)").split()
    assert not {"torch", "ray", "pandas"} & set(loaded)


def test_nothing_happens_at_import() -> None:
    # Only what mnist_ray itself does counts, so its packages are imported first.
    run_python(f"""
import sys, logging
import optuna, pyarrow.csv, pyarrow.parquet, pydantic, ray.train.torch, ray.tune.search.optuna
import ray.tune.integration.ray_train, ray.util.queue, rich.live, rich.progress, torch, yaml
handlers = list(logging.getLogger().handlers)
def watch(event, args):
    wrote = event == "open" and set(str(args[1])) & set("wax+") and ".pyc" not in str(args[0])
    if wrote or event in ("os.mkdir", "subprocess.Popen", "socket.connect", "os.putenv"):
        raise AssertionError((event, args))
sys.addaudithook(watch)
for room in {ROOMS!r}:
    if room != "__main__":
        __import__(f"mnist_ray.{{room}}")
assert not ray.is_initialized()
assert logging.getLogger().handlers == handlers
""")
