"""Photos in tars and Parquet files that other programs wrote."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.errors import UserError
from annotator.photos.decode import Photo, decode_photo
from annotator.photos.errors import PhotoError
from annotator.sources import open_source
from annotator.sources.entry import Entry
from annotator.sources.parquet import image_columns, list_parquet, read_parquet, read_row
from annotator.sources.read import photos_of, stored_at
from annotator.sources.tar import list_tar, read_tar
from tests.robustness.hostile_photos import encoded, noise

ROOT = Path(__file__).parents[2]

PHOTO = encoded(noise(), "JPEG")


HUGGING_FACE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def some_bytes(number: int, size: int = 3000) -> bytes:
    """Return bytes that differ for each number."""
    return np.random.default_rng(number).bytes(size + 37 * (number % 5))


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in fields.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def tar_of(members: list[tuple[str, bytes]], **options: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, data in members:
            add(tar, name, data)
    return out.getvalue()


def listed(path: Path, **options: object) -> list[Entry]:
    entries = list(list_tar(str(path), "t.tar", **options))
    assert [entry.order for entry in entries] == list(range(len(entries)))
    assert len({entry.id for entry in entries}) == len(entries)
    for entry in entries:
        assert Entry.from_json(entry.to_json()) == entry
        assert entry.file_id == "t.tar"
    return entries


def bytes_at(path: Path, entries: list[Entry]) -> dict[str | None, bytes]:
    good = [entry for entry in entries if not entry.fault]
    found = read_tar(str(path), [entry.at for entry in good])
    return {entry.inside: data for entry, data in zip(good, found, strict=True)}


def faults(entries: list[Entry]) -> list[str]:
    return [entry.fault.reason for entry in entries if entry.fault]


# Tars


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_photos_of_a_shard_come_in_its_order_with_their_bytes(tmp_path, format):
    members = []
    for number in reversed(range(20)):
        members += [(f"{number:03d}.JPG", some_bytes(number)), (f"{number:03d}.cls", b"7"), ("x.json", b"{}")]
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of(members, format=format))
    skipped: list[str] = []
    entries = listed(path, skip=skipped.append)
    photos = {name: data for name, data in members if name.endswith("JPG")}
    assert [entry.inside for entry in entries] == list(photos)
    assert [entry.id for entry in entries] == [f"t.tar#{name}" for name in photos]
    assert bytes_at(path, entries) == photos
    assert len(skipped) == 40
    assert skipped[:2] == ["t.tar#019.cls", "t.tar#x.json"]


def test_real_photos_in_a_tar_by_the_systems_program(tmp_path, hand_scenes):
    if not shutil.which("tar"):
        pytest.skip("no tar program")
    for photo in sorted((hand_scenes / "images").iterdir())[:12]:
        shutil.copy(photo, tmp_path)
    long = tmp_path / ("d" * 120) / ("手" * 40 + ".jpg")
    long.parent.mkdir()
    long.write_bytes(PHOTO)
    path = tmp_path / "out" / "t.tar"
    path.parent.mkdir()
    subprocess.run(["tar", "-cf", path, "--exclude", "./out", "-C", tmp_path, "."], check=True)
    entries = listed(path)
    assert len(entries) == 13
    for inside, data in bytes_at(path, entries).items():
        assert data == (tmp_path / inside).read_bytes()
        decode_photo(data)


def test_names_are_only_names(tmp_path):
    names = [
        "../../up.jpg",
        "/etc/abs.jpg",
        "a/../b.jpg",
        "a\nb.png",
        "./c.jpg",
        "x" * 300 + ".jpg",
        "C:\\d.jpg",
    ]
    path = tmp_path / "in" / "t.tar"
    path.parent.mkdir()
    path.write_bytes(tar_of([(name, name.encode()) for name in names]))
    entries = listed(path)
    assert bytes_at(path, entries) == {name: name.encode() for name in names}
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_a_name_that_is_not_utf_8_becomes_readable(tmp_path):
    path = tmp_path / "t.tar"
    name = os.fsdecode(b"a\xff\xfe.jpg")
    path.write_bytes(tar_of([(name, b"1")], format=tarfile.GNU_FORMAT, errors="surrogateescape"))
    (entry,) = listed(path)
    assert entry.inside == "a\\xff\\xfe.jpg"
    entry.id.encode()


def test_the_same_name_twice_is_two_photos(tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.jpg", b"4")]))
    found = bytes_at(path, listed(path))
    assert found == {"a.jpg": b"1", "b.jpg": b"2", "a.jpg@2": b"3", "a.jpg@3": b"4"}


def test_members_that_are_not_regular_photos_are_skipped(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w") as tar:
        add(tar, "folder.jpg", b"", type=tarfile.DIRTYPE)
        add(tar, "good.jpg", b"good")
        add(tar, "soft.jpg", b"", type=tarfile.SYMTYPE, linkname="good.jpg")
        add(tar, "hard.jpg", b"", type=tarfile.LNKTYPE, linkname="good.jpg")
        add(tar, "device.jpg", b"", type=tarfile.CHRTYPE)
        add(tar, "pipe.jpg", b"", type=tarfile.FIFOTYPE)
        add(tar, "._good.jpg", b"a Mac's own")
        add(tar, ".hidden/x.jpg", b"hidden")
        add(tar, ".jpg", b"hidden")
        add(tar, "jpg", b"no suffix")
    skipped: list[str] = []
    assert bytes_at(path, listed(path, skip=skipped.append)) == {"good.jpg": b"good"}
    assert len(skipped) == 9


def test_a_sparse_file_is_skipped(tmp_path):
    hole = tmp_path / "hole.jpg"
    with hole.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    if not shutil.which("tar"):
        pytest.skip("no tar program")
    for format in ("gnu", "pax"):
        path = tmp_path / f"{format}.tar"
        subprocess.run(
            ["tar", "-S", f"--format={format}", "-cf", path, "-C", tmp_path, "hole.jpg"], check=True
        )
        with tarfile.open(path) as tar:
            assert tar.next().issparse()
        assert listed(path) == []


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_cut_anywhere_gives_complete_photos_and_a_fault(tmp_path, format):
    photos = {("n" * (130 * (number % 2))) + f"{number}.jpg": some_bytes(number, 900) for number in range(6)}
    whole = tar_of([*photos.items(), ("last.json", b"{}" * 600)], format=format)
    end = len(whole.rstrip(b"\0"))
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name in photos]
        mark = tar.offset  # the position after the end mark
    path = tmp_path / "t.tar"
    for cut in sorted({*range(0, end, 113), *range(512, end, 512), *ends, *(at - 1 for at in ends)}):
        path.write_bytes(whole[:cut])
        entries = listed(path)
        found = bytes_at(path, entries)
        assert len(found) == sum(at <= cut for at in ends), cut
        assert all(photos[name] == data for name, data in found.items()), cut
        expected = ["empty"] if cut == 0 else ["not_a_photo"] if cut < 262 else ["truncated"]
        assert faults(entries) == expected, cut
        assert entries[-1].fault
    path.write_bytes(whole[:mark])
    assert faults(listed(path)) in ([], ["truncated"])  # with or without a block of zeros


def test_a_photo_beyond_the_files_end_has_a_fault_of_its_own(tmp_path):
    path = tmp_path / "t.tar"
    whole = tar_of([("a.jpg", b"1" * 100), ("b.jpg", b"2" * 5000)])
    path.write_bytes(whole[: 512 + 512 + 512 + 4000])
    first, second = listed(path)
    assert (first.inside, first.fault) == ("a.jpg", None)
    assert (second.inside, second.id, second.at) == ("b.jpg", "t.tar#b.jpg", ())
    assert second.fault.reason == "truncated"


def test_damage_to_any_header_never_gives_wrong_bytes(tmp_path):
    photos = {f"{number}.jpg": some_bytes(number, 700) for number in range(5)}
    whole = tar_of([*photos.items()], format=tarfile.GNU_FORMAT)
    path = tmp_path / "t.tar"
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        headers = [member.offset for member in tar]
    for seed in range(300):
        damaged = bytearray(whole)
        at = random.Random(seed).choice(headers)
        byte = at + random.Random(seed).randrange(345)
        damaged[byte] ^= 1 << seed % 7
        path.write_bytes(damaged)
        entries = listed(path)
        assert faults(entries) == ["corrupt"]
        assert entries[-1].id == "t.tar"
        found = bytes_at(path, entries)
        assert found == dict(list(photos.items())[: headers.index(at)])


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\x7f" * 11, b"\xff" * 11 + b"\x00", b"\xff" * 12]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S"])
def test_a_header_that_claims_an_absurd_size_ends_the_list(tmp_path, kind, size):
    block = bytearray(tar_of([("b.jpg", b"")])[:512])
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of([("a.jpg", b"1")])[:1024] + block + bytes(2048))
    entries = listed(path)
    assert bytes_at(path, entries) == {"a.jpg": b"1"}
    if kind == b"S" and not faults(entries):
        return  # the size of a sparse file has another meaning, and the file is skipped
    assert faults(entries)[0] in ("corrupt", "truncated", "too_large")


def test_thousands_of_long_names_in_a_row_do_not_break_it(tmp_path):
    member = tarfile.TarInfo("x" * 300 + ".jpg")
    long_name = member.tobuf(tarfile.GNU_FORMAT)[:1024]
    path = tmp_path / "t.tar"
    path.write_bytes(long_name * 3000 + bytes(1024))
    assert faults(listed(path)) == ["corrupt"]


def test_files_that_are_not_tars_or_do_not_exist(tmp_path):
    path = tmp_path / "t.tar"
    assert faults(listed(path)) == ["missing"]
    assert faults(list(list_tar(str(path) + "\0", "t.tar"))) == ["missing"]
    assert faults(listed(tmp_path)) == ["io_error"]
    for content in (b"text " * 500, PHOTO * 3, b"a", __import__("gzip").compress(tar_of([("a.jpg", PHOTO)]))):
        path.write_bytes(content)
        (entry,) = listed(path)
        assert entry.fault == ("not_a_photo", "this is not a tar file")
        assert (entry.id, entry.inside, entry.at) == ("t.tar", None, ())
    path.write_bytes(tar_of([]))
    assert listed(path) == []
    path.write_bytes(b"")
    assert faults(listed(path)) == ["empty"]
    if os.geteuid():
        path.chmod(0)
        assert faults(listed(path)) == ["no_permission"]


def test_joined_tars_are_reported(tmp_path):
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of([("a.jpg", b"1")]) + tar_of([("b.jpg", b"2")]))
    entries = listed(path)
    assert bytes_at(path, entries) == {"a.jpg": b"1"}
    assert "joined" in entries[-1].fault.message


@pytest.mark.slow
def test_listing_keeps_no_members_in_memory(tmp_path):
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(20_000):
            add(tar, f"folder/{number:06d}.jpg", b"x" * 600)
            tar.members.clear()
    # In a process of its own: threads of other tests would allocate meanwhile.
    walk = (
        "import sys, tracemalloc; from annotator.sources.tar import list_tar; tracemalloc.start(); "
        "print(sum(1 for _ in list_tar(sys.argv[1], 't.tar')), tracemalloc.get_traced_memory()[1])"
    )
    done = subprocess.run(
        [sys.executable, "-c", walk, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, peak = map(int, done.stdout.split())
    assert count == 20_000
    assert peak < 4e6  # the tar has 48 MB; the member objects would take 30 MB


def test_positions_are_read_in_the_given_order_and_neighbours_together(tmp_path, monkeypatch):
    photos = {f"{number}.jpg": some_bytes(number) for number in range(60)}
    photos["large.jpg"] = bytes(20 << 20)
    path = tmp_path / "t.tar"
    path.write_bytes(tar_of([*photos.items()]))
    entries = listed(path)
    reads: list[int] = []

    class Counting(io.FileIO):
        def read(self, size=-1):
            reads.append(size)
            return super().read(size)

    monkeypatch.setattr("annotator.sources.tar.open_existing", lambda path: Counting(path))
    assert list(read_tar(str(path), [entry.at for entry in entries])) == list(photos.values())
    assert len(reads) == 2
    random.Random(0).shuffle(entries)
    entries += entries[:3]
    found = list(read_tar(str(path), [entry.at for entry in entries]))
    assert found == [photos[entry.inside] for entry in entries]
    path.write_bytes(path.read_bytes()[:4000])
    assert len(list(read_tar(str(path), [entry.at for entry in entries]))) == len(entries)
    with pytest.raises(FileNotFoundError):
        list(read_tar(str(tmp_path / "none.tar"), [(0, 1)]))


def test_tars_and_parquet_behind_a_url(tmp_path):
    members = [("a.jpg", some_bytes(1)), ("b.jpg", some_bytes(2, 300_000))]
    with fsspec.open("memory://containers/t.tar", "wb") as file:
        file.write(tar_of(members))
    url = "memory://containers/t.tar"
    entries = list(list_tar(url, "t.tar"))
    assert list(read_tar(url, [entry.at for entry in entries])) == [data for _, data in members]
    out = io.BytesIO()
    pq.write_table(pa.table({"image": [data for _, data in members]}), out)
    with fsspec.open("memory://containers/t.parquet", "wb") as file:
        file.write(out.getvalue())
    url = "memory://containers/t.parquet"
    positions = [entry.at for entry in list_parquet(url, "t.parquet")]
    assert list(read_parquet(url, positions)) == [data for _, data in members]
    assert faults(list(list_parquet("memory://containers/none", "none"))) == ["missing"]


# Parquet


def rows_of(path: Path, **options: object) -> list[Entry]:
    entries = list(list_parquet(str(path), "p.parquet", **options))
    assert [entry.order for entry in entries] == list(range(len(entries)))
    return entries


def test_photos_of_many_row_groups_are_their_rows(tmp_path):
    photos = [some_bytes(number) if number % 7 else None for number in range(500)]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"label": range(500), "jpg": photos}), path, row_group_size=33)
    entries = rows_of(path)
    assert [entry.id for entry in entries] == [f"p.parquet#{row}" for row in range(500)]
    assert [entry.inside for entry in entries] == [str(row) for row in range(500)]
    assert {entry.file_id for entry in entries} == {"p.parquet"}
    assert list(read_parquet(str(path), [entry.at for entry in entries])) == photos
    random.Random(0).shuffle(entries)
    entries = entries[:200] + entries[:20]
    found = list(read_parquet(str(path), [entry.at for entry in entries]))
    assert found == [photos[entry.order] for entry in entries]
    for row in (0, 32, 33, 250, 499):
        assert read_row(str(path), row) == photos[row]
    for row in (-1, 500):
        with pytest.raises(PhotoError, match="no row") as raised:
            read_row(str(path), row)
        assert raised.value.reason == "missing"
    for position in ((99, 0), (0, 33)):
        with pytest.raises(PhotoError, match="no such row"):
            list(read_parquet(str(path), [position]))


def test_a_file_by_pandas(tmp_path, hand_scenes):
    photos = [photo.read_bytes() for photo in sorted((hand_scenes / "images").iterdir())[:20]]
    path = tmp_path / "p.parquet"
    pd.DataFrame({"image_bytes": photos, "n": range(20)}).to_parquet(path)
    found = list(read_parquet(str(path), [entry.at for entry in rows_of(path)]))
    assert found == photos
    assert decode_photo(found[0]).width > 0


def test_a_file_by_hugging_faces_datasets(tmp_path, hand_scenes):
    datasets = pytest.importorskip("datasets")
    files = sorted((hand_scenes / "images").iterdir())[:20]
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in files] + [None]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"image": images, "label": range(21)}, features=features)
    path = tmp_path / "p.parquet"
    data.to_parquet(path)
    entries = rows_of(path)
    found = list(read_parquet(str(path), [entry.at for entry in entries]))
    assert found == [file.read_bytes() for file in files] + [None]
    assert read_row(str(path), 20) is None


def test_a_file_by_polars(tmp_path):
    polars = pytest.importorskip("polars")
    photos = [some_bytes(number) for number in range(50)]
    path = tmp_path / "p.parquet"
    polars.DataFrame({"png": photos}).write_parquet(path, row_group_size=20)
    assert list(read_parquet(str(path), [entry.at for entry in rows_of(path)])) == photos


def test_a_null_struct_and_a_struct_of_null_bytes_are_not_photos(tmp_path):
    kind = pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])
    photos = [{"bytes": b"1"}, None, {"bytes": None, "path": None}, {"bytes": b"4"}]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"photo": pa.array(photos, kind)}), path)
    assert list(read_parquet(str(path), [(0, row) for row in range(4)])) == [b"1", None, None, b"4"]


def test_only_the_photos_are_read(tmp_path):
    path = tmp_path / "p.parquet"
    photos = [some_bytes(number) for number in range(20)]
    table = pa.table({"other": [b"OTHER" * 1000] * 20, "image": photos})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    other = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start, size = other.data_page_offset, other.total_compressed_size
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    assert list(read_parquet(str(path), [(0, row) for row in range(20)])) == photos
    with pytest.raises(OSError):
        pq.read_table(path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"image": pa.binary()}, "image"),
        ({"png": pa.large_binary(), "mask": pa.binary()}, "png"),
        ({"picture": pa.struct([("bytes", pa.binary())])}, "picture"),
        ({"jpg": pa.binary(), "image": pa.struct([("bytes", pa.binary()), ("path", pa.string())])}, "image"),
        ({"image": pa.string(), "bytes": pa.binary()}, "bytes"),
        ({"picture": pa.binary()}, None),
        ({"jpg": pa.struct([("bytes", pa.binary())])}, None),
        ({"image": pa.struct([("bytes", pa.string())])}, None),
        ({"image": pa.list_(pa.binary())}, None),
        ({}, None),
        ({"img": pa.binary()}, "img"),
        ({"img": HUGGING_FACE, "label": pa.int64()}, "img"),
        ({"observation.image": pa.binary(), "action": pa.binary()}, "observation.image"),
        (
            {"observation.images.top": HUGGING_FACE, "observation.state": pa.list_(pa.float32())},
            "observation.images.top",
        ),
        ({"front view": HUGGING_FACE}, "front view"),
        ({"front view": pa.struct([("path", pa.string()), ("timestamp", pa.float32())])}, None),
    ],
)
def test_the_column_of_photos(columns, expected):
    assert image_columns(pa.schema(columns)) == ([expected] if expected else [])


def test_two_cameras_are_reported_and_audio_is_not_a_photo(tmp_path):
    rows = pa.array([{"bytes": b"x", "path": None}] * 3, HUGGING_FACE)
    pq.write_table(
        pa.table({"observation.images.top": rows, "observation.images.wrist": rows}), tmp_path / "l.parquet"
    )
    (entry,) = list_parquet(str(tmp_path / "l.parquet"), "l.parquet")
    assert (
        entry.fault.reason == "unsupported"
        and "'observation.images.top', 'observation.images.wrist'" in entry.fault[1]
    )
    assert [found.fault for found in open_source(str(tmp_path))] == [entry.fault]
    sound = {"info": {"features": {"speech": {"_type": "Audio"}, "view": {"_type": "Image"}}}}
    schema = pa.schema({"speech": HUGGING_FACE, "view": HUGGING_FACE}, {"huggingface": json.dumps(sound)})
    assert image_columns(schema) == ["view"]


def test_lerobots_column_is_read(tmp_path):
    photos = [encoded(noise(k, 9), "PNG") for k in range(8, 12)]
    rows = pa.array([{"bytes": photo, "path": "x.png"} for photo in photos], HUGGING_FACE)
    table = pa.table({"observation.images.top": rows, "observation.state": [[0.0]] * 4})
    pq.write_table(table, tmp_path / "l.parquet", row_group_size=3)
    entries = list(open_source(str(tmp_path / "l.parquet")))
    assert list(read_parquet(str(tmp_path / "l.parquet"), [entry.at for entry in entries])) == photos
    assert read_row(str(tmp_path / "l.parquet"), 3) == photos[3]


def test_a_path_without_bytes_is_followed(tmp_path):
    photo, other = encoded(noise(), "PNG"), encoded(noise(30, 20), "PNG")
    (tmp_path / "data").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(photo)
    (tmp_path / "data" / "b.png").write_bytes(other)
    paths = [
        f"{tmp_path}/images/a.png",
        "b.png",
        "images/a.png",
        "nowhere.png",
        None,
        "",
        (tmp_path / "data/b.png").as_uri(),
    ]
    rows = pa.array([{"bytes": None, "path": path} for path in paths] + [None], HUGGING_FACE)
    place = f"{tmp_path}/data/train.parquet"
    pq.write_table(pa.table({"image": rows}), place)
    found = list(read_parquet(place, [(0, row) for row in range(8)]))
    assert found[:3] == [photo, other, photo] and found[4:] == [None, None, other, None]
    assert found[3].reason == "missing" and "'nowhere.png'" in str(found[3])
    outcomes = list(photos_of(list(open_source(place)), lambda _: 8))
    assert [photo.width if isinstance(photo, Photo) else photo.reason for photo in outcomes] == [
        *(64, 30, 64, "missing", "empty", "empty", 30, "empty")
    ]
    assert stored_at(f"{place}#1") == other
    with pytest.raises(PhotoError, match="no bytes"):
        stored_at(f"{place}#3")


def test_the_fault_of_a_file_without_photos_names_its_columns(tmp_path):
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), path)
    (entry,) = rows_of(path)
    assert (entry.id, entry.inside, entry.fault.reason) == ("p.parquet", None, "not_a_photo")
    assert all(word in entry.fault.message for word in ("'x', 'y'", "image", "jpeg"))
    for values, kind in ((["a.jpg"], "string"), ([3], "int64")):
        pq.write_table(pa.table({"image": values}), path)
        (entry,) = rows_of(path)
        assert f"'image' has the type {kind}" in entry.fault.message
    with pytest.raises(PhotoError):
        list(read_parquet(str(path), [(0, 0)]))


def test_ids_of_a_column(tmp_path):
    path = tmp_path / "p.parquet"
    text = pa.array(["a", None, "b/c", "手"] * 3000)
    ids = {
        "t": text,
        "l": text.cast(pa.large_string()),
        "n": pa.array([5, None, 7, 8] * 3000),
        "f": [0.5] * 12_000,
    }
    pq.write_table(pa.table({"image": [b"x"] * 12_000, **ids}), path, row_group_size=5000)
    for column, expected in (("t", "a b/c 手"), ("l", "a b/c 手"), ("n", "5 7 8")):
        entries = rows_of(path, id_column=column)
        first, third, fourth = expected.split()
        assert [entry.id for entry in entries[8000:8004]] == [first, "p.parquet#8001", third, fourth]
        assert entries[8001].at == (1, 3001)
    with pytest.raises(UserError, match="no column 'none'"):
        rows_of(path, id_column="none")
    with pytest.raises(UserError, match="of type double"):
        rows_of(path, id_column="f")
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"a\xff"]).buffers())
    pq.write_table(pa.table({"image": [b"x"], "t": latin}), path)
    assert rows_of(path, id_column="t")[0].id == "a\\xff"


def test_a_parquet_file_cut_or_damaged_anywhere(tmp_path):
    photos = [some_bytes(number) for number in range(40)]
    path = tmp_path / "p.parquet"
    table = pa.table({"image": photos, "t": [str(number) for number in range(40)]})
    pq.write_table(table, path, row_group_size=10, write_page_checksum=True)
    whole = path.read_bytes()
    for cut in (0, 1, 4, 5, 100, 5000, len(whole) // 2, len(whole) - 9, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:cut])
        (entry,) = rows_of(path)
        expected = (
            "empty" if cut == 0 else "not_a_photo" if cut < 4 else "corrupt" if cut == 4 else "truncated"
        )
        assert entry.fault.reason == expected, cut
    for seed in range(150):
        damaged = bytearray(whole)
        damaged[random.Random(seed).randrange(len(whole))] ^= 1 << seed % 8
        path.write_bytes(damaged)
        entries = rows_of(path, id_column="t") if seed % 2 else rows_of(path)
        good = [entry for entry in entries if not entry.fault]
        try:
            assert len(list(read_parquet(str(path), [entry.at for entry in good]))) == len(good)
        except PhotoError as error:
            assert str(error).isprintable()
    path.write_bytes(b"text " * 100)
    assert rows_of(path)[0].fault == ("not_a_photo", "this is not a Parquet file")
    path.unlink()
    assert rows_of(path)[0].fault.reason == "missing"


def test_photos_before_the_damage_are_returned(tmp_path):
    photos = [some_bytes(number) for number in range(40)]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"image": photos}), path, row_group_size=10, compression="gzip")
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = []
    with pytest.raises(PhotoError, match="damaged"):
        for photo in read_parquet(str(path), [entry.at for entry in rows_of(path)]):
            found.append(photo)
    assert found == photos[:20]


def test_a_large_row_group_is_not_kept_in_memory(tmp_path):
    path = tmp_path / "p.parquet"
    schema = pa.schema({"image": pa.binary()})
    options = {"compression": "none", "use_dictionary": False}
    # Pages are always read completely, and by default have 1024 rows.
    with pq.ParquetWriter(path, schema, write_batch_size=8, **options) as writer:
        photos = [np.random.default_rng(number).bytes(100_000) for number in range(20)]
        writer.write_table(pa.table({"image": photos * 100}, schema), row_group_size=2000)
    assert path.stat().st_size > 190e6
    code = f"""
        import pyarrow as pa
        from annotator.sources.parquet import list_parquet, read_parquet
        places = [entry.at for entry in list_parquet({str(path)!r}, "p")]
        assert places == [(0, row) for row in range(2000)]
        before = pa.default_memory_pool().max_memory()
        total = sum(len(photo) for photo in read_parquet({str(path)!r}, places[::3]))
        assert total == 667 * 100_000
        print(before, pa.default_memory_pool().max_memory())
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    before, peak = map(int, out.split())
    assert before < 1e6
    assert peak < 30e6
