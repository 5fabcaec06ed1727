"""A small landmark network taught by a large one: views, what counts, and runs that resume."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from annotator.model.landmarker.network import Landmarker, LandmarkHand
from annotator.model.quantised import quantised_convolutions
from trainer.distillation.config import DistilConfig
from trainer.distillation.distil import MODEL_FILE, TOLERANCE, distil, landmark_loss
from trainer.distillation.examples import SURE, LandmarkExamples, drawn_examples, taught_examples, view
from trainer.distillation.read_outs import fit_presence, fit_side
from trainer.keyed_random import keys

STILL = DistilConfig(rotation_deg=0, zoom=1, shift=0)


def landmarker(seed: int) -> Landmarker:
    torch.manual_seed(seed)
    return Landmarker().eval()


def crops(count: int = 4) -> LandmarkExamples:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 48, 48, 3), dtype=torch.uint8, generator=generator)
    return taught_examples(landmarker(0), images, 1.5)


def test_a_view_without_randomness_is_the_tight_crop_except_for_colours():
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (90, 90), Image.Resampling.BICUBIC
    )
    wide = np.asarray(smooth)
    wide_crop = drawn_examples(torch.from_numpy(wide.copy())[None], torch.zeros(1, 21, 3))
    seen = view(wide_crop, keys(0, torch.tensor([3])), 1.5, STILL)[0][0]
    tight = Image.fromarray(wide[15:75, 15:75]).resize((224, 224), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(tight).copy()).permute(2, 0, 1).float().flatten(1)
    for ours, theirs in zip(seen.flatten(1), expected, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.97  # gain, offset and noise keep the correlation


def hand(offset: float | torch.Tensor, presence: float = SURE) -> LandmarkHand:
    points = torch.zeros(1, 21, 3) + offset
    return LandmarkHand(points, 100 * points, torch.tensor([presence]), torch.tensor([0.0]))


def test_landmarks_count_by_the_targets_presence():
    photo = torch.tensor([False])
    surely, hardly = (
        landmark_loss(hand(0.1, p), hand(0.0, p), photo) - landmark_loss(hand(0, p), hand(0, p), photo)
        for p in (20.0, -20.0)
    )
    # Smooth L1 beyond 1 is linear: 0.1 / 0.02 - 1/2 and 10 / 3 - 1/2.
    assert float(surely) == pytest.approx(4.5 + 10 / 3 - 0.5, rel=1e-4)
    assert float(hardly) == pytest.approx(0, abs=1e-5)


def test_drawn_landmarks_count_beyond_the_tolerance():
    drawn, tolerance = torch.tensor([True]), torch.tensor(TOLERANCE)
    at_truth, within, beyond = (
        float(landmark_loss(hand(share * tolerance), hand(0.0), drawn)) for share in (0.0, 0.9, 2.0)
    )
    assert within == at_truth
    # The excess is one tolerance: 0.03, 0.03 and 0.06, each over 0.02, less half of it beyond 1.
    assert beyond - at_truth == pytest.approx((1.0 + 1.0 + 2.5) / 3, rel=3e-3)


def test_the_teacher_reads_the_tight_crop_and_a_still_view_has_its_hand():
    """A second implementation: Pillow cuts and scales the middle of the crop."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize(
        (288, 288), Image.Resampling.BICUBIC
    )
    teacher = landmarker(0)
    taught = taught_examples(teacher, torch.from_numpy(np.asarray(smooth).copy())[None], 1.5)
    tight = np.asarray(smooth.resize((224, 224), Image.Resampling.BILINEAR, box=(48, 48, 240, 240))).copy()
    with torch.no_grad():
        expected = teacher(torch.from_numpy(tight).permute(2, 0, 1)[None].float() / 255)
    _, target = view(taught, keys(0, torch.tensor([3])), 1.5, STILL)
    torch.testing.assert_close(target.image, expected.image, atol=1e-2, rtol=0)
    torch.testing.assert_close(target.world_mm, expected.world_mm, atol=1.0, rtol=0)


