"""Small data sets in the exact layouts of FreiHAND, HO3D and COCO, of hands posed by the textbook's formula.

Photos are plain, with a dot of another colour at every joint, so that a test can locate the joints in the pixels. The
layouts follow each data set's documentation, in code independent of the converters.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from scipy.spatial import ConvexHull
from scipy.spatial.transform import Rotation

from annotator.hand import HandModel, anatomy, plausible_poses
from tests.support.mano_file import dump

# FreiHAND's tip vertices; HO3D's own differ at index and middle finger.
FREIHAND_TIPS = (744, 320, 443, 555, 672)
HO3D_TIPS = (744, 333, 444, 555, 672)

# Where FreiHAND's 21 joints are in MANO's order with the tips after it.
SIMPLE = [0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20]

# 21 colours that are no grey.
COLOURS = np.array([c for c in itertools.product((0, 128, 255), repeat=3) if len(set(c)) > 1])[:21]
DOT_PX = 2.0


@dataclass
class RawHand:
    """A posed hand in some frame, metres. `joints` in MANO's order: 16, then five tips, thumb first."""

    pose: np.ndarray  # (48,) absolute
    betas: np.ndarray  # (10,)
    trans: np.ndarray  # (3,)
    vertices: np.ndarray  # (V, 3)
    joints: np.ndarray  # (21, 3)


