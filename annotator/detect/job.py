"""The job: the hands of every photo of a folder into a label folder, on the processes of one machine.

Shards, their commit and resuming are those of `annotate`, see `io/manifest.py`. The rows are those of labels, with
nothing that needs a hand model: such labels suit any.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from annotator.detect.hands import (
    ENOUGH_PX,
    NO_HAND_FOUND,
    FoundHand,
    HandDetector,
    detector_of_process,
    model_id,
)
from annotator.errors import UserError
from annotator.io.crops import BOX_OVER_JOINTS
from annotator.io.decode import PhotoError, decode_photo, read_photo
from annotator.io.labels import label_files, outcome_rows
from annotator.io.manifest import Manifest, ShardRef, read_shard
from annotator.io.schema import ROUNDING, SCHEMA_VERSION, label_schema
from annotator.io.sources import Entry, FolderSource, readable
from annotator.io.storage import check_writable, is_local, join, local_path, remove_folder
from annotator.run_record import RunRecord, check_settings, read_run_record, write_run_record
from annotator.stations import LabelledShard, ShardReport, count_outcomes, one_line, write_shard

#: Columns of labels whose type depends on a hand model.
_MESH = ("vertices_mm", "vertices_std_mm", "vertex_rgb", "vertex_visible")


@dataclass(frozen=True)
class DetectSettings:
    """Whatever changes a row; two runs into one folder must agree in all of it."""

    schema_version: int
    source: str
    detector: str  # id
    max_hands: int
    world_joints: bool


@dataclass(frozen=True)
class DetectProgress:
    """Told before the first shard and after each."""

    photos: int  # looked at so far, earlier runs included
    total: int
    outcomes: dict[str, int]  # of all of them
    rate: float  # photos per second of this run


def detect(
    photos: str,
    out: str,
    model: str | None = None,
    *,
    max_hands: int = 2,
    world_joints: bool = False,
    workers: int | None = None,
    shard_size: int = 256,
    on_progress: Callable[[DetectProgress], None] | None = None,
) -> RunRecord[DetectSettings]:
    """Find the hands of every photo of a folder; run it again to go on where it stopped.

    Args:
        photos: a folder of photos.
        out: the label folder, made if need be.
        model: path or URL of MediaPipe's `hand_landmarker.task`.
        max_hands: how many hands a photo shows at most.
        world_joints: fill `joints3d_mm` with the detector's own guess.
        workers: processes; the cores of this machine if none.
        shard_size: photos a label file.
        on_progress: called before the first shard and after each.

    Returns:
        The label folder's record: settings, and how many photos ended in what.

    Raises:
        UserError: a mistake in the arguments, before any work; a worker that died, or a full disk.
    """
    if is_local(out):
        out = str(local_path(out).absolute())
    source = FolderSource(photos, leave_out=out)
    if next(iter(source), None) is None:
        raise UserError(f"there are no photos in '{photos}' ({source.skipped_count} files of other kinds)")
    settings = DetectSettings(
        SCHEMA_VERSION, readable(source.folder), model_id(model), max_hands, world_joints
    )
    record = _open_record(out, settings)
    manifest = Manifest(out)
    done = label_files(out)
    strange = done - {ref.file_name for ref in manifest.refs}
    if strange:
        raise UserError(
            f"'{out}/data' holds {min(strange)}, which '_entries' does not know: give a new folder"
        )
    manifest.add(source, shard_size)
    pending = manifest.pending(done)
    if not pending and record.photos == manifest.entry_count:
        return record
    check_writable(out)
    outcomes = Counter(count_outcomes(outcome_rows(out, done)))
    before = outcomes.total()
    began = math.inf  # of the first shard: start-up is no part of the rate

    def tell() -> None:
        if on_progress:
            rate = (outcomes.total() - before) / max(time.time() - began, 1e-3)
            on_progress(DetectProgress(outcomes.total(), manifest.entry_count, dict(outcomes), rate))

    tell()
    for report in _run(out, pending, str(model), settings, workers or _core_count()):
        outcomes.update(report.outcomes)
        began = min(began, report.began)
        tell()
    record.outcomes = dict(sorted(outcomes.items()))
    record.skipped_files, record.skipped_names = source.skipped_count, source.skipped
    record.seconds = round(record.seconds + max(time.time() - began, 0.0), 1)
    write_run_record(out, record)
    remove_folder(join(out, "_tmp"))
    return record


def detect_shard(detector: HandDetector, out: str, ref: ShardRef, settings: DetectSettings) -> ShardReport:
    """Look at every photo of a shard and write its label file; outcomes count photos, whatever hands they show."""
    began = time.time()
    rows: list[dict[str, Any]] = []
    hands: list[FoundHand] = []
    hand_rows: list[int] = []
    for entry in read_shard(out, ref):
        row, found = _look(detector, entry)
        hand_rows += range(len(rows), len(rows) + len(found))
        rows += [row | _scalars(hand, index) for index, hand in enumerate(found)] or [row]
        hands += found
    columns: dict[str, Any] = {}
    if hands:
        names = ["box_xyxy", "joints2d_px"] + ["joints3d_mm"] * settings.world_joints
        columns = {name: np.stack([getattr(hand, name) for hand in hands]) for name in names}
    write_shard(out, LabelledShard(ref, rows, columns, hand_rows, began), detection_schema(settings))
    return ShardReport(ref.number, count_outcomes(rows), began)


def detection_schema(settings: DetectSettings) -> pa.Schema:
    """The columns of a label file without those of a mesh, so of no hand model."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "hand": None,
        "detector": settings.detector,
        "mediapipe": version("mediapipe"),
        "world_joints": settings.world_joints,
        "box_over_joints": BOX_OVER_JOINTS,
        "shapes": {"joints3d_mm": [21, 3], "joints2d_px": [21, 2]},
        "rounding": {name: step for name, step in ROUNDING.items() if name not in _MESH},
    }
    return pa.schema(
        [field for field in label_schema(1) if field.name not in _MESH],
        metadata={"amvur": json.dumps(facts, sort_keys=True)},
    )


