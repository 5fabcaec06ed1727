from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass, replace
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.multiprocessing import ProcessRaisedException

from annotator.config import AmvurConfig, NetworkConfig, TextureConfig
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.model import pretrained
from annotator.model.amvur import Gaussian
from annotator.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, with_first_look
from annotator.model.checkpoint_file import CheckpointInfo
from annotator.model.two_looks import TwoLooks
from tests.support.example_files import write_stick_hands
from tests.support.mano_file import write_mano_file
from tests.support.two_workers import train_on_two
from trainer import losses
from trainer import train as training_loop
from trainer.config import (
    LossConfig,
    OptimizerConfig,
    SourceConfig,
    TrainConfig,
    ValidationConfig,
    read_train_config,
)
from trainer.objective import Objective
from trainer.start import start_network
from trainer.state import saved_states
from trainer.train import train
from trainer.validation import LOG_FILE, Validation

pytestmark = pytest.mark.slow

#: With the switches of the shipped trainings.
TINY = NetworkConfig(
    backbone="efficientnet_lite0",
    crop_px=48,
    landmarks=True,
    amvur=AmvurConfig(start="prior_net", tokens=32, width=32),
    texture=TextureConfig(tokens=32, width=16, raster_px=32),
)


@pytest.fixture(scope="module")
def sticks(tmp_path_factory):
    return str(write_stick_hands(tmp_path_factory.mktemp("sticks"), 48))


def config_for(folder: str, **settings) -> TrainConfig:
    plain = TrainConfig(
        network=TINY,
        data=(SourceConfig(source=folder),),
        batch_size=8,
        steps=6,
        loaders=0,
        checkpoint_every=2,
        log_every=1,
        pictures_every=100,
    )
    return replace(plain, **settings)


def weights(out) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(out / "model.safetensors")


def largest_difference(a, b) -> float:
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def test_a_stopped_run_resumes_with_the_same_steps(sticks, tmp_path):
    config = config_for(sticks)
    train(config, str(tmp_path / "whole"), "cpu")

    for last in (3, 5):

        def stop(progress, last=last):
            if progress.step == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(config, str(tmp_path / "stopped"), "cpu", stop)
    steps = []
    train(config, str(tmp_path / "stopped"), "cpu", lambda progress: steps.append(progress.step))
    assert steps == [5, 6]
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "stopped")) < 1e-5
    lines = [
        json.loads(line)["step"] for line in (tmp_path / "stopped/metrics.jsonl").read_text().splitlines()
    ]
    assert lines == [1, 2, 3, 4, 5, 6]


def test_a_run_leaves_a_model_that_annotate_loads(sticks, tmp_path):
    train(config_for(sticks, keep=2), str(tmp_path), "cpu")
    checkpoint = load_checkpoint(str(tmp_path / "model.safetensors"))
    assert checkpoint.info.trained_steps == 6
    assert saved_states(str(tmp_path)) == ["step-00000004.safetensors", "step-00000006.safetensors"]
    assert (tmp_path / "pictures/step-00000006.png").is_file()
    assert list((tmp_path / "tensorboard").iterdir())
    # A finished run takes no further step.
    train(config_for(sticks, keep=2), str(tmp_path), "cpu", lambda _: pytest.fail("took a step"))


def test_a_damaged_checkpoint_is_skipped(sticks, tmp_path):
    config = config_for(sticks)
    train(config, str(tmp_path), "cpu")
    whole = weights(tmp_path)
    newest = tmp_path / "checkpoints/step-00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:5000])
    train(config, str(tmp_path), "cpu")
    assert largest_difference(whole, weights(tmp_path)) < 1e-5


def test_a_run_whose_only_state_is_damaged_starts_from_the_beginning(sticks, tmp_path):
    config = config_for(sticks, steps=2, keep=1)
    train(config, str(tmp_path / "first"), "cpu")
    config = config_for(sticks, steps=2, keep=1, start_from=str(tmp_path / "first/model.safetensors"))
    train(config, str(tmp_path / "run"), "cpu")
    whole = weights(tmp_path / "run")
    (tmp_path / "run/checkpoints/step-00000002.safetensors").write_bytes(b"cut off")
    train(config, str(tmp_path / "run"), "cpu")
    assert largest_difference(whole, weights(tmp_path / "run")) < 1e-5


