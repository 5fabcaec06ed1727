"""Convert labels of `annotate`, `detect` or `synth` to training examples, joined with their photos.

On request, squares beside all hands of a photo become examples without a hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError, first_line
from annotator.labels.arrays import array_of
from annotator.labels.folder import (
    RUN_FILE,
    calibration_of,
    check_hand_model,
    label_facts,
    label_files,
    opened_label_file,
)
from annotator.photos.crops import BOX_PADDING
from annotator.photos.errors import PhotoError
from annotator.quality.calibration import UNCALIBRATED_3D
from annotator.sources.fields import opened_file
from annotator.sources.lists.camera_columns import has_lens
from annotator.storage.files import join, read_if_exists
from trainer.convert.photos import photo_columns
from trainer.data.examples import NO_HAND

_NEEDED = ("image_uri", "image_id", "status", "is_right", "box_xyxy", "width", "height", "joints2d_px")

#: Rows per read, and size of the shuffle pool, which mixes rows even if each file holds one sequence.
_READ_ROWS = 256
_POOL = 2048

#: Side of the area free of hands around a square without a hand, over the side of its crop, because augmentation zooms
#: out and shifts. Rotated by 45 degrees, its corners may still show part of a hand.
_WIDEST = 1.3

#: Largest relative difference of a listed focal length from the label's that counts as none: half of that between two
#: which are one (`Lens.is_plain`).
_EQUAL = 5e-4


@dataclass(frozen=True)
class LabelTables:
    """Label files of one hand model, and the candidate folders of their photos."""

    files: list[str]
    folders: list[str]
    hand: str | None  # id; None without meshes
    vertex_count: int
    std_note: str = ""  # a warning about the labels' std; empty without one
    masks: str | None = None  # a folder of PNGs, by the photo's name
    empty: float = 0.0  # share of photos that also give a square without a hand


def label_tables(labels: str, images: str | None = None, empty: float = 0.0) -> LabelTables:
    """Open a label set. Photos are searched at the labels' paths, below the labelled folder, or below `images`.

    Raises:
        UserError: labels are missing or incomplete.
    """
    files = sorted(label_files(labels))
    if not files:
        raise UserError(f"'{labels}' holds no labels (data/*.parquet): give a label set")
    tables = _tables([join(labels, "data", file) for file in files], images or _labelled_folder(labels))
    return replace(tables, empty=empty)


def synthetic_tables(out: str) -> LabelTables:
    """Open an output folder of `amvur synth`.

    Raises:
        UserError: the folder has no truth.parquet.
    """
    return replace(_tables([join(out, "truth.parquet")], out), masks=join(out, "masks"))


def label_rows(tables: LabelTables, chance: np.random.Generator) -> Iterator[dict[str, Any] | str]:
    """Yield the rows of examples without their photos, shuffled, or the reason why one is left out.

    Left hands stay as in labels: photo and points unmirrored, pose and betas of the mirrored right hand.
    """
    waiting: list[dict[str, Any]] = []
    for row in _with_empty(_rows(tables, chance), tables.empty, chance):
        if row["status"] != "ok" and row["box_xyxy"] is None:
            yield str(row["status"])
        elif row["status"] == "ok" and row["is_right"] is None:
            yield "unknown side"
        else:
            waiting.append(row)
            if len(waiting) > _POOL:
                drawn = int(chance.integers(len(waiting)))
                waiting[drawn], waiting[-1] = waiting[-1], waiting[drawn]
                yield waiting.pop()
    for drawn in chance.permutation(len(waiting)).tolist():
        yield waiting[drawn]


def _with_empty(
    rows: Iterator[dict[str, Any]], share: float, chance: np.random.Generator
) -> Iterator[dict[str, Any]]:
    """Yield all rows, and for some photos one more row with a square beside the hands.

    The rows of a photo are consecutive. A row without a hand has no box; a row of a square has one.
    """
    for _, hands in groupby(rows, key=lambda row: (row["image_uri"], row.get("frame_index"))):
        of_photo = list(hands)
        # A photo without a detection may still show a hand.
        known = all(row["status"] == "ok" for row in of_photo)
        yield from of_photo
        if share and known and chance.random() < share:
            square = _square_beside(of_photo, chance)
            if square is not None:
                kept = {name: of_photo[0][name] for name in ("image_uri", "image_id", "width", "height")}
                yield kept | {"status": NO_HAND, "hand_index": -1, "box_xyxy": square, "box_source": "list"}


def _square_beside(hands: list[dict[str, Any]], chance: np.random.Generator) -> NDArray[np.float64] | None:
    """Return a box in the photo whose enlarged crop overlaps no hand's box; None after 30 failed attempts."""
    boxes = np.stack([row["box_xyxy"] for row in hands])
    size = np.array([hands[0]["width"], hands[0]["height"]], np.float64)
    for _ in range(30):
        half = size.min() / 2 * chance.uniform(0.12, 0.6)
        centre = chance.uniform(half, size - half)
        low, high = centre - half * BOX_PADDING * _WIDEST, centre + half * BOX_PADDING * _WIDEST
        if ((boxes[:, :2] >= high).any(1) | (boxes[:, 2:] <= low).any(1)).all():
            return np.concatenate([centre - half, centre + half])
    return None


