"""Bad input to a command: exit code 2, one or two sentences, no traceback, nothing left behind."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mnist_ray
from mnist_ray import __main__, errors, evaluate, export, predict, search, train, tune
from mnist_ray.learn.data import Mnist

COMMANDS = {
    "train": train.main,
    "tune": tune.main,
    "evaluate": evaluate.main,
    "predict": predict.main,
    "export": export.main,
}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("train --dropout 1.5", "dropout is 1.5, but must be a number, at least 0, at most 0.9."),
        ("train --momentum -1", "momentum is -1, but must be a number, at least 0, below 1."),
        ("train --batch-size 0", "batch_size is 0, but must be a whole number, at least 1"),
        ("train --name ../x", "name is ../x, but must be letters, digits, dots"),
        (
            "train --config {tmp}/none.yaml",
            "none.yaml is neither a file nor one of the recipes",
        ),
        ("train --config bset", "neither a file nor one of the recipes best, fast, reference."),
        ("tune --config {tmp}/damaged", "damaged cannot be read: Is a directory"),
        ("train --data-dir {tmp}/damaged", "t10k-images-idx3-ubyte is damaged"),
        ("train --storage {tmp}/file --name x", "storage {tmp}/file cannot be used"),
        ("train --storage {tmp} --name damaged", "name damaged is taken"),
        ("train --storage ~nobody-here/x", "storage ~nobody-here/x cannot be used"),
        ("train --data-dir ~nobody-here/x", "data_dir ~nobody-here/x cannot be used"),
        ("evaluate ~nobody-here/x", "checkpoint ~nobody-here/x cannot be used"),
        ("train --storage /proc/x --name x", "storage /proc/x cannot be used"),
        ("tune --holdout 0", "holdout is 0, but a study chooses by held-out images"),
        ("tune --space lr", "space is 'lr', but must be like lr=loguniform(0.003,0.3)."),
        ("tune --space droput=uniform(0,1)", "space has droput, but can only have lr"),
        ("tune --space lr=uniform(0.1,20)", "lr is 20, but must be a number, above 0, at most 10."),
        ("tune --search grid --num-trials 3", "num_trials is 3, but the grid has 8 combinations"),
        ("tune --batch-size 127 --workers-per-trial 2", "which 2 workers cannot share equally"),
        ("evaluate {tmp}/damaged", "checkpoint {tmp}/damaged holds no checkpoint.pt"),
        ("evaluate {tmp}/none", "checkpoint {tmp}/none holds no checkpoint.pt"),
        ("predict {tmp}/none a.png", "checkpoint {tmp}/none holds no checkpoint.pt"),
        ("export {tmp}/none --format pt2 --output {tmp}/x", "checkpoint {tmp}/none holds no"),
        ("export {tmp}/none --format pt2 --output {tmp}", "output {tmp} cannot be written: it is"),
        ("export {tmp}/none --format pt2 --output {tmp}/no/x", "cannot be written: No such file"),
    ],
)
def test_bad_input(
    line: str, says: str, tmp_path: Path, mnist: Mnist, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "t10k-images-idx3-ubyte").write_bytes(b"short")
    before = sorted(tmp_path.rglob("*"))
    command, *argv = line.format(tmp=tmp_path).split()
    if "--storage" not in argv and command in ("train", "tune"):
        argv += ["--storage", str(tmp_path / "runs")]
    assert errors.run(COMMANDS[command], argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert says.format(tmp=tmp_path) in shown.err
    assert shown.err.count("\n") == 1
    (tmp_path / "runs").exists() and (tmp_path / "runs").rmdir()  # may exist, must be empty
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", list(__main__.COMMANDS))
def test_every_command_knows_its_version(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"mnist_ray.{command}").main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"mnist_ray {mnist_ray.__version__}\n"


COMPLETE = r"""
source ./script
[[ $(complete -p mnist-ray) =~ -F\ ([^ ]*) ]]
complete=${{BASH_REMATCH[1]}}
COMP_WORDS=({line} "")
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
$complete
echo "${{COMPREPLY[@]}}"
"""


def test_bash_completes_commands_flags_and_choices(tmp_path: Path) -> None:
    script = run("-m", "mnist_ray", "--completion", "bash")
    (tmp_path / "script").write_text(script.stdout)

    def completed(line: str) -> set[str]:
        words = ["bash", "--norc", "-c", COMPLETE.format(line=line)]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert completed("mnist-ray") >= set(__main__.COMMANDS)
    assert completed("mnist-ray tune --scheduler") == set(search.SCHEDULERS)
    assert completed("mnist-ray results") >= {"script"}  # a file


@pytest.mark.parametrize("flag", ["--droput", "--drop"])
def test_an_unknown_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train.main([flag, "0.1"])
    assert ended.value.code == 2
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env={**os.environ, **env}
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["-m", "mnist_ray"], 0),
        (["-m", "mnist_ray", "--help"], 0),
        (["-m", "mnist_ray", "--version"], 0),
        (["-m", "mnist_ray", "--completion", "bash"], 0),
        (["-m", "mnist_ray", "--completion"], 2),
        (["-m", "mnist_ray", "--completion", "sh"], 2),
        (["-m", "mnist_ray", "fly"], 2),
        (["-m", "mnist_ray", "train", "--lr", "0"], 2),
        (["-m", "mnist_ray.results", "--top", "0"], 2),
        # As `ray submit` runs a command: its file alone, with the package installed.
        ([train.__file__, "--lr", "0"], 2),
        ([tune.__file__, "--holdout", "0"], 2),
    ],
)
def test_exit_codes_of_the_processes(command: list[str], code: int) -> None:
    done = run(*command)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if command[-1] in ("mnist_ray", "--help", "fly"):
        assert all(name in done.stdout for name in COMMANDS)
