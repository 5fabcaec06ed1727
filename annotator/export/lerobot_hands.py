"""The numbers of a LeRobot frame: both hands of a sequence, side by side, in camera axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_rotvec
from annotator.export.exported import Exported
from annotator.export.exported_labels import camera_field
from annotator.export.skeleton import has_skeleton
from annotator.export.tracks import TrackedSequence
from annotator.hand.joint_angles import joint_angles_deg
from annotator.hand.model import ANGLE_NAMES, JOINT_NAMES, MOVING_ANGLES, HandModel
from annotator.hand.refit import refit_pose
from annotator.labels.arrays import array_of

Floats = NDArray[np.floating]

#: Columns that the numbers are made of.
COLUMNS = ("pose", "betas", "camera", "joints3d_mm", "joints3d_std_mm")

SIDES = ("right", "left")
_TIPS = [k for k, name in enumerate(JOINT_NAMES) if name.endswith("tip")]
_WRIST = ("x_m", "y_m", "z_m", "qx", "qy", "qz", "qw")


def _names(*parts: str) -> list[str]:
    return [f"{side}_{part}" for side in SIDES for part in parts]


def _axes(joints: list[str], unit: str) -> list[str]:
    return _names(*(f"{joint}_{axis}_{unit}" for joint in joints for axis in "xyz"))


#: Features by key: type, and a name for each number.
FEATURES: dict[str, tuple[str, list[str]]] = {
    "observation.state": (
        "float32",
        _names(*(f"wrist_{part}" for part in _WRIST), *(f"{ANGLE_NAMES[k]}_rad" for k in MOVING_ANGLES)),
    ),
    "observation.fingertips": ("float32", _axes([JOINT_NAMES[k] for k in _TIPS], "m")),
    "observation.joints": ("float32", _axes(list(JOINT_NAMES), "m")),
    "observation.joints_std": ("float32", _axes(list(JOINT_NAMES), "std_m")),
    "observation.valid": ("bool", list(SIDES)),
    "observation.interpolated": ("bool", list(SIDES)),
    "observation.track_id": ("int64", list(SIDES)),
    "observation.intrinsics": ("float32", ["fx_px", "fy_px", "cx_px", "cy_px"]),
    "observation.source_time_s": ("float64", ["s"]),
}

#: Features whose numbers belong to a hand each, right then left; unknown where that hand is not there.
OF_SIDES = ("observation.state", "observation.fingertips", "observation.joints", "observation.joints_std")


@dataclass(frozen=True, eq=False)
class Frames:
    """The frames of a sequence that show at least one tracked hand."""

    time_s: Floats  # (F,) increasing
    valid: NDArray[np.bool_]  # (F, 2) right, left
    values: dict[str, NDArray[Any]]  # feature -> (F, n); 0 where a hand is not there
    addresses: list[tuple[str, int | None]]  # (F) uri and frame of each photo
    sizes: list[tuple[int, int]]  # (F) width and height of each photo

    def __len__(self) -> int:
        return len(self.time_s)


def frames_of(model: HandModel, sequence: TrackedSequence, exported: Exported) -> Frames:
    """Return the frames of a sequence, with one hand per side; count the hands left out.

    Where several tracks of one side share a frame, as with two people, only the longest is kept.
    """
    is_complete = has_skeleton(sequence.rows)
    if lost := int((~is_complete).sum()):
        exported.left_out["hand without pose, betas or position"] += lost
    numbers, frame = np.unique(sequence.frame, return_inverse=True)
    rows = _rows_of_frames(sequence, is_complete, frame, len(numbers))
    kept = rows.max(1) >= 0
    rows = rows[kept]
    valid = rows >= 0
    placed = int(valid.sum())
    exported.hands += placed
    if beside := int(is_complete.sum()) - placed:
        exported.left_out["hand of a shorter track of the same side"] += beside
    first = np.where(valid[:, 0], rows[:, 0], rows[:, 1])
    table = sequence.rows
    addresses = table.select(["image_uri", "frame_index", "width", "height"]).take(first).to_pylist()
    return Frames(
        time_s=sequence.time_s[first],
        valid=valid,
        values=_values(model, table, sequence.time_s, rows, first),
        addresses=[(row["image_uri"], row["frame_index"]) for row in addresses],
        sizes=[(row["width"], row["height"]) for row in addresses],
    )


def _rows_of_frames(
    sequence: TrackedSequence, is_complete: NDArray[np.bool_], frame: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """Return the row (F, 2) of each frame's right and left hand, -1 where there is none."""
    rows = np.full((count, 2), -1)
    tracks = sorted(sequence.tracks(), key=lambda track: (-len(track.own), track.track_id))
    for track in tracks:
        own = track.own[is_complete[track.own]]
        side = 0 if track.is_right else 1
        free = own[rows[frame[own], side] < 0]
        rows[frame[free], side] = free
    return rows


def _values(
    model: HandModel, table: pa.Table, time_s: Floats, rows: NDArray[np.int64], first: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    valid = rows >= 0
    wrist_m = camera_field(table, "cam_t_mm").astype(np.float64) / 1000
    joints_m = array_of(table["joints3d_mm"]) / 1000 + wrist_m[:, None]
    of_hands = {
        "observation.state": _state(model, table, wrist_m, rows),
        "observation.fingertips": joints_m[:, _TIPS],
        "observation.joints": joints_m,
        "observation.joints_std": array_of(table["joints3d_std_mm"]) / 1000,
    }
    values: dict[str, NDArray[Any]] = {}
    for key, numbers in of_hands.items():
        flat = numbers.reshape(len(numbers), -1)[rows]
        values[key] = np.where(valid[..., None], flat, 0).reshape(len(rows), -1)
    source = np.array(table["source"].to_pylist(), object)
    focal, principal = camera_field(table, "focal_px")[first], camera_field(table, "principal_px")[first]
    values |= {
        "observation.valid": valid,
        "observation.interpolated": valid & (source[rows] == "interpolated"),
        "observation.track_id": np.where(valid, np.asarray(table["track_id"])[rows], -1),
        "observation.intrinsics": np.concatenate([focal[:, None], focal[:, None], principal], 1),
        "observation.source_time_s": time_s[first][:, None],
    }
    return {key: numbers.astype(FEATURES[key][0]) for key, numbers in values.items()}


def _state(model: HandModel, table: pa.Table, wrist_m: Floats, rows: NDArray[np.int64]) -> Floats:
    """Return each hand's wrist pose and joint angles (n, 27)."""
    is_right = np.array(table["is_right"].to_pylist(), bool)
    pose, betas, joints3d_mm = (array_of(table[name]) for name in ("pose", "betas", "joints3d_mm"))
    pose = refit_pose(model, pose, betas, joints3d_mm, is_right, np.asarray(table["track_id"]))
    rotvec = np.where(is_right[:, None], pose[:, :3], mirror_rotvec(pose[:, :3]))
    quaternions = Rotation.from_rotvec(np.nan_to_num(rotvec)).as_quat()
    for side in range(2):  # one sign along each side's frames
        own = rows[:, side][rows[:, side] >= 0]
        flips = np.where((quaternions[own[1:]] * quaternions[own[:-1]]).sum(-1) < 0, -1.0, 1.0)
        quaternions[own[1:]] *= np.cumprod(flips)[:, None]
    angles = np.radians(joint_angles_deg(model, pose)[:, list(MOVING_ANGLES)])
    return np.concatenate([wrist_m, quaternions, angles], 1)
