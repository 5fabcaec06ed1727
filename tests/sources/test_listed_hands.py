"""Boxes of lists under common names and in common units, and lists with one row per hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.commands.annotate import annotate
from annotator.errors import UserError
from annotator.export import export_labels
from annotator.job.options import ComputeOptions
from annotator.job.record import RunSettings
from annotator.job.stages import decode_shard
from annotator.sources import open_source
from annotator.sources.entry import Entry
from tests.robustness.hostile_photos import noise
from tests.support.listing import listed


def entries_of(folder: Path, text: str, name: str = "list.csv", **options) -> list[Entry]:
    (folder / name).write_text(text)
    return listed(open_source(str(folder / name), **options))


def boxes_of(folder: Path, header: str, row: str) -> list[tuple[float, ...] | None]:
    entries = entries_of(folder, f"path,{header}\na.jpg,{row}\n")
    return [hand.box_xyxy for entry in entries for hand in entry.hands or ()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(noise(320, 240)).save(tmp_path / name)
    return tmp_path


CORNERS = [
    *("x1,y1,x2,y2", "x1_px,y1_px,x2_px,y2_px", "xmin,ymin,xmax,ymax", "x_min,y_min,x_max,y_max", "X1,Y1,X2,Y2"),
    *("left,top,right,bottom", "bbox_x1,bbox_y1,bbox_x2,bbox_y2", "box_x0,box_y0,box_x1,box_y1", "XMin,YMin,XMax,YMax"),
    *("bbox_xmin,bbox_ymin,bbox_xmax,bbox_ymax", "hand_x1,hand_y1,hand_x2,hand_y2", "bbox x1,bbox y1,bbox x2,bbox y2"),
    *("bbox_left,bbox_top,bbox_right,bbox_bottom", "minX,minY,maxX,maxY", "xtl,ytl,xbr,ybr"),
]  # fmt: skip
SIZES = [
    *("x,y,w,h", "x,y,width,height", "left,top,width,height", "bbox_x,bbox_y,bbox_w,bbox_h", "xmin,ymin,width,height"),
    *("bbox_x,bbox_y,bbox_width,bbox_height", "bb_left,bb_top,bb_width,bb_height", "x1,y1,w,h", "X,Y,Width,Height"),
]  # fmt: skip
CENTRES = ["cx,cy,w,h", "x_center,y_center,width,height", "bbox_cx,bbox_cy,bbox_w,bbox_h"]


def test_a_box_is_the_same_under_every_common_name(tmp_path):
    for header in CORNERS:
        assert boxes_of(tmp_path, header, "10,20,110,70.5") == [(10, 20, 110, 70.5)], header
    for header in SIZES:
        assert boxes_of(tmp_path, header, "10,20,100,50.5") == [(10, 20, 110, 70.5)], header
    for header in CENTRES:
        assert boxes_of(tmp_path, header, "60,45.25,100,50.5") == [(10, 20, 110, 70.5)], header
    for name, four in (
        *((name, "10 20 110 70.5") for name in ("box_xyxy", "bbox_xyxy", "xyxy", "Box_XYXY")),
        *((name, "10 20 100 50.5") for name in ("box_xywh", "bbox_xywh")),
        ("bbox_cxcywh", "60 45.25 100 50.5"),
    ):
        assert boxes_of(tmp_path, name, four) == [(10, 20, 110, 70.5)], name


def test_columns_beside_a_box_are_not_treated_as_the_box(tmp_path):
    # Photo sizes as in lists for object detection, and a photo size next to a box size.
    assert boxes_of(tmp_path, "width,height,class,xmin,ymin,xmax,ymax", "640,480,hand,1,2,31,42") == [
        (1, 2, 31, 42)
    ]
    assert boxes_of(tmp_path, "width,height,x,y,w,h", "640,480,1,2,30,40") == [(1, 2, 31, 42)]
    assert boxes_of(
        tmp_path, "box_x0,box_y0,box_x1,box_y1,crop_x0,crop_y0,crop_x1,crop_y1", "1,2,31,42,0,0,9,9"
    ) == [(1, 2, 31, 42)]
    for header in ("width,height", "x,y", "cx,cy,fx,fy", "wrist_x,wrist_y,tip_x,tip_y", "left,right"):
        assert boxes_of(tmp_path, header, ",".join("9" * (header.count(",") + 1))) == []


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("xmin,ymin,xmax", "xmin, ymin, xmax of a box"),
        ("x,y,w", "x, y, w of a box"),
        ("bbox_x,bbox_y", "bbox_x, bbox_y of a box"),
        ("bbox", "'bbox'; did you mean 'box_xyxy'"),
        ("bounding box", "'bounding box'; did you mean 'box_xyxy'"),
        ("x1,y1,x2,y2,x3,y3,x4,y4", "a polygon or key points"),
        ("x0,y0,x1,y1,x2,y2", "a polygon or key points"),
        ("left_x1,left_y1,left_x2,left_y2,right_x1,right_y1,right_x2,right_y2", "'left_x1', 'left_y1'"),
        ("face_x,face_y,face_w,face_h", "'face_x', 'face_y', 'face_w', 'face_h': give each hand its own row"),
        ("x1,y1,x2,y2,bbox_x1,bbox_y1,bbox_x2,bbox_y2", "'x1', 'y1', 'x2', 'y2' and 'bbox_x1'"),
    ],
)
def test_an_ambiguous_box_is_refused_with_its_columns(tmp_path, header, named):
    with pytest.raises(UserError) as raised:
        entries_of(tmp_path, f"path,{header}\n")
    assert named in str(raised.value) and "\n" not in str(raised.value)


def test_boxes_in_fractions_need_the_option(photos):
    text = "path,x1,y1,x2,y2\na.jpg,0.25,0.5,0.75,1.0\nb.jpg,0,0,1,1\n"
    with pytest.raises(UserError, match="add --boxes-normalised"):
        entries_of(photos, text)
    entries = entries_of(photos, text, boxes_normalised=True)
    shard = decode_shard(entries, 64)
    assert [row.get("reason") for row in shard.rows] == [None, None]
    assert shard.crops.box_xyxy.tolist() == [[80, 120, 240, 240], [0, 0, 320, 240]]
    # The same boxes in pixels give the same crops, also for photos of a folder.
    pixels = entries_of(photos, "path,x1,y1,x2,y2\na.jpg,80,120,240,240\nb.jpg,0,0,320,240\n", "pixels.csv")
    assert np.array_equal(decode_shard(pixels, 64).crops.pixels, shard.crops.pixels)
    (photos / "list.csv").write_text(text)
    (photos / "images").mkdir()
    (photos / "a.jpg").rename(photos / "images" / "a.jpg")
    (photos / "list.csv").write_text("path,x1,y1,x2,y2\nimages/a.jpg,0.25,0.5,0.75,1.0\n")
    joined = list(open_source(f"{photos}/images", boxes=f"{photos}/list.csv", boxes_normalised=True))
    assert decode_shard(joined, 64).crops.box_xyxy.tolist() == [[80, 120, 240, 240]]
    with pytest.raises(UserError, match="fractions"):
        open_source(f"{photos}/images", boxes=f"{photos}/list.csv")


def test_mixed_units_never_give_a_crop_of_a_few_pixels(photos):
    text = "path,x1,y1,x2,y2\na.jpg,10,10,200,200\nb.jpg,0.1,0.1,0.9,0.9\nb.jpg,0,0,7,7\nb.jpg,0,0,8,2\n"
    assert [row.get("reason") for row in decode_shard(entries_of(photos, text), 64).rows] == [
        *(None, "too_small", "too_small", None)
    ]
    with pytest.raises(UserError, match="remove --boxes-normalised"):
        entries_of(photos, "path,x1,y1,x2,y2\na.jpg,10,10,200,200\n", boxes_normalised=True)
    entries = entries_of(
        photos, "path,x1,y1,x2,y2\na.jpg,.1,.1,.2,.2\nb.jpg,1,2,9,9\n", boxes_normalised=True
    )
    assert [bool(entry.fault) for entry in entries] == [False, True]
    with pytest.raises(UserError, match="boxes in a list"):
        open_source(str(photos), boxes_normalised=True)


def test_a_box_that_leaves_almost_nothing_of_the_photo_is_outside(photos):
    boxes = [
        "319.9,239.9,400,400",
        "313,10,400,200",
        "311,10,400,200",
        "-50,-50,90,90",
        "-9000,-9000,9000,9000",
    ]
    text = "path,x1,y1,x2,y2\n" + "".join(f"a.jpg,{box}\n" for box in boxes)
    rows = decode_shard(entries_of(photos, text), 64).rows
    assert [row.get("reason") for row in rows] == ["box_outside", "box_outside", None, None, None]


HANDS = """path,x1,y1,x2,y2,side,subject
a.jpg,10,10,120,200,right,p1
a.jpg,130,10,310,200,left,p2
b.jpg,10,10,310,200,right,p3
b.jpg,10,10,310,200,left,p4
a.jpg,20,20,90,90,right,far
a.jpg,10,10,120,200,right,again
b.jpg,,,,,right,no box
b.jpg,400,10,500,200,right,outside
b.jpg,9,9,2,2,right,bad
"""


def test_rows_of_one_photo_with_different_boxes_are_its_hands(photos):
    entries = entries_of(photos, HANDS)
    assert [entry.first_hand for entry in entries] == [0, 1, 0, 1, 2, 0, 0, 2, 0]
    assert [entry.duplicate for entry in entries] == [*[False] * 5, True, True, False, True]
    assert [entry.id for entry in entries][:5] == ["0:a.jpg", "0:a.jpg", "2:b.jpg", "2:b.jpg", "0:a.jpg"]
    rows = decode_shard(entries, 64).rows
    assert [row["hand_index"] for row in rows] == [0, 1, 0, 1, 2, 0, 0, 2, -1]
    assert [row.get("reason") for row in rows] == [*[None] * 7, "box_outside", "bad_row"]
    assert [row["subject"] for row in rows][:5] == ["p1", "p2", "p3", "p4", "far"]
    # With `by_hand` off, each row except the first is a duplicate.
    assert [entry.duplicate for entry in entries_of(photos, HANDS, by_hand=False)] == [
        *(False, True, False), *[True] * 6
    ]  # fmt: skip
    joined = list(open_source(str(photos / "list.csv"), boxes=str(photos / "list.csv")))
    assert [entry.first_hand for entry in joined] == [0] * len(joined)


def test_hands_with_ids_of_their_own_keep_them(photos):
    text = "path,id,x1,y1,x2,y2\na.jpg,h1,10,10,120,200\na.jpg,h2,130,10,310,200\nb.jpg,h3,10,10,310,200\n"
    assert [(entry.id, entry.first_hand, entry.duplicate) for entry in entries_of(photos, text)] == [
        *(("h1", 0, False), ("h2", 1, False), ("h3", 0, False))
    ]
    # The photo's id in each of its rows.
    text = text.replace("h2", "h1")
    assert [(entry.id, entry.first_hand, entry.duplicate) for entry in entries_of(photos, text)] == [
        *(("h1", 0, False), ("h1", 1, False), ("h3", 0, False))
    ]


@pytest.mark.slow
def test_two_hands_of_a_list_are_one_photo_of_every_export(photos, tmp_path, lively_file, local_ray):
    """Export a list to COCO and WebDataset; a hand listed later joins its photo."""
    pytest.importorskip("webdataset")
    rows = ["a.jpg,10,10,120,200,right,1", "a.jpg,130,10,310,200,left,2", "b.jpg,10,10,310,200,right,3"]
    head = "path,x1,y1,x2,y2,side,id"  # of each hand
    out, small = tmp_path / "labels", ComputeOptions(workers=1, threads=1, shard_size=2)
    (photos / "hands.csv").write_text("\n".join([head, *rows]) + "\n")
    record = annotate(str(photos / "hands.csv"), str(out), checkpoint=str(lively_file), compute=small)
    assert record.outcomes == {"ok": 2}
    (photos / "hands.csv").write_text("\n".join([head, *rows, "b.jpg,100,100,200,200,left,4"]) + "\n")
    record = annotate(str(photos / "hands.csv"), str(out), checkpoint=str(lively_file), compute=small)
    assert record.outcomes == {"ok": 2} and record.settings == RunSettings(**vars(record.settings))
    again = annotate(
        str(photos / "hands.csv"),
        str(out),
        checkpoint=str(lively_file),
        compute=small,
        relabel="hand_index == 1",
    )
    assert again.outcomes == {"ok": 2}
    table = pq.read_table(out / "data").to_pylist()
    assert [(row["image_uri"][-5:], row["hand_index"], row["is_right"]) for row in table] == [
        *(("a.jpg", 0, True), ("a.jpg", 1, False), ("b.jpg", 0, True), ("b.jpg", 1, False))
    ]
    assert len({row["image_id"] for row in table}) == 4
    export_labels(str(out), str(tmp_path / "hands.json"), "coco")
    coco = json.loads((tmp_path / "hands.json").read_text())
    assert len(coco["images"]) == 2
    assert [
        sum(hand["image_id"] == image["id"] for hand in coco["annotations"]) for image in coco["images"]
    ] == [2, 2]
    export_labels(str(out), str(tmp_path / "wds"), "webdataset")
    import webdataset

    samples = list(webdataset.WebDataset(f"{tmp_path}/wds/hands-000000.tar", shardshuffle=False).decode())
    assert [len(sample["json"]["hands"]) for sample in samples] == [2, 2]
    named = [[hand.get("image_id") for hand in sample["json"]["hands"]] for sample in samples]
    assert named == [["1", "2"], ["3", "4"]]


def test_lists_of_other_programs_are_read(photos):
    plain = "path;side;note\na.jpg;right;x\n"
    for text in (plain, plain.replace(";", "\t"), plain.replace(";", "|"), "sep=;\r\n" + plain):
        for name in ("l.csv", "l.tsv"):
            (entry,) = entries_of(photos, text, name)
            assert (
                Path(entry.path).name == "a.jpg"
                and entry.hands[0].right_score == 1
                and entry.extra == {"note": "x"}
            )
    (entry,) = entries_of(photos, "path;x;y;w;h;focal_px\na.jpg;10,5;20;100;50,25;500,5\n")
    assert entry.hands[0].box_xyxy == (10.5, 20, 110.5, 70.25) and entry.focal_px == 500.5
    (entry,) = entries_of(photos, "path\na.jpg;right\n")
    assert entry.fault.reason == "bad_row" and "';'" in entry.fault.message
    for name in ("filename", "file_name", "image_path", "img_path", "filepath", "file_path", "img", "file"):
        (entry,) = entries_of(photos, f"{name},note\na.jpg,x\n")
        assert Path(entry.path).name == "a.jpg"


@pytest.mark.slow
def test_a_json_array_reads_like_json_lines(photos):
    rows = [
        {"path": "a.jpg", "side": "left", "n": k, "text": "a [b], {c}\n", "list": [1, {"x": 2}]}
        for k in range(5)
    ]
    lines = entries_of(photos, "".join(json.dumps(row) + "\n" for row in rows), "l.jsonl")
    for name in ("l.json", "l.jsonl"):
        for options in ({}, {"indent": 2}, {"indent": 0, "separators": (" ,", " : ")}):
            assert entries_of(photos, json.dumps(rows, **options), name) == lines
    many = json.dumps([{"path": f"{k}.jpg"} for k in range(50_000)], indent=1)
    assert [entry.order for entry in entries_of(photos, many, "l.json")] == list(range(50_000))
    whole = json.dumps(rows, indent=1)
    for broken in (whole[: len(whole) // 2], whole[:-1] + ", 7]", whole[:-1] + ", nonsense]"):
        found = entries_of(photos, broken, "l.json")
        assert found[-1].fault.reason == "bad_row" and not any(entry.fault for entry in found[:-1])
    assert len(found) == 6
