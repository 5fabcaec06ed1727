from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import roma
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.hand.layer import HandLayer
from annotator.labels.schema import label_schema
from annotator.render import nearest_faces
from trainer.synth import write, write_photos
from trainer.synth.colour import lab_to_linear, stored
from trainer.synth.figure import ARM, HAND, Figure
from trainer.synth.forearm import RINGS_MM, open_edge
from trainer.synth.truth import weak_perspective
from trainer.synth.write import BLOCK, PhotosPlan

COUNT, SIZE_PX = 40, 128


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synth") / "hands"
    write_photos(folder, COUNT, seed=4, size_px=SIZE_PX)
    return folder


@pytest.fixture(scope="module")
def truth(out: Path) -> dict[str, Any]:
    table = pq.read_table(out / "truth.parquet")
    columns = {name: table[name].to_pylist() for name in table.column_names}
    camera = {name: np.array([row[name] for row in columns["camera"]]) for name in columns["camera"][0]}
    return {name: np.array(values) for name, values in columns.items()} | {"camera": camera}


def all_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_photo(points_px: np.ndarray) -> np.ndarray:
    return points_px.clip(0, SIZE_PX - 1).astype(int)


def seen_px(truth: dict[str, Any], points_mm: np.ndarray) -> np.ndarray:
    """Project camera points (N, K, 3) through the true pinhole to photo pixels."""
    camera = truth["camera"]
    moved = points_mm + camera["cam_t_mm"][:, None]
    seen = camera["focal_px"][:, None, None] * moved[..., :2] / moved[..., 2:]
    return seen + camera["principal_px"][:, None]


def vertices_px(truth: dict[str, Any]) -> np.ndarray:
    return seen_px(truth, truth["vertices_mm"])


@pytest.mark.slow
def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_photos(tmp_path / name, 3, seed, 64)
    a, b, c = (all_bytes(tmp_path / name) for name in "abc")
    names = [f"images/00000{i}.jpg" for i in range(3)] + [f"masks/00000{i}.png" for i in range(3)]
    assert sorted(a) == [*names, "truth.parquet"]
    assert a == b
    assert all(a[name] != c[name] for name in a)


def test_a_photo_and_its_truth_do_not_depend_on_how_many_are_drawn(out: Path, tmp_path: Path) -> None:
    few = BLOCK + 2
    write_photos(tmp_path, few, seed=4, size_px=SIZE_PX)
    many, fewer = all_bytes(out), all_bytes(tmp_path)
    assert len(fewer) == 2 * few + 1
    assert all(fewer[name] == many[name] for name in fewer if name != "truth.parquet")
    assert pq.read_table(tmp_path / "truth.parquet") == pq.read_table(out / "truth.parquet").slice(0, few)


