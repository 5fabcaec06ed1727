"""LeRobot data sets, read as its documentation lays them out: pyarrow, pandas, Hugging Face `datasets`, PyAV.

LeRobot itself needs another torch and other `datasets` than this project, so its own loader is not run here.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from annotator import UserError
from annotator.export import export_labels
from annotator.export.lerobot_stats import ColourStats, NumberStats
from annotator.hand.joint_angles import joint_angles_deg
from annotator.hand.model import JOINT_NAMES, MOVING_ANGLES
from annotator.hand.refit import refit_pose
from tests.sources.test_video import write_video
from tests.support.moving_labels import (
    HAND,
    LIST_COLUMNS,
    VIDEO_COLUMNS,
    Clip,
    Moving,
    table_of,
    write_labels,
)
from tests.support.tracked_labels import rows_of, write_tracked

CAMERA = "observation.images.camera"
LEFT = Moving(range(4, 34), is_right=False, start_px=(420.0, 150.0), speed_px=(-4.0, 1.0), seed=5)
RIGHT = Moving(range(36), seed=1, missing=(7, 8))
#: A second person's right hand, in fewer frames.
OTHER = Moving(range(6, 20), seed=8, start_px=(500.0, 400.0))


def picture(number: int) -> np.ndarray:
    """A frame whose colour is its number."""
    return np.full((480, 640, 3), (6 * number, 80, 200 - 4 * number), np.uint8)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """Two videos; of the first, frame 30 could not be read."""
    place = tmp_path_factory.mktemp("in")
    clips = [
        Clip(f"{place}/two.mp4", 36, [RIGHT, LEFT, OTHER], unreadable=(30,)),
        Clip(f"{place}/one.mp4", 6, [Moving(range(6), seed=2)]),
    ]
    labels = write_labels(place / "labels", [table_of(clip, VIDEO_COLUMNS) for clip in clips], VIDEO_COLUMNS)
    for clip in clips:
        Path(clip.name).unlink()
        write_video(Path(clip.name), "libx264", {}, count=clip.count, picture=picture)
    return write_tracked(labels, place / "tracked")


@pytest.fixture(scope="module")
def exports(tracked, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("out")
    for form in ("video", "frames", "none"):
        exported = export_labels(str(tracked), str(out / form), "lerobot", photos=form)
        assert exported.hands == 35 + 29 + 6
        assert dict(exported.left_out) == {"hand of a shorter track of the same side": 14}
        assert exported.notes == ["3 episodes, 41 frames at 30 per second"]
    return {form: out / form for form in ("video", "frames", "none")}


def info_of(root: Path) -> dict:
    return json.loads((root / "meta" / "info.json").read_text())


def loaded(root: Path) -> datasets.Dataset:
    """Frames as LeRobot loads them: every file of `data`, with the features of `info.json`."""
    features = {}
    for key, feature in info_of(root)["features"].items():
        (size, *more), kind = feature["shape"], feature["dtype"]
        if kind == "image":
            features[key] = datasets.Image()
        elif kind != "video":
            value = datasets.Value(kind)
            features[key] = value if size == 1 and not more else datasets.Sequence(value, length=size)
    paths = sorted(str(path) for path in (root / "data").glob("*/*.parquet"))
    cache = root.parent / "cache"
    return datasets.Dataset.from_parquet(paths, features=datasets.Features(features), cache_dir=str(cache))


def angles_of(rows: dict[int, dict]) -> dict[int, np.ndarray]:
    """The joint angles of a track by frame, of the pose that its joints have (tests/hand/test_refit.py)."""
    ordered = [rows[frame] for frame in sorted(rows)]
    names = ("pose", "betas", "joints3d_mm", "is_right")
    numbers = [np.array([row[name] for row in ordered]) for name in names]
    fitted = refit_pose(HAND, *numbers, np.zeros(len(ordered), int))
    return dict(zip(sorted(rows), joint_angles_deg(HAND, fitted), strict=True))


@pytest.mark.parametrize("form", ["video", "frames", "none"])
def test_frames_hold_both_hands_of_each_frame(exports, tracked, form):
    frames = loaded(exports[form])
    names = {key: about["names"] for key, about in info_of(exports[form])["features"].items()}
    place = str(tracked.parent / "two.mp4")
    of_side = [{row["frame_index"]: row for row in rows_of(tracked, place, track)} for track in (0, 1)]
    of_joints = [angles_of(rows) for rows in of_side]
    numbers = [k for k in range(36) if k != 30]
    for number, frame in zip(numbers, frames.select(range(35)), strict=True):
        assert frame["observation.source_time_s"] == pytest.approx(number / 30)
        for side, (name, rows) in enumerate(zip(("right", "left"), of_side, strict=True)):
            row = rows.get(number)
            assert frame["observation.valid"][side] == (row is not None)
            part = {
                key: dict(zip(names[key], frame[key], strict=True))
                for key in (
                    "observation.state",
                    "observation.fingertips",
                    "observation.joints",
                    "observation.joints_std",
                )
            }
            if row is None:
                assert frame["observation.track_id"][side] == -1
                assert not any(v for each in part.values() for key, v in each.items() if key.startswith(name))
                continue
            assert frame["observation.track_id"][side] == row["track_id"] == side
            assert frame["observation.interpolated"][side] == (row["source"] == "interpolated")
            placed_m = (np.array(row["joints3d_mm"]) + row["camera"]["cam_t_mm"]) / 1000
            for k, joint in enumerate(JOINT_NAMES):
                for axis in range(3):
                    at = f"{name}_{joint}_{'xyz'[axis]}"
                    assert part["observation.joints"][f"{at}_m"] == pytest.approx(placed_m[k, axis], rel=1e-6)
                    std = part["observation.joints_std"][f"{at}_std_m"]
                    assert std == pytest.approx(row["joints3d_std_mm"][k][axis] / 1000, rel=1e-6)
                    if joint.endswith("tip"):
                        assert part["observation.fingertips"][f"{at}_m"] == pytest.approx(
                            placed_m[k, axis], rel=1e-6
                        )
            state = part["observation.state"]
            np.testing.assert_allclose(
                [state[f"{name}_wrist_{axis}_m"] for axis in "xyz"],
                np.array(row["camera"]["cam_t_mm"]) / 1000,
                rtol=1e-6,
            )
            # The wrist's rotation takes the hand at rest, mirrored for a left one, into the camera's axes.
            rotation = Rotation.from_quat([state[f"{name}_wrist_q{axis}"] for axis in "xyzw"]).as_matrix()
            rest = HAND.J_regressor @ (HAND.v_template + HAND.shapedirs @ row["betas"])
            palm = (
                (rest[[1, 4, 7, 10]] - rest[0]) * ([1, 1, 1] if row["is_right"] else [-1, 1, 1]) @ rotation.T
            )
            np.testing.assert_allclose(1000 * palm, np.array(row["joints3d_mm"])[[5, 9, 17, 13]], atol=1.2)
            angles = of_joints[side][number][list(MOVING_ANGLES)]
            found = [value for key, value in state.items() if key.startswith(name) and key.endswith("_rad")]
            np.testing.assert_allclose(np.degrees(found), angles, atol=1e-3)
        focal, principal = frame["observation.intrinsics"][:2], frame["observation.intrinsics"][2:]
        assert focal == [1e7, 1e7] and principal == [320, 240]
    rotations = np.array(frames["observation.state"])[:30, 3:7]
    assert ((rotations[1:] * rotations[:-1]).sum(1) > 0).all()


def test_counters_and_episodes_follow_the_layout(exports):
    for root in exports.values():
        about, frames = info_of(root), loaded(root)
        assert (about["codebase_version"], about["fps"]) == ("v3.0", 30)
        assert (about["total_episodes"], about["total_frames"], about["total_tasks"]) == (3, 41, 1)
        episodes = pd.concat(map(pd.read_parquet, sorted((root / "meta" / "episodes").glob("*/*.parquet"))))
        # An unreadable frame ends an episode.
        assert episodes["length"].tolist() == [30, 5, 6]
        assert episodes["dataset_from_index"].tolist() == [0, 30, 35]
        assert episodes["dataset_to_index"].tolist() == [30, 35, 41]
        assert episodes["source_start_s"].tolist() == pytest.approx([0, 31 / 30, 0])
        assert [Path(name).name for name in episodes["source"]] == ["two.mp4", "two.mp4", "one.mp4"]
        assert frames["index"][:] == list(range(41))
        assert frames["episode_index"][:] == [0] * 30 + [1] * 5 + [2] * 6
        assert frames["frame_index"][:] == [*range(30), *range(5), *range(6)]
        np.testing.assert_allclose(frames["timestamp"], np.array(frames["frame_index"]) / 30, atol=1e-6)
        tasks = pd.read_parquet(root / "meta" / "tasks.parquet")
        assert tasks.iloc[0].name == "move the hands" and int(tasks.loc["move the hands"].task_index) == 0
        for _, episode in episodes.iterrows():
            path = about["data_path"].format(
                chunk_index=episode["data/chunk_index"], file_index=episode["data/file_index"]
            )
            assert episode["episode_index"] in pq.read_table(root / path)["episode_index"].to_pylist()
            assert episode["meta/episodes/file_index"] == 0


def test_a_timestamp_finds_its_frame_in_the_video(exports):
    root = exports["video"]
    about = info_of(root)
    assert (
        about["features"][CAMERA]["shape"] == [480, 640, 3] and about["features"][CAMERA]["dtype"] == "video"
    )
    episodes = pd.read_parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    frames = loaded(root)
    assert CAMERA not in frames.column_names
    path = root / about["video_path"].format(video_key=CAMERA, chunk_index=0, file_index=0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        shown = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    assert len(shown) == 41
    for frame in frames:
        time_s = episodes[f"videos/{CAMERA}/from_timestamp"][frame["episode_index"]] + frame["timestamp"]
        (pixels,) = [pixels for at, pixels in shown if abs(at - time_s) < 1e-4]
        number = round(frame["observation.source_time_s"] * 30)
        assert np.abs(pixels.mean((0, 1)) - picture(number)[0, 0]).max() < 5.5


def test_frames_are_files_in_the_table(exports):
    frames = loaded(exports["frames"])
    for frame in frames:
        number = round(frame["observation.source_time_s"] * 30)
        assert np.abs(np.asarray(frame[CAMERA]).mean((0, 1)) - picture(number)[0, 0]).max() < 5.5
    assert not (exports["frames"] / "videos").exists() and not (exports["none"] / "videos").exists()
    assert info_of(exports["frames"])["video_path"] is None


def test_statistics_are_those_of_the_hands_that_are_there(exports):
    root = exports["video"]
    stats = json.loads((root / "meta" / "stats.json").read_text())
    table = pq.read_table(root / "data" / "chunk-000" / "file-000.parquet")
    valid = np.array(table["observation.valid"].to_pylist())
    state = np.array(table["observation.state"].to_pylist())
    for side, columns in enumerate((slice(0, 27), slice(27, 54))):
        own = state[valid[:, side], columns]
        of_side = {
            name: np.array(part)[columns]
            for name, part in stats["observation.state"].items()
            if name != "count"
        }
        np.testing.assert_allclose(of_side["mean"], own.mean(0), rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(of_side["std"], own.std(0), rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(of_side["min"], own.min(0))
        np.testing.assert_array_equal(of_side["max"], own.max(0))
    assert stats["observation.state"]["count"] == [41] and np.shape(stats[CAMERA]["mean"]) == (3, 1, 1)
    assert np.ravel(stats[CAMERA]["mean"])[1] == pytest.approx(80 / 255, abs=0.01)
    episode = pd.read_parquet(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet").iloc[2]
    own = state[35:, :27]
    np.testing.assert_allclose(
        episode["stats/observation.state/q90"][:27], np.quantile(own, 0.9, axis=0), rtol=1e-6
    )
    assert episode["stats/observation.state/mean"][27:].tolist() == [0] * 27


def test_statistics_agree_with_numpy():
    rng = np.random.default_rng(0)
    stats, parts, known = NumberStats(4), [], []
    for count in (3, 50, 1):
        parts.append(rng.normal(2, 3, (count, 4)))
        known.append(rng.random((count, 4)) < 0.6)
        known[-1][:, 3] = False
        stats.episode(parts[-1], known[-1])
    whole, mask = np.concatenate(parts), np.concatenate(known)
    summary = stats.summary()
    for k in range(3):
        own = whole[mask[:, k], k]
        assert summary["mean"][k] == pytest.approx(own.mean()) and summary["std"][k] == pytest.approx(
            own.std()
        )
        assert (summary["min"][k], summary["max"][k]) == (own.min(), own.max())
    assert summary["mean"][3] == summary["max"][3] == 0 and summary["count"] == [54]
    colours, pixels = ColourStats(), rng.integers(0, 256, (64, 96, 3), np.uint8)
    colours.add(pixels)
    part = pixels[::8, ::8].reshape(-1, 3) / 255
    summary = colours.summary()
    np.testing.assert_allclose(np.ravel(summary["mean"]), part.mean(0))
    np.testing.assert_allclose(np.ravel(summary["std"]), part.std(0))
    np.testing.assert_allclose(
        np.ravel(summary["q50"]), np.quantile(part, 0.5, axis=0, method="inverted_cdf")
    )
    np.testing.assert_allclose(np.ravel(summary["max"]), part.max(0))


@pytest.fixture()
def listed(tmp_path) -> Path:
    """Photos of two lists' sequences with tasks of their own; of the second, at another rate."""
    columns = LIST_COLUMNS | {"task": pa.string()}
    clips = [
        Clip("pour", 8, [Moving(range(8), seed=1)], listed=True),
        Clip("fast", 8, [Moving(range(8), seed=2)], listed=True, times=[k / 60 for k in range(8)]),
        Clip("stir", 5, [Moving(range(5), seed=3)], listed=True),
    ]
    tables = [
        table_of(clip, LIST_COLUMNS).append_column("task", [[f"{clip.name} the soup"] * clip.count])
        for clip in clips
    ]
    labels = write_labels(tmp_path / "labels", tables, columns)
    photos = tmp_path / "photos"
    tracked = write_tracked(labels, tmp_path / "tracked")
    for path in sorted((tracked / "data").iterdir()):
        table = pq.read_table(path)
        uris = [str(photos / uri) for uri in table["image_uri"].to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("image_uri"), "image_uri", [uris]), path)
    return tracked


