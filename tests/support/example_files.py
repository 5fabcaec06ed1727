"""Small collections of training examples for tests: real geometry, plain pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import roma
import torch
from PIL import Image, ImageDraw

from annotator.coordinates import mirror_points
from annotator.hand import anatomy, load_hand, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.hand.model import BONES
from annotator.model.prior_net import UPRIGHT
from trainer.data.examples import example_schema, write_examples


def hands(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right hands: vertices (count, V, 3) and joints (count, 21, 3), wrist-relative mm, palms to the camera."""
    model = load_hand("open")
    rng = np.random.default_rng(seed)
    fingers = torch.from_numpy(plausible_poses.sample_poses(anatomy.rest_joints(model), count, rng)).float()
    wrist = torch.tensor(UPRIGHT).expand(count, 1, 3, 3)
    rotations = torch.cat([wrist, roma.rotvec_to_rotmat(fingers.view(count, 15, 3))], 1)
    vertices, joints = HandLayer(model)(rotations, torch.zeros(count, 10))
    return vertices.numpy(), joints.numpy()


def write_stick_hands(
    folder: Path, count: int, seed: int = 0, left_share: float = 0.5, **leave_out: bool
) -> Path:
    """Examples whose photos are stick figures of the true joints; the index's tip is a red dot.

    `leave_out`: columns that are null.
    """
    model = load_hand("open")
    rng = np.random.default_rng(seed)
    vertices, joints = hands(count, seed)
    rows = []
    for i in range(count):
        right = rng.random() >= left_share
        v, j = (vertices[i], joints[i]) if right else (mirror_points(vertices[i]), mirror_points(joints[i]))
        width, height = 160, 120
        low, high = v[:, :2].min(0), v[:, :2].max(0)
        scale = rng.uniform(60, 90) / (high - low).max()
        middle = np.array([width, height]) / 2 + rng.uniform(-15, 15, 2)
        joints_px = (j[:, :2] - (low + high) / 2) * scale + middle
        box = np.concatenate([(low - high) / 2 * scale + middle, (high - low) / 2 * scale + middle])
        row = {
            "image_id": f"{i:05d}",
            "image_uri": f"{i:05d}.png",
            "status": "ok",
            "width": width,
            "height": height,
            "hand_index": 0,
            "is_right": right,
            "box_xyxy": box,
            "joints2d_px": joints_px,
            "joints3d_mm": j,
            "vertices_mm": v,
            "image": stick_photo(joints_px, width, height),
        }
        rows.append({name: value for name, value in row.items() if not leave_out.get(name)})
    schema = example_schema(model.vertex_count, {"hand": model.id, "source": "sticks"})
    write_examples(str(folder), rows, schema)
    return folder


def stick_photo(joints_px: np.ndarray, width: int, height: int) -> bytes:
    image = Image.new("RGB", (width * 4, height * 4), (90, 110, 100))
    pen = ImageDraw.Draw(image)
    for a, b in BONES:
        pen.line([*(joints_px[a] * 4), *(joints_px[b] * 4)], fill=(220, 180, 160), width=24)
    x, y = joints_px[8] * 4
    pen.ellipse([x - 12, y - 12, x + 12, y + 12], fill=(255, 0, 0))
    file = io.BytesIO()
    image.resize((width, height), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()
