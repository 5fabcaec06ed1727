"""Compare decoding with Pillow: `python benchmarks/decode.py [PHOTOS]`.

Milliseconds of one core per photo, alternating: plain Pillow code (with its scaled decoding), `decode_photo` without
the fast path for plain JPEGs, and `decode_photo`. Inputs are PHOTOS at full size, PHOTOS scaled for a crop of 96 px,
and one photo enlarged to 12 megapixels. The last line is the table as JSON.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
from common import machine, photo_folder, print_figures
from PIL import Image

from annotator.photos import decode
from annotator.photos.decode import decode_photo

ROUNDS, CROP_PX = 7, 96


def pillow(data: bytes, min_side_px: int | None) -> None:
    """Decode with plain Pillow code."""
    image = Image.open(io.BytesIO(data))
    if min_side_px is not None:
        scale = max(1, min(image.size) // min_side_px)
        image.draft("RGB", (image.width // scale, image.height // scale))
    np.asarray(image.convert("RGB"))


def by_pillow(data: bytes, min_side_px: int | None) -> None:
    """Run `decode_photo` without its fast path."""
    with patch.object(decode.plain_jpeg, "read_header", lambda data: None):
        decode_photo(data, min_side_px)


WAYS: dict[str, Callable[[bytes, int | None], object]] = {
    "Pillow": pillow,
    "decode_photo by Pillow": by_pillow,
    "decode_photo": decode_photo,
}


def enlarged(data: bytes) -> bytes:
    """Return the photo as a JPEG of 12 megapixels."""
    sink = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000)).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of JPEGs; default: synthetic ones")
    parser.add_argument("--count", type=int, default=64)
    args = parser.parse_args()
    print(machine())
    paths = sorted(Path(photo_folder(args.photos, args.count)).rglob("*.[jJ][pP][gG]"))
    photos = [path.read_bytes() for path in paths[:: max(1, len(paths) // args.count)]]
    kinds = {
        "whole": (photos, None),
        f"for a crop of {CROP_PX} px": (photos, CROP_PX),
        f"12 megapixels, for a crop of {CROP_PX} px": ([enlarged(photos[0])] * 3, CROP_PX),
    }
    found: dict[str, dict[str, float]] = {}
    print("| | " + " | ".join(f"{way}, ms" for way in WAYS) + " | Pillow over decode_photo |")
    print("|---|" + "---|" * (len(WAYS) + 1))
    for kind, (files, min_side_px) in kinds.items():
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(ROUNDS):
            for way, do in WAYS.items():
                began = time.process_time()
                for data in files:
                    do(data, min_side_px)
                times[way].append(1000 * (time.process_time() - began) / len(files))
        found[kind] = {way: float(np.median(values)) for way, values in times.items()}
        shown = " | ".join(f"{value:.3f}" for value in found[kind].values())
        print(f"| {kind} | {shown} | {found[kind]['Pillow'] / found[kind]['decode_photo']:.2f} |", flush=True)
    print_figures(
        {
            f"{way} over decode_photo, {kind}": ms[way] / ms["decode_photo"]
            for kind, ms in found.items()
            for way in list(WAYS)[:-1]
        },
        ms=found,
    )


if __name__ == "__main__":
    main()
