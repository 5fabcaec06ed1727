"""Files and lists that break readers of photos, each with the rows that honest labels may have for it.

What is expected is known from how a file was made. Where damage may go unnoticed, `ok` is allowed only if a strict
`Image.open` reads the file too and the picture is still there.
"""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import os
import random
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from annotator.quiet import quiet_stderr
from tests.hostile_photos import (
    WRITERS,
    Pixels,
    bmp,
    encoded,
    jpeg_claiming,
    png,
    png_chunk,
    tiff,
    webp_claiming,
)

REAL_PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "hand-scenes" / "images"

OK = frozenset({"ok"})
CUT = frozenset({"truncated"})
DAMAGED = frozenset({"corrupt", "truncated"})
#: A damaged header may claim anything.
BAD_HEADER = DAMAGED | {"unsupported", "too_large"}
NO_PHOTO = frozenset({"not_a_photo"})
OTHER_FORMAT = frozenset({"unsupported"})
TOO_LARGE = frozenset({"too_large"})


class Expected(NamedTuple):
    """The row of one input."""

    kind: str  # its line of the table
    outcomes: frozenset[str]  # "ok" or reasons, any of which is right
    size: tuple[int, int] | None = None  # width and height, where they are known and it is ok
    optional: bool = False  # whether no row is right, too
    duplicate: bool = False
    times: int = 1  # how many rows have this id, all but the first of them duplicates


class File(NamedTuple):
    """A photo to write, or something like one."""

    kind: str
    name: str
    data: bytes
    outcomes: frozenset[str]
    size: tuple[int, int] | None = None


@dataclass
class Run:
    """A source to label. Without expected rows, it must be refused as a user's mistake."""

    name: str
    source: Path
    expected: dict[str, Expected] = field(default_factory=dict)  # by image_id


def build(folder: Path, every: int = 1, seed: int = 0) -> list[Run]:
    """Write the corpus; `every` takes each so-many-th of the photos that are cut and damaged."""
    folder, rng = folder.resolve(), random.Random(seed)
    picture, camera = _pictures(rng)
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and libtiff complain of what is meant to be broken
        files = [
            *_thinned(_photos(picture, camera, rng), every),
            *_bombs(picture, full=every == 1),
            *_other_files(picture),
        ]
    runs = [
        Run("folder", folder / "photos", _write_folder(folder / "photos", files, picture, rng)),
        *_lists(folder / "lists", picture),
    ]
    return [*runs, *_refused(folder / "refused", picture)]


def _thinned(files: Iterable[File], every: int) -> Iterator[File]:
    for number, file in enumerate(files):
        if number % every == 0 or file.kind == "whole":
            yield file


# Whole photos.


def _pictures(rng: random.Random) -> tuple[Image.Image, bytes]:
    """A small picture, and the file of a larger one as a camera writes it."""
    real = sorted(REAL_PHOTOS.glob("*.jpg")) if REAL_PHOTOS.is_dir() else []
    if real:
        data = rng.choice(real).read_bytes()
        return Image.open(io.BytesIO(data)).convert("RGB").resize((160, 120)), data
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    large = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).integers(-20, 21, (480, 640, 3))
    large = Image.fromarray(np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8))
    return large.resize((160, 120)), encoded(large, "JPEG", quality=80)


# Damage.


def read_strictly(data: bytes) -> Pixels | None:
    """The first picture of a file, upright on white; None where Pillow complains. Not our own reader."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            whole = ImageOps.exif_transpose(image)
            if whole.has_transparency_data:
                rgba = whole.convert("RGBA")
                whole = Image.alpha_composite(Image.new("RGBA", whole.size, "white"), rgba)
            return np.asarray(whole.convert("RGB"))
    except Exception:
        return None


def _flat(pixels: Pixels) -> tuple[NDArray[np.bool_], Pixels]:
    """Which of the picture's 8 x 8 blocks are of one colour, and a pixel of each."""
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 8, 8, width // 8, 8, 3)
    return (np.ptp(blocks, axis=(1, 3)) <= 2).all(-1), blocks[:, 0, :, 0]


def lost_share(found: Pixels, whole: Pixels, fills: tuple[int, ...]) -> float:
    """The share of a picture, by blocks, that has become one of these greys."""
    flat, colours = _flat(found)
    near = np.abs(colours[..., None].astype(int) - np.array(fills, int)) <= 4
    lost = flat & near.all(-2).any(-1)
    if found.shape == whole.shape:  # a size may be damaged, too
        lost &= ~_flat(whole)[0]
    return float(lost.mean()) if flat.size else 0.0


#: What decoders fill in for what is missing: libjpeg's middle grey, also of CMYK, and nothing at all.
FILLS = {"jpg": (64, 128), "gif": (0,), "webp": (0,), "png": (0,)}

#: So much of a picture may be lost before it is no longer the photo.
MAX_LOST = 0.1


def _after_cut(data: bytes, whole: Pixels) -> frozenset[str]:
    """A cut file is cut, unless nothing of its picture is gone."""
    found = read_strictly(data)
    return CUT | (OK if found is not None and np.array_equal(found, whole) else frozenset())


def _after_damage(
    data: bytes, whole: Pixels, suffix: str, reasons: frozenset[str] = BAD_HEADER
) -> frozenset[str]:
    """Damage is damage, or goes unnoticed where another strict reader sees none, and the picture is there.

    Pixels as they are, and fax codes, may say anything: there is no telling damage from a picture of it.
    """
    found = read_strictly(data)
    seen = found is None or lost_share(found, whole, FILLS.get(suffix, ())) > MAX_LOST
    return reasons if seen else reasons | OK


def _photos(picture: Image.Image, camera: bytes, rng: random.Random) -> Iterator[File]:
    """Whole photos in all formats, and each cut and damaged."""
    for suffix, writer in WRITERS.items():
        for number, (name, data) in enumerate(writer(picture)):
            outcomes = OK
            if suffix == "tif" and name == "12 bits":
                outcomes = OK | OTHER_FORMAT
            yield File("whole", f"{suffix} {name}.{suffix}", data, outcomes, picture.size)
            yield from _broken(f"{name}.{suffix}", suffix, data, rng, many=number == 0 or name in _OFTEN)
    size = Image.open(io.BytesIO(camera)).size
    yield File("whole", "camera.jpg", camera, OK, size)
    yield from _broken("camera.jpg", "jpg", camera, rng, many=True)
    for shape in ((1, 1), (1, 300), (300, 1), (2, 2), (30_000, 20), (20, 30_000), (7, 5)):
        image = picture.resize(shape)
        for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
            if format == "WEBP" and max(shape) > 16_383:
                continue
            name = f"{shape[0]} x {shape[1]}.{format.lower()}"
            yield File("odd sizes", name, encoded(image, format), OK, shape)
    for shade in (0, 128, 255):
        flat = Image.new("RGB", picture.size, (shade, shade, shade))
        for name, options in _MODES.items():
            yield File("one colour", f"{shade} {name}.jpg", encoded(flat, "JPEG", **options), OK, flat.size)
    half = picture.copy()
    half.paste((128, 128, 128), (0, 60, 160, 120))  # really grey, and nothing is wrong with it
    for name, options in _MODES.items():
        yield File("one colour", f"half {name}.jpg", encoded(half, "JPEG", **options), OK, half.size)


_MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "tight": {"optimize": True},
    "rows": {"restart_marker_rows": 1},
}

#: Photos to break in more places than the others.
_OFTEN = {
    "progressive",
    "restarts",
    "restart rows",
    "progressive rows",
    "cmyk",
    "interlaced",
    "animated",
    "tiff_lzw",
    "lossless",
    "alpha",
    "run lengths",
}


def _broken(name: str, suffix: str, data: bytes, rng: random.Random, many: bool) -> Iterator[File]:
    whole = read_strictly(data)
    if whole is None:
        return
    shares = (0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.97) if many else (0.55,)
    ends = [int(len(data) * share) for share in shares]
    ends += [1, 5, 11, 24, len(data) - 9, len(data) - 2, len(data) - 1] if many else []
    for end in sorted(set(ends)):
        cut = data[:end]
        outcomes = _after_cut(cut, whole)
        if end < 12:  # perhaps not even the format can be seen
            outcomes |= NO_PHOTO
        yield File(f"cut {suffix}", f"{end:07d} {name}", cut, outcomes)
    checked = suffix == "png"
    for position in sorted(rng.sample(range(len(data)), 14 if many else 1)):
        bit = 1 << rng.randrange(8)
        flipped = data[:position] + bytes([data[position] ^ bit]) + data[position + 1 :]
        if checked:
            outcomes = DAMAGED | (OK if _in_text(data, position) else frozenset())
        else:
            outcomes = _after_damage(flipped, whole, suffix)
        if position < 16:
            outcomes |= NO_PHOTO | BAD_HEADER
        yield File(f"flipped {suffix}", f"{position:07d} {name}", flipped, outcomes)
    if not many:
        return
    third, middle = len(data) // 3, len(data) // 2
    holes = {
        "zeros": data[:middle] + bytes(third) + data[middle + third :],
        "ones": data[:middle] + b"\xff" * third + data[middle + third :],
        "zeros to the end": data[:middle] + bytes(len(data) - middle),
        "small hole": data[:middle] + bytes(64) + data[middle + 64 :],
        "left out": data[:middle] + data[middle + 200 :],
        "put in": data[:middle] + rng.randbytes(200) + data[middle:],
        "written twice": data[:middle] + data[middle - 300 :],
        "noise": data[:middle] + rng.randbytes(third) + data[middle + third :],
        "swapped": data[:third] + data[middle : middle + 300] + data[third:middle] + data[middle + 300 :],
    }
    for hole, damaged in holes.items():
        # Checksums tell, unless only another frame of an animation is hit.
        outcomes = _after_cut(damaged, whole) | DAMAGED if checked else _after_damage(damaged, whole, suffix)
        yield File(f"holes {suffix}", f"{hole} {name}", damaged, outcomes)
    if suffix == "jpg" and "progressive" not in name:
        start = data.index(b"\xff\xda") + 20
        for share in (0.05, 0.3, 0.6, 0.9):
            end = int(start + share * (len(data) - start))
            closed = data[:end].rstrip(b"\xff") + b"\xff\xd9"
            yield File("closed again", f"{end:07d} {name}", closed, DAMAGED)
            early = data[:end].rstrip(b"\xff") + b"\xff\xd9" + data[end:]
            yield File(
                "closed again",
                f"{end:07d} and on {name}",
                early,
                _after_damage(early, whole, suffix, DAMAGED),
            )


def _in_text(data: bytes, position: int) -> bool:
    """Whether a byte of a PNG belongs to a chunk on which the picture does not depend."""
    at = 8
    while at < len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if at <= position < end:
            return position >= at + 4 and data[at + 4 : at + 5].islower()
        at = end
    return False


# Bombs, and what is no photo.


