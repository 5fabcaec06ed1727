"""A cache gives the same hands and the same network outputs as drawing and running the backbone each time."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from annotator.config import AmvurConfig, NetworkConfig, TextureConfig
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.model.backbone import BACKBONES, build_backbone
from annotator.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from annotator.model.checkpoint_file import CheckpointInfo
from annotator.model.network import Network
from trainer.config import AugmentConfig, SourceConfig, TrainConfig, ValidationConfig
from trainer.data.cache import CachedExamples, read_cache_info
from trainer.data.features import packed, unpacked
from trainer.data.fill_cache import CHUNK, fill_cache
from trainer.evaluation.evaluate import evaluate
from trainer.objective import Objective
from trainer.start import start_network
from trainer.state import saved_states
from trainer.synth import SyntheticHands
from trainer.train import predict_batch, train

HAND = load_hand("open")
PLAIN = AugmentConfig(colour=0)

#: Reads g, X, and the maps of all strides.
TINY = NetworkConfig(
    backbone="efficientnet_lite0",
    crop_px=48,
    landmarks=True,
    amvur=AmvurConfig(start="prior_net", tokens=32, width=32, blocks=1, aligned=True),
    texture=TextureConfig(tokens=32, width=16, raster_px=32),
)
COUNT = 12


def moved(network: Network) -> Network:
    """Give every zero weight a random value, so that no output is constant."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return moved(Network(TINY, HAND))


@pytest.fixture(scope="module")
def cache(tmp_path_factory, network) -> str:
    place = str(tmp_path_factory.mktemp("cache"))
    fill_cache(place, COUNT, 48, 7, HAND, PLAIN, network.backbone, maps=True)
    return place


@pytest.fixture(scope="module")
def start(tmp_path_factory, network) -> str:
    path = str(tmp_path_factory.mktemp("start") / "start.safetensors")
    save_checkpoint(Checkpoint(network, HAND, CheckpointInfo(TINY, HAND.id), id=""), path)
    return path


def cached(place: str, features: bool = True, **settings) -> CachedExamples:
    return CachedExamples(place, HAND, SourceConfig(source=place, **settings), 0, features)


def config_for(cache: str, start: str, **settings) -> TrainConfig:
    plain = TrainConfig(
        # Other heads than those of the checkpoint: only its backbone is taken.
        network=replace(TINY, amvur=replace(TINY.amvur, width=16)),
        backbone_from=start,
        freeze_backbone=True,
        data=(SourceConfig(source=cache),),
        augment=PLAIN,
        batch_size=4,
        steps=4,
        loaders=0,
        checkpoint_every=2,
        log_every=1,
        pictures_every=100,
    )
    return replace(plain, **settings)


@pytest.mark.slow
def test_a_cached_hand_is_the_drawn_one(cache):
    drawn = SyntheticHands(HAND, 48, 7).batch(torch.arange(COUNT))
    (held, facts), *rest = cached(cache).in_order(COUNT)
    assert not rest and [fact.image_id for fact in facts] == [f"hand-{i}" for i in range(COUNT)]
    for name in ("image", "hand_mask", "joint_visible", "has_joint_visible", "has_joints3d", "has_vertices"):
        assert torch.equal(getattr(held, name), getattr(drawn, name)), name
    for name in ("joints2d", "joints3d_mm", "vertices_mm", "ray", "half_side_tan"):
        torch.testing.assert_close(getattr(held, name), getattr(drawn, name))


def test_cached_features_predict_the_same_hand(cache, network):
    batch = next(cached(cache).in_order(COUNT))[0]
    images = batch.image.float() / 255
    with torch.no_grad():
        whole = network(images)
        read = network(images, None, unpacked(batch.features, images, network.backbone))
    spread = whole.vertices.mean_mm.std(0).max()
    assert spread > 5  # the hands differ, so agreement means something
    assert (whole.vertices.mean_mm - read.vertices.mean_mm).abs().max() < 0.01 * spread
    assert (whole.joints2d - read.joints2d).abs().max() < 0.01
    assert whole.rgb is not None and read.rgb is not None
    # A rounded vertex may turn visible, so single colours jump.
    assert (whole.rgb - read.rgb).abs().mean() < 0.002


