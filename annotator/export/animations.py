"""One animated file per track: `bvh`, or `glb` with the mesh."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.export.animated_glb import animated_glb_bytes
from annotator.export.bvh import bvh_bytes
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.export.meshes import SKIN
from annotator.export.output_paths import track_name
from annotator.export.skeleton import COLUMNS, Skeleton, has_skeleton, joint_distances_mm, skeleton_of
from annotator.export.tracks import Track, columns_to_read, sequences
from annotator.hand.model import HandModel
from annotator.labels.arrays import array_of
from annotator.storage.files import join, write_atomic


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        UserError: the labels hold no tracks or poses, or are of another hand model than the given one.
    """
    labels.hand_model()
    return columns_to_read(labels, "an animated file", *COLUMNS)


def columns_with_colours(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read, with those of the texture."""
    return [*columns(labels), *labels.present("vertex_rgb", "visible_fraction")]


def write(kind: str, labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write a file per track; `kind` is `bvh` or `glb`."""
    exported = Exported()
    model = labels.hand_model()
    count, apart_mm = 0, 0.0
    for sequence in sequences(labels, batches, exported):
        for track in sequence.tracks():
            track = _complete_frames(track, exported)
            if not len(track.own):
                continue
            skeleton = skeleton_of(model, track)
            file = bvh_bytes(skeleton) if kind == "bvh" else _glb(skeleton, model, track)
            write_atomic(join(out, f"{track_name(sequence.name, track.track_id)}.{kind}"), file)
            exported.hands += len(skeleton)
            count += 1
            apart_mm += float(joint_distances_mm(skeleton, track).mean(1).sum())
    if count:
        exported.notes.append(
            f"{count} tracks; joints of the skeleton lie {apart_mm / exported.hands:.1f} mm from joints3d_mm on average"
        )
    return exported


def _complete_frames(track: Track, exported: Exported) -> Track:
    is_complete = has_skeleton(track.rows)
    if lost := int((~is_complete).sum()):
        exported.left_out["frame without pose, betas or position"] += lost
    return Track(track.sequence, track.track_id, track.own[is_complete])


def _glb(skeleton: Skeleton, model: HandModel, track: Track) -> bytes:
    extras = {
        "sequence": track.sequence.name,
        "track_id": track.track_id,
        "is_right": track.is_right,
        "start_time_s": round(float(track.time_s[0]), 6),
    }
    return animated_glb_bytes(skeleton, model, track.is_right, _colours(track, model.vertex_count), extras)


def _colours(track: Track, vertex_count: int) -> NDArray[np.uint8]:
    """Return the texture (V, 3) of the frame that shows most of the hand."""
    rows = track.rows
    if "vertex_rgb" not in rows.column_names or rows["vertex_rgb"].null_count == len(rows):
        return np.tile(SKIN, (vertex_count, 1))
    rows = rows.filter(rows["vertex_rgb"].is_valid())
    shown = np.nan_to_num(array_of(rows["visible_fraction"]))
    best = int(shown.argmax())
    rgb: NDArray[np.uint8] = array_of(rows["vertex_rgb"].slice(best, 1))[0].astype(np.uint8)
    return rgb
