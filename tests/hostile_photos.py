"""A folder of photos that break naive readers, each with what should become of it."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def arrow(width: int = 48, height: int = 32) -> np.ndarray:
    """A picture (H, W, 3) whose four corners differ: red, green, blue and white from top left, row by row."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    h, w = height // 2, width // 2
    pixels[:h, :w], pixels[:h, w:], pixels[h:, :w], pixels[h:, w:] = (
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
    )
    return pixels


def encoded(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """An image file."""
    out = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, channels: int = 3) -> np.ndarray:
    """Pixels that do not compress, so that a cut anywhere loses some."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk with its length and a right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG made by hand: `rows` are raw lines, each after its filter byte; `extra` are chunks."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int, **options: object) -> bytes:
    """A small JPEG whose header names another size."""
    data = bytearray(encoded(noise(), "JPEG", **options))
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """A WebP whose extended header names another size."""
    data = bytearray(encoded(noise(channels=4), "WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def exif(orientation: int) -> bytes:
    """An EXIF block that holds nothing but the orientation."""
    return (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
        + struct.pack(">HH", orientation, 0)
        + bytes(4)
    )


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """How a camera stores the upright `pixels` under an EXIF orientation."""
    # EXIF 2.3: where row 0 and column 0 of the stored picture lie in the upright one.
    row, column = (
        ("top", "left"),
        ("top", "right"),
        ("bottom", "right"),
        ("bottom", "left"),
        ("left", "top"),
        ("right", "top"),
        ("right", "bottom"),
        ("left", "bottom"),
    )[orientation - 1]
    height, width = pixels.shape[:2]
    sides = {"top": (0, 0), "bottom": (0, height - 1), "left": (1, 0), "right": (1, width - 1)}
    row_axis, first_row = sides[row]
    column_axis, first_column = sides[column]
    stored = np.empty((pixels.shape[row_axis], pixels.shape[column_axis], 3), np.uint8)
    for r in range(stored.shape[0]):
        for c in range(stored.shape[1]):
            at = [0, 0]
            at[row_axis] = abs(first_row - r)
            at[column_axis] = abs(first_column - c)
            stored[r, c] = pixels[at[0], at[1]]
    return stored


def hostile_photos() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, "ok" or the reason code)."""
    picture = Image.fromarray(noise())
    jpeg = encoded(picture, "JPEG", quality=95)
    progressive = encoded(picture, "JPEG", quality=95, progressive=True)
    plain_png = encoded(picture, "PNG")
    gif = encoded(picture.convert("P"), "GIF")
    webp = encoded(picture, "WEBP", lossless=True)
    wide = b"".join(b"\0" + np.linspace(0, 65535, 32).astype(">u2").tobytes() for _ in range(32))
    photos = {
        "text.jpg": (b"this is no photo\n", "not_a_photo"),
        "page.jpg": (b"<!DOCTYPE html><html>404 not found</html>", "not_a_photo"),
        "zeros.png": (bytes(5000), "not_a_photo"),
        "empty.jpg": (b"", "empty"),
        "two_bytes.jpg": (jpeg[:2], "not_a_photo"),
        "header_only.jpg": (jpeg[:3], "truncated"),
        "grey.jpg": (encoded(picture.convert("L"), "JPEG"), "ok"),
        "black_and_white.png": (encoded(picture.convert("1"), "PNG"), "ok"),
        "palette.png": (encoded(picture.convert("P"), "PNG"), "ok"),
        "alpha.png": (encoded(noise(channels=4), "PNG"), "ok"),
        "grey_alpha.png": (encoded(picture.convert("LA"), "PNG"), "ok"),
        "cmyk.jpg": (encoded(picture.convert("CMYK"), "JPEG"), "ok"),
        "grey_16_bit.png": (png(32, 32, 16, 0, wide), "ok"),
        "float.tif": (encoded(picture.convert("F"), "TIFF"), "unsupported"),
        "plain.bmp": (encoded(picture, "BMP"), "ok"),
        "plain.tif": (encoded(picture, "TIFF"), "ok"),
        "plain.webp": (webp, "ok"),
        "progressive.jpg": (progressive, "ok"),
        "png_named.jpg": (plain_png, "ok"),
        "jpeg_named.png": (jpeg, "ok"),
        "no_extension": (jpeg, "ok"),
        "animated.gif": (
            encoded(picture.convert("P"), "GIF", save_all=True, append_images=[picture.convert("L")] * 3),
            "ok",
        ),
        "one_pixel.png": (encoded(picture.crop((0, 0, 1, 1)), "PNG"), "ok"),
        "one_pixel.jpg": (encoded(picture.crop((0, 0, 1, 1)), "JPEG"), "ok"),
        "one_row.png": (encoded(picture.crop((0, 0, 64, 1)), "PNG"), "ok"),
        "bad_exif.jpg": (encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"), "ok"),
        "trailing_bytes.jpg": (jpeg + b"SEFT" + bytes(500), "ok"),
        "huge.png": (png(60_000, 60_000, 8, 2, b"\0"), "too_large"),
        "huge.jpg": (jpeg_claiming(60_000, 60_000), "too_large"),
        "huge_progressive.jpg": (jpeg_claiming(60_000, 60_000, progressive=True), "too_large"),
        "huge.gif": (gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:], "too_large"),
        "huge.webp": (webp_claiming(16_000, 16_000), "too_large"),
        "claims_more_rows.jpg": (jpeg_claiming(64, 4000), "truncated"),
        "cut_and_closed.jpg": (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "truncated"),
        # The whole picture is there, only less sharp.
        "cut_and_closed_progressive.jpg": (progressive[: len(progressive) // 2] + b"\xff\xd9", "ok"),
        "stray_marker.jpg": (jpeg[: len(jpeg) // 2] + b"\xff\x3c" + jpeg[len(jpeg) // 2 :], "corrupt"),
        "white.jpg": (encoded(np.full((48, 64, 3), 255, np.uint8), "JPEG"), "ok"),
        "white_progressive.jpg": (
            encoded(np.full((48, 64, 3), 255, np.uint8), "JPEG", progressive=True),
            "ok",
        ),
        "flipped_checksum.png": (_flipped(plain_png, plain_png.index(b"IDAT") + 100), "corrupt"),
        "flipped_header.png": (_flipped(plain_png, 18), "corrupt"),
        "flipped_tables.jpg": (_flipped(jpeg, jpeg.index(b"\xff\xc4") + 5), "corrupt"),
        "iphone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "unsupported"),
        "clip.mp4": (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41" + bytes(100), "unsupported"),
        "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "unsupported"),
        "with space.jpg": (jpeg, "ok"),
        "with\nnewline.jpg": (jpeg, "ok"),
        "手と指 рука.jpg": (jpeg, "ok"),
        "quote'and\"comma,.jpg": (jpeg, "ok"),
        os.fsdecode(b"not_utf8_\xff\xfe.jpg"): (jpeg, "ok"),
    }
    for name, data in (("a.jpg", jpeg), ("p.jpg", progressive), ("a.png", plain_png), ("a.webp", webp)):
        for percent in (10, 50, 90, 99):
            photos[f"cut_at_{percent}_{name}"] = (data[: len(data) * percent // 100], "truncated")
    photos["cut.gif"] = (gif[: len(gif) // 2], "truncated")
    photos["cut.bmp"] = (encoded(picture, "BMP")[:2000], "truncated")
    photos["cut.tif"] = (encoded(picture, "TIFF")[:2000], "truncated")
    for orientation in range(1, 9):
        stored = Image.fromarray(turned(arrow(), orientation))
        options = {"exif": exif(orientation), "quality": 95, "subsampling": 0}
        photos[f"orientation_{orientation}.jpg"] = (encoded(stored, "JPEG", **options), "ok")
    return photos


def write_hostile_photos(folder: Path) -> dict[str, str]:
    """Write them all and a dangling link; returns file name -> "ok" or the reason code.

    A name that the file system refuses (one that is not UTF-8, say) is left out.
    """
    expected = {}
    for name, (content, outcome) in hostile_photos().items():
        try:
            (folder / name).write_bytes(content)
        except OSError:
            continue
        expected[name] = outcome
    (folder / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    expected["dangling.jpg"] = "missing"
    return expected


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
