"""A folder of photos that break naive readers, each with its expected status."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

Pixels = NDArray[np.uint8]


def arrow(width: int = 48, height: int = 32) -> np.ndarray:
    """Return a picture (H, W, 3) with different corners: red, green, blue and white from top left, row by row."""
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
    """Encode an image file."""
    out = io.BytesIO()
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    picture.save(out, format, **options)
    return out.getvalue()


def noise(width: int = 64, height: int = 48, channels: int = 3) -> np.ndarray:
    """Return pixels that do not compress, so that any cut loses some."""
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk with its length and a valid checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """Return a handmade PNG: `rows` are raw lines, each after its filter byte; `extra` are chunks."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + png_chunk(b"IEND", b"")


def jpeg_claiming(width: int, height: int, **options: object) -> bytes:
    """Return a small JPEG whose header claims another size."""
    data = bytearray(encoded(noise(), "JPEG", **options))
    start = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """Return a WebP whose extended header claims another size."""
    data = bytearray(encoded(noise(channels=4), "WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def exif(orientation: int) -> bytes:
    """Return an EXIF block with only the orientation."""
    return (
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01"
        + struct.pack(">HH", orientation, 0)
        + bytes(4)
    )


def rotated(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return the upright `pixels` as a camera stores them with an EXIF orientation."""
    # EXIF 2.3: position of row 0 and column 0 of the stored picture in the upright one.
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
    """Return name -> (content, "ok" or the reason code)."""
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
        "one_pixel.png": (encoded(picture.crop((0, 0, 1, 1)), "PNG"), "too_small"),
        "one_pixel.jpg": (encoded(picture.crop((0, 0, 1, 1)), "JPEG"), "too_small"),
        "one_row.png": (encoded(picture.crop((0, 0, 64, 1)), "PNG"), "too_small"),
        "seven_rows.png": (encoded(picture.crop((0, 0, 64, 7)), "PNG"), "too_small"),
        "eight_rows.png": (encoded(picture.crop((0, 0, 64, 8)), "PNG"), "ok"),
        "jpeg_ls.jpg": (jpeg.replace(b"\xff\xc0", b"\xff\xf7"), "unsupported"),
        "hierarchical.jpg": (jpeg.replace(b"\xff\xc0", b"\xff\xc5"), "unsupported"),
        "dark_16_bit.tif": (encoded(np.full((32, 32), 900, np.uint16), "TIFF"), "ok"),
        "bad_exif.jpg": (encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"), "ok"),
        "trailing_bytes.jpg": (jpeg + b"SEFT" + bytes(500), "ok"),
        "huge.png": (png(60_000, 60_000, 8, 2, b"\0"), "too_large"),
        "huge.jpg": (jpeg_claiming(60_000, 60_000), "too_large"),
        "huge_progressive.jpg": (jpeg_claiming(60_000, 60_000, progressive=True), "too_large"),
        "huge.gif": (gif[:6] + struct.pack("<HH", 60_000, 60_000) + gif[10:], "too_large"),
        "huge.webp": (webp_claiming(16_000, 16_000), "too_large"),
        "claims_more_rows.jpg": (jpeg_claiming(64, 4000), "truncated"),
        "cut_and_closed.jpg": (jpeg[: len(jpeg) // 2] + b"\xff\xd9", "truncated"),
        # The picture is complete, only less sharp.
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
        "iphone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "corrupt"),
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
    photos |= _interrupted(picture)
    photos["big.tif"] = (encoded(picture, "TIFF", big_tiff=True), "ok")
    photos["cut_big.tif"] = (photos["big.tif"][0][:2000], "truncated")
    photos["beginning.tif"] = (b"II*\0", "truncated")
    photos["beginning.bmp"] = (b"BM", "truncated")
    photos["plain.ppm"] = (encoded(picture, "PPM"), "unsupported")
    frame = gif.index(b",", 13 + 3 * 256)
    photos["huge_frame.gif"] = (gif[: frame + 5] + b"\xff" * 4 + gif[frame + 9 :], "too_large")
    for orientation in range(1, 9):
        stored = Image.fromarray(rotated(arrow(), orientation))
        options = {"exif": exif(orientation), "quality": 95, "subsampling": 0}
        photos[f"orientation_{orientation}.jpg"] = (encoded(stored, "JPEG", **options), "ok")
    return photos


def _interrupted(picture: Image.Image) -> dict[str, tuple[bytes, str]]:
    """Return JPEGs of which libjpeg leaves a part grey without a warning."""
    rows = encoded(picture, "JPEG", quality=95, restart_marker_rows=1)
    start, second, last = rows.index(b"\xff\xda"), rows.index(b"\xff\xd1"), rows.rindex(b"\xff\xd1")
    assert second == last  # three rows: after the first two are restarts 0 and 1
    plain = encoded(picture, "JPEG", quality=95)
    middle = len(plain) // 2
    return {
        "rows.jpg": (rows, "ok"),
        "cut_at_a_restart_and_closed.jpg": (rows[:second] + b"\xff\xd9", "truncated"),
        "without_a_row.jpg": (rows[: rows.index(b"\xff\xd0")] + rows[second:], "truncated"),
        "short_row.jpg": (rows[: start + 60].rstrip(b"\xff") + rows[rows.index(b"\xff\xd0") :], "truncated"),
        "restart_that_is_none.jpg": (
            plain[:middle].rstrip(b"\xff") + b"\xff\xd3" + plain[middle:],
            "truncated",
        ),
    }


def write_hostile_photos(folder: Path) -> dict[str, str]:
    """Write all files and a dangling link; return file name -> "ok" or the reason code.

    Names that the file system refuses (e.g. not UTF-8) are left out.
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


# One picture in all formats.


def _jpegs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    def jpeg(image: Image.Image = picture, **options: Any) -> bytes:
        return encoded(image, "JPEG", **{"quality": 88, **options})

    yield "baseline", jpeg()
    yield "progressive", jpeg(progressive=True)
    yield "optimized", jpeg(optimize=True, subsampling=0)
    yield "restarts", jpeg(restart_marker_blocks=3)
    yield "restart rows", jpeg(restart_marker_rows=1)
    yield "progressive rows", jpeg(restart_marker_rows=1, progressive=True)
    yield "4-2-2", jpeg(subsampling=1)
    yield "grey", jpeg(picture.convert("L"))
    yield "grey progressive", jpeg(picture.convert("L"), progressive=True)
    yield "cmyk", jpeg(picture.convert("CMYK"))
    yield "cmyk progressive", jpeg(picture.convert("CMYK"), progressive=True)
    yield "rgb", jpeg(keep_rgb=True)
    yield "quality 1", jpeg(quality=1)
    yield "comment", jpeg(comment=b"a comment \xff\xd9 with an end mark")
    yield "profile", jpeg(icc_profile=bytes(range(256)) * 600)
    yield "two pictures", encoded(picture, "MPO", save_all=True, append_images=[picture.rotate(180)])
    yield "exif with thumbnail", jpeg(exif=_exif_with_thumbnail(jpeg(picture.resize((40, 30)))))
    for orientation in range(1, 9):
        stored = Image.fromarray(rotated(np.asarray(picture), orientation))
        yield f"orientation {orientation}", jpeg(stored, exif=exif(orientation))
    plain = jpeg()
    yield "without JFIF", plain[:2] + plain[20:]
    yield "filled", plain[:2] + b"\xff\xff\xff" + plain[2:]
    yield "trailing bytes", plain + bytes(700)
    yield "joined", plain + jpeg(picture.rotate(180))


def _exif_with_thumbnail(thumbnail: bytes) -> bytes:
    first = struct.pack(">HHHIHHI", 1, 0x112, 3, 1, 1, 0, 26)
    second = struct.pack(">HHHIIHHIII", 2, 0x201, 4, 1, 56, 0x202, 4, 1, len(thumbnail), 0)
    return b"Exif\0\0MM\0*\0\0\0\x08" + first + second + thumbnail


def _pngs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    rgb = np.asarray(picture)
    width, height = picture.size
    few = picture.quantize(4)
    yield "rgb", encoded(picture, "PNG")
    yield "grey", encoded(picture.convert("L"), "PNG")
    yield "1 bit", encoded(picture.convert("1"), "PNG")
    yield "palette", encoded(picture.quantize(200), "PNG")
    yield "palette 2 bits", encoded(few, "PNG", bits=2)
    yield "palette 4 bits", encoded(picture.quantize(16), "PNG", bits=4)
    yield "palette with transparency", encoded(few, "PNG", transparency=1)
    yield "alpha", encoded(picture.convert("RGBA"), "PNG")
    yield "grey and alpha", encoded(picture.convert("LA"), "PNG")
    yield "16 bit grey", encoded(Image.fromarray(rgb[..., 1].astype(np.uint16) * 257), "PNG")
    wide = (rgb.astype(">u2") * 257).tobytes()
    row = 6 * width
    lines = b"".join(b"\0" + wide[start : start + row] for start in range(0, len(wide), row))
    yield "16 bit", png(width, height, 16, 2, lines)
    yield "animated", encoded(picture, "PNG", save_all=True, append_images=[picture.rotate(90)] * 3)
    yield "interlaced", _interlaced(rgb)
    plain = encoded(picture, "PNG")
    text = png_chunk(b"tEXt", b"Title\0A hand") + png_chunk(
        b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 999)
    )
    yield "text", plain[:33] + text + plain[33:]
    yield "exif", encoded(picture, "PNG", exif=exif(3))
    yield "many chunks", _rechunked(plain)


def _interlaced(rgb: Pixels) -> bytes:
    """Encode with Adam7 interlacing, which Pillow can't write."""
    passes = [
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ]
    lines = [row for top, left, down, right in passes for row in rgb[top::down, left::right]]
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in lines))
    header = struct.pack(">IIBBBBB", rgb.shape[1], rgb.shape[0], 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, content) for kind, content in chunks)


