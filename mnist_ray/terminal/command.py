"""Commands: the parser that each one starts from, and commands to copy, written so that they work
in the user's own shell."""

import argparse
import os
import shlex
import shutil
import sys
from typing import Any

import mnist_ray

SCRIPT = "mnist-ray"
"""The command that pip installs."""


def parser(name: str, description: str, **options: Any) -> argparse.ArgumentParser:
    """Return a parser for the command `name` that knows --help and --version. `options` are those
    of ArgumentParser."""
    made = argparse.ArgumentParser(
        prog=typed(name), description=description, allow_abbrev=False, **options
    )
    version = f"mnist_ray {mnist_ray.__version__}"
    made.add_argument(
        "--version", action="version", version=version, help="show the version and exit"
    )
    return made


def typed(name: str, *words: str) -> str:
    """Return the command `name`, such as train, with the arguments `words`, quoted for a shell. It
    begins with the installed command if that started this process, or else with this Python, each
    by its path where the shell would not find it."""
    started = sys.argv[0]
    if os.path.basename(started) != SCRIPT:
        return shlex.join([_python(), "-m", f"mnist_ray.{name}", *words])
    if _same_file(shutil.which(SCRIPT) or "", started):
        started = SCRIPT
    elif not os.path.dirname(started):
        started = os.path.join(".", started)
    return shlex.join([started, name, *words])


def _python() -> str:
    folder = os.path.dirname(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name) or ""
        # Virtual environments link to one Python. In another folder it has other packages.
        if _same_file(found, sys.executable) and _same_file(os.path.dirname(found), folder):
            return name
    try:
        relative = os.path.relpath(sys.executable)
    except OSError:  # the current folder is gone
        return sys.executable
    below = os.path.dirname(relative) and not relative.startswith(os.pardir)
    return relative if below else sys.executable


def _same_file(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
