"""Compare MediaPipe's hand landmark network in torch with the same file in LiteRT and in MediaPipe itself."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from annotator.config import AmvurConfig, NetworkConfig, TextureConfig
from annotator.coordinates import square_around, upright_square
from annotator.errors import UserError
from annotator.hand import JOINT_NAMES, load_hand
from annotator.hand.anatomy import chirality
from annotator.model.landmarker import released_file
from annotator.model.landmarker.bundle import MEMBER
from annotator.model.landmarker.network import Landmarker, LandmarkHand
from annotator.model.landmarker.released_file import read_released_landmarker
from annotator.photos.cut import cut
from tests.conftest import SHARED
from tests.support.example_files import write_stick_hands
from trainer.config import SourceConfig, TrainConfig
from trainer.start import start_network
from trainer.train import train

pytest.importorskip("tflite", reason="tflite (extra 'landmarker') is not installed")

MODEL = SHARED / "models" / "hand_landmarker.task"


@pytest.fixture(scope="module")
def model() -> str:
    if not MODEL.is_file():
        pytest.skip("MediaPipe's hand_landmarker.task is not beside this checkout")
    return str(MODEL)


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Return (20, 3, 224, 224): photos of hands of many people."""
    folder = SHARED / "data" / "hand-photos" / "images"
    if not folder.is_dir():
        pytest.skip("the real photos (hand-photos) are not beside this checkout")
    files = sorted(folder.glob("*/*.jpg"))[::107]
    photos = [np.asarray(Image.open(file).convert("RGB").resize((224, 224))) for file in files]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2) / 255


@pytest.fixture(scope="module")
def landmarker(model, crops) -> Landmarker:
    return read_released_landmarker(model, crops)


@torch.no_grad()
def hands_in(landmarker: Landmarker, images: Tensor) -> LandmarkHand:
    return landmarker(images)


def in_litert(model: str, images: Tensor) -> list[np.ndarray]:
    """Return image landmarks (B, 63) in pixels of 224, presence, side (B, 1), and world landmarks (B, 63) in metres."""
    interpreters = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    network = zipfile.ZipFile(model).read(MEMBER)
    interpreter = interpreters.Interpreter(model_content=network, num_threads=1)
    interpreter.resize_tensor_input(0, [1, *images.shape[2:], 3])
    interpreter.allocate_tensors()
    indices = {detail["name"]: detail["index"] for detail in interpreter.get_output_details()}
    found = []
    for image in images:
        interpreter.set_tensor(0, image.permute(1, 2, 0)[None].contiguous().numpy())
        interpreter.invoke()
        found.append([interpreter.get_tensor(indices[name])[0] for name in sorted(indices)])
    return [np.stack(output) for output in zip(*found, strict=True)]


@pytest.mark.parametrize("size_px", [224, 160, 128, 96, 97])
def test_outputs_are_those_of_litert(model, landmarker, crops, size_px):
    images = torch.nn.functional.interpolate(crops[:6], (size_px, size_px), mode="area")
    image, presence, side, world = in_litert(model, images)
    hands = hands_in(landmarker, images)
    assert hands.image.shape == hands.world_mm.shape == (6, 21, 3)
    # Pixels of the file's own input, and depth before MediaPipe divides it by 0.4.
    pixels = (hands.image.numpy() + [1, 1, 0]) * 112 * [1, 1, 0.4]
    np.testing.assert_allclose(pixels.reshape(6, 63), image, atol=1e-3)
    np.testing.assert_allclose(hands.world_mm.flatten(1) / 1000, world, atol=2e-6)
    np.testing.assert_allclose(hands.presence.sigmoid()[:, None], presence, atol=1e-5)
    np.testing.assert_allclose(hands.is_right.sigmoid()[:, None], side, atol=1e-5)


