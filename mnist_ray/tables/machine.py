"""The machine, the versions and the commit that a run was made with."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mnist_ray.tables.schema import Row


def provenance() -> Row:
    """Return the columns of the trials table that say with what a run was made."""
    row: Row = {
        "hardware": _hardware(),
        "python": platform.python_version(),
        "commit": _commit(PACKAGE),
    }
    for package in ("torch", "ray", "mnist_ray"):
        try:
            row[package] = version(package)
        except PackageNotFoundError:
            row[package] = None
    return row


PACKAGE = Path(__file__).resolve().parent.parent
PROJECT = r"""^name *= *["']mnist[-_.]ray["']"""
"""The line of pyproject.toml that tells mnist_ray's project from another one."""
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
"""Variables that git sets for a hook, and that point git commands at the hook's repository."""


def _hardware() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    name = model[1].strip() if model else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _commit(package: Path) -> str | None:
    """Return the commit of mnist_ray's own checkout, in which the package lies at the top, beside
    the project file that names it. Return None anywhere else: the commits of a repository in which
    somebody installed or copied the package say nothing about it."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k not in OTHER_REPOSITORY}
        return subprocess.run(
            ["git", "-C", str(package), *command], capture_output=True, text=True, env=environment
        )

    project = package.parent / "pyproject.toml"
    try:
        if not re.search(PROJECT, project.read_text(encoding="utf-8"), re.MULTILINE):
            return None
        described = git("rev-parse", "--show-toplevel", "--short", "HEAD")
        tracked = git("ls-files", "--error-unmatch", ".")
        changed = git("diff", "--quiet", "HEAD", "--", ".")
    except (OSError, UnicodeDecodeError):
        return None
    top, _, commit = described.stdout.rstrip("\n").rpartition("\n")
    if described.returncode or tracked.returncode or Path(top).resolve() != package.parent:
        return None
    return commit + "+" * (changed.returncode == 1)