def test_packing_keeps_every_map(network):
    images = torch.rand(2, 3, 50, 50)  # odd maps
    with torch.no_grad():
        seen = network.backbone(images)
        back = unpacked(packed(seen, maps=True), images, network.backbone)
    assert torch.equal(back.X, seen.X)
    for one, other in zip((back.g, *back.pyramid), (seen.g, *seen.pyramid), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    assert unpacked(packed(seen, maps=False), images, network.backbone).pyramid == ()


def test_heads_get_the_same_gradient_as_behind_a_frozen_backbone(cache, start):
    config = config_for(cache, start)
    network = moved(start_network(config, HAND)).requires_grad_(True)
    network.backbone.requires_grad_(False)
    objective = Objective(config.loss, network, HAND)
    batch = next(cached(cache).in_order(COUNT))[0]
    images = batch.image.float() / 255
    gradients = []
    for one in (batch, replace(batch, features=batch.features[:, :0])):
        network.zero_grad()
        loss, _ = objective.total(objective.terms(predict_batch(network, network, images, one), one, images))
        loss.backward()
        # The side head trains on mirror images, which a cache does not have.
        named = {n: p.grad for n, p in network.named_parameters() if p.grad is not None and "side" not in n}
        gradients.append(torch.cat([grad.flatten() for grad in named.values()]))
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999
    torch.testing.assert_close(gradients[0].norm(), gradients[1].norm(), rtol=0.02, atol=0)


@pytest.mark.slow
def test_a_stopped_cache_resumes_with_the_same_hands_as_one_drawn_by_two_processes(tmp_path):
    count = CHUNK + 3

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_cache(str(tmp_path / "stopped"), count, 32, 3, HAND, AugmentConfig(), on_progress=stop)
    assert read_cache_info(str(tmp_path / "stopped")).done == CHUNK
    with pytest.raises(UserError, match=f"unfinished cache, {CHUNK} of {count}"):
        cached(str(tmp_path / "stopped"), features=False)
    done = []
    fill_cache(
        str(tmp_path / "stopped"),
        count,
        32,
        3,
        HAND,
        AugmentConfig(),
        on_progress=lambda n, _: done.append(n),
    )
    assert done == [count]  # the finished chunk is not drawn again
    fill_cache(str(tmp_path / "whole"), count, 32, 3, HAND, AugmentConfig(), processes=2)
    for file in (tmp_path / "whole").glob("*.npy"):
        assert np.array_equal(np.load(file), np.load(tmp_path / "stopped" / file.name)), file.name


@pytest.mark.slow
def test_several_processes_store_the_same_features(cache, network, tmp_path):
    place = tmp_path / "cache"
    fill_cache(str(place), COUNT, 48, 7, HAND, PLAIN, network.backbone, maps=True, processes=2)
    one, two = (np.load(Path(folder) / "features.npy") for folder in (cache, place))
    np.testing.assert_allclose(one.astype(float), two.astype(float), rtol=0.01, atol=0.01)
    assert np.abs(one).max() > 0.1


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_can_be_sent_to_another_process(name):
    backbone = build_backbone(name).eval()
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    sent = pickle.loads(pickle.dumps(backbone))
    with torch.inference_mode():
        torch.testing.assert_close(sent(images).g, backbone(images).g, rtol=0, atol=0)


def test_every_hand_comes_once_per_epoch_in_a_new_order(cache):
    source = cached(cache, first=2, count=9)
    epochs = [source.batch(range(k * 9, (k + 1) * 9)).key.tolist() for k in (0, 1)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(2, 11))] * 2
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": AugmentConfig()}, "augment.colour=0"),
        ({"network": replace(TINY, crop_px=64)}, "network.crop_px=48"),
        ({"backbone_from": "", "freeze_backbone": True}, "would freeze random layers"),
        ({"backbone_from": "default"}, "network.backbone="),
    ],
)
def test_a_training_that_does_not_fit_the_cache_is_refused(cache, start, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(config_for(cache, start, **changes), str(tmp_path), "cpu")


def test_features_of_another_backbone_are_refused(cache, tmp_path, network):
    torch.manual_seed(1)
    other = str(tmp_path / "other.safetensors")
    save_checkpoint(Checkpoint(Network(TINY, HAND), HAND, CheckpointInfo(TINY, HAND.id), id=""), other)
    with pytest.raises(UserError, match="another backbone"):
        train(config_for(cache, other), str(tmp_path / "run"), "cpu")
    for seed, augment in ((8, PLAIN), (7, replace(PLAIN, zoom=1.5))):
        with pytest.raises(UserError, match="another kind"):
            fill_cache(cache, COUNT, 48, seed, HAND, augment, network.backbone, maps=True)


@pytest.mark.slow
def test_a_run_ends_when_its_validation_error_stops_improving(cache, start, tmp_path):
    # With a learning rate of almost zero no look gains anything after the first.
    config = config_for(cache, start, steps=50, validation=ValidationConfig(cache, every=2, patience=2))
    config = replace(config, optimizer=replace(config.optimizer, learning_rate=1e-12))
    train(config, str(tmp_path), "cpu")
    looks = [json.loads(line)["step"] for line in (tmp_path / "validation.jsonl").read_text().splitlines()]
    assert looks == [2, 4, 6]
    assert saved_states(str(tmp_path))[-1] == "step-00000006.safetensors"
    train(config, str(tmp_path), "cpu", lambda _: pytest.fail("a finished run took a step"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "looks", "falls"), [(50, [2, 4, 6, 8, 10], range(7, 11)), (7, [2, 4, 6, 7], range(4, 8))]
)
def test_the_learning_rate_falls_to_a_hundredth_before_a_run_ends(
    cache, start, tmp_path, steps, looks, falls
):
    # The second run takes all its steps, so its cool-down begins before the error has stopped improving.
    validation = ValidationConfig(cache, every=2, patience=2, cool_down=4)
    config = config_for(cache, start, steps=steps, validation=validation, log_every=1, checkpoint_every=2)
    optimizer = replace(config.optimizer, learning_rate=1e-12, schedule="constant", warmup_steps=0)
    config = replace(config, optimizer=optimizer)
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(config, whole, "cpu")

    def stop(progress):
        if progress.step == falls[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, parts, "cpu", stop)
    train(config, parts, "cpu")
    expected = {
        step: 1 - 0.99 * (step + 1 - falls[0]) / 4 if step in falls else 1 for step in range(1, falls[-1] + 1)
    }
    for out in (whole, parts):
        lines = [json.loads(line) for line in (Path(out) / "validation.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == looks
        rates = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
        found = {line["step"]: line["learning_rate"] / 1e-12 for line in rates}
        assert found == pytest.approx(expected)


@pytest.mark.slow
def test_the_best_network_is_kept_and_its_error_is_that_of_an_evaluation(cache, start, tmp_path):
    config = config_for(cache, start, steps=6, validation=ValidationConfig(cache, every=2, patience=5))
    train(config, str(tmp_path / "run"), "cpu")
    looks = [json.loads(line) for line in (tmp_path / "run/validation.jsonl").read_text().splitlines()]
    best = min(looks, key=lambda look: look["error"])
    path = str(tmp_path / "run/best.safetensors")
    assert load_checkpoint(path).info.trained_steps == best["step"]
    found = evaluate(path, cache, str(tmp_path / "results"), device="cpu")
    assert found is not None
    both = (found["vertices"]["pa_mpvpe_mm"] + found["vertices"]["mpvpe_mm"]) / 2
    assert both == pytest.approx(best["error"], rel=1e-4)


@pytest.mark.slow
def test_weak_training_is_not_ended_by_3d(cache, start, tmp_path):
    config = config_for(
        cache,
        start,
        steps=2,
        data=(SourceConfig(source=cache, targets=("joints2d",)),),
        validation=ValidationConfig(cache, every=2),
    )
    train(config, str(tmp_path / "run"), "cpu")
    error = json.loads((tmp_path / "run/validation.jsonl").read_text())["error"]
    found = evaluate(str(tmp_path / "run/best.safetensors"), cache, str(tmp_path / "results"), device="cpu")
    assert found is not None
    # Half-sides of the crop here, shares of its side there.
    assert error / 2 == pytest.approx(found["joints2d"]["error_share_of_crop"], rel=1e-3)