def test_a_run_resumes_after_new_settings_were_added(sticks, tmp_path):
    train(config_for(sticks), str(tmp_path), "cpu")
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["loss"]["landmarks"], settings["network"]["texture"]["photo_colour"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    train(config_for(sticks, steps=7), str(tmp_path), "cpu")
    assert load_checkpoint(str(tmp_path / "model.safetensors")).info.trained_steps == 7


def test_another_run_in_the_same_folder_is_refused(sticks, tmp_path):
    train(config_for(sticks), str(tmp_path), "cpu")
    with pytest.raises(UserError, match=r"other settings \(batch_size, loss.texture\)"):
        train(config_for(sticks, batch_size=4, loss=LossConfig(texture=0)), str(tmp_path), "cpu")
    train(config_for(sticks, steps=7, log_every=3), str(tmp_path), "cpu")
    assert load_checkpoint(str(tmp_path / "model.safetensors")).info.trained_steps == 7


def test_unavailable_imagenet_weights_raise_before_the_first_step(sticks, tmp_path, monkeypatch):
    config = config_for(sticks, network=replace(TINY, imagenet=True))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "PACKAGED", {})
    with pytest.raises(UserError, match=r"not reachable.*network\.imagenet=false"):
        train(config, str(tmp_path / "run"), "cpu")
    # A resumed run has its own weights.
    monkeypatch.setattr("trainer.start.load_pretrained", lambda *_: "fake weights")
    train(replace(config, steps=2), str(tmp_path / "run"), "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(
        "trainer.start.load_pretrained", lambda *_: pytest.fail("loaded ImageNet weights again")
    )
    train(replace(config, steps=3), str(tmp_path / "run"), "cpu")


def test_a_run_starts_from_weights_trained_at_another_size(sticks, tmp_path):
    train(config_for(sticks), str(tmp_path / "small"), "cpu")
    small = str(tmp_path / "small/model.safetensors")
    larger = replace(TINY, crop_px=64, texture=replace(TINY.texture, raster_px=48))
    config = config_for(sticks, network=larger, start_from=small)
    start = start_network(config, load_hand("open")).state_dict()
    assert largest_difference(weights(tmp_path / "small"), start) == 0
    other = config_for(
        sticks, network=replace(TINY, amvur=AmvurConfig(tokens=32, width=16)), start_from=small
    )
    with pytest.raises(UserError, match="holds a different network"):
        start_network(other, load_hand("open"))


@pytest.mark.parametrize(
    ("backbone", "early", "next_one"),
    [
        ("efficientnet_lite0", ("conv_stem.", "bn1.", "blocks.0.", "blocks.1."), "blocks.2."),
        ("resnet50", ("conv1.", "bn1.", "layer1."), "layer2."),
    ],
)
def test_layers_before_stride_8_keep_their_weights_and_all_others_learn(
    sticks, tmp_path, backbone, early, next_one
):
    network = replace(TINY, backbone=backbone)
    from_nothing = config_for(sticks, network=network, steps=1, batch_size=4)
    train(from_nothing, str(tmp_path / "start"), "cpu")
    config = replace(
        from_nothing, steps=2, freeze_early=True, start_from=str(tmp_path / "start/model.safetensors")
    )
    train(config, str(tmp_path / "run"), "cpu")
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    backbones = {name for name in after if name.startswith("backbone.")}
    kept = {name for name in backbones if name.removeprefix("backbone.").startswith(early)}
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert backbones - changed == kept
    assert any(name.startswith(f"backbone.{next_one}") for name in changed)
    assert {"camera.mlp.0.weight", "prior_net.mlp.0.weight", "side.linear.weight"} <= changed


def test_random_layers_are_not_frozen(sticks):
    with pytest.raises(UserError, match="freeze_early would freeze random layers"):
        start_network(config_for(sticks, freeze_early=True), load_hand("open"))