def test_the_truth_is_written_some_rows_at_a_time(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "PHOTOS_AT_ONCE", BLOCK)
    write_photos(tmp_path, 2 * BLOCK + 3, seed=4, size_px=SIZE_PX)
    file = pq.ParquetFile(tmp_path / "truth.parquet")
    assert [file.metadata.row_group(k).num_rows for k in range(file.num_row_groups)] == [BLOCK, BLOCK, 3]
    assert file.read().equals(pq.read_table(out / "truth.parquet").slice(0, 2 * BLOCK + 3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "masks", "truth.parquet"]


def test_the_truth_has_the_columns_of_labels_and_a_row_for_every_photo(out: Path) -> None:
    table = pq.read_table(out / "truth.parquet")
    hand = load_hand("open")
    assert table.schema.equals(label_schema(hand.vertex_count))
    assert table["image_id"].to_pylist() == sorted(path.name for path in (out / "images").iterdir())
    assert set(table["status"].to_pylist()) == {"ok"}
    for name in (
        "joints3d_std_mm",
        "vertices_std_mm",
        "joints2d_std_px",
        "joint_std_mm",
        "reason",
        "side_score",
    ):
        assert table[name].null_count == COUNT
    facts = json.loads(table.schema.metadata[b"amvur"])
    assert facts["hand"] == hand.id
    assert facts["synthetic"] == {"seed": 4, "size_px": SIZE_PX}
    with Image.open(out / "images" / "000000.jpg") as photo:
        assert (photo.format, photo.size) == ("JPEG", (SIZE_PX, SIZE_PX))


def test_duckdb_and_pandas_read_the_truth(out: Path) -> None:
    path = out / "truth.parquet"
    query = f"select count(*), sum(is_right::int) from '{path}' where status = 'ok'"
    ((count, rights),) = duckdb.sql(query).fetchall()
    frame = pq.read_table(path).to_pandas()
    assert count == len(frame) == COUNT
    assert rights == frame["is_right"].sum()
    assert 0.25 < rights / COUNT < 0.75


def test_2d_joints_are_the_3d_ones_through_the_pinhole(truth: dict[str, Any]) -> None:
    error_px = np.abs(seen_px(truth, truth["joints3d_mm"]) - truth["joints2d_px"]).max()
    # Values are rounded to sixteenths of a pixel and of a millimetre, which is about a pixel.
    assert error_px < 1 / 32 + truth["camera"]["scale"].max() * SIZE_PX / 2 / 32 + 2e-3
    assert set(truth["camera"]["focal_source"]) == {"given"}
    assert (truth["joints3d_mm"][:, 0] == 0).all()
    distance_mm = truth["camera"]["cam_t_mm"][:, 2]
    assert distance_mm.min() > 150
    # Off-axis photos: angle between the central ray and the optical axis.
    aside_px = np.linalg.norm(truth["camera"]["principal_px"] - SIZE_PX / 2, axis=1)
    angle_deg = np.degrees(np.arctan(aside_px / truth["camera"]["focal_px"]))
    off_axis = angle_deg > 0.01
    assert 0.1 < off_axis.mean() < 0.5
    assert angle_deg[off_axis].min() > 3.9
    assert 20 < angle_deg.max() < 35.1
    assert distance_mm.max() < 1650
    assert np.median(distance_mm) == pytest.approx(600, abs=200)


def test_the_weak_camera_is_the_least_squares_one(truth: dict[str, Any]) -> None:
    camera = truth["camera"]
    # The rotation into crop axes maps the central ray to the axis, without roll.
    rotation = Rotation.from_rotvec(camera["rotation"])
    aside = (SIZE_PX / 2 - camera["principal_px"]) / camera["focal_px"][:, None]
    ray = np.concatenate([aside, np.ones((COUNT, 1))], 1)
    np.testing.assert_allclose(
        rotation.apply(ray / np.linalg.norm(ray, axis=1, keepdims=True)), [[0, 0, 1]] * COUNT, atol=1e-5
    )
    assert (camera["rotation"][:, 2] == 0).all()
    assert (camera["rotation"][(aside == 0).all(1)] == 0).all()
    in_crop = np.einsum("bij,bnj->bni", rotation.as_matrix(), truth["joints3d_mm"])
    for row in range(COUNT):
        joints, seen = in_crop[row], truth["joints2d_px"][row] / SIZE_PX * 2 - 1
        design = np.concatenate([joints[:, :2].reshape(-1, 1), np.tile(np.eye(2), (21, 1))], 1)
        best = np.linalg.lstsq(design, seen.reshape(-1), rcond=None)[0]
        np.testing.assert_allclose(camera["scale"][row], best[0], rtol=2e-3)
        np.testing.assert_allclose(camera["translation"][row], best[1:], atol=2e-3)


def test_a_weak_camera_is_recovered() -> None:
    points = torch.randn(3, 21, 3)
    scale, shift = torch.tensor([0.01, 0.02, 0.005]), torch.randn(3, 2)
    found = weak_perspective(points, points[..., :2] * scale[:, None, None] + shift[:, None])
    torch.testing.assert_close(found, (scale, shift))


def test_pose_and_betas_give_the_mesh_or_its_mirror_image(truth: dict[str, Any]) -> None:
    layer = HandLayer(load_hand("open"))
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(truth["pose"]).float().view(COUNT, 16, 3))
    vertices, joints = (t.numpy() for t in layer(rotations, torch.from_numpy(truth["betas"]).float()))
    left = ~truth["is_right"]
    vertices[left, :, 0] *= -1
    joints[left, :, 0] *= -1
    assert np.abs(vertices - truth["vertices_mm"]).max() < 1 / 32 + 1e-2
    assert np.abs(joints - truth["joints3d_mm"]).max() < 1 / 32 + 1e-2


