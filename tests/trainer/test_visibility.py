"""The visibility of joints: its truth against counted pixels, and a head that learns it without changing the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from annotator.config import AmvurConfig, NetworkConfig, TextureConfig
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.model.checkpoint import load_checkpoint
from annotator.render import nearest_faces
from trainer.augment import move, prepare
from trainer.config import AugmentConfig, OptimizerConfig, SourceConfig, TrainConfig
from trainer.losses import visibility_loss
from trainer.start import start_network
from trainer.synth import SyntheticHands
from trainer.train import train

NETWORK = NetworkConfig(
    backbone="efficientnet_lite0",
    crop_px=48,
    read_outs=True,
    amvur=AmvurConfig(start="prior_net", tokens=32, width=32),
    texture=TextureConfig(kind="none"),
)


@pytest.fixture(scope="module")
def hands() -> SyntheticHands:
    return SyntheticHands(load_hand("open"), 96, seed=8)


@pytest.mark.slow
def test_a_joint_is_visible_if_most_pixels_of_the_skin_around_it_are(hands: SyntheticHands) -> None:
    index, size_px = torch.arange(24), 320
    photos, truth = hands.photos(index), hands.batch(index).joint_visible
    points, figure, model = photos.scene.raster_points(), hands.figure, load_hand("open")
    whole = nearest_faces(points, figure.faces, size_px)
    covered = F.interpolate(photos.covered, size=(size_px, size_px))[:, 0] > 0.5
    corners = points[:, figure.faces[: figure.face_count], :2]
    one, other = corners[:, :, 1] - corners[:, :, 0], corners[:, :, 2] - corners[:, :, 0]
    area = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]  # signed area in the photo
    joints = torch.from_numpy(model.joint_regressor @ model.v_template)
    centres = torch.from_numpy(model.v_template[model.faces].mean(1))
    distance_mm = 1000 * torch.cdist(joints, centres)
    own = distance_mm == distance_mm.amin(0)
    same = []
    for row in range(len(index)):
        for joint in range(21):
            near = own[joint] & (distance_mm[joint] < distance_mm[joint][own[joint]].min() + 8)
            skin = (near & (area[row] < 0)).nonzero().squeeze(1)  # facing the camera
            alone = (nearest_faces(points[row : row + 1], figure.faces[skin], size_px) >= 0).sum()
            share = float((torch.isin(whole[row], skin) & ~covered[row]).sum() / alone.clamp_min(1))
            if alone > 30 and not 0.3 < share < 0.7:
                same.append(bool(truth[row, joint]) == (share > 0.5))
    assert len(same) > 300 and sum(same) > 0.96 * len(same), (len(same), sum(same))
    assert 0.4 < float(truth.float().mean()) < 0.9


@pytest.mark.slow
def test_joints_beyond_the_photo_or_below_an_occluder_are_hidden(hands: SyntheticHands) -> None:
    index = torch.arange(160)
    photos, batch = hands.photos(index), hands.batch(index)
    far_below = F.max_pool2d(1 - photos.covered, 5, stride=1, padding=2) < 0.01  # covered all around
    at = batch.joints2d[:, None]
    buried = F.grid_sample(far_below.float(), at, mode="nearest", align_corners=False)[:, 0, 0] > 0
    assert buried.sum() > 10
    assert batch.joint_visible[buried].float().mean() < 0.05


def test_the_loss_is_cross_entropy() -> None:
    logit = torch.linspace(-30, 30, 42).view(2, 21)
    visible = torch.rand(2, 21, generator=torch.Generator().manual_seed(0)) > 0.5
    expected = F.binary_cross_entropy_with_logits(logit, visible.float(), reduction="none")
    torch.testing.assert_close(visibility_loss(logit, visible), expected)


def test_augmentation_forgets_joints_outside_the_crop_and_hides_those_under_a_patch(
    hands: SyntheticHands,
) -> None:
    batch = hands.batch(torch.arange(32))
    still = torch.zeros(len(batch))
    _, moved = move(batch.image.float(), batch, 96, still, still + 0.5, torch.zeros(len(batch), 2))
    inside = batch.joints2d.abs().amax(-1) <= 0.5
    assert torch.equal(moved.has_joint_visible, inside) and inside.any() and not inside.all()
    plain = AugmentConfig(rotation_deg=0, zoom=1, shift=0, colour=0, blur=0, noise=0, erase=0)
    (before, _), (after, erased) = (
        prepare(batch, 96, 1.0001, replace(plain, erase=share)) for share in (0.0, 1.0)
    )
    patch = (before != after).any(1, keepdim=True).float()
    under = F.grid_sample(patch, erased.joints2d[:, None], mode="nearest", align_corners=False)[:, 0, 0] > 0
    deep = F.grid_sample(patch, erased.joints2d[:, None], align_corners=False)[:, 0, 0]
    sure = (deep < 0.01) | (deep > 0.99)
    assert under.any() and torch.equal(erased.joint_visible[sure], (batch.joint_visible & ~under)[sure])


def config_for(network: NetworkConfig, **settings) -> TrainConfig:
    plain = TrainConfig(
        network=network,
        data=(SourceConfig(),),
        batch_size=4,
        steps=3,
        loaders=0,
        log_every=1,
        optimizer=OptimizerConfig(clip_norm=0.01, warmup_steps=1),
    )
    return replace(plain, **settings)


@pytest.mark.slow
def test_the_head_learns_without_a_change_to_any_other_weight(tmp_path) -> None:
    found = []
    for visibility in (False, True):
        config = config_for(replace(NETWORK, joint_visibility=visibility))
        train(config, str(tmp_path / str(visibility)), "cpu")
        found.append(safetensors.torch.load_file(tmp_path / str(visibility) / "model.safetensors"))
    without, with_head = found
    start = start_network(config, load_hand("open")).state_dict()
    heads = with_head.keys() - without.keys()
    assert heads and all(name.startswith("visibility.") for name in heads)
    assert not torch.equal(with_head["visibility.logit.weight"], start["visibility.logit.weight"])
    for name, values in without.items():
        assert torch.equal(values, with_head[name]), name


@pytest.mark.slow
def test_a_checkpoint_without_the_head_loads_and_may_start_a_training_with_it(tmp_path) -> None:
    train(config_for(NETWORK, steps=1), str(tmp_path / "old"), "cpu")
    old = str(tmp_path / "old" / "model.safetensors")
    images = torch.rand(2, 3, 48, 48)
    assert load_checkpoint(old).network(images).joint_visible_logit is None
    both = replace(NETWORK, joint_visibility=True)
    train(config_for(both, steps=2, start_from=old), str(tmp_path / "new"), "cpu")
    new = load_checkpoint(str(tmp_path / "new" / "model.safetensors"))
    assert new.info.network == both
    logit = new.network(images).joint_visible_logit
    assert logit.shape == (2, 21) and torch.isfinite(logit).all()
    with pytest.raises(UserError, match="different network"):
        start_network(
            config_for(replace(both, read_outs=False, landmarks=True), start_from=old), load_hand("open")
        )


def test_the_head_needs_landmarks() -> None:
    with pytest.raises(UserError, match="joint_visibility needs landmarks"):
        replace(NETWORK, read_outs=False, joint_visibility=True)