@pytest.mark.slow
def test_batch_norms_unfolded_on_crops_change_nothing_and_are_those_of_the_crops(model, landmarker, crops):
    untouched = read_released_landmarker(model, crops[:0])
    before, after = hands_in(untouched, crops), hands_in(landmarker, crops)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-5 * float(a.abs().max()))
    in_training = hands_in(read_released_landmarker(model, crops).train(), crops)
    torch.testing.assert_close(in_training.image, before.image, rtol=0, atol=1e-4)
    stem = landmarker.backbone.conv_stem(crops)
    torch.testing.assert_close(
        landmarker.backbone.bn1.running_mean, stem.mean((0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(landmarker.backbone.bn1.running_var, stem.var((0, 2, 3)), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size_px", [96, 128, 160, 224])
def test_features_have_the_shapes_of_a_backbone(landmarker, size_px):
    with torch.no_grad():
        g, X, pyramid = landmarker.backbone(torch.rand(2, 3, size_px, size_px))
    assert g.shape == (2, 1152) and X.shape == (2, 24, size_px // 2, size_px // 2)
    sides = [size_px // 8, size_px // 16, size_px // 32]
    assert [tuple(level.shape[1:]) for level in pyramid] == [
        (channels, side, side) for channels, side in zip((40, 112, 1152), sides, strict=True)
    ]


def test_the_joints_are_in_our_order():
    landmarks = pytest.importorskip("mediapipe.tasks.python.vision.hand_landmarker").HandLandmark
    fingers = {"PINKY": "little", "WRIST": "wrist"}
    theirs = [fingers.get(joint.name.split("_")[0], joint.name.split("_")[0].lower()) for joint in landmarks]
    assert theirs == [name.split("_")[0] for name in JOINT_NAMES]
    assert [joint.name.endswith("TIP") for joint in landmarks] == [n.endswith("tip") for n in JOINT_NAMES]


def test_landmarks_are_those_of_mediapipe_itself(model, landmarker, sign_digits):
    """MediaPipe uses another crop, so landmarks agree to a few per cent of it, and units to a factor near 1."""
    pytest.importorskip("mediapipe", reason="MediaPipe (extra 'detect') is not installed")
    from mediapipe import Image as MediaPipeImage
    from mediapipe import ImageFormat
    from mediapipe.tasks.python import BaseOptions
    from mediapipe.tasks.python.vision import HandLandmarker, HandLandmarkerOptions

    off, depths, worlds, ours = [], [], [], []
    options = HandLandmarkerOptions(base_options=BaseOptions(model_asset_path=model), num_hands=1)
    with HandLandmarker.create_from_options(options) as mediapipe:
        for file in sorted(sign_digits.glob("*/*.JPG"))[::130]:
            # An upright hand with a border in a larger picture, which suits MediaPipe's palm detector.
            pixels = np.pad(np.asarray(Image.open(file)), ((50, 50), (50, 50), (0, 0)), mode="edge")
            pixels = np.asarray(Image.fromarray(pixels).resize((800, 800), Image.Resampling.BICUBIC))
            result = mediapipe.detect(MediaPipeImage(image_format=ImageFormat.SRGB, data=pixels))
            if not result.hand_landmarks:
                continue
            theirs = 800 * np.array([[point.x, point.y, point.z] for point in result.hand_landmarks[0]])
            if abs(upright_square(theirs[:, :2]).rotation_rad) > 0.2:
                continue
            low, high = theirs[:, :2].min(0), theirs[:, :2].max(0)
            frame = square_around([*low, *high], 1.35)
            crop = torch.from_numpy(cut(pixels, frame, 224, 800).copy()).permute(2, 0, 1)[None] / 255
            hand = hands_in(landmarker, crop)
            image = hand.image[0].numpy().astype(np.float64)
            off.append(np.linalg.norm(frame.photo_from_crop(image[:, :2]) - theirs[:, :2], axis=1).mean())
            off[-1] /= 2 * frame.half_side_px
            depths.append((image[:, 2] * frame.half_side_px, theirs[:, 2]))
            world = 1000 * np.array([[point.x, point.y, point.z] for point in result.hand_world_landmarks[0]])
            worlds.append((hand.world_mm[0].numpy(), world))
            ours.append(hand)
    assert len(off) >= 8
    assert np.mean(off) < 0.03
    for a, b, least in [(*np.array(depths).swapaxes(0, 1), 0.9), (*np.array(worlds).swapaxes(0, 1), 0.97)]:
        slope = (a * b).sum() / (a * a).sum()
        assert 0.85 < slope < 1.15
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > least
    # All photos are of right hands.
    assert np.mean([float(hand.is_right) > 0 for hand in ours]) >= 0.9
    assert np.mean([float(hand.presence) > 0 for hand in ours]) == 1
    assert np.mean([chirality(hand.world_mm[0].numpy()) > 0 for hand in ours]) >= 0.9


def bundle(path: Path, network: bytes, name: str = MEMBER) -> str:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(name, network)
    return str(path)


def test_a_file_of_something_else_is_one_line(model, tmp_path):
    files = zipfile.ZipFile(model)
    network = files.read(MEMBER)
    (tmp_path / "text.task").write_text("no zip")
    rng = np.random.default_rng(0)
    wrong = [
        str(tmp_path / "text.task"),
        bundle(tmp_path / "names.task", network, "another.tflite"),
        bundle(tmp_path / "palms.task", files.read("hand_detector.tflite")),
        bundle(tmp_path / "empty.task", b""),
        bundle(tmp_path / "noise.task", network[:8] + rng.bytes(4000)),
        *(bundle(tmp_path / f"cut{n}.task", network[:n]) for n in (9, 1000, 100_000, len(network) // 2)),
    ]
    for place in wrong:
        with pytest.raises(UserError, match="does not hold MediaPipe's hand landmark network") as caught:
            read_released_landmarker(place, torch.zeros(0, 3, 64, 64))
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"there is no '.*nowhere\.task'"):
        read_released_landmarker(str(tmp_path / "nowhere.task"), torch.zeros(0, 3, 64, 64))


@pytest.mark.slow
def test_bytes_changed_at_random_are_refused_or_read_and_nothing_else(model, tmp_path):
    network = zipfile.ZipFile(model).read(MEMBER)
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(30):
        # Bytes of the tables, which are at both ends; weights are in between.
        changed = np.frombuffer(network, np.uint8).copy()
        changed[rng.integers(0, 3000, 3)] = rng.integers(0, 256, 3)
        changed[-rng.integers(1, 60_000, 3)] = rng.integers(0, 256, 3)
        try:
            read_released_landmarker(
                bundle(tmp_path / "changed.task", changed.tobytes()), torch.zeros(0, 3, 64, 64)
            )
            outcomes.add("read")
        except UserError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_without_the_package_one_line_names_it(model, monkeypatch):
    monkeypatch.setattr(
        released_file, "find_spec", lambda name: None if name == "tflite" else util.find_spec(name)
    )
    with pytest.raises(UserError, match=r"pip install 'amvur-annotator\[landmarker\]'"):
        read_released_landmarker(model, torch.zeros(0, 3, 64, 64))


@pytest.mark.slow
def test_training_starts_from_the_file(model, landmarker, crops, tmp_path):
    examples = str(write_stick_hands(tmp_path / "sticks", 48))
    config = TrainConfig(
        network=NetworkConfig(
            backbone="hand_landmark",
            crop_px=64,
            landmarks=True,
            amvur=AmvurConfig(start="prior_net", tokens=32, width=32),
            texture=TextureConfig(tokens=32, width=16, raster_px=32),
        ),
        data=(SourceConfig(source=examples),),
        start_from=model,
        batch_size=8,
        steps=2,
        loaders=0,
        freeze_early=True,
    )
    start = start_network(config, load_hand("open")).eval()
    with torch.no_grad():
        found, expected = start.backbone(crops).g, landmarker.backbone(crops).g
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    # Batch norms are measured on its own crops, not on those of `landmarker`.
    assert not torch.allclose(
        start.backbone.bn1.running_mean, landmarker.backbone.bn1.running_mean, atol=1e-2
    )
    reads = replace(config, network=replace(config.network, landmarks=False, read_outs=True))
    with torch.no_grad():
        hand = start_network(reads, load_hand("open")).eval().extract(crops).landmark_hand
        expected_hand = landmarker(crops)
    torch.testing.assert_close(hand.image, expected_hand.image, rtol=0, atol=1e-4)
    torch.testing.assert_close(hand.presence, expected_hand.presence, rtol=0, atol=1e-3)
    train(config, str(tmp_path / "run"), "cpu")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    other = replace(config, network=replace(config.network, backbone="efficientnet_lite0"))
    with pytest.raises(
        UserError, match=r"holds the backbone hand_landmark.*set network\.backbone=hand_landmark"
    ):
        start_network(other, load_hand("open"))
