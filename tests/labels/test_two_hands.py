"""Two hands of one photo: one length, one camera, penetration; and the std of lengths and positions."""

from __future__ import annotations

from functools import partial
from itertools import chain, combinations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trimesh

from annotator import coordinates, export_labels
from annotator.export.meshes import _whole_photos
from annotator.job.shard import Shard
from annotator.job.stages import decode_shard, predict_shard, shard_table
from annotator.labels.folder import label_metadata, write_faces
from annotator.labels.hand_length import hand_length_stds_mm, hand_lengths_mm, position_covariance
from annotator.labels.schema import label_schema
from annotator.labels.two_hands import relate_two_hands
from annotator.lens import Lens
from annotator.photos.camera import PhotoCamera
from annotator.photos.crops import crop_photo
from annotator.sources import ListSource
from tests.robustness.hostile_photos import encoded

PHOTO = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
BOXES = ([20, 20, 120, 130], [150, 40, 280, 180])


def shard_of(predictor, tmp_path, sides: list[str], lengths: list[str] | None = None) -> Shard:
    """Return the labelled hands of one photo, listed with these sides."""
    (tmp_path / "a.png").write_bytes(encoded(PHOTO, "PNG"))
    rows = [
        f"a.png,{side},{length},{','.join(map(str, box))}"
        for side, length, box in zip(
            sides, lengths or [""] * len(sides), [*BOXES, [5, 5, 90, 190]], strict=False
        )
    ]
    (tmp_path / "hands.csv").write_text("\n".join(["path,side,hand_length_mm,x1,y1,x2,y2", *rows]) + "\n")
    entries = list(ListSource(str(tmp_path / "hands.csv")))
    return predict_shard(predictor, decode_shard(entries, predictor.checkpoint.cut_px), "auto", 2)


def read_only(shard: Shard) -> None:
    """Make the arrays as those in shared memory are."""
    for values in [*shard.hands.values(), *shard.hands["camera"].values()]:
        if isinstance(values, np.ndarray):
            values.flags.writeable = False


