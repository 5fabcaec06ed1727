"""One glb or ply file per hand, sample or photo: metres, y up, vertex colours, faces outwards for left hands too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport, camera_field
from annotator.export.glb import glb_bytes
from annotator.export.output_paths import HandNames
from annotator.export.ply import ply_bytes
from annotator.labels.arrays import array_of
from annotator.sources.read import REQUESTS_AT_ONCE
from annotator.storage.files import is_local, join, local_path, write_atomic

#: Camera axes (y down, z forward) to mesh axes (y up, z towards the viewer): 180 degrees about x, no mirroring.
FROM_CAMERA = np.array([1, -1, -1], np.float32)

#: Colour of hands from a network without texture.
SKIN = np.array([219, 168, 143], np.uint8)

_SCALARS = ("image_uri", "image_id", "duplicate", "frame_index", "hand_index", "is_right")
_SAMPLES = "vertices_samples_mm"
_COLOUR_COLUMN = {"texture": "vertex_rgb", "std": "vertices_std_mm"}


@dataclass(frozen=True, eq=False)
class Mesh:
    """The contents of one file."""

    vertices_m: NDArray[np.float32]  # (V, 3) x right, y up, z towards the viewer; origin: wrist, or camera
    faces: NDArray[np.int64]  # (F, 3) counter-clockwise seen from outside
    rgb: NDArray[np.uint8]  # (V, 3) sRGB
    facts: dict[str, Any]  # identify the hand


def _encoded(kind: str, meshes: Sequence[Mesh], of_photo: bool) -> bytes:
    """Return the file of one hand, or of the hands of a photo in its camera."""
    if kind == "glb":
        return glb_bytes([(mesh.vertices_m, mesh.faces, mesh.rgb, mesh.facts) for mesh in meshes])
    starts = np.cumsum([0, *(len(mesh.vertices_m) for mesh in meshes)])
    return ply_bytes(
        np.concatenate([mesh.vertices_m for mesh in meshes]),
        np.concatenate([mesh.faces + start for mesh, start in zip(meshes, starts, strict=False)]),
        np.concatenate([mesh.rgb for mesh in meshes]),
        *(("the hands of a photo", "its camera") if of_photo else ()),
    )


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        UserError: the labels have no meshes.
    """
    labels.need_meshes("a mesh file")
    return labels.present(*_SCALARS, "vertices_mm", "camera", *_COLOUR_COLUMN.values())


def columns_with_samples(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read with samples.

    Raises:
        UserError: the labels have no meshes, or no samples.
    """
    found = columns(labels)
    if _SAMPLES not in labels.columns:
        raise UserError(f"'{labels.place}' holds no samples: label with `amvur annotate --samples N`")
    return [*found, _SAMPLES]


@dataclass(frozen=True, eq=False)
class _MeshFiles:
    """All files of an export; pickled to other processes."""

    kind: str
    out: str
    faces: NDArray[np.int64]
    scalars: list[str]
    paint: _Paint
    by_photo: bool

    def write(self, table: pa.Table, stems: list[str]) -> int:
        """Write a table's hands, several at once, because stores answer slowly; return their number."""
        rows = table.select(self.scalars).to_pylist()
        meshes = _meshes(table, rows, self.faces, self.paint)
        if self.by_photo:
            files = _of_photos(rows, stems, meshes)
        else:
            files = (
                (f"{stem}{ending}", [mesh])
                for stem, of_hand in zip(stems, meshes, strict=True)
                for ending, mesh in of_hand.items()
            )
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda file: self._write(*file), files))
        return len(rows)

    def _write(self, stem: str, meshes: Sequence[Mesh]) -> None:
        data = _encoded(self.kind, meshes, self.by_photo)
        write_atomic(join(self.out, f"{stem}.{self.kind}"), data)


def _of_photos(
    rows: Sequence[dict[str, Any]], stems: Sequence[str], meshes: Iterator[dict[str, Mesh]]
) -> Iterator[tuple[str, list[Mesh]]]:
    """Yield a file per photo, whose hands are in adjacent rows, in front of its camera."""
    hands = zip(rows, stems, meshes, strict=True)
    for _, some in groupby(hands, lambda hand: _photo_of(hand[0])):
        together = list(some)
        placed = []
        for row, _, of_hand in together:
            mesh = of_hand[""]
            if "wrist_m" not in mesh.facts:
                raise UserError(
                    f"'{row['image_uri']}' has no position in front of its camera: leave out --by-photo"
                )
            moved = mesh.vertices_m + np.float32(mesh.facts["wrist_m"])
            placed.append(replace(mesh, vertices_m=moved))
        yield together[0][1], placed


def _photo_of(row: dict[str, Any]) -> tuple[Any, ...]:
    # A list may give each hand its own id; duplicates differ in nothing else.
    own_id = row["image_id"] if row.get("duplicate") else None
    return row["image_uri"], row.get("frame_index"), own_id