@pytest.mark.parametrize(
    "targets", [("joints2d", "joints3d", "vertices"), ("joints2d",)], ids=["full", "weak"]
)
def test_two_workers_take_the_steps_of_one(sticks, tmp_path, targets):
    train(config_for(sticks, steps=1), str(tmp_path / "start"), "cpu")  # early layers need weights
    config = config_for(
        sticks,
        start_from=str(tmp_path / "start/model.safetensors"),
        data=(SourceConfig(source=sticks, share=3), SourceConfig(source=sticks, targets=targets)),
        steps=20,
        checkpoint_every=100,
        freeze_normalisation=True,
        freeze_early=True,
        loss=LossConfig(aligned=5, pose=1),
        optimizer=OptimizerConfig(kind="sgd", learning_rate=2e-4, ema=0, warmup_steps=1, clip_norm=0),
    )
    train(config, str(tmp_path / "one"), "cpu")
    train_on_two(config, tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    start = start_network(config, load_hand("open")).state_dict()
    assert largest_difference(one, two) < 1e-4
    assert largest_difference(one, start) > 1e-3


def _measure_otherwise(rank: int, first_improves: bool) -> None:
    falls = (rank == 0) == first_improves
    errors = iter(range(10, 0, -1) if falls else range(10, 20))
    Validation._error = lambda validation, network: float(next(errors))


@pytest.mark.parametrize(("first_improves", "errors"), [(True, [10, 9, 8, 7]), (False, [10, 11])])
def test_workers_end_a_run_alike_where_their_errors_differ(sticks, tmp_path, first_improves, errors):
    """Each worker's batch norms see its own photos, so errors may differ, and one that ends alone blocks the rest."""
    validation = ValidationConfig(source=sticks, every=1, patience=1)
    config = config_for(sticks, steps=4, checkpoint_every=100, validation=validation)
    prepare = partial(_measure_otherwise, first_improves=first_improves)
    train_on_two(config, tmp_path / "run", prepare=prepare)
    measured = [json.loads(line) for line in (tmp_path / "run" / LOG_FILE).read_text().splitlines()]
    assert measured == [{"step": step, "error": error} for step, error in enumerate(errors, 1)]


def test_frozen_norms_keep_their_statistics_beside_validation(sticks, tmp_path):
    """Without a running mean, the network in training is the one that is measured."""
    config = config_for(
        sticks,
        freeze_normalisation=True,
        validation=ValidationConfig(source=sticks, every=2),
        optimizer=OptimizerConfig(ema=0, warmup_steps=1),
    )
    train(config, str(tmp_path), "cpu")
    after, before = weights(tmp_path), start_network(config, load_hand("open")).state_dict()
    statistics = [name for name in after if name.endswith(("running_mean", "running_var"))]
    assert statistics and all(torch.equal(after[name], before[name]) for name in statistics)
    assert largest_difference(after, before) > 1e-4


def test_norms_shared_between_workers_need_gpus(sticks, tmp_path):
    config = config_for(sticks, share_normalisation=True, steps=1)
    train(config, str(tmp_path / "one"), "cpu")
    with pytest.raises(ProcessRaisedException, match="share_normalisation needs GPUs"):
        train_on_two(config, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    with pytest.raises(UserError, match="contradict each other"):
        config_for(sticks, share_normalisation=True, freeze_normalisation=True)


def objective_and_batch(sticks, **settings):
    from trainer.data.steps import Steps
    from trainer.inputs import network_inputs

    config = config_for(sticks, **settings)
    hand = load_hand("open")
    network = start_network(config, hand)
    images, batch = network_inputs(Steps(config, hand)[0], Steps(config, hand), config, torch.device("cpu"))
    return network, Objective(config.loss, network, hand), images, batch


def test_one_batch_mixes_full_2d_only_and_colour_only_photos(sticks):
    sources = tuple(
        SourceConfig(source=sticks, targets=t)
        for t in (("joints2d", "joints3d", "vertices"), ("joints2d",), ())
    )
    network, objective, images, batch = objective_and_batch(
        sticks, data=sources, batch_size=9, loss=LossConfig(aligned=5, pose=1)
    )
    terms = objective.terms(network(images, torch.tensor([0, 1])), batch, images)
    counts = {name: int(term.count) for name, term in terms.items()}
    assert counts["landmarks"] == 6 * 21
    assert counts["vertices"] == 3 * 800 * 3
    assert counts["joints3d"] == 3 * 20 * 3
    assert counts["joints2d"] == 6 * 21
    assert counts["aligned"] == counts["prior_aligned"] == 3 * 21 * 3
    assert counts["pose"] == 6 * 45
    assert counts["camera"] == 3 * 3
    assert counts["kl_vertices"] == 9 * 800 * 3
    assert counts["texture"] > 0
    # Hidden targets of an example have no effect.
    loss, _ = objective.total(terms)
    spoilt = replace(batch, joints3d_mm=batch.joints3d_mm.clone(), joints2d=batch.joints2d.clone())
    spoilt.joints3d_mm[~batch.has_joints3d] = 77
    spoilt.joints2d[~batch.has_joints2d] = 77
    again, _ = objective.total(objective.terms(network(images, torch.tensor([0, 1])), spoilt, images))
    assert torch.equal(loss, again)


READS = replace(TINY, landmarks=False, read_outs=True, amvur=replace(TINY.amvur, aligned=True))


def test_read_outs_are_best_where_joints_lie_with_their_depth_at_the_crops_scale(sticks):
    sources = tuple(
        SourceConfig(source=sticks, targets=t) for t in (("joints2d", "joints3d"), ("joints2d",), ())
    )
    network, objective, images, batch = objective_and_batch(sticks, network=READS, data=sources, batch_size=9)
    prediction = network(images, torch.tensor([0, 1]))
    terms = objective.terms(prediction, batch, images)
    assert (int(terms["landmarks"].count), int(terms["landmarks_depth"].count)) == (6 * 21, 3 * 21)
    loss, _ = objective.total(terms)
    loss.backward()
    assert network.heads.image.weight.grad.abs().sum() > 0
    spoilt = replace(batch, joints3d_mm=batch.joints3d_mm.clone(), joints2d=batch.joints2d.clone())
    spoilt.joints3d_mm[~batch.has_joints3d] = 77
    spoilt.joints2d[~batch.has_joints2d] = 77
    again, _ = objective.total(objective.terms(prediction, spoilt, images))
    assert torch.equal(loss, again)
    # Perfect landmarks: x and y are the targets, z is that of 3D at the scale from 3D to 2D.
    best = torch.zeros(9, 21, 3)
    best[..., :2] = batch.joints2d
    for row in torch.nonzero(batch.has_joints3d)[:, 0].tolist():
        points, seen = (x[row, :, 0].numpy() for x in (batch.joints3d_mm, batch.joints2d))
        best[row, :, 2] = np.polyfit(points, seen, 1)[0] * batch.joints3d_mm[row, :, 2]
    found = replace(prediction, landmark_hand=prediction.landmark_hand._replace(image=best))
    terms = objective.terms(found, batch, images)
    assert float(terms["landmarks"].sum) == 0
    assert float(terms["landmarks_depth"].sum) < 0.01 * 3 * 21


def test_a_network_with_read_outs_trains_and_its_checkpoint_loads(sticks, tmp_path):
    train(config_for(sticks, network=READS, steps=2), str(tmp_path), "cpu")
    checkpoint = load_checkpoint(str(tmp_path / "model.safetensors"))
    assert checkpoint.info.network == READS
    start = start_network(config_for(sticks, network=READS), load_hand("open")).state_dict()
    moved = [n for n, values in weights(tmp_path).items() if not torch.equal(values, start[n])]
    assert {"heads.image.bias", "heads.is_right.bias", "prior_net.ik.5.bias"} <= set(moved)


def test_a_guess_counts_without_better_targets_and_photos_without_a_hand_have_no_targets(sticks):
    network, objective, images, batch = objective_and_batch(
        sticks, batch_size=6, loss=LossConfig(detector_joints3d=3, pose=1)
    )
    batch = replace(batch, guess3d_mm=batch.joints3d_mm.flip(0), has_guess3d=torch.ones(6, dtype=torch.bool))
    for name in ("has_hand", "has_joints2d", "has_joints3d", "has_vertices", "has_guess3d"):
        getattr(batch, name)[5] = False
    batch.has_joints3d[:2] = False
    terms = objective.terms(network(images, torch.tensor([0])), batch, images)
    # Withholding affects only the mask of a drawn room, and an unknown mask is all 255.
    assert (batch.hand_mask[5] == 255).float().mean() > 0.9
    hidden = replace(batch, hand_mask=batch.hand_mask * batch.has_hand.view(-1, 1, 1, 1))
    counted = objective.terms(network(images, torch.tensor([0])), hidden, images)["texture"].count
    assert terms["texture"].count == counted > 0
    counts = {name: int(term.count) for name, term in terms.items()}
    assert counts["detector_joints3d"] == counts["prior_detector_joints3d"] == 2 * 21 * 3
    assert counts["pose"] == 0  # a detector's joints replace the pose prior
    assert (counts["presence_hand"], counts["presence_none"], counts["side_right"]) == (5, 1, 5)
    assert counts["kl_vertices"] == 5 * 800 * 3 and counts["limits"] == counts["shape"] / 10 == 5
    q = network(images).joints3d.mean_mm
    expected = losses.aligned_loss(q[:2], batch.guess3d_mm[:2]).sum()
    torch.testing.assert_close(terms["detector_joints3d"].sum, expected)
    loss, _ = objective.total(terms)
    spoilt = replace(batch, guess3d_mm=batch.guess3d_mm.clone())
    spoilt.guess3d_mm[2:] = 77
    again, _ = objective.total(objective.terms(network(images, torch.tensor([0])), spoilt, images))
    assert torch.equal(loss, again)


def test_std_may_learn_from_aligned_errors_without_an_effect_on_means(sticks):
    slopes = {}
    for kind in ("wrist", "aligned"):
        network, objective, images, batch = objective_and_batch(sticks, loss=LossConfig(std=kind))
        prediction = network(images)
        for gaussian in (prediction.vertices, prediction.joints3d):
            gaussian.mean_mm, gaussian.std_mm = (
                x.detach().requires_grad_() for x in (gaussian.mean_mm, gaussian.std_mm)
            )
        terms = objective.terms(prediction, batch, images)
        (terms["vertices"].sum + terms["joints3d"].sum).backward()
        slopes[kind] = prediction.vertices, prediction.joints3d
    for one, other in zip(*slopes.values(), strict=True):
        torch.testing.assert_close(one.mean_mm.grad, other.mean_mm.grad)
        assert not torch.allclose(one.std_mm.grad, other.std_mm.grad)
    assert not slopes["aligned"][1].std_mm.grad[:, 0].any()  # the wrist's


def test_an_uncertain_label_pulls_prior_net_by_its_variance_times_the_setting(sticks):
    """Both hands have the same prior-net error; the second label has a std of 30 mm, so it weighs a tenth."""
    slopes = {}
    for scale, share in ((1.0, 1.1), (0.5, 1 + 1 / 3.25), (0.0, 2.0)):
        network, objective, images, batch = objective_and_batch(
            sticks, batch_size=2, loss=LossConfig(label_std_scale=scale, aligned=1)
        )
        for std in (batch.joints3d_std_mm, batch.vertices_std_mm):
            assert not std.any()  # these labels have no std
            std[1] = 30
        batch.joints3d_std_mm[:, 0] = 0  # std of the wrist, zero in any label: must not count as truth
        prediction = network(images)
        prediction.prior.vertices_mm = (batch.vertices_mm + 7).requires_grad_()
        prediction.prior.joints3d_mm = (batch.joints3d_mm + 7).requires_grad_()
        terms = objective.terms(prediction, batch, images)
        counts = {"prior_vertices": 800, "prior_joints3d": 20, "prior_aligned": 21, "aligned": 21}
        for name, points in counts.items():
            torch.testing.assert_close(
                terms[name].count, torch.tensor(share * points * 3), rtol=1e-4, atol=0, msg=name
            )
        for name, points in (("vertices", 800), ("joints3d", 20)):
            assert terms[name].count == 2 * points * 3  # q's own std has the same effect
            mean = terms[f"prior_{name}"].sum / terms[f"prior_{name}"].count
            torch.testing.assert_close(mean, torch.tensor(0.245))
        (terms["prior_vertices"].sum + terms["prior_joints3d"].sum).backward()
        slopes[scale] = prediction.prior.vertices_mm.grad, prediction.prior.joints3d_mm.grad[:, 1:]
    for weighted, plain in zip(slopes[1.0], slopes[0.0], strict=True):
        torch.testing.assert_close(weighted[0], plain[0])
        torch.testing.assert_close(weighted[1], plain[1] / 10)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("std", ["wrist", "aligned"])
def test_q_learns_a_labels_std_beside_its_own_error(sticks, std, scale):
    """Compare the gradient of std for a label with a std of 20 mm with that for truth."""
    network, objective, images, batch = objective_and_batch(
        sticks, loss=LossConfig(std=std, label_std_scale=scale)
    )
    prediction = network(images)
    slopes = []
    for label_std_mm in (0.0, 20.0):
        batch.joints3d_std_mm[:], batch.vertices_std_mm[:] = label_std_mm, label_std_mm
        for gaussian in (prediction.vertices, prediction.joints3d):
            gaussian.mean_mm = gaussian.mean_mm.detach()
            gaussian.std_mm = gaussian.std_mm.detach().requires_grad_()
        terms = objective.terms(prediction, batch, images)
        (terms["vertices"].sum + terms["joints3d"].sum).backward()
        slopes.append((prediction.vertices.std_mm.grad, prediction.joints3d.std_mm.grad[:, 1:]))
    of_label = 0 if std == "aligned" else (20 * scale) ** 2
    stds = prediction.vertices.std_mm, prediction.joints3d.std_mm[:, 1:]
    for plain, with_label, of in zip(*slopes, stds, strict=True):
        torch.testing.assert_close(with_label, plain - of_label / of.detach() ** 3, rtol=1e-3, atol=1e-5)


def test_uncertain_labels_keep_the_aligned_fit_optimal(sticks):
    """A rotation of prior-net's hand changes no aligned error, for any std of joint labels."""
    network, objective, images, batch = objective_and_batch(sticks, loss=LossConfig(aligned=5))
    batch.joints3d_std_mm[:] = torch.rand(batch.joints3d_std_mm.shape) * 30
    prediction = network(images)
    noise = torch.randn(batch.joints3d_mm.shape, generator=torch.Generator().manual_seed(2))
    joints = (batch.joints3d_mm + 8 * noise).requires_grad_()
    prediction.prior.joints3d_mm = joints
    objective.terms(prediction, batch, images)["prior_aligned"].sum.backward()
    about = (joints - joints.mean(1, keepdim=True)).detach()
    torque = torch.linalg.cross(about, joints.grad).sum(1)
    growth = (about * joints.grad).sum((1, 2))
    size = (about.norm(dim=-1) * joints.grad.norm(dim=-1)).sum(1)
    assert (torque.norm(dim=-1) < 1e-4 * size).all() and (growth.abs() < 1e-4 * size).all()


def test_each_hand_has_an_aligned_term_of_its_own(sticks):
    network, objective, images, batch = objective_and_batch(sticks, loss=LossConfig(aligned=5))
    prediction = network(images)
    _, before = objective.total(objective.terms(prediction, batch, images))
    prediction.prior.joints3d_mm = 2 * batch.joints3d_mm  # Procrustes ignores scale
    spoilt, after = objective.total(objective.terms(prediction, batch, images))
    assert after["aligned"] == before["aligned"] > 0.01
    assert after["prior_aligned"] < 1e-6 < before["prior_aligned"]
    heavier = Objective(LossConfig(aligned=6), network, load_hand("open"))
    more, _ = heavier.total(heavier.terms(prediction, batch, images))
    torch.testing.assert_close(more - spoilt, after["aligned"] + after["prior_aligned"], atol=1e-3, rtol=0)


def test_a_batch_without_any_3d_reaches_every_weight(sticks):
    network, objective, images, batch = objective_and_batch(
        sticks, data=(SourceConfig(source=sticks, targets=("joints2d",)),)
    )
    loss, means = objective.total(objective.terms(network(images, torch.tensor([0, 1])), batch, images))
    loss.backward()
    assert math.isfinite(loss.item()) and means["vertices"] == 0
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    # All last layers, which start at zero, learn; earlier ones follow in the next step.
    for name in ("amvur.mean.2", "amvur.log_variance.2", "prior_net.mlp.2", "camera.mlp.2", "side.linear"):
        assert gradients[f"{name}.weight"].abs().max() > 0, name


def test_a_pose_costs_half_its_squared_coefficients_where_3d_is_hidden(sticks):
    data = (SourceConfig(source=sticks, share=3), SourceConfig(source=sticks, targets=("joints2d",)))
    network, objective, images, batch = objective_and_batch(sticks, data=data)
    prediction = network(images)
    prediction.prior.coefficients = torch.full_like(prediction.prior.coefficients, 3.0)
    term = objective.terms(prediction, batch, images)["pose"]
    assert (term.sum.item(), term.count.item()) == (2 * 45 * 4.5, 2 * 45)


@pytest.mark.parametrize("variant", ["prior_net", "amvur", "both"])
def test_each_variant_has_its_own_terms(sticks, variant):
    start = "mean_hand" if variant == "amvur" else "prior_net"
    config = replace(TINY, variant=variant, amvur=replace(TINY.amvur, start=start))
    network, objective, images, batch = objective_and_batch(sticks, network=config)
    terms = objective.terms(network(images), batch, images)
    assert ("kl_vertices" in terms) == (variant == "both")
    assert ("limits" in terms) == (variant != "amvur")
    loss, _ = objective.total(terms)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())


def test_weights_of_zero_switch_terms_off(sticks):
    network, objective, images, batch = objective_and_batch(
        sticks,
        loss=LossConfig(
            **{name: 0.0 for name in vars(LossConfig()) if name not in ("draw", "joints2d")}, joints2d=1.0
        ),
    )
    terms = objective.terms(network(images), batch, images)
    loss, means = objective.total(terms)
    # prior = 0 also disables its 2D joints.
    torch.testing.assert_close(loss, means["joints2d"])


def test_gradients_that_are_never_finite_end_the_run(sticks, tmp_path):
    config = config_for(
        sticks,
        steps=500,
        optimizer=OptimizerConfig(kind="sgd", learning_rate=1e30, clip_norm=0, warmup_steps=0),
    )
    with pytest.raises(UserError, match="lower the learning rate"):
        train(config, str(tmp_path), "cpu")


def test_a_short_training_beats_its_start(sticks, tmp_path):
    reported = []
    config = config_for(
        sticks, steps=40, checkpoint_every=100, optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=5)
    )
    train(config, str(tmp_path), "cpu", reported.append)
    first, last = (
        np.mean([p.losses["prior_joints3d"] for p in part]) for part in (reported[:5], reported[-5:])
    )
    assert last < 0.95 * first
    assert all(0 <= p.waiting <= 1 and p.photos_per_s > 0 for p in reported)