def label_example(tables: LabelTables, row: dict[str, Any]) -> dict[str, Any] | str:
    """Join a row with its photo, or return the reason why this fails."""
    uri, frame_index = row["image_uri"] or "", row.get("frame_index")
    name = (row["image_id"] or "").removesuffix(f"#{frame_index}")
    is_absolute = uri.startswith("/") or "://" in uri
    below = [name] if is_absolute else [name, uri]
    places = [join(folder, part) for folder in tables.folders for part in below if part] + [uri] * is_absolute
    reason = "missing"
    for place in places:
        try:
            photo = photo_columns(place, frame_index)
        except PhotoError as error:
            reason = error.reason if error.reason != "missing" else reason
            continue
        if (photo["width"], photo["height"]) != (row["width"], row["height"]):
            return "photo size differs from the labels"
        if row.get("vertices_mm") is None:
            # A detector's 3D joints have the size of its typical hand: an estimate, not truth.
            row = row | {"joints3d_mm": None, "guess3d_mm": row.get("joints3d_mm")}
        if tables.masks:
            photo["hand_mask"] = read_if_exists(join(tables.masks, f"{name.rsplit('.', 1)[0]}.png"))
        return row | photo
    return f"photo {reason}"


def _rows(tables: LabelTables, chance: np.random.Generator) -> Iterator[dict[str, Any]]:
    for number in chance.permutation(len(tables.files)).tolist():
        path = tables.files[number]
        with opened_file(path) as file:
            try:
                for batch in pq.ParquetFile(file).iter_batches(_READ_ROWS):
                    columns = {name: _values(batch.column(name)) for name in batch.schema.names}
                    for row in range(batch.num_rows):
                        yield {name: values[row] for name, values in columns.items()}
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{path}: damaged: {first_line(error)}") from None


def _values(column: pa.Array) -> list[Any]:
    """Return a column's values; copy nested fixed-size lists, so that no row keeps its file in memory."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_pylist()
    valid = column.is_valid().to_pylist()
    return [row.copy() if is_valid else None for row, is_valid in zip(array_of(column), valid, strict=True)]


def _tables(files: list[str], folder: str | None) -> LabelTables:
    """Check the columns of every file, and that all have the same hand model."""
    hand, vertex_count, std_note = None, 1, ""
    for number, path in enumerate(files):
        try:
            with opened_label_file(path) as file:
                schema = file.schema_arrow
        except FileNotFoundError:
            raise UserError(f"'{path}' does not exist: give an output folder of `amvur synth`") from None
        facts = label_facts(path, schema)
        for name in _NEEDED:
            if name not in schema.names:
                raise UserError(f"{path}: {name}: missing column; these are not labels")
        if has_lens(schema.names):
            raise UserError(
                f"{path}: these labels are of cameras with distortion: undistort and label the photos"
            )
        if {"fx", "fy", "camera"} <= set(schema.names):
            _check_focal_lengths(path)
        for name in ("joints2d_px", "box_xyxy", "vertices_mm"):
            if name in schema.names and not pa.types.is_fixed_size_list(schema.field(name).type):
                raise UserError(
                    f"{path}: {name}: not a fixed-size list; keep the column types when you filter labels"
                )
        if number == 0:
            hand = facts.get("hand")
        check_hand_model(path, facts, hand)
        vertex_count = schema.field("vertices_mm").type.list_size if "vertices_mm" in schema.names else 1
        std_note = std_note or _of_std(path, facts)
    return LabelTables(files, [folder] if folder else [], hand, vertex_count, std_note)


def _check_focal_lengths(path: str) -> None:
    """Check that no photo's pixels have another focal length across than down.

    A label has one focal length: that of both, or their mean. Oblong pixels were stretched to squares along one axis,
    and then it is that of the other.

    Raises:
        UserError: a focal length differs.
    """
    with opened_label_file(path) as file:
        table = file.read(["image_id", "fx", "fy", "camera"])
    camera = table["camera"].combine_chunks()
    given = np.asarray(camera.field("focal_source").to_pylist()) == "given"
    focal_px = _numbers(camera.field("focal_px"))
    fx, fy = (_numbers(table[name]) for name in ("fx", "fy"))
    is_one = [np.abs(listed / focal_px - 1) <= _EQUAL for listed in (fx, fy)]
    other = np.flatnonzero(given & np.isfinite(fx + fy + focal_px) & ~np.logical_or(*is_one))
    if len(other):
        row = int(other[0])
        raise UserError(
            f"{path}: '{table['image_id'][row].as_py()}': fx is {fx[row]:g} and fy is {fy[row]:g}: resize photos of "
            "cameras with two focal lengths, and label them"
        )


def _numbers(column: Any) -> NDArray[np.float64]:
    """Return a column as numbers, NaN where empty; from a CSV file it is text."""
    return np.array([float(value) if value not in (None, "") else np.nan for value in column.to_pylist()])


def _of_std(path: str, facts: dict[str, Any]) -> str:
    if facts.get("std_is_constant"):
        return "their std is one constant, which weighs all labels the same"
    calibration = calibration_of(path, facts)
    if "calibration" in facts and not calibration.fitted_on:
        return "their std is not calibrated, so weights are not in millimetres: see `amvur calibrate`"
    if calibration.fitted_on and not calibration.measures_3d:
        return f"their std is calibrated in 2D only, on {calibration.fitted_on}: {UNCALIBRATED_3D}"
    return ""


def _labelled_folder(labels: str) -> str | None:
    """Return the source path of the labelling run."""
    try:
        return str(json.loads(read_if_exists(join(labels, RUN_FILE)) or b"")["settings"]["source"])
    except (ValueError, KeyError, TypeError):
        return None  # paths in the rows may still be valid
