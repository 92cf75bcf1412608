"""Where a run was made: the machine, the versions, the commit of mnist_ray's own checkout."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mnist_ray.tables.schema import Row


def provenance() -> Row:
    """The columns that say where a run was made."""
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
"""A line of mnist_ray's pyproject.toml."""
OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR")
"""Variables by which git, within one of its hooks, names the repository that the hook is of."""


def _hardware() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {os.cpu_count()} cores"


def _commit(package: Path) -> str | None:
    """The commit of mnist_ray's own checkout: a repository with this package at its top, and the
    project file that names it. One that it is installed in or copied into has other commits."""

    def git(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {name: v for name, v in os.environ.items() if name not in OTHER_REPOSITORY}
        return subprocess.run(
            ["git", "-C", str(package), *command], capture_output=True, text=True, env=environment
        )

    project = package.parent / "pyproject.toml"
    try:
        if not re.search(PROJECT, project.read_text(encoding="utf-8"), re.MULTILINE):
            return None
        top = git("rev-parse", "--show-toplevel")
        tracked = git("ls-files", "--error-unmatch", ".")
        head = git("rev-parse", "--short", "HEAD")
        changed = git("diff", "--quiet", "HEAD", "--", ".")
    except (OSError, UnicodeDecodeError):
        return None
    if top.returncode or tracked.returncode or head.returncode:
        return None
    if Path(top.stdout.rstrip("\n")).resolve() != package.parent:
        return None
    return head.stdout.strip() + "+" * (changed.returncode == 1)