def _rechunked(data: bytes, size: int = 100) -> bytes:
    """Return a PNG with its pixels in chunks of a few bytes, some of them empty."""
    start = data.index(b"IDAT") - 4
    (length,) = struct.unpack_from(">I", data, start)
    body, end = data[start + 8 : start + 8 + length], start + 12 + length
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return data[:start] + b"".join(png_chunk(b"IDAT", part) for part in [b"", *parts, b""]) + data[end:]


def _webps(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    yield "lossy", encoded(picture, "WEBP", quality=80)
    yield "lossless", encoded(picture, "WEBP", lossless=True)
    yield "alpha", encoded(_faded(picture), "WEBP")
    yield "lossless alpha", encoded(_faded(picture), "WEBP", lossless=True)
    yield "exif", encoded(picture, "WEBP", exif=exif(3))
    yield "animated", encoded(picture, "WEBP", save_all=True, append_images=[picture.rotate(180)] * 3)


def _faded(picture: Image.Image) -> Image.Image:
    rgba = picture.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(picture.size))
    return rgba


def _gifs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    small = picture.quantize(64)
    yield "interlaced", encoded(small, "GIF", interlace=True)
    yield "plain", encoded(small, "GIF", interlace=False)
    yield "transparent", encoded(small, "GIF", transparency=2)
    yield "grey", encoded(picture.convert("L"), "GIF")
    yield (
        "animated",
        encoded(small, "GIF", save_all=True, append_images=[picture.rotate(180).quantize(64)] * 3),
    )


