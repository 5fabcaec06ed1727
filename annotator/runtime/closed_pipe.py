"""Outputs whose reader has closed them, such as `head` in `amvur jobs list | head`."""

from __future__ import annotations

import os
import select

#: Exit status after SIGPIPE: 128 plus its number.
CLOSED_PIPE_CODE = 128 + 13


def drop_closed_outputs() -> bool:
    """Redirect stdout and stderr to the null device if their reader has closed them; return whether one has."""
    closed = [output for output in (1, 2) if _is_closed(output)]
    if closed:
        null = os.open(os.devnull, os.O_WRONLY)
        for output in closed:
            os.dup2(null, output)  # buffered output is dropped without another error
        os.close(null)
    return bool(closed)


def _is_closed(output: int) -> bool:
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
