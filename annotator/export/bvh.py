"""BVH: the skeleton of a hand and its motion, at a constant frame rate, in centimetres and degrees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Slerp

from annotator.export.skeleton import NAMES, Skeleton
from annotator.track.frames import ASSUMED_RATE_HZ

Floats = NDArray[np.floating]

_CM = 100.0

#: Rotations by name in the order that they apply, innermost last: R = Rz Rx Ry.
_ORDER = "ZXY"
_ROTATIONS = " ".join(f"{axis}rotation" for axis in _ORDER)


def bvh_bytes(skeleton: Skeleton) -> bytes:
    """Return a file with y up and the camera at the origin; frames that the track lacks are interpolated."""
    time_s, step_s = _even_times(skeleton.time_s)
    wrist_cm = _CM * np.stack([np.interp(time_s, skeleton.time_s, part) for part in skeleton.wrist_m.T], 1)
    rotations = [_angles_deg(skeleton, joint, time_s) for joint in _depth_first(skeleton.parents)]
    lines = ["HIERARCHY", *_joint(skeleton, 0, ""), "MOTION", f"Frames: {len(time_s)}"]
    lines.append(f"Frame Time: {step_s:.7f}")
    motion = np.concatenate([wrist_cm, *rotations], 1)
    lines += [" ".join(f"{value:.5f}" for value in frame) for frame in motion]
    return ("\n".join(lines) + "\n").encode()


def _even_times(time_s: Floats) -> tuple[Floats, float]:
    """Return times (N,) with one step from the first frame to the last, and the step, the usual one of the frames."""
    if len(time_s) == 1:
        return time_s, 1 / ASSUMED_RATE_HZ
    usual = float(np.median(np.diff(time_s)))
    span = float(time_s[-1] - time_s[0])
    count = round(span / usual)
    return np.linspace(time_s[0], time_s[-1], count + 1), span / count


def _depth_first(parents: NDArray[np.int64], joint: int = 0) -> list[int]:
    """Return the articulated joints in the order of their channels."""
    children = [k for k in range(16) if parents[k] == joint]
    return [joint, *(one for child in children for one in _depth_first(parents, child))]


def _angles_deg(skeleton: Skeleton, joint: int, time_s: Floats) -> Floats:
    """Return a joint's angles (N, 3) in the order of the channels, without jumps of 360 degrees."""
    own = skeleton.rotations[joint::16]
    if len(skeleton) > 1:
        own = Slerp(skeleton.time_s, own)(time_s)
    angles: Floats = np.unwrap(own.as_euler(_ORDER, degrees=True), axis=0, period=360)
    return angles


def _joint(skeleton: Skeleton, joint: int, indent: str) -> list[str]:
    """Return the lines of a joint and those below it."""
    parents = skeleton.parents
    offset = " ".join(f"{value:.5f}" for value in _CM * skeleton.offsets_m[joint])
    inside = f"{indent}  "
    if joint >= 16:
        return [f"{indent}End Site", f"{indent}{{", f"{inside}OFFSET {offset}", f"{indent}}}"]
    head = f"{indent}ROOT" if parents[joint] < 0 else f"{indent}JOINT"
    position = "6 Xposition Yposition Zposition" if parents[joint] < 0 else "3"
    lines = [f"{head} {NAMES[joint]}", f"{indent}{{", f"{inside}OFFSET {offset}"]
    lines.append(f"{inside}CHANNELS {position} {_ROTATIONS}")
    for child in np.flatnonzero(parents == joint):
        lines += _joint(skeleton, int(child), inside)
    return [*lines, f"{indent}}}"]
