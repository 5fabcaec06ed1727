"""The report's pictures show what the labels say."""

import html
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from annotator import annotate
from annotator.frames import CropFrame
from annotator.io.labels import read_faces
from annotator.report import write_report
from annotator.tiles import contact_sheet, crop_points, hand_tiles, uncertainty_colours
from tests.conftest import SMALL


@pytest.fixture(scope="module")
def row(labelled):
    rows = pq.read_table(labelled[0] / "data").to_pylist()
    return next(
        row for row in rows if row["image_id"] == "right/004.jpg"
    )  # 60 x 44, whole pixels in its square


def test_the_mesh_is_drawn_where_its_vertices_project(row, labelled):
    tiles = hand_tiles(row, read_faces(str(labelled[0])), 128, (0.0, 40.0))
    drawn = (tiles["uncertainty"].astype(int) - 245).__abs__().sum(-1) > 20
    points = crop_points(row).numpy()
    visible = np.array(row["vertex_visible"])
    pixel = ((points[:, :2] + 1) / 2 * 128).astype(int).clip(0, 127)
    # A vertex on the outline may lie in a pixel that the mesh covers by less than half.
    near = binary_dilation(drawn, iterations=1)
    assert near[pixel[visible, 1], pixel[visible, 0]].all()
    low, high = pixel.min(0), pixel.max(0)
    ys, xs = np.nonzero(drawn)
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()], [*low, *high], atol=2)


def test_joints_of_the_label_lie_on_its_drawn_hand(row, labelled):
    tiles = hand_tiles(row, read_faces(str(labelled[0])), 128, (0.0, 40.0))
    drawn = (tiles["uncertainty"].astype(int) - 245).__abs__().sum(-1) > 20
    x0, y0, x1, y1 = row["crop_xyxy"]
    frame = CropFrame(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.float64((x1 - x0) / 2), np.bool_(False))
    pixel = ((frame.crop_from_photo(row["joints2d_px"]) + 1) / 2 * 128).astype(int)
    assert drawn[pixel[:, 1], pixel[:, 0]].mean() > 0.9


def test_the_photo_tile_is_the_photos_crop(row, labelled, photos):
    tile = hand_tiles(row, read_faces(str(labelled[0])), 60, (0.0, 40.0))["photo"]
    with Image.open(photos / row["image_id"]) as file:
        photo = np.asarray(file)
    top = round(-row["crop_xyxy"][1])  # a wide photo is centred in its square
    inside = tile[top : top + photo.shape[0]].astype(int)
    assert top == 8 and np.abs(inside - photo).mean() < 1


def test_uncertainty_colours_run_from_sure_to_unsure_and_stop_there():
    ramp = uncertainty_colours(np.array([-5.0, 0, 5, 10, 99]), 0, 10)
    np.testing.assert_array_equal(ramp[0], ramp[1])
    np.testing.assert_array_equal(ramp[3], ramp[4])
    assert ramp[0, 2] > ramp[0, 0] and ramp[4, 0] > ramp[4, 2]  # blue to red
    assert ramp.shape == (5, 3) and ramp.min() >= 0 and ramp.max() <= 1


def test_contact_sheet_keeps_every_picture_whole():
    pictures = [[np.full((10, 10, 3), 10 * (3 * y + x), np.uint8) for x in range(3)] for y in range(2)]
    sheet = np.asarray(contact_sheet(pictures, gap_px=2))
    assert sheet.shape == (26, 38, 3)
    for y in range(2):
        for x in range(3):
            assert (sheet[2 + 12 * y : 12 + 12 * y, 2 + 12 * x : 12 + 12 * x] == pictures[y][x]).all()


def test_the_page_names_photos_safely_and_survives_photos_that_are_gone(photos, tmp_path, local_ray):
    folder, labels = tmp_path / "photos", tmp_path / "labels"
    folder.mkdir()
    evil = "<script>alert(1)&.jpg"
    shutil.copy(next(photos.rglob("*.jpg")), folder / evil)
    shutil.copy(next(photos.rglob("*.jpg")), folder / "gone.jpg")
    annotate(str(folder), str(labels), compute=SMALL)
    (folder / "gone.jpg").unlink()
    page = write_report(str(labels), tmp_path / "report", count=5)
    text = page.read_text()
    assert html.escape(evil) in text and "<script>" not in text
    assert text.count("<figure>") == 2
    for index in range(2):
        with Image.open(page.parent / f"hand-{index:03d}.png") as picture:
            assert picture.height == 192 + 4
