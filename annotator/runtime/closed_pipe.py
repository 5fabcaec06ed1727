"""Outputs whose reader has ended, such as `head` in `amvur jobs list | head`."""

from __future__ import annotations

import os
import select

#: The exit status of a program that a closed pipe ends: 128 and the number of SIGPIPE.
CLOSED_PIPE_CODE = 128 + 13


def drop_closed_outputs() -> bool:
    """Send stdout and stderr to nowhere where their reader has ended; return whether one has."""
    closed = [output for output in (1, 2) if _is_closed(output)]
    if closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for output in closed:
            os.dup2(nowhere, output)  # whatever is still buffered goes there, without a further error
        os.close(nowhere)
    return bool(closed)


def _is_closed(output: int) -> bool:
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(output, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
