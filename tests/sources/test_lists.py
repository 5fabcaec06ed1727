"""Lists in text, CSV, JSON lines and Parquet, compared with the rows that were written."""

from __future__ import annotations

import csv
import io
import json
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.errors import UserError
from annotator.sources import ListSource, open_source
from annotator.sources.entry import Entry
from tests.support.listing import listed, put, s3
from tests.support.s3_server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from s3(tmp_path_factory.mktemp("s3"))


def rows_of(path: Path, content: object) -> list[Entry]:
    """Write a list (lines, bytes, or a table) and return its entries."""
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
    else:
        path.write_text(str(content), newline="")
    return listed(open_source(str(path)))


def outcomes(entries: list[Entry]) -> list[str]:
    """Return the error of each row, or an empty text."""
    assert all(entry.fault is None or entry.fault.reason == "bad_row" for entry in entries)
    return [entry.fault.message if entry.fault else "" for entry in entries]


HANDS = {("is_right", True): 1.0, ("handedness", "LEFT"): 0.0, ("side", "r"): 1.0}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
@pytest.mark.parametrize("uri", ["uri", "image_uri", "url", "path", "image"])
def test_every_name_of_a_column_works_in_every_kind_of_list(tmp_path, suffix, uri):
    boxes = (
        {"box_xyxy": [1.5, 2, 3, 4]},
        dict(zip(("x1", "y1", "x2", "y2"), (1.5, 2.0, 3.0, 4.0), strict=True)),
    )
    boxes += ({f"{name}_px": value for name, value in boxes[1].items()},)
    path = tmp_path / f"list.{suffix}"
    for box in boxes:
        for (name, value), right in HANDS.items():
            for own_id in ({"id": 7}, {"image_id": "seven"}, {}):
                row = {uri: "a.jpg", "note": 'n,o\tt"e', **box, name: value, **own_id, "focal_px": 500.5}
                if suffix == "parquet":
                    (entry,) = rows_of(path, pa.Table.from_pylist([row]))
                elif "j" in suffix:
                    (entry,) = rows_of(path, [row])
                else:
                    out = io.StringIO()
                    writer = csv.writer(out, dialect="excel-tab" if suffix == "tsv" else "excel")
                    writer.writerows([row.keys(), row.values()])
                    (entry,) = rows_of(path, out.getvalue())
                assert entry.hands[0][:2] == ((1.5, 2, 3, 4), right) and entry.fault is None
                assert entry.id == str(next(iter(own_id.values()), "0:a.jpg")) and entry.focal_px == 500.5
                assert entry.path == f"{tmp_path}/a.jpg" and entry.extra == {"note": 'n,o\tt"e'}


def test_paths_are_relative_to_the_list_or_absolute(tmp_path, server):
    given = ["a b.jpg", "../up.jpg", "/abs.jpg", "file:///f.jpg", "s3://bucket/x#y.jpg", "memory://m/z.jpg"]
    text = "\ufeff" + "\r\n".join([*given[:3], "", "  ", *given[3:]])
    for place in (str(tmp_path), "s3://bucket"):
        put(place, "list.TXT", data=text.encode())
        entries = listed(open_source(f"{place}/list.TXT"))
        assert [e.path for e in entries] == [f"{place}/a b.jpg", f"{place}/../up.jpg", *given[2:]]
        assert [e.id for e in entries] == [f"{n}:{uri}" for n, uri in enumerate(given)]


def test_a_repeated_uri_or_id_is_flagged_as_duplicate(tmp_path):
    text = "id,uri,x1,y1,x2,y2\n1,a,0,0,9,9\n2,b,0,0,9,9\n3,a,,,,\n1,c,,,,\n,,,,,\n,,,,,\n5,b,9,9,0,0\n"
    entries = rows_of(tmp_path / "l.csv", text)
    assert [e.duplicate for e in entries] == [False, False, True, True, False, False, True]
    assert [bool(e.fault) for e in entries] == [False] * 4 + [True] * 3