def _whole_photos(tables: Iterable[pa.Table], scalars: list[str]) -> Iterator[pa.Table]:
    """Yield the rows of tables, cut between photos."""
    kept: pa.Table | None = None
    for table in tables:
        rows = table if kept is None else pa.concat_tables([kept, table])
        photos = [_photo_of(row) for row in rows.select(scalars).to_pylist()]
        start = next((k for k in range(len(photos) - 1, 0, -1) if photos[k - 1] != photos[-1]), 0)
        if start:
            yield rows.slice(0, start)
        kept = rows.slice(start)
    if kept is not None:
        yield kept


def write(
    kind: str,
    labels: LabelsToExport,
    batches: Iterator[pa.Table],
    out: str,
    colour: str = "texture",
    by_photo: bool = False,
) -> Exported:
    """Write one file per hand and per sample read, or per photo."""
    exported = Exported()
    faces = labels.need_meshes("a mesh file")
    if faces.size and faces.max() >= labels.vertex_count:
        raise UserError(
            f"faces.parquet of '{labels.place}' is from another hand model: it names vertices that do not exist"
        )
    first = next(batches)
    out = str(local_path(out).absolute()) if is_local(out) else out
    scalars = labels.present(*_SCALARS)
    files = _MeshFiles(kind, out, faces, scalars, _painter(first, colour, exported), by_photo)
    tables: Iterable[pa.Table] = chain([first], batches)
    if by_photo:
        tables = _whole_photos(tables, scalars)
    for count in labels.spread(_MeshFiles.write, files, _named(tables, scalars)):
        exported.hands += count
    return exported


def _named(tables: Iterable[pa.Table], scalars: list[str]) -> Iterator[tuple[pa.Table, list[str]]]:
    """Yield tables with the names of their hands: repeated photos are counted over all tables."""
    names = HandNames()
    for table in tables:
        yield table, [names.of(*_identity(row)) for row in table.select(scalars).to_pylist()]


def _identity(row: dict[str, Any]) -> tuple[str, str, int, bool]:
    return row["image_id"], row["image_uri"], row["hand_index"], bool(row.get("duplicate"))


def _meshes(
    table: pa.Table,
    rows: list[dict[str, Any]],
    faces: NDArray[np.int64],
    paint: _Paint,
) -> Iterator[dict[str, Mesh]]:
    """Yield each hand's meshes by the ending of their file names: "", and "-sample00", ... if samples were read."""
    vertices_m = array_of(table["vertices_mm"])[:, None] * (FROM_CAMERA / 1000)
    if _SAMPLES in table.column_names:
        drawn_m = array_of(table[_SAMPLES]) * (FROM_CAMERA / 1000)
        vertices_m = np.concatenate([vertices_m, drawn_m], 1)
    wrists_m = camera_field(table, "cam_t_mm") * (FROM_CAMERA / 1000)
    for row, vertices, rgb, wrist in zip(rows, vertices_m, paint(table), wrists_m, strict=True):
        facts = {name: row[name] for name in ("image_id", "image_uri", "hand_index", "is_right")}
        if np.isfinite(wrist).all():
            facts["wrist_m"] = [round(float(v), 6) for v in wrist]
        # A left hand is a mirrored right one: reverse its triangles, so that they still face outwards.
        outwards = faces if row["is_right"] else faces[:, ::-1]
        yield {
            f"-sample{k - 1:02d}" if k else "": Mesh(
                mesh_m, outwards, rgb, facts | ({"sample": k - 1} if k else {})
            )
            for k, mesh_m in enumerate(vertices)
        }


@dataclass(frozen=True)
class _Paint:
    """Colours of hands (n, V, 3): their texture, or with a range in mm their std."""

    std_range_mm: tuple[float, float] | None = None

    def __call__(self, table: pa.Table) -> NDArray[np.uint8]:
        return _colours_of_std(table, *self.std_range_mm) if self.std_range_mm else _textures(table)


def _painter(first: pa.Table, colour: str, exported: Exported) -> _Paint:
    if _COLOUR_COLUMN[colour] not in first.column_names:
        raise UserError(f"column '{_COLOUR_COLUMN[colour]}' is missing: choose another colour")
    if colour == "texture":
        if first["vertex_rgb"].null_count:
            exported.notes.append("hands without a texture have one colour")
        return _Paint()
    from annotator.render.std_colours import std_range  # its package imports torch

    low, high = std_range(_std_lengths(first))
    exported.notes.append(f"blue: std of {low:.1f} mm and less; red: {high:.1f} mm and more")
    return _Paint((low, high))


def _textures(table: pa.Table) -> NDArray[np.uint8]:
    rgb = array_of(table["vertex_rgb"]).astype(np.uint8)
    rgb[table["vertex_rgb"].is_null().to_numpy()] = SKIN
    return rgb


def _std_lengths(table: pa.Table) -> NDArray[np.floating]:
    """Return the length of each vertex's std (n, V), millimetres."""
    lengths: NDArray[np.floating] = np.linalg.norm(array_of(table["vertices_std_mm"]), axis=-1)
    return lengths


def _colours_of_std(table: pa.Table, low_mm: float, high_mm: float) -> NDArray[np.uint8]:
    from annotator.render.std_colours import std_colours  # its package imports torch

    colours: NDArray[np.uint8] = (
        (std_colours(_std_lengths(table), low_mm, high_mm) * 255).round().astype(np.uint8)
    )
    return colours
