"""True camera axes: a perfect network's hands, off the optical axis, compared with a pinhole camera defined here."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import roma
import torch
from PIL import Image
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from annotator.hand.layer import HandLayer
from annotator.model.network import Prediction
from annotator.photos.camera import PhotoCamera
from annotator.photos.crops import Crops, crop_photo
from annotator.predictor import Predictor
from trainer.batch import Batch
from trainer.data.examples import example_schema, example_table
from trainer.data.read import Rows, facts_of, read_example
from trainer.evaluation.predictions import to_camera_axes

WIDTH_PX, HEIGHT_PX, FOCAL_PX = 1600, 1200, 800.0
PRINCIPAL_PX = np.array([WIDTH_PX / 2, HEIGHT_PX / 2])
MIRROR = np.array([-1.0, 1.0, 1.0])
CAMERA = PhotoCamera(FOCAL_PX, None, "given")
ANGLES_DEG = (0.0, 8.0, 16.0, 22.0, 25.0)


@dataclasses.dataclass
class Hands:
    """n true hands in front of one camera, right and left, and the crops that a detector would give."""

    joints_mm: np.ndarray  # (n, 21, 3) camera axes, wrist-relative
    vertices_mm: np.ndarray  # (n, V, 3)
    pose: np.ndarray  # (n, 48) of the right hand; for a left hand, of its mirror image
    betas: np.ndarray  # (n, 10)
    wrist_mm: np.ndarray  # (n, 3)
    is_right: np.ndarray  # (n,)
    boxes: np.ndarray  # (n, 4)

    @property
    def joints_px(self) -> np.ndarray:
        return seen_px(self.joints_mm + self.wrist_mm[:, None])

    @property
    def side_px(self) -> np.ndarray:
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(1) * 1.3

    @property
    def centre_px(self) -> np.ndarray:
        return (self.boxes[:, 2:] + self.boxes[:, :2]) / 2


def seen_px(points_mm: np.ndarray) -> np.ndarray:
    return FOCAL_PX * points_mm[..., :2] / points_mm[..., 2:] + PRINCIPAL_PX


def rays_to(directions: np.ndarray) -> Rotation:
    """Return the smallest rotations from z to directions (n, 3), from their angle and perpendicular axis."""
    across = np.stack([-directions[:, 1], directions[:, 0], np.zeros(len(directions))], 1)
    sine = np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.arctan2(sine, directions[:, 2:])
    return Rotation.from_rotvec(across / np.maximum(sine, 1e-12) * angle)


@pytest.fixture(scope="module")
def hands_at(predictor: Predictor) -> Callable[[float, float], Hands]:
    layer = HandLayer(predictor.checkpoint.hand)

    def made(angle_deg: float, distance_mm: float, count: int = 24) -> Hands:
        rng = np.random.default_rng([int(angle_deg), int(distance_mm)])
        pose = rng.normal(0, 0.25, (count, 16, 3))
        pose[:, 0] = Rotation.random(count, random_state=rng).as_rotvec()
        betas = rng.normal(0, 0.7, (count, 10))
        with torch.inference_mode():
            vertices, joints = layer(
                roma.rotvec_to_rotmat(torch.tensor(pose)).float(), torch.tensor(betas).float()
            )
        is_right = np.arange(count) % 2 == 0
        side = np.where(is_right[:, None, None], 1.0, MIRROR)
        vertices, joints = vertices.double().numpy() * side, joints.double().numpy() * side
        around, angle = np.arange(count) / count * 2 * np.pi, np.radians(angle_deg)
        direction = np.stack(
            [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.full(count, np.cos(angle))], 1
        )
        middle = (vertices.max(1) + vertices.min(1)) / 2
        wrist = direction * distance_mm - middle
        seen = seen_px(vertices + wrist[:, None])
        boxes = np.concatenate([seen.min(1), seen.max(1)], 1)
        return Hands(joints, vertices, pose.reshape(count, 48), betas, wrist, is_right, boxes)

    return made


def crops_of(hands: Hands, crop_px: int) -> Crops:
    nothing = np.zeros((HEIGHT_PX // 8, WIDTH_PX // 8, 3), np.uint8)
    return Crops.stack(
        [
            crop_photo(nothing, WIDTH_PX, HEIGHT_PX, crop_px, box, float(right), camera=CAMERA)
            for box, right in zip(hands.boxes.tolist(), hands.is_right, strict=True)
        ]
    )


class Perfect(torch.nn.Module):
    """A network that returns true hands, rotated by `rotations` as if each crop lay on the optical axis.

    Left hands are mirrored. The weak camera is the best fit to the true 2D joints; `joints2d` are the true ones, or
    those of the weak camera.
    """

    def __init__(
        self, network: torch.nn.Module, hands: Hands, rotations: Rotation, weak_joints2d: bool
    ) -> None:
        super().__init__()
        self.network, self.R, self.is_right = network, network.R, network.is_right
        self.truth, self.rotations, self.weak_joints2d = hands, rotations, weak_joints2d

    def extract(self, images: torch.Tensor) -> Any:
        return self.network.extract(images)

    def hands(self, images: torch.Tensor, features: Any, columns: str = "all") -> Prediction:
        like, truth = self.network.hands(images, features), self.truth
        left = ~truth.is_right[:, None, None]
        back = self.rotations.inv().as_matrix()

        def shown(points_mm: np.ndarray) -> np.ndarray:
            on_axis = np.einsum("bij,bnj->bni", back, points_mm)
            return np.where(left, on_axis * MIRROR, on_axis)

        joints, vertices = shown(truth.joints_mm), shown(truth.vertices_mm)
        joints2d = (truth.joints_px - truth.centre_px[:, None]) / (truth.side_px[:, None, None] / 2)
        joints2d = np.where(left, joints2d * MIRROR[:2], joints2d)
        xy = joints[..., :2] - joints[..., :2].mean(1, keepdims=True)
        scale = (xy * joints2d).sum((1, 2)) / (xy**2).sum((1, 2))
        translation = joints2d.mean(1) - scale[:, None] * joints[..., :2].mean(1)
        if self.weak_joints2d:
            joints2d = scale[:, None, None] * joints[..., :2] + translation[:, None]
        # The pose's wrist rotates with the hand; for a left hand it is its mirror image's, in the mirrored camera.
        flip = np.where(left, np.outer(MIRROR, MIRROR), 1.0)
        wrist = (back * flip) @ Rotation.from_rotvec(truth.pose[:, :3]).as_matrix()
        fingers = Rotation.from_rotvec(truth.pose[:, 3:].reshape(-1, 3)).as_matrix().reshape(-1, 15, 3, 3)

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32)

        prior = dataclasses.replace(
            like.prior,
            rotations=tensor(np.concatenate([wrist[:, None], fingers], 1)),
            betas=tensor(truth.betas),
        )
        std = torch.tensor([3.0, 4.0, 9.0]).repeat(len(joints), vertices.shape[1], 1)
        return dataclasses.replace(
            like,
            joints3d=dataclasses.replace(like.joints3d, mean_mm=tensor(joints), std_mm=std[:, :21].clone()),
            vertices=dataclasses.replace(like.vertices, mean_mm=tensor(vertices), std_mm=std),
            joints2d=tensor(joints2d),
            camera=dataclasses.replace(
                like.camera,
                scale_per_mm=tensor(scale),
                rotvec=torch.zeros(len(joints), 3),
                translation=tensor(translation),
            ),
            prior=prior,
        )


def labels_of(predictor: Predictor, hands: Hands, rotations: Rotation, weak_joints2d: bool = False) -> dict:
    perfect = Predictor(predictor.checkpoint, torch.device("cpu"))
    perfect.network = Perfect(perfect.network, hands, rotations, weak_joints2d)
    return perfect.predict_crops(crops_of(hands, predictor.checkpoint.info.network.crop_px), samples=0)


def crop_rays(hands: Hands) -> Rotation:
    return rays_to(
        np.concatenate([hands.centre_px - PRINCIPAL_PX, np.full((len(hands.boxes), 1), FOCAL_PX)], 1)
    )


def looking_at(hands: Hands) -> Rotation:
    """Return the smallest rotations of the camera that centre each hand's box in its picture."""
    points, rotations = hands.vertices_mm + hands.wrist_mm[:, None], rays_to(hands.wrist_mm)
    for _ in range(8):
        rotated = np.einsum("bij,bnj->bni", rotations.inv().as_matrix(), points)
        seen = rotated[..., :2] / rotated[..., 2:]
        middle = (seen.max(1) + seen.min(1)) / 2
        rotations = rays_to(rotations.apply(np.concatenate([middle, np.ones((len(points), 1))], 1)))
    return rotations


