"""Files that are not photos, have an unsupported format, or a wrong suffix."""

from __future__ import annotations

import base64
import gzip
import io
import struct
import zipfile
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.robustness.hostile.expected import CUT, DAMAGED, EMPTY, NO_PHOTO, OK, OTHER_FORMAT, File
from tests.robustness.hostile_photos import encoded, tiff


def other_files(picture: Image.Image) -> Iterator[File]:
    """Yield files with a wrong suffix or an unsupported format."""
    yield from _wrongly_named(picture)
    yield from _no_photos(picture)
    yield from _other_formats(picture)


def _samples(picture: Image.Image) -> dict[str, bytes]:
    """Return a file of each supported format, by suffix."""
    images = {"jpg": picture, "png": picture, "gif": picture.quantize(8), "webp": picture}
    images |= {"bmp": picture, "tif": picture}
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    return {name: encoded(image, formats.get(name, name.upper())) for name, image in images.items()}


def _wrongly_named(picture: Image.Image) -> Iterator[File]:
    files = _samples(picture)
    for claimed in (*files, "jpeg", "jfif", "JPG", "heic", "ppm"):
        for real, data in files.items():
            if claimed.lower() != real and (claimed in ("jpg", "png", "heic") or real == "jpg"):
                yield File("wrongly named", f"{real} named.{claimed}", data, OK, picture.size)
    for name in ("no suffix", "dots.in.name", "photo.JPG~", "photo.dat", "photo.txt.exe"):
        yield File("wrongly named", name, files["jpg"], OK, picture.size)


def _no_photos(picture: Image.Image) -> Iterator[File]:
    files = _samples(picture)
    jpeg, plain_png = files["jpg"], files["png"]
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
        "riff only.webp": b"RIFF",
        "sound.webp": b"RIFF" + struct.pack("<I", 100) + b"WAVEfmt " + bytes(92),
        "svg.png": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
        "pickle.jpg": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07pwned\x94.",
    }
    for name, data in nothing.items():
        may_name = {"svg.png": OTHER_FORMAT, "line ends.png": DAMAGED}.get(name, frozenset())
        yield File("no photo", name, data, NO_PHOTO | may_name)
    for suffix in (*files, "heic", "ppm"):
        yield File("no photo", f"empty.{suffix}", b"", EMPTY)
    bare = {
        "jpg": jpeg[:4],
        "png": plain_png[:8],
        "gif": files["gif"][:6],
        "bmp": b"BM",
        "tif": b"II*\0",
        "webp": files["webp"][:12],
    }
    for suffix, data in bare.items():
        yield File("no photo", f"beginning.{suffix}", data, CUT)


def _other_formats(picture: Image.Image) -> Iterator[File]:
    written = {"PPM": "ppm", "JPEG2000": "jp2", "EPS": "jpg", "PDF": "jpg"}
    for format, suffix in written.items():
        yield from _saved_as(picture, format, f"{format}.{suffix}", OTHER_FORMAT)
    yield from _saved_as(picture.convert("L"), "PPM", "grey.pgm", OTHER_FORMAT)
    yield from _saved_as(picture.convert("1"), "PPM", "bits.pbm", OTHER_FORMAT)
    text_ppm = b"P3\n# by hand\n2 1\n255\n1 2 3 4 5 6\n"
    yield File("other formats", "text.ppm", text_ppm, OTHER_FORMAT)
    # Formats without a magic number, which look like noise.
    for format in ("ICO", "TGA", "DDS", "SGI", "PCX", "QOI", "ICNS", "IM", "XBM", "MSP"):
        image = picture.convert("1") if format in ("XBM", "MSP") else picture
        yield from _saved_as(image, format, f"{format}.png", OTHER_FORMAT | NO_PHOTO)
    boxes = {"heic": b"ftypheic", "heif": b"ftypmif1", "raw.jpg": b"ftypcrx ", "video.jpg": b"ftypisom"}
    for name, box in boxes.items():
        suffix = name if "." in name else f"mark.{name}"
        # Damaged with a HEIC reader installed, otherwise unsupported.
        outcomes = OTHER_FORMAT | DAMAGED if name in ("heic", "heif") else OTHER_FORMAT
        yield File("other formats", suffix, b"\0\0\0\x18" + box + bytes(400), outcomes)
    yield File("other formats", "photoshop.jpg", b"8BPS\0\1" + bytes(300), OTHER_FORMAT)
    yield File("other formats", "matroska.jpg", b"\x1aE\xdf\xa3" + bytes(300), OTHER_FORMAT)
    yield File(
        "other formats", "codestream.jpg", b"\xff\x4f\xff\x51\0\x29" + bytes(300), OTHER_FORMAT | NO_PHOTO
    )
    for name, mode in (("float.tif", "F"), ("32 bits.tif", "I")):
        yield File("other formats", name, encoded(picture.convert(mode), "TIFF"), OTHER_FORMAT)
    lab = tiff(*picture.size, [np.asarray(picture).tobytes()], {262: [8]})
    yield File("other formats", "lab.tif", lab, OTHER_FORMAT)
    yield File("other formats", "camera raw.tif", tiff(4, 4, [bytes(48)], {254: [1]}), OTHER_FORMAT)
    jpeg = encoded(picture, "JPEG")
    start = jpeg.index(b"\xff\xc0")
    for marker in (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCF):
        data = jpeg[: start + 1] + bytes([marker]) + jpeg[start + 2 :]
        yield File("other formats", f"frame {marker:X}.jpg", data, OTHER_FORMAT | DAMAGED)
    twelve = jpeg[: start + 4] + b"\x0c" + jpeg[start + 5 :]
    yield File("other formats", "12 bits.jpg", twelve, OTHER_FORMAT | DAMAGED)


def _saved_as(picture: Image.Image, format: str, name: str, outcomes: frozenset[str]) -> Iterator[File]:
    try:
        yield File("other formats", name, encoded(picture, format), outcomes)
    except (OSError, ValueError, KeyError):  # this Pillow can't write it
        return