def test_a_right_and_a_left_hand_get_the_mean_length_and_stay_where_they_are_seen(lively, tmp_path):
    shard = shard_of(lively, tmp_path, ["right", "left"])
    before = {name: np.copy(shard.hands[name]) for name in ("joints3d_mm", "joints2d_px", "vertices_mm")}
    lengths, stds = shard.hands["hand_length_mm"].copy(), shard.hands["hand_length_std_mm"].copy()
    positions = shard.hands["camera"]["cam_t_mm"].copy()
    drawn = shard.hands["vertices_samples_mm"].copy()
    read_only(shard)
    relate_two_hands(shard, lively.checkpoint.hand.faces)
    weights = 1 / stds.astype(float) ** 2
    length = (weights * lengths).sum() / weights.sum()
    hands, camera = shard.hands, shard.hands["camera"]
    np.testing.assert_allclose(hand_lengths_mm(hands["joints3d_mm"]), length, rtol=1e-5)
    np.testing.assert_allclose(hands["hand_length_mm"], length, rtol=1e-5)
    np.testing.assert_allclose(hands["hand_length_std_mm"], weights.sum() ** -0.5, rtol=1e-5)
    factor = length / lengths
    np.testing.assert_allclose(
        hands["vertices_mm"], before["vertices_mm"] * factor[:, None, None], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(
        hands["vertices_samples_mm"], drawn * factor[:, None, None, None], rtol=1e-4, atol=1e-3
    )
    np.testing.assert_allclose(camera["cam_t_mm"], positions * factor[:, None], rtol=1e-4)
    np.testing.assert_array_equal(hands["joints2d_px"], before["joints2d_px"])
    assert len(set(camera["focal_px"])) == 1 and (camera["principal_px"] == [150, 100]).all()


def test_a_tied_hand_is_the_hand_of_that_given_length(lively, tmp_path):
    tied = shard_of(lively, tmp_path, ["right", "left"])
    relate_two_hands(tied, lively.checkpoint.hand.faces)
    length = tied.hands["hand_length_mm"][0]
    given = shard_of(lively, tmp_path, ["right", "left"], [f"{length}"] * 2).hands
    assert (given["hand_length_std_mm"] == 0).all()
    for name in ("joints3d_mm", "joints3d_std_mm", "vertices_mm", "vertex_std_mm", "hand_length_mm",
                 "cam_t_std_mm", "joints3d_samples_mm"):  # fmt: skip
        np.testing.assert_allclose(tied.hands[name], given[name], rtol=1e-4, atol=1e-3)
    for name in ("cam_t_mm", "scale"):
        np.testing.assert_allclose(tied.hands["camera"][name], given["camera"][name], rtol=1e-4)


@pytest.mark.parametrize("sides", [["right"], ["right", "right"], ["right", "left", "left"]])
def test_other_photos_keep_their_sizes(lively, tmp_path, sides):
    shard, alone = (shard_of(lively, tmp_path, sides) for _ in range(2))
    relate_two_hands(shard, lively.checkpoint.hand.faces)
    np.testing.assert_array_equal(shard.hands["vertices_mm"], alone.hands["vertices_mm"])
    table = shard_table(shard, label_schema(800, samples=2))
    assert (table["penetration_mm"].null_count == 1) == (len(sides) == 1)


def test_sizes_stay_with_the_option_off_and_a_given_length_counts_alone(lively, tmp_path):
    free, off = (shard_of(lively, tmp_path, ["right", "left"]) for _ in range(2))
    relate_two_hands(off, lively.checkpoint.hand.faces, tie_sizes=False)
    np.testing.assert_array_equal(off.hands["vertices_mm"], free.hands["vertices_mm"])
    for lengths, expected in ((["170", ""], [170, 170]), (["170", "190"], [170, 190])):
        shard = shard_of(lively, tmp_path, ["right", "left"], lengths)
        relate_two_hands(shard, lively.checkpoint.hand.faces)
        np.testing.assert_allclose(hand_lengths_mm(shard.hands["joints3d_mm"]), expected, rtol=1e-4)
        assert (shard.hands["hand_length_std_mm"] == 0).all()


def test_hands_of_different_photos_and_of_duplicates_are_apart(lively, tmp_path):
    shard = shard_of(lively, tmp_path, ["right", "left"])
    shard.rows[1]["image_uri"] = "another.png"
    before = shard.hands["vertices_mm"].copy()
    relate_two_hands(shard, lively.checkpoint.hand.faces)
    np.testing.assert_array_equal(shard.hands["vertices_mm"], before)
    assert "penetration_mm" not in shard.rows[0]


def test_penetration_is_of_the_hands_in_their_camera(lively, tmp_path):
    table_of = partial(
        shard_table,
        schema=label_schema(800, samples=2),
        finish_shard=partial(relate_two_hands, faces=lively.checkpoint.hand.faces),
    )
    shard = shard_of(lively, tmp_path, ["right", "left"])
    # Put one hand where the other is.
    shard.hands["camera"]["cam_t_mm"][1] = shard.hands["camera"]["cam_t_mm"][0]
    near = table_of(shard)["penetration_mm"].to_pylist()
    shard = shard_of(lively, tmp_path, ["right", "left"])
    shard.hands["camera"]["cam_t_mm"][1] += [0, 0, 2000]
    far = table_of(shard)["penetration_mm"].to_pylist()
    assert near[0] == near[1] > 2 and far == [0, 0]


def test_the_std_of_a_length_and_of_a_position_are_those_of_many_noisy_hands():
    rng = np.random.default_rng(0)
    joints = rng.normal(0, 45, (1, 21, 3))
    joints -= joints[:, :1]
    std = np.abs(rng.normal(2, 0.5, (1, 21, 3)))
    std[:, 0] = 0
    noisy = joints + std * rng.standard_normal((20_000, 21, 3))
    assert hand_length_stds_mm(joints, std)[0] == pytest.approx(hand_lengths_mm(noisy).std(), rel=0.03)

    focal, centre, wrist = np.array([800.0]), np.array([[320.0, 240.0]]), np.array([[90.0, -40.0, 600.0]])
    placed = joints + wrist[:, None]
    seen = 800 * placed[..., :2] / placed[..., 2:] + centre
    std_px = np.abs(rng.normal(3, 1, (1, 21, 2)))
    count = 6000
    finger = np.repeat(rng.standard_normal((count, 5, 1, 3)), 4, 2).reshape(count, 20, 3)
    found = coordinates.camera_translation(
        joints + std * np.concatenate([np.zeros((count, 1, 3)), finger], 1),
        seen + std_px * rng.standard_normal((count, 21, 2)),
        np.repeat(focal, count),
        np.repeat(centre, count, 0),
    )
    covariance = position_covariance(placed, std, focal, std_px)[0]
    np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)), found.std(0), rtol=0.06)
    np.testing.assert_allclose(covariance, np.cov(found.T), atol=0.06 * np.cov(found.T).max())


