"""`amvur track`: label sets of videos and of numbered frames to tracked ones, in any state of either folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch
from pycocotools.coco import COCO

from annotator.commands.filter import Keep, filter_labels
from annotator.commands.track import crashed_sequences, track, tracked_tables
from annotator.errors import UserError
from annotator.export import export_labels
from annotator.job.options import ComputeOptions
from annotator.labels.schema import encode_table, label_schema
from annotator.report import write_report
from annotator.sources.sequences import ADDED, SequenceSource, read_sequence
from tests.support.killed_run import changed_ns, kill_after_first_shard
from tests.support.moving_labels import (
    HAND,
    LAYER,
    LIST_COLUMNS,
    RATE_HZ,
    VIDEO_COLUMNS,
    Clip,
    Moving,
    hands_of,
    table_of,
    write_labels,
)

pytestmark = pytest.mark.slow

SMALL = ComputeOptions(workers=1, shard_size=1)

LEFT = Moving(range(4, 34), is_right=False, start_px=(420.0, 150.0), speed_px=(-4.0, 1.0), seed=5)
RIGHT = Moving(range(36), seed=1, missing=(7, 8, 20), flipped=(12, 13, 25))
ALONE = Moving(range(30), seed=3, missing=(*range(6, 9), *range(15, 30)))


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    """Three videos: hands that cross, one that is lost and seen no more, and one without any hand."""
    clips = [
        Clip("crossing.mp4", 36, [RIGHT, LEFT], unreadable=(30,)),
        Clip("alone.mp4", 30, [ALONE]),
        Clip("empty.mp4", 4, []),
    ]
    tables = [table_of(clip, VIDEO_COLUMNS) for clip in clips]
    return write_labels(tmp_path_factory.mktemp("in") / "labels", tables, VIDEO_COLUMNS)


def tracked_rows(labels: Path, max_gap: int = 5, one_person: bool = False) -> list[dict]:
    """Rows of a tracked label set, made without Ray."""
    source = SequenceSource(str(labels))
    schema = label_schema(HAND.vertex_count, None, source.columns | ADDED)
    tables = tracked_tables(list(source), str(labels), HAND, max_gap, schema, one_person)
    return [row for table in tables for row in table.to_pylist()]


@pytest.fixture(scope="module")
def rows(labels) -> list[dict]:
    return tracked_rows(labels)


def of(rows: list[dict], name: str, track_id: int | None = None) -> list[dict]:
    return [
        row for row in rows if row["image_uri"] == name and (track_id is None or row["track_id"] == track_id)
    ]


def test_hands_that_cross_are_two_tracks_of_one_side_each(rows):
    crossing = of(rows, "crossing.mp4")
    assert {row["track_id"] for row in crossing} == {0, 1, None}  # None: the frame that could not be read
    right, left = of(rows, "crossing.mp4", 0), of(rows, "crossing.mp4", 1)
    assert [row["frame_index"] for row in left] == [k for k in range(4, 34) if k != 30]
    assert {row["is_right"] for row in left} == {False} and {row["is_right"] for row in right} == {True}
    assert right[0]["side_score"] == pytest.approx(np.mean([0.8] * 29 + [0.4] * 3), abs=0.02)
    assert {json.dumps(row["betas"]) for row in right} == {json.dumps(right[0]["betas"])}


def test_gaps_and_frames_of_the_other_side_are_interpolated_and_say_so(rows):
    right = of(rows, "crossing.mp4", 0)
    assert [row["frame_index"] for row in right] == [k for k in range(36) if k != 30]
    marked = [row["frame_index"] for row in right if row["source"] == "interpolated"]
    assert marked == [7, 8, 12, 13, 20, 25]
    filled = [row for row in right if row["frame_index"] in (7, 8, 20)]
    for row in filled:
        assert (row["status"], row["reason"], row["box_source"]) == ("ok", None, "track")
        assert row["detection_score"] is None and row["width"] == 640 and row["place"] == "kitchen"
        # The other hand has index 0 in these frames.
        assert row["hand_index"] == 1


def test_a_frame_that_was_without_a_hand_is_filled_and_a_long_gap_is_not(rows):
    alone = of(rows, "alone.mp4")
    assert [row["status"] for row in alone] == ["ok"] * 15 + ["no_hand"] * 15
    assert [row["frame_index"] for row in alone if row["source"] == "interpolated"] == [6, 7, 8]
    std_mm = [row["joint_std_mm"] for row in alone[:15]]
    assert std_mm[7] > max(std_mm[4], std_mm[10])
    assert all(row["hand_index"] == 0 for row in alone[:15])
    assert all(row["hand_index"] == -1 and row["track_id"] is None for row in alone[15:])
    assert [row["status"] for row in of(rows, "empty.mp4")] == ["no_hand"] * 4
    (damaged,) = [row for row in of(rows, "crossing.mp4") if row["frame_index"] == 30]
    assert damaged["reason"] == "corrupt" and damaged["track_id"] is None


def test_hands_of_one_person_have_one_shape_and_length(labels, rows):
    own = {track: of(rows, "crossing.mp4", track)[0]["betas"] for track in (0, 1)}
    assert np.abs(np.subtract(own[0], own[1])).max() > 0.2
    crossing = of(tracked_rows(labels, one_person=True), "crossing.mp4")
    hands = [row for row in crossing if row["track_id"] is not None]
    assert len({json.dumps(row["betas"]) for row in hands}) == 1
    read = pq.read_table(labels / "data").to_pylist()
    seen = [row for row in read if row["image_uri"] == "crossing.mp4" and row["pose"] is not None]
    seen = [row for row in seen if row["frame_index"] not in RIGHT.flipped or row["side_score"] > 0.7]
    # All labels have one std here, so that weights are equal.
    np.testing.assert_allclose(hands[0]["betas"], np.mean([row["betas"] for row in seen], 0), atol=1e-3)
    assert len({round(row["hand_length_mm"], 2) for row in hands}) == 1
    for row in hands:
        joints = np.array(row["joints3d_mm"])[[0, 9, 10, 11, 12]]
        assert np.linalg.norm(np.diff(joints, axis=0), axis=1).sum() == pytest.approx(
            row["hand_length_mm"], abs=0.2
        )
    lengths = [
        np.mean([row["hand_length_mm"] for row in seen if row["is_right"] is side]) for side in (True, False)
    ]
    assert min(lengths) < hands[0]["hand_length_mm"] < max(lengths)
    assert hands[0]["hand_length_std_mm"] < min(row["hand_length_std_mm"] for row in seen)


def test_a_lists_column_names_the_owners_of_hands(tmp_path):
    """Two hands are Ann's, one is Bob's; the names are in the columns of each hand's row."""
    hands = [
        Moving(range(12), start_px=(150.0 + 170 * k, 240.0), speed_px=(0.0, 0.0), seed=k) for k in range(3)
    ]
    table = table_of(Clip("one", 12, hands, listed=True), LIST_COLUMNS)
    names = ["ann" if index < 2 else "bob" for index in table["hand_index"].to_pylist()]
    columns = LIST_COLUMNS | {"person": pa.string()}
    folder = write_labels(tmp_path / "labels", [table.append_column("person", pa.array(names))], columns)
    made = tracked_rows(folder, one_person=True)
    betas = [{json.dumps(row["betas"]) for row in made if row["track_id"] == track} for track in range(3)]
    assert [len(each) for each in betas] == [1, 1, 1] and betas[0] == betas[1] != betas[2]