def double(value):
    """Convert a tensor, or a dataclass of tensors, to double precision."""
    if is_dataclass(value):
        return replace(value, **{f.name: double(getattr(value, f.name)) for f in fields(value)})
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def textured(sticks, **loss):
    """Return a double-precision prediction with random colours, mesh and camera as leaves, and its objective."""
    network, objective, images, batch = objective_and_batch(sticks, batch_size=2, loss=LossConfig(**loss))
    with torch.no_grad():
        prediction = double(network(images))
    for leaf in (
        prediction.vertices.mean_mm,
        prediction.camera.scale_per_mm,
        prediction.camera.translation,
    ):
        leaf.requires_grad_()
    colours = torch.rand(prediction.rgb.shape, generator=torch.Generator().manual_seed(0)).double()
    return objective.double(), replace(prediction, rgb=colours), double(batch), images


def test_the_gradient_of_l_tex_into_mesh_and_camera_is_that_of_finite_differences(sticks):
    objective, prediction, batch, images = textured(sticks, texture_moves_hand=True)

    def l_tex(**moved) -> torch.Tensor:
        vertices = moved.pop("vertices", prediction.vertices.mean_mm)
        changed = replace(
            prediction,
            vertices=Gaussian(vertices, prediction.vertices.std_mm),
            camera=replace(prediction.camera, **moved),
        )
        return objective.terms(changed, batch, images)["texture"].sum

    leaves = {
        "vertices": prediction.vertices.mean_mm,
        "scale_per_mm": prediction.camera.scale_per_mm,
        "translation": prediction.camera.translation,
    }
    value = l_tex()
    gradients = torch.autograd.grad(value, list(leaves.values()))
    generator = torch.Generator().manual_seed(3)
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        way = torch.randn(leaf.shape, generator=generator).double()
        step = 1e-7 * (1.0 if name != "scale_per_mm" else 1e-3)
        # In so small a step no pixel centre crosses an edge, so only colours change.
        apart = (l_tex(**{name: leaf + step * way}) - l_tex(**{name: leaf - step * way})) / (2 * step)
        assert abs(float((gradient * way).sum())) > 1e-4
        torch.testing.assert_close((gradient * way).sum(), apart, rtol=1e-4, atol=1e-6)