def _bombs(picture: Image.Image, full: bool) -> Iterator[File]:
    width, height = picture.size
    plain_png, gif = encoded(picture, "PNG"), encoded(picture.quantize(8), "GIF")
    webp, jpeg = encoded(picture, "WEBP"), encoded(picture, "JPEG")
    raw = np.asarray(picture).tobytes()

    def bomb(name: str, data: bytes, outcomes: frozenset[str] = TOO_LARGE) -> File:
        return File("bombs", name, data, outcomes)

    for w, h in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (100_001, 1000), (2**31 - 1, 1)):
        yield bomb(f"{w} x {h}.png", png(w, h, 8, 2, b"\0" * 5000))
    yield bomb("1 bit.png", png(50_000, 50_000, 1, 0, bytes(7000)))
    yield bomb("beyond 31 bits.png", png(2**31 + 5, 3, 8, 2, bytes(99)), BAD_HEADER)
    yield bomb("no width.png", png(0, 10, 8, 2, bytes(10)), DAMAGED)
    yield bomb("claims more.png", png(9000, 9000, 8, 2, bytes(9000)), DAMAGED)
    inflating = zlib.compress(bytes(1 << 28), 9)
    yield bomb("inflates.png", png(4, 4, 8, 2, bytes(1 << 26)), OK | BAD_HEADER)
    for kind, before in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        named = f"{kind.decode()} inflates.png"
        yield bomb(
            named, plain_png[:33] + png_chunk(kind, before + inflating) + plain_png[33:], OK | BAD_HEADER
        )
    if full:  # these take seconds
        yield bomb("the largest.png", png(10_000, 10_000, 1, 0, bytes(1251 * 10_000)), OK)
    yield bomb("one more row.png", png(10_000, 10_001, 1, 0, bytes(1251 * 10_001)))
    frames = struct.pack(">II", 2**31 - 1, 0)
    yield bomb(
        "a billion frames.png", plain_png[:33] + png_chunk(b"acTL", frames) + plain_png[33:], OK | BAD_HEADER
    )
    for name, options in _MODES.items():
        yield bomb(f"65,535 {name}.jpg", jpeg_claiming(65_535, 65_535, **options))
        if full or name == "plain":
            yield bomb(f"14,000 {name}.jpg", jpeg_claiming(14_000, 14_000, **options), DAMAGED)
    yield bomb("no height.jpg", jpeg_claiming(64, 0), BAD_HEADER)
    yield bomb("many scans.jpg", _many_scans(picture), OK | BAD_HEADER)
    for claimed in (16_384, 2**24):
        yield bomb(f"{claimed}.webp", webp_claiming(claimed, claimed))
    yield bomb(
        "lossless.webp",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L\x12\0\0\0\x2f\xff\xff\xff\x0f" + bytes(13),
    )
    yield bomb("lossy.webp", webp[:26] + struct.pack("<HH", 16_383, 16_383) + webp[30:])
    yield bomb("canvas only.webp", webp_claiming(7000, 7000), DAMAGED)
    yield bomb("screen.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:])
    frame = gif.index(b",", 13 + 3 * 8)
    yield bomb("frame.gif", gif[: frame + 5] + struct.pack("<HH", 65_535, 65_535) + gif[frame + 9 :])
    yield bomb("frame far out.gif", gif[: frame + 1] + struct.pack("<HH", 65_000, 65_000) + gif[frame + 5 :])
    later = gif[:-1] + b",\0\0\0\0" + struct.pack("<HH", 65_535, 65_535) + b"\0\2\1\0\0;"
    yield bomb("second frame.gif", later, OK | TOO_LARGE)
    for w, h in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (40_000, -(2**31))):
        yield bomb(f"{w} x {h}.bmp", bmp(w, h, 24, raw))
    yield bomb("runs.bmp", bmp(50_000, 50_000, 8, b"\xff\0" * 500, compression=1))
    yield bomb("runs to decode.bmp", bmp(5000, 5000, 8, b"\xff\0" * 500 + b"\0\1", compression=1), DAMAGED)
    for w, h in ((0, 5), (5, 0)):
        yield bomb(f"{w} x {h}.bmp", bmp(w, h, 24, raw), BAD_HEADER)
    yield bomb("-5 wide.bmp", bmp(-5, 5, 24, raw), BAD_HEADER)
    yield bomb("64 bits.bmp", bmp(width, height, 64, raw), BAD_HEADER)
    yield bomb("compression 99.bmp", bmp(width, height, 24, raw, compression=99), BAD_HEADER)
    yield bomb("palette.bmp", bmp(width, height, 8, raw, colours=2**32 - 1), BAD_HEADER)
    plain = bmp(width, height, 24, raw)
    yield bomb("long header.bmp", plain[:14] + b"\xff\xff\xff\x7f" + plain[18:], BAD_HEADER)
    yield bomb("data far out.bmp", plain[:10] + b"\xff\xff\xff\x7f" + plain[14:], BAD_HEADER)
    many = 1_000_000 if full else 1000
    tiffs: dict[str, tuple[dict[int, list[int]], frozenset[str]]] = {
        "50,000": ({256: [50_000], 257: [50_000]}, TOO_LARGE),
        "4 billion": ({256: [2**32 - 1], 257: [2**32 - 1]}, TOO_LARGE),
        "no width": ({256: [0]}, BAD_HEADER),
        "strips far out": ({273: [2**32 - 1]}, DAMAGED),
        "strip of 4 GB": ({279: [2**32 - 1]}, OK | DAMAGED),
        "many strips": ({273: [8] * many, 279: [1] * many, 278: [1]}, OK | BAD_HEADER),
        "no rows a strip": ({278: [0]}, OK | BAD_HEADER),
        "tiles of 4 billion": ({322: [2**32 - 16], 323: [2**32 - 16], 324: [8], 325: [len(raw)]}, BAD_HEADER),
        "compression 65,000": ({259: [65_000]}, BAD_HEADER),
        "99 samples": ({277: [99]}, BAD_HEADER),
        "64 bits": ({258: [64, 64, 64]}, BAD_HEADER),
        "colours 999": ({262: [999]}, BAD_HEADER),
        "deflated noise": ({259: [8]}, BAD_HEADER),
        "lzw noise": ({259: [5]}, BAD_HEADER),
        "jpeg noise": ({259: [7]}, BAD_HEADER),
        "fax noise": ({259: [4], 258: [1], 277: [1], 262: [0]}, OK | BAD_HEADER),
    }
    for name, (tags, outcomes) in tiffs.items():
        yield bomb(f"{name}.tif", tiff(width, height, [raw], tags), outcomes)
    deflated = zlib.compress(bytes(1 << 27), 9)
    yield bomb("inflates.tif", tiff(width, height, [deflated], {259: [8]}), OK | BAD_HEADER)
    count = struct.pack("<H", 65_535)
    yield bomb("65,535 tags.tif", b"II*\0\x08\0\0\0" + count + bytes(5000), BAD_HEADER)
    yield bomb(
        "tag of 4 billion.tif", _with_count(tiff(width, height, [raw]), 270, 2**32 - 1), OK | BAD_HEADER
    )
    yield bomb("its own next.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + bytes(100), BAD_HEADER)
    yield bomb("no directory.tif", b"II*\0\0\0\0\0" + bytes(100), BAD_HEADER)
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 65_000) + bytes(64_998) for _ in range(60))
    yield bomb("4 MB of metadata.jpg", jpeg[:2] + segments + jpeg[2:], OK)
    looping = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield bomb("exif that loops.jpg", encoded(picture, "JPEG", exif=looping), OK)
    huge_exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xff" + bytes(300)
    yield bomb("exif of 65,535 tags.jpg", encoded(picture, "JPEG", exif=huge_exif), OK)