def errors(label: dict, hands: Hands) -> dict[str, float]:
    """Return label errors: joints and wrist in mm, projected minus 2D joints in percent of the crop's side."""
    camera = label["camera"]
    placed = label["joints3d_mm"] + camera["cam_t_mm"][:, None]
    seen = (
        camera["focal_px"][:, None, None] * placed[..., :2] / placed[..., 2:]
        + camera["principal_px"][:, None]
    )
    off = np.linalg.norm(seen - label["joints2d_px"], axis=-1) / hands.side_px[:, None]
    return {
        "joints_mm": float(np.linalg.norm(label["joints3d_mm"] - hands.joints_mm, axis=-1).mean()),
        "cam_t_mm": float(np.linalg.norm(camera["cam_t_mm"] - hands.wrist_mm, axis=-1).mean()),
        "projection": float(100 * off.mean()),
        "projection_most": float(100 * off.mean(1).max()),
    }


@pytest.mark.parametrize("distance_mm", [300.0, 600.0])
@pytest.mark.parametrize("angle_deg", ANGLES_DEG)
def test_a_perfect_networks_labels_are_true(predictor, hands_at, angle_deg, distance_mm):
    hands = hands_at(angle_deg, distance_mm)
    label = labels_of(predictor, hands, crop_rays(hands))
    found = errors(label, hands)
    assert found["joints_mm"] < 0.01 and found["cam_t_mm"] < 0.05 and found["projection_most"] < 0.01
    np.testing.assert_array_equal(label["is_right"], hands.is_right)
    np.testing.assert_allclose(label["vertices_mm"], hands.vertices_mm, atol=0.02)
    # Pose and betas reproduce the mesh, mirrored for left hands.
    layer = HandLayer(predictor.checkpoint.hand)
    rotations = roma.rotvec_to_rotmat(torch.from_numpy(label["pose"]).view(-1, 16, 3))
    posed = layer(rotations, torch.from_numpy(label["betas"]))[0].numpy()
    posed = np.where(hands.is_right[:, None, None], posed, posed * MIRROR)
    np.testing.assert_allclose(posed, label["vertices_mm"], atol=0.05)


