"""The commands as people type them, so that what is printed for copying works in their shell."""

import os
import shlex
import shutil
import sys

SCRIPT = "mnist-ray"
"""The command that pip installs."""


def typed(name: str, *words: str) -> str:
    """Return the command `name`, like train, with `words` after it, as it can be typed where this
    process was started: the installed command if that is what was started, or else the Python that
    runs this, by its path unless the shell finds it."""
    started = sys.argv[0]
    if os.path.basename(started) != SCRIPT:
        return shlex.join([_python(), "-m", f"mnist_ray.{name}", *words])
    if _is_one_file(shutil.which(SCRIPT) or "", started):
        started = SCRIPT
    elif not os.path.dirname(started):
        started = os.path.join(".", started)
    return shlex.join([started, name, *words])


def _python() -> str:
    folder = os.path.dirname(sys.executable)
    for name in ("python", "python3"):
        found = shutil.which(name) or ""
        # The same file in another folder is a Python with other packages: environments link to it.
        if _is_one_file(found, sys.executable) and _is_one_file(os.path.dirname(found), folder):
            return name
    try:
        here = os.path.relpath(sys.executable)
    except OSError:  # the current folder is gone
        return sys.executable
    return here if os.path.dirname(here) and not here.startswith(os.pardir) else sys.executable


def _is_one_file(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
