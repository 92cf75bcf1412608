"""Environment variables, signal handlers and log levels that are restored after a block, so that a
call from a notebook leaves the notebook's process as it was."""

import logging
import os
import signal
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

NONE: Mapping[str, str] = {}


@contextmanager
def environment(
    values: Mapping[str, str] = NONE,
    unless_set: Mapping[str, str] = NONE,
    also: Collection[str] = (),
) -> Iterator[None]:
    """Set environment variables for a block: all of `values`, and those of `unless_set` that the
    user has not set. Afterwards, restore these variables and those named in `also`, which the block
    itself may set."""
    before = {name: os.environ.get(name) for name in {*values, *unless_set, *also}}
    os.environ.update({**unless_set, **os.environ, **values})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def signal_handlers() -> Iterator[None]:
    """Restore the signal handlers after a block that replaces them, as Ray does."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # other threads cannot set any
            for number, handler in before.items():
                if handler is not None and handler != signal.getsignal(number):
                    signal.signal(number, handler)


@contextmanager
def log_level(name: str, level: int | None = None) -> Iterator[None]:
    """Set a logger's level for a block, if one is given, and restore it after the block."""
    logger = logging.getLogger(name)
    before = logger.level
    if level is not None:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
