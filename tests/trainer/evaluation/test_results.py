import io
import json
from dataclasses import replace

import duckdb
import numpy as np
import pytest
import torch
from PIL import Image

from annotator.config import NetworkConfig
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.model.amvur import Gaussian
from annotator.model.camera import WeakCamera
from annotator.model.network import Network, Prediction
from annotator.quality import metrics
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from trainer.batch import Batch
from trainer.evaluation import measurements as measured_module
from trainer.evaluation.fit_calibration import fit_calibration
from trainer.evaluation.measurements import PhotoErrors
from trainer.evaluation.parts import with_label_errors
from trainer.evaluation.results import summarise, write_results
from trainer.evaluation.results_table import table_rows

HAND = load_hand("open")
V = HAND.vertex_count
R = torch.from_numpy(HAND.joint_regressor)
SCALE = 0.008


def example(count, seed=0, supervised=True):
    """Photos with known truth, and predictions whose errors have a std of 3 std^0.7."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    template = torch.from_numpy(HAND.v_template) * 1000
    truth = template + normal(count, 1, 3) * template / 10
    truth = truth - R[:1] @ truth
    size = 6 * torch.exp(0.6 * normal(count, 1, 1))
    wrong = size * (
        0.4 * normal(count, 1, 3) * truth.norm(dim=-1, keepdim=True) / 100 + 0.6 * normal(count, V, 3)
    )
    vertices = truth + wrong
    vertices = vertices - R[:1] @ vertices
    std = ((size / 3) ** (1 / 0.7)).expand(count, V, 3)
    joints, true_joints = R @ vertices, R @ truth
    batch = Batch.empty(count, 32, V)
    batch.key = torch.arange(count) + 1000 * seed
    batch.image = torch.randint(0, 256, batch.image.shape, generator=g, dtype=torch.uint8)
    batch.joints2d, batch.has_joints2d = SCALE * true_joints[..., :2], torch.ones(count, 21, dtype=torch.bool)
    if supervised:
        batch.joints3d_mm, batch.has_joints3d = true_joints, torch.ones(count, dtype=torch.bool)
        batch.vertices_mm, batch.has_vertices = truth, torch.ones(count, dtype=torch.bool)
    joint_std = std[:, :21] * 1.0
    prediction = Prediction(
        vertices=Gaussian(vertices, std),
        joints3d=Gaussian(joints, joint_std),
        camera=WeakCamera(
            torch.full((count,), SCALE), normal(count, 3), normal(count, 2), torch.ones(count, 6)
        ),
        joints2d=SCALE * joints[..., :2],
        joints2d_covariance=torch.diag_embed((SCALE * joint_std[..., :2]) ** 2),
        prior=None,
        prior_camera=None,
        visible=torch.ones(count, V, dtype=torch.bool),
        rgb=None,
        is_right=torch.linspace(0.4, 1, count),
        mirrored_is_right=torch.tensor([0.1, 0.2, 0.7, 0.3])[:count],
        is_hand=torch.linspace(0.3, 1, count),
    )
    return batch, prediction


def part(prediction, rows):
    """Return some rows of a prediction."""
    return Prediction(
        vertices=Gaussian(prediction.vertices.mean_mm[rows], prediction.vertices.std_mm[rows]),
        joints3d=Gaussian(prediction.joints3d.mean_mm[rows], prediction.joints3d.std_mm[rows]),
        camera=prediction.camera,
        joints2d=prediction.joints2d[rows],
        joints2d_covariance=prediction.joints2d_covariance[rows],
        prior=None,
        prior_camera=None,
        visible=prediction.visible[rows],
        rgb=None,
        is_right=prediction.is_right[rows],
        mirrored_is_right=prediction.mirrored_is_right[:0],
        is_hand=prediction.is_hand[rows],
    )


def measure(batch, prediction, calibration=None, size=7):
    found = PhotoErrors(calibration)
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        found.add(batch[rows], part(prediction, rows))
    return found


def test_figures_are_those_of_all_photos_taken_one_by_one():
    batch, prediction = example(30)
    summary = summarise(measure(batch, prediction))
    predicted, truth = prediction.joints3d.mean_mm.double().numpy(), batch.joints3d_mm.double().numpy()
    by_joint = np.array(
        [
            metrics.distances(metrics.align(p[None], t[None]), t[None])[0]
            for p, t in zip(predicted, truth, strict=True)
        ]
    )
    joints = summary["joints3d"]
    assert joints["count"] == 30
    assert joints["pa_mpjpe_mm"] == pytest.approx(by_joint.mean(), rel=1e-5)
    assert joints["pa_mpjpe_median_mm"] == pytest.approx(np.median(by_joint.mean(1)), rel=1e-5)
    assert joints["pa_auc"] == pytest.approx(metrics.auc_of_pck(by_joint), rel=1e-3)
    assert joints["mpjpe_mm"] == pytest.approx(np.linalg.norm(predicted - truth, axis=-1).mean(), rel=1e-4)
    assert joints["per_joint_mm"]["thumb_tip"]["pa_error"] == pytest.approx(by_joint[:, 4].mean(), rel=1e-5)
    assert joints["per_joint_mm"]["wrist"]["std"] == 0
    mesh, true_mesh = prediction.vertices.mean_mm.double().numpy(), batch.vertices_mm.double().numpy()
    aligned = metrics.align(mesh, true_mesh)
    assert summary["vertices"]["pa_mpvpe_mm"] == pytest.approx(
        metrics.pa_mpjpe(mesh, true_mesh).mean(), rel=1e-4
    )
    # All photos have the same number of vertices: the mean of their areas is the total area.
    whole = metrics.auc_of_pck(metrics.distances(aligned, true_mesh))
    assert summary["vertices"]["pa_auc"] == pytest.approx(whole, rel=1e-4)
    f5 = np.mean([metrics.f_score(a[None], t[None])[0, 0] for a, t in zip(aligned, true_mesh, strict=True)])
    assert summary["vertices"]["pa_f5"] == pytest.approx(f5, rel=1e-4)
    error2d = (prediction.joints2d - batch.joints2d).norm(dim=-1).mean() / 2
    assert summary["joints2d"]["error_share_of_crop"] == pytest.approx(float(error2d), rel=1e-5)
    assert summary["uncertainty"]["joints3d"]["spearman"] > 0.6
    assert summary["uncertainty"]["vertices_pa"]["error_of_best"]["50%"] < joints["mpjpe_mm"]


def test_batches_change_nothing():
    batch, prediction = example(23)
    one, other = measure(batch, prediction, size=5), measure(batch, prediction, size=23)
    assert one.image_ids == other.image_ids
    np.testing.assert_array_equal(one["pa_f5"], other["pa_f5"])
    for a, b in zip(one.vertex_pairs(), other.vertex_pairs(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_target_that_no_photo_has_is_none_and_a_missing_one_is_left_out():
    batch, prediction = example(12, supervised=False)
    summary = summarise(measure(batch, prediction))
    assert summary["joints3d"]["pa_mpjpe_mm"] is None and summary["joints3d"]["count"] == 0
    assert summary["vertices"]["pa_f5"] is None and summary["uncertainty"]["joints3d"] is None
    assert summary["joints2d"]["count"] == 12
    assert ("", "PA-MPJPE", "n/a") in table_rows(summary)
    known, prediction = example(12)
    half = Batch.join([known[:5], batch[5:]])
    alone = measure(known[:5], part(prediction, slice(0, 5)))
    both = summarise(measure(half, prediction))
    assert both["joints3d"]["count"] == both["vertices"]["count"] == 5
    assert both["joints3d"] == summarise(alone)["joints3d"]
    assert both["uncertainty"]["vertices"] == summarise(alone)["uncertainty"]["vertices"]


def test_joints_without_annotation_are_left_out_of_the_2d_error():
    batch, prediction = example(2)
    batch.has_joints2d[0] = False
    batch.has_joints2d[1, 3:] = False
    batch.joints2d[1, 3:] = 55.0
    found = measure(batch, prediction)
    error = (prediction.joints2d - batch.joints2d)[1, :3].norm(dim=-1).mean() / 2
    assert np.isnan(found["joints2d_error"][0])
    assert found["joints2d_error"][1] == pytest.approx(float(error), rel=1e-5)
    assert summarise(found)["joints2d"]["count"] == 1


def test_measuring_does_not_change_the_prediction():
    batch, prediction = example(3)
    before = prediction.joints3d.std_mm.clone()
    measure(batch, prediction)
    assert torch.equal(prediction.joints3d.std_mm, before)


def test_a_diverged_network_is_named_with_the_photo():
    batch, prediction = example(3)
    prediction.vertices.mean_mm[1, 5] = float("nan")
    with pytest.raises(UserError, match="'photo b' is not a number"):
        PhotoErrors().add(batch, prediction, ["photo a", "photo b", "photo c"])
    with pytest.raises(UserError, match="no photos to evaluate"):
        summarise(PhotoErrors())


def test_meshes_are_not_kept(monkeypatch):
    monkeypatch.setattr(measured_module, "_VERTEX_PHOTOS", 20)
    batch, prediction = example(64)
    found = measure(batch, prediction)
    held = sum(part.nbytes for parts in found._columns.values() for part in parts)
    assert held < 64 * 1200
    std, _ = found.vertex_pairs()
    # Every fourth photo, evenly spread.
    assert std.shape == (16, 24, 3)
    np.testing.assert_allclose(std[:, 0, 0], prediction.vertices.std_mm[::4, 0, 0])


def test_texture_is_compared_where_the_hand_is_visible():
    batch, prediction = example(3)
    rendered = batch.image / 255 * 0.9
    region = torch.zeros(3, 32, 32, dtype=torch.bool)
    region[:2, 8:20, 8:20] = True
    found = PhotoErrors()
    found.add(batch, prediction, rendered=rendered, region=region)
    photo = (batch.image / 255).double()
    for k in range(2):
        noise = (0.1 * photo[k][:, region[k]]).square().mean()
        assert found["psnr_db"][k] == pytest.approx(float(-10 * torch.log10(noise)), rel=1e-4)
    assert np.isnan(found["ssim"][2])
    summary = summarise(found)
    assert summary["texture"]["count"] == 2 and 0.9 < summary["texture"]["ssim"] < 1
    # Probabilities of right hands 0.4, 0.7 and 1; of mirrored ones 0.1, 0.2 and 0.7.
    assert summary["side"] == {"right_taken_for_right": 2 / 3, "mirrored_taken_for_left": 2 / 3}
    # All show hands, with probabilities 0.3, 0.65 and 1.
    assert summary["presence"] == {"hands_taken_for_hands": 2 / 3, "nothing_taken_for_nothing": None}


def test_visible_joints_count_where_their_truth_is_known():
    batch, prediction = example(3)
    assert summarise(measure(batch, prediction))["visibility"]["count"] == 0
    found = PhotoErrors()
    batch.joint_visible[:2, :5], batch.has_joint_visible[:2] = True, True
    logit = torch.where(batch.joint_visible, 1.0, -1.0)
    logit[0, 0] = -2  # one of the 10 visible joints looks more hidden than all 32 hidden ones
    found.add(batch, replace(prediction, joint_visible_logit=logit))
    assert summarise(found)["visibility"] == {
        "count": 42,
        "visible_share": pytest.approx(10 / 42),
        "accuracy": pytest.approx(41 / 42),
        "auc": pytest.approx(0.9),
    }


def test_distance_from_a_detector_s_joints_is_the_benchmarks_procrustes():
    batch, prediction = example(4)
    assert summarise(measure(batch, prediction))["guess3d"] == {"count": 0, "pa_mpjpe_mm": None}
    batch.guess3d_mm, batch.has_guess3d = 0.8 * batch.joints3d_mm.flip(0), torch.arange(4) > 0
    found = measure(batch, prediction)
    guess = batch.guess3d_mm.numpy()
    expected = metrics.distances(metrics.align(prediction.joints3d.mean_mm.numpy(), guess), guess).mean(1)
    np.testing.assert_allclose(found["guess_pa_mpjpe_mm"][1:], expected[1:], rtol=1e-4)
    assert np.isnan(found["guess_pa_mpjpe_mm"][0])
    summary = summarise(found)
    assert summary["guess3d"]["count"] == 3 and summary["uncertainty"]["guess3d"]["count"] == 3


def test_predicted_hands_have_a_length_for_any_known_targets():
    batch, prediction = example(3, supervised=False)
    batch.has_hand[2] = False
    chain = prediction.joints3d.mean_mm[:2, [0, 9, 10, 11, 12]]
    expected = chain.diff(dim=1).norm(dim=-1).sum(1).mean()
    summary = summarise(measure(batch, prediction))
    assert summary["size"] == {"count": 2, "hand_length_mm": pytest.approx(float(expected), rel=1e-5)}


def test_squares_without_a_hand_count_for_presence_alone():
    batch, prediction = example(4)
    empty = Batch.empty(1, 32, V)
    empty.has_hand[:] = False
    with_empty, found = PhotoErrors(), PhotoErrors()
    with_empty.add(Batch.join([batch[:3], empty]), prediction)
    found.add(batch[:3], part(prediction, slice(0, 3)))
    one, other = summarise(with_empty), summarise(found)
    assert one["presence"] == {"hands_taken_for_hands": 2 / 3, "nothing_taken_for_nothing": 0}
    assert one["side"]["right_taken_for_right"] == other["side"]["right_taken_for_right"]
    assert one["joints3d"] == other["joints3d"] and one["joints2d"] == other["joints2d"]


def test_a_real_network_is_measured():
    torch.manual_seed(0)
    network = Network(NetworkConfig(crop_px=64), HAND).eval()
    batch = Batch.join([example(2)[0]] * 2)
    with torch.inference_mode():
        prediction = network(torch.zeros(4, 3, 64, 64), also_mirrored=torch.arange(4))
    found = PhotoErrors()
    found.add(batch, prediction)
    assert 1 < summarise(found)["joints3d"]["pa_mpjpe_mm"] < 60


@pytest.mark.slow
def test_results_are_readable_by_other_programs(tmp_path):
    known, prediction = example(40)
    batch = Batch.join([known[:30], example(40, supervised=False)[0][30:]])
    found = measure(batch, prediction)
    summary = write_results(str(tmp_path), found, {"checkpoint": "abc"})
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert summary["checkpoint"] == "abc"
    assert "PA-MPJPE " in (tmp_path / "table.txt").read_text()
    photos = f"'{tmp_path}/photos.parquet'"
    query = f"select avg(pa_mpjpe_mm), count(pa_mpjpe_mm), count(*), count(distinct image_id) from {photos}"
    mean, known_count, count, ids = duckdb.sql(query).fetchall()[0]
    assert mean == pytest.approx(summary["joints3d"]["pa_mpjpe_mm"]) and (known_count, count, ids) == (
        30,
        40,
        40,
    )
    # Error after filtering, computed from the file.
    best = (
        f"select avg(mpjpe_mm) from (from {photos} where mpjpe_mm is not null order by joint_std_mm limit 15)"
    )
    assert duckdb.sql(best).fetchall()[0][0] == pytest.approx(
        summary["uncertainty"]["joints3d"]["error_of_best"]["50%"]
    )
    lists = duckdb.sql(f"select joint_errors_mm from {photos} order by image_id::int").fetchall()
    assert lists[35] == (None,) and len(lists[3][0]) == 21
    assert np.mean(lists[3][0]) == pytest.approx(float(found["mpjpe_mm"][3]), rel=1e-5)
    for name in ("pck", "kept", "reliability", "std_and_error"):
        with Image.open(io.BytesIO((tmp_path / "plots" / f"{name}.png").read_bytes())) as picture:
            assert picture.width > 400 and len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_constant_std_and_2d_alone_are_written_too(tmp_path):
    batch, prediction = example(8, supervised=False)
    prediction.joints2d_covariance = torch.eye(2).expand(8, 21, 2, 2) * 0.01
    summary = write_results(str(tmp_path), measure(batch, prediction))
    assert summary["uncertainty"]["joints2d"]["spearman"] is None
    assert not (tmp_path / "plots" / "pck.png").exists() and (tmp_path / "plots" / "kept.png").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't write the results"):
        write_results(str(tmp_path / "file"), measure(batch, prediction))


def with_worse_depth(batch, prediction, factor=3.0):
    """Return predictions with `factor` times the errors along z and the same std."""
    shift = (factor - 1) * (prediction.joints3d.mean_mm - batch.joints3d_mm)[..., 2:]
    prediction.joints3d.mean_mm[..., 2:] += shift
    return batch, prediction


@pytest.fixture(scope="module")
def judged_by_axis():
    """A calibration, and other photos measured without and with it."""
    held_out, test = (with_worse_depth(*example(600, seed=seed)) for seed in (1, 2))
    calibration = fit_calibration(measure(*held_out, size=64), "synthetic")
    return calibration, measure(*test, size=64), measure(*test, calibration, size=64)


def test_calibration_makes_std_cover_68_percent_of_other_photos_along_each_axis(judged_by_axis):
    calibration, before, after = judged_by_axis
    assert calibration.fitted_on == "synthetic, 600 photos: joints3d, vertices, joints2d"
    for law in (calibration.vertices.plane, calibration.vertices.depth):
        assert law.exponent == pytest.approx(0.7, abs=0.08)
    assert calibration.joints3d.depth.scale / calibration.joints3d.plane.scale == pytest.approx(3, rel=0.15)
    before, after = (summarise(measured)["uncertainty"] for measured in (before, after))
    for kind, axes in (("joints3d", "xyz"), ("vertices", "xyz"), ("joints2d", "xy")):
        assert list(after[kind]["axes"]) == list(axes)
        for one in (after[kind], *after[kind]["axes"].values()):
            assert one["coverage"]["68%"] == pytest.approx(0.68, abs=0.03)
    assert before["joints3d"]["axes"]["z"]["coverage"]["68%"] < 0.3


@pytest.mark.slow
def test_errors_that_a_network_shares_with_its_labels_are_added():
    """A student that repeats the errors of its labels: against the truth, its calibrated std covers 68 %."""
    truth, prediction = example(600, seed=5)
    g = torch.Generator().manual_seed(6)
    std = 9.0
    wrong = std * torch.randn(truth.vertices_mm.shape, generator=g)
    labels, shared = replace(truth), prediction.joints3d.mean_mm - truth.joints3d_mm
    labels.joints3d_mm = truth.joints3d_mm + std * torch.randn(truth.joints3d_mm.shape, generator=g)
    labels.vertices_mm = truth.vertices_mm + wrong
    labels.joints3d_std_mm = torch.full_like(truth.joints3d_mm, std)
    labels.vertices_std_mm = torch.full_like(truth.vertices_mm, std)
    student = replace(
        prediction,
        joints3d=Gaussian(labels.joints3d_mm + shared, prediction.joints3d.std_mm),
        vertices=Gaussian(prediction.vertices.mean_mm + wrong, prediction.vertices.std_mm),
    )
    for moved, low, high in (
        (with_label_errors(labels, torch.Generator().manual_seed(7)), 0.65, 0.71),
        (labels, 0.2, 0.6),
    ):
        calibration = fit_calibration(measure(moved, student, size=64), "fits")
        found = summarise(measure(truth, student, calibration, size=64))["uncertainty"]
        assert low < found["vertices"]["coverage"]["68%"] < high
    assert found["joints3d"]["coverage"]["68%"] < 0.6


def test_the_expected_error_of_kept_hands_is_that_of_other_photos(judged_by_axis):
    _, before, found = judged_by_axis
    expected = summarise(found)["expected_error"]
    assert list(expected) == ["25%", "50%", "75%", "100%"]
    errors, std = found["mpjpe_mm"] * 21 / 20, found["joint_std_mm"]  # the wrist has no error
    assert expected["100%"]["found_mm"] == pytest.approx(errors.mean(), rel=1e-4)
    assert expected["25%"]["found_mm"] == pytest.approx(errors[np.argsort(std)[:150]].mean(), rel=1e-4)
    for one in expected.values():
        assert one["expected_mm"] == pytest.approx(one["found_mm"], rel=0.06)
    titles = {row[:2] for row in table_rows(summarise(found))}
    assert ("expected error", "25% of lowest std, without the wrist") in titles
    assert summarise(before)["expected_error"] is None


def test_coverage_of_a_hand_is_counted_coordinate_by_coordinate():
    batch, prediction = example(9)
    found = measure(batch, prediction)
    std, error = prediction.joints3d.std_mm.numpy(), (prediction.joints3d.mean_mm - batch.joints3d_mm).numpy()
    inside = np.abs(error[:, 1:]) <= 0.99446 * std[:, 1:]
    shares = [inside[k].sum() / 60 for k in range(9)]
    hands = summarise(found)["uncertainty"]["joints3d"]["coverage_of_hands"]
    assert hands["50%"] == pytest.approx(np.median(shares)) and hands["5%"] == pytest.approx(
        np.quantile(shares, 0.05)
    )


def test_calibration_names_the_fitted_kinds_and_keeps_the_others():
    weak = measure(*example(30, supervised=False))
    calibration = fit_calibration(weak, "photos")
    assert calibration.fitted_on == "photos, 30 photos: joints2d" and not calibration.measures_3d
    assert calibration == Calibration(joints2d=calibration.joints2d, fitted_on=calibration.fitted_on)
    assert calibration.joints2d != PowerLaw() and [name for name, _ in calibration.table()] == ["2D joints"]
    with pytest.raises(UserError, match="19 photos, too few"):
        fit_calibration(measure(*example(19)), "photos")
    batch, prediction = example(20, supervised=False)
    batch.has_joints2d[:] = False
    with pytest.raises(UserError, match="no photo with 3D joints, vertices or 2D joints"):
        fit_calibration(measure(batch, prediction), "photos")
    with pytest.raises(ValueError, match="without a calibration"):
        fit_calibration(measure(*example(20), Calibration(vertices=AxisLaws(depth=PowerLaw(2, 1)))), "photos")
