"""Photos joined with boxes from a list or a label set, against plain reading of both."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.commands.detect import DetectSettings, detection_schema
from annotator.errors import UserError
from annotator.sources import open_source
from annotator.sources.entry import Entry
from tests.sources.test_containers import tar_of

SCHEMA = detection_schema(DetectSettings(1, "photos", "detector", 2, False))
BOX = [1.0, 2.0, 30.5, 40.0]


def joined(photos: object, boxes: object, **options: Any) -> dict[str, Entry]:
    entries = list(open_source(str(photos), boxes=str(boxes), **options))
    found = {entry.id: entry for entry in entries}
    assert len(found) == len(entries)
    return found


def hands_or_reason(entry: Entry) -> object:
    return entry.fault.reason if entry.fault else tuple(hand[:2] for hand in entry.hands)


def labels_of(folder: Path, *shards: list[dict[str, Any]]) -> Path:
    """Write a label set with the boxes that `amvur detect` writes."""
    (folder / "data").mkdir(parents=True)
    for number, rows in enumerate(shards):
        table = pa.Table.from_pylist(rows, SCHEMA)
        pq.write_table(table, folder / "data" / f"shard-{number:07d}.parquet")
    return folder


def hand(uri: str, own_id: str, index: int, right: bool, score: float | None = 0.75) -> dict[str, Any]:
    box = [index + value for value in BOX]
    return {"image_uri": uri, "image_id": own_id, "status": "ok", "hand_index": index, "box_xyxy": box,
            "is_right": right, "side_score": score}  # fmt: skip


def nothing(uri: str, own_id: str, status: str, reason: str) -> dict[str, Any]:
    return {"image_uri": uri, "image_id": own_id, "status": status, "hand_index": -1, "reason": reason,
            "error": f"it is {reason}"}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "sub/a.jpg"):
        (folder / name).write_bytes(b"x")
    return folder


def test_the_real_boxes_join_the_real_photos(hand_scenes):
    found = joined(hand_scenes / "images", hand_scenes / "boxes.csv")
    expected: dict[str, list[list[float]]] = {}
    with (hand_scenes / "boxes.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            box = [float(row[name]) for name in ("x1_px", "y1_px", "x2_px", "y2_px")]
            expected.setdefault(row["image"], []).append(box)
    assert len(found) == 1245 and max(map(len, expected.values())) > 1
    for name, entry in found.items():
        if name in expected:
            assert [list(h.box_xyxy) for h in entry.hands] == expected[name] and entry.fault is None
        else:
            assert hands_or_reason(entry) == "not_listed"


def test_labels_give_hands_in_their_order_and_their_side_scores(photos, tmp_path):
    a, b, c = (f"{photos}/{name}.jpg" for name in "abc")
    labels = labels_of(
        tmp_path / "labels",
        [
            hand(a, "a.jpg", 0, True),
            hand(a, "a.jpg", 1, False),
            nothing(b, "b.jpg", "no_hand", "no_hand_found"),
        ],
        [nothing(c, "c.jpg", "unreadable", "truncated"), nothing("gone", "gone.jpg", "failed", "io_error")],
    )
    found = joined(photos, labels)
    assert hands_or_reason(found["a.jpg"]) == ((tuple(BOX), 0.75), (tuple(v + 1 for v in BOX), 0.25))
    assert hands_or_reason(found["b.jpg"]) == () and hands_or_reason(found["sub/a.jpg"]) == "not_listed"
    assert found["c.jpg"].fault == ("truncated", "it is truncated")
    (labels / "data" / "shard-0000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is damaged"):
        joined(photos, labels)
    (labels / "data" / "shard-0000002.parquet").unlink()
    # Photos that have moved since are matched by their ids, the paths below the folder.
    moved = photos.rename(tmp_path / "moved")
    assert {name: hands_or_reason(entry) for name, entry in joined(moved, labels).items()} == {
        name: hands_or_reason(entry) for name, entry in found.items()
    }


def test_missing_sides(photos, tmp_path):
    unsure = hand("", "b.jpg", 0, True) | {"is_right": None}
    labels = labels_of(tmp_path / "labels", [hand("", "a.jpg", 0, False, None), unsure])
    found = joined(photos, labels)
    assert hands_or_reason(found["a.jpg"]) == ((tuple(BOX), 0.0),) and hands_or_reason(found["b.jpg"]) == (
        (tuple(BOX), None),
    )
    labels = labels_of(tmp_path / "no boxes", [hand("", "a.jpg", 0, True) | {"box_xyxy": None}])
    assert hands_or_reason(joined(photos, labels)["a.jpg"]) == ((None, 0.75),)


def test_a_list_names_photos_by_path_by_unnormalised_path_or_by_id(photos, tmp_path):
    boxes = tmp_path / "lists" / "boxes.csv"
    boxes.parent.mkdir()
    link = tmp_path / "link"
    link.symlink_to(boxes.parent)
    for place in (boxes, link / "boxes.csv"):
        for name in ("../photos/a.jpg", f"{photos}/a.jpg", f"{photos}/sub/../a.jpg", "a.jpg"):
            boxes.write_text(f"uri,x1,y1,x2,y2,side\n{name},1,2,30.5,40,right\n{name},2,3,31.5,41,\n")
            found = joined(photos, place)
            assert hands_or_reason(found["a.jpg"]) == (
                (tuple(BOX), 1.0),
                (tuple(v + 1 for v in BOX), None),
            ), name
            assert hands_or_reason(found["sub/a.jpg"]) == "not_listed"
    boxes.write_text("uri,id,x1,y1,x2,y2\nsomewhere.jpg,sub/a.jpg,1,2,30.5,40\n")
    assert hands_or_reason(joined(photos, boxes)["sub/a.jpg"]) == ((tuple(BOX), None),)


def test_rows_of_a_list_without_hands_or_invalid(photos, tmp_path):
    boxes = tmp_path / "photos" / "boxes.csv"
    boxes.write_text(
        "uri,x1,y1,x2,y2\na.jpg,,,,\nb.jpg,9,9,0,0\nb.jpg,1,2,30.5,40\n,1,2,30.5,40\nc.jpg,1,2\n"
    )
    found = joined(photos, boxes)
    assert {name: hands_or_reason(entry) for name, entry in found.items()} == {
        "a.jpg": (), "b.jpg": "bad_row", "c.jpg": "bad_row", "sub/a.jpg": "not_listed"
    }  # fmt: skip


def test_row_numbers_do_not_match_photos(photos, tmp_path):
    """A photo in row 0 gets the hands of its uri, not those in row 0 of the boxes."""
    listed, boxes = photos / "l.csv", photos / "boxes.csv"
    listed.write_text("uri\nb.jpg\na.jpg\na.jpg\n")
    boxes.write_text("uri,x1,y1,x2,y2\nb.jpg,1,2,30.5,40\na.jpg,1,2,30.5,40\na.jpg,2,3,31.5,41\n")
    entries = list(open_source(str(listed), boxes=str(boxes)))
    assert [len(entry.hands or ()) for entry in entries] == [1, 2, 2]
    assert [entry.duplicate for entry in entries] == [False, False, True]
    # Labels of the same list have rows for each of its entries.
    a = f"{photos}/a.jpg"
    labels = labels_of(tmp_path / "labels", [hand(a, "1:a.jpg", 0, True), hand(a, "2:a.jpg", 0, False)])
    entries = list(open_source(str(listed), boxes=str(labels)))
    assert [hands_or_reason(entry) for entry in entries[1:]] == [((tuple(BOX), 0.75),), ((tuple(BOX), 0.25),)]


def test_frames_of_a_video_have_their_own_hands(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "photos" / "v.mp4"
    path.parent.mkdir()
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 40 * number, np.uint8), format="rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    labels = labels_of(
        tmp_path / "labels", [hand(str(path), f"v.mp4#{number}", number, True) for number in (0, 2, 4)]
    )
    found = joined(path.parent, labels)
    assert [
        hands_or_reason(found[f"v.mp4#{n}"]) == ((tuple(n + v for v in BOX), 0.75),) for n in range(6)
    ] == [
        True,
        False,
    ] * 3
    assert hands_or_reason(found["v.mp4#1"]) == "not_listed"


def test_photos_in_a_tar_and_names_that_are_not_utf_8(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "t.tar").write_bytes(tar_of([("x.jpg", b"1"), ("y.jpg", b"2")]))
    odd = os.fsdecode(b"caf\xe9.jpg")
    Path(folder / odd).write_bytes(b"x")
    rows = [b"uri,x1,y1,x2,y2", b"t.tar#y.jpg,1,2,30.5,40", b"caf\xe9.jpg,1,2,30.5,40"]
    (folder / "b.csv").write_bytes(b"\n".join(rows))
    found = joined(folder, folder / "b.csv")
    assert hands_or_reason(found["t.tar#x.jpg"]) == "not_listed"
    assert (
        hands_or_reason(found["t.tar#y.jpg"])
        == hands_or_reason(found["caf\\xe9.jpg"])
        == ((tuple(BOX), None),)
    )


def test_faults_of_the_photos_source_stay(photos, tmp_path):
    (photos / "cut.tar").write_bytes(b"no tar")
    (photos / "text").write_bytes(b"text")
    boxes = photos / "boxes.csv"
    boxes.write_text("uri,x1,y1,x2,y2\na.jpg,1,2,30.5,40\ncut.tar,1,2,30.5,40\n")
    source = open_source(str(photos), boxes=str(boxes))
    assert {e.id: hands_or_reason(e) for e in source}["cut.tar"] == "not_a_photo"
    assert source.skipped_count == 2 and source.place == str(photos)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("none.csv", None, "can't be read"), ("none", None, "has no boxes: give a"), ("b.txt", "a.jpg", "has no boxes"),
        ("b.csv", "uri,is_right\na.jpg,1\n", "give columns x1, y1, x2, y2"), ("b.csv", "uri,x1\na,1\n", "of a box"),
    ],
)  # fmt: skip
def test_a_source_without_boxes_is_refused_in_one_line(photos, tmp_path, name, text, words):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as raised:
        open_source(str(photos), boxes=str(tmp_path / name))
    assert words in str(raised.value) and str(raised.value).isprintable()
