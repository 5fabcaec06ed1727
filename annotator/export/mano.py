"""MANO's parameters as npz files: pose, shape and position of each hand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport, camera_field
from annotator.labels.arrays import array_of
from annotator.storage.files import atomic_file, join

#: Hands per file: 35 MB.
PART_HANDS = 100_000

_NEEDED = ("image_id", "hand_index", "is_right", "pose", "betas", "camera")


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        UserError: the labels are not of MANO.
    """
    if labels.hand is None:
        raise UserError(
            f"'{labels.place}' has no hand model, so there are no MANO parameters: give a label "
            "set of `amvur annotate`"
        )
    if not labels.hand.startswith("mano-"):
        raise UserError(
            f"'{labels.place}' has hand model {labels.hand}, whose pose and shape are not MANO's: label with "
            "a checkpoint trained with --hand mano:PATH"
        )
    return list(_NEEDED)


def write(labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write `mano-000000.npz` and so on: metres, radians; `pose` and `betas` are always those of a right hand."""
    exported = Exported()
    waiting: dict[str, list[NDArray[Any]]] = defaultdict(list)
    parts = held = 0

    def put() -> None:
        nonlocal parts, held
        arrays: dict[str, Any] = {
            name: np.concatenate(values)[:PART_HANDS] for name, values in waiting.items()
        }
        rest = {name: np.concatenate(values)[PART_HANDS:] for name, values in waiting.items()}
        with atomic_file(join(out, f"mano-{parts:06d}.npz")) as file:
            np.savez(file, **arrays)
        parts, held = parts + 1, max(held - PART_HANDS, 0)
        waiting.clear()
        waiting.update({name: [values] for name, values in rest.items()})

    for table in batches:
        posed = table.filter(table["pose"].combine_chunks().is_valid())
        if lost := len(table) - len(posed):
            exported.left_out["without pose and betas, because the network has no prior-net"] += lost
        for name, values in _parameters(posed).items():
            waiting[name].append(values)
        held += len(posed)
        exported.hands += len(posed)
        if held >= PART_HANDS:
            put()
    if held:
        put()
    return exported


def _parameters(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Return the arrays of an npz file, one row per hand."""
    return {
        "pose": array_of(table["pose"]),
        "betas": array_of(table["betas"]),
        "cam_t": camera_field(table, "cam_t_mm") / np.float32(1000),
        "is_right": np.array(table["is_right"].to_pylist(), bool),
        "focal_px": camera_field(table, "focal_px"),
        "principal_px": camera_field(table, "principal_px"),
        "image_id": np.array(table["image_id"].to_pylist(), np.str_),
        "hand_index": array_of(table["hand_index"]).astype(np.int64),
    }
