"""From a LeRobot data set to dex-retargeting: joint layout and axes, and the package itself where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from annotator.export import export_labels
from annotator.hand import JOINT_NAMES, anatomy, gestures, load_hand, plausible_poses
from tests.support.moving_labels import VIDEO_COLUMNS, Clip, Moving, table_of, write_labels
from tests.support.tracked_labels import rows_of, write_tracked
from tools.retarget import hand_frames, operator_joints, palm_axes, reference, retargeted

REST = anatomy.rest_joints(load_hand("open"))
MIRROR = np.array([-1.0, 1.0, 1.0])


def hands(count: int, seed: int = 0) -> np.ndarray:
    """Right hands at any position, in any direction, metres."""
    rng = np.random.default_rng(seed)
    joints = anatomy.pose_joints(REST, plausible_poses.sample_angles(REST, count, rng))
    rotations = Rotation.random(count, random_state=seed).as_matrix()
    return np.einsum("nij,nkj->nki", rotations, joints - joints[:, :1]) + rng.normal(size=(count, 1, 3))


def estimated_frame(joints: np.ndarray) -> np.ndarray:
    """The frame of three palm points as dex-retargeting's examples describe it: a plane fitted by SVD."""
    wrist, index, middle = joints[0], joints[5], joints[9]
    points = np.stack([wrist, index, middle])
    normal = np.linalg.svd(points - points.mean(0))[2][2]
    x = wrist - middle
    x = x - (x @ normal) * normal
    x /= np.linalg.norm(x)
    z = np.cross(x, normal)
    if z @ (index - middle) < 0:
        normal, z = -normal, -z
    return np.stack([x, normal, z], 1)


def test_palm_axes_are_those_of_the_package_s_examples():
    for joints in (hands(20), hands(20, seed=1) * MIRROR):
        np.testing.assert_allclose(palm_axes(joints), [estimated_frame(hand) for hand in joints], atol=1e-9)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_hand_lies_as_the_robot_does_whatever_the_wrist(side):
    """Robot axes: fingers along z, the palm faces x; the thumb is at y on a right hand, at -y on a left one."""
    mirror = MIRROR if side == "left" else 1
    flat = np.repeat(gestures.GESTURES["open_palm"][None], 20, 0)
    rotations = Rotation.random(20, random_state=3).as_matrix()
    open_hands = np.einsum("nij,nkj->nki", rotations, anatomy.pose_joints(REST, flat) * mirror)
    found = operator_joints(open_hands, side)
    np.testing.assert_allclose(found, np.tile(found[:1], (20, 1, 1)), atol=1e-9)
    joints = dict(zip(JOINT_NAMES, found[0], strict=True))
    assert (joints["wrist"] == 0).all() and 0.15 < joints["middle_tip"][2] < 0.25
    assert abs(joints["middle_tip"][0]) < 0.06
    towards_thumb = joints["index_1"][1] - joints["little_1"][1]
    assert towards_thumb > 0.04 if side == "right" else towards_thumb < -0.04
    bent = anatomy.pose_joints(
        REST, gestures.GESTURES["table_top"][None]
    )  # fingers at right angles to the palm
    found = operator_joints(bent * mirror, side)[0]
    assert found[12, 0] > 0.08 and found[12, 2] < 0.75 * joints["middle_tip"][2]


def test_references_are_vectors_between_joints_or_positions():
    joints = hands(1)[0]
    vectors = reference(joints, np.array([[0, 4], [8, 12]]), "VECTOR")
    np.testing.assert_array_equal(vectors, [joints[8] - joints[0], joints[12] - joints[4]])
    np.testing.assert_array_equal(reference(joints, np.array([4, 8]), "POSITION"), joints[[4, 8]])


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("retarget")
    clip = Clip(
        "clip.mp4", 20, [Moving(range(20), seed=1), Moving(range(4, 20), is_right=False, start_px=(500, 200))]
    )
    labels = write_labels(place / "labels", [table_of(clip, VIDEO_COLUMNS)], VIDEO_COLUMNS)
    tracked = write_tracked(labels, place / "tracked")
    export_labels(str(tracked), str(place / "hands"), "lerobot", photos="none")
    return tracked, place / "hands"


@pytest.mark.parametrize(("side", "track_id"), [("right", 0), ("left", 1)])
def test_joints_of_an_export_are_the_labels_own(exported, side, track_id):
    tracked, folder = exported
    rows = rows_of(tracked, "clip.mp4", track_id)
    joints, frames = hand_frames(folder, side)
    wanted = np.array([np.array(row["joints3d_mm"]) + row["camera"]["cam_t_mm"] for row in rows]) / 1000
    np.testing.assert_allclose(joints, wanted, rtol=1e-6)
    assert frames["frame_index"].tolist() == [row["frame_index"] for row in rows]


FINGER = """<robot name="finger">
<link name="wrist"/>
{links}
</robot>"""


def finger_urdf(path: Path) -> None:
    """Write a robot with one finger of three hinges, 45 mm each, 90 mm above its wrist."""
    parts, parent = [], "wrist"
    inertia = '<inertia ixx="1e-6" iyy="1e-6" izz="1e-6" ixy="0" ixz="0" iyz="0"/>'
    mass = f'<inertial><mass value="0.01"/>{inertia}</inertial>'
    limit = '<limit lower="-0.2" upper="1.7" effort="1" velocity="1"/>'
    for k in range(4):
        name = f"link_{k}" if k < 3 else "tip"
        kind = "revolute" if k < 3 else "fixed"
        parts.append(
            f'<link name="{name}">{mass}</link><joint name="joint_{k}" type="{kind}"><parent link="{parent}"/>'
            f'<child link="{name}"/><origin xyz="0 0 {0.045 if k else 0.09}"/><axis xyz="0 1 0"/>{limit}</joint>'
        )
        parent = name
    path.write_text(FINGER.format(links="\n".join(parts)))


def test_a_robot_s_finger_bends_as_the_hand_s_does(tmp_path):
    config = pytest.importorskip("dex_retargeting.retargeting_config").RetargetingConfig
    finger_urdf(tmp_path / "finger.urdf")
    robot = config.from_dict(
        {
            "type": "vector",
            "urdf_path": str(tmp_path / "finger.urdf"),
            "target_origin_link_names": ["wrist"],
            "target_task_link_names": ["tip"],
            "target_link_human_indices": [[0], [8]],
            "low_pass_alpha": 1.0,
        }
    ).build()
    angles = np.repeat(gestures.GESTURES["flat"][None], 12, 0)
    angles[:, 1, 1:] = np.linspace([0, 0, 0], [70, 90, 45], 12)
    joints = anatomy.pose_joints(REST, angles)
    bend = np.degrees(retargeted(robot, joints, "right", np.zeros(12, int)).sum(1))
    assert (np.diff(bend) > 3).all() and bend[-1] > bend[0] + 120