def test_smoothing_brings_joints_nearer_to_the_true_motion_without_jitter(labels, rows):
    def jitter(joints):
        return np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1).mean()

    true = hands_of(LEFT, noise=False)["joints3d_mm"]
    seen = [row for row in pq.read_table(labels / "data").to_pylist() if row["is_right"] is False]
    seen = [
        row for row in seen if row["image_uri"] == "crossing.mp4" and row["frame_index"] not in RIGHT.flipped
    ]
    before = {row["frame_index"]: np.array(row["joints3d_mm"]) for row in seen}
    after = {row["frame_index"]: np.array(row["joints3d_mm"]) for row in of(rows, "crossing.mp4", 1)}
    common = sorted(set(before) & set(after))
    error = {
        name: np.mean([np.linalg.norm(one[k] - true[k - 4], axis=1).mean() for k in common])
        for name, one in (("before", before), ("after", after))
    }
    assert error["after"] < 0.6 * error["before"]
    block = range(14, 25)  # labelled without a gap
    assert jitter(np.stack([after[k] for k in block])) < 0.2 * jitter(np.stack([before[k] for k in block]))


def test_columns_of_a_track_agree_with_each_other_as_those_of_any_label(rows):
    for row in rows:
        if row["track_id"] is None:
            continue
        joints, camera = np.array(row["joints3d_mm"]), row["camera"]
        x0, y0, x1, _ = row["crop_xyxy"]
        half = (x1 - x0) / 2
        rotated = joints @ roma.rotvec_to_rotmat(torch.tensor(camera["rotation"])).numpy().T
        seen = (camera["scale"] * rotated[:, :2] + camera["translation"]) * half + [x0 + half, y0 + half]
        np.testing.assert_allclose(seen, row["joints2d_px"], atol=0.1)
        rotations = roma.rotvec_to_rotmat(torch.tensor(row["pose"]).view(1, 16, 3))
        vertices, _ = LAYER(rotations, torch.tensor(row["betas"])[None])
        side = [1, 1, 1] if row["is_right"] else [-1, 1, 1]
        np.testing.assert_allclose(vertices[0].numpy() * side, row["vertices_mm"], atol=0.15)
        std = np.linalg.norm(np.array(row["joints3d_std_mm"])[1:], axis=1)
        assert not np.any(row["joints3d_std_mm"][0]) and std.min() > 0
        assert row["joint_std_mm"] == pytest.approx(std.mean(), rel=0.02)


