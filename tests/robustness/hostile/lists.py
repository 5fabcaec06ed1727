"""Lists with every kind of row, as text, CSV, JSON lines and Parquet."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.robustness.hostile.expected import BAD_ROW, CUT, EMPTY, MISSING, NO_PHOTO, OK, Expected, Run
from tests.robustness.hostile_photos import encoded


class _Row(NamedTuple):
    """One row of a list, with its allowed outcomes."""

    outcomes: frozenset[str]
    uri: Any
    box: Any = None
    side: Any = None
    focal: Any = None


def _list_rows(folder: Path) -> list[_Row]:
    here = f"{folder}/photos/good.jpg"
    outside = frozenset({"box_outside"})
    return [
        _Row(OK, "photos/good.jpg"),
        _Row(OK, "photos/good.jpg"),
        _Row(OK, "photos/good.jpg", (10, 10, 90, 90)),
        _Row(OK, here),  # the same file as an absolute path
        _Row(OK, "photos/1.jpg", (10.5, 10, 90, 90), "left", 300),
        _Row(OK, "photos/2.jpg", (-50, -50, 500, 500), "Right"),
        _Row(OK, f"file://{folder}/photos/3.jpg"),
        _Row(OK, "photos/../photos/4.jpg"),
        _Row(OK, "./photos/5.jpg"),
        _Row(CUT, "photos/cut.jpg"),
        _Row(CUT, "photos/cut.jpg"),
        _Row(NO_PHOTO, "photos/text.jpg"),
        _Row(EMPTY, "photos/empty.jpg"),
        _Row(MISSING, "photos/vanished.jpg"),
        _Row(MISSING, "photos/vanished.jpg", (1, 1, 2, 2)),
        _Row(MISSING, "/nowhere/at all.jpg"),
        _Row(MISSING, "../" * 40 + "nowhere.jpg"),
        _Row(MISSING, "photos/good.jpg/inside.jpg"),
        _Row(MISSING, "x" * 5000 + ".jpg"),
        _Row(NO_PHOTO, "photos"),
        _Row(NO_PHOTO, "/"),
        _Row(NO_PHOTO, "/dev/zero"),
        _Row(NO_PHOTO, "photos/pipe.jpg"),
        _Row(MISSING, "photos/dangling.jpg"),
        _Row(BAD_ROW, ""),
        _Row(BAD_ROW, "   "),
        _Row(BAD_ROW, "photos/6.jpg", (90, 10, 10, 90)),
        _Row(BAD_ROW, "photos/6.jpg", (10, 10, 10, 90)),
        _Row(BAD_ROW, "photos/6.jpg", (float("nan"), 10, 20, 90)),
        _Row(BAD_ROW, "photos/6.jpg", (0, 0, float("inf"), 90)),
        _Row(outside, "photos/6.jpg", (5000, 5000, 6000, 6000)),
        _Row(outside, "photos/6.jpg", (-20, -20, -10, -10)),
        _Row(outside, "photos/6.jpg", (160, 0, 170, 120)),
        _Row(OK | outside | BAD_ROW, "photos/7.jpg", (-1e30, -1e30, 1e30, 1e30)),
        _Row(OK | outside | BAD_ROW, "photos/8.jpg", (50, 50, 50.000001, 50.000001)),
        _Row(frozenset({"too_small"}), "photos/8.jpg", (0.1, 0.1, 0.9, 0.9)),
        _Row(OK | outside | BAD_ROW, "photos/9.jpg", (-1e9, 10, 1e9, 11)),
        _Row(BAD_ROW, "photos/6.jpg", None, "middle"),
        _Row(BAD_ROW, "photos/6.jpg", None, None, -5),
        _Row(BAD_ROW, "photos/6.jpg", None, None, 0),
        _Row(BAD_ROW, "photos/6.jpg", None, None, float("nan")),
        _Row(OK | BAD_ROW, "photos/10.jpg", None, None, 1e30),
        _Row(OK | BAD_ROW, "photos/11.jpg", None, None, 1e-30),
        _Row(OK, "photos/手.jpg"),
        _Row(OK, "photos/with space, and comma.jpg"),
        _Row(OK, "photos/with#50%?.jpg"),
    ]


def write_lists(folder: Path, picture: Image.Image) -> list[Run]:
    """Write the same rows in each kind of list, plus rows that only one kind can have."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    jpeg = encoded(picture, "JPEG")
    names = ["good", *map(str, range(1, 14)), "手", "with space, and comma", "with#50%?", "two\nlines"]
    for name in names:
        (photos / f"{name}.jpg").write_bytes(jpeg)
    (photos / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (photos / "text.jpg").write_text("no photo")
    (photos / "empty.jpg").touch()
    (photos / "dangling.jpg").symlink_to(photos / "nowhere")
    os.mkfifo(photos / "pipe.jpg")
    rows = _list_rows(folder)
    return [
        _csv_list(folder, rows),
        _json_list(folder, rows),
        _parquet_list(folder, rows),
        _text_list(folder, rows, jpeg),
    ]


def _repeats(folder: Path, uris: Iterable[Any]) -> Iterator[bool]:
    """Yield per URI whether an earlier row has the same path."""
    seen = {""}
    for uri in uris:
        given = uri if isinstance(uri, str) else ""
        place = given if not given or given.startswith(("/", "file:")) else f"{folder}/{given}"
        yield bool(place) and place in seen
        seen.add(place)


def _by_number(kind: str, folder: Path, rows: list[_Row]) -> dict[str, Expected]:
    """Return the expectations of rows without their own id."""
    repeats = _repeats(folder, [row.uri for row in rows])
    return {
        f"{number}:{row.uri or ''}": Expected(kind, row.outcomes, duplicate=is_repeat)
        for number, (row, is_repeat) in enumerate(zip(rows, repeats, strict=True))
    }


def _csv_list(folder: Path, rows: list[_Row]) -> Run:
    rows = [row if row.uri.strip() else row._replace(uri="") for row in rows]  # CSV strips spaces
    rows.append(_Row(OK, "photos/two\nlines.jpg"))
    path = folder / "list.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "x1", "y1", "x2", "y2", "side", "focal_px", "note"])
        for row in rows:
            writer.writerow(
                [row.uri, *(row.box or [""] * 4), row.side or "", "" if row.focal is None else row.focal, "n"]
            )
        good = "photos/good.jpg"
        odd = [
            (_Row(BAD_ROW, good), good),  # shorter than the header
            (_Row(BAD_ROW, good), f"{good},,,,,,,,,,more"),
            (_Row(BAD_ROW, good), f"{good},one,two,three,four,,,"),
            (_Row(BAD_ROW, good), f"{good},1,1,50,,,,"),
            (_Row(BAD_ROW, good), f"{good},,,,,,many pixels,"),
            (_Row(BAD_ROW, ""), ",1,1,5,5,,,"),
            (None, ""),
            (_Row(OK, good), f"{good},,,,,,,{'long ' * 50_000}"),
        ]
        file.writelines(line + "\r\n" for _, line in odd)
    return Run("list.csv", path, _by_number("list.csv", folder, [*rows, *(row for row, _ in odd if row)]))


def _json_list(folder: Path, rows: list[_Row]) -> Run:
    path = folder / "list.jsonl"
    lines: list[str] = []
    expected: dict[str, Expected] = {}
    repeats = _repeats(folder, [row.uri for row in rows])
    for number, (row, is_repeat) in enumerate(zip(rows, repeats, strict=True)):
        box = None if row.box is None else list(row.box)
        wanted = {
            "uri": row.uri,
            "id": f"id {number}",
            "box_xyxy": box,
            "is_right": row.side,
            "focal_px": row.focal,
        }
        lines.append(json.dumps(wanted))
        outcomes = row.outcomes if row.uri != "   " else BAD_ROW | MISSING
        expected[f"id {number}"] = Expected("list.jsonl", outcomes, duplicate=is_repeat)

    def add(line: str, image_id: str, outcomes: frozenset[str]) -> None:
        is_repeat = '"photos/good.jpg"' in line and "[" not in line.split(",")[0]
        name = image_id.replace("NUMBER", str(len(lines)))
        expected[name] = Expected("list.jsonl", outcomes, duplicate=is_repeat)
        lines.append(line)

    add('{"uri": "photos/go', "NUMBER:", BAD_ROW)
    add("[1, 2, 3]", "NUMBER:", BAD_ROW)
    add("null", "NUMBER:", BAD_ROW)
    add("7", "NUMBER:", BAD_ROW)
    add("{}", "NUMBER:", BAD_ROW)
    add('{"uri": null}', "NUMBER:", BAD_ROW)
    add('{"uri": "photos/good.jpg"}', "NUMBER:photos/good.jpg", OK)
    add('{"uri": "photos/good.jpg", "id": "own", "box_xyxy": [1, 2, 3]}', "own", BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 2", "box_xyxy": "1 2 30 40"}', "own 2", OK)
    add('{"uri": "photos/good.jpg", "id": "own 3", "box_xyxy": {"x": 1}}', "own 3", BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 4", "box_xyxy": [[1, 2], [3, 4]]}', "own 4", BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 5", "focal_px": [3]}', "own 5", BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 6", "box_xyxy": []}', "own 6", OK)
    add('{"uri": ["photos/good.jpg"], "id": "own 7"}', "own 7", BAD_ROW | MISSING)
    add('{"uri": {"a": 1}, "id": "own 8"}', "own 8", BAD_ROW | MISSING)
    add('{"uri": "photos/\\u0000good.jpg", "id": "own 9"}', "own 9", MISSING | BAD_ROW)
    add('{"uri": "photos/\\ud83d.jpg", "id": "own 10"}', "own 10", MISSING | BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 11", "new": 1}', "own 11", OK)
    add('{"uri": "photos/good.jpg", "id": "own 12", "box_xyxy": 5}', "own 12", BAD_ROW)
    add('{"uri": "photos/good.jpg", "id": "own 13", "focal_px": 1e999}', "own 13", BAD_ROW)
    add("[" * 100_000, "NUMBER:", BAD_ROW)
    lines += [f'{{"uri": "photos/{number}.jpg", "id": "three times"}}' for number in (12, 13, 12)]
    expected["three times"] = Expected("list.jsonl", OK, times=3)
    path.write_text("\n".join([*lines, "", "   ", ""]), encoding="utf-8")
    return Run("list.jsonl", path, expected)


def _parquet_list(folder: Path, rows: list[_Row]) -> Run:
    path = folder / "list.parquet"
    rows = [row for row in rows if row.uri != "   "]  # in Parquet this is a name of three spaces
    rows += [
        _Row(BAD_ROW, None),
        _Row(MISSING, "   "),
        _Row(BAD_ROW, "photos/6.jpg", (1, 2, 3)),
        _Row(BAD_ROW, "photos/6.jpg", (1, 2, None, 9)),
    ]
    table = pa.table(
        {
            "image": pa.array([row.uri for row in rows], pa.string()),
            "box_xyxy": pa.array([row.box for row in rows], pa.list_(pa.float64())),
            "handedness": pa.array([row.side for row in rows], pa.string()),
            "focal_px": pa.array([row.focal for row in rows], pa.float64()),
            "status": pa.array(["theirs"] * len(rows)),  # also the name of a label column
        }
    )
    pq.write_table(table, path, row_group_size=10)
    return Run("list.parquet", path, _by_number("list.parquet", folder, rows))


def _text_list(folder: Path, rows: list[_Row], jpeg: bytes) -> Run:
    plain = [row for row in rows if not (row.box or row.side or row.focal is not None) and row.uri.strip()]
    latin = os.fsdecode("photos/Müller.jpg".encode("latin-1"))
    try:
        (folder / latin).write_bytes(jpeg)
        found = OK
    except OSError:
        found = MISSING
    lines = [b"\xef\xbb\xbf" + os.fsencode(plain[0].uri)]
    lines += [os.fsencode(row.uri) + b"\r" for row in plain[1:]]
    expected = _by_number("list.txt", folder, plain)
    lines += [
        b"",
        b"  ",
        b"photos/M\xfcller.jpg",
        b"photos/\0.jpg",
        b"\x1b[2Jphotos/good.jpg",
        b"# a comment",
    ]
    number = len(plain)
    expected[f"{number}:photos/M\\xfcller.jpg"] = Expected("list.txt", found)
    for step, name in enumerate(("photos/\0.jpg", "\x1b[2Jphotos/good.jpg", "# a comment"), 1):
        expected[f"{number + step}:{name}"] = Expected("list.txt", MISSING | BAD_ROW)
    path = folder / "list.txt"
    path.write_bytes(b"\n".join(lines))
    return Run("list.txt", path, expected)
