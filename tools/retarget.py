"""Retarget an exported hand to a robot hand with `dex-retargeting`.

    python tools/retarget.py HANDS OUT.npz --urdf-dir dex-urdf/robots/hands [--robot allegro] [--side right]

HANDS is a folder of `amvur export --to lerobot`. Reading it takes pyarrow and NumPy; `dex-retargeting` may live in
another environment than amvur. docs/retargeting.md describes the input and the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.floating]

SIDES = ("right", "left")

#: Axes of dex-retargeting's robot hands, as columns in those of the palm: its constants `OPERATOR2MANO`.
_ROBOT_FROM_PALM = {
    "right": np.array([[0, 0, -1], [-1, 0, 0], [0, 1, 0]]),
    "left": np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]]),
}


def palm_axes(joints: Floats) -> Floats:
    """Return the palm's axes as columns (n, 3, 3), from joints (n, 21, 3) in right-handed axes.

    x points from the middle finger's knuckle to the wrist, z across the palm to the index finger's knuckle; y is their
    normal. This is the frame that dex-retargeting's examples estimate from a detector's points.
    """
    wrist, index, middle = joints[:, 0], joints[:, 5], joints[:, 9]
    x = _unit(wrist - middle)
    y = _unit(np.cross(index - middle, x))
    return np.stack([x, y, np.cross(x, y)], -1)


def _unit(vectors: Floats) -> Floats:
    result: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


def operator_joints(joints: Floats, side: str) -> Floats:
    """Return joints (n, 21, 3), metres, from the wrist and in the axes of dex-retargeting's robot hands.

    Its order of joints is that of labels: the wrist, then thumb to little finger, from the palm to the tip.
    """
    placed = joints - joints[:, :1]
    rotated: Floats = placed @ palm_axes(joints) @ _ROBOT_FROM_PALM[side]
    return rotated


def reference(joints: Floats, indices: NDArray[np.integer], kind: str) -> Floats:
    """Return the input of `retarget` for one hand (21, 3): positions, or vectors between pairs of joints."""
    if kind == "POSITION":
        return joints[indices]
    origin, task = indices
    return joints[task] - joints[origin]


def hand_frames(folder: Path, side: str) -> tuple[Floats, dict[str, NDArray[Any]]]:
    """Return joints (n, 21, 3) of one side's hands, and the frame of each."""
    columns = ["observation.joints", "observation.valid", "episode_index", "frame_index", "timestamp"]
    table = pq.read_table(folder / "data", columns=columns)
    at = SIDES.index(side)
    valid = np.array(table["observation.valid"].to_pylist())[:, at]
    joints = np.array(table["observation.joints"].to_pylist()).reshape(-1, 2, 21, 3)[valid, at]
    return joints, {name: np.asarray(table[name])[valid] for name in columns[2:]}


def retargeted(retargeting: Any, joints: Floats, side: str, episode: NDArray[np.integer]) -> Floats:
    """Return the robot's joint positions (n, degrees of freedom); each episode starts over."""
    optimizer = retargeting.optimizer
    found = []
    for k, hand in enumerate(operator_joints(joints, side)):
        if k and episode[k] != episode[k - 1]:
            retargeting.reset()
            if retargeting.filter is not None:
                retargeting.filter.reset()
        target = reference(hand, optimizer.target_link_human_indices, optimizer.retargeting_type)
        found.append(retargeting.retarget(target))
    return np.stack(found)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Retarget exported hands to a robot hand.")
    parser.add_argument("hands", type=Path, help="folder of `amvur export --to lerobot`")
    parser.add_argument("out", type=Path, help="new .npz file")
    parser.add_argument(
        "--urdf-dir", type=Path, required=True, help="robots/hands of the repository dex-urdf"
    )
    parser.add_argument("--robot", default="allegro", help="allegro, shadow, svh, leap, ability, inspire")
    parser.add_argument("--type", default="vector", choices=("vector", "position", "dexpilot"))
    parser.add_argument("--side", default="right", choices=SIDES)
    given = parser.parse_args()

    from dex_retargeting.constants import HandType, RetargetingType, RobotName, get_default_config_path
    from dex_retargeting.retargeting_config import RetargetingConfig

    RetargetingConfig.set_default_urdf_dir(str(given.urdf_dir))
    config = get_default_config_path(
        RobotName[given.robot], RetargetingType[given.type], HandType[given.side]
    )
    retargeting = RetargetingConfig.load_from_file(config).build()
    joints, frames = hand_frames(given.hands, given.side)
    if not len(joints):
        raise SystemExit(f"'{given.hands}' holds no {given.side} hand: give another --side")
    qpos = retargeted(retargeting, joints, given.side, frames["episode_index"])
    arrays: dict[str, Any] = {"qpos": qpos, "joint_names": np.array(retargeting.joint_names), **frames}
    np.savez(given.out, **arrays)
    print(f"{len(qpos)} frames of {qpos.shape[1]} joints in {given.out}")


if __name__ == "__main__":
    main()