def test_frames_of_a_list_may_lie_in_any_order_and_in_any_file(tmp_path):
    clips = [
        Clip("one", 20, [Moving(range(20), seed=1)], listed=True),
        Clip("two", 20, [Moving(range(20), seed=2)], listed=True),
    ]
    tables = [table_of(clip, LIST_COLUMNS) for clip in clips]
    sorted_set = write_labels(tmp_path / "sorted" / "labels", tables, LIST_COLUMNS)
    both = pa.concat_tables(tables)
    shuffled = both.take(np.random.default_rng(0).permutation(len(both)))
    mixed = write_labels(tmp_path / "mixed" / "labels", [shuffled], LIST_COLUMNS, per_file=7)

    def by_id(folder):
        return {row["image_id"]: row for row in tracked_rows(folder)}

    assert by_id(sorted_set) == by_id(mixed)


def test_frames_that_are_missing_from_the_set_are_a_gap_in_time(tmp_path):
    """Frames 8 to 11 have no row, then 20 to 39: the first gap is short enough."""
    clip = Clip("thin", 50, [Moving(range(50), seed=1)], listed=True)
    table = table_of(clip, LIST_COLUMNS)
    keep = [k for k in range(50) if k not in range(8, 12) and k not in range(20, 40)]
    folder = write_labels(tmp_path / "labels", [table.take(keep)], LIST_COLUMNS)
    made = tracked_rows(folder)
    assert len(made) == len(keep)  # no photo to fill
    assert [row["track_id"] for row in made] == [0] * 16 + [1] * 10


def test_a_variable_frame_rate_is_followed_by_its_times(tmp_path):
    """The same motion at times that are not even: velocities are per second, not per frame."""
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.uniform(0.5, 1.5, 40)) / RATE_HZ
    folder = write_labels(
        tmp_path / "labels",
        [
            table_of(
                Clip("vfr", 40, [Moving(range(40), noise=0.0)], times=times.tolist(), listed=True),
                LIST_COLUMNS,
            )
        ],
        LIST_COLUMNS,
    )
    assert {row["track_id"] for row in tracked_rows(folder)} == {0}


