"""Masks of visible hands from HO3D's rendered segmentations, `HO3D_v2_segmentations_rendered` and v3's.

    train/SEQUENCE/seg/FRAME.jpg or .png     in HO3D's folder, or in a folder `*_segmentations_rendered` inside it

A picture has a quarter of the photo's width and height: hand and object in two of the colours red, green and blue on
black. HO3D's description does not name the colours, and other projects read v2 and v3 differently. So the hand's colour
is the one under most joints of some frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from annotator.errors import UserError
from annotator.photos.decode import decode_photo
from annotator.storage.files import join, names_in
from trainer.convert.photos import png, required_photo

#: Frames whose joints decide the colour of the hand.
_FRAMES = 20

_SUFFIXES = (".jpg", ".png")


class HandMasks:
    """Masks of the frames that have a segmentation."""

    def __init__(self, root: str) -> None:
        """Look for segmentations in HO3D's folder; without any, no frame has a mask."""
        names = sorted(name for name in names_in(root) if name.endswith("_segmentations_rendered"))
        self._folders = [join(root, "train"), *(join(root, name, "train") for name in names)]
        self._found: dict[str, dict[str, str]] = {}  # sequence to frame to file
        self._channel: int | None = None

    def _file(self, sequence: str, frame: str) -> str | None:
        if sequence not in self._found:
            self._found[sequence] = {
                name.rpartition(".")[0]: join(folder, sequence, "seg", name)
                for folder in self._folders
                for name in names_in(join(folder, sequence, "seg"))
                if name.endswith(_SUFFIXES)
            }
        return self._found[sequence].get(frame)

    def find_colour(
        self,
        frames: Iterable[tuple[str, str]],
        joints_of: Callable[[str, str], tuple[NDArray[np.float64], int, int] | None],
    ) -> None:
        """Find the hand's colour. `joints_of` gives a frame's 2D joints (21, 2) and the photo's width and height.

        Raises:
            UserError: no joint lies on a colour.
        """
        votes, read, file = np.zeros(3, int), 0, None
        for sequence, frame in frames:
            if read == _FRAMES:
                break
            file = self._file(sequence, frame)
            known = joints_of(sequence, frame) if file else None
            if file is None or known is None:
                continue
            joints, width, height = known
            colours = _colours(file)
            rows, columns = colours.shape[:2]
            at = np.floor(joints / [width, height] * [columns, rows]).astype(int)
            inside = ((at >= 0) & (at < [columns, rows])).all(1)
            votes += colours[at[inside, 1], at[inside, 0]].sum(0)
            read += 1
        if read and not votes.any():
            raise UserError(f"{file}: shows no hand in red, green or blue where its joints are")
        self._channel = int(votes.argmax()) if read else None

    def mask(self, sequence: str, frame: str, width: int, height: int) -> bytes | None:
        """Return the `hand_mask` of a frame, a PNG of the photo's size; None without a segmentation."""
        file = self._file(sequence, frame)
        if file is None or self._channel is None:
            return None
        hand = _colours(file)[..., self._channel]
        whole = Image.fromarray(hand.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
        return png(np.asarray(whole))


def _colours(file: str) -> NDArray[np.bool_]:
    """Return (H, W, 3): whether a pixel is red, green or blue. JPEG blurs edges, so none may be."""
    pixels = decode_photo(required_photo(file)["image"]).pixels
    bright = pixels > 127
    found: NDArray[np.bool_] = bright & (bright.sum(-1, keepdims=True) == 1)
    return found
