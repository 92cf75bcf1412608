"""How a command ends: with exit code 0 for success, 1 for a failed run, 2 for bad input, 130 for
Ctrl-C, or 143 for SIGTERM."""

import atexit
import codecs
import errno
import gc
import io
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir


class UserError(Exception):
    """Bad input that the user can correct. The command prints only its text and exits with 2."""


class RunFailed(Exception):
    """A run that started and failed. The command prints only its text and exits with 1."""


_received = int(signal.SIGINT)


def heed_signals() -> None:
    """Let SIGTERM, and the SIGHUP of a closed terminal, end a command as Ctrl-C does. Call this
    again after Ray has started, because Ray replaces the handler of SIGTERM."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # it is ignored under nohup
                signal.signal(number, interrupt)


def interrupt(number: int, frame: object = None) -> None:
    """Raise KeyboardInterrupt for the signal `number`."""
    if number == signal.SIGHUP:  # the terminal is gone, and writing to it would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    global _received
    _received = number  # kept here, because Ray may replace this exception by its own
    raise KeyboardInterrupt


def run(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Call `command` with the arguments and return its exit code. Unexpected exceptions pass
    through; with `--verbose` the expected errors print their traceback, too."""
    argv = sys.argv[1:] if argv is None else argv
    heed_signals()
    _print_in_any_encoding()
    # The package needs version 2 of Ray Train; Ray reads this variable at import.
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    # At its end, Python would look for garbage among all objects of PyTorch and Ray. That takes up
    # to a second, and nothing needs it.
    atexit.register(gc.freeze)
    try:
        command(argv)
    except (UserError, RunFailed) as error:
        if "--verbose" in argv:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + _received
    except BrokenPipeError:  # `… | head` has read enough
        sys.stderr.close()
        return 0
    return 0


PLAIN = {"±": "+-", "→": "->", "…": "...", "≥": ">=", "≤": "<=", "\u00d7": "x", "\u2013": "-"}
"""Replacements for characters that the output's encoding lacks; a character not listed here becomes
`?`."""


def _print_in_any_encoding() -> None:
    """Replace characters that the terminal's encoding lacks, instead of raising an error."""
    codecs.register_error("mnist_ray_plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mnist_ray_plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return the replacement of the first character that cannot be encoded, and the next index."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # an undecodable byte of a path: written unchanged
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return PLAIN.get(character, "?"), error.start + 1


LOW_ON_MEMORY = "low on memory"
"""Words in Ray's long message about a process that its memory monitor killed."""

NO_SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def explain_storage_errors(folder: object) -> Iterator[None]:
    """Raise RunFailed instead of any error, including Ray's, that says that a disk was full or a
    bucket failed. `folder` is where the run is stored."""
    try:
        yield
    except Exception as error:
        if lines := [line for line in str(error).splitlines() if "AWS Error" in line]:
            raise RunFailed(
                f"storage {folder} failed: {lines[-1].strip().rstrip('.')}. What was found so far"
                " is kept; resume it when the storage works again."
            ) from error
        if NO_SPACE not in str(error):
            raise
        local = [each for each in (folder, Path(gettempdir())) if isinstance(each, Path)]
        free = {each: shutil.disk_usage(each).free for each in local}
        full = min(free, key=lambda each: free[each])
        raise RunFailed(
            f"a disk is full: {full} has {free[full] / 1e6:.1f} MB left. What was found so far is"
            " kept; make room and resume it."
        ) from error


def reason(error: Exception) -> str:
    """Return in one line, of at most 200 characters, why a file could not be read or written."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        text = os.strerror(errno.ENOENT)
    return text if len(text) <= 200 else text[:197] + "..."
