"""How a command ends: 0 done, 1 a run failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM."""

import codecs
import errno
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
    """Something the user can put right. Its text is all that is shown; the exit code is 2."""


class RunFailed(Exception):
    """A run that began and did not come to its end. Its text is all that is shown; the exit code
    is 1."""


_received = int(signal.SIGINT)


def heed_signals() -> None:
    """Let SIGTERM, and SIGHUP of a terminal that closes, end a command as Ctrl-C does. Once more
    after Ray has started, which takes SIGTERM for itself."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
                signal.signal(number, interrupt)


def interrupt(number: int, frame: object = None) -> None:
    """Raise KeyboardInterrupt for the signal `number`."""
    if number == signal.SIGHUP:  # nobody reads any more, and writing would fail
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    global _received
    _received = number  # Ray may raise a KeyboardInterrupt of its own instead of this one
    raise KeyboardInterrupt


def run(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Call `command` with the arguments and return its exit code. Bugs are let through; the flag
    `--verbose` shows the traceback of other errors too."""
    argv = sys.argv[1:] if argv is None else argv
    heed_signals()
    _print_in_any_encoding()
    # The only Ray Train that this package speaks to; Ray reads this when it is imported.
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
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
    except BrokenPipeError:  # `… | head`: the reader has seen enough
        sys.stderr.close()
        return 0
    return 0


PLAIN = {"±": "+-", "→": "->", "…": "...", "≥": ">=", "≤": "<=", "\u00d7": "x", "\u2013": "-"}
"""What is written where the output's encoding lacks the character; for any other it is `?`."""


def _print_in_any_encoding() -> None:
    """Let nothing that is printed raise UnicodeEncodeError, whatever the terminal's encoding."""
    codecs.register_error("mnist_ray_plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="mnist_ray_plain")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """Return what to write for the first character that cannot be encoded, and where to go on."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a path that is not text: as it was
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return PLAIN.get(character, "?"), error.start + 1


LOW_ON_MEMORY = "low on memory"
"""Ray says this in the middle of a long text about a process that its memory monitor killed."""

NO_SPACE = os.strerror(errno.ENOSPC)


@contextmanager
def explain_storage_errors(folder: object) -> Iterator[None]:
    """Raises RunFailed for whatever was raised, by Ray too, because a disk was full or a bucket
    could not be reached."""
    try:
        yield
    except Exception as error:
        if lines := [line for line in str(error).splitlines() if "AWS Error" in line]:
            raise RunFailed(
                f"storage {folder} failed: {lines[-1].strip().rstrip('.')}. What was found so far"
                " is kept; go on with it when the storage is there again."
            ) from error
        if NO_SPACE not in str(error):
            raise
        here = [each for each in (folder, Path(gettempdir())) if isinstance(each, Path)]
        free = {each: shutil.disk_usage(each).free for each in here}
        full = min(free, key=lambda each: free[each])
        raise RunFailed(
            f"a disk is full: {full} has {free[full] / 1e6:.1f} MB left. What was found so far is"
            " kept; make room and go on with it."
        ) from error


def reason(error: Exception) -> str:
    """Why something could not be read or written, in a line."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, FileNotFoundError):
        text = os.strerror(errno.ENOENT)
    return text if len(text) <= 200 else text[:197] + "..."


def usable(field: str, path: Path) -> Path:
    """`path` made absolute; raises UserError if it could not name anything on this machine."""
    try:
        full = path.expanduser().resolve()
        is_folder = full.is_dir()  # raises for names that are too long, and where it may not look
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{field} {path} cannot be used: {error}.") from None
    if is_folder and not os.access(full, os.X_OK):
        raise UserError(f"{field} {path} cannot be used: you may not enter that folder.")
    return full