@pytest.mark.slow
def test_the_table_of_docs_labels(predictor, hands_at, capsys):
    """The table of docs/labels.md: `python -m pytest tests/labels/test_camera_axes.py -k table -s` prints it.

    Here the perfect network predicts for a camera rotated towards the hand, so that the hand's box is centred in its
    picture. The crop is the same, except for the stretching off the optical axis.
    """
    rows = []
    for angle_deg in ANGLES_DEG[1:]:
        hands = hands_at(angle_deg, 600.0, 32)
        to_hand = looking_at(hands)
        label = labels_of(predictor, hands, to_hand)
        after = errors(label, hands)
        # As in schema 1: the network's output treated as camera axes; the pinhole fitted by a general optimiser.
        rotated = np.einsum("bij,bnj->bni", to_hand.inv().as_matrix(), hands.joints_mm)
        before = errors(
            label | {"joints3d_mm": rotated, "camera": _fitted(label["camera"], rotated, hands)}, hands
        )
        rows.append(
            f"| {angle_deg:.0f} | "
            + " | ".join(
                f"{before[name]:.1f} | {after[name]:.{digits}f}"
                for name, digits in (("joints_mm", 1), ("cam_t_mm", 1), ("projection", 2))
            )
            + " |"
        )
        assert after["projection"] < 0.2 and after["projection_most"] < 0.5
        assert after["joints_mm"] < 1 and after["cam_t_mm"] < 1.5
        assert before["joints_mm"] > 1.2 * angle_deg and before["projection"] > 0.15 * angle_deg
    with capsys.disabled():
        print("", *rows, sep="\n")


