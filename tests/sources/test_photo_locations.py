"""Every photo is located by its uri, for any name: file URIs, `#`, backslashes, bytes that are not UTF-8."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.export import export_labels
from annotator.export.stored_photos import Positions, stored_photos
from annotator.hand import load_hand
from annotator.sources import open_source
from annotator.sources.entry import path_as_utf8, path_of
from annotator.sources.read import location_of, photos_of, stored_at
from annotator.storage.files import local_path
from tests.export.test_export import label_set
from tests.robustness.hostile_photos import encoded
from tests.sources.test_containers import tar_of
from tests.sources.test_video import write_video

NAMES = (
    *(
        "plain.png",
        "a#b.png",
        "#50%?&.png",
        "x.tar#y.png",
        "x.parquet#3",
        "back\\slash.png",
        "looks \\xff.png",
    ),
    *("\\x5c.png", "new\nline.png", "é.png", os.fsdecode(b"not \xff\xfe utf-8.png"), "%20.png", "clip.mp4#2"),
)


def photo(number: int) -> bytes:
    return encoded(np.full((16, 20, 3), 10 * number, np.uint8), "PNG")


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """Create each name as a file, as a file in a folder of its kind, as a tar's member and as a tar's own name."""
    place = tmp_path / "all"
    for number, name in enumerate(NAMES):
        folder = place / f"in {name}"
        folder.mkdir(parents=True)
        (place / name).write_bytes(photo(number))
        (folder / "a.png").write_bytes(photo(number))
        (place / f"{name}.tar").write_bytes(
            tar_of([(f"{name}.png", photo(number)), ("b.png", photo(number + 1))])
        )
        table = pa.table({"image": [photo(number), photo(number + 1)]})
        with (place / f"{name}.parquet").open("wb") as file:
            pq.write_table(table, file)
    (place / "members.tar").write_bytes(tar_of([(f"{name}.png", photo(k)) for k, name in enumerate(NAMES)]))
    write_video(place / "clip.avi", "mjpeg", {}, count=5)
    (place / "clip.avi").rename(place / os.fsdecode(b"clip \xff#1.avi"))
    return place


def test_every_photo_is_found_by_its_uri(everything):
    entries = [entry for entry in open_source(str(everything)) if entry.fault is None]
    assert len(entries) > 6 * len(NAMES)
    read = list(photos_of(entries, lambda _: 8))
    addresses = [(entry.uri, entry.frame_index) for entry in entries]
    together = list(stored_photos(addresses, Positions().of(addresses)))
    for entry, before, at_once in zip(entries, read, together, strict=True):
        found = stored_at(entry.uri, entry.frame_index)
        if entry.frame_index is not None:
            assert np.array_equal(found, before.pixels) and np.array_equal(at_once, found)
            assert np.array_equal(stored_at(f"{entry.uri}#{entry.frame_index}"), found)
        else:
            expected = np.asarray(before.pixels[0, 0])
            assert found == at_once and found == photo(int(expected[0]) // 10)


def test_readable_text_gives_its_path_back():
    for name in NAMES:
        assert path_of(path_as_utf8(name)) == name
    assert path_as_utf8(NAMES[10]) == "not \\xff\\xfe utf-8.png"


def test_stores_are_split_at_the_first_container():
    assert location_of("s3://b/x.tar#a#b.jpg") == ("tar", "s3://b/x.tar", "a#b.jpg")
    assert location_of("s3://b/p#q/x.parquet#17") == ("parquet", "s3://b/p#q/x.parquet", "17")
    assert location_of("s3://b/x.parquet#a.jpg") == ("file", "s3://b/x.parquet#a.jpg", "")
    assert location_of("s3://b/c.MP4#7") == ("video", "s3://b/c.MP4", "7") == location_of("s3://b/c.MP4", 7)
    assert location_of("s3://b/a\\xff.jpg") == ("file", os.fsdecode(b"s3://b/a\xff.jpg"), "")


def test_file_uris_of_pathlib_are_read(tmp_path):
    folder = tmp_path / "sp ace#1"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        path = folder / name
        path.write_bytes(photo(number))
        assert local_path(path.as_uri()) == path and stored_at(path.as_uri()) == photo(number)
    assert local_path("file://localhost/a%20b") == Path("/a b")
    (folder / "100%41.png").write_bytes(photo(1))  # a URI without escapes
    assert local_path(f"file://{folder}/100%41.png").name == "100%41.png"
    listing = tmp_path / "list.jsonl"
    rows = [{"uri": (folder / name).as_uri(), "x1": 0, "y1": 0, "x2": 9, "y2": 9} for name in NAMES]
    listing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    entries = list(open_source(str(listing)))
    assert all(not isinstance(found, Exception) for found in photos_of(entries, lambda _: 8))
    # The same uris also match the photos of a folder.
    joined = [entry for entry in open_source(str(folder), boxes=str(listing)) if entry.path.endswith(NAMES)]
    assert len(joined) == len(NAMES) and not any(entry.fault for entry in joined if "100%" not in entry.path)


def test_webdataset_has_photos_of_every_name(everything, tmp_path):
    entries = [
        entry for entry in open_source(str(everything)) if entry.fault is None and entry.frame_index is None
    ]
    rows = [
        {"image_uri": entry.uri, "image_id": entry.id, "is_right": True, "width": 20, "height": 16}
        for entry in entries
    ]
    label_set(tmp_path / "labels", load_hand("open"), rows)
    exported = export_labels(str(tmp_path / "labels"), str(tmp_path / "wds"), "webdataset")
    assert exported.hands == len(entries) and not exported.left_out
    with tarfile.open(tmp_path / "wds" / "hands-000000.tar") as tar:
        assert sum(member.name.endswith(".png") for member in tar) == len(entries)
    assert io.BytesIO(photo(0)).read(4) == b"\x89PNG"
