"""Two looks at a crop: frames and their inverses, the file with both networks, and every source of photos."""

import copy
import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image

import annotator
from annotator import UserError
from annotator.model import two_looks
from annotator.model.checkpoint import (
    load_checkpoint,
    save_checkpoint,
    untrained,
    with_first_look,
)
from annotator.model.checkpoint_file import NAMES, WIDE, read_info
from annotator.model.network import Network
from annotator.model.square import PADDING, Square
from annotator.model.two_looks import TwoLooks, without_hands
from annotator.photos.crops import BOX_PADDING
from annotator.photos.cut import OUTSIDE_RGB
from annotator.predictor import Predictor
from annotator.runtime.device import device_of
from tests.conftest import SMALL
from tests.support.example_files import hands as open_hands
from tests.support.example_files import write_stick_hands
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.predictions import predict_examples


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint("fast")


@pytest.fixture(scope="module")
def both(shipped, lively):
    """Join the shipped network as first look with a second one whose outputs all depend on the crop."""
    return with_first_look(lively.checkpoint, shipped)


@pytest.fixture(scope="module")
def both_file(both, tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "both.safetensors"
    save_checkpoint(both, path)
    return str(path)


@pytest.fixture(scope="module")
def rotating(shipped, lively):
    """Return two networks, the second with a rotating camera. Presence is 0, so that no look is repeated."""
    config = lively.checkpoint.info.network
    config = dataclasses.replace(config, camera=dataclasses.replace(config.camera, rotation=True))
    second = Network(config, lively.checkpoint.hand)
    second.load_state_dict(lively.checkpoint.network.state_dict())
    two = TwoLooks(without_hands(shipped.network), second).eval()
    with torch.no_grad():
        two.first.presence.linear.bias.fill_(-100)
    return two


def wide_images(two, count=3):
    noise = torch.rand(count, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.interpolate(noise, (two.input_px, two.input_px), mode="bilinear")


def some_joints(count=3):
    """Return 2D joints of hands, rotated, small and off centre."""
    joints = torch.from_numpy(open_hands(count)[1][..., :2]).float()
    joints = joints - joints.mean(1, keepdim=True)
    angle = torch.tensor([0.3, -1.2, 2.5])[:count]
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    return joints / joints.abs().amax((1, 2), keepdim=True) * 0.6 @ rotation.mT + torch.tensor([0.1, -0.15])


def filling_joints(count=3):
    """Return upright joints whose square is the tight crop itself."""
    joints = torch.zeros(count, 21, 2)
    joints[:, 0, 1], joints[:, 12, 1] = 1 / PADDING, -1 / PADDING
    joints[:, 9, 1] = -0.5
    return joints


def hands_of(two, images, joints2d):
    with torch.inference_mode():
        first = dataclasses.replace(two.first_look(images), joints2d=joints2d)
        return two.hands(images, two.second_look(images, first))


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotating_the_image_rotates_the_prediction(rotating, quarters):
    images, joints2d = wide_images(rotating), some_joints()
    # Counter-clockwise with y down: (x, y) becomes (y, -x).
    rotation = torch.tensor(np.linalg.matrix_power([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], quarters)).float()
    before = hands_of(rotating, images, joints2d)
    after = hands_of(rotating, images.rot90(quarters, (2, 3)), joints2d @ rotation[:2, :2].T)
    tolerance_mm, tolerance = {"atol": 0.05, "rtol": 0}, {"atol": 1e-3, "rtol": 0}
    torch.testing.assert_close(after.joints3d.mean_mm, before.joints3d.mean_mm @ rotation.T, **tolerance_mm)
    torch.testing.assert_close(after.vertices.mean_mm, before.vertices.mean_mm @ rotation.T, **tolerance_mm)
    torch.testing.assert_close(
        after.vertices.std_mm, before.vertices.std_mm @ rotation.abs().T, **tolerance_mm
    )
    torch.testing.assert_close(after.joints2d, before.joints2d @ rotation[:2, :2].T, **tolerance)
    covariance = rotation[:2, :2] @ before.joints2d_covariance @ rotation[:2, :2].T
    torch.testing.assert_close(after.joints2d_covariance, covariance, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(
        after.camera.rotation(), rotation @ before.camera.rotation() @ rotation.T, **tolerance
    )
    torch.testing.assert_close(
        after.camera.std[:, 1:4], before.camera.std[:, 1:4] @ rotation.abs().T, **tolerance
    )
    torch.testing.assert_close(after.prior.vertices_mm, before.prior.vertices_mm @ rotation.T, **tolerance_mm)
    assert torch.equal(after.visible, before.visible)


def test_transformed_predictions_are_consistent(rotating):
    """Check at any rotation and size: the camera projects joints to 2D joints, prior-net's rotations pose its mesh."""
    found = hands_of(rotating, wide_images(rotating), some_joints())
    assert found.camera.rotvec.abs().min() > 0
    projected = found.camera.project(found.joints3d.mean_mm)[..., :2]
    torch.testing.assert_close(projected, found.joints2d, atol=1e-5, rtol=0)
    posed, joints = rotating.second.prior_net.layer(found.prior.rotations, found.prior.betas)
    torch.testing.assert_close(found.prior.vertices_mm, posed, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.prior.joints3d_mm, joints, atol=1e-2, rtol=0)


def test_an_upright_centred_square_gives_what_one_network_gives_of_the_tight_crop(rotating):
    images, crop_px = wide_images(rotating), rotating.config.crop_px
    edge = (rotating.input_px - crop_px) // 2
    assert crop_px + 2 * edge == rotating.input_px == WIDE * crop_px
    with torch.inference_mode():
        alone = rotating.second(images[:, :, edge:-edge, edge:-edge])
    # Joints that form no hand leave the crop unchanged.
    for joints2d in (filling_joints(), torch.full((3, 21, 2), torch.nan), torch.zeros(3, 21, 2)):
        found = hands_of(rotating, images, joints2d)
        torch.testing.assert_close(found.joints2d, alone.joints2d, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.joints2d_covariance, alone.joints2d_covariance, atol=1e-5, rtol=1e-3)
        for name in ("vertices", "joints3d"):
            ours, theirs = getattr(found, name), getattr(alone, name)
            torch.testing.assert_close(ours.mean_mm, theirs.mean_mm, atol=0.02, rtol=0)
            torch.testing.assert_close(ours.std_mm, theirs.std_mm, atol=0.02, rtol=0)
        torch.testing.assert_close(found.camera.std, alone.camera.std, atol=1e-4, rtol=0)
        torch.testing.assert_close(found.rgb, alone.rgb, atol=1e-3, rtol=0)


def test_a_second_look_that_disagrees_with_its_square_is_repeated_if_a_hand_is_present(rotating, monkeypatch):
    monkeypatch.setattr(two_looks, "REPEATS", 1)
    images, crop_px = wide_images(rotating), rotating.config.crop_px
    edge = (rotating.input_px - crop_px) // 2
    upside_down = -filling_joints()
    once = hands_of(rotating, images, upside_down)
    with torch.inference_mode():
        shown = images[:, :, edge:-edge, edge:-edge].rot90(2, (2, 3))
        own = rotating.second.extract(shown).joints2d
        own = rotating.second(shown).joints2d if own is None else own
    expected = hands_of(rotating, images, -own)
    assert (once.joints3d.mean_mm - expected.joints3d.mean_mm).abs().amax((1, 2)).min() > 1
    sure = copy.deepcopy(rotating)
    looks = []
    sure.second.backbone.register_forward_hook(lambda _, arguments, __: looks.append(len(arguments[0])))
    with torch.no_grad():
        sure.first.presence.linear.bias.fill_(100)
    found = hands_of(sure, images, upside_down)
    assert looks == [3, 3]
    torch.testing.assert_close(found.joints3d.mean_mm, expected.joints3d.mean_mm, atol=0.05, rtol=0)
    torch.testing.assert_close(found.joints2d, expected.joints2d, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.prior.rotations, expected.prior.rotations, atol=1e-3, rtol=0)
    assert (found.is_hand > 0.99).all()


def test_a_second_look_is_repeated_only_while_its_square_is_off(rotating, monkeypatch):
    """Of three hands, the first is off once, the second twice, the third never."""
    off = iter([[True, True, False], [False, True, False], [False, False, False]])
    monkeypatch.setattr(Square, "is_off", lambda *_: torch.tensor(next(off)))
    sure, looks = copy.deepcopy(rotating), []
    sure.second.backbone.register_forward_hook(lambda _, arguments, __: looks.append(len(arguments[0])))
    with torch.no_grad():
        sure.first.presence.linear.bias.fill_(100)
    hands_of(sure, wide_images(sure), filling_joints())
    assert looks == [3, 2, 1]


def test_the_first_look_gives_side_and_presence_of_the_tight_crop(rotating, shipped):
    images = wide_images(rotating)
    square = round(rotating.input_px / WIDE)
    edge = (rotating.input_px - square) // 2
    small = torch.nn.functional.interpolate(
        images[:, :, edge:-edge, edge:-edge], (shipped.cut_px, shipped.cut_px), mode="area"
    )
    with torch.inference_mode():
        found, alone = rotating(images, torch.arange(2)), shipped.network(small, torch.arange(2))
    torch.testing.assert_close(found.is_right, alone.is_right, atol=0.02, rtol=0)
    torch.testing.assert_close(found.mirrored_is_right, alone.mirrored_is_right, atol=0.02, rtol=0)


def test_one_file_holds_both_looks(both, both_file, lively, shipped, tmp_path):
    half = tmp_path / "half.safetensors"
    save_checkpoint(both, half, half=True)
    for path, in_half in ((both_file, False), (str(half), True)):
        loaded = load_checkpoint(path)
        assert loaded.info == both.info and isinstance(loaded.network, TwoLooks)
        assert (loaded.cut_px, loaded.cut_margin) == (both.network.input_px, WIDE)
        for look, source in (("first", shipped.network), ("second", lively.checkpoint.network)):
            expected = source.state_dict()
            for name, tensor in getattr(loaded.network, look).state_dict().items():
                whole = expected[name]
                wanted = whole.half().float() if in_half and whole.ndim > 1 else whole
                torch.testing.assert_close(tensor, wanted, rtol=0, atol=0)
    assert load_checkpoint(both_file).to_bytes() == both.to_bytes()
    with safetensors.safe_open(both_file, "pt") as file:
        names = set(file.keys())
    assert set(lively.checkpoint.network.state_dict()) <= names
    assert not any(name.startswith(("first_look.texture", "first_look.amvur")) for name in names)


def test_a_file_with_one_look_is_written_as_it_was(shipped):
    data = NAMES["fast"].read_bytes()
    assert shipped.info.first_look is None and shipped.cut_margin == 1
    assert shipped.cut_px == shipped.info.network.crop_px
    again = shipped.to_bytes(half=True)
    assert read_info("again", again) == read_info("shipped", data)
    header = json.loads(
        json.loads(again[8 : 8 + int.from_bytes(again[:8], "little")])["__metadata__"]["amvur"]
    )
    assert header["version"] == 4 and "first_look" not in header


def test_a_first_look_must_be_one_network(both, lively):
    with pytest.raises(UserError, match="a single network"):
        with_first_look(lively.checkpoint, both)
    # A checkpoint with two looks gets another first network.
    again = with_first_look(both, untrained("default"))
    assert again.network.hand_network is both.network.hand_network and again.id != both.id


def test_a_left_hand_in_a_box_is_the_mirrored_photos_right_one(both, photos):
    predictor = Predictor(both, torch.device("cpu"))
    rng = np.random.default_rng(2)
    small = rng.integers(0, 256, (3, 6, 8, 3), np.uint8)
    shown = [np.asarray(Image.fromarray(p).resize((200, 160))) for p in small]
    boxes = np.array([[40, 30, 120, 110], [90, 60, 150, 120], [0, 0, 90, 80]])
    mirrored = [np.ascontiguousarray(photo[:, ::-1]) for photo in shown]
    mirrored_boxes = np.stack([200 - boxes[:, 2], boxes[:, 1], 200 - boxes[:, 0], boxes[:, 3]], 1)
    left = predictor.predict(shown, side="left", boxes_xyxy=boxes)
    right = predictor.predict(mirrored, side="right", boxes_xyxy=mirrored_boxes)
    for box, ours, theirs in zip(boxes, left, right, strict=True):
        np.testing.assert_allclose(ours["vertices_mm"], theirs["vertices_mm"] * [-1, 1, 1], atol=0.05)
        np.testing.assert_allclose(200 - ours["joints2d_px"][:, 0], theirs["joints2d_px"][:, 0], atol=0.05)
        np.testing.assert_allclose(ours["joints2d_px"][:, 1], theirs["joints2d_px"][:, 1], atol=0.05)
        np.testing.assert_allclose(ours["pose"], theirs["pose"], atol=5e-3)
        side_px = np.ptp(ours["crop_xyxy"].reshape(2, 2), axis=0)
        np.testing.assert_allclose(side_px, BOX_PADDING * max(box[2:] - box[:2]))
        assert not ours["is_right"] and theirs["is_right"]
    asked = predictor.predict(shown, boxes_xyxy=boxes)
    by_side = {side: predictor.predict(shown, side=side, boxes_xyxy=boxes) for side in ("left", "right")}
    for k, label in enumerate(asked):
        expected = by_side["right" if label["is_right"] else "left"][k]
        np.testing.assert_allclose(label["vertices_mm"], expected["vertices_mm"], atol=0.05)
        np.testing.assert_allclose(label["joints2d_px"], expected["joints2d_px"], atol=0.05)


@pytest.mark.slow
def test_annotate_cuts_wide_and_labels_as_the_predictor_does(both, both_file, photos, tmp_path, local_ray):
    few = tmp_path / "photos"
    few.mkdir()
    names = sorted(photos.rglob("*.jpg"))[:6]
    for path in names:
        (few / path.name).write_bytes(path.read_bytes())
    annotator.annotate(
        str(few), str(tmp_path / "labels"), checkpoint=both_file, side="right", samples=2, compute=SMALL
    )
    rows = pq.read_table(tmp_path / "labels" / "data").to_pylist()
    expected = Predictor(both, torch.device("cpu")).predict(sorted(few.iterdir()), side="right")
    assert [row["status"] for row in rows] == ["ok"] * 6
    for row, label in zip(rows, expected, strict=True):
        np.testing.assert_allclose(row["vertices_mm"], label["vertices_mm"], atol=0.06)
        np.testing.assert_allclose(row["joints2d_px"], label["joints2d_px"], atol=0.2)
        assert row["crop_xyxy"] == label["crop_xyxy"].tolist()
    facts = json.loads(pq.read_schema(next((tmp_path / "labels/data").iterdir())).metadata[b"amvur"])
    assert facts["crop_px"] == both.cut_px


@pytest.mark.slow
def test_evaluate_reads_wide_and_measures_in_the_tight_crop(both, both_file, lively, tmp_path):
    folder = write_stick_hands(tmp_path / "sticks", 5)
    plain = list(predict_examples(lively.checkpoint, str(folder), device="cpu"))
    wide = list(predict_examples(both, str(folder), device="cpu"))
    (ours, prediction, _), (theirs, alone, _) = wide[0], plain[0]
    for name in ("joints2d", "joints2d_std", "joints3d_mm", "half_side_tan", "ray"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), atol=1e-5, rtol=0)
    assert torch.equal(ours.has_joints2d, theirs.has_joints2d) and ours.image.shape == theirs.image.shape
    assert (ours.image.float() - theirs.image.float()).abs().mean() < 0.5
    assert (ours.hand_mask.float() - theirs.hand_mask.float()).abs().mean() < 0.5
    assert prediction.joints2d.shape == alone.joints2d.shape
    for examples, count in ((str(folder), 0), ("synth", 4)):
        figures = evaluate(both_file, examples, str(tmp_path / "out"), count=count, device="cpu")
        numbers = np.array([v for v in _numbers(figures) if v is not None])
        assert len(numbers) > 5 and np.isfinite(numbers).all()


def _numbers(values):
    """Return all numbers in nested dictionaries."""
    if isinstance(values, dict):
        return [number for value in values.values() for number in _numbers(value)]
    return [values] if isinstance(values, (int, float)) else []


@pytest.mark.slow
def test_drawn_hands_are_surrounded_by_the_outside_colour(both):
    seen = []
    hook = both.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        ((batch, _, _),) = predict_examples(both, "synth", count=2, device=str(device_of("cpu")))
    finally:
        hook.remove()
    edge = (both.cut_px - batch.image.shape[-1]) // 2
    image = (seen[0] * 255).round()
    torch.testing.assert_close(image[:, :, edge:-edge, edge:-edge], batch.image.float(), atol=0, rtol=0)
    image[:, :, edge:-edge, edge:-edge] = torch.tensor(OUTSIDE_RGB).view(3, 1, 1).float()
    assert torch.equal(image, torch.tensor(OUTSIDE_RGB).view(3, 1, 1).float().expand_as(image))