def _fitted(camera: dict, joints_mm: np.ndarray, hands: Hands) -> dict:
    found = [
        least_squares(lambda t, j=j, p=p: (seen_px(j + t) - p).ravel(), wrist).x
        for j, p, wrist in zip(joints_mm, hands.joints_px, hands.wrist_mm, strict=True)
    ]
    return camera | {"cam_t_mm": np.array(found)}


@pytest.mark.parametrize("angle_deg", [0.0, 25.0])
def test_the_weak_camera_gives_the_2d_joints_through_the_crop(predictor, hands_at, angle_deg):
    hands = hands_at(angle_deg, 500.0)
    label = labels_of(predictor, hands, crop_rays(hands), weak_joints2d=True)
    camera = label["camera"]
    in_crop = np.einsum(
        "bij,bnj->bni", Rotation.from_rotvec(camera["rotation"]).as_matrix(), label["joints3d_mm"]
    )
    weak = camera["scale"][:, None, None] * in_crop[..., :2] + camera["translation"][:, None]
    x0, y0, x1, y1 = label["crop_xyxy"].T
    centre, half = np.stack([x0 + x1, y0 + y1], 1) / 2, (x1 - x0) / 2
    np.testing.assert_allclose(centre[:, None] + half[:, None, None] * weak, label["joints2d_px"], atol=2e-3)
    rotated_deg = np.degrees(np.linalg.norm(camera["rotation"], axis=1))
    np.testing.assert_allclose(rotated_deg, np.degrees(crop_rays(hands).magnitude()), atol=1e-3)
    # docs/labels.md states the difference between a pinhole and weak perspective.
    found = errors(label, hands)
    assert found["projection"] < 2 and found["cam_t_mm"] < 5


def test_std_is_that_of_each_axis_after_the_rotation(predictor, hands_at):
    hands = hands_at(22.0, 500.0)
    rotations = crop_rays(hands)
    label = labels_of(predictor, hands, rotations)
    rng = np.random.default_rng(0)
    errors_in_crop = rng.normal(0, [3.0, 4.0, 9.0], (200_000, 3))
    for k in (0, 5):
        measured = rotations[k].apply(errors_in_crop).std(0)
        np.testing.assert_allclose(label["joints3d_std_mm"][k, 4], measured, rtol=0.01)
        np.testing.assert_allclose(label["vertices_std_mm"][k, 100], measured, rtol=0.01)
    assert (label["joints3d_std_mm"][:, 0] == 0).all()
    # The length of the std vector, by which labels are filtered, does not depend on the rotation.
    np.testing.assert_allclose(label["joint_std_mm"], np.sqrt(9 + 16 + 81), rtol=1e-5)


def test_drawn_meshes_are_in_the_labels_axes(lively):
    scene = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for side in ("left", "right"):
        label = lively.predict([scene], samples=200, side=side, boxes_xyxy=[[300, 10, 390, 100]])[0]
        assert np.linalg.norm(label["camera"]["rotation"]) > 0.25
        away = label["vertices_samples_mm"].mean(0) - label["vertices_mm"]
        assert np.linalg.norm(away, axis=-1).mean() < 0.2 * label["vertex_std_mm"]


