"""One run at a time into a label folder: a file that the run which holds it writes anew every few seconds.

A run that was killed leaves the file behind, but not its pulse: whoever comes next and sees the file change waits no
longer and is refused; who sees it stand still takes it over. Clocks of two machines are never compared. Into a store
that has conditional writes, each pulse replaces the one before and nothing else, so that one run at most has it.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from annotator.errors import UserError
from annotator.sources.entry import plain
from annotator.storage.conditional import OvertakenError, put_if_unchanged, version_of
from annotator.storage.files import is_local, join, local_path, read_whole, remove_file, write_whole
from annotator.storage.remote import ANSWER_S

FILE = "_lease.json"

BEAT_S = 5.0

#: A pulse that stands still so long has stopped: a slow store takes up to `ANSWER_S` an answer, and a beat needs two.
STILL_S = 3 * ANSWER_S

#: Two runs that start together may both see no lease: the one that finds its own after so long has it.
_SETTLE_S = 0.2

#: How long the end of a run waits for a pulse on its way to the store.
_LAST_BEAT_S = 60.0

#: The runs that this process holds leases of: one that ended may have left its file to a store that was away.
_ours: set[str] = set()


class Lease:
    """The right to write into a label folder, as long as nobody else took it."""

    def __init__(self, labels: str) -> None:
        self._labels, self._url = labels, join(labels, FILE)
        self._mine: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "began": _began(os.getpid()),
        }
        self._beats = 0
        self._version: str | None = None  # of the file in a store that a pulse replaces
        self._stop = threading.Event()
        self._keeper: threading.Thread | None = None
        self._lost = False

    @property
    def run(self) -> str:
        """The run that it is of."""
        return str(self._mine["run"])

    def check(self) -> None:
        """Go on only while it is ours.

        Raises:
            UserError: another run took it, because this one had stood still.
        """
        if self._lost:
            raise UserError(
                f"another run took over '{self._labels}' while this one stood still; what is there stays"
            )

    def confirm(self) -> None:
        """Look whether it is ours, before something is written that only one may write; raises as `check` does."""
        self._lost = self._lost or not self._is_ours(_read(self._url))
        self.check()

    def take(self) -> None:
        """Take the lease, or see that another run lives.

        Raises:
            UserError: it does.
        """
        there = _read(self._url)
        if there is not None and self._lives(there):
            raise UserError(
                f"another run (process {_said(there, 'pid')} on {_said(there, 'host')}) is writing to "
                f"'{self._labels}': wait for its end, or stop it first; the same command then goes on where it was"
            )
        just_now = UserError(
            f"another run began to write to '{self._labels}' just now: wait for its end, or stop it first; "
            "the same command then goes on where it was"
        )
        with _alone(self._labels):
            now, version = self._seen()
            if now not in (None, there):
                raise just_now
            self._version = version
            _ours.add(self._mine["run"])
            try:
                self._beat()
            except OvertakenError:
                raise just_now from None
        # Runs on other machines, or into a store, do not wait for each other.
        time.sleep(_SETTLE_S if is_local(self._labels) else 5 * _SETTLE_S)
        if not self._is_ours(_read(self._url)):
            raise just_now
        self._keeper = threading.Thread(target=self._keep, daemon=True)
        self._keeper.start()

    def give_back(self) -> None:
        """End it, unless another run has it by now."""
        self._stop.set()
        if self._keeper is not None:
            # Else a pulse on its way would come after the end, and stay.
            self._keeper.join(_LAST_BEAT_S)
        _ours.discard(self._mine["run"])
        with suppress(OSError):
            if self._is_ours(_read(self._url)):
                remove_file(self._url)

    def _is_ours(self, there: dict[str, Any] | None) -> bool:
        return there is not None and there.get("run") == self._mine["run"]

    def _lives(self, there: dict[str, Any]) -> bool:
        if all(there.get(name) == self._mine[name] for name in ("host", "boot", "pid", "began")):
            return there.get("run") in _ours
        if there.get("host") == self._mine["host"] and there.get("boot") == self._mine["boot"]:
            began = _began(there.get("pid"))
            return began is not None and began == there.get("began")
        until = time.monotonic() + STILL_S
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT_S / 2))
            now = _read(self._url)
            if now is None:
                return False
            if now != there:
                return True
        return False

    def _seen(self) -> tuple[dict[str, Any] | None, str | None]:
        """The lease that is there, and the ETag of a file that is no newer: a later one makes a pulse fail."""
        version = None if is_local(self._url) else version_of(self._url)
        return _read(self._url), version

    def _beat(self) -> None:
        """Write the next pulse in the place of what was seen or written last.

        Raises:
            OvertakenError: a store has another run's by now.
        """
        self._beats += 1
        data = json.dumps({**self._mine, "beat": self._beats}).encode()
        if is_local(self._url):
            write_whole(self._url, data)
            return
        try:
            self._version = put_if_unchanged(self._url, data, self._version)
        except OvertakenError:
            if read_whole(self._url) != data:  # else it is ours, and the answer to it was lost
                raise
            self._version = None
        if self._version is None:
            self._version = version_of(self._url)

    def _keep(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(OSError):  # a store that is away for a while; who takes the lease meanwhile has it
                there = _read(self._url)
                if not self._is_ours(there):
                    self._lost = not self._stop.is_set()
                    return
                if not self._stop.is_set():
                    try:
                        self._beat()
                    except OvertakenError:
                        self._lost = not self._stop.is_set()
                        return


@contextmanager
def leased(labels: str) -> Iterator[Lease]:
    """The lease of a label folder for the time of the block; raises as `Lease.take` does."""
    lease = Lease(labels)
    try:
        lease.take()
        yield lease
    finally:
        lease.give_back()


def _read(url: str) -> dict[str, Any] | None:
    data = read_whole(url)
    try:
        values = json.loads(data) if data else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def holder(path: str) -> str | None:
    """The run that a lease's file names, if it is there."""
    there = _read(path)
    return None if there is None else str(there.get("run"))


def _said(there: dict[str, Any], name: str) -> str:
    return plain(str(there.get(name)))


@contextmanager
def _alone(labels: str) -> Iterator[None]:
    """No other run of this machine is between its look at the lease and its first pulse."""
    if not is_local(labels):
        yield
        return
    folder = local_path(labels)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _boot() -> str:
    """This start of this machine; two containers of one name differ by their own."""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    return ""


def _began(pid: Any) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None where there is none."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    with suppress(OSError):
        if not Path("/proc").is_dir():  # no Linux: alive is all that can be known
            os.kill(pid, 0)
            return "alive"
    return None
