"""Photos held out of all training: whole people and sequences, and some photos of each sign letter."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


def digit_number(image_id: str) -> int:
    """Return the number in the file name of a photo of sign-digits."""
    return int(Path(image_id).stem.rpartition("_")[2])


#: A rule per collection, for paths below its folder of images. Ten digits in a row, 0 to 9, show one person.
_RULES: dict[str, Callable[[str], object]] = {
    "hand-photos": re.compile(r"webcam-0[258]/|asl-letters/\d*[07]_").match,
    "hand-scenes": re.compile(r"996_|96_|5_|Hand").match,
    "sign-digits": lambda image_id: digit_number(image_id) >= 5685,
}

COLLECTIONS = tuple(_RULES)


def is_held_out(collection: str, image_id: str) -> bool:
    """Return whether a photo is held out; `image_id` is its path below the collection's folder of images."""
    return bool(_RULES[collection](image_id))
