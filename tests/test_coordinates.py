"""The maps between photo, crop and camera: round trips and closed forms."""

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from annotator import coordinates
from annotator.coordinates import CropFrame
from tests.support.pinhole import project_pinhole

reals = st.floats(-500, 500, allow_nan=False, width=32)
sizes = st.floats(1, 500, allow_nan=False, width=32)


@given(reals, reals, sizes, st.booleans(), st.floats(-7, 7), reals, reals)
def test_photo_to_crop_and_back_is_the_identity(cx, cy, half, mirrored, angle, x, y):
    frame = CropFrame(np.array([[cx, cy]]), np.array([half]), np.array([mirrored]), np.array([angle]))
    point = np.array([[[x, y]]])
    np.testing.assert_allclose(frame.photo_from_crop(frame.crop_from_photo(point)), point, atol=1e-6)
    np.testing.assert_allclose(frame.crop_from_photo(frame.photo_from_crop(point)), point, atol=1e-6)
    # In complex numbers: mirrored, rotated, scaled, moved.
    z = complex(-x if mirrored else x, y) * np.exp(1j * angle) * half + complex(cx, cy)
    np.testing.assert_allclose(frame.photo_from_crop(point)[0, 0], [z.real, z.imag], rtol=1e-9, atol=1e-6)


def test_a_crop_rotated_by_a_right_angle_has_its_right_edge_below():
    frame = CropFrame(np.array([10.0, 20]), np.float64(4), np.bool_(False), np.float64(np.pi / 2))
    right_edge = np.array([[1.0, 0]])
    np.testing.assert_allclose(frame.photo_from_crop(right_edge), [[10, 24]], atol=1e-12)
    np.testing.assert_allclose(frame.flipped().photo_from_crop(right_edge), [[10, 16]], atol=1e-12)


def test_crop_edges_lie_on_the_box_and_the_centre_in_its_middle():
    frame = coordinates.square_around([10, 20, 50, 100], padding=1.5)
    corners = frame.photo_from_crop(np.array([[-1.0, -1], [1, 1], [0, 0]]))
    np.testing.assert_allclose(corners, [[-30, 0], [90, 120], [30, 60]])


@given(st.floats(-3, 3), reals, reals, sizes)
def test_an_upright_square_rotates_and_grows_with_the_hand(angle, x, y, scale):
    """Of a hand rotated, scaled and moved by a known map, the square is mapped alike."""
    rng = np.random.default_rng(3)
    joints = rng.uniform(-1, 1, (21, 2))
    joints[0], joints[9] = (0.5, 0.8), (0.5, -0.3)  # straight up
    before = coordinates.upright_square(joints, padding=1.5)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    after = coordinates.upright_square(scale * joints @ rotation.T + [x, y], padding=1.5)
    assert before.rotation_rad == 0
    np.testing.assert_allclose(before.half_side_px, np.ptp(joints, axis=0).max() / 2 * 1.5)
    np.testing.assert_allclose(before.centre_px, (joints.min(0) + joints.max(0)) / 2)
    np.testing.assert_allclose(after.rotation_rad, angle, atol=1e-9 * (1 + (abs(x) + abs(y)) / scale))
    np.testing.assert_allclose(after.half_side_px, scale * before.half_side_px, rtol=1e-6)
    np.testing.assert_allclose(
        after.centre_px, scale * rotation @ before.centre_px + [x, y], atol=1e-6 * scale
    )


def test_in_an_upright_square_fingers_point_up_and_joints_keep_their_margin():
    joints = np.random.default_rng(4).uniform(0, 100, (5, 21, 2))
    squares = coordinates.upright_square(joints, padding=1.35)
    cos, sin = np.cos(squares.rotation_rad), np.sin(squares.rotation_rad)
    rotation = np.stack([cos, -sin, sin, cos], -1).reshape(5, 2, 2)
    inside = (joints - squares.centre_px[:, None]) @ rotation / squares.half_side_px[:, None, None]
    np.testing.assert_allclose(inside[:, 9, 0], inside[:, 0, 0], atol=1e-9)
    assert (inside[:, 9, 1] < inside[:, 0, 1]).all()
    np.testing.assert_allclose(np.abs(inside).max((1, 2)), 1 / 1.35)
    assert coordinates.upright_square(np.zeros((21, 2))).rotation_rad == 0


