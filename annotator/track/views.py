"""The lenses through which a sequence's hands were labelled, from the list's columns that passed into the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.lens import Lens
from annotator.photos.view import View, view_of_square
from annotator.sources.entry import Camera
from annotator.sources.lists.camera_columns import camera_names, listed_camera
from annotator.sources.lists.values import finite_number

Floats = NDArray[np.floating]

#: Largest relative difference between two focal lengths that count as one: labels have 32 bits.
_EQUAL = 1e-4


def views_of(table: pa.Table, columns: Mapping[str, Any]) -> NDArray[np.object_]:
    """Return the view (n,) in which each hand of a table was labelled; None where its photo is a pinhole camera's.

    Args:
        table: of n labelled hands. columns: the same as arrays (`columns.columns_of_hands`).

    Raises:
        UserError: the lens can't be told from the columns.
    """
    views = np.full(len(table), None)
    names = camera_names([name for name in table.column_names if name != "camera"], "labels")
    if not names:
        return views
    camera, crops = columns["camera"], columns["crop_xyxy"].astype(np.float64)
    lenses: dict[tuple[Any, ...], Lens | None] = {}  # one object per camera: it holds a table
    rows = table.select(list(names)).to_pylist()
    for k, row in enumerate(rows):
        if camera["focal_source"][k] != "given":  # a fit does not read these columns
            continue
        listed = listed_camera(row, names, finite_number)
        if listed is None:
            continue
        focal_px, principal_px = float(camera["focal_px"][k]), camera["principal_px"][k].astype(np.float64)
        key = (listed, focal_px, *principal_px.tolist())
        if key not in lenses:
            lenses[key] = _lens(listed, focal_px, principal_px, table["image_id"][k].as_py())
        lens = lenses[key]
        if lens is not None:
            low, high = crops[k, :2], crops[k, 2:]
            views[k] = view_of_square(lens, (low + high) / 2, float(high[0] - low[0]) / 2)
    return views


def _lens(listed: Camera, focal_px: float, principal_px: Floats, image_id: str) -> Lens | None:
    """Return the lens of a photo whose label has this focal length and principal point."""
    # Photos with oblong pixels were stretched: then listed numbers are of the file, and those of labels are not.
    cx, cy = (float(value) for value in principal_px)
    across, down = cx / listed.cx if listed.cx else 1.0, cy / listed.cy if listed.cy else 1.0
    lens = Lens(listed.fx * across, (listed.fy or listed.fx) * down, cx, cy, listed.model, listed.distortion)
    if lens.is_plain:
        return None
    if abs((lens.fx + lens.fy) / 2 / focal_px - 1) > _EQUAL:
        raise UserError(
            f"'{image_id}': its pixels are not square: add cx and cy to the list beside fx and fy, and label it again"
        )
    return lens


def are_usable(views: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Return which views (n,) are known, or not needed."""
    return np.array([view is None or bool(np.isfinite(_numbers(view)).all()) for view in views], bool)


def _numbers(view: View) -> Floats:
    return np.append(view.axes, view.half_tan)
