"""Choose the hands of a report; write their pictures, and their meshes as small scripts loaded on demand."""

from __future__ import annotations

import base64
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from annotator.errors import UserError
from annotator.labels.folder import read_columns, read_faces
from annotator.render.std_colours import std_range
from annotator.report.survey import Row, Survey
from annotator.report.tiles import Picture, contact_sheet, mesh_tiles, on_paper, photo_tile
from annotator.storage.files import FIRST_ANSWER_S, write_atomic, write_in_place
from annotator.storage.remote import retry_limit

TILE_PX = 256
KINDS = ("photo", "overlay", "uncertainty", "texture")

#: Maximum hands on the contact sheet, which is one picture.
_SHEET_HANDS = 24

_COLUMNS = [
    *("image_uri", "frame_index", "crop_xyxy", "is_right", "camera"),
    *("vertices_mm", "vertices_std_mm", "vertex_rgb"),
]


@dataclass(frozen=True)
class Gallery:
    """A titled group of hands."""

    title: str
    note: str
    rows: list[Row]


@dataclass(frozen=True)
class Shown:
    """A hand with pictures: `hands/007-photo.webp` and so on, and its mesh, `hands/007.js`."""

    number: int
    row: Row
    kinds: tuple[str, ...]  # of its pictures

    @property
    def stem(self) -> str:
        """The start of its file names."""
        return _stem(self.number)


def _stem(number: int) -> str:
    return f"hands/{number:03d}"