def test_a_mirrored_crop_swaps_left_and_right_only():
    frame = CropFrame(np.array([5.0, 5]), np.float64(5), np.bool_(False))
    left_edge = np.array([[0.0, 2.0]])
    assert frame.crop_from_photo(left_edge)[0, 0] == -1
    assert frame.flipped().crop_from_photo(left_edge)[0, 0] == 1
    assert frame.crop_from_photo(left_edge)[0, 1] == frame.flipped().crop_from_photo(left_edge)[0, 1]


def test_what_a_rotated_mirrored_crop_says_is_carried_to_the_axis_aligned_one():
    """Points, rotations, cameras and doubt of hands in both squares."""
    rng, count = np.random.default_rng(3), 6
    rotation, mirrored = rng.uniform(-3, 3, count), np.arange(count) % 2 == 1
    rest = rng.normal(0, 50, (count, 30, 3))  # of right hands
    flip = np.where(mirrored[:, None, None], np.diag([-1.0, 1, 1]), np.eye(3))
    roll = Rotation.from_euler("z", rotation[:, None]).as_matrix()
    wrist = Rotation.random(
        count, random_state=4
    ).as_matrix()  # of the hand that the square shows, maybe a left one
    hand = np.einsum("bij,bjk,bnk->bni", wrist, flip, rest)
    shown = np.einsum("bij,bkj,bnk->bni", flip, roll, hand)  # first rotated back, then mirrored
    matrix = coordinates.in_plane_matrix(rotation, mirrored)
    np.testing.assert_allclose(coordinates.axis_aligned(shown, matrix), hand, atol=1e-9)
    np.testing.assert_allclose(coordinates.axis_aligned(shown[..., :2], matrix), hand[..., :2], atol=1e-9)
    of_network = flip @ roll.swapaxes(1, 2) @ wrist @ flip
    np.testing.assert_allclose(np.einsum("bij,bnj->bni", of_network, rest), shown, atol=1e-9)
    assert np.allclose(np.linalg.det(of_network), 1)
    # A weak camera with an r of its own, whose points are carried as points are.
    r, scale, shift = (
        Rotation.from_rotvec(rng.normal(0, 0.2, (count, 3))).as_matrix(),
        0.01,
        rng.normal(0, 0.1, (count, 2)),
    )
    seen = scale * np.einsum("bij,bnj->bni", r, shown)[..., :2] + shift[:, None]
    carried_r = coordinates.axis_aligned_covariance(r[:, None], matrix)[:, 0]
    carried_shift = coordinates.axis_aligned(shift[:, None], matrix)
    again = scale * np.einsum("bij,bnj->bni", carried_r, hand)[..., :2] + carried_shift
    np.testing.assert_allclose(coordinates.axis_aligned(seen, matrix), again, atol=1e-9)
    # Doubt: the spread of draws, carried as points.
    root = rng.normal(0, 1, (count, 2, 2))
    drawn = np.einsum("bij,bnj->bni", root, rng.normal(0, 1, (count, 200_000, 2)))
    covariance = coordinates.axis_aligned_covariance((root @ root.swapaxes(1, 2))[:, None], matrix)[:, 0]
    std = np.array([[[1.0, 3, 5]]]).repeat(count, 0)
    for k, points in enumerate(coordinates.axis_aligned(drawn, matrix)):
        np.testing.assert_allclose(np.cov(points.T), covariance[k], atol=0.05 * covariance[k].max())
    spread = coordinates.axis_aligned(rng.normal(0, 1, (count, 200_000, 3)) * std, matrix).std(1)
    np.testing.assert_allclose(coordinates.rotated_std(std, matrix)[:, 0], spread, rtol=0.02)
    np.testing.assert_allclose(coordinates.rotated_std(std[..., :2], matrix)[:, 0], spread[:, :2], rtol=0.02)
    # Tensors give the same.
    tensors = coordinates.in_plane_matrix(torch.from_numpy(rotation), torch.from_numpy(mirrored))
    np.testing.assert_allclose(tensors, matrix)
    np.testing.assert_allclose(coordinates.axis_aligned(torch.from_numpy(shown), tensors), hand, atol=1e-9)