def test_the_joints_of_bent_hands_reveal_their_side(truth: dict[str, Any]) -> None:
    sign = chirality(truth["joints3d_mm"])
    bent = np.abs(sign) > 0.1 * np.abs(sign).max()
    assert bent.sum() > COUNT / 2
    assert ((sign > 0) == truth["is_right"])[bent].all()


def test_joints_and_visible_vertices_lie_inside_the_hand_s_silhouette(truth: dict[str, Any]) -> None:
    nearness = 1 / (truth["vertices_mm"][..., 2:] + truth["camera"]["cam_t_mm"][:, None, 2:])
    points = np.concatenate([vertices_px(truth) / SIZE_PX * 2 - 1, -1000 * nearness], -1)
    faces = torch.from_numpy(load_hand("open").faces).long()
    mask = (nearest_faces(torch.from_numpy(points).float(), faces, SIZE_PX) >= 0).numpy()
    grown = torch.nn.functional.max_pool2d(torch.from_numpy(mask).float()[:, None], 3, 1, 1)[:, 0] > 0
    photo = np.arange(COUNT)[:, None]
    x, y = np.moveaxis(in_photo(truth["joints2d_px"]), -1, 0)
    assert grown.numpy()[photo, y, x].mean() > 0.95
    x, y = np.moveaxis(in_photo(vertices_px(truth)), -1, 0)
    assert grown.numpy()[photo, y, x][truth["vertex_visible"]].mean() > 0.99


def test_the_photos_show_the_hand_where_the_truth_says(out: Path, truth: dict[str, Any]) -> None:
    def spread_of_colour(photo: np.ndarray, points_px: np.ndarray) -> float:
        x, y = in_photo(points_px).T
        return float(photo[y, x].std(0).sum())

    own, elsewhere = [], []
    for row in range(COUNT):
        with Image.open(out / "images" / truth["image_id"][row]) as image:
            rgb = np.asarray(image, float)
        # Chromaticity: about constant for skin, in light or shadow.
        photo = rgb / rgb.sum(-1, keepdims=True).clip(1)
        seen = vertices_px(truth)[row][truth["vertex_visible"][row]]
        own.append(spread_of_colour(photo, seen))
        # Mirrored, upside down, and rotated by a right angle.
        moved = [seen * [-1, 1] + [SIZE_PX, 0], seen * [1, -1] + [0, SIZE_PX], seen[:, ::-1]]
        elsewhere.append([spread_of_colour(photo, points) for points in moved])
    assert (np.mean(elsewhere, 0) > 1.3 * np.mean(own)).all()


def test_hands_fill_most_of_the_photo_and_lie_inside_it(truth: dict[str, Any]) -> None:
    low, high = vertices_px(truth).min(1), vertices_px(truth).max(1)
    fill = (high - low).max(1) / SIZE_PX
    assert fill.min() > 0.6
    assert fill.max() < 0.97
    assert low.min() >= 0
    assert high.max() <= SIZE_PX
    np.testing.assert_allclose(truth["box_xyxy"], np.concatenate([low, high], 1), atol=0.1)


def test_palms_and_backs_are_both_shown_and_the_near_half_is_visible(truth: dict[str, Any]) -> None:
    wrist, index, little = (truth["joints3d_mm"][:, k] for k in (0, 5, 17))
    normal = np.cross(index - wrist, little - wrist)
    # Towards the palm's side for right hands, to the back for left ones.
    depth = normal[:, 2] / np.linalg.norm(normal, axis=1) * np.where(truth["is_right"], 1, -1)
    assert (depth < -0.5).mean() > 0.15
    assert (depth > 0.5).mean() > 0.15
    share = truth["vertex_visible"].mean(1)
    np.testing.assert_allclose(truth["visible_fraction"], share, atol=1e-6)
    assert np.median(share) > 0.3
    assert share.max() < 0.75


