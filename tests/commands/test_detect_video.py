"""`annotate --detector` on a video: hands followed between detections, the same labels from any number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.commands.annotate import annotate
from annotator.errors import UserError
from annotator.job.options import ComputeOptions
from tests.conftest import SHARED
from tests.sources.test_video import write_video

pytestmark = pytest.mark.slow

pytest.importorskip("mediapipe", reason="MediaPipe (extra 'detect') is not installed")
pytest.importorskip("av")

MODEL = SHARED / "models" / "hand_landmarker.task"
FRAMES, SHARD = 40, 20


@pytest.fixture(scope="module")
def video(hand_scenes, tmp_path_factory) -> Path:
    """A camera that pans over a real photo of two hands."""
    if not MODEL.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    with Image.open(sorted((hand_scenes / "images").glob("*.jpg"))[3]) as file:
        wide = np.pad(np.asarray(file.convert("RGB")), ((0, 0), (60, 60), (0, 0)), mode="edge")
    path = tmp_path_factory.mktemp("video") / "pan.mp4"

    def picture(number: int) -> np.ndarray:
        x = 60 + round(50 * np.sin(number / 4))
        return wide[:, x : x + 640]

    write_video(path, "libx264", {"crf": "20"}, FRAMES, picture)
    return path


def label(video: Path, labels: Path, workers: int = 1, **options):
    compute = ComputeOptions(workers=workers, shard_size=SHARD, threads=1)
    return annotate(str(video), str(labels), detector=str(MODEL), compute=compute, **options)


def files_of(labels: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((labels / "data").glob("*.parquet"))]


@pytest.fixture(scope="module")
def followed(video, local_ray, tmp_path_factory) -> Path:
    labels = tmp_path_factory.mktemp("followed") / "labels"
    record = label(video, labels)
    assert record.settings.detect_every == 8 and record.outcomes == {"ok": FRAMES}
    return labels


def test_labels_are_those_of_detection_in_every_frame(video, followed, tmp_path):
    label(video, tmp_path / "each", detect_every=1)
    columns = ["frame_index", "hand_index", "box_source", "box_xyxy", "joints2d_px", "is_right"]
    one, other = (
        {
            (row["frame_index"], row["hand_index"]): row
            for path in sorted((labels / "data").glob("*.parquet"))
            for row in pq.read_table(path, columns=columns).to_pylist()
        }
        for labels in (tmp_path / "each", followed)
    )
    assert {row["box_source"] for row in one.values()} == {"detector"}
    detections = {frame for (frame, _), row in other.items() if row["box_source"] == "detector"}
    assert {0, 8, 16, 19, 20, 28, 36, 39} <= detections and len(detections) <= 12
    shared = one.keys() & other.keys()
    assert len(shared) >= 0.95 * max(len(one), len(other))
    moved = [
        np.abs(np.subtract(one[key]["joints2d_px"], other[key]["joints2d_px"])).mean()
        / np.ptp(one[key]["box_xyxy"])
        for key in shared
    ]
    assert np.median(moved) < 0.03
    assert np.mean([one[key]["is_right"] == other[key]["is_right"] for key in shared]) > 0.95


def test_labels_do_not_depend_on_workers_and_resume_to_the_same_bytes(video, followed, tmp_path):
    label(video, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "two") == files_of(followed) and len(files_of(followed)) == 2
    first = sorted((tmp_path / "two" / "data").glob("*.parquet"))[0]
    first.unlink()
    label(video, tmp_path / "two")
    assert files_of(tmp_path / "two") == files_of(followed)


def test_a_resumed_run_keeps_its_own_detect_every(video, followed, tmp_path):
    label(video, tmp_path / "labels", detect_every=1)
    assert label(video, tmp_path / "labels").settings.detect_every == 1
    with pytest.raises(UserError, match="detect_every 1, this run has 4"):
        label(video, tmp_path / "labels", detect_every=4)


@pytest.mark.parametrize("options", [{"detect_every": 0, "detector": str(MODEL)}, {"detect_every": 8}])
def test_detect_every_needs_frames_and_a_detector(tmp_path, options):
    with pytest.raises(UserError, match="detect_every is .: give 1 or more frames, and a detector"):
        annotate(str(tmp_path), str(tmp_path / "labels"), **options)
