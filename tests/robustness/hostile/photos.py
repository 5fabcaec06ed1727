"""Photos in all formats: intact, cut and damaged."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from annotator.photos.decode import MIN_SIDE_PX
from tests.robustness.hostile.expected import (
    BAD_HEADER,
    CUT,
    DAMAGED,
    NO_PHOTO,
    OK,
    OTHER_FORMAT,
    TOO_SMALL,
    File,
)
from tests.robustness.hostile_photos import WRITERS, Pixels, encoded

REAL_PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "hand-scenes" / "images"

#: JPEG options by variant.
JPEG_MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True},
    "tight": {"optimize": True},
    "rows": {"restart_marker_rows": 1},
}

#: Photos to break at more positions than others.
_OFTEN = {
    *("progressive", "restarts", "restart rows", "progressive rows", "cmyk"),
    *("interlaced", "animated", "tiff_lzw", "lossless", "alpha", "run lengths"),
}


def pictures(rng: random.Random) -> tuple[Image.Image, bytes]:
    """Return a small picture, and a larger JPEG file like a camera's."""
    real = sorted(REAL_PHOTOS.glob("*.jpg")) if REAL_PHOTOS.is_dir() else []
    if real:
        data = rng.choice(real).read_bytes()
        return Image.open(io.BytesIO(data)).convert("RGB").resize((160, 120)), data
    coarse = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    large = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).integers(-20, 21, (480, 640, 3))
    large = Image.fromarray(np.clip(np.asarray(large) + grain, 0, 255).astype(np.uint8))
    return large.resize((160, 120)), encoded(large, "JPEG", quality=80)


def read_strictly(data: bytes) -> Pixels | None:
    """Read the first picture of a file with Pillow, upright on white; None on any error or warning."""
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
    """Return which 8 x 8 blocks of the picture have one colour, and a pixel of each block."""
    height, width = (side // 8 * 8 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 8, 8, width // 8, 8, 3)
    return (np.ptp(blocks, axis=(1, 3)) <= 2).all(-1), blocks[:, 0, :, 0]


def lost_share(found: Pixels, whole: Pixels, fills: tuple[int, ...]) -> float:
    """Return the share of a picture's blocks that became one of these greys."""
    flat, colours = _flat(found)
    near = np.abs(colours[..., None].astype(int) - np.array(fills, int)) <= 4
    lost = flat & near.all(-2).any(-1)
    if found.shape == whole.shape:  # damage may change the size
        lost &= ~_flat(whole)[0]
    return float(lost.mean()) if flat.size else 0.0


#: Fill values of decoders for missing pixels: libjpeg's middle grey, also of CMYK, and zero.
FILLS = {"jpg": (64, 128), "gif": (0,), "webp": (0,), "png": (0,)}

#: Maximum lost share of a picture that still counts as ok.
MAX_LOST = 0.1


def _after_cut(data: bytes, whole: Pixels) -> frozenset[str]:
    """Return the outcomes of a cut file: truncated, or ok if the picture is complete."""
    found = read_strictly(data)
    return CUT | (OK if found is not None and np.array_equal(found, whole) else frozenset())


def _after_damage(
    data: bytes, whole: Pixels, suffix: str, reasons: frozenset[str] = BAD_HEADER
) -> frozenset[str]:
    """Return the outcomes of a damaged file: ok only if a strict reader accepts it and the picture remains.

    For raw pixels and fax codes damage is not detectable, because any data is valid.
    """
    found = read_strictly(data)
    seen = found is None or lost_share(found, whole, FILLS.get(suffix, ())) > MAX_LOST
    return reasons if seen else reasons | OK


def photos(picture: Image.Image, camera: bytes, rng: random.Random) -> Iterator[File]:
    """Yield photos in all formats: intact, cut and damaged."""
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
            outcomes = OK if min(shape) >= MIN_SIDE_PX else TOO_SMALL
            yield File("odd sizes", name, encoded(image, format), outcomes, shape)
    for shade in (0, 128, 255):
        flat = Image.new("RGB", picture.size, (shade, shade, shade))
        for name, options in JPEG_MODES.items():
            yield File("one colour", f"{shade} {name}.jpg", encoded(flat, "JPEG", **options), OK, flat.size)
    half = picture.copy()
    half.paste((128, 128, 128), (0, 60, 160, 120))  # a real grey area in an intact photo
    for name, options in JPEG_MODES.items():
        yield File("one colour", f"half {name}.jpg", encoded(half, "JPEG", **options), OK, half.size)


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
        if end < 12:  # too short to recognise the format
            outcomes |= NO_PHOTO | OTHER_FORMAT
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
        # Checksums detect this, unless it hits another frame of an animation.
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
    """Return whether a byte of a PNG lies in a chunk that does not affect the picture."""
    at = 8
    while at < len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if at <= position < end:
            return position >= at + 4 and data[at + 4 : at + 5].islower()
        at = end
    return False