def test_csv_of_other_programs(tmp_path):
    body = 'uri , note\r\n"a,b.jpg","two\r\nlines"\r\n\r\n"c""d.jpg", x \r\n  e.jpg  ,\r\nf.jpg,g,\r\n'
    for text in (body, "\ufeff" + body, body.replace("\r\n", "\n")):
        entries = rows_of(tmp_path / "l.csv", text)
        assert [Path(e.path).name for e in entries] == ["a,b.jpg", 'c"d.jpg', "e.jpg", "f.jpg"]
        assert [e.extra["note"].replace("\r", "") for e in entries] == ["two\nlines", " x ", "", "g"]
    assert [e.id for e in rows_of(tmp_path / "l.csv", ",uri,\n0,a.jpg,\n")] == ["0:a.jpg"]
    assert [e.extra for e in rows_of(tmp_path / "l.csv", ",uri,\n0,a.jpg,\n")] == [{}]
    assert [Path(e.path).name for e in rows_of(tmp_path / "l.csv", "uri\ra.jpg\rb.jpg")] == ["a.jpg", "b.jpg"]


def test_an_invalid_row_affects_only_itself(tmp_path):
    text = """uri,x1,y1,x2,y2,side,focal_px
good,0,0,9,9,left,1
short,0,0,9,9,left
long,0,0,9,9,left,1,x
comma,in,0,0,9,9,left,1
,0,0,9,9,left,1
nan,nan,0,9,9,left,1
inf,0,0,inf,9,left,1
inverted,9,0,0,9,left,1
flat,0,0,9,0,left,1
three,0,0,9,,left,1
text,0,0,nine,9,left,1
huge,0,0,1e300,9,left,1
thin,1,0,1.000000001,9,left,1
side,0,0,9,9,up,1
focal,0,0,9,9,left,-1
zero\0byte,0,0,9,9,left,1
"quote,0,0,9,9,left,1
last,0,0,9,9,left,1
"""
    entries = rows_of(tmp_path / "l.csv", text)
    found = dict(zip([e.id.partition(":")[2] for e in entries], outcomes(entries), strict=True))
    words = {
        **{"short": "6 values where the header has 7", "long": "8 values", "comma": "8 values"},
        **dict.fromkeys(["nan", "inf", "three", "text"], "expected a finite number"), "side": "side is 'up'",
        **dict.fromkeys(["inverted", "flat"], "is invalid"), **dict.fromkeys(["huge", "thin"], "no photo has"),
        "focal": "positive", "zero\0byte": "zero byte",
    }  # fmt: skip
    assert (
        found.pop("good") == ""
        and outcomes(entries)[-1] == "this row has an opening quote without a closing one"
    )
    assert len(entries) == 17 and outcomes(entries)[4] == "this row has no photo uri"
    for name, word in words.items():
        assert word in found[name], (name, found[name])
    (long,) = rows_of(tmp_path / "l.csv", 'uri\n"' + "x" * (1 << 24) + 'yz",\n')
    assert "field larger" in outcomes([long])[0]


