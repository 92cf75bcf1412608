"""The house: which part may know which, and what none may do."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnist_ray

PACKAGE = Path(mnist_ray.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
PARTS = ("learn", "search", "cluster", "tables", "terminal")
MAY_IMPORT = {
    "learn": set(),
    "search": set(),
    "tables": {"search"},
    "cluster": {"learn", "search", "tables"},
    "terminal": {"cluster", "learn", "search", "tables"},  # of the first two, types alone
}
"""The parts that each may import, besides those of FOUNDATION, which all may."""

FOUNDATION = ("config", "errors", "fields", "restored", "storage")


def name(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def part_of(file: Path) -> str:
    """The part that a file belongs to, or empty for one at the top."""
    inside = file.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else ""


def imports(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Each module that a file imports from, with the names that it takes."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_parts_import_one_way(file: Path) -> None:
    me = part_of(file)
    for module, names in imports(file):
        asked = {module.split(".")[1]} if module.startswith("mnist_ray.") else set()
        asked |= set(names) if module == "mnist_ray" else set()
        if me:
            assert asked <= {me, *MAY_IMPORT[me], *FOUNDATION}
        elif file.stem in FOUNDATION:
            assert asked <= {*FOUNDATION}


@pytest.mark.parametrize("file", FILES, ids=name)
def test_from_outside_only_the_face_of_a_part_is_used(file: Path) -> None:
    tree = ast.parse(file.read_text())
    known = {part for module, names in imports(file) if module == "mnist_ray" for part in names}
    for part in set(PARTS) - {part_of(file)}:
        face = set(importlib.import_module(f"mnist_ray.{part}").__all__)
        for module, names in imports(file):
            assert not module.startswith(f"mnist_ray.{part}."), module
            if module == f"mnist_ray.{part}":
                assert set(names) <= face
        for node in ast.walk(tree) if part in known else ():
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != part or node.attr in face, node.attr


@pytest.mark.parametrize("part", PARTS)
def test_a_face_exports_what_it_says(part: str) -> None:
    face = importlib.import_module(f"mnist_ray.{part}")
    assert face.__doc__
    assert sorted(face.__all__) == sorted(set(face.__all__))
    assert all(hasattr(face, name) for name in face.__all__)


def test_only_the_cluster_imports_ray_and_only_learning_and_it_torch() -> None:
    for file in FILES:
        packages = {module.split(".")[0] for module, _ in imports(file)}
        assert "ray" not in packages or part_of(file) == "cluster", file
        assert not packages & {"torch", "torchvision"} or part_of(file) in ("cluster", "learn")


def test_no_script_reaches_into_a_module() -> None:
    """No experiment assigns to a module of the package, or writes a network or a loop anew."""
    experiments = PACKAGE.parent / "experiments"
    for file in experiments.rglob("*.py"):
        tree = ast.parse(file.read_text())
        ours = {name for module, names in imports(file) if module == "mnist_ray" for name in names}
        for node in ast.walk(tree):
            for target in getattr(node, "targets", ()):
                assert not (
                    isinstance(target, ast.Attribute)
                    and isinstance(target.value, ast.Name)
                    and target.value.id in ours
                ), file


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
from mnist_ray import config, learn, search, tables
folder = Path({str(tmp_path)!r})
rng = np.random.default_rng(0)
images, labels = rng.integers(0, 256, (200, 28, 28), np.uint8), rng.integers(0, 10, 200, np.uint8)
mnist = learn.Mnist(images, labels, images, labels)
recipe, rows = config.Recipe(epochs=1), []
splits = learn.split(mnist, 0)
def keep(metrics, state):
    rows.append(metrics)
    learn.save_checkpoint(folder, learn.Checkpoint(state, recipe, [metrics], splits.hash))
learn.fit(recipe, splits, on_epoch=keep)
assert learn.score_test(folder, mnist).accuracy == rows[0]["accuracy"]
epochs = [tables.epoch_row("a", 0, metrics) for metrics in rows]
tables.write(folder, [tables.trial_row(recipe.model_dump(), rows)], epochs)
assert tables.read(folder)["final_accuracy"][0].as_py() == rows[0]["accuracy"]
tables.write_report([folder], folder / "report.html")
""")


@pytest.mark.parametrize("command", ["results", "train", "tune", "evaluate", "predict", "export"])
def test_tables_and_flags_need_neither_torch_nor_ray(command: str) -> None:
    loaded = run_python(f"import mnist_ray.{command}, sys; print(*sys.modules)").split()
    assert not {"torch", "ray", "pandas", "optuna", "plotly"} & set(loaded)


def test_what_is_not_python_is_installed_too() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    installed = {
        file
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for file in PACKAGE.parent.joinpath(*package.split(".")).glob(pattern)
    }
    others = {file for file in PACKAGE.rglob("*.*") if file.suffix not in (".py", ".pyc")}
    numba = {file for file in others if file.parent.name == "__pycache__"}
    assert others - numba == installed
    assert PACKAGE / "tables" / "draw.js" in installed


def test_nothing_happens_at_import() -> None:
    modules = [
        ".".join(("mnist_ray", *file.relative_to(PACKAGE).with_suffix("").parts))
        for file in FILES
        if file.stem not in ("__main__", "__init__")
    ]
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
for module in {modules!r}:
    __import__(module)
assert not ray.is_initialized()
assert logging.getLogger().handlers == handlers
""")