def test_one_frame_is_a_track_as_it_was_and_photos_of_no_sequence_pass_through(tmp_path):
    columns = LIST_COLUMNS
    single = table_of(Clip("one", 1, [Moving(range(1))], listed=True), columns)
    photo = table_of(Clip("two", 2, [Moving(range(2), seed=4)], listed=True), columns)
    photo = photo.set_column(photo.schema.get_field_index("sequence"), "sequence", pa.nulls(2, pa.string()))
    folder = write_labels(tmp_path / "labels", [single, photo], columns)
    before = pq.read_table(folder / "data").to_pylist()
    after = tracked_rows(folder)
    assert [row["track_id"] for row in after] == [0, None, None]
    for old, new in zip(before, after, strict=True):
        for name in ("joints3d_mm", "vertices_mm", "joints3d_std_mm", "joints2d_px", "pose", "betas"):
            np.testing.assert_allclose(new[name], old[name], atol=0.15, err_msg=name)
        assert new["vertex_rgb"] == old["vertex_rgb"] and new["is_right"] == old["is_right"]


def test_a_label_that_is_not_a_number_stays_as_it_is_and_harms_no_other(tmp_path):
    table = table_of(Clip("one", 12, [Moving(range(12))], listed=True), LIST_COLUMNS)
    pose = table["pose"].to_pylist()
    pose[5] = [float("nan")] * 48
    folder = write_labels(tmp_path / "labels", [changed(table, "pose", pose)], LIST_COLUMNS)
    made = tracked_rows(folder)
    assert len(made) == 13  # the gap that it leaves is filled beside it
    bad = [row for row in made if np.isnan(row["pose"]).any()]
    assert [(row["frame"], row["track_id"], row["hand_index"]) for row in bad] == [(5, None, 0)]
    assert all(np.isfinite(row["joints3d_mm"]).all() for row in made)
    assert {row["track_id"] for row in made if row not in bad} == {0}


def test_labels_of_before_the_newest_columns_are_tracked_to_the_same_hands(tmp_path):
    table = table_of(Clip("one", 12, [Moving(range(12), missing=(7,))], listed=True), LIST_COLUMNS)
    pose = table["pose"].to_pylist()
    pose[5] = [float("nan")] * 48  # a hand in no track
    table = changed(table, "pose", pose)
    newest = ["hand_length_mm", "hand_length_std_mm", "cam_t_std_mm", "penetration_mm"]
    newest += ["joint_visible", "joint_visible_score", "hidden_joints"]
    folder = write_labels(tmp_path / "labels", [table], LIST_COLUMNS)
    expected = tracked_rows(folder)
    for file in (folder / "data").glob("*.parquet"):
        file.write_bytes(encode_table(pq.read_table(file).drop_columns(newest)))
    found = tracked_rows(folder)
    assert len(found) == len(expected) == 13
    for old, new in zip(found, expected, strict=True):
        made = newest[:3] if old["track_id"] is not None else []
        same = [name for name in new if name not in newest or name in made]
        assert str([old[name] for name in same]) == str([new[name] for name in same])  # NaN is not itself
        if old["track_id"] is None:
            assert np.isnan(old["hand_length_mm"]) and np.isnan(old["cam_t_std_mm"]).all()


def changed(table: pa.Table, name: str, values: list) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))