def test_without_the_switch_l_tex_moves_colours_alone(sticks):
    objective, prediction, batch, images = textured(sticks)
    rgb = prediction.rgb.requires_grad_()
    value = objective.terms(prediction, batch, images)["texture"].sum
    leaves = [rgb, prediction.vertices.mean_mm, prediction.camera.scale_per_mm]
    of_colours, of_mesh, of_scale = torch.autograd.grad(value, leaves, allow_unused=True)
    assert of_colours.abs().sum() > 0 and of_mesh is None and of_scale is None


@pytest.mark.parametrize("moves", [True, False])
def test_kl_terms_move_prior_net_only_with_the_switch(sticks, moves):
    network, objective, images, batch = objective_and_batch(sticks, loss=LossConfig(kl_moves_prior=moves))
    prediction = network(images)
    # Before training both cameras are the same, and the KL between them has no slope.
    moved = replace(prediction.camera, translation=prediction.camera.translation + 0.1)
    prediction = replace(prediction, camera=moved)
    terms = objective.terms(prediction, batch, images)
    prior, camera = prediction.prior, prediction.prior_camera
    for name, of_prior, of_q in (
        ("kl_vertices", prior.vertices_mm, prediction.vertices.std_mm),
        ("kl_joints3d", prior.joints3d_mm, prediction.joints3d.std_mm),
        ("kl_camera", camera.translation, moved.translation),
    ):
        slopes = torch.autograd.grad(terms[name].sum, [of_prior, of_q], retain_graph=True, allow_unused=True)
        assert (slopes[0] is not None and slopes[0].abs().sum() > 0) == moves, name
        assert slopes[1].abs().sum() > 0, name