def skinned(hand: HandModel, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MANO's formula: vertices (V, 3) and 16 joints, metres."""
    matrices = Rotation.from_rotvec(pose.reshape(16, 3)).as_matrix()
    shaped = hand.v_template + hand.shapedirs @ betas
    joints = hand.J_regressor @ shaped
    corrected = shaped + hand.posedirs @ (matrices[1:] - np.eye(3)).reshape(135)
    rotated, placed = [matrices[0]], [joints[0]]
    for joint in range(1, 16):
        parent = hand.kintree_table[0, joint]
        placed.append(placed[parent] + rotated[parent] @ (joints[joint] - joints[parent]))
        rotated.append(rotated[parent] @ matrices[joint])
    vertices = sum(
        hand.weights[:, j, None] * ((corrected - joints[j]) @ rotated[j].T + placed[j]) for j in range(16)
    )
    return vertices, np.stack(placed)


def raw_hands(
    hand: HandModel, count: int, centre: tuple[float, float, float], tips: tuple[int, ...], seed: int
) -> list[RawHand]:
    """Right hands in plausible poses around a point, rotated all ways."""
    rng = np.random.default_rng(seed)
    fingers = plausible_poses.sample_poses(anatomy.rest_joints(hand), count, rng)
    found = []
    for k in range(count):
        pose = np.concatenate([Rotation.random(random_state=rng).as_rotvec(), fingers[k]])
        betas = rng.normal(size=10) * 0.5
        vertices, joints = skinned(hand, pose, betas)
        trans = np.array(centre) + rng.uniform(-0.02, 0.02, 3) - vertices.mean(0)
        joints = np.concatenate([joints, vertices[list(tips)]])
        found.append(RawHand(pose, betas, trans, vertices + trans, joints + trans))
    return found


def dotted(width: int, height: int, points_px: np.ndarray, grey: int) -> np.ndarray:
    """A photo with a dot at every point; pixel (column i, row j) covers [i, i + 1] x [j, j + 1]."""
    photo = np.full((height, width, 3), grey, np.uint8)
    for point, colour in zip(points_px, COLOURS, strict=True):
        part, apart = _around(photo, point, DOT_PX + 1)
        part[apart < DOT_PX] = colour
    return photo


def _around(photo: np.ndarray, point: np.ndarray, reach_px: float) -> tuple[np.ndarray, np.ndarray]:
    """A view of the pixels around a point, and how far the centre of each lies from it."""
    left, top = (max(int(c - reach_px), 0) for c in point)
    right, bottom = (max(int(c + reach_px) + 1, 0) for c in point)
    part = photo[top:bottom, left:right]
    y, x = np.mgrid[: part.shape[0], : part.shape[1]] + 0.5
    return part, np.hypot(left + x - point[0], top + y - point[1])


def dots_found(data: bytes, points_px: np.ndarray) -> np.ndarray:
    """How far (px) each point lies from the dot of its colour; NaN: unknown, or others or the edge are near."""
    photo = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
    height, width = photo.shape[:2]
    misses = np.full(21, np.nan)
    for k, point in enumerate(points_px):
        apart = np.linalg.norm(np.delete(points_px, k, 0) - point, axis=1)
        if (apart < 2 * DOT_PX + 1).any() or not (
            (point > DOT_PX).all() and (point < [width - DOT_PX, height - DOT_PX]).all()
        ):
            continue
        part, _ = _around(photo, point, 40)
        y, x = np.nonzero(np.abs(part - COLOURS[k]).max(-1) < 40)
        left, top = np.maximum((point - 40).astype(int), 0)
        misses[k] = np.hypot(left + x.mean() + 0.5 - point[0], top + y.mean() + 0.5 - point[1])
    return misses


def encoded(photo: np.ndarray, suffix: str) -> bytes:
    file = io.BytesIO()
    if suffix == ".png":
        Image.fromarray(photo).save(file, "PNG")
    else:
        Image.fromarray(photo).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_freihand(
    root: Path, hand: HandModel, poses: int = 4, versions: int = 4, evaluation: int = 3, truth: bool = True
) -> None:
    """FreiHAND's two splits. Of another hand than MANO, the first 778 vertices stand for the mesh."""
    tips = FREIHAND_TIPS if hand.name == "mano" else tuple(hand.tip_vertices)
    for name, count, copies in (("training", poses, versions), ("evaluation", evaluation, 1)):
        hands = raw_hands(hand, count, (0.01, -0.02, 0.5), tips, seed=len(name))
        K = [[[480.0 + 5 * k, 0, 112.0], [0, 479.0 + 5 * k, 112.0], [0, 0, 1]] for k in range(count)]
        mean = np.concatenate([np.zeros(3), hand.hands_mean])
        fields: dict[str, list[Any]] = {"K": K, "scale": [], "xyz": [], "verts": [], "mano": []}
        for raw in hands:
            joints = raw.joints[SIMPLE]
            fields["scale"].append(float(np.linalg.norm(joints[10] - joints[9])))
            fields["xyz"].append(joints.tolist())
            fields["verts"].append(raw.vertices[:778].tolist())
            theta = np.concatenate([raw.pose - mean, raw.betas, [100.0, 90.0, 500.0]])
            fields["mano"].append([theta.tolist()])
        for field, values in fields.items():
            if name == "training" or truth or field in ("K", "scale"):
                put(root / f"{name}_{field}.json", json.dumps(values).encode())
        for photo in range(count * copies):
            k = photo % count
            seen = np.array(fields["xyz"][k]) @ np.array(K[k]).T
            pixels = dotted(224, 224, seen[:, :2] / seen[:, 2:], grey=60 + 30 * (photo // count))
            put(root / name / "rgb" / f"{photo:08d}.jpg", encoded(pixels, ".jpg"))
        if name == "training":
            for k in range(count):
                seen = np.array(fields["verts"][k]) @ np.array(K[k]).T
                mask = np.zeros((224, 224), np.uint8)
                u, v = (seen[:, :2] / seen[:, 2:]).astype(int).T
                mask[v.min() : v.max(), u.min() : u.max()] = 255
                put(root / name / "mask" / f"{k:08d}.jpg", encoded(mask, ".jpg"))


HO3D_K = np.array([[614.6, 0, 322.6], [0, 614.1, 239.0], [0, 0, 1]])


def write_segmentations(folder: Path, version: int, frames: dict[tuple[str, str], np.ndarray]) -> None:
    """HO3D's rendered segmentations at a quarter of 640 x 480: convex hands whose upper third an object covers.

    `frames`: sequence and frame to the hand's 2D points. Hands are red in v2's JPEGs, blue in v3's PNGs.
    """
    hand_rgb, object_rgb, suffix = {
        2: ((255, 0, 0), (0, 0, 255), ".jpg"),
        3: ((0, 0, 255), (0, 255, 0), ".png"),
    }[version]
    for (sequence, frame), points in frames.items():
        picture = Image.new("RGB", (160, 120))
        pen = ImageDraw.Draw(picture)
        hull = points[ConvexHull(points).vertices] / 4
        pen.polygon([tuple(point) for point in hull], fill=hand_rgb)
        left, top = hull.min(0)
        right, bottom = hull.max(0)
        pen.rectangle([left - 9, top - 9, right + 9, top + (bottom - top) / 3], fill=object_rgb)
        put(folder / "train" / sequence / "seg" / (frame + suffix), encoded(np.asarray(picture), suffix))


def write_ho3d(
    root: Path, hand: HandModel, version: int, truth: bool = False, frames: int = 3
) -> list[tuple[str, str]]:
    """HO3D's two splits, v2 or v3; the last frame of each training sequence has no annotation. Training frames."""
    tips = HO3D_TIPS if hand.name == "mano" else tuple(hand.tip_vertices)
    suffix = {2: ".png", 3: ".jpg"}[version]
    listed: dict[str, list[str]] = {"train": [], "evaluation": []}
    xyz, verts = [], []
    writers: list[Callable[[Any], bytes]] = [dump]  # as Python 2 does
    if version == 3:
        writers = [functools.partial(pickle.dumps, protocol=protocol) for protocol in (0, 2, 3, 4)]
    writer = itertools.cycle(writers)
    for split, sequences in (("train", ("ABF10", "MC1")), ("evaluation", ("SM1",))):
        for number, sequence in enumerate(sequences):
            hands = raw_hands(hand, frames, (0.03, 0.02, -0.55), tips, seed=number + len(split))
            for k, raw in enumerate(hands):
                frame = f"{k:04d}"
                listed[split].append(f"{sequence}/{frame}")
                # HO3D's own projection: y and z change sign, then K.
                seen = (raw.joints * [1, -1, -1]) @ HO3D_K.T
                points = seen[:, :2] / seen[:, 2:]
                pixels = dotted(640, 480, points[SIMPLE], grey=90 + 20 * number)
                put(root / split / sequence / "rgb" / (frame + suffix), encoded(pixels, suffix))
                meta: dict[str, Any] = {
                    "objName": "010_potted_meat_can",
                    "objRot": np.zeros((3, 1)),
                    "objTrans": np.zeros(3),
                    "camMat": HO3D_K,
                }
                if split == "train":
                    meta |= {
                        "handPose": raw.pose,
                        "handTrans": raw.trans,
                        "handBeta": raw.betas,
                        "handJoints3D": raw.joints,
                    }
                    if k == frames - 1:
                        meta = dict.fromkeys(meta) | {"camMat": HO3D_K}
                else:
                    low, high = points.min(0).astype(int) - 5, points.max(0).astype(int) + 5
                    meta |= {"handJoints3D": raw.joints[0]}
                    meta |= {"handBoundingBox": [int(v) for v in (*low, *high)]}
                    xyz.append(raw.joints.tolist())
                    verts.append(raw.vertices[:778].tolist())
                put(root / split / sequence / "meta" / f"{frame}.pkl", next(writer)(meta))
        put(root / f"{split}.txt", "".join(f"{line}\n" for line in listed[split]).encode())
    if truth:
        put(root / "evaluation_xyz.json", json.dumps(xyz).encode())
        put(root / "evaluation_verts.json", json.dumps(verts).encode())
    return [(line.split("/")[0], line.split("/")[1]) for line in listed["train"]]


def coco_document(hand: HandModel, folder: Path, count: int = 4) -> dict[str, Any]:
    """Keypoints of right and left hands (left: every second, by the mirror), and their photos in `folder`."""
    hands = raw_hands(hand, count, (0, 0, 0.6), tuple(hand.tip_vertices), seed=3)
    document: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "left_hand"}, {"id": 2, "name": "Right hand"}],
    }
    for k, raw in enumerate(hands):
        is_left = k % 2 == 1
        joints = raw.joints[SIMPLE] * [-1 if is_left else 1, 1, 1]
        points = joints[:, :2] / joints[:, 2:] * 400 + [160, 120]
        put(folder / f"{k}.png", encoded(dotted(320, 240, points, 120), ".png"))
        document["images"].append({"id": 10 + k, "file_name": f"{k}.png", "width": 320, "height": 240})
        keypoints = np.concatenate([points, np.full((21, 1), 2.0)], 1)
        keypoints[k] = 0  # not annotated
        document["annotations"].append(
            {
                "id": k,
                "image_id": 10 + k,
                "category_id": 1 if is_left else 2,
                "keypoints": keypoints.ravel().tolist(),
            }
        )
    return document
