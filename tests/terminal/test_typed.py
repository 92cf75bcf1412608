"""Commands that are printed to be copied work in the shells and environments that people have."""

import os
import shutil
import stat
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

import mnist_ray
from mnist_ray import tune
from mnist_ray.config import RunConfig
from mnist_ray.tables import run_folder
from mnist_ray.terminal import command, training

SYSTEM = "/usr/local/bin:/usr/bin:/bin"


def environment(folder: Path) -> Path:
    """Make a virtual environment in `folder`, with the packages of this one and the command
    `mnist-ray`."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    source = Path(mnist_ray.__file__).parent.parent
    (packages / "others.pth").write_text(f"{source}\n{sysconfig.get_path('purelib')}\n")
    script = folder / "bin" / "mnist-ray"
    main = "import sys\nfrom mnist_ray.__main__ import main\nsys.exit(main())\n"
    script.write_text(f"#!{folder}/bin/python\n{main}")
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return folder


def run(line: str, folder: Path, path: str) -> str:
    """Return what `line` prints, typed into a shell in `folder` with this PATH."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"PATH": path, "COLUMNS": "1000"}
    done = subprocess.run(
        ["/bin/sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("line", "path", "says"),
    [
        # As `make tune` and people call an environment that is not activated.
        (".venv/bin/python -m mnist_ray.tune", SYSTEM, ".venv/bin/python -m mnist_ray.tune"),
        (".venv/bin/python3 -m mnist_ray tune", SYSTEM, ".venv/bin/python3 -m mnist_ray.tune"),
        (".venv/bin/mnist-ray tune", SYSTEM, ".venv/bin/mnist-ray tune"),
        ("cd .venv/bin; ./python mnist-ray tune", SYSTEM, "./mnist-ray tune"),
        # In an activated environment.
        ("python -m mnist_ray.tune", "{folder}/.venv/bin:" + SYSTEM, "python -m mnist_ray.tune"),
        ("python3 -m mnist_ray.tune", "{folder}/.venv/bin:" + SYSTEM, "python -m mnist_ray.tune"),
        ("mnist-ray tune", "{folder}/.venv/bin:" + SYSTEM, "mnist-ray tune"),
        (".venv/bin/mnist-ray tune", "{folder}/.venv/bin:" + SYSTEM, "mnist-ray tune"),
        # While another environment is activated.
        (
            ".venv/bin/python -m mnist_ray.tune",
            "{folder}/my other/bin:" + SYSTEM,
            ".venv/bin/python -m mnist_ray.tune",
        ),
        (
            ".venv/bin/mnist-ray tune",
            "{folder}/my other/bin:" + SYSTEM,
            ".venv/bin/mnist-ray tune",
        ),
        # From another folder.
        (
            "cd elsewhere; '{folder}/my other/bin/python' -m mnist_ray.tune",
            SYSTEM,
            "'{folder}/my other/bin/python' -m mnist_ray.tune",
        ),
        # As `ray submit` runs it on the head.
        ("python tune.py", "{folder}/.venv/bin:" + SYSTEM, "python -m mnist_ray.tune"),
    ],
)
def test_what_is_printed_can_be_typed(line: str, path: str, says: str, environments: Path) -> None:
    line, path, says = (each.format(folder=environments) for each in (line, path, says))
    printed = run(f"{line} --help", environments, path)
    typed, flags, _ = printed.removeprefix("usage: ").partition(" [-h]")
    assert (typed, flags) == (says, " [-h]")
    where = environments / line.partition(";")[0][3:] if ";" in line else environments
    assert run(f"{typed} --help", where, path) == printed


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed").resolve()
    for name in (".venv", "my other"):
        environment(folder / name)
    (folder / "elsewhere").mkdir()
    shutil.copy(tune.__file__, folder / "tune.py")
    return folder


def test_without_a_command_the_commands_are_listed(environments: Path) -> None:
    printed = run(".venv/bin/mnist-ray", environments, SYSTEM)
    assert "usage: .venv/bin/mnist-ray COMMAND" in printed
    printed = run(".venv/bin/python -m mnist_ray", environments, SYSTEM)
    assert "usage: .venv/bin/python -m mnist_ray.COMMAND" in printed


def test_words_are_quoted(environments: Path) -> None:
    code = "from mnist_ray.terminal import typed; print(typed('results', '/x y', '--top', '3'))"
    printed = run(f'.venv/bin/python -c "{code}"', environments, SYSTEM).strip()
    assert printed == ".venv/bin/python -m mnist_ray.results '/x y' --top 3"


def test_a_training_run_prints_the_next_command_and_the_one_that_resumes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    show = training.Training()
    show.stopped(run_folder.resume_flags(tmp_path / "it", RunConfig()))
    row = {"status": "ok", "scored_on": "test", "checkpoint": "a", "best_epoch": 1}
    row |= dict.fromkeys(("final_accuracy", "best_accuracy", "train_seconds", "total_seconds"), 1)
    show.end(row, tmp_path, last=tmp_path / "a")
    shown = capsys.readouterr().out
    assert f"  {command.typed('train')} --resume --name it" in shown
    assert f"Next: {command.typed('evaluate')} {tmp_path}/a" in shown