def examples_of(hands: Hands, columns: dict[str, Any], vertex_count: int) -> Rows:
    """Return rows of examples as `convert` writes them, with an empty photo."""
    file = io.BytesIO()
    Image.new("RGB", (WIDTH_PX, HEIGHT_PX)).save(file, "PNG")
    of_photo = {"image": file.getvalue(), "status": "ok", "width": WIDTH_PX, "height": HEIGHT_PX}
    camera = {"focal_px": FOCAL_PX, "principal_px": PRINCIPAL_PX.tolist()}
    rows = [
        of_photo
        | {"box_source": "list", "box_xyxy": hands.boxes[k], "is_right": bool(hands.is_right[k])}
        | {"camera": camera, "joints2d_px": hands.joints_px[k]}
        | {name: values[k] for name, values in columns.items()}
        for k in range(len(hands.boxes))
    ]
    return Rows(example_table(rows, example_schema(vertex_count, {"hand": None})))


@pytest.mark.parametrize("angle_deg", [0.0, 22.0])
def test_training_targets_are_what_the_perfect_network_answers(predictor, hands_at, angle_deg):
    """Labels in camera axes, read as examples, return to crop axes; left hands are mirrored."""
    hands = hands_at(angle_deg, 500.0, 4)
    rotations = crop_rays(hands)
    label = labels_of(predictor, hands, rotations)
    names = ("joints3d_mm", "joints3d_std_mm", "vertices_mm")
    vertex_count = hands.vertices_mm.shape[1]
    rows = examples_of(hands, {name: label[name] for name in names}, vertex_count)
    for k in range(4):
        batch = read_example(rows, k, 32, 1.4, ("joints2d", "joints3d", "vertices"), vertex_count)
        side = 1 if hands.is_right[k] else MIRROR
        for name, truth in (("joints3d_mm", hands.joints_mm), ("vertices_mm", hands.vertices_mm)):
            np.testing.assert_allclose(
                getattr(batch, name)[0], rotations[k].inv().apply(truth[k]) * side, atol=0.1
            )
        lengths = np.linalg.norm(label["joints3d_std_mm"][k], axis=1)
        np.testing.assert_allclose(batch.joints3d_std_mm[0].norm(dim=1), lengths, rtol=0.02)
        ray = ((hands.centre_px[k] - PRINCIPAL_PX) / FOCAL_PX) * np.broadcast_to(side, 3)[:2]
        np.testing.assert_allclose(batch.ray[0], ray, atol=1e-6)
        np.testing.assert_allclose(batch.half_side_tan[0], 0.7 * hands.side_px[k] / FOCAL_PX, rtol=1e-6)


@pytest.mark.parametrize("given", ["wrist_mm", "camera_matrix"])
def test_a_submission_is_in_camera_axes(predictor, hands_at, given):
    hands = hands_at(22.0, 500.0, 8)
    hands = dataclasses.replace(
        hands, **{f.name: getattr(hands, f.name)[::2] for f in dataclasses.fields(hands)}
    )  # right ones only, as benchmarks have
    K = np.array([[FOCAL_PX, 0, PRINCIPAL_PX[0]], [0, FOCAL_PX, PRINCIPAL_PX[1]], [0, 0, 1]])
    columns = (
        {"wrist_mm": hands.wrist_mm} if given == "wrist_mm" else {"camera_matrix": np.tile(K, (4, 1, 1))}
    )
    crop_px = predictor.checkpoint.info.network.crop_px
    rows = examples_of(hands, columns, 1)
    batch = Batch.join([read_example(rows, k, crop_px, 1.0, ("joints2d",), 1) for k in range(4)])
    perfect = Perfect(predictor.network, hands, crop_rays(hands), weak_joints2d=False)
    with torch.inference_mode():
        images = batch.image.float() / 255
        answer = perfect.hands(images, perfect.extract(images))
    facts = [facts_of(rows, k) for k in range(4)]
    joints_mm, vertices_mm, wrists_mm = to_camera_axes(batch, answer, facts)
    np.testing.assert_allclose(joints_mm, hands.joints_mm, atol=0.02)
    np.testing.assert_allclose(vertices_mm, hands.vertices_mm, atol=0.02)
    np.testing.assert_allclose(wrists_mm, hands.wrist_mm, atol=0.05)
