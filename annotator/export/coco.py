"""COCO keypoints: images and hands (box, 21 keypoints) in one JSON file, written row by row."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.hand.model import BONES, JOINT_NAMES
from annotator.labels.arrays import array_of
from annotator.photos.crops import box_around_joints
from annotator.storage.disk_space import name_in_errors, unnamed_path
from annotator.storage.files import atomic_file

_CATEGORY = {
    "id": 1,
    "name": "hand",
    "supercategory": "person",
    "keypoints": list(JOINT_NAMES),
    "skeleton": [[parent + 1, child + 1] for parent, child in BONES],  # COCO counts from 1
}

#: Number of recent photos in memory; no label file has as many.
_RECENT = 1 << 18

_SCALARS = (
    *("image_uri", "image_id", "duplicate", "frame_index", "frame_time_s", "hand_index"),
    *("width", "height", "box_source", "is_right", "detection_score", "joint_std_mm"),
)


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read."""
    return labels.present(*_SCALARS, "box_xyxy", "joints2d_px", "joint_visible")


def write(labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write the file; hands are collected in a temporary file until all images are written."""
    exported = Exported()
    images = _Images()
    with atomic_file(out) as file, tempfile.TemporaryFile() as hands:
        head = {"description": "hands labelled by amvur", "hand_model": labels.hand}
        file.write(b'{"info": %s, "licenses": [], ' % _json(head))
        file.write(b'"categories": [%s], "images": [' % _json(_CATEGORY))
        for table in batches:
            scalars = table.select(labels.present(*_SCALARS)).to_pylist()
            boxes, joints = array_of(table["box_xyxy"]), array_of(table["joints2d_px"])
            for row, box, points, visible in zip(scalars, boxes, joints, _visible(table), strict=True):
                image, is_new = images.of(row)
                if is_new:
                    _append(file, image, images.count == 1)
                flags = _flags(points, row["width"], row["height"], visible)
                annotation = _annotation(row, box, points, flags, image["id"], exported.hands + 1)
                with name_in_errors(unnamed_path(), written=hands.tell):
                    _append(hands, annotation, not exported.hands)
                exported.hands += 1
        file.write(b'\n], "annotations": [')
        with name_in_errors(unnamed_path(), written=hands.tell):
            hands.seek(0)
        shutil.copyfileobj(hands, file)
        file.write(b"\n]}\n")
    return exported


class _Images:
    """Photos as `images`, each once. Hands of a photo are in one label file, but not always in adjacent rows."""

    def __init__(self) -> None:
        self.count = 0
        self._recent: dict[tuple[str, int | None], int] = {}  # id by uri and frame, oldest first
        self._duplicates: set[int] = set()  # ids; these may be in any file

    def of(self, row: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """Return a row's photo, and whether it is new. A list may give each hand of a photo its own id."""
        image_id, uri, frame_index = row["image_id"], row["image_uri"], row.get("frame_index")
        image = {
            "id": stable_number(image_id),
            "file_name": _file_name(image_id, uri, frame_index),
            "coco_url": uri,
            "width": row["width"],
            "height": row["height"],
            "image_id": image_id,
        }
        if frame_index is not None:
            image |= {"frame_index": frame_index, "frame_time_s": row["frame_time_s"]}
        if row.get("duplicate"):
            image["id"] = stable_number(f"{image_id}\0{uri}\0duplicate")
            is_new = image["id"] not in self._duplicates
            self._duplicates.add(image["id"])
        else:
            is_new = (uri, frame_index) not in self._recent
            image["id"] = self._recent.setdefault((uri, frame_index), image["id"])
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
        self.count += is_new
        return image, is_new


def _file_name(image_id: str, uri: str, frame_index: int | None) -> str:
    """Return the path below the labelled folder, or the whole uri without one; a frame adds its number."""
    path, number = (
        (image_id, "")
        if frame_index is None
        else (image_id.removesuffix(f"#{frame_index}"), f"#{frame_index}")
    )
    return (path if uri == path or uri.endswith(f"/{path}") else uri) + number


def stable_number(text: str) -> int:
    """Return a number for an id, equal in every export and below 2^53, JavaScript's largest integer."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 11


def _annotation(
    row: dict[str, Any],
    box: NDArray[np.floating],
    points: NDArray[np.floating],
    flags: NDArray[np.int64],
    image: int,
    number: int,
) -> dict[str, Any]:
    x0, y0, x1, y1 = _box_of(row, box, points)
    known = np.where(flags[:, None] > 0, points, 0).astype(float)
    annotation = {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "keypoints": [
            v for (x, y), flag in zip(known.tolist(), flags.tolist(), strict=True) for v in (x, y, flag)
        ],
        "num_keypoints": int((flags > 0).sum()),
        "is_right": row["is_right"],
        "hand_index": row["hand_index"],
    }
    for name, column in (("score", "detection_score"), ("joint_std_mm", "joint_std_mm")):
        value = row.get(column)
        if value is not None and np.isfinite(value):
            annotation[name] = value
    return annotation


def _visible(table: pa.Table) -> NDArray[np.bool_]:
    """Return the visible joints (n, 21); all of a hand's where its labels have no visibility."""
    if "joint_visible" not in table.column_names:
        return np.ones((len(table), len(JOINT_NAMES)), bool)
    unknown = table["joint_visible"].is_null().to_numpy()
    return np.asarray(array_of(table["joint_visible"]) | unknown[:, None], bool)


def _flags(
    points: NDArray[np.floating], width: int, height: int, visible: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return COCO's v: 2 for a visible joint, 1 for a hidden one or beyond the photo's edge, 0 if it is not finite."""
    inside = (points >= 0).all(1) & (points <= [width, height]).all(1)
    return np.where(np.isfinite(points).all(1), np.where(inside & visible, 2, 1), 0)


def _box_of(row: dict[str, Any], box: NDArray[np.floating], points: NDArray[np.floating]) -> list[float]:
    """Return the hand's box; if it is the whole photo, the box around the joints within the photo."""
    if row.get("box_source") == "photo" and np.isfinite(points).all():
        size = [row["width"], row["height"]]
        around = np.asarray(box_around_joints(points), float)
        around = np.clip(around, 0, [*size, *size])
        if (around[2:] > around[:2]).all():
            box = around
    found: list[float] = np.asarray(box, float).tolist()
    return found


def _append(file: IO[bytes], value: dict[str, Any], is_first: bool) -> None:
    file.write((b"\n" if is_first else b",\n") + _json(value))


def _json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
