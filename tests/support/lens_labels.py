"""Labels of a moving hand that a network would predict behind a lens, or before a pinhole: no network is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import roma
import torch
from scipy.spatial.transform import Rotation

from annotator.labels.crop_hands import CropHands, crop_axes, label_columns
from annotator.labels.schema import label_schema, labels_to_table, without_hand
from annotator.lens import Lens
from annotator.photos.camera import PhotoCamera
from annotator.photos.crops import crop_photo
from annotator.photos.view import View
from annotator.sources.sequences import ADDED
from annotator.track.sequence import track_sequence
from annotator.track.vertex_columns import VERTEX_COLUMNS, VertexRows
from tests.support.moving_labels import HAND, LAYER
from tests.support.opencv_lens import by_opencv

SIDE_PX = 1000
FRAMES = 30
#: Frames in which the detector finds no hand.
MISSING = (11, 12)
COLUMNS = {"sequence": pa.string(), "frame": pa.int32(), "fx": pa.float64(), "fy": pa.float64()}
COLUMNS |= {"cx": pa.float64(), "cy": pa.float64(), "camera_model": pa.string(), "distortion": pa.string()}


def view_from_photo(view: View, points_px: np.ndarray) -> np.ndarray:
    """Convert photo pixels (..., 2) to points of a view's square (..., 2)."""
    rays = view.lens.rays(points_px) @ view.axes
    return rays[..., :2] / rays[..., 2:] / view.half_tan


def listed(lens: Lens) -> dict[str, Any]:
    """The columns of a list."""
    return {
        **{name: getattr(lens, name) for name in ("fx", "fy", "cx", "cy")},
        "camera_model": lens.model,
        "distortion": str(list(lens.distortion)) if lens.distortion else None,
    }


def true_hands(most_deg: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A moving right hand that crosses the photo: pose (T, 48), joints (T, 21, 3) and wrists (T, 3)."""
    number = np.arange(FRAMES)
    rng = np.random.default_rng(4)
    pose = 0.2 * np.sin(rng.uniform(0.04, 0.1, 48) * number[:, None] + rng.uniform(0, 6, 48))
    pose[:, 3:] += HAND.hands_mean
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(pose).float().view(-1, 16, 3))
    _, joints = LAYER(rotations, torch.zeros(FRAMES, 10))
    angle = np.radians(np.linspace(-most_deg, most_deg, FRAMES))
    away = 420 + 80 * np.sin(0.15 * number)
    wrists = away[:, None] * np.stack([np.sin(angle), 0.2 * np.cos(angle), np.cos(angle)], 1)
    return pose, joints.numpy().astype(np.float64), wrists


def table_of(
    pose: np.ndarray,
    joints: np.ndarray,
    wrists: np.ndarray,
    lens: Lens,
    *,
    missing: tuple[int, ...] = MISSING,
    length_mm: float | None = None,
) -> pa.Table:
    """Labels of a network that sees these hands in each frame's view, in pose with errors, else without.

    A plain lens is a pinhole to the labels too. `length_mm` is a given length.
    """
    rng = np.random.default_rng(0)
    noisy = pose + 0.03 * rng.normal(size=pose.shape)
    rows, parts, indices = [], [], []
    for k in range(len(pose)):
        row = {"image_uri": f"{k}.jpg", "image_id": f"{k}", "duplicate": False, "width": SIDE_PX, "frame": k}
        row |= {"height": SIDE_PX, "sequence": "one", "hand_index": -1} | listed(lens)
        if k in missing:
            rows.append(row | without_hand("no_hand_found", "no hand"))
            continue
        indices.append(len(rows))
        rows.append(row | {"status": "ok", "hand_index": 0, "side_score": 0.9, "checkpoint": "net"})
        seen = by_opencv(joints[k] + wrists[k], lens)
        crop = crop_photo(
            *(np.zeros((8, 8, 3), np.uint8), SIDE_PX, SIDE_PX, 8, [*seen.min(0), *seen.max(0)]),
            hand_length_mm=length_mm,
            camera=PhotoCamera(
                *((lens.fx + lens.fy) / 2, (lens.cx, lens.cy), "given", None if lens.is_plain else lens)
            ),
        )
        axes = crop_axes(crop)[0].astype(np.float64)
        rotated = Rotation.from_matrix(axes.T) * Rotation.from_rotvec(noisy[k, :3])
        own = np.concatenate([rotated.as_rotvec(), noisy[k, 3:]])
        rotations = roma.rotvec_to_rotmat(torch.from_numpy(own).float().view(1, 16, 3))
        vertices, in_view = (one.numpy() for one in LAYER(rotations, torch.zeros(1, 10)))
        # The best weak-perspective camera of the true picture.
        true = joints[k] @ axes
        half, centre = crop.half_side_px[0], crop.centre_px[0]
        plane = (seen - centre) / half if lens.is_plain else view_from_photo(crop.view[0], seen)
        flat, at = true[:, :2] - true[:, :2].mean(0), plane - plane.mean(0)
        scale = (flat * at).sum() / (flat**2).sum()
        position = plane.mean(0) - scale * true[:, :2].mean(0)
        points = scale * in_view[0, :, :2] + position
        std = np.full((1, 21, 3), 5.0)
        std[:, 0] = 0
        hand = CropHands(
            is_right=np.array([True]),
            joints3d_mm=in_view,
            joints3d_std_mm=std,
            joints2d_px=(points * half + centre)[None],
            joints2d_std_px=np.full((1, 21, 2), 3.0),
            vertices_mm=vertices,
            vertices_std_mm=np.full(vertices.shape, 5.0),
            visible=np.ones(vertices.shape[:2], bool),
            scale_per_mm=np.array([scale]),
            rotvec=np.zeros((1, 3)),
            translation=position[None],
            pose=own[None],
            betas=np.zeros((1, 10)),
        )
        parts.append(label_columns(hand, crop))
    hands = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return labels_to_table(rows, hands, indices, label_schema(HAND.vertex_count, None, COLUMNS))


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _joined([value[name] for value in values]) for name in values[0]}
    return np.concatenate(values)


def tracked_rows(table: pa.Table, max_gap: int = 5) -> list[dict[str, Any]]:
    made = track_sequence(
        table.drop(list(VERTEX_COLUMNS)), VertexRows([table], HAND.vertex_count), LAYER, max_gap
    )
    own = {
        name: table.schema.field(name).type
        for name in table.column_names
        if name in COLUMNS or name == "time_s"
    }
    schema = label_schema(HAND.vertex_count, None, own | ADDED)
    return pa.concat_tables(made.tables(schema)).to_pylist()


def columns_of(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {
        "joints3d_mm": np.array([row["joints3d_mm"] for row in rows]),
        "cam_t_mm": np.array([row["camera"]["cam_t_mm"] for row in rows]),
    }