def test_skin_runs_from_light_to_dark_and_is_never_black(truth: dict[str, Any]) -> None:
    tone = truth["vertex_rgb"].reshape(COUNT, -1, 3).mean(1)
    assert (tone[:, 0] > tone[:, 1]).all()
    assert (tone[:, 1] > tone[:, 2]).all()
    assert tone.min() > 30
    assert tone[:, 0].max() - tone[:, 0].min() > 70


def test_the_forearm_closes_the_wrist() -> None:
    hand = load_hand("open")
    figure = Figure.of(hand)
    closed = figure.faces[(figure.material == HAND) | (figure.material == ARM)].numpy()
    count = len(open_edge(hand.faces))
    last_ring = hand.vertex_count + (len(RINGS_MM) - 1) * count + np.arange(count)
    assert sorted(open_edge(closed)) == last_ring.tolist()


def test_colours_agree_with_published_values() -> None:
    # CIE Lab of sRGB red, of 18 % grey and of white, D65.
    linear = lab_to_linear(torch.tensor([[53.24, 80.09, 67.20], [49.50, 0, 0], [100, 0, 0]]))
    np.testing.assert_allclose(linear, [[1, 0, 0], [0.18] * 3, [1] * 3], atol=2e-3)
    np.testing.assert_allclose(
        stored(torch.tensor([0.0, 0.002, 0.18, 1.0])), [0, 0.02584, 0.4614, 1], atol=4e-3
    )


@pytest.mark.slow
def test_repeating_a_command_rewrites_its_own_files(tmp_path: Path) -> None:
    write_photos(tmp_path, 2, 0, 32)
    first = all_bytes(tmp_path)
    (tmp_path / "predicted").mkdir()
    (tmp_path / "images" / "000001.jpg").unlink()
    write_photos(tmp_path, 2, 0, 32)
    assert all_bytes(tmp_path) == first


def test_a_folder_of_other_files_is_refused_unchanged(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    mine = tmp_path / "images" / "000000.jpg"
    mine.write_bytes(b"mine")
    with pytest.raises(UserError, match="other files than synthetic photos"):
        write_photos(tmp_path, 2, 0, 32)
    pq.write_table(pq.read_table(_some_table(tmp_path)), tmp_path / "truth.parquet")
    with pytest.raises(UserError, match="other files than synthetic photos"):
        write_photos(tmp_path, 2, 0, 32)
    assert mine.read_bytes() == b"mine"


def _some_table(folder: Path) -> Path:
    import pyarrow as pa

    pq.write_table(pa.table({"a": [1]}), folder / "other.parquet")
    return folder / "other.parquet"


def test_fewer_photos_than_the_folder_holds_are_refused(tmp_path: Path) -> None:
    write_photos(tmp_path, 3, 0, 32)
    with pytest.raises(UserError, match="holds 1 files that are not among these 2 photos"):
        write_photos(tmp_path, 2, 0, 32)


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_place_of_the_folder_is_one_plain_line(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write to") as error:
        write_photos(tmp_path / where, 1, 0, 32)
    assert "\n" not in str(error.value)


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed -1 is negative"):
        write_photos(tmp_path, 1, -1, 32)


@pytest.mark.slow
def test_photos_are_drawn_only_a_little_ahead_of_the_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    photos = write.SyntheticHands.photos

    def counted(self: write.SyntheticHands, indices: torch.Tensor) -> write.Photos:
        drawn.append(len(indices))
        return photos(self, indices)

    monkeypatch.setattr(write.SyntheticHands, "photos", counted)
    plan = PhotosPlan("unused", seed=4, size_px=32, drawers=1)
    rows = write._photos(plan, range(12 * BLOCK))
    for _ in range(BLOCK + 1):
        next(rows)
    rows.close()  # waits for running blocks, and cancels the rest
    assert 2 <= len(drawn) <= 5
