"""Drawn meshes: compare their scatter with the calibrated std, and their edges with those of the mean mesh."""

import numpy as np
import pytest
import torch
from scipy.optimize import lsq_linear

import annotator
from annotator import UserError
from annotator.hand import load_hand
from annotator.hand.layer import HandLayer
from annotator.model.amvur import Gaussian
from annotator.model.prior_net import mean_hand
from annotator.model.samples import MeshSampler, bounded_least_squares, keyed_noise
from annotator.photos.crops import Crops, crop_photo
from tests.support.mano_file import write_mano_file

pytestmark = pytest.mark.slow

DRAWS = 200


@pytest.fixture(scope="module")
def shipped():
    return annotator.load("default", device="cpu")


def edge_lengths(vertices, faces):
    ends = np.unique(np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1), axis=0)
    return np.linalg.norm(vertices[..., ends[:, 0], :] - vertices[..., ends[:, 1], :], axis=-1)


def measures(label, faces):
    """Return std of draws divided by calibrated std, for vertices and joints, and edges relative to the mean mesh."""
    drawn, joints = label["vertices_samples_mm"], label["joints3d_samples_mm"]
    return {
        "vertices": drawn.std(0) / label["vertices_std_mm"],
        "joints": joints.std(0)[1:] / label["joints3d_std_mm"][1:],
        "edges": edge_lengths(drawn, faces) / edge_lengths(label["vertices_mm"], faces),
        "off": (drawn.mean(0) - label["vertices_mm"]) / label["vertices_std_mm"],
    }


@pytest.mark.parametrize("side", ["right", "left"])
def test_draws_of_real_hands_have_the_calibrated_std_and_the_mean_meshs_edges(shipped, sign_digits, side):
    """Check the criterion of docs/benchmarks.md on the shipped weights."""
    photos = sorted(sign_digits.rglob("*.JPG"))[::130]
    labels = shipped.predict(photos, samples=DRAWS, side=side)
    found = [measures(label, shipped.checkpoint.hand.faces) for label in labels]
    mean = {name: np.mean([each[name].mean() for each in found]) for name in found[0]}
    spread = {name: np.std(np.concatenate([each[name].ravel() for each in found])) for name in found[0]}
    print({name: (round(mean[name], 3), round(spread[name], 3)) for name in mean})
    for name in ("vertices", "joints", "edges"):
        assert mean[name] == pytest.approx(1, abs=0.1), name
        assert all(0.85 < each[name].mean() < 1.15 for each in found), name
    by_axis = np.mean([each["vertices"].mean(0) for each in found], 0)
    np.testing.assert_allclose(by_axis, 1, atol=0.15)
    assert np.mean([np.abs(each["off"]).mean() for each in found]) < 0.15
    R = shipped.checkpoint.hand.joint_regressor
    for label in labels[:3]:
        np.testing.assert_allclose(R @ label["vertices_samples_mm"], label["joints3d_samples_mm"], atol=1e-2)
        np.testing.assert_allclose(label["joints3d_samples_mm"][:, 0], 0, atol=1e-2)


def test_draws_of_an_untrained_network_scatter_by_its_std(predictor):
    crop = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    label = predictor.predict([crop], samples=DRAWS, side="right")[0]
    found = measures(label, predictor.checkpoint.hand.faces)
    for name in ("vertices", "joints", "edges"):
        assert found[name].mean() == pytest.approx(1, abs=0.1), name


@pytest.fixture(scope="module", params=["open", "mano"])
def any_hand(request, tmp_path_factory):
    """Return the open hand, or one from a file in MANO's layout, with more pose components and pose correctives."""
    if request.param == "open":
        return load_hand("open")
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return load_hand(f"mano:{path}")


@pytest.mark.parametrize(("small_mm", "large_mm"), [(1.0, 2.0), (4.0, 12.0), (8.0, 40.0)])
def test_small_std_and_large(any_hand, small_mm, large_mm):
    """Use a mesh outside the parametric hands: std grows from wrist to fingertips, and is 1.5 times larger in depth."""
    hand = any_hand
    mean_mm = mean_hand(HandLayer(hand), hand).vertices_mm
    mean_mm = mean_mm * torch.tensor([1.1, 0.95, 1.0])
    reach = mean_mm.norm(dim=-1, keepdim=True) / mean_mm.norm(dim=-1).max()
    std_mm = (small_mm + (large_mm - small_mm) * reach) * torch.tensor([1.0, 1.0, 1.5])
    R = torch.from_numpy(hand.joint_regressor)
    sampler = MeshSampler(hand)
    drawn = sampler(
        Gaussian(mean_mm, std_mm),
        Gaussian(R @ mean_mm, R @ std_mm),
        keyed_noise([1], 400, sampler.parameter_count),
    )[0]
    assert (drawn.std(0) / std_mm[0]).mean() == pytest.approx(1, abs=0.1)
    assert ((R @ drawn).std(0) / (R @ std_mm[0]))[1:].mean() == pytest.approx(1, abs=0.1)
    ratio = edge_lengths(drawn.numpy(), hand.faces) / edge_lengths(mean_mm[0].numpy(), hand.faces)
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    if large_mm < 3:  # with small std, draws are close to the mean mesh
        assert ratio.std() < 0.05


def test_the_least_squares_are_scipys():
    rng = np.random.default_rng(0)
    columns = rng.gamma(0.5, 1, (3, 8, 60))
    weights = rng.uniform(0.5, 2, 60)
    limits = np.array([9.0] * 4 + [0.05] * 4)
    found = bounded_least_squares(*(torch.from_numpy(x) for x in (columns, weights, limits)), steps=3000)
    for each, x in zip(columns, found.numpy(), strict=True):
        best = lsq_linear(each.T * np.sqrt(weights)[:, None], np.sqrt(weights), (0, limits))
        assert ((each.T @ x - 1) ** 2 * weights).sum() / 2 == pytest.approx(best.cost, rel=1e-4)
        assert (x >= 0).all() and (x <= limits).all()


def test_a_draw_depends_on_its_crop_alone(lively):
    rng = np.random.default_rng(0)
    crop_px = lively.checkpoint.info.network.crop_px
    photos = rng.integers(0, 256, (5, 90, 90, 3), np.uint8)
    cut = Crops.stack([crop_photo(photo, 90, 90, crop_px) for photo in photos])
    whole = lively.predict_crops(cut, "right", samples=6)["vertices_samples_mm"]
    for rows in ([3], [4, 3], [0, 1, 2, 3]):
        part = lively.predict_crops(Crops.stack([cut[row : row + 1] for row in rows]), "right", samples=6)
        np.testing.assert_allclose(part["vertices_samples_mm"], whole[rows], atol=0.1)
    fewer = lively.predict_crops(cut, "right", samples=2)["vertices_samples_mm"]
    np.testing.assert_allclose(fewer, whole[:, :2], atol=0.1)
    # Two photos have different draws, and two draws differ.
    deviations = (whole - lively.predict_crops(cut, "right")["vertices_mm"][:, None]).reshape(30, -1)
    assert np.median(np.abs(np.corrcoef(deviations))) < 0.6


def test_labels_without_samples_have_no_column_for_them(lively):
    crop = np.zeros((40, 40, 3), np.uint8)
    assert not [name for name in lively.predict([crop])[0] if "samples" in name]
    with pytest.raises(UserError, match="samples is -1"):
        lively.predict([crop], samples=-1)