def test_draws_of_v_j3_and_c_reach_supervised_terms_on_request(sticks):
    means, drawn = (textured(sticks, draw_all=draw_all) for draw_all in (False, True))
    terms = [objective.terms(*rest) for objective, *rest in (means, drawn)]
    for name in ("joints2d", "texture"):
        assert not torch.isclose(terms[0][name].sum, terms[1][name].sum)
    # Likelihoods of V and J3 are closed forms over the means, to which draws would only add noise.
    for name in ("vertices", "joints3d"):
        torch.testing.assert_close(terms[0][name].sum, terms[1][name].sum)


def test_a_frozen_backbone_keeps_its_weights_and_heads_learn(sticks, tmp_path):
    train(config_for(sticks, steps=1), str(tmp_path / "start"), "cpu")
    start = str(tmp_path / "start/model.safetensors")
    config = config_for(
        sticks, steps=3, freeze_backbone=True, start_from=start, optimizer=OptimizerConfig(ema=0)
    )
    train(config, str(tmp_path / "run"), "cpu")
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("backbone.") for name in moved)
    assert any(name.startswith("prior_net.") for name in moved)
    with pytest.raises(UserError, match="freeze_backbone would freeze random layers"):
        start_network(config_for(sticks, freeze_backbone=True), load_hand("open"))


