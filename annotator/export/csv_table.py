"""CSV: one row per hand, one named column per number, with the joint angles and without meshes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.hand import HandModel, load_hand
from annotator.hand.model import ANGLE_NAMES, JOINT_NAMES
from annotator.hand.refit import refit_pose
from annotator.labels.arrays import array_of
from annotator.labels.schema import SAMPLES_ROUNDING, label_schema
from annotator.storage.files import atomic_file

_MESH = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible", *SAMPLES_ROUNDING)

_AXES = ("x", "y", "z")
_CORNERS = ("x0", "y0", "x1", "y1")


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}_{k}" for k in range(count)]


def _joints(end: str, axes: int) -> list[str]:
    return [f"{joint}_{axis}_{end}" for joint in JOINT_NAMES for axis in _AXES[:axes]]


#: Columns of lists, with the names of their numbers.
_NAMES = {
    "box_xyxy": [f"box_{corner}" for corner in _CORNERS],
    "crop_xyxy": [f"crop_{corner}" for corner in _CORNERS],
    "joints3d_mm": _joints("mm", 3),
    "joints3d_std_mm": _joints("std_mm", 3),
    "joints2d_px": _joints("px", 2),
    "joints2d_std_px": _joints("std_px", 2),
    "joint_visible": [f"{joint}_visible" for joint in JOINT_NAMES],
    "joint_visible_score": [f"{joint}_visible_score" for joint in JOINT_NAMES],
    "landmark_depth_px": [f"{joint}_depth_px" for joint in JOINT_NAMES],
    "pose": _numbered("pose", 48),
    "betas": _numbered("beta", 10),
    "cam_t_std_mm": [f"cam_t_{axis}_std_mm" for axis in _AXES],
    "camera.rotation": [f"camera_rotation_{axis}" for axis in _AXES],
    "camera.translation": [f"camera_translation_{axis}" for axis in _AXES[:2]],
    "camera.cam_t_mm": [f"cam_t_{axis}_mm" for axis in _AXES],
    "camera.principal_px": [f"principal_{axis}_px" for axis in _AXES[:2]],
}
_RENAMED = {
    "camera.scale": "camera_scale",
    "camera.focal_px": "focal_px",
    "camera.focal_source": "focal_source",
}
#: Joint angles follow the pose that they are read from.
_ANGLES = [f"{name}_deg" for name in ANGLE_NAMES]
_OURS = {*itertools.chain(*_NAMES.values()), *_ANGLES, *_RENAMED.values(), *label_schema(1, samples=1).names}


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read."""
    return [name for name in labels.columns if name not in _MESH]


def write(labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write the file, batch by batch."""
    exported = Exported()
    model = _model_of_angles(labels, exported)
    with atomic_file(out) as file:
        writer: csv.CSVWriter | None = None
        for table in batches:
            flat = _flat(table, model)
            writer = writer or csv.CSVWriter(file, flat.schema)
            writer.write_table(flat)
            exported.hands += len(flat)
        if writer:
            writer.close()
    return exported


def _model_of_angles(labels: LabelsToExport, exported: Exported) -> HandModel | None:
    """Return the hand model whose axes the joint angles refer to; None without poses, or where its file is missing."""
    if labels.hand is None or "pose" not in labels.columns:
        return None
    if labels.given_hand is None and labels.hand != load_hand("open").id:
        exported.notes.append("joint angles are left out: they need the labels' hand model, --hand mano:PATH")
        return None
    return labels.hand_model()


def _flat(table: pa.Table, model: HandModel | None) -> pa.Table:
    flat: dict[str, Any] = {}
    own = {field.name for field in label_schema(1)}
    for name in table.column_names:
        column = table[name]
        if name not in own:  # from the list that was labelled
            flat[f"list_{name}" if name in _OURS else name] = _as_text(column)
        elif name == "camera":
            for field in column.type:
                flat |= _spread(f"camera.{field.name}", pc.struct_field(column, field.name))
        else:
            flat |= _spread(name, column)
            if name == "pose" and model is not None:
                flat |= _angles(model, table)
    return pa.table(flat)


def _angles(model: HandModel, table: pa.Table) -> dict[str, Any]:
    from annotator.hand.joint_angles import joint_angles_deg  # imports torch

    pose = array_of(table["pose"])
    if {"betas", "joints3d_mm", "is_right"} <= set(table.column_names):
        is_right = np.asarray(table["is_right"].fill_null(True))
        pose = refit_pose(model, pose, array_of(table["betas"]), array_of(table["joints3d_mm"]), is_right)
    degrees = joint_angles_deg(model, pose).astype(np.float32)
    null = ~table["pose"].is_valid().to_numpy()
    return {name: pa.array(np.ascontiguousarray(degrees[:, k]), mask=null) for k, name in enumerate(_ANGLES)}


def _spread(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    """Return the column, or one column per number of its lists."""
    if name not in _NAMES:
        return {_RENAMED.get(name, name): column}
    values = array_of(column).reshape(len(column), -1)
    null = ~column.is_valid().to_numpy()
    return {
        title: pa.array(np.ascontiguousarray(values[:, k]), mask=null) for k, title in enumerate(_NAMES[name])
    }


def _as_text(column: pa.ChunkedArray) -> Any:
    """Return a column for CSV: nested values and bytes as JSON, others unchanged."""
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        return pa.array(
            [None if value is None else json.dumps(value, default=str) for value in column.to_pylist()],
            pa.string(),
        )
    return column