def test_labels_without_tracks_are_refused_in_one_line(labels, tmp_path):
    listed = table_of(Clip("one", 3, [Moving(range(3))], listed=True), LIST_COLUMNS)
    cases = {
        "time": (
            changed(listed, "time_s", [0.0, 0.5, 0.5]),
            "time_s is 0.5, not later than in the previous frame",
        ),
        "number": (
            changed(listed, "frame", [0, None, 2]),
            "frame is None; every frame of a sequence needs a number",
        ),
        "twice": (changed(listed, "frame", [0, 1, 1]), "frame 1 is the number of another photo"),
    }
    for name, (table, words) in cases.items():
        folder = write_labels(tmp_path / name / "labels", [table], LIST_COLUMNS)
        with pytest.raises(UserError, match=words) as error:
            tracked_rows(folder)
        assert "\n" not in str(error.value)
    out = str(tmp_path / "out")
    photos = write_labels(
        tmp_path / "photos" / "labels", [changed(listed, "sequence", [None] * 3)], LIST_COLUMNS
    )
    with pytest.raises(UserError, match="holds single photos: track labels of videos"):
        list(SequenceSource(str(photos)))
    (tmp_path / "points" / "data").mkdir(parents=True)
    file = pq.read_table(labels / "data" / "shard-0000000.parquet")
    for name, table, words in (
        ("points", file.drop(["pose"]), "holds no meshes: give a label set of `amvur annotate`"),
        (
            "again",
            file.append_column("track_id", pa.array([0] * len(file), pa.int32())),
            "is tracked already",
        ),
    ):
        folder = tmp_path / name
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "data" / "shard-0000000.parquet").write_bytes(encode_table(table))
        with pytest.raises(UserError, match=words):
            track(str(folder), out)
    half = tmp_path / "half"
    half.mkdir()
    (half / "_run.json").write_text('{"settings": {}}')
    with pytest.raises(
        UserError, match="is unfinished: run the same `amvur annotate` or `amvur fit` command again first"
    ):
        track(str(half), out)
    with pytest.raises(UserError, match="holds no labels"):
        track(str(tmp_path / "nowhere"), out)
    with pytest.raises(UserError, match="is the label set to track: give another output folder"):
        track(str(labels), str(labels))
    with pytest.raises(UserError, match=r"max_gap \(--max-gap\) is -1: give 0 or more"):
        track(str(labels), out, max_gap=-1)
    assert not Path(out).exists()


def test_a_sequence_that_ends_every_process_has_all_its_rows(labels):
    (entry, *_) = SequenceSource(str(labels))
    shard = crashed_sequences([entry], str(labels))
    assert len(shard.rows) == len(read_sequence(str(labels), entry)) and entry.photos == 36
    assert {row["reason"] for row in shard.rows} == {"crashed"}


@pytest.fixture(scope="module")
def made(labels, tmp_path_factory, local_ray):
    before = {path: path.read_bytes() for path in labels.rglob("*") if path.is_file()}
    out = tmp_path_factory.mktemp("out") / "tracked"
    record = track(str(labels), str(out), max_gap=5, compute=SMALL)
    assert {path: path.read_bytes() for path in labels.rglob("*") if path.is_file()} == before
    return out, record


def test_a_tracked_set_is_a_label_set_to_report_filter_and_export(labels, made, rows, tmp_path):
    out, record = made
    assert record.outcomes == {"no_hand: no_hand_found": 19, "ok": 50, "unreadable: corrupt": 1}
    assert len(list((out / "data").iterdir())) == 3
    assert pq.read_table(out / "data").to_pylist() == rows
    facts = json.loads(pq.read_schema(out / "data" / "shard-0000000.parquet").metadata[b"amvur"])
    assert facts["hand"] == HAND.id and facts["max_gap"] == 5
    page = write_report(str(out), tmp_path / "report", count=4).read_text()
    assert str(labels) in page and "up to 5 frames" in page
    kept = filter_labels(str(out), str(tmp_path / "kept"), Keep(where="track_id == 1 and source == label"))
    assert kept.kept == 29
    export_labels(str(tmp_path / "kept"), str(tmp_path / "hands.json"), "coco")
    assert len(COCO(str(tmp_path / "hands.json")).anns) == 29
    # A second run changes nothing; another setting is refused.
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*")}
    assert track(str(labels), str(out), max_gap=5, compute=SMALL) == record
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*")} == stamps
    with pytest.raises(UserError, match="was labelled with max_gap 5, this run has 6"):
        track(str(labels), str(out), max_gap=6, compute=SMALL)


def test_a_killed_run_resumes_to_the_same_bytes(labels, made, tmp_path):
    undisturbed, record = made
    out = tmp_path / "tracked"
    compute = "compute=annotator.ComputeOptions(workers=1, shard_size=1)"
    call = f"annotator.track_labels({str(labels)!r}, {str(out)!r}, max_gap=5, {compute})"
    committed = kill_after_first_shard(call, out)
    assert 1 <= len(committed) <= 3
    again = track(str(labels), str(out), max_gap=5, compute=SMALL)
    assert again.outcomes == record.outcomes

    def contents(folder):
        return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}

    assert contents(out) == contents(undisturbed)
    assert committed.items() <= changed_ns(out).items()