def _bmps(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    rgb = np.asarray(picture)
    height, width = rgb.shape[:2]
    yield "24 bits", encoded(picture, "BMP")
    yield "grey", encoded(picture.convert("L"), "BMP")
    yield "1 bit", encoded(picture.convert("1"), "BMP")
    yield "palette", encoded(picture.quantize(64), "BMP")
    yield "32 bits", encoded(picture.convert("RGBA"), "BMP")
    yield "top down", bmp(width, -height, 24, rgb[..., ::-1].tobytes())
    five = (rgb >> 3).astype("<u2")
    yield (
        "15 bits",
        bmp(width, height, 16, (five[..., 0] << 10 | five[..., 1] << 5 | five[..., 2])[::-1].tobytes()),
    )
    grey = np.asarray(picture.convert("L")) & np.uint8(0xE0)
    yield "run lengths", bmp(width, height, 8, _run_lengths(grey), compression=1)
    palette = bytes(value for shade in range(256) for value in (shade, shade, shade))
    old = struct.pack("<IHHHH", 12, width, height, 1, 8) + palette
    raw = np.asarray(picture.convert("L"))[::-1].tobytes()
    yield "OS-2", struct.pack("<2sIII", b"BM", 14 + len(old) + len(raw), 0, 14 + len(old)) + old + raw


def bmp(width: int, height: int, bits: int, raw: bytes, compression: int = 0, colours: int = 0) -> bytes:
    """Return a handmade BMP, with a palette of greys if needed."""
    palette = b"".join(bytes([shade] * 3) + b"\0" for shade in range(256)) if bits == 8 else b""
    start = 54 + len(palette)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(raw), 0, 0, colours, 0)
    return struct.pack("<2sIII", b"BM", start + len(raw), 0, start) + header + palette + raw


