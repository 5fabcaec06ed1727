"""The second look of the detector: small, sideways and upside-down hands, and hands that are found twice."""

import csv
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.detection.duplicates import distinct, landmark_distance
from annotator.detection.search_views import OVERLAP, TILE_SIDES, SearchView, search_rounds
from annotator.errors import UserError
from annotator.hand.anatomy import chirality
from tests.conftest import SHARED

pytestmark = pytest.mark.slow

MODEL = SHARED / "models" / "hand_landmarker.task"
#: Photos of one hand, and where they are pasted.
SMALL = (
    ("1528664299.56_pic00064.jpg", 31, 250),
    ("3_1528505750.77_pic00096.jpg", 281, 100),
    ("5_pic00071.jpg", 331, 70),
)
VIEWS = [(120, 40, 90, 60, quarters) for quarters in range(4)] + [(0, 0, 160, 120, 1)]


@pytest.fixture(scope="module")
def model() -> str:
    pytest.importorskip("mediapipe", reason="MediaPipe (extra 'detect') is not installed")
    if not MODEL.is_file():
        pytest.skip("the hand detector's model is not beside this checkout")
    return str(MODEL)


@pytest.fixture(scope="module")
def quick(model):
    from annotator.detection.detector import HandDetector

    detector = HandDetector(model)
    yield detector
    detector.close()


@pytest.fixture(scope="module")
def thorough(model):
    from annotator.detection.detector import HandDetector

    detector = HandDetector(model, search="thorough")
    yield detector
    detector.close()


def scenes_with_boxes(hand_scenes: Path, hands: int) -> dict[str, np.ndarray]:
    """Return the boxes (n, 4) of each photo with that number of hands."""
    boxes: dict[str, list[list[float]]] = {}
    with (hand_scenes / "boxes.csv").open() as file:
        for row in csv.DictReader(file):
            boxes.setdefault(row["image"], []).append(
                [float(row[name]) for name in ("x1_px", "y1_px", "x2_px", "y2_px")]
            )
    return {name: np.array(found) for name, found in sorted(boxes.items()) if len(found) == hands}


def scene(hand_scenes: Path, name: str) -> np.ndarray:
    with Image.open(hand_scenes / "images" / name) as file:
        return np.asarray(file.convert("RGB"))


def shared_part(a: np.ndarray, b: np.ndarray) -> float:
    """The area that two boxes xyxy share, over the smaller one's."""
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(0)
    return float(np.prod(sides) / min(np.prod(a[2:] - a[:2]), np.prod(b[2:] - b[:2])))


def shrunk(pixels: np.ndarray, by: int, left: int, top: int) -> np.ndarray:
    """The photo at a part of its size on a canvas of one colour, as large as it was."""
    canvas = np.full_like(pixels, 128)
    small = np.asarray(Image.fromarray(pixels).reduce(by))
    canvas[top : top + len(small), left : left + small.shape[1]] = small
    return canvas


@pytest.mark.parametrize("fields", VIEWS)
def test_a_point_of_a_view_lies_in_the_photo_where_its_pixel_came_from(fields):
    rows, columns = np.mgrid[:120, :240]
    photo = np.stack([columns, rows, np.zeros_like(rows)], -1).astype(np.uint8)
    view = SearchView(*fields)
    seen = view.cut(photo)
    v, u = np.mgrid[: seen.shape[0], : seen.shape[1]]
    points = np.stack([u.ravel() + 0.5, v.ravel() + 0.5, np.arange(u.size)], 1)
    there = view.to_photo(points)
    np.testing.assert_allclose(there[:, :2], seen.reshape(-1, 3)[:, :2] + 0.5)
    assert (there[:, 2] == points[:, 2]).all()
    np.testing.assert_allclose(view.rotated_back(points[1:] - points[0]), there[1:] - there[0])


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (896, 900), (1333, 1000), (3000, 300)])
def test_a_hand_no_larger_than_the_overlap_is_whole_in_a_tile_wherever_it_lies(size):
    sides = {round(share * min(size)) for share in TILE_SIDES}
    views = [view for views in search_rounds(*size) for view in views]
    rng = np.random.default_rng(0)
    for side in sides:
        hand = int(OVERLAP * side)
        for quarters in range(4) if side == max(sides) else (0,):
            tiles = [view for view in views if view.width == side and view.quarters == quarters]
            for _ in range(100):
                left, top = rng.uniform(0, np.array(size) - hand)
                corners = np.array([[left, top, 0], [left + hand, top + hand, 0]])
                assert any(
                    view.left <= left <= view.left + side - hand
                    and view.top <= top <= view.top + side - hand
                    and view.holds(corners, *size)
                    for view in tiles
                )


