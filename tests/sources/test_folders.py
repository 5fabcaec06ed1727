"""The entries of folders, globs and single files, on disk and in S3, compared with `os.walk` and `glob`."""

from __future__ import annotations

import gc
import glob
import os
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import UserError
from annotator.sources import open_source
from annotator.sources.entry import path_as_utf8
from tests.robustness.hostile_photos import encoded, noise
from tests.sources.test_containers import tar_of
from tests.support.listing import listed, put, s3
from tests.support.s3_server import Server

PHOTO = encoded(noise(), "JPEG")

#: Names whose order is easy to get wrong: a folder sorts among files with its slash.
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


def ids(place: object, **options: object) -> list[str]:
    return [entry.id for entry in listed(open_source(str(place), **options))]


def line(place: object, **options: object) -> str:
    """Return the one-line error that refuses a source."""
    with pytest.raises(UserError) as raised:
        list(open_source(str(place), **options))
    assert str(raised.value).isprintable() and len(str(raised.value)) < 1500
    return str(raised.value)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from s3(tmp_path_factory.mktemp("s3"))


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
        shown = [path_as_utf8(path) for path in walked if not path.startswith(".") and "/." not in path]
        assert ids(folder) == sorted(shown)


def test_unusual_names(tmp_path):
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


def test_a_folder_deeper_than_the_recursion_limit(monkeypatch):
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
        subprocess.run(["rm", "-rf", folder], check=True)  # `shutil.rmtree` recurses as deep as the tree


def test_links_loops_and_other_kinds_of_files(tmp_path):
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


def test_the_name_of_a_link_determines_the_kind_of_source(tmp_path):
    """Caches have links with names to files without a suffix."""
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
    """Switch to the user `nobody`: root may read every file."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


def test_unreadable_files_are_reported():
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


def test_labels_among_the_photos_are_skipped(tmp_path, server, monkeypatch):
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


@pytest.mark.slow
def test_a_large_folder_is_listed_in_little_memory(tmp_path):
    for number in range(20_000):
        (tmp_path / f"{number:06d}.jpg").touch()
    source = open_source(str(tmp_path))
    gc.collect()
    tracemalloc.start()
    count = sum(1 for _ in source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000 and peak < 6e6  # 300 bytes per name of this one folder


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


def test_a_relative_glob_searches_no_deeper_than_necessary(tmp_path, monkeypatch):
    write(tmp_path, "a.jpg", "b/c.jpg", "b/d/e.jpg")
    monkeypatch.chdir(tmp_path)
    assert ids("*.jpg") == ["a.jpg"] and ids("?/*.jpg") == ["b/c.jpg"] and ids("b/*/*") == ["d/e.jpg"]
    looked: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or scandir(path))
    ids("?/*.jpg")
    assert set(looked) == {str(tmp_path), str(tmp_path / "b")}


def test_brackets_in_an_existing_name_are_not_a_pattern(tmp_path):
    write(tmp_path, "run [1]/a.jpg", "run 1/b.jpg", "what?.jpg")
    assert ids(tmp_path / "run [1]") == ["a.jpg"]
    assert ids(tmp_path / "what?.jpg") == ["what?.jpg"]
    assert ids(tmp_path / "run [12]/*") == ["run 1/b.jpg"]


def test_an_invalid_source_is_refused_in_one_line(tmp_path, server):
    write(tmp_path, "a.jpg")
    nowhere = tmp_path / "no\nwhere"
    for place in (
        nowhere,
        tmp_path / "none.jpg",
        tmp_path / "none.csv",
        "s3://bucket/none.jpg",
        "none/*.jpg",
    ):
        assert "' does not exist: give a folder of photos" in line(place)
    assert "must stand alone" in line(tmp_path / "a**.jpg")
    assert "is a file, not a folder" in line(tmp_path / "a.jpg/*")
    assert "The specified bucket does not exist" in line("s3://nobucket/photos")
    assert "does not exist" in line("memory://no-such-folder")
    assert "can't be read" in line("s3://bucket/none.csv") and "can't be read" in line("s3://bucket/none.txt")
    assert "every 0" in line(tmp_path, every=0)
    assert ids("s3://bucket/nothing-here") == ids(tmp_path / "*.png") == []