def _look(detector: HandDetector, entry: Entry) -> tuple[dict[str, Any], list[FoundHand]]:
    """What the rows of a photo have in common, and its hands."""
    row: dict[str, Any] = {"image_uri": entry.uri, "image_id": entry.id, "hand_index": -1}
    found: list[FoundHand] = []
    try:
        photo = decode_photo(read_photo(entry.path), min_side_px=ENOUGH_PX)
        row |= {"width": photo.width, "height": photo.height}
        found = detector.find(photo.pixels, photo.width, photo.height)
    except PhotoError as error:
        row |= {"status": "unreadable", "reason": error.reason, "error": str(error)}
    except Exception as error:  # a defect of ours or the detector's must cost one photo, not the run
        row |= {"status": "failed", "reason": "internal_error", "error": one_line(error)}
    else:
        if not found:
            row |= NO_HAND_FOUND
    return row, found


def _scalars(hand: FoundHand, index: int) -> dict[str, Any]:
    return {
        "status": "ok",
        "hand_index": index,
        "box_source": "detector",
        "is_right": hand.is_right,
        "side_score": hand.side_score,
        "detection_score": hand.detection_score,
    }


def _run(
    out: str, pending: list[ShardRef], model: str, settings: DetectSettings, workers: int
) -> Iterator[ShardReport]:
    """Give the shards to processes; yields a report as each is committed."""
    executor = ProcessPoolExecutor(
        min(workers, len(pending)),
        mp_context=multiprocessing.get_context("spawn"),  # MediaPipe's threads do not survive a fork
        initializer=_start_worker,
    )
    try:
        futures: list[Future[ShardReport]] = [
            executor.submit(_work, model, out, ref, settings) for ref in pending
        ]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for want of memory; what is there stays, "
            "run the same command again with fewer --workers to go on"
        ) from None
    except OSError as error:
        raise UserError(
            f"labels could not be written to '{out}': {error.strerror or error}; "
            "what is there stays, run the same command again to go on"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """A worker ends at Ctrl-C without a word, and with its parent, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(model: str, out: str, ref: ShardRef, settings: DetectSettings) -> ShardReport:
    return detect_shard(detector_of_process(model, settings.max_hands), out, ref, settings)


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open_record(out: str, settings: DetectSettings) -> RunRecord[DetectSettings]:
    """The label folder's record, or a new one.

    Raises:
        UserError: the folder holds something else, or was made with other settings.
    """
    record = read_run_record(out, DetectSettings)
    if record is None:
        check_writable(out)
        record = RunRecord(settings)
        write_run_record(out, record)
    check_settings(out, record.settings, settings)
    return record