def test_true_landmarks_move_with_the_pixels():
    """A bright dot is where its landmark is, in any view."""
    at = torch.tensor([0.3, -0.2])
    grid = (torch.arange(96) * 2 + 1) / 96 - 1
    dots = ((grid[None] - at[0]) ** 2 + (grid[:, None] - at[1]) ** 2 < 0.08**2)[None, ..., None]
    landmarks = torch.tensor([*at, 0.1]).expand(1, 21, 3)
    crop = drawn_examples((dots * 255).byte().expand(-1, -1, -1, 3), landmarks)
    for number in range(5):
        images, target = view(crop, keys(0, torch.tensor([number])), 1.5, DistilConfig())
        light = images[0].sum(0)
        rows, columns = (light > 0.8 * light.max()).nonzero().float().mean(0)
        seen = (torch.stack([columns, rows]) * 2 + 1) / 224 - 1
        torch.testing.assert_close(target.image[0, 0, :2], seen, atol=0.01, rtol=0)
        assert 0.1 * 1.5 / 1.4 <= float(target.image[0, 0, 2]) <= 0.1 * 1.5 * 1.4


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_result(tmp_path):
    config = DistilConfig(crop_px=64, batch_size=2, steps=4, warmup_steps=1, checkpoint_every=2)
    distil(landmarker(1), crops(), 1.5, tmp_path / "whole", config)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        distil(landmarker(1), crops(), 1.5, tmp_path / "parts", config, stop)
    distil(landmarker(1), crops(), 1.5, tmp_path / "parts", config)
    whole, parts = (safetensors.torch.load_file(tmp_path / name / MODEL_FILE) for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor)


@pytest.mark.slow
def test_the_student_comes_closer_to_its_teacher(tmp_path):
    losses: list[float] = []
    config = dataclasses.replace(
        STILL, crop_px=64, batch_size=2, steps=30, warmup_steps=5, learning_rate=1e-3
    )
    distil(landmarker(1), crops(2), 1.5, tmp_path, config, lambda _, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_run_for_eight_bits_ends_with_weights_that_eight_bits_hold(tmp_path):
    config = DistilConfig(
        crop_px=64, batch_size=2, steps=2, warmup_steps=1, learning_rate=1e-8, eight_bit=True
    )
    start = landmarker(1)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # like a trained network, its batch norms have statistics of their own
        start.backbone.measure_normalisation(images)
    result = distil(start, crops(), 1.5, tmp_path, config)
    folded = copy.deepcopy(result)
    folded.backbone.fold_normalisation()
    torch.testing.assert_close(folded(images).image, result(images).image, rtol=1e-3, atol=1e-4)
    convolutions = quantised_convolutions(folded.backbone)
    assert len(convolutions) == 41
    for convolution in convolutions.values():
        weight = convolution.weight.detach().flatten(1)
        levels = 127 * weight / weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    # It is still the network that started, to within rounding.
    with torch.no_grad():
        moved, size = (result(images).image - start(images).image).std(), start(images).image.std()
    assert 0 < float(moved / size) < 0.2


def test_the_side_is_fitted_to_hands_and_their_mirror_images():
    """Right hands are brighter on one half: a side that any read-out can learn. No other weight changes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (12, 48, 48, 3), dtype=torch.uint8, generator=generator)
    images[:, :, :24] += 120
    student = landmarker(1)
    before = copy.deepcopy(student.state_dict())
    config = dataclasses.replace(STILL, crop_px=64)
    share = fit_side(student, drawn_examples(images, torch.zeros(12, 21, 3)), 1.5, config)
    assert share == 1
    with torch.no_grad():
        shown = images.permute(0, 3, 1, 2).float()[..., 8:40, 8:40] / 255
        shown = torch.nn.functional.interpolate(shown, size=64, mode="bilinear")
        assert (student(shown).is_right > 0).all() and (student(shown.flip(-1)).is_right < 0).all()
    changed = {name for name, tensor in student.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"heads.is_right.weight", "heads.is_right.bias"}


def test_the_presence_is_fitted_to_upright_hands_and_the_same_at_other_rotations():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (12, 48, 48, 3), dtype=torch.uint8, generator=generator)
    images[:, :24] += 120  # bright above
    student = landmarker(1)
    config = dataclasses.replace(STILL, crop_px=64)
    assert fit_presence(student, drawn_examples(images, torch.zeros(12, 21, 3)), 1.5, config) == 1
    with torch.no_grad():
        shown = images.permute(0, 3, 1, 2).float()[..., 8:40, 8:40] / 255
        shown = torch.nn.functional.interpolate(shown, size=64, mode="bilinear")
        assert (student(shown).presence > 0).all() and (student(shown.flip(-2)).presence < 0).all()