def test_weak_projection_is_the_papers_formula():
    rng = np.random.default_rng(1)
    points, rotvec = rng.normal(0, 80, (2, 21, 3)), rng.normal(0, 1, (2, 3))
    scale, translation = rng.uniform(0.005, 0.02, 2), rng.normal(0, 0.3, (2, 2))
    rotation = roma.rotvec_to_rotmat(torch.tensor(rotvec))
    got = coordinates.project_weak(
        torch.tensor(points), torch.tensor(scale), rotation, torch.tensor(translation)
    )
    for b in range(2):
        for n in range(21):
            rotated = rotation[b].numpy() @ points[b, n]
            np.testing.assert_allclose(got[b, n, :2], scale[b] * rotated[:2] + translation[b], rtol=1e-9)
            np.testing.assert_allclose(got[b, n, 2], scale[b] * rotated[2], rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_mirrored_rotation_does_to_mirrored_points_what_the_rotation_does_to_points(seed):
    rng = np.random.default_rng(seed)
    rotvec, points = rng.normal(0, 1, 3), rng.normal(0, 1, (5, 3))

    def rotate(r, p):
        return p @ roma.rotvec_to_rotmat(torch.tensor(r)).numpy().T

    mirrored = rotate(coordinates.mirror_rotvec(rotvec), coordinates.mirror_points(points))
    np.testing.assert_allclose(mirrored, coordinates.mirror_points(rotate(rotvec, points)), atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3))
def test_crop_axes_are_the_smallest_rotation_of_the_optical_axis_to_the_ray(x, y):
    """Against Rodrigues' rotation by the angle between the two about the axis across them; tensors give the same."""
    axes = coordinates.axes_of_ray(np.array([[x, y]]))[0]
    length = np.hypot(x, y)
    across = np.array([-y, x, 0]) / length if length else np.zeros(3)
    np.testing.assert_allclose(axes, Rotation.from_rotvec(across * np.arctan(length)).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(axes[:, 2] * np.sqrt(1 + x * x + y * y), [x, y, 1], atol=1e-9)
    np.testing.assert_allclose(coordinates.axes_of_ray(torch.tensor([[x, y]], dtype=torch.float64))[0], axes)
    points = np.random.default_rng(0).normal(size=(1, 5, 3))
    rotated = coordinates.camera_from_crop(points, axes[None])
    np.testing.assert_allclose(rotated[0, 0], axes @ points[0, 0])
    np.testing.assert_allclose(coordinates.crop_from_camera(rotated, axes[None]), points, atol=1e-12)


def test_on_the_optical_axis_nothing_rotates():
    frame = CropFrame(np.array([[50.0, 40]]), np.array([7.0]), np.array([True]))
    np.testing.assert_array_equal(frame.axes([50.0, 40], np.array([90.0]))[0], np.eye(3))
    x, y = frame.axes(np.array([[20.0, 0]]), np.array([100.0]))[0, :, 2][:2]
    assert x > 0 and y > 0  # a mirrored crop lies where it lies


def test_a_mirrored_cameras_axes_are_the_mirror_image_of_the_axes():
    rays = np.random.default_rng(2).normal(0, 0.5, (9, 2))
    np.testing.assert_allclose(
        coordinates.axes_of_ray(coordinates.mirror_points(rays)),
        coordinates.mirror_rotation(coordinates.axes_of_ray(rays)),
    )
    vectors = np.random.default_rng(3).normal(0, 0.7, (9, 3))
    matrices = coordinates.rotation_matrices(vectors)
    np.testing.assert_allclose(matrices, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)
    np.testing.assert_allclose(coordinates.rotation_vectors(matrices), vectors, atol=1e-9)
    mirrored = Rotation.from_rotvec(coordinates.mirror_rotvec(vectors)).as_matrix()
    np.testing.assert_allclose(coordinates.mirror_rotation(matrices), mirrored, atol=1e-12)


def test_std_after_a_rotation_is_that_of_rotated_draws():
    rng = np.random.default_rng(4)
    std, rotation = np.array([[[2.0, 3, 10], [0, 0, 0]]]), Rotation.random(random_state=5)
    drawn = rotation.apply(rng.normal(0, std[0, 0], (400_000, 3)))
    rotated = coordinates.rotated_std(std, rotation.as_matrix()[None])
    np.testing.assert_allclose(rotated[0], [drawn.std(0), [0, 0, 0]], rtol=5e-3)
    np.testing.assert_allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(std, axis=-1))