def test_a_run_from_two_looks_trains_the_second_and_keeps_the_first(sticks, tmp_path):
    """Also after a restart, when the checkpoint that it started from no longer exists."""
    train(config_for(sticks, steps=1), str(tmp_path / "start"), "cpu")
    single = load_checkpoint(str(tmp_path / "start/model.safetensors"))
    start = tmp_path / "both.safetensors"
    save_checkpoint(with_first_look(single, single), start)
    config = config_for(sticks, steps=2, start_from=str(start), checkpoint_every=1)
    train(config, str(tmp_path / "run"), "cpu")
    start.unlink()
    train(replace(config, steps=4), str(tmp_path / "run"), "cpu")
    before = single.network.state_dict()
    trained = load_checkpoint(str(tmp_path / "run/model.safetensors"))
    assert isinstance(trained.network, TwoLooks) and trained.info.trained_steps == 4
    first, second = trained.network.first.state_dict(), trained.network.second.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, before[name]) for name, tensor in second.items())


def test_saving_a_second_look_leaves_it_in_training_mode(sticks, tmp_path, monkeypatch):
    """Without a running mean the saved network is the trained one, and joined looks predict."""
    train(config_for(sticks, steps=1), str(tmp_path / "start"), "cpu")
    single = load_checkpoint(str(tmp_path / "start/model.safetensors"))
    start = tmp_path / "both.safetensors"
    save_checkpoint(with_first_look(single, single), start)
    modes, predict = [], training_loop.predict_batch

    def recorded(model, network, *rest):
        modes.append(network.training)
        return predict(model, network, *rest)

    monkeypatch.setattr(training_loop, "predict_batch", recorded)
    without_mean = OptimizerConfig(warmup_steps=1, ema=0)
    config = config_for(sticks, steps=3, start_from=str(start), checkpoint_every=1, optimizer=without_mean)
    train(config, str(tmp_path / "run"), "cpu")
    assert modes == [True] * 3


