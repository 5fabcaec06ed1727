"""Photos in tars and Parquet files: intact, cut and damaged."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.robustness.hostile.expected import (
    BAD_HEADER,
    CUT,
    DAMAGED,
    EMPTY,
    MISSING,
    NO_PHOTO,
    OK,
    TOO_LARGE,
    Expected,
    File,
)
from tests.robustness.hostile_photos import encoded

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".heic")

_FORMATS = {tarfile.GNU_FORMAT: "gnu", tarfile.PAX_FORMAT: "pax"}


class _Containers:
    """A folder of files that hold photos, and its expected rows by id."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.expected: dict[str, Expected] = {}

    def expect(self, name: str, kind: str, rows: Mapping[Any, frozenset[str]]) -> Path:
        """Add expected outcomes by member; None is the row of the file itself."""
        for inside, outcomes in rows.items():
            image_id = f"{self.folder.name}/{name}" + ("" if inside is None else f"#{inside}")
            self.expected[image_id] = Expected(kind, outcomes)
        return self.folder / name

    def write(self, name: str, data: bytes, rows: Mapping[Any, frozenset[str]], kind: str = "") -> None:
        """Write a file with its expected rows; default kind: that of the folder."""
        self.expect(name, kind or self.folder.name, rows).write_bytes(data)