def _run_lengths(grey: Pixels) -> bytes:
    out = bytearray()
    for row in grey[::-1]:
        ends = [*(np.flatnonzero(np.diff(row.astype(int))) + 1).tolist(), len(row)]
        for start, end in zip([0, *ends], ends, strict=False):
            out += bytes([end - start, row[start]])
        out += b"\0\0"
    return bytes(out + b"\0\1")


def _tiffs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    rgb = np.asarray(picture)
    height, width = rgb.shape[:2]
    for name, image in {
        "rgb": picture,
        "grey": picture.convert("L"),
        "1 bit": picture.convert("1"),
        "palette": picture.quantize(64),
        "alpha": picture.convert("RGBA"),
        "cmyk": picture.convert("CMYK"),
        "16 bit": Image.fromarray(rgb[..., 1].astype(np.uint16) * 257),
    }.items():
        yield name, encoded(image, "TIFF")
    for method in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        try:
            yield method, encoded(picture, "TIFF", compression=method)
        except (OSError, ValueError):  # this libtiff lacks the codec
            continue
    yield "group 4", encoded(picture.convert("1"), "TIFF", compression="group4")
    yield "pages", encoded(picture, "TIFF", save_all=True, append_images=[picture.rotate(180)] * 2)
    yield "orientation 6", encoded(Image.fromarray(rotated(rgb, 6)), "TIFF", tiffinfo={274: 6})
    yield "big", encoded(picture, "TIFF", big_tiff=True)
    yield "big-endian", tiff(width, height, [rgb.tobytes()], order=">")
    yield "strips", tiff(width, height, [part.tobytes() for part in np.split(rgb, 12)], {278: [height // 12]})
    planes = [rgb[..., channel].tobytes() for channel in range(3)]
    yield "planes", tiff(width, height, planes, {284: [2]})
    padded = np.zeros((-(-height // 64) * 64, -(-width // 64) * 64, 3), np.uint8)
    padded[:height, :width] = rgb
    tiles = [
        padded[y : y + 64, x : x + 64].tobytes()
        for y in range(0, padded.shape[0], 64)
        for x in range(0, padded.shape[1], 64)
    ]
    yield "tiles", tiff(width, height, tiles, {322: [64], 323: [64]})
    twelve = (rgb[..., 1].astype(np.uint16) * 16).reshape(-1, 2)
    packed = np.stack(
        [twelve[:, 0] >> 4, (twelve[:, 0] & 15) << 4 | twelve[:, 1] >> 8, twelve[:, 1] & 255], 1
    )
    grey_tags = {258: [12], 262: [1], 277: [1]}
    yield "12 bits", tiff(width, height, [packed.astype(np.uint8).tobytes()], grey_tags)


def tiff(
    width: int,
    height: int,
    parts: list[bytes],
    tags: dict[int, list[int]] | None = None,
    order: str = "<",
) -> bytes:
    """Return a handmade TIFF: 8-bit RGB in one strip, unless tags override it."""
    data, offsets, position = b"".join(parts), [], 8
    for part in parts:
        offsets.append(position)
        position += len(part)
    tiled = 322 in (tags or {})
    all_tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8, 8, 8],
        259: [1],
        262: [2],
        277: [3],
    }
    all_tags |= {} if tiled else {278: [height]}
    all_tags |= {324 if tiled else 273: offsets, 325 if tiled else 279: [len(part) for part in parts]}
    all_tags |= tags or {}
    start = position + position % 2
    extra_at, extra, entries = start + 2 + 12 * len(all_tags) + 4, b"", b""
    for tag, values in sorted(all_tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            extra, packed = extra + packed, struct.pack(order + "I", extra_at + len(extra))
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", start) + data + bytes(position % 2)
    return head + struct.pack(order + "H", len(all_tags)) + entries + bytes(4) + extra


def _avifs(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    if features.check("avif"):
        yield "plain", encoded(picture, "AVIF", speed=10)
        stored = Image.fromarray(rotated(np.asarray(picture), 6))
        yield "orientation 6", encoded(stored, "AVIF", speed=10, exif=exif(6))
        yield "transparent", encoded(picture.convert("RGBA"), "AVIF", speed=10)


#: Suffix -> names and files of one picture in all encodings that Pillow or this file can write.
WRITERS: dict[str, Callable[[Image.Image], Iterator[tuple[str, bytes]]]] = {
    "jpg": _jpegs,
    "png": _pngs,
    "webp": _webps,
    "gif": _gifs,
    "bmp": _bmps,
    "tif": _tiffs,
    "avif": _avifs,
}


def _flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
