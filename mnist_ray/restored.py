"""What a call replaces in its process is replaced for a block, so that a notebook that makes the
call goes on as it was: environment variables, signal handlers, log levels.
"""

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
    """Set environment variables for a block: `values`, and of `unless_set` those that the user has
    not set. They are put back afterwards, and so are those named in `also`, which the block sets
    by itself."""
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
    """Let a block set signal handlers, as Ray does, and put those from before back after it."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # no other one can set any
            for number, handler in before.items():
                if handler is not None and handler != signal.getsignal(number):
                    signal.signal(number, handler)


@contextmanager
def log_level(name: str, level: int | None = None) -> Iterator[None]:
    """Set the level of a logger for a block, or let the block set it."""
    logger = logging.getLogger(name)
    before = logger.level
    if level is not None:
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