def _tar_of(members: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_tars(
    folder: Path, files: list[File], picture: Image.Image, rng: random.Random
) -> dict[str, Expected]:
    """Write the files and return their expected rows by id."""
    tars, jpeg = _Containers(folder), encoded(picture, "JPEG")
    _write_members(tars, files, jpeg)
    _write_cut(tars, jpeg, rng)
    _write_damaged(tars, jpeg, rng)
    with tars.expect("sparse.tar", "tars", {"large.jpg": TOO_LARGE, "after.jpg": OK}).open("wb") as file:
        member = tarfile.TarInfo("large.jpg")
        member.size = 900_000_000  # sparse, takes no space
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + -(-member.size // 512) * 512)
        file.write(_tar_of([("after.jpg", jpeg)]))
    return tars.expected


def _write_members(tars: _Containers, files: list[File], jpeg: bytes) -> None:
    # Broken photos have the same outcome inside a tar.
    some = [file for file in files if len(file.data) < 300_000][::9]
    inside = {f"{number:03d}{Path(file.name).suffix}": file for number, file in enumerate(some)}
    inside = {name: file for name, file in inside.items() if name.lower().endswith(_SUFFIXES)}
    broken = _tar_of((name, file.data) for name, file in inside.items())
    tars.write("broken photos.tar", broken, {name: file.outcomes for name, file in inside.items()}, "in tars")
    names = ["../../up.jpg", "/etc/passwd.jpg", "/abs/x.jpg", "a/../../b.jpg", "./c.jpg", "n\nl.png"]
    names += ["x" * 300 + ".jpg", "C:\\d.jpg", "手.jpg", "//e.jpg", "~/g.jpg", "$(reboot).jpg"]
    hidden = "..jpg/f.jpg"  # its folder's name starts with a dot
    for format, called in _FORMATS.items():
        named = _tar_of([(name, jpeg) for name in [*names[:-2], hidden, *names[-2:]]], format)
        tars.write(f"names {called}.tar", named, dict.fromkeys(names, OK))
    twice = _tar_of([("a.jpg", jpeg), ("b.jpg", b"text"), ("a.jpg", jpeg), ("a.jpg", b"")])
    tars.write("twice.tar", twice, {"a.jpg": OK, "b.jpg": NO_PHOTO, "a.jpg@2": OK, "a.jpg@3": EMPTY})
    tars.write("odd members.tar", _odd_members(jpeg), {"good.jpg": OK, "last.jpg": OK})


def _write_cut(tars: _Containers, jpeg: bytes, rng: random.Random) -> None:
    long = "n" * 150 + "3.jpg"
    members = [("0.jpg", jpeg), ("1.txt", b"7"), ("2.jpg", jpeg[:-400] + bytes(400)), (long, jpeg)]
    members.append(("4.jpg", jpeg))
    outcomes = {"0.jpg": OK, "2.jpg": BAD_HEADER | OK, long: OK, "4.jpg": OK}
    for format, called in _FORMATS.items():
        whole = _tar_of(members, format)
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            spans = {member.name: (member.offset_data, member.offset_data + member.size) for member in tar}
        spans = {name: span for name, span in spans.items() if name in outcomes}
        (first, second), end = (spans["0.jpg"][1], spans["2.jpg"][0]), spans["4.jpg"][1]
        ends = {rng.randrange(600, end) for _ in range(8)} | {0, 1, 200, 511, 512, 700}
        ends |= {first, first - 1, second, second - 512, end, end - 1}
        for cut in sorted(ends):
            rows: dict[Any, frozenset[str]] = {
                name: outcomes[name] for name, (_, stop) in spans.items() if stop <= cut
            }
            # A cut within a photo shows in that photo's row, elsewhere in the file's row.
            lost = next((name for name, (start, stop) in spans.items() if start <= cut < stop), None)
            rows[lost] = EMPTY if cut == 0 else NO_PHOTO | CUT if cut < 512 else CUT
            tars.write(f"cut {called} {cut:06d}.tar", whole[:cut], rows, "cut tars")


def _write_damaged(tars: _Containers, jpeg: bytes, rng: random.Random) -> None:
    three = _tar_of([("0.jpg", jpeg), ("1.jpg", jpeg), ("2.jpg", jpeg)])
    block = 512 + -(-len(jpeg) // 512) * 512

    def with_size(field: bytes) -> bytes:
        header = bytearray(three[block : block + 512])
        header[124:136] = field
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return three[:block] + bytes(header) + three[block + 512 :]

    too_large = {"0.jpg": OK, "1.jpg": CUT | TOO_LARGE}
    tars.write("size octal.tar", with_size(b"77777777777\0"), too_large)
    tars.write("size binary.tar", with_size(b"\x80" + bytes(3) + b"\x0f" + b"\xff" * 7), too_large)
    flipped = bytearray(three)
    flipped[block + 124] ^= 4
    for name, data in {
        "size negative": with_size(b"\xff" * 12),
        "size text": with_size(b"many bytes \0"),
        "checksum": bytes(flipped),
        "overwritten": three[:block] + rng.randbytes(512) + three[block + 512 :],
        "zeros in it": three[:block] + bytes(2048) + three[block + 2048 :],
    }.items():
        tars.write(f"{name}.tar", data, {"0.jpg": OK, None: DAMAGED})
    tars.write("joined.tar", three + three, {"0.jpg": OK, "1.jpg": OK, "2.jpg": OK, None: DAMAGED})
    lying = _long_name_header(1 << 50)
    tars.write("long name of a petabyte.tar", lying + bytes(1024), {None: DAMAGED})
    for name, data in {
        "gzip": gzip.compress(three, mtime=0),
        "photo": jpeg,
        "text": b"no tar\n" * 400,
        "noise": rng.randbytes(5000),
    }.items():
        tars.write(f"{name}.tar", data, {None: NO_PHOTO})
    tars.write("empty file.tar", b"", {None: EMPTY})
    tars.write("nothing in it.tar", _tar_of([]), {})


def _odd_members(jpeg: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, link
            tar.addfile(member, io.BytesIO(data))

        add("folder.jpg", kind=tarfile.DIRTYPE)
        add("good.jpg", jpeg)
        add("soft.jpg", kind=tarfile.SYMTYPE, link="/etc/passwd")
        add("hard.jpg", kind=tarfile.LNKTYPE, link="../../good.jpg")
        add("device.jpg", kind=tarfile.CHRTYPE)
        add("pipe.jpg", kind=tarfile.FIFOTYPE)
        add(".hidden.jpg", jpeg)
        add("label.json", b"{}")
        add("last.jpg", jpeg)
    return out.getvalue()


def _long_name_header(size: int) -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, size
    return header.tobuf(tarfile.GNU_FORMAT)


def write_parquets(folder: Path, files: list[File], picture: Image.Image) -> dict[str, Expected]:
    """Write the files and return their expected rows by id."""
    parquets, jpeg = _Containers(folder), encoded(picture, "JPEG")
    _write_tables(parquets, files, jpeg)
    _write_broken_tables(parquets, jpeg)
    return parquets.expected


def _write_tables(parquets: _Containers, files: list[File], jpeg: bytes) -> None:
    def write(name: str, column: str, values: pa.Array, rows: list[frozenset[str]], **options: Any) -> None:
        path = parquets.expect(f"{name}.parquet", options.pop("kind", "parquets"), dict(enumerate(rows)))
        pq.write_table(pa.table({column: values}), path, **options)

    some = [file for file in files if len(file.data) < 300_000][4::9]
    data = pa.array([file.data for file in some], pa.binary())
    broken = [file.outcomes for file in some]
    write("broken photos", "image", data, broken, kind="in parquets", row_group_size=17)
    values = [jpeg, None, b"", b"text", jpeg[: len(jpeg) // 2], bytes(1000), jpeg]
    rows = [OK, EMPTY, EMPTY, NO_PHOTO, CUT, NO_PHOTO, OK]
    for compression in ("none", "snappy", "zstd", "gzip", "brotli", "lz4"):
        write(compression, "jpg", pa.array(values), rows, compression=compression, row_group_size=3)
    write("large", "photo", pa.array(values, pa.large_binary()), rows)
    write("plain", "bytes", pa.array(values), rows, use_dictionary=False, data_page_version="2.0")
    structs = [None if value is None else {"bytes": value, "path": "x.jpg"} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write("structs", "image", pa.array(structs, kind), rows, row_group_size=2)
    paths = [{"bytes": None, "path": "/etc/passwd"}] * 3
    paths += [{"bytes": None, "path": "nowhere.jpg"}, {"bytes": None, "path": ""}]
    write("paths only", "image", pa.array(paths, kind), [*[NO_PHOTO] * 3, MISSING, EMPTY])
    write("all null", "image", pa.array([None] * 4, pa.binary()), [EMPTY] * 4)
    # In a folder, a table without photos is not a container of photos.
    for name, column, array in (
        ("text", "image", pa.array(["a.jpg"])),
        ("numbers", "image", pa.array([7])),
        ("lists", "image", pa.array([[1, 2]])),
        ("other", "pixels", pa.array([jpeg])),
        ("struct of text", "image", pa.array([{"bytes": "text"}])),
    ):
        write(f"no photos {name}", column, array, [])
    pq.write_table(pa.table({}), parquets.folder / "no columns.parquet")
    write("no rows", "image", pa.array([], pa.binary()), [])


def _write_broken_tables(parquets: _Containers, jpeg: bytes) -> None:
    good = io.BytesIO()
    noise = [np.random.default_rng(seed).bytes(3000) for seed in range(40)]
    pq.write_table(
        pa.table({"image": [jpeg, *noise]}), good, row_group_size=8, compression="none", use_dictionary=False
    )
    whole = good.getvalue()

    def damaged(name: str, content: bytes, outcomes: frozenset[str]) -> None:
        parquets.write(name, content, {None: outcomes}, "cut parquets")

    end = len(whole)
    for cut in (1, 3, 4, 100, end // 2, end - 200, end - 9, end - 4, end - 1):
        # In a file of four bytes, the first magic is also the last.
        outcomes = CUT | NO_PHOTO if cut < 4 else DAMAGED if cut == 4 else CUT
        damaged(f"cut {cut:06d}.parquet", whole[:cut], outcomes)
    damaged("empty.parquet", b"", EMPTY)
    damaged("text.parquet", b"text\n" * 100, NO_PHOTO)
    damaged("photo.parquet", jpeg, NO_PHOTO)
    damaged("magic.parquet", b"PAR1PAR1", DAMAGED)
    damaged("footer length.parquet", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:], DAMAGED)
    damaged("footer length 0.parquet", whole[:-8] + bytes(4) + whole[-4:], DAMAGED)
    footer = int.from_bytes(whole[-8:-4], "little")
    damaged("footer zeros.parquet", whole[: -8 - footer] + bytes(footer) + whole[-8:], DAMAGED)
    shifted = whole[: -8 - footer] + whole[-8 - footer + 40 : -8] + bytes(40) + whole[-8:]
    damaged("footer shifted.parquet", shifted, DAMAGED)
    # The footer is intact, the data is not: every row in the footer must exist, and no other.
    start = whole.index(jpeg)
    gone = whole[: start - 60] + bytes(4000) + whole[start - 60 + 4000 :]
    honest = DAMAGED | NO_PHOTO | OK | EMPTY
    rows = dict.fromkeys(range(41), honest) | {0: DAMAGED | NO_PHOTO | EMPTY}
    parquets.write("hole.parquet", gone, rows, "cut parquets")
    half = b"PAR1" + bytes(len(whole) - 12 - footer) + whole[-8 - footer :]
    parquets.write("all zeros.parquet", half, dict.fromkeys(range(41), DAMAGED | EMPTY), "cut parquets")
