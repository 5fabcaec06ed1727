"""A lease on a label set: a file that the run which holds it rewrites every few seconds (its heartbeat).

A killed run leaves the file but no heartbeat. Another run that sees the file change is refused; if the file stands
still, the run takes the lease over. Clocks of two machines are never compared. In a store with conditional writes, a
heartbeat replaces the previous one only, so at most one run holds the lease.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from annotator.errors import UserError, printable
from annotator.labels.folder import LEASE_FILE
from annotator.runtime.ray_session import missing_paths
from annotator.storage.conditional import OvertakenError, put_if_unchanged, version_of
from annotator.storage.files import is_local, join, local_path, read_if_exists, remove_file, write_atomic
from annotator.storage.remote import ANSWER_S

HEARTBEAT_S = 5.0

#: A lease without a heartbeat for this long belongs to no run. A slow store takes up to `ANSWER_S` per response, and a
#: heartbeat needs two responses.
LEASE_TIMEOUT_S = 3 * ANSWER_S

#: Two runs that start together may both see no lease. The run whose lease is in the file after this time holds it.
_SETTLE_S = 0.2

#: How long the end of a run waits for a heartbeat that is being written.
_LAST_HEARTBEAT_S = 60.0

#: Runs whose leases this process holds. An ended run may have left its file in a store that was unavailable.
_held_runs: set[str] = set()


class Lease:
    """The right to write into a label set, until another run takes it over."""

    def __init__(self, labels: str) -> None:
        self._labels, self._url = labels, join(labels, LEASE_FILE)
        self._record: dict[str, Any] = {
            "run": uuid.uuid4().hex,
            "host": socket.gethostname(),
            "boot": _boot(),
            "pid": os.getpid(),
            "began": _began(os.getpid()),
        }
        self._heartbeats = 0
        self._version: str | None = None  # ETag of the file in a store that the next heartbeat replaces
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lost = False

    @property
    def run(self) -> str:
        """Id of the run that holds the lease."""
        return str(self._record["run"])

    def check(self) -> None:
        """Raise if the lease is lost.

        Raises:
            UserError: another run took it over while this run was paused.
        """
        if self._lost:
            raise UserError(
                f"another run took over '{self._labels}' while this run was paused; finished labels are kept"
            )

    def confirm(self) -> None:
        """Read the lease before a write that only its holder may do; raises as `check` does."""
        self._lost = self._lost or not self._is_own(_read(self._url))
        self.check()

    def take(self) -> None:
        """Take the lease.

        Raises:
            UserError: another run holds it.
        """
        present = _read(self._url)
        if present is not None and self._is_alive(present):
            raise UserError(
                f"another run (process {_shown(present, 'pid')} on {_shown(present, 'host')}) is writing to "
                f"'{self._labels}': wait for its end or stop it; then run the same command again to resume"
            )
        just_now = UserError(
            f"another run started to write to '{self._labels}' just now: wait for its end or stop it; "
            "then run the same command again to resume"
        )
        with _exclusive(self._labels):
            now, version = self._current()
            if now not in (None, present):
                raise just_now
            self._version = version
            _held_runs.add(self._record["run"])
            try:
                self._write_heartbeat()
            except OvertakenError:
                raise just_now from None
        # Runs on other machines, or into a store, are not excluded by the lock.
        time.sleep(_SETTLE_S if is_local(self._labels) else 5 * _SETTLE_S)
        if not self._is_own(_read(self._url)):
            raise just_now
        self._thread = threading.Thread(target=self._write_heartbeats, daemon=True)
        self._thread.start()

    def give_back(self) -> None:
        """Remove the lease, unless another run has taken it over."""
        self._stop.set()
        if self._thread is not None:
            # A heartbeat that is being written would otherwise recreate the file.
            self._thread.join(_LAST_HEARTBEAT_S)
        _held_runs.discard(self._record["run"])
        with suppress(OSError):
            if self._is_own(_read(self._url)):
                remove_file(self._url)

    def _is_own(self, lease: dict[str, Any] | None) -> bool:
        return lease is not None and lease.get("run") == self._record["run"]

    def _is_alive(self, lease: dict[str, Any]) -> bool:
        if all(lease.get(name) == self._record[name] for name in ("host", "boot", "pid", "began")):
            return lease.get("run") in _held_runs
        if lease.get("host") == self._record["host"] and lease.get("boot") == self._record["boot"]:
            began = _began(lease.get("pid"))
            return began is not None and began == lease.get("began")
        until = time.monotonic() + LEASE_TIMEOUT_S
        while time.monotonic() < until:
            time.sleep(min(1.0, HEARTBEAT_S / 2))
            now = _read(self._url)
            if now is None:
                return False
            if now != lease:
                return True
        return False

    def _current(self) -> tuple[dict[str, Any] | None, str | None]:
        """Return the current lease, and an ETag that is not newer: a later change makes the next heartbeat fail."""
        version = None if is_local(self._url) else version_of(self._url)
        return _read(self._url), version

    def _write_heartbeat(self) -> None:
        """Replace the last seen or written heartbeat by the next one.

        Raises:
            OvertakenError: a store holds a heartbeat of another run.
        """
        self._heartbeats += 1
        data = json.dumps({**self._record, "beat": self._heartbeats}).encode()
        if is_local(self._url):
            write_atomic(self._url, data)
            return
        try:
            self._version = put_if_unchanged(self._url, data, self._version)
        except OvertakenError:
            if read_if_exists(self._url) != data:  # else our own write, whose response was lost
                raise
            self._version = None
        if self._version is None:
            self._version = version_of(self._url)

    def _write_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with suppress(OSError):  # the store is unavailable; a run that takes the lease now holds it
                if not self._is_own(_read(self._url)):
                    self._lost = not self._stop.is_set()
                    return
                if not self._stop.is_set():
                    try:
                        self._write_heartbeat()
                    except OvertakenError:
                        self._lost = not self._stop.is_set()
                        return


@contextmanager
def leased(labels: str) -> Iterator[Lease]:
    """Hold the lease of a label set within the block; raises as `Lease.take` does."""
    lease = Lease(labels)
    try:
        lease.take()
        yield lease
    finally:
        lease.give_back()


def _read(url: str) -> dict[str, Any] | None:
    data = read_if_exists(url)
    try:
        values = json.loads(data) if data else None
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


def holder(path: str) -> str | None:
    """Return the run id in a lease file, or None without a file."""
    lease = _read(path)
    return None if lease is None else str(lease.get("run"))


def missing_on_this_machine(places: Sequence[str], labels: str, run: str) -> list[str]:
    """Return the missing ones of local paths, and the label set if its lease here is not that run's."""
    missing = missing_paths(places)
    if is_local(labels) and holder(join(labels, LEASE_FILE)) != run:
        missing.append(str(local_path(labels)))
    return missing


def _shown(lease: dict[str, Any], name: str) -> str:
    return printable(str(lease.get(name)))


@contextmanager
def _exclusive(labels: str) -> Iterator[None]:
    """Lock out other runs of this machine between reading the lease and the first heartbeat."""
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
    """Return an id of this machine's boot and process namespace, which differs between containers of one name."""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - a name, not a path
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + namespace
    return ""


def _began(pid: Any) -> str | None:
    """Return the start time of a process of this machine in kernel ticks, or None without such a process."""
    if not isinstance(pid, int) or pid <= 0:
        return None
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    with suppress(OSError):
        if not Path("/proc").is_dir():  # not Linux: only its existence can be checked
            os.kill(pid, 0)
            return "alive"
    return None