def test_json_lines_of_other_programs(tmp_path):
    whole, deep = 1 << 62, "[" * 100_000
    rows = [
        {"uri": "a", "n": 1, "big": whole, "mix": 1, "b": True, "list": [1], "box_xyxy": None, "id": 5},
        {"uri": "b", "n": 2.5, "big": 1, "mix": "x", "b": None, "list": [2], "new": 1, "id": "x"},
        {"uri": "\ud800", "n": None, "extra": "\udcff"},
    ]
    entries = rows_of(tmp_path / "l.jsonl", rows)
    assert [e.extra["n"] for e in entries] == [1.0, 2.5, None] and entries[0].extra["big"] == whole
    assert [e.extra["mix"] for e in entries] == ["1", "x", None] and entries[2].extra["extra"] == "\\xff"
    assert [e.extra["list"] for e in entries] == ["[1]", "[2]", None] and [e.id for e in entries][:2] == [
        "5",
        "x",
    ]
    columns = open_source(str(tmp_path / "l.jsonl")).columns
    assert columns["big"] == pa.int64() and columns["n"] == pa.float64() and columns["b"] == pa.bool_()
    lines = [
        '{"uri": "a", "n": 1, "box_xyxy": [0, 0, 9, 9]}', "no", "[]", deep, "{", '{"uri": 5}', '{"uri": ["a"]}',
        '{"uri": "b", "box_xyxy": 5}', '{"uri": "b", "box_xyxy": {"x": 1}}', '{"uri": "b", "box_xyxy": "1 2 3"}',
        '{"uri": "b", "box_xyxy": [1, 2, 3, NaN]}', '{"uri": "b", "box_xyxy": [1, 2, 3, 1' + "0" * 400 + "]}",
        '{"uri": "b", "box_xyxy": [true, 2, 3, 4]}', '{"uri": "b", "n": "x", "id": 1.5}',
    ]  # fmt: skip
    first = [json.dumps({"uri": f"{n}", "n": 1, "box_xyxy": None}) for n in range(1000)]
    wrong = outcomes(rows_of(tmp_path / "l.jsonl", "\n".join(first + lines)))[1000:]
    assert wrong[0] == "" and all(wrong[1:]) and sum("not a JSON object" in fault for fault in wrong) == 4
    late = [
        '{"uri": "b", "side": "left"}',
        '{"uri": "b", "side": null, "new": 1}',
        '{"uri": "b", "n": 1e400}',
    ]
    wrong = outcomes(rows_of(tmp_path / "l.jsonl", "\n".join(first + late)))[1000:]
    assert "'side', which none" in wrong[0] and wrong[1:] == ["", ""]
    assert rows_of(tmp_path / "l.jsonl", b'{"uri": "caf\xe9.jpg"}')[0].path == f"{tmp_path}/caf\udce9.jpg"


def test_parquet_of_all_types(tmp_path):
    columns = {
        "uri": pa.array(["a", "b", None]).dictionary_encode(), "id": pa.array([1, 2, 3], pa.uint8()),
        "box_xyxy": pa.array([[1, 2, 3, 4], None, [0, 0, 1, 1]], pa.list_(pa.float32(), 4)),
        "is_right": pa.array([True, None, False]), "focal_px": pa.array([1, 2, None], pa.decimal128(9, 2)),
        "u": pa.array([1 << 63, 1, None], pa.uint64()), "h": pa.array([1.5, 2, 3], pa.float16()),
        "when": pa.array([1, 2, None], pa.timestamp("ns")),
        "d": pa.array(["1.50", None, "2"]).cast(pa.decimal128(9, 2)),
        "raw": [b"a\xff", None, b""], "nested": [{"k": [1]}, None, None], "status": ["x", "y", "z"],
        "list_status": [1, 2, 3], "": [1, 2, 3],
    }  # fmt: skip
    entries = rows_of(tmp_path / "l.parquet", pa.table(columns))
    assert outcomes(entries) == ["", "", "this row has no photo uri"]
    first = entries[0]
    assert first.hands[0][:2] == ((1, 2, 3, 4), 1.0) and entries[1].hands is None and first.id == "1"
    assert {name: first.extra[name] for name in ("u", "h", "d", "raw", "nested")} == {
        "u": 1 << 63, "h": 1.5, "d": "1.50", "raw": "a\\xff", "nested": '{"k": [1]}'
    }  # fmt: skip
    assert first.extra["when"].startswith("1970-01-01 00:00:00.0")
    kept = sorted(name for name, value in first.extra.items() if value in ("x", 1))
    assert len(kept) == 3 and "status" not in kept and first.extra["list_status"] == 1
    source = open_source(str(tmp_path / "l.parquet"))
    for name, kind in source.columns.items():
        pa.array([entry.extra.get(name) for entry in entries], kind)
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9.jpg"]).buffers())
    (entry,) = rows_of(tmp_path / "l.parquet", pa.table({"uri": latin}))
    assert (entry.path, entry.id) == (f"{tmp_path}/caf\udce9.jpg", "0:caf\\xe9.jpg")
    polars = pytest.importorskip("polars")
    polars.DataFrame({"uri": ["a"], "x": [1]}).write_parquet(tmp_path / "l.parquet")
    assert [e.extra for e in listed(open_source(str(tmp_path / "l.parquet")))] == [{"x": 1}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.csv", "", "no column with the photos' paths; its columns are none"),
        ("l.jsonl", "", "no column with the photos' paths"),
        ("l.csv", "URI,x\n", "are 'URI', 'x': use one of uri, image_uri"),
        ("l.csv", '"fi\nle",\0\n', "'fi\\nle'"),
        ("l.csv", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 99, "no column with the photos' paths"),
        ("l.csv", "uri\n".encode("utf-16"), "UTF-16"),
        ("l.txt", "a.jpg\n".encode("utf-16"), "UTF-16"),
        ("l.csv", 'uri,"x\n', "no header"),
        ("l.csv", "uri,uri\n", "two columns with the same name"),
        ("l.csv", "uri,x1,y1,x2\n", "has only x1, y1, x2 of a box"),
        *(("l.csv", f"uri,{name}\n", "did you mean") for name in (
            "Handedness", "handednes", "is-right", "bbox", "focal px", "imageid", "SIDE")),
        ("l.jsonl", "[\n", "its first row is not an object"),
        ("l.jsonl", "[1, 2]\n", "its first row is not an object"),
        ("l.json", '{"images": [],\n"annotations": []}', "neither JSON lines nor a JSON array"),
        ("l.jsonl", '{"uri": 5}\n', "expected text"),
        ("l.parquet", b"PAR1nonsense", "not a Parquet file"),
        ("l.parquet", pa.table({"uri": [1]}), "'uri' of"),
        ("l.parquet", pa.table({"uri": ["a"], "id": [0.5]}), "expected text or integers"),
        ("l.parquet", pa.table({"uri": ["a"], "box_xyxy": [1.0]}), "expected lists of four numbers"),
        ("l.parquet", pa.table({"uri": ["a"], "side": [1]}), "expected true and false, or left and right"),
        ("l.parquet", pa.table({"uri": ["a"], "focal_px": [True]}), "expected numbers"),
        ("l.parquet", pa.Table.from_arrays([pa.array(["a"])] * 2, ["uri", "uri"]), "two columns with the same name"),
    ],
)  # fmt: skip
def test_an_invalid_list_is_refused_in_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as raised:
        list(ListSource(str(path)))
    assert words in str(raised.value) and str(raised.value).isprintable() and str(path) in str(raised.value)