def test_behind_a_lens_the_std_of_a_position_is_nearly_that_of_the_same_hand_without(lively):
    """On the axis of a weak fisheye, both cameras see almost the same."""
    lens = Lens(400, 400, 85, 75, "fisheye", (0.0, 0.0, 0.0, 0.0))
    plain, behind = (
        lively.predict_crops(
            crop_photo(PHOTO, 300, 200, lively.checkpoint.cut_px, [45, 35, 125, 115], 1.0, 1.0, 180.0, camera)
        )
        for camera in (PhotoCamera(400, (85, 75), "given"), PhotoCamera(400, (85, 75), "given", lens))
    )
    assert plain["hand_length_std_mm"] == behind["hand_length_std_mm"] == 0
    np.testing.assert_allclose(behind["cam_t_std_mm"], plain["cam_t_std_mm"], rtol=0.1)
    np.testing.assert_allclose(behind["joints2d_std_px"], plain["joints2d_std_px"], rtol=0.1)


@pytest.mark.parametrize("kind", ["glb", "ply"])
def test_a_mesh_file_of_a_photo_holds_both_hands_before_its_camera(lively, tmp_path, kind):
    shard = shard_of(lively, tmp_path, ["right", "left"])
    checkpoint = lively.checkpoint
    metadata = label_metadata(checkpoint.id, checkpoint.hand, checkpoint.info.calibration, 2)
    schema = label_schema(800, metadata, samples=2)
    faces = checkpoint.hand.faces
    table = shard_table(shard, schema, partial(relate_two_hands, faces=faces))
    labels = tmp_path / "labels"
    (labels / "data").mkdir(parents=True)
    pq.write_table(table, labels / "data" / "shard-0000000.parquet")
    write_faces(str(labels), faces)
    exported = export_labels(str(labels), str(tmp_path / "meshes"), kind, by_photo=True)
    assert exported.hands == 2
    (file,) = (tmp_path / "meshes").iterdir()
    read = trimesh.load(file, process=False)
    both = trimesh.util.concatenate(list(read.geometry.values())) if kind == "glb" else read
    camera = table["camera"].combine_chunks().field("cam_t_mm").to_pylist()
    expected = [
        (np.array(vertices) + wrist) * [1, -1, -1] / 1000
        for vertices, wrist in zip(table["vertices_mm"].to_pylist(), camera, strict=True)
    ]
    np.testing.assert_allclose(both.vertices, np.concatenate(expected), atol=1e-5)
    assert len(both.faces) == 2 * len(faces)


def test_photos_are_not_cut_between_batches():
    rows = [("a", 0), ("a", 1), ("b", 0), ("c", 0), ("c", 1), ("c", 2)]
    table = pa.table({"image_uri": [uri for uri, _ in rows], "image_id": [uri for uri, _ in rows]})
    for size in range(1, 7):
        parts = _whole_photos((table.slice(k, size) for k in range(0, 6, size)), ["image_uri", "image_id"])
        found = [part["image_uri"].to_pylist() for part in parts]
        assert list(chain(*found)) == [uri for uri, _ in rows]
        assert all(not set(one) & set(other) for one, other in combinations(found, 2))
