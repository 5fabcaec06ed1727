"""The training of a first look: views in any rotation, what counts, and runs that resume."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from annotator.config import NetworkConfig, read_config
from annotator.hand.open_hand import open_hand
from annotator.model.checkpoint import load_checkpoint, with_first_look
from annotator.model.network import Network
from annotator.model.two_looks import without_hands
from annotator.photos.crops import BOX_PADDING
from trainer.distillation.config import FirstLookConfig
from trainer.distillation.first_look import (
    RotatedViews,
    WideExamples,
    first_look_loss,
    rotated_views,
    teach_first_look,
    views_of_step,
)
from trainer.keyed_random import keys

CROP_PX = 64
STILL = FirstLookConfig(zoom=1, shift=0)


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return without_hands(Network(read_config(NetworkConfig, "network", "first-look"), open_hand())).eval()


def dotted(inside: int = 255) -> WideExamples:
    """Return a crop with a bright dot at each of five joints of a small hand, off its middle."""
    some = torch.tensor([[0.1, -0.2], [0.4, -0.1], [0.3, 0.2], [0.0, 0.1], [0.2, -0.4]])
    joints2d = some.repeat(5, 1)[:21]
    grid = (torch.arange(240) * 2 + 1) / 240 - 1
    x, y = grid[None, :, None], grid[:, None, None]
    dots = ((x - some[:, 0]) ** 2 + (y - some[:, 1]) ** 2 < 0.02**2).any(-1)
    image = torch.stack([dots * 255] * 3 + [torch.full_like(dots * 255, inside)], -1).byte()
    return WideExamples(image[None], joints2d[None], torch.tensor([True]), torch.ones(1))


def black(count: int = 1) -> torch.Tensor:
    return torch.zeros(count, 144, 144, 3, dtype=torch.uint8)


def test_joints_move_with_the_pixels_at_any_angle_mirrored_or_not() -> None:
    sides = set()
    for number in range(12):
        views = rotated_views(dotted(), black(), keys(0, torch.tensor([number])), CROP_PX, FirstLookConfig())
        light = views.image[0].sum(0)
        at = torch.nn.functional.grid_sample(
            torch.nn.functional.max_pool2d(light[None, None], 3, 1, 1),
            views.joints2d[:, None, :5],
            align_corners=False,
        )
        shown = (views.joints2d[0, :5].abs() < 0.95).all(-1)
        assert shown.any() and (at[0, 0, 0][shown] > light.median() + 0.25).all(), number
        sides.add(bool(views.is_right[0]))
    assert sides == {True, False}


def test_a_still_view_is_the_crop_of_the_rotated_hands_box() -> None:
    """The box of the joints in the view is centred, and the view's side is the padded box's longer side."""
    for number in range(6):
        views = rotated_views(dotted(), black(), keys(0, torch.tensor([number])), CROP_PX, STILL)
        low, high = views.joints2d[0].amin(0), views.joints2d[0].amax(0)
        torch.testing.assert_close(low, -high, atol=1e-5, rtol=0)
        assert float((high - low).max()) == pytest.approx(2 / BOX_PADDING, rel=1e-5)


def test_angles_cover_the_circle() -> None:
    crops = dotted().rows(torch.zeros(200, dtype=torch.long))
    views = rotated_views(crops, black(200), keys(0, torch.arange(200)), CROP_PX, STILL)
    up = views.joints2d[:, 1] - views.joints2d[:, 0]
    quarter = ((torch.atan2(up[:, 1], up[:, 0]) / (math.pi / 2)).floor() + 2).long()
    assert (quarter.clamp(0, 3).bincount(minlength=4) > 30).all()


def test_another_scene_or_a_colour_shows_beyond_the_photo() -> None:
    """Outside pixels of the crop never show, though they are bright."""
    crops = dotted(inside=0)
    crops = crops._replace(image=torch.where(torch.arange(4) < 3, 255, 0).byte().expand(1, 240, 240, 4))
    green = torch.tensor([0, 200, 0], dtype=torch.uint8).expand(40, 144, 144, 3)
    many = crops.rows(torch.zeros(40, dtype=torch.long))
    views = rotated_views(many, green, keys(0, torch.arange(40)), CROP_PX, STILL)
    middle = views.image[:, :, 24:40, 24:40].mean((2, 3))
    from_scene = (middle[:, 1] > middle[:, 0] + 0.3) & (middle[:, 1] > middle[:, 2] + 0.3)
    assert 8 < int(from_scene.sum()) < 36  # the others show a plain colour, a few of which are green


def views_of(count: int = 4) -> RotatedViews:
    generator = torch.Generator().manual_seed(0)
    joints2d = torch.rand(count, 21, 2, generator=generator) - 0.5
    return RotatedViews(
        torch.rand(count, 3, CROP_PX, CROP_PX, generator=generator),
        joints2d,
        torch.tensor([True, True, False, True]),
        torch.tensor([True, False, True, True]),
    )


def test_squares_without_a_hand_count_by_presence_alone() -> None:
    views, first = views_of(), network()
    with torch.no_grad():
        features = first.extract(views.image)
        before = first_look_loss(first, features, views)
        moved = views._replace(joints2d=views.joints2d.clone(), is_right=views.is_right.clone())
        moved.joints2d[2] += 5
        moved.is_right[2] = False
        assert torch.equal(first_look_loss(first, features, moved), before)
        moved.joints2d[1] += 5
        assert first_look_loss(first, features, moved) > before + 10


def examples() -> WideExamples:
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (6, 60, 60, 4), dtype=torch.uint8, generator=generator)
    joints2d = torch.rand(6, 21, 2, generator=generator) * 0.8 - 0.4
    is_hand = torch.arange(6) < 4
    return WideExamples(image, joints2d, is_hand, torch.tensor([1.0, 1, 1, 0, 1, 1]))


def test_crops_come_by_their_chance() -> None:
    config = dataclasses.replace(STILL, batch_size=40)
    views = views_of_step(examples(), 0, CROP_PX, config)
    assert 0.4 < float(views.is_hand.float().mean()) < 0.8  # three of five
    again = views_of_step(examples(), 0, CROP_PX, config)
    assert torch.equal(views.image, again.image)
    assert not torch.equal(views.image, views_of_step(examples(), 1, CROP_PX, config).image)


@pytest.mark.slow
def test_a_stopped_run_resumes_with_the_same_result(tmp_path) -> None:
    config = FirstLookConfig(batch_size=2, steps=4, warmup_steps=1, checkpoint_every=2)
    saved = []
    whole = teach_first_look(network(1), examples(), tmp_path / "whole", config, saved.append)
    assert len(saved) == 2

    class Stop(Exception):  # noqa: N818
        pass

    def stop(step: int, loss: float) -> None:
        if step == 3:
            raise Stop

    with pytest.raises(Stop):
        teach_first_look(network(1), examples(), tmp_path / "parts", config, saved.append, stop)
    parts = teach_first_look(network(1), examples(), tmp_path / "parts", config, saved.append)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    start = network(1).state_dict()
    assert not torch.equal(
        start["backbone.conv_stem.weight"], whole.state_dict()["backbone.conv_stem.weight"]
    )
    assert safetensors.torch.load_file(tmp_path / "parts" / "state.safetensors")


@pytest.mark.slow
def test_the_recipe_writes_a_checkpoint_that_leads_a_second_look(tmp_path, monkeypatch) -> None:
    """Its crops are random here; without them the recipe detects hands in photos for minutes."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    recipe = importlib.import_module("first_look")
    image, joints2d, *_ = examples()
    crops = {"image": image, "joints2d": joints2d, "kind": torch.tensor([0, 1, 2, 4, 3, 3])}
    monkeypatch.setattr(recipe, "crops_of", lambda *_: (crops, crops))
    config = FirstLookConfig(batch_size=4, steps=2, checkpoint_every=1)
    path = recipe.first_look(tmp_path, tmp_path, "", "default", config)
    first = load_checkpoint(str(path))
    joined = with_first_look(load_checkpoint("default"), first)
    assert joined.info.first_look == load_checkpoint("default").info.first_look
    taught = first.network.state_dict()
    for name, tensor in joined.network.first.state_dict().items():
        assert torch.equal(tensor, taught[name]), name
    continued = recipe.start_first_look(str(path), open_hand(), seed=0).state_dict()
    assert all(torch.equal(tensor, taught[name]) for name, tensor in continued.items())


def test_the_recipe_continues_the_first_look_of_a_checkpoint(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "tools"))
    recipe = importlib.import_module("first_look")
    shipped = load_checkpoint("default").network.first.state_dict()
    started = recipe.start_first_look("default", open_hand(), seed=0).state_dict()
    for name, tensor in shipped.items():
        assert torch.equal(tensor, started[name]), name