def galleries(found: Survey, most: int) -> list[Gallery]:
    """Return up to `most` hands: those of lowest and of highest std and some between, or all of a small set."""
    lowest, highest = found.lowest_std.rows, found.highest_std.rows
    if found.is_constant or not lowest:
        rows = sorted(found.sample.rows[:most], key=_location)
        note = "A random sample: all have the same standard deviation."
        return [Gallery("A sample of hands", note, rows)] if rows else []
    if len(lowest) < most or found.std.total == most:
        return [Gallery("All hands", "Lowest std first.", lowest)]
    third = max(most // 3, 1)
    ends = lowest[:third] + (highest[:third] if most > 1 else [])
    taken = {_location(row) for row in ends}
    between = [row for row in found.sample.rows if _location(row) not in taken and _std(row) == _std(row)]
    between.sort(key=_std)
    wanted = np.linspace(0, len(between) - 1, max(most - len(ends), 0) + 2)[1:-1]
    middle = [between[i] for i in np.unique(wanted.round().astype(int))] if between else []
    parts = [
        Gallery("Lowest std", "The smallest predicted standard deviations.", ends[:third]),
        Gallery("Highest std", "The largest predicted standard deviations.", ends[third:]),
        Gallery("In between", "Spread evenly over the rest, lowest std first.", middle),
    ]
    return [gallery for gallery in parts if gallery.rows]


def _location(row: Row) -> tuple[str, int]:
    return row.file, row.index


def _std(row: Row) -> float:
    std = row.values["joint_std_mm"]
    return float("nan") if std is None else std


class Pictures:
    """The pictures of some hands, written to a folder."""

    def __init__(self, labels: str, rows: Sequence[Row]) -> None:
        """Read the labels of the hands to draw."""
        self._rows = list({_location(row): row for row in rows}.values())
        self._hands = _heavy(labels, self._rows)
        self.faces = read_faces(labels) if rows else np.zeros((0, 3), np.int64)
        self.range_mm = std_range(np.concatenate([np.zeros(0), *map(_lengths, self._hands)]))

    def write(self, out: Path) -> list[Shown]:
        """Write pictures and meshes to out/hands, and out/contact_sheet.png."""
        (out / "hands").mkdir(exist_ok=True)
        threads = torch.get_num_threads()
        each = max(-(-len(self._hands) // _SHEET_HANDS), 1)
        shown, sheet = [], list[list[Picture]]()
        # One thread per hand is faster than torch's threads, which synchronise at every small step.
        with ThreadPoolExecutor(
            os.cpu_count() or 1, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            photos = pool.map(_photo, self._hands)
            drawn = pool.map(lambda hand: self._write_hand(out, *hand), zip(count(), self._hands, photos))
            for number, (row, (kinds, tiles)) in enumerate(zip(self._rows, drawn, strict=True)):
                shown.append(Shown(number, row, kinds))
                if number % each == 0:
                    sheet.append(tiles)
        torch.set_num_threads(threads)
        if sheet:
            columns = 2 if len(sheet) > 6 else 1
            lines = [list(chain(*sheet[i : i + columns])) for i in range(0, len(sheet), columns)]
            sheet_file = io.BytesIO()
            contact_sheet(lines).save(sheet_file, "PNG")
            write_in_place(out / "contact_sheet.png", sheet_file.getvalue())
        return shown

    def _write_hand(
        self, out: Path, number: int, hand: dict[str, Any], photo: Picture | None
    ) -> tuple[tuple[str, ...], list[Picture]]:
        """Write a hand's files; return the kinds of its pictures, and all four tiles on grey."""
        tiles, pictures = self._drawn(hand, photo)
        for kind, picture in pictures.items():
            file = io.BytesIO()
            picture.save(file, "WEBP", quality=84)
            write_in_place(out / f"{_stem(number)}-{kind}.webp", file.getvalue())
        write_atomic(str(out / f"{_stem(number)}.js"), _mesh_script(number, hand).encode())
        return tuple(pictures), [tiles[kind] for kind in KINDS]

    def _drawn(
        self, hand: dict[str, Any], photo: Picture | None
    ) -> tuple[dict[str, Picture], dict[str, Image.Image]]:
        """Return tiles on grey, and pictures for a page of any colour, with transparent backgrounds of meshes."""
        meshes = mesh_tiles(hand, self.faces, TILE_PX, self.range_mm)
        tiles = on_paper(photo, meshes)
        pictures = {} if photo is None else {k: Image.fromarray(tiles[k]) for k in ("photo", "overlay")}
        for kind in ("uncertainty", "texture"):
            if kind in meshes:
                pictures[kind] = Image.fromarray((meshes[kind] * 255).round().astype(np.uint8))
        return tiles, pictures


def _photo(hand: dict[str, Any]) -> Picture | None:
    with retry_limit(FIRST_ANSWER_S):  # an unreachable store must not delay the page
        return photo_tile(hand, TILE_PX)


def _heavy(labels: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the large columns of some rows; each file is read once."""
    by_file: dict[str, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        by_file[row.file].append(position)
    hands: list[dict[str, Any]] = [{}] * len(rows)
    for name, positions in by_file.items():
        table = read_columns(labels, name, _COLUMNS).take([rows[position].index for position in positions])
        if "vertices_mm" not in table.column_names:
            raise UserError(
                f"'{labels}' holds no meshes (column 'vertices_mm'), which a report shows: label photos without "
                "--columns joints"
            )
        for position, hand in zip(positions, table.to_pylist(), strict=True):
            hands[position] = hand
    return hands


def _lengths(hand: dict[str, Any]) -> np.ndarray:
    return np.linalg.norm(np.array(hand["vertices_std_mm"], np.float32), axis=-1)


def base64_of(values: np.ndarray, kind: str) -> str:
    """Return numbers as base64 of NumPy type `kind`."""
    return base64.b64encode(np.ascontiguousarray(values).astype(kind).tobytes()).decode()


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0)


def _mesh_script(number: int, hand: dict[str, Any]) -> str:
    """Return a script with vertices (V, 3) and lengths of std (V,) in 1/16 mm, like labels; RGB (V, 3) or null."""
    vertices = _finite(np.array(hand["vertices_mm"], np.float32)) * 16
    mesh = {
        "vertices": base64_of(vertices.round().clip(-32768, 32767), "<i2"),
        "std": base64_of((_finite(_lengths(hand)) * 16).round().clip(0, 65535), "<u2"),
        "rgb": None if hand.get("vertex_rgb") is None else base64_of(np.array(hand["vertex_rgb"]), "u1"),
        "left": not hand["is_right"],
    }
    return f"amvurMesh({number}, {json.dumps(mesh)});\n"


def each_row(parts: Sequence[Gallery]) -> Iterator[Row]:
    """Yield the hands of all galleries."""
    for gallery in parts:
        yield from gallery.rows