def _hands(seed, batch=4):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(0, [50, 60, 25], (batch, 21, 3))


def test_camera_translation_recovers_a_true_pinhole_camera():
    rng, points = _hands(0)
    truth = np.stack([rng.normal(0, 100, 4), rng.normal(0, 100, 4), rng.uniform(400, 900, 4)], 1)
    focal, centre = np.array([500.0, 800, 640, 1200]), np.array([[320.0, 240]] * 4)
    pixels = project_pinhole(points, truth, focal, centre)
    np.testing.assert_allclose(
        coordinates.camera_translation(points, pixels, focal, centre), truth, rtol=1e-6
    )


def test_camera_translation_of_joints_seen_at_one_point_is_a_number():
    _, points = _hands(0)
    focal, centre = np.full(4, 500.0), np.array([[320.0, 240]] * 4)
    found = coordinates.camera_translation(points, np.full((4, 21, 2), 240.0) + [80, 0], focal, centre)
    assert np.isfinite(found).all()
    points[2] = np.nan
    found = coordinates.camera_translation(points, np.full((4, 21, 2), 240.0) + [80, 0], focal, centre)
    assert np.isfinite(found).all(1).tolist() == [True, True, False, True]


@pytest.mark.parametrize("angle_deg", [0, 25])
@pytest.mark.parametrize("distance_mm", [250, 850])
def test_camera_translation_is_the_best_in_pixels(distance_mm, angle_deg):
    """Against a general optimizer on the true pixel error, for 2D points of a weak-perspective camera."""
    _, points = _hands(3)
    focal, centre = np.full(4, 800.0), np.array([[320.0, 240]] * 4)
    along = distance_mm * np.cos(np.radians(angle_deg))
    aside_px = 800 * np.tan(np.radians(angle_deg)) * np.array([[1, 0], [0, 1], [-0.6, 0.8], [-0.8, -0.6]])
    pixels = points[..., :2] * 800 / along + (centre + aside_px)[:, None]
    got = coordinates.camera_translation(points, pixels, focal, centre)
    for b in range(4):

        def errors(t, b=b):
            one = slice(b, b + 1)
            return (project_pinhole(points[one], t[None], focal[one], centre[one]) - pixels[one]).ravel()

        best = least_squares(errors, got[b] * 1.1).x
        ours, theirs = np.square(errors(got[b])).sum(), np.square(errors(best)).sum()
        assert ours <= 1.05 * theirs


@pytest.mark.parametrize(
    ("photo_is_crop", "aside_px"),
    [(True, (0, 0)), (False, (0, 0)), (False, (150, -90)), (False, (-150, 150))],
)
def test_pinhole_reproduces_weak_perspective_within_the_stated_error(photo_is_crop, aside_px):
    """docs/labels.md: within 2.5 % of the crop's side where the photo is the crop, 8 % anywhere in a scene."""
    worst = 0.0
    for seed in range(20):
        _, points = _hands(seed)
        points *= 90 / np.abs(points).max((1, 2), keepdims=True)
        width = 100.0 if photo_is_crop else 400.0
        side = 100.0
        pixels = points[..., :2] * (0.8 * side / 180) + np.array([width / 2, width / 2]) + aside_px
        focal = np.full(4, coordinates.assumed_focal_px(int(width), int(width), photo_is_crop))
        centre = np.full((4, 2), width / 2)
        crop = CropFrame(centre + aside_px, np.full(4, side / 2), np.zeros(4, bool))
        rotated = coordinates.camera_from_crop(points, crop.axes(centre, focal))
        cam_t = coordinates.camera_translation(rotated, pixels, focal, centre)
        back = project_pinhole(rotated, cam_t, focal, centre)
        worst = max(worst, np.linalg.norm(back - pixels, axis=-1).mean(1).max() / side)
    assert worst < (0.025 if photo_is_crop else 0.08)
