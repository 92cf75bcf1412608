"""The package: what the wheel holds, and what it says of itself."""

import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import mnist_ray
from mnist_ray.config import RECIPES

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "mnist_ray"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the files that git would commit."""
    source = tmp_path_factory.mktemp("source")
    listed = [
        "git",
        "-C",
        REPOSITORY,
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    names = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = source / "built"
    done = subprocess.run([*pip, "-q", "-w", built, source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = built.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_every_file_of_the_package_and_no_other(wheel: zipfile.ZipFile) -> None:
    listed = ["git", "-C", PACKAGE, "ls-files", "--cached", "--others", "--exclude-standard"]
    ours = subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split()
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == {f"mnist_ray/{name}" for name in ours if (PACKAGE / name).exists()}
    assert "mnist_ray/py.typed" in held
    for file in RECIPES.values():
        assert f"mnist_ray/{file.relative_to(PACKAGE)}" in held


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"mnist_ray-{mnist_ray.__version__}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{info}/METADATA"))
    assert metadata["License-Expression"] == "MIT"
    assert wheel.read(f"{info}/licenses/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
    assert b"mnist-ray = mnist_ray.__main__:main" in wheel.read(f"{info}/entry_points.txt")


def test_every_place_that_names_the_version_names_the_same() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == mnist_ray.__version__
    changes = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = next(line for line in changes.splitlines() if line.startswith("## "))
    assert newest.split()[1] == mnist_ray.__version__
