"""Commands can print to a terminal of any encoding."""

import io
import os
import subprocess
import sys
from collections.abc import Sequence

import pytest
from rich.table import Table

from mnist_ray import errors
from mnist_ray.terminal import training


def printed(encoding: str, *texts: object) -> bytes:
    """Return the bytes on stdout and stderr of a command that prints `texts` and then fails."""
    written = io.BytesIO()

    def command(_: Sequence[str]) -> None:
        for text in texts:
            training.console().print(text)
        raise errors.UserError(str(texts[0]))

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stdout", "stderr"):
            stream = io.TextIOWrapper(written, encoding=encoding, write_through=True)
            patch.setattr(sys, name, stream)
        assert errors.run(command, []) == 2
        sys.stdout.detach(), sys.stderr.detach()  # type: ignore[union-attr]
    return written.getvalue()


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("utf-8", "99.2 ± 0.1 % → …/ü", "99.2 ± 0.1 % → …/ü".encode()),
        ("ascii", "99.2 ± 0.1 % → …/ü ≥ 1", b"99.2 +- 0.1 % -> .../? >= 1"),
        ("latin-1", "99.2 ± 0.1 % → ü", b"99.2 \xb1 0.1 % -> \xfc"),
        ("cp1252", "± → 日本", b"\xb1 -> ??"),
        # Undecodable bytes in a folder's name stay as they are.
        ("utf-8", os.fsdecode(b"/runs/\xff"), b"/runs/\xff"),
        ("ascii", os.fsdecode(b"/runs/\xff"), b"/runs/\xff"),
    ],
)
def test_a_terminal_of_another_encoding(encoding: str, text: str, shown: bytes) -> None:
    assert printed(encoding, text) == shown + b"\nerror: " + shown + b"\n"


def test_the_boxes_of_tables() -> None:
    table = Table("a", "b", title="±")
    table.add_row("1", "2")
    assert printed("ascii", table).isascii()


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_a_command_of_another_encoding(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mnist_ray.results", "/nöwhere/±"],
        capture_output=True,
        env={**os.environ, **environment},
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: path /n")
    assert done.stderr.count(b"\n") == 1