def test_photos_of_lists_with_tasks_and_faults(listed, tmp_path):
    photos = listed.parent / "photos"
    (photos / "pour-003.jpg").unlink()
    Image.new("RGB", (64, 48)).save(photos / "pour-006.jpg")
    (photos / "stir-004.jpg").write_bytes(b"no photo")
    exported = export_labels(str(listed), str(tmp_path / "out"), "lerobot", photos="frames")
    assert exported.hands == 3 + 2 + 1 + 4
    assert dict(exported.left_out) == {
        "hand without its photo: missing": 1,
        "hand in a photo of another size than the label": 1,
        "hand in a video with a frame rate other than 30": 8,
        "hand without its photo: not_a_photo": 1,
    }
    frames = loaded(tmp_path / "out")
    assert frames["episode_index"][:] == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]
    tasks = pd.read_parquet(tmp_path / "out" / "meta" / "tasks.parquet")
    assert tasks.index.tolist() == ["pour the soup", "stir the soup"]
    assert frames["task_index"][:] == [0] * 6 + [1] * 4
    stored = pq.read_table(tmp_path / "out" / "data")[CAMERA][0]["bytes"].as_py()
    assert stored == (photos / "pour-000.jpg").read_bytes()


def test_mistakes_are_one_line_and_leave_no_files(listed, tracked, tmp_path):
    out = str(tmp_path / "out")
    for options, words in (
        ({"photos": "films"}, "no photos 'films': give one of video, frames, none"),
        ({"where": "track_id == 99"}, "none of the .* rows .* there is nothing to export"),
    ):
        with pytest.raises(UserError, match=words):
            export_labels(str(tracked), out, "lerobot", **options)
    with pytest.raises(UserError, match=r"photos \(--photos\) is for lerobot, not for csv"):
        export_labels(str(tracked), f"{out}.csv", "csv", photos="video")
    with pytest.raises(UserError, match="holds no tracks, which lerobot needs"):
        export_labels(str(listed.parent / "labels"), out, "lerobot")
    shutil.rmtree(listed.parent / "photos")
    with pytest.raises(
        UserError,
        match="exported to lerobot: 13 hand without its photo: missing, 8 hand in",
    ):
        export_labels(str(listed), out, "lerobot")
