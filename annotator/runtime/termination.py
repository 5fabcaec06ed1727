"""Treat SIGTERM, which `kill` and cluster managers send, as Ctrl-C: clean up, print one line, end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: Exit status after SIGTERM: 128 plus its number.
TERMINATED_CODE = 128 + signal.SIGTERM


_received = threading.Event()


class Terminated(KeyboardInterrupt):
    """This process received SIGTERM."""


def was_terminated() -> bool:
    """Return whether this process received SIGTERM. Ray may raise a plain `KeyboardInterrupt` in its place."""
    return _received.is_set()


def stop_on_sigterm() -> None:
    """Raise `Terminated` in the main thread when SIGTERM arrives; does nothing in other threads."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    _received.set()
    raise Terminated


@contextmanager
def same_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM while Ray starts, which would replace it by one that exits with code 15, silently."""
    from ray._private import utils

    if signal.getsignal(signal.SIGTERM) is not _stop or not hasattr(utils, "set_sigterm_handler"):
        yield
        return
    replace = utils.set_sigterm_handler
    utils.set_sigterm_handler = lambda handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = replace
        signal.signal(signal.SIGTERM, _stop)