def test_small_photos_have_no_tiles():
    assert [len(views) for views in search_rounds(100, 100)] == [3]


def test_a_view_does_not_hold_a_hand_that_its_edge_cuts_unless_the_photo_ends_there():
    view = SearchView(100, 0, 200, 200, 0)
    whole, over, above = ([[x, y, 0], [x + 50, y + 80, 0]] for x, y in ((120, 20), (280, 20), (120, -30)))
    assert [view.holds(np.array(hand), 640, 480) for hand in (whole, over, above)] == [True, False, True]


@pytest.mark.parametrize("quarters", [0, 1, 2])
def test_hands_at_a_quarter_of_their_size_are_found_where_they_are_however_rotated(
    quarters, quick, thorough, hand_scenes
):
    from annotator.detection.detector import agreement

    found_first = 0
    for name, left, top in SMALL:
        pixels = scene(hand_scenes, name)
        (large,) = quick.detect(pixels)
        small = shrunk(pixels, 4, left, top)
        whole = SearchView(0, 0, small.shape[1], small.shape[0], quarters)
        seen = whole.cut(small)
        found_first += len(quick.detect(seen))
        (hand,) = thorough.detect(seen)  # though several tiles show it
        landmarks = whole.to_photo(np.column_stack([hand.joints2d_px, hand.landmark_depth_px]))
        size_px = np.ptp(large.joints2d_px, 0).max() / 4
        off_px = np.linalg.norm(landmarks[:, :2] - (large.joints2d_px / 4 + [left, top]), axis=1).mean()
        assert off_px < 0.08 * size_px and hand.is_right == large.is_right
        assert np.abs(landmarks[:, 2] - large.landmark_depth_px / 4).mean() < 0.15 * size_px
        # 3D joints are in the axes of the picture that was given, as the 2D joints are.
        assert agreement(hand.joints2d_px, hand.joints3d_mm) > 0.5
        assert (chirality(hand.joints3d_mm) > 0) == hand.is_right
    assert found_first <= 1


def test_a_second_small_hand_is_searched_and_the_first_stays(model, quick, thorough, hand_scenes):
    from annotator.detection.detector import HandDetector

    name = SMALL[0][0]
    (small,) = quick.detect(scene(hand_scenes, name))
    pixels = scene(hand_scenes, list(scenes_with_boxes(hand_scenes, 1))[9]).copy()
    (hand,) = quick.detect(pixels)
    part = np.asarray(Image.fromarray(scene(hand_scenes, name)).reduce(5))
    corner = 0 if hand.box_xyxy[0] > part.shape[1] else pixels.shape[1] - part.shape[1]
    pixels[-len(part) :, corner : corner + part.shape[1]] = part
    (found,) = quick.detect(pixels)
    both = thorough.detect(pixels)
    assert len(both) == 2 and (both[0].joints2d_px == found.joints2d_px).all()
    there = small.joints2d_px / 5 + [corner, len(pixels) - len(part)]
    size_px = np.ptp(there, 0).max()
    assert np.linalg.norm(both[1].joints2d_px - there, axis=1).mean() < 0.1 * size_px
    assert both[1].is_right == small.is_right
    # With as many hands as wanted there is no search.
    only = HandDetector(model, max_hands=1, search="thorough")
    assert len(only.detect(pixels)) == 1
    only.close()


def test_a_photo_of_one_hand_has_one_after_the_search(quick, thorough, hand_scenes):
    pixels = scene(hand_scenes, list(scenes_with_boxes(hand_scenes, 1))[9])
    (hand,), (again,) = quick.detect(pixels), thorough.detect(pixels)
    assert (hand.joints2d_px == again.joints2d_px).all()


def test_a_photo_without_a_hand_has_none_after_the_search(thorough):
    blurred = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8))
    for pixels in (np.full((240, 320, 3), 120, np.uint8), np.asarray(blurred.resize((320, 240)))):
        assert thorough.detect(pixels) == []


def test_the_hand_that_several_tiles_show_is_one_hand_and_the_surest_stays(quick, hand_scenes):
    pixels = scene(hand_scenes, list(scenes_with_boxes(hand_scenes, 1))[77])
    (large,) = quick.detect(pixels)
    tiles = [SearchView(left, top, 560, 420, 0) for left in (0, 80) for top in (0, 60)]
    views = [*tiles, *(SearchView(0, 0, 640, 480, quarters) for quarters in (1, 2, 3))]
    joints, scores = [], []
    for view in views:
        for hand in quick.detect(view.cut(pixels)):
            joints.append(view.to_photo(np.column_stack([hand.joints2d_px, np.zeros(21)]))[:, :2])
            scores.append(hand.detection_score)
    assert len(joints) >= 5
    (kept,) = distinct(joints, scores)
    assert scores[kept] == max(scores)
    assert landmark_distance(joints[kept], large.joints2d_px) < 0.1


