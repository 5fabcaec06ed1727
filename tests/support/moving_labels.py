"""Label sets of hands that move smoothly, as `annotate` would write them of videos, made without a network."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import roma
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from annotator.coordinates import mirror_points
from annotator.hand import load_hand
from annotator.hand.layer import HandLayer
from annotator.job.record import RunRecord, RunSettings, write_run_record
from annotator.labels.arrays import joined_columns
from annotator.labels.crop_hands import CropHands, label_columns
from annotator.labels.folder import write_faces
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table, without_hand
from annotator.photos.crops import CropGeometry

HAND = load_hand("open")
LAYER = HandLayer(HAND)
WIDTH, HEIGHT, RATE_HZ, SCALE = 640, 480, 30.0, 0.8  # pixels, and pixels per millimetre


@dataclass
class Moving:
    """One hand over some frames of a video."""

    frames: range
    is_right: bool = True
    start_px: tuple[float, float] = (200.0, 240.0)
    speed_px: tuple[float, float] = (2.0, 0.0)  # per frame
    seed: int = 0
    noise: float = 0.04  # radians, of each joint and the wrist
    missing: tuple[int, ...] = ()  # frames in which it is not found
    flipped: tuple[int, ...] = ()  # frames in which it is taken for the other hand
    std_mm: float = 8.0
    refined: float = 0.0  # radians by which joints and meshes differ from the pose, alike in all frames


def hands_of(moving: Moving, noise: bool = True) -> dict[str, Any]:
    """Label columns of every frame of a hand, found or not."""
    rng = np.random.default_rng(moving.seed)
    number = np.array(moving.frames)
    count = len(number)
    rates, phases = rng.uniform(0.04, 0.12, 48), rng.uniform(0, 6, 48)
    pose = 0.25 * np.sin(rates * number[:, None] + phases)
    pose[:, 3:] += HAND.hands_mean
    betas = np.tile(rng.normal(size=10) * 0.5, (count, 1))
    if noise:
        pose = pose + moving.noise * rng.normal(size=pose.shape)
        betas = betas + 0.2 * rng.normal(size=betas.shape)
    right = np.full(count, moving.is_right)
    flipped = np.isin(number, moving.flipped)
    right[flipped] ^= True
    # Networks that take a hand for the other one see its mirror image in depth: in the photo it is where it was.
    wrist = Rotation.from_rotvec(pose[flipped, :3])
    pose[flipped, :3] = (Rotation.from_rotvec([0, np.pi, 0]) * wrist).as_rotvec()
    shown = pose + moving.refined * np.random.default_rng(moving.seed + 1).normal(size=48)
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(shown).float().view(-1, 16, 3))
    vertices, joints = (one.numpy() for one in LAYER(rotations, torch.from_numpy(betas).float()))
    side = right[:, None, None]
    vertices, joints = (np.where(side, one, mirror_points(one)) for one in (vertices, joints))
    wrist_px = np.array(moving.start_px) + number[:, None] * np.array(moving.speed_px)
    joints2d_px = wrist_px[:, None] + SCALE * joints[..., :2]
    low, high = joints2d_px.min(1), joints2d_px.max(1)
    half_px = (high - low).max(1) * 0.7
    geometry = CropGeometry(
        centre_px=(low + high) / 2,
        half_side_px=half_px,
        box_xyxy=np.concatenate([low, high], 1),
        photo_size_px=np.tile([float(WIDTH), HEIGHT], (count, 1)),
        # A long lens: crop axes equal the camera's, and true positions are equal in all frames.
        focal_px=np.full(count, 1e7),
        principal_px=np.tile([WIDTH / 2, HEIGHT / 2], (count, 1)),
        focal_source=np.full(count, "given"),
        view=np.full(count, None),
        hand_length_mm=np.full(count, np.nan),
    )
    std = np.full(joints.shape, moving.std_mm / np.sqrt(3))
    std[:, 0] = 0
    found = CropHands(
        is_right=right,
        joints3d_mm=joints,
        joints3d_std_mm=std,
        joints2d_px=joints2d_px,
        joints2d_std_px=np.full((count, 21, 2), 2.0),
        vertices_mm=vertices,
        vertices_std_mm=np.full(vertices.shape, moving.std_mm / np.sqrt(3)),
        visible=np.ones(vertices.shape[:2], bool),
        scale_per_mm=SCALE / half_px,
        rotvec=np.zeros((count, 3)),
        translation=(wrist_px - geometry.centre_px) / half_px[:, None],
        pose=pose,
        betas=betas,
    )
    return label_columns(found, geometry) | {"vertex_rgb": np.full((*vertices.shape[:2], 3), 90, np.uint8)}


@dataclass
class Clip:
    """A video, or numbered photos of a list."""

    name: str
    count: int
    hands: list[Moving]
    unreadable: tuple[int, ...] = ()
    times: list[float] = field(default_factory=list)
    listed: bool = False  # as photos of a list with `sequence`, `frame` and `time_s`


def table_of(clip: Clip, columns: dict[str, pa.DataType]) -> pa.Table:
    """The rows of a clip."""
    rows: list[dict[str, Any]] = []
    indices: list[int] = []
    parts = [hands_of(one) for one in clip.hands]
    taken = []
    for frame in range(clip.count):
        time_s = clip.times[frame] if clip.times else frame / RATE_HZ
        row: dict[str, Any] = {"duplicate": False, "hand_index": -1, "width": WIDTH, "height": HEIGHT}
        if clip.listed:
            row |= {"image_uri": f"{clip.name}-{frame:03d}.jpg", "image_id": f"{clip.name}-{frame:03d}"}
            row |= {"sequence": clip.name, "frame": frame, "time_s": time_s}
        else:
            row |= {"image_uri": clip.name, "image_id": f"{clip.name}#{frame}"}
            row |= {"frame_index": frame, "frame_time_s": time_s, "place": "kitchen"}
        if frame in clip.unreadable:
            rows.append(
                row | without_hand("corrupt", "the frame is damaged") | {"width": None, "height": None}
            )
            continue
        here = [k for k, one in enumerate(clip.hands) if frame in one.frames and frame not in one.missing]
        if not here:
            rows.append(row | without_hand("no_hand_found", "the detector found no hand"))
        for index, k in enumerate(here):
            indices.append(len(rows))
            taken.append((k, frame - clip.hands[k].frames.start))
            score = 0.8 if frame not in clip.hands[k].flipped else 0.6
            rows.append(
                row
                | {"status": "ok", "hand_index": index, "box_source": "detector", "detection_score": 0.9}
                | {"side_score": score, "checkpoint": "net-1"}
            )
    picked = [_picked(parts[k], slice(at, at + 1)) for k, at in taken]
    return labels_to_table(
        rows, joined_columns(picked), indices, label_schema(HAND.vertex_count, None, columns)
    )


def _picked(columns: dict[str, Any], rows: slice) -> dict[str, Any]:
    return {
        name: _picked(values, rows) if isinstance(values, dict) else None if values is None else values[rows]
        for name, values in columns.items()
    }


VIDEO_COLUMNS = {"place": pa.string()}
LIST_COLUMNS = {"sequence": pa.string(), "frame": pa.int32(), "time_s": pa.float64()}


def write_labels(
    folder: Path, tables: list[pa.Table], columns: dict[str, pa.DataType], per_file: int = 25
) -> Path:
    """A label set of clips' tables, cut into files wherever `per_file` rows end."""
    table = pa.concat_tables(tables)
    facts = {"schema_version": SCHEMA_VERSION, "checkpoint": "net-1", "hand": HAND.id, "calibration": {}}
    facts |= {"std_is_constant": False, "trained_steps": 9, "crop_px": 128}
    schema = label_schema(HAND.vertex_count, {"amvur": json.dumps(facts)}, columns)
    (folder / "data").mkdir(parents=True)
    for number, first in enumerate(range(0, len(table), per_file)):
        part = table.slice(first, per_file).cast(schema).replace_schema_metadata(schema.metadata)
        (folder / "data" / f"shard-{number:07d}.parquet").write_bytes(encode_table(part))
    photos = folder.parent / "photos"
    photos.mkdir(exist_ok=True)
    for uri in set(table["image_uri"].to_pylist()):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(photos / uri, "JPEG")
    settings = RunSettings(SCHEMA_VERSION, str(photos), "net-1", 9, HAND.id, HAND.vertex_count, "auto", 128)
    photo_count = sum(index <= 0 for index in table["hand_index"].to_pylist())
    write_run_record(str(folder), RunRecord(settings, outcomes={"ok": photo_count}))
    write_faces(str(folder), HAND.faces)
    return folder
