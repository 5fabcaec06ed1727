"""Small files that claim to be large, or take long to read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.robustness.hostile.expected import BAD_HEADER, DAMAGED, OK, TOO_LARGE, File
from tests.robustness.hostile.photos import JPEG_MODES
from tests.robustness.hostile_photos import bmp, encoded, jpeg_claiming, png, png_chunk, tiff, webp_claiming


def bombs(picture: Image.Image, full: bool) -> Iterator[File]:
    """Yield bombs of all formats; `full` adds those that take seconds."""
    yield from _png_bombs(picture, full)
    yield from _jpeg_bombs(picture, full)
    yield from _webp_bombs(picture)
    yield from _gif_bombs(picture)
    yield from _bmp_bombs(picture)
    yield from _tiff_bombs(picture, full)
    yield from _much_metadata(picture)


def _bomb(name: str, data: bytes, outcomes: frozenset[str] = TOO_LARGE) -> File:
    return File("bombs", name, data, outcomes)


def _png_bombs(picture: Image.Image, full: bool) -> Iterator[File]:
    for w, h in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (100_001, 1000), (2**31 - 1, 1)):
        yield _bomb(f"{w} x {h}.png", png(w, h, 8, 2, b"\0" * 5000))
    yield _bomb("1 bit.png", png(50_000, 50_000, 1, 0, bytes(7000)))
    yield _bomb("beyond 31 bits.png", png(2**31 + 5, 3, 8, 2, bytes(99)), BAD_HEADER)
    yield _bomb("no width.png", png(0, 10, 8, 2, bytes(10)), DAMAGED)
    yield _bomb("claims more.png", png(9000, 9000, 8, 2, bytes(9000)), DAMAGED)
    plain, inflating = encoded(picture, "PNG"), zlib.compress(bytes(1 << 28), 9)
    yield _bomb("inflates.png", png(4, 4, 8, 2, bytes(1 << 26)), OK | BAD_HEADER)
    for kind, before in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        data = plain[:33] + png_chunk(kind, before + inflating) + plain[33:]
        yield _bomb(f"{kind.decode()} inflates.png", data, OK | BAD_HEADER)
    if full:
        yield _bomb("the largest.png", png(10_000, 10_000, 1, 0, bytes(1251 * 10_000)), OK)
    yield _bomb("one more row.png", png(10_000, 10_001, 1, 0, bytes(1251 * 10_001)))
    frames = struct.pack(">II", 2**31 - 1, 0)
    animated = plain[:33] + png_chunk(b"acTL", frames) + plain[33:]
    yield _bomb("a billion frames.png", animated, OK | BAD_HEADER)


def _jpeg_bombs(picture: Image.Image, full: bool) -> Iterator[File]:
    for name, options in JPEG_MODES.items():
        yield _bomb(f"65,535 {name}.jpg", jpeg_claiming(65_535, 65_535, **options))
        if full or name == "plain":
            yield _bomb(f"14,000 {name}.jpg", jpeg_claiming(14_000, 14_000, **options), DAMAGED)
    yield _bomb("no height.jpg", jpeg_claiming(64, 0), BAD_HEADER)
    yield _bomb("many scans.jpg", _many_scans(picture), OK | BAD_HEADER)


def _webp_bombs(picture: Image.Image) -> Iterator[File]:
    webp = encoded(picture, "WEBP")
    for claimed in (16_384, 2**24):
        yield _bomb(f"{claimed}.webp", webp_claiming(claimed, claimed))
    yield _bomb(
        "lossless.webp",
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L\x12\0\0\0\x2f\xff\xff\xff\x0f" + bytes(13),
    )
    yield _bomb("lossy.webp", webp[:26] + struct.pack("<HH", 16_383, 16_383) + webp[30:])
    yield _bomb("canvas only.webp", webp_claiming(7000, 7000), DAMAGED)


def _gif_bombs(picture: Image.Image) -> Iterator[File]:
    gif = encoded(picture.quantize(8), "GIF")
    yield _bomb("screen.gif", gif[:6] + struct.pack("<HH", 65_535, 65_535) + gif[10:])
    frame = gif.index(b",", 13 + 3 * 8)
    yield _bomb("frame.gif", gif[: frame + 5] + struct.pack("<HH", 65_535, 65_535) + gif[frame + 9 :])
    yield _bomb("frame far out.gif", gif[: frame + 1] + struct.pack("<HH", 65_000, 65_000) + gif[frame + 5 :])
    later = gif[:-1] + b",\0\0\0\0" + struct.pack("<HH", 65_535, 65_535) + b"\0\2\1\0\0;"
    yield _bomb("second frame.gif", later, OK | TOO_LARGE)


def _bmp_bombs(picture: Image.Image) -> Iterator[File]:
    (width, height), raw = picture.size, np.asarray(picture).tobytes()
    for w, h in ((50_000, 50_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (40_000, -(2**31))):
        yield _bomb(f"{w} x {h}.bmp", bmp(w, h, 24, raw))
    yield _bomb("runs.bmp", bmp(50_000, 50_000, 8, b"\xff\0" * 500, compression=1))
    yield _bomb("runs to decode.bmp", bmp(5000, 5000, 8, b"\xff\0" * 500 + b"\0\1", compression=1), DAMAGED)
    for w, h in ((0, 5), (5, 0)):
        yield _bomb(f"{w} x {h}.bmp", bmp(w, h, 24, raw), BAD_HEADER)
    yield _bomb("-5 wide.bmp", bmp(-5, 5, 24, raw), BAD_HEADER)
    yield _bomb("64 bits.bmp", bmp(width, height, 64, raw), BAD_HEADER)
    yield _bomb("compression 99.bmp", bmp(width, height, 24, raw, compression=99), BAD_HEADER)
    yield _bomb("palette.bmp", bmp(width, height, 8, raw, colours=2**32 - 1), BAD_HEADER)
    plain = bmp(width, height, 24, raw)
    yield _bomb("long header.bmp", plain[:14] + b"\xff\xff\xff\x7f" + plain[18:], BAD_HEADER)
    yield _bomb("data far out.bmp", plain[:10] + b"\xff\xff\xff\x7f" + plain[14:], BAD_HEADER)


def _tiff_bombs(picture: Image.Image, full: bool) -> Iterator[File]:
    (width, height), raw = picture.size, np.asarray(picture).tobytes()
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
        yield _bomb(f"{name}.tif", tiff(width, height, [raw], tags), outcomes)
    deflated = zlib.compress(bytes(1 << 27), 9)
    yield _bomb("inflates.tif", tiff(width, height, [deflated], {259: [8]}), OK | BAD_HEADER)
    count = struct.pack("<H", 65_535)
    yield _bomb("65,535 tags.tif", b"II*\0\x08\0\0\0" + count + bytes(5000), BAD_HEADER)
    yield _bomb(
        "tag of 4 billion.tif", _with_count(tiff(width, height, [raw]), 270, 2**32 - 1), OK | BAD_HEADER
    )
    yield _bomb("its own next.tif", b"II*\0\x08\0\0\0\0\0\x08\0\0\0" + bytes(100), BAD_HEADER)
    yield _bomb("no directory.tif", b"II*\0\0\0\0\0" + bytes(100), BAD_HEADER)


def _much_metadata(picture: Image.Image) -> Iterator[File]:
    jpeg = encoded(picture, "JPEG")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 65_000) + bytes(64_998) for _ in range(60))
    yield _bomb("4 MB of metadata.jpg", jpeg[:2] + segments + jpeg[2:], OK)
    looping = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHII", 1, 0x8769, 4, 1, 8) + struct.pack("<I", 8)
    yield _bomb("exif that loops.jpg", encoded(picture, "JPEG", exif=looping), OK)
    huge_exif = b"Exif\0\0II*\0\x08\0\0\0" + b"\xff\xff" + bytes(300)
    yield _bomb("exif of 65,535 tags.jpg", encoded(picture, "JPEG", exif=huge_exif), OK)


def _many_scans(picture: Image.Image) -> bytes:
    """Return a progressive JPEG that repeats its last scan 500 times."""
    data = encoded(picture, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 500 + b"\xff\xd9"


def _with_count(data: bytes, tag: int, count: int) -> bytes:
    """Return a TIFF with one more text tag that claims `count` bytes."""
    (start,) = struct.unpack_from("<I", data, 4)
    (there,) = struct.unpack_from("<H", data, start)
    entry = struct.pack("<HHII", tag, 2, count, 8)
    tags = sorted([data[start + 2 + 12 * k :][:12] for k in range(there)] + [entry])
    tags.sort(key=lambda raw: struct.unpack_from("<H", raw))
    body = struct.pack("<H", there + 1) + b"".join(tags) + bytes(4)
    extra = data[start + 2 + 12 * there + 4 :]
    moved = struct.pack("<I", len(data) + len(data) % 2)
    return data[:4] + moved + data[8:] + bytes(len(data) % 2) + body + extra