def test_two_real_hands_that_touch_both_stay_though_their_boxes_overlap(quick, hand_scenes):
    """Two hands of different photos, one pasted beside the other, then rotated, which makes their boxes overlap."""
    left = Image.fromarray(scene(hand_scenes, "996_pic00119.jpg"))
    right = Image.fromarray(scene(hand_scenes, "pic00064.jpg"))
    (a,), (b,) = quick.detect(np.asarray(left)), quick.detect(np.asarray(right))
    (x1, y1), (x2, y2) = a.joints2d_px.min(0) - [40, 60], a.joints2d_px.max(0) + [12, 60]
    left = left.crop((int(x1), int(y1), int(x2), int(y2)))
    (x1, y1), (x2, y2) = b.joints2d_px.min(0) - [12, 60], b.joints2d_px.max(0) + [40, 60]
    right = right.crop((int(x1), int(y1), int(x2), int(y2)))
    canvas = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), (128, 128, 128))
    canvas.paste(left, (0, canvas.height - left.height))
    canvas.paste(right, (left.width, canvas.height - right.height))
    rotated = canvas.rotate(40, Image.Resampling.BICUBIC, expand=True, fillcolor=(128, 128, 128))
    a, b = quick.detect(np.asarray(rotated))
    assert shared_part(a.box_xyxy, b.box_xyxy) > 0.1
    assert np.linalg.norm(a.joints2d_px.mean(0) - b.joints2d_px.mean(0)) > left.width / 2


def test_hands_as_found_in_photos_stay_two_when_moved_until_they_overlap(quick, hand_scenes):
    names = list(scenes_with_boxes(hand_scenes, 1))[3::120]
    hands = [hand for name in names for hand in quick.detect(scene(hand_scenes, name))[:1]]
    for a, b in zip(hands[::2], hands[1::2], strict=False):
        (ax1, ay1, ax2, _), (bx1, by1, bx2, _) = a.box_xyxy, b.box_xyxy
        lapping = 0.3 * min(ax2 - ax1, bx2 - bx1)
        moved = b.joints2d_px + [ax2 - lapping - bx1, ay1 - by1]
        for degrees in (0, 45):  # boxes do not measure the distance of oblique hands
            cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
            pair = [joints @ [[cos, sin], [-sin, cos]] for joints in (a.joints2d_px, moved)]
            assert distinct(pair, [0.7, 0.8]) == [0, 1]


def test_a_hand_found_as_the_other_hand_too_is_one_hand():
    joints = np.random.default_rng(0).uniform(0, 100, (21, 2))
    fingers = joints[1:].reshape(5, 4, 2)
    reversed_fingers = np.concatenate([joints[:1], fingers[::-1].reshape(20, 2)])
    assert landmark_distance(joints, reversed_fingers) == pytest.approx(0)
    assert distinct([joints, reversed_fingers + 1, joints + [90, 0]], [0.5, 0.8, 0.3]) == [1, 2]


def test_the_job_finds_with_a_thorough_search_and_refuses_to_mix(model, hand_scenes, local_ray, tmp_path):
    from annotator.commands.annotate import annotate
    from annotator.commands.detect import detect

    photos = tmp_path / "photos"
    photos.mkdir()
    pixels = scene(hand_scenes, SMALL[0][0])
    Image.fromarray(shrunk(pixels, 4, 300, 200)).save(photos / "small.png")
    assert detect(str(photos), str(tmp_path / "quick"), model).outcomes == {"no_hand: no_hand_found": 1}
    assert detect(str(photos), str(tmp_path / "found"), model, search="thorough").outcomes == {"ok": 1}
    (row,) = pq.read_table(tmp_path / "found" / "data").to_pylist()
    x1, y1, x2, y2 = row["box_xyxy"]
    assert 300 < x1 < x2 < 460 and 200 < y1 < y2 < 320
    with pytest.raises(UserError, match="labelled with search 'thorough', this run has 'quick'"):
        detect(str(photos), str(tmp_path / "found"), model)
    with pytest.raises(UserError, match="search is 'deep', may be quick, thorough"):
        detect(str(photos), str(tmp_path / "other"), model, search="deep")
    with pytest.raises(UserError, match="search 'thorough' needs a detector"):
        annotate(str(photos), str(tmp_path / "other"), search="thorough")