def test_a_list_damaged_in_its_middle_is_one_line_after_the_rows_before(tmp_path):
    path = tmp_path / "l.parquet"
    table = pa.table({"uri": [f"{n}.jpg" for n in range(20_000)]})
    pq.write_table(table, path, row_group_size=5000, compression="gzip", use_dictionary=False)
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 60] = b"\xff" * 60
    path.write_bytes(data)
    found = []
    with pytest.raises(UserError) as raised:
        for entry in open_source(str(path)):
            found.append(entry.order)
    # A batch may span row groups.
    assert found == list(range(len(found))) and 6000 <= len(found) <= 10_000
    assert str(raised.value).isprintable() and "damaged" in str(raised.value)


def test_empty_lists(tmp_path):
    for name, content in (("l.txt", ""), ("l.txt", "\n \n"), ("l.csv", "uri,x\n"), ("l.tsv", "uri")):
        assert rows_of(tmp_path / name, content) == []
    assert rows_of(tmp_path / "l.parquet", pa.table({"uri": pa.array([], pa.string())})) == []


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "txt"])
def test_a_long_list_streams(tmp_path, suffix):
    path, count = tmp_path / f"l.{suffix}", 200_000
    uris = [f"folder/{n // 2 * 2:09d}.jpg" for n in range(count)]
    if suffix == "parquet":
        pq.write_table(pa.table({"uri": uris, "note": ["n" * 30] * count}), path)
    else:
        row = {"csv": "{},n\n", "jsonl": '{{"uri": "{}"}}\n', "txt": "{}\n"}[suffix]
        path.write_text("uri,note\n" * (suffix == "csv") + "".join(row.format(uri) for uri in uris))
    began = time.monotonic()
    source = open_source(str(path))
    assert len(list(islice(source, 1))) == 1 and time.monotonic() - began < 1
    del uris
    tracemalloc.start()
    assert sum(entry.duplicate for entry in islice(source, 15_000)) == 7_500
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 9e6  # 4 MB of this is the read buffer