def _many_scans(picture: Image.Image) -> bytes:
    """A progressive JPEG that draws its last scan 500 times more."""
    data = encoded(picture, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 500 + b"\xff\xd9"


def _with_count(data: bytes, tag: int, count: int) -> bytes:
    """A TIFF with one more tag, of text, as long as is said."""
    (start,) = struct.unpack_from("<I", data, 4)
    (there,) = struct.unpack_from("<H", data, start)
    entry = struct.pack("<HHII", tag, 2, count, 8)
    tags = sorted([data[start + 2 + 12 * k :][:12] for k in range(there)] + [entry])
    tags.sort(key=lambda raw: struct.unpack_from("<H", raw))
    body = struct.pack("<H", there + 1) + b"".join(tags) + bytes(4)
    extra = data[start + 2 + 12 * there + 4 :]
    moved = struct.pack("<I", len(data) + len(data) % 2)
    return data[:4] + moved + data[8:] + bytes(len(data) % 2) + body + extra


def _other_files(picture: Image.Image) -> Iterator[File]:
    jpeg, plain_png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    gif, webp = encoded(picture.quantize(8), "GIF"), encoded(picture, "WEBP")
    files = {"jpg": jpeg, "png": plain_png, "gif": gif, "webp": webp, "bmp": encoded(picture, "BMP")}
    files["tif"] = encoded(picture, "TIFF")
    for claimed in (*files, "jpeg", "jfif", "JPG", "heic", "ppm"):
        for real, data in files.items():
            if claimed.lower() != real and (claimed in ("jpg", "png", "heic") or real == "jpg"):
                yield File("wrongly named", f"{real} named.{claimed}", data, OK, picture.size)
    for name in ("no suffix", "dots.in.name", "photo.JPG~", "photo.dat", "photo.txt.exe"):
        yield File("wrongly named", name, jpeg, OK, picture.size)
    page = b"<!DOCTYPE html><html><body>404 not found</body></html>\n"
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("hand.jpg", jpeg)
    nothing = {
        "page.jpg": page,
        "page.png": page * 1000,
        "text.webp": "не фото, 手\n".encode() * 20,
        "utf-16.gif": "text".encode("utf-16"),
        "json.bmp": b'{"error": "rate limited"}',
        "zip.tif": zipped.getvalue(),
        "gzip.jpg": gzip.compress(jpeg, mtime=0),
        "base64.jpg": base64.b64encode(jpeg),
        "data url.jpg": b"data:image/jpeg;base64," + base64.b64encode(jpeg),
        "pointer.jpg": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "zeros.jpg": bytes(len(jpeg)),
        "ones.jpg": b"\xff" * len(jpeg),
        "noise.jpg": np.random.default_rng(5).bytes(9000),
        "reversed.jpg": jpeg[::-1],
        "as text.jpg": jpeg.decode("utf-8", "replace").encode(),
        "mark before.jpg": b"\xef\xbb\xbf" + jpeg,
        "line before.png": b"\n" + plain_png,
        "line ends.png": plain_png.replace(b"\r\n", b"\n"),
        "program.jpg": b"\x7fELF\2\1\1" + bytes(200),
        "one byte.jpg": b"\xff",
        "magic only.png": plain_png[:4],
        "riff only.webp": webp[:4],
        "sound.webp": b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(92),
        "svg.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "pickle.jpg": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07pwned\x94.",
    }
    for name, data in nothing.items():
        may_name = {"svg.png": OTHER_FORMAT, "line ends.png": DAMAGED}.get(name, frozenset())
        yield File("no photo", name, data, NO_PHOTO | may_name)
    for suffix in (*files, "heic", "ppm"):
        yield File("no photo", f"empty.{suffix}", b"", frozenset({"empty"}))
    bare = {
        "jpg": jpeg[:4],
        "png": plain_png[:8],
        "gif": gif[:6],
        "bmp": b"BM",
        "tif": b"II*\0",
        "webp": webp[:12],
    }
    for suffix, data in bare.items():
        yield File("no photo", f"beginning.{suffix}", data, CUT)
    for format, suffix in (
        ("PPM", "ppm"),
        ("AVIF", "avif"),
        ("JPEG2000", "jp2"),
        ("EPS", "jpg"),
        ("PDF", "jpg"),
    ):
        yield from _saved_as(picture, format, f"{format}.{suffix}", OTHER_FORMAT)
    yield from _saved_as(picture.convert("L"), "PPM", "grey.pgm", OTHER_FORMAT)
    yield from _saved_as(picture.convert("1"), "PPM", "bits.pbm", OTHER_FORMAT)
    text_ppm = b"P3\n# by hand\n2 1\n255\n1 2 3 4 5 6\n"
    yield File("other formats", "text.ppm", text_ppm, OTHER_FORMAT)
    # Formats without a plain mark: nobody can tell them from noise.
    for format in ("ICO", "TGA", "DDS", "SGI", "PCX", "QOI", "ICNS", "IM", "XBM", "MSP"):
        image = picture.convert("1") if format in ("XBM", "MSP") else picture
        yield from _saved_as(image, format, f"{format}.png", OTHER_FORMAT | NO_PHOTO)
    boxes = {"heic": b"ftypheic", "heif": b"ftypmif1", "raw.jpg": b"ftypcrx ", "video.jpg": b"ftypisom"}
    for name, box in boxes.items():
        suffix = name if "." in name else f"mark.{name}"
        yield File("other formats", suffix, b"\0\0\0\x18" + box + bytes(400), OTHER_FORMAT)
    yield File("other formats", "photoshop.jpg", b"8BPS\0\1" + bytes(300), OTHER_FORMAT)
    yield File("other formats", "matroska.jpg", b"\x1aE\xdf\xa3" + bytes(300), OTHER_FORMAT)
    yield File(
        "other formats", "codestream.jpg", b"\xff\x4f\xff\x51\0\x29" + bytes(300), OTHER_FORMAT | NO_PHOTO
    )
    rgb = np.asarray(picture)
    for name, image in {
        "float.tif": picture.convert("F"),
        "32 bits.tif": picture.convert("I"),
    }.items():
        yield File("other formats", name, encoded(image, "TIFF"), OTHER_FORMAT)
    lab = tiff(*picture.size, [rgb.tobytes()], {262: [8]})
    yield File("other formats", "lab.tif", lab, OTHER_FORMAT)
    raw_tags = {254: [1]}
    yield File("other formats", "camera raw.tif", tiff(4, 4, [bytes(48)], raw_tags), OTHER_FORMAT)
    start = jpeg.index(b"\xff\xc0")
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCF):
        data = jpeg[: start + 1] + bytes([marker]) + jpeg[start + 2 :]
        yield File("other formats", f"frame {marker:X}.jpg", data, OTHER_FORMAT | DAMAGED)
    twelve = jpeg[: start + 4] + b"\x0c" + jpeg[start + 5 :]
    yield File("other formats", "12 bits.jpg", twelve, OTHER_FORMAT | DAMAGED)


def _saved_as(picture: Image.Image, format: str, name: str, outcomes: frozenset[str]) -> Iterator[File]:
    try:
        yield File("other formats", name, encoded(picture, format), outcomes)
    except (OSError, ValueError, KeyError):  # this Pillow does not write it
        return


# The folder: photos, odd places, containers.


def _write_folder(
    folder: Path, files: list[File], picture: Image.Image, rng: random.Random
) -> dict[str, Expected]:
    expected: dict[str, Expected] = {}
    for file in files:
        path = folder / file.kind / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        image_id = f"{file.kind}/{file.name}"
        assert image_id not in expected, image_id
        expected[image_id] = Expected(file.kind, file.outcomes, file.size)
    expected |= _places(folder, encoded(picture, "JPEG"), picture.size)
    for sub in ("tars", "parquets", "videos"):
        (folder / sub).mkdir()
    expected |= _tars(folder, files, picture, rng)
    expected |= _parquets(folder, files, picture)
    return expected | _videos(folder, picture)


def _places(folder: Path, jpeg: bytes, size: tuple[int, int]) -> dict[str, Expected]:
    here = folder / "places"
    here.mkdir()
    expected: dict[str, Expected] = {}

    def expect(name: str, *outcomes: str, kind: str = "places") -> Path:
        readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        expected[f"places/{readable}"] = Expected(
            kind, frozenset(outcomes), size if outcomes == ("ok",) else None
        )
        return here / name

    names = ["with\nnewline.jpg", "手と指 рука.jpg", "quote'\",;.jpg", "#50%?&.jpg", " .jpg", "-rf.jpg"]
    names += [
        "*[a-z]?.jpg",
        "a" * 251 + ".jpg",
        "\x1b[31mred.jpg",
        "\u202egpj.jpg",
        "tab\t.jpg",
        "back\\slash.jpg",
    ]
    names += [
        os.fsdecode(b"not \xff\xfe utf-8.jpg"),
        os.fsdecode("Müller.jpg".encode("latin-1")),
        "e\u0301.jpg",
    ]
    for name in names:
        try:
            (here / name).write_bytes(jpeg)
        except OSError:  # this file system has no such names
            continue
        expect(name, "ok", kind="names")
    deep = "/".join(["deep"] * 40)
    (here / deep).mkdir(parents=True)
    expect(f"{deep}/x.jpg", "ok", kind="names").write_bytes(jpeg)
    (here / "folder.jpg").mkdir()
    expect("folder.jpg/inside.jpg", "ok").write_bytes(jpeg)
    (here / "folder.tar").mkdir()
    (here / "empty.png").mkdir()
    (here / ".hidden.jpg").write_bytes(jpeg)
    (here / ".hidden").mkdir()
    (here / ".hidden" / "x.jpg").write_bytes(jpeg)
    expect("dangling.jpg", "missing").symlink_to(here / "nowhere.jpg")
    expect("loop.jpg", "missing").symlink_to(here / "loop.jpg")
    expect("link.jpg", "ok").symlink_to(here / "folder.jpg" / "inside.jpg")
    expect("hard link.jpg", "ok").hardlink_to(here / "folder.jpg" / "inside.jpg")
    (here / "link to folder.jpg").symlink_to(here / "folder.jpg")
    for name in ("null", "zero", "urandom", "tty"):
        expect(f"{name}.jpg", "not_a_photo").symlink_to(f"/dev/{name}")
    os.mkfifo(expect("pipe.jpg", "not_a_photo"))
    expect("link to pipe.jpg", "not_a_photo").symlink_to(here / "pipe.jpg")
    os.mkfifo(here / "pipe without a suffix")
    # What is neither a file nor named like a photo is none, and nobody shall wait for it.
    for suffix in ("tar", "mp4", "parquet"):
        os.mkfifo(here / f"pipe.{suffix}")
        (here / f"endless.{suffix}").symlink_to("/dev/zero")
        (here / f"link to folder.{suffix}").symlink_to(here / "folder.jpg")
    for name in ("dangling.tar", "dangling.mp4", "dangling.parquet"):
        expect(name, "missing").symlink_to(here / "nowhere")
    with socket.socket(socket.AF_UNIX) as server, _inside(here):
        server.bind("socket.jpg")
    expect("socket.jpg", "not_a_photo")
    for name, length, outcome in (
        ("sparse terabyte.jpg", 2**40, "too_large"),
        ("sparse.png", 900_000_000, "too_large"),
        ("sparse.parquet", 2**40, "not_a_photo"),
        ("sparse.mp4", 2**40, "not_a_photo"),
    ):
        with expect(name, outcome).open("wb") as file:
            file.truncate(length)
    if os.geteuid() != 0:
        for name in ("forbidden.jpg", "forbidden.tar", "forbidden.mp4", "forbidden.parquet"):
            path = expect(name, "no_permission")
            path.write_bytes(jpeg)
            path.chmod(0)
    return expected