def test_a_backbone_comes_from_a_checkpoint_of_another_hand_model(tmp_path):
    """The shipped weights are the open hand's; MANO's users start from their backbone all the same."""
    write_mano_file(tmp_path / "MANO_RIGHT.pkl")
    mano = f"mano:{tmp_path / 'MANO_RIGHT.pkl'}"
    for name in ("supervised", "mixed", "self"):
        config = read_train_config(name, hand=mano)
        network = start_network(config, load_hand(mano))
        shipped = load_checkpoint(config.backbone_from).network.hand_network.backbone.state_dict()
        torch.testing.assert_close(network.backbone.state_dict(), shipped, rtol=0, atol=0)
    # A checkpoint of MANO's hand is read with that hand, and a missing one is named.
    checkpoint = Checkpoint(
        network, load_hand(mano), CheckpointInfo(config.network, load_hand(mano).id), id=""
    )
    save_checkpoint(checkpoint, str(tmp_path / "mano.safetensors"))
    again = start_network(replace(config, backbone_from=str(tmp_path / "mano.safetensors")), load_hand(mano))
    torch.testing.assert_close(again.backbone.state_dict(), shipped, rtol=0, atol=0)
    with pytest.raises(UserError, match="there is no such file"):
        start_network(replace(config, backbone_from=str(tmp_path / "no.safetensors")), load_hand(mano))
