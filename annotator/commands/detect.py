"""`detect`: detect boxes, sides and 2D joints of hands in a source of photos. `annotator.job` runs it.

The label set has no columns that need a hand model, so it suits any hand model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import pyarrow as pa

from annotator.detection.detector import (
    ENOUGH_PX,
    DetectedHand,
    Search,
    check_search,
    detector_of_process,
    read_model,
)
from annotator.errors import UserError
from annotator.job.detect_hands import GetDetector
from annotator.job.options import ComputeOptions
from annotator.job.record import RunRecord, read_run_record
from annotator.job.resources import plan_decoders
from annotator.job.run import Job, Progress, run_job
from annotator.job.shard import Shard
from annotator.job.stages import Stages
from annotator.job.stages.decode import decoded_photos
from annotator.job.stages.rows import row_of_error
from annotator.labels.schema import ROUNDING, SCHEMA_VERSION, label_schema, without_hand
from annotator.photos.crops import BOX_OVER_JOINTS
from annotator.sources import check_has_photos, open_source
from annotator.sources.entry import Entry
from annotator.storage.files import FIRST_ANSWER_S, absolute, check_writable
from annotator.storage.remote import retry_limit

#: Columns of labels that need a hand model.
_MESH = (
    *("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible", "checkpoint"),
    *("hand_length_mm", "hand_length_std_mm", "cam_t_std_mm", "penetration_mm"),
)


@dataclass(frozen=True)
class DetectSettings:
    """All settings that change a row; runs into one folder must agree on them."""

    schema_version: int
    source: str
    detector: str  # id
    max_hands: int
    world_joints: bool
    every: int = 1
    search: Search = "quick"


def detect(
    photos: str,
    out: str,
    model: str | None = None,
    *,
    max_hands: int = 2,
    search: Search = "quick",
    world_joints: bool = False,
    every: int = 1,
    compute: ComputeOptions = ComputeOptions(),
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[DetectSettings]:
    """Detect the hands of every photo of a source. Run it again to resume.

    Args:
        photos: as for `annotate`.
        out: path or URL of the label set, created if missing.
        model: path or URL of MediaPipe's `hand_landmarker.task`.
        max_hands: maximum hands per photo.
        search: `thorough` searches photos with fewer hands again, rotated and in enlarged tiles.
        world_joints: fill `joints3d_mm` with the detector's estimate.
        every: use every Nth video frame.
        compute: `workers` are processes with one core each; `shard_size` and `address` as for `annotate`.
        relabel: as for `annotate`.
        on_progress: called before the first shard and after each.

    Returns:
        The label set's record: settings, and photos per outcome.

    Raises:
        UserError: a mistake in the arguments, before any work; or any error of `run_job`.
    """
    check_search(search)
    out = absolute(out)
    with retry_limit(FIRST_ANSWER_S):  # report a wrong name or key at once
        source = open_source(photos, out, every, by_hand=False)
        check_has_photos(source, photos)
        detector = read_model(model)
        if read_run_record(out, DetectSettings) is None:
            check_writable(out)
    settings = DetectSettings(
        SCHEMA_VERSION, source.place, detector.id, max_hands, world_joints, every, search
    )
    get_detector = partial(detector_of_process, detector, max_hands, search)
    stages = Stages(
        decode=partial(detect_shard, get_detector=get_detector, world_joints=world_joints),
        model=None,
        schema=detection_schema(settings, source.columns),
    )
    job = Job(out, source, settings, lambda _: stages, plan_decoders, producer={"detector": detector.id})
    return run_job(job, compute, relabel, on_progress)


def detect_shard(entries: Sequence[Entry], get_detector: GetDetector, world_joints: bool) -> Shard:
    """Detect the hands in every photo of a shard."""
    shard = Shard()
    hands: list[DetectedHand] = []
    for _, row, photo in decoded_photos(entries, lambda _: ENOUGH_PX):
        if photo is None:
            shard.rows.append(row)
            continue
        try:
            found = get_detector().detect(photo.pixels, photo.width, photo.height)
        except UserError:  # an unusable detector fails for every photo
            raise
        except Exception as error:  # an internal bug or a bug of the detector fails one photo, not the run
            shard.rows.append(row | row_of_error(error))
            continue
        shard.hand_rows += range(len(shard.rows), len(shard.rows) + len(found))
        nothing = row | without_hand("no_hand_found", "the detector found no hand")
        shard.rows += [row | _scalars(hand, index) for index, hand in enumerate(found)] or [nothing]
        hands += found
    if hands:
        names = ["box_xyxy", "joints2d_px", "landmark_depth_px"] + ["joints3d_mm"] * world_joints
        shard.hands = {name: np.stack([getattr(hand, name) for hand in hands]) for name in names}
    return shard


def detection_schema(settings: DetectSettings, passed: dict[str, pa.DataType] | None = None) -> pa.Schema:
    """Return the schema of a label file without the columns of a hand model."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "hand": None,
        "detector": settings.detector,
        "mediapipe": version("mediapipe") if find_spec("mediapipe") else None,
        "world_joints": settings.world_joints,
        "box_over_joints": BOX_OVER_JOINTS,
        "shapes": {"joints3d_mm": [21, 3], "joints2d_px": [21, 2], "landmark_depth_px": [21]},
        "rounding": {name: step for name, step in ROUNDING.items() if name not in _MESH},
    }
    return pa.schema(
        [field for field in label_schema(1, passed=passed) if field.name not in _MESH],
        metadata={"amvur": json.dumps(facts, sort_keys=True)},
    )


def _scalars(hand: DetectedHand, index: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "hand_index": index,
        "box_source": "detector",
        "is_right": hand.is_right,
        "side_score": hand.side_score,
        "detection_score": hand.detection_score,
    }