class _inside:  # noqa: N801 - a context, used like a function
    """Socket names are short: made from within their folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        self._before = Path.cwd()
        os.chdir(self._folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self._before)


def tar_of(members: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _tars(folder: Path, files: list[File], picture: Image.Image, rng: random.Random) -> dict[str, Expected]:
    jpeg = encoded(picture, "JPEG")
    expected: dict[str, Expected] = {}

    def write(name: str, data: bytes, rows: dict[str | None, frozenset[str]], kind: str = "tars") -> None:
        """`rows`: by member; None is the file's own."""
        (folder / "tars" / name).write_bytes(data)
        for inside, outcomes in rows.items():
            image_id = f"tars/{name}" + ("" if inside is None else f"#{inside}")
            expected[image_id] = Expected(kind, outcomes)

    # Broken photos are the same inside a tar.
    some = [file for file in files if len(file.data) < 300_000][::9]
    inside = {f"{number:03d}{Path(file.name).suffix}": file for number, file in enumerate(some)}
    inside = {name: file for name, file in inside.items() if name.lower().endswith(_SUFFIXES)}
    broken = [(name, file.data) for name, file in inside.items()]
    write(
        "broken photos.tar", tar_of(broken), {name: file.outcomes for name, file in inside.items()}, "in tars"
    )
    names = [
        "../../up.jpg",
        "/etc/passwd.jpg",
        "/abs/x.jpg",
        "a/../../b.jpg",
        "./c.jpg",
        "n\nl.png",
        "x" * 300 + ".jpg",
    ]
    names += ["C:\\d.jpg", "手.jpg", "//e.jpg", "..jpg/f.jpg", "~/g.jpg", "$(reboot).jpg"]
    for format, called in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        hidden = {"..jpg/f.jpg"}  # its folder's name starts with a dot
        rows: dict[str | None, frozenset[str]] = {name: OK for name in names if name not in hidden}
        write(f"names {called}.tar", tar_of([(name, jpeg) for name in names], format), rows)
    twice = [("a.jpg", jpeg), ("b.jpg", b"text"), ("a.jpg", jpeg), ("a.jpg", b"")]
    write(
        "twice.tar",
        tar_of(twice),
        {"a.jpg": OK, "b.jpg": NO_PHOTO, "a.jpg@2": OK, "a.jpg@3": frozenset({"empty"})},
    )
    write("odd members.tar", _odd_members(jpeg), {"good.jpg": OK, "last.jpg": OK})

    members = [
        ("0.jpg", jpeg),
        ("1.txt", b"7"),
        ("2.jpg", jpeg[:-400] + bytes(400)),
        ("n" * 150 + "3.jpg", jpeg),
        ("4.jpg", jpeg),
    ]
    outcomes = {"0.jpg": OK, "2.jpg": BAD_HEADER | OK, "n" * 150 + "3.jpg": OK, "4.jpg": OK}
    for format, called in ((tarfile.GNU_FORMAT, "gnu"), (tarfile.PAX_FORMAT, "pax")):
        whole = tar_of(members, format)
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            spans = {member.name: (member.offset_data, member.offset_data + member.size) for member in tar}
        end = spans["4.jpg"][1]
        ends = {rng.randrange(600, end) for _ in range(8)} | {0, 1, 200, 511, 512, 700}
        ends |= {
            spans["0.jpg"][1],
            spans["0.jpg"][1] - 1,
            spans["2.jpg"][0],
            spans["2.jpg"][0] - 512,
            end,
            end - 1,
        }
        for cut in sorted(ends):
            rows = {
                name: outcomes[name] for name, (_, stop) in spans.items() if name in outcomes and stop <= cut
            }
            # Cut within a photo, it is that photo's row which says so; elsewhere the file's.
            within = [
                name for name, (start, stop) in spans.items() if name in outcomes and start <= cut < stop
            ]
            lost: str | None = within[0] if within else None
            rows[lost] = frozenset({"empty"}) if cut == 0 else NO_PHOTO | CUT if cut < 512 else CUT
            write(f"cut {called} {cut:06d}.tar", whole[:cut], rows, "cut tars")
    three = tar_of([("0.jpg", jpeg), ("1.jpg", jpeg), ("2.jpg", jpeg)])
    block = 512 + -(-len(jpeg) // 512) * 512
    size_at = block + 124

    def with_size(field: bytes) -> bytes:
        header = bytearray(three[block : block + 512])
        header[124:136] = field
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        return three[:block] + bytes(header) + three[block + 512 :]

    first: dict[str | None, frozenset[str]] = {"0.jpg": OK}
    write("size octal.tar", with_size(b"77777777777\0"), first | {"1.jpg": CUT | TOO_LARGE})
    write(
        "size binary.tar",
        with_size(b"\x80" + bytes(3) + b"\x0f" + b"\xff" * 7),
        first | {"1.jpg": CUT | TOO_LARGE},
    )
    write("size negative.tar", with_size(b"\xff" * 12), first | {None: DAMAGED})
    write("size text.tar", with_size(b"many bytes \0"), first | {None: DAMAGED})
    flipped = bytearray(three)
    flipped[size_at] ^= 4
    write("checksum.tar", bytes(flipped), first | {None: DAMAGED})
    write(
        "overwritten.tar", three[:block] + rng.randbytes(512) + three[block + 512 :], first | {None: DAMAGED}
    )
    write("zeros in it.tar", three[:block] + bytes(2048) + three[block + 2048 :], first | {None: DAMAGED})
    write("joined.tar", three + three, dict.fromkeys(["0.jpg", "1.jpg", "2.jpg"], OK) | {None: DAMAGED})
    lying = _long_name_header(1 << 50)
    write("long name of a petabyte.tar", lying + bytes(1024), {None: DAMAGED})
    write("gzip.tar", gzip.compress(three, mtime=0), {None: NO_PHOTO})
    write("photo.tar", jpeg, {None: NO_PHOTO})
    write("text.tar", b"no tar\n" * 400, {None: NO_PHOTO})
    write("noise.tar", rng.randbytes(5000), {None: NO_PHOTO})
    write("empty file.tar", b"", {None: frozenset({"empty"})})
    write("nothing in it.tar", tar_of([]), {})
    with (folder / "tars" / "sparse.tar").open("wb") as file:  # a photo of 900 MB that takes no room
        member = tarfile.TarInfo("large.jpg")
        member.size = 900_000_000
        file.write(member.tobuf(tarfile.GNU_FORMAT))
        file.seek(512 + -(-member.size // 512) * 512)
        file.write(tar_of([("after.jpg", jpeg)]))
    expected["tars/sparse.tar#large.jpg"] = Expected("tars", TOO_LARGE)
    expected["tars/sparse.tar#after.jpg"] = Expected("tars", OK)
    return expected


_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".heic")


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


def _parquets(folder: Path, files: list[File], picture: Image.Image) -> dict[str, Expected]:
    jpeg = encoded(picture, "JPEG")
    expected: dict[str, Expected] = {}

    def expect(name: str, rows: Iterable[frozenset[str]], kind: str = "parquets") -> Path:
        for number, outcomes in enumerate(rows):
            expected[f"parquets/{name}#{number}"] = Expected(kind, outcomes)
        return folder / "parquets" / name

    def write(
        name: str, column: str, values: pa.Array, rows: Iterable[frozenset[str]], **options: Any
    ) -> None:
        pq.write_table(pa.table({column: values}), expect(name, rows), **options)

    some = [file for file in files if len(file.data) < 300_000][4::9]
    data = pa.array([file.data for file in some], pa.binary())
    path = expect("broken photos.parquet", [file.outcomes for file in some], "in parquets")
    pq.write_table(pa.table({"image": data}), path, row_group_size=17)
    values = [jpeg, None, b"", b"text", jpeg[: len(jpeg) // 2], bytes(1000), jpeg]
    empty = frozenset({"empty"})
    rows = [OK, empty, empty, NO_PHOTO, CUT, NO_PHOTO, OK]
    for compression in ("none", "snappy", "zstd", "gzip", "brotli", "lz4"):
        write(
            f"{compression}.parquet", "jpg", pa.array(values), rows, compression=compression, row_group_size=3
        )
    write("large.parquet", "photo", pa.array(values, pa.large_binary()), rows)
    write("plain.parquet", "bytes", pa.array(values), rows, use_dictionary=False, data_page_version="2.0")
    structs = [None if value is None else {"bytes": value, "path": "x.jpg"} for value in values]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    write("structs.parquet", "image", pa.array(structs, kind), rows, row_group_size=2)
    paths = [{"bytes": None, "path": "/etc/passwd"}] * 3
    write("paths only.parquet", "image", pa.array(paths, kind), [empty] * 3)
    write("all null.parquet", "image", pa.array([None] * 4, pa.binary()), [empty] * 4)
    # In a folder, a table without photos is not a collection of them.
    for name, column, array in (
        ("text", "image", pa.array(["a.jpg"])),
        ("numbers", "image", pa.array([7])),
        ("lists", "image", pa.array([[1, 2]])),
        ("other", "pixels", pa.array([jpeg])),
        ("struct of text", "image", pa.array([{"bytes": "text"}])),
    ):
        write(f"no photos {name}.parquet", column, array, [])
    pq.write_table(pa.table({}), folder / "parquets" / "no columns.parquet")
    write("no rows.parquet", "image", pa.array([], pa.binary()), [])

    good = io.BytesIO()
    noise = [np.random.default_rng(seed).bytes(3000) for seed in range(40)]
    pq.write_table(
        pa.table({"image": [jpeg, *noise]}), good, row_group_size=8, compression="none", use_dictionary=False
    )
    whole = good.getvalue()

    def damaged(name: str, content: bytes, outcomes: frozenset[str]) -> None:
        (folder / "parquets" / name).write_bytes(content)
        expected[f"parquets/{name}"] = Expected("cut parquets", outcomes)

    for cut in (
        1,
        3,
        4,
        100,
        len(whole) // 2,
        len(whole) - 200,
        len(whole) - 9,
        len(whole) - 4,
        len(whole) - 1,
    ):
        # Of four bytes, the first mark is the last one, too.
        outcomes = CUT | NO_PHOTO if cut < 4 else DAMAGED if cut == 4 else CUT
        damaged(f"cut {cut:06d}.parquet", whole[:cut], outcomes)
    damaged("empty.parquet", b"", empty)
    damaged("text.parquet", b"text\n" * 100, NO_PHOTO)
    damaged("photo.parquet", jpeg, NO_PHOTO)
    damaged("magic.parquet", b"PAR1PAR1", DAMAGED)
    damaged("footer length.parquet", whole[:-8] + b"\xff\xff\xff\x7f" + whole[-4:], DAMAGED)
    damaged("footer length 0.parquet", whole[:-8] + bytes(4) + whole[-4:], DAMAGED)
    footer = int.from_bytes(whole[-8:-4], "little")
    damaged("footer zeros.parquet", whole[: -8 - footer] + bytes(footer) + whole[-8:], DAMAGED)
    shifted = whole[: -8 - footer] + whole[-8 - footer + 40 : -8] + bytes(40) + whole[-8:]
    damaged("footer shifted.parquet", shifted, DAMAGED)
    # The footer is whole, the data is not: every row it names must be there, and none be made up.
    start = whole.index(jpeg)
    gone = whole[: start - 60] + bytes(4000) + whole[start - 60 + 4000 :]
    honest = DAMAGED | NO_PHOTO | OK | empty
    path = expect("hole.parquet", [DAMAGED | NO_PHOTO | empty, *[honest] * 40], "cut parquets")
    path.write_bytes(gone)
    half = b"PAR1" + bytes(len(whole) - 12 - footer) + whole[-8 - footer :]
    expect("all zeros.parquet", [DAMAGED | empty] * 41, "cut parquets").write_bytes(half)
    return expected


def _videos(folder: Path, picture: Image.Image) -> dict[str, Expected]:
    expected: dict[str, Expected] = {}
    jpeg = encoded(picture, "JPEG")

    def one(name: str, data: bytes, *outcomes: str) -> None:
        (folder / "videos" / name).write_bytes(data)
        expected[f"videos/{name}"] = Expected("no videos", frozenset(outcomes))

    try:
        import av
    except ImportError:
        return expected  # without PyAV, a folder's videos are left out
    one("empty.mp4", b"", "empty")
    one("text.mp4", b"no video\n" * 50, "not_a_photo")
    one("zeros.mov", bytes(5000), "not_a_photo")
    one("photo.mkv", jpeg, "not_a_photo")
    one("page.webm", b"<!DOCTYPE html>" * 40, "not_a_photo")
    one("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not_a_photo")
    one("script.avi", b"ffconcat version 1.0\nfile '../whole/camera.jpg'\n", "not_a_photo")
    one("mark.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100), "truncated", "corrupt")
    one("mark.mkv", b"\x1aE\xdf\xa3" + bytes(200), "corrupt", "truncated", "not_a_photo")
    one("mark.avi", b"RIFF" + struct.pack("<I", 9000) + b"AVI LIST" + bytes(100), "truncated", "corrupt")
    one("sound.mp4", _sound(av), "not_a_photo")
    flags = {"movflags": "faststart"}  # the index before the frames
    for name, codec, options in (
        ("index first.mp4", "mpeg4", flags),
        ("index last.mov", "mpeg4", {}),
        ("plain.avi", "mpeg4", {}),
        ("motion.avi", "mjpeg", {}),
        ("plain.mkv", "mpeg4", {}),
    ):
        _write_video(av, folder / "videos" / name, picture, codec, options)
        data = (folder / "videos" / name).read_bytes()
        packets = _packets(av, data)
        for number in range(len(packets)):
            expected[f"videos/{name}#{number}"] = Expected("videos", OK, picture.size)
        middle = packets[len(packets) // 2]
        holed = data[:middle] + bytes(300) + data[middle + 300 :]
        (folder / "videos" / f"hole {name}").write_bytes(holed)
        expected[f"videos/hole {name}"] = Expected("damaged videos", DAMAGED, optional=True)
        for number, stop in enumerate(packets):
            # Frames are made from those before them; what comes first is whole.
            before = stop < middle
            expected[f"videos/hole {name}#{number}"] = Expected(
                "damaged videos", OK if before else OK | DAMAGED, optional=not before
            )
        for share in (0.01, 0.2, 0.45, 0.7, 0.95):
            end = int(len(data) * share)
            cut = f"cut {end:06d} {name}"
            (folder / "videos" / cut).write_bytes(data[:end])
            expected[f"videos/{cut}"] = Expected("cut videos", CUT)
            if name.startswith("index last"):
                continue
            for number, stop in enumerate(packets):
                # Of the frame that is cut, and of the last one before, not all readers know the end.
                if stop <= end:
                    last = number + 1 == len(packets) or packets[number + 1] > end
                    expected[f"videos/{cut}#{number}"] = Expected("cut videos", OK, optional=last)
                elif number == 0 or packets[number - 1] <= end:
                    expected[f"videos/{cut}#{number}"] = Expected("cut videos", DAMAGED, optional=True)
    return expected


def _write_video(
    av: Any, path: Path, picture: Image.Image, codec: str, options: dict[str, str], count: int = 12
) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(
            codec, rate=10, options={"bf": "0", "g": "4"} if codec == "mpeg4" else {}
        )
        stream.width, stream.height = picture.size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(np.asarray(picture), number * 3, 1), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _packets(av: Any, data: bytes) -> list[int]:
    """Where each frame of a whole video ends."""
    with av.open(io.BytesIO(data)) as container:
        return [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]


def _sound(av: Any) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


# Lists.


class _Row(NamedTuple):
    """One row of a list: what is in it, and what should become of it."""

    outcomes: frozenset[str]
    uri: Any
    box: Any = None
    side: Any = None
    focal: Any = None


BAD = frozenset({"bad_row"})
MISSING = frozenset({"missing"})


def _list_rows(folder: Path) -> list[_Row]:
    here = f"{folder}/photos/good.jpg"
    outside = frozenset({"box_outside"})
    return [
        _Row(OK, "photos/good.jpg"),
        _Row(OK, "photos/good.jpg"),
        _Row(OK, "photos/good.jpg", (10, 10, 90, 90)),
        _Row(OK, here),  # the same place, written out
        _Row(OK, "photos/1.jpg", (10.5, 10, 90, 90), "left", 300),
        _Row(OK, "photos/2.jpg", (-50, -50, 500, 500), "Right"),
        _Row(OK, f"file://{folder}/photos/3.jpg"),
        _Row(OK, "photos/../photos/4.jpg"),
        _Row(OK, "./photos/5.jpg"),
        _Row(CUT, "photos/cut.jpg"),
        _Row(CUT, "photos/cut.jpg"),
        _Row(NO_PHOTO, "photos/text.jpg"),
        _Row(frozenset({"empty"}), "photos/empty.jpg"),
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
        _Row(BAD, ""),
        _Row(BAD, "   "),
        _Row(BAD, "photos/6.jpg", (90, 10, 10, 90)),
        _Row(BAD, "photos/6.jpg", (10, 10, 10, 90)),
        _Row(BAD, "photos/6.jpg", (float("nan"), 10, 20, 90)),
        _Row(BAD, "photos/6.jpg", (0, 0, float("inf"), 90)),
        _Row(outside, "photos/6.jpg", (5000, 5000, 6000, 6000)),
        _Row(outside, "photos/6.jpg", (-20, -20, -10, -10)),
        _Row(outside, "photos/6.jpg", (160, 0, 170, 120)),
        _Row(OK | outside | BAD, "photos/7.jpg", (-1e30, -1e30, 1e30, 1e30)),
        _Row(OK | outside | BAD, "photos/8.jpg", (50, 50, 50.000001, 50.000001)),
        _Row(OK | outside | BAD, "photos/9.jpg", (-1e9, 10, 1e9, 11)),
        _Row(BAD, "photos/6.jpg", None, "middle"),
        _Row(BAD, "photos/6.jpg", None, None, -5),
        _Row(BAD, "photos/6.jpg", None, None, 0),
        _Row(BAD, "photos/6.jpg", None, None, float("nan")),
        _Row(OK | BAD, "photos/10.jpg", None, None, 1e30),
        _Row(OK | BAD, "photos/11.jpg", None, None, 1e-30),
        _Row(OK, "photos/手.jpg"),
        _Row(OK, "photos/with space, and comma.jpg"),
        _Row(OK, "photos/with#50%?.jpg"),
    ]


def _lists(folder: Path, picture: Image.Image) -> list[Run]:
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


def _again(folder: Path, uris: Iterable[Any]) -> Iterator[bool]:
    """Whether a place was named before, as it is written."""
    seen = {""}
    for uri in uris:
        given = uri if isinstance(uri, str) else ""
        place = given if not given or given.startswith(("/", "file:")) else f"{folder}/{given}"
        yield bool(place) and place in seen
        seen.add(place)


def _by_number(kind: str, folder: Path, rows: list[_Row]) -> dict[str, Expected]:
    """Rows without an id of their own."""
    again = _again(folder, [row.uri for row in rows])
    return {
        f"{number}:{row.uri or ''}": Expected(kind, row.outcomes, duplicate=is_again)
        for number, (row, is_again) in enumerate(zip(rows, again, strict=True))
    }


def _csv_list(folder: Path, rows: list[_Row]) -> Run:
    rows = [row if row.uri.strip() else row._replace(uri="") for row in rows]  # spaces are nothing in CSV
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
            (_Row(BAD, good), good),  # shorter than the header
            (_Row(BAD, good), f"{good},,,,,,,,,,more"),
            (_Row(BAD, good), f"{good},one,two,three,four,,,"),
            (_Row(BAD, good), f"{good},1,1,50,,,,"),
            (_Row(BAD, good), f"{good},,,,,,many pixels,"),
            (_Row(BAD, ""), ",1,1,5,5,,,"),
            (None, ""),
            (_Row(OK, good), f"{good},,,,,,,{'long ' * 50_000}"),
        ]
        file.writelines(line + "\r\n" for _, line in odd)
    return Run("list.csv", path, _by_number("list.csv", folder, [*rows, *(row for row, _ in odd if row)]))


def _json_list(folder: Path, rows: list[_Row]) -> Run:
    path = folder / "list.jsonl"
    lines: list[str] = []
    expected: dict[str, Expected] = {}
    again = _again(folder, [row.uri for row in rows])
    for number, (row, is_again) in enumerate(zip(rows, again, strict=True)):
        box = None if row.box is None else list(row.box)
        wanted = {
            "uri": row.uri,
            "id": f"id {number}",
            "box_xyxy": box,
            "is_right": row.side,
            "focal_px": row.focal,
        }
        lines.append(json.dumps(wanted))
        outcomes = row.outcomes if row.uri != "   " else BAD | MISSING
        expected[f"id {number}"] = Expected("list.jsonl", outcomes, duplicate=is_again)

    def add(line: str, image_id: str, outcomes: frozenset[str]) -> None:
        is_again = '"photos/good.jpg"' in line and "[" not in line.split(",")[0]
        name = image_id.replace("NUMBER", str(len(lines)))
        expected[name] = Expected("list.jsonl", outcomes, duplicate=is_again)
        lines.append(line)

    add('{"uri": "photos/go', "NUMBER:", BAD)
    add("[1, 2, 3]", "NUMBER:", BAD)
    add("null", "NUMBER:", BAD)
    add("7", "NUMBER:", BAD)
    add("{}", "NUMBER:", BAD)
    add('{"uri": null}', "NUMBER:", BAD)
    add('{"uri": "photos/good.jpg"}', "NUMBER:photos/good.jpg", OK)
    add('{"uri": "photos/good.jpg", "id": "own", "box_xyxy": [1, 2, 3]}', "own", BAD)
    add('{"uri": "photos/good.jpg", "id": "own 2", "box_xyxy": "1 2 30 40"}', "own 2", OK)
    add('{"uri": "photos/good.jpg", "id": "own 3", "box_xyxy": {"x": 1}}', "own 3", BAD)
    add('{"uri": "photos/good.jpg", "id": "own 4", "box_xyxy": [[1, 2], [3, 4]]}', "own 4", BAD)
    add('{"uri": "photos/good.jpg", "id": "own 5", "focal_px": [3]}', "own 5", BAD)
    add('{"uri": "photos/good.jpg", "id": "own 6", "box_xyxy": []}', "own 6", OK)
    add('{"uri": ["photos/good.jpg"], "id": "own 7"}', "own 7", BAD | MISSING)
    add('{"uri": {"a": 1}, "id": "own 8"}', "own 8", BAD | MISSING)
    add('{"uri": "photos/\\u0000good.jpg", "id": "own 9"}', "own 9", MISSING | BAD)
    add('{"uri": "photos/\\ud83d.jpg", "id": "own 10"}', "own 10", MISSING | BAD)
    add('{"uri": "photos/good.jpg", "id": "own 11", "new": 1}', "own 11", OK)
    add('{"uri": "photos/good.jpg", "id": "own 12", "box_xyxy": 5}', "own 12", BAD)
    add('{"uri": "photos/good.jpg", "id": "own 13", "focal_px": 1e999}', "own 13", BAD)
    add("[" * 100_000, "NUMBER:", BAD)
    lines += [f'{{"uri": "photos/{number}.jpg", "id": "three times"}}' for number in (12, 13, 12)]
    expected["three times"] = Expected("list.jsonl", OK, times=3)
    path.write_text("\n".join([*lines, "", "   ", ""]), encoding="utf-8")
    return Run("list.jsonl", path, expected)


def _parquet_list(folder: Path, rows: list[_Row]) -> Run:
    path = folder / "list.parquet"
    rows = [row for row in rows if row.uri != "   "]  # here a name of three spaces
    rows += [
        _Row(BAD, None),
        _Row(MISSING, "   "),
        _Row(BAD, "photos/6.jpg", (1, 2, 3)),
        _Row(BAD, "photos/6.jpg", (1, 2, None, 9)),
    ]
    table = pa.table(
        {
            "image": pa.array([row.uri for row in rows], pa.string()),
            "box_xyxy": pa.array([row.box for row in rows], pa.list_(pa.float64())),
            "handedness": pa.array([row.side for row in rows], pa.string()),
            "focal_px": pa.array([row.focal for row in rows], pa.float64()),
            "status": pa.array(["theirs"] * len(rows)),  # a name that labels have, too
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
        expected[f"{number + step}:{name}"] = Expected("list.txt", MISSING | BAD)
    path = folder / "list.txt"
    path.write_bytes(b"\n".join(lines))
    return Run("list.txt", path, expected)


def _refused(folder: Path, picture: Image.Image) -> list[Run]:
    """Sources that are a user's mistake as a whole."""
    folder.mkdir(parents=True)
    jpeg = encoded(picture, "JPEG")
    good = folder / "good.jpg"
    good.write_bytes(jpeg)
    texts = {
        "empty.csv": "",
        "no rows.csv": "path,x1,y1,x2,y2\n",
        "no places.csv": "a,b\n1,2\n",
        "half a box.csv": "path,x1,x2\ngood.jpg,1,2\n",
        "nearly.csv": "pth,side\ngood.jpg,left\n",
        "noise.csv": "\0\0\x01\x02",
        "empty.txt": "",
        "blank.txt": "\n\n  \n",
        "empty.jsonl": "",
        "broken.jsonl": "{\n",
        "array.jsonl": "[1]\n",
        "no places.jsonl": '{"a": 1}\n',
        "numbers.jsonl": '{"uri": 7}\n',
        "nothing here.jpg.txt": "",
    }
    runs = []
    for name, text in texts.items():
        (folder / name).write_text(text)
        runs.append(Run("refused", folder / name))
    tables = {
        "no columns": {},
        "no photos": {"a": [1]},
        "numbers as photos": {"image": [7]},
        "lists as photos": {"image": [[1, 2]]},
        "text as boxes": {"uri": ["good.jpg"], "box_xyxy": [[True]]},
        "dates as sides": {"uri": ["good.jpg"], "is_right": [1.5]},
        "lists as focal lengths": {"uri": ["good.jpg"], "focal_px": [[3.0]]},
        "no rows": {"uri": pa.array([], pa.string())},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
        runs.append(Run("refused", folder / f"{name}.parquet"))
    (folder / "empty").mkdir()
    return [
        *runs,
        *(Run("refused", folder / name) for name in ("empty", "not there", "not there.csv", "*.nothing")),
    ]
