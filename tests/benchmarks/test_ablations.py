"""Every shipped configuration builds; the rows of the paper's tables train on what they name."""

import functools
import importlib
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import roma
import torch
from PIL import Image

from annotator.config import NetworkConfig, config_folder, read_config
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.model import HandModel
from annotator.model.network import Network
from trainer.batch import Batch, withhold
from trainer.config import TrainConfig, read_train_config
from trainer.data.cache import read_cache_info
from trainer.objective import Objective

pytestmark = pytest.mark.slow

NAMES = sorted(
    p.relative_to(config_folder()).with_suffix("").as_posix()
    for p in config_folder().rglob("*.yaml")
    if p.parent.name != "fit"  # no network: tests/fitting/test_fit.py reads them
)
PAPER = [name for name in NAMES if name.startswith("paper/")]

#: Our own terms, in every row with a prior-net, or in all rows.
OURS = {"limits", "shape", "side_right", "side_left", "presence_hand"}

LIKELIHOODS = {"vertices", "joints3d", "joints2d", "camera"}
KL = {"kl_vertices", "kl_joints3d", "kl_camera"}
PRIOR = {f"prior_{name}" for name in LIKELIHOODS}
SUPERVISED = LIKELIHOODS | KL | PRIOR | {"texture"}
WEAK = {"joints2d", "prior_joints2d", "texture"} | KL
VERTICES = {"vertices", "kl_vertices", "prior_vertices"}
JOINTS3D = {"joints3d", "kl_joints3d", "prior_joints3d"}
JOINTS2D = {"joints2d", "prior_joints2d", "camera", "kl_camera", "prior_camera"}

TERMS = {
    "supervised": SUPERVISED,
    "supervised-prior-net": LIKELIHOODS | {"texture"},
    "supervised-amvur": LIKELIHOODS | {"texture"},
    "weak": WEAK,
    "weak-prior-net": {"joints2d", "texture"},
    "weak-amvur": {"joints2d", "texture"},
    "table3-vertices": VERTICES,
    "table3-joints3d": VERTICES | JOINTS3D,
    "table3-joints2d": VERTICES | JOINTS3D | JOINTS2D,
    "table4-joints2d": {"joints2d"},
    "table4-texture": WEAK - {"kl_vertices", "kl_joints3d"},
    "table4-kl-vertices": WEAK - {"kl_joints3d"},
    "table5-a": SUPERVISED,
    "table5-b": SUPERVISED,
    "table5-c": SUPERVISED,
    "table6-hand": SUPERVISED,
}


def tiny(network: NetworkConfig) -> NetworkConfig:
    return replace(
        network,
        backbone="efficientnet_lite0",
        imagenet=False,
        crop_px=48,
        amvur=replace(network.amvur, tokens=32, width=64, blocks=1),
        texture=replace(network.texture, tokens=32, width=16, raster_px=32),
    )


@functools.cache
def hand() -> HandModel:
    return load_hand("open")


@functools.cache
def built(network: NetworkConfig) -> Network:
    return Network(network, hand())


@functools.cache
def known() -> Batch:
    """Four flat hands, each rotated a little further, of which everything is known."""
    rotations = roma.rotvec_to_rotmat(torch.tensor([[0.0, 0.0, 0.5 * i] for i in range(4)]))
    vertices = torch.from_numpy(hand().v_template) * 1000 @ rotations.mT
    joints = torch.from_numpy(hand().joint_regressor) @ vertices
    vertices, joints = vertices - joints[:, :1], joints - joints[:, :1]
    yes = torch.ones(4, dtype=torch.bool)
    return replace(
        Batch.empty(4, 48, len(hand().v_template)),
        joints2d=joints[..., :2] / 120,
        has_joints2d=yes[:, None].expand(4, 21),
        joints3d_mm=joints,
        has_joints3d=yes,
        vertices_mm=vertices,
        has_vertices=yes,
    )


def trained_terms(name: str) -> tuple[dict[str, torch.Tensor], Network]:
    """Terms of one step that have a weight and a target, weighted."""
    config = read_train_config(name)
    network = built(tiny(config.network))
    objective = Objective(config.loss, network, hand())
    batch = withhold(known(), config.data[0].targets)
    images = batch.image.float() / 255
    terms = objective.terms(network(images, torch.tensor([0])), batch, images)
    loss, _ = objective.total(terms)
    assert torch.isfinite(loss)
    return {
        name: objective.weights[name] * term.sum / term.count
        for name, term in terms.items()
        if objective.weights[name] and term.count
    }, network


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_configuration_loads_and_builds(name):
    if name.startswith("network/"):
        network = read_config(NetworkConfig, "network", name.removeprefix("network/"))
    else:
        group, _, file = name.partition("/")
        network = read_config(TrainConfig, group, file).network
    with torch.no_grad():
        prediction = built(tiny(network))(torch.rand(1, 3, 48, 48))
    assert torch.isfinite(prediction.vertices.mean_mm).all()


def test_all_rows_of_the_paper_exist():
    assert {name.removeprefix("paper/") for name in PAPER} == set(TERMS)


@pytest.mark.parametrize("name", TERMS)
def test_a_row_trains_on_the_terms_it_names(name):
    terms, network = trained_terms(f"paper/{name}")
    assert set(terms) - OURS == TERMS[name]
    assert (network.texture is not None) == ("texture" in TERMS[name])


@pytest.mark.parametrize(
    ("first", "second"), [("table3-vertices", "table3-joints3d"), ("table4-texture", "weak")]
)
def test_rows_that_differ_in_terms_alone_share_everything_else(first, second):
    one, other = read_train_config(f"paper/{first}"), read_train_config(f"paper/{second}")
    assert one != other and replace(one, loss=other.loss) == other


@pytest.mark.parametrize("name", PAPER)
def test_the_recipe_is_the_paper_s(name):
    config = read_train_config(name)
    is_weak = config.data[0].targets == ("joints2d",)
    assert config.optimizer.kind == "adam" and config.batch_size == 32
    assert config.network.backbone == ("efficientnet_b0" if is_weak else "resnet50")
    assert config.network.crop_px == 224 and config.network.amvur.tokens in (0, 195)
    assert is_weak == name.startswith(("paper/weak", "paper/table4"))


def test_what_tables_5_and_6_switch():
    a, b, c, d, hand = (
        read_train_config(f"paper/{name}").network
        for name in ("table5-a", "table5-b", "table5-c", "supervised", "table6-hand")
    )
    assert [n.amvur.kind for n in (a, b, c, d)] == ["fully_connected", *["attention"] * 3]
    assert [n.amvur.cross_attention for n in (b, c, d)] == [False, True, True]
    assert [n.amvur.positional for n in (b, c, d)] == ["index", "index", "template"]
    assert (hand.texture.kind, d.texture.kind) == ("global", "occlusion_aware") and hand.amvur == d.amvur


@pytest.fixture(scope="module")
def paper_tables():
    """The benchmark's modules, by name, imported as the script imports them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        names = ("rows", "claims", "statistics", "training", "page")
        modules = {name: importlib.import_module(f"paper_tables.{name}") for name in names}
        yield SimpleNamespace(command=importlib.import_module("ablations"), **modules)


def test_the_benchmark_runs_every_row_and_changes_only_its_size(paper_tables):
    rows = paper_tables.rows.ROWS
    assert {row.config for row in rows} == set(TERMS)
    assert {row.table for row in rows} == {table.name for table in paper_tables.rows.TABLES}
    options = paper_tables.command.options_of(["OUT"])
    for row in rows:
        short = paper_tables.training.configuration(row, options, 2)
        full = read_train_config(f"paper/{row.config}")
        assert tiny(replace(short.network, read_outs=False, seed=0)) == tiny(
            replace(full.network, amvur=replace(full.network.amvur, stages=1))
        )
        assert replace(short.loss, side=full.loss.side) == full.loss
        assert short.data[0].targets == full.data[0].targets
        assert (short.freeze_backbone, short.seed, short.network.seed) == (not row.end_to_end, 2, 2)


def test_at_full_size_every_row_is_the_paper_s_own(paper_tables):
    options = paper_tables.command.options_of(["OUT", "--full-size", "--steps", "500"])
    assert options.changed == " --steps 500 --full-size"
    folders = set()
    for row in paper_tables.rows.ROWS:
        found = paper_tables.training.configuration(row, options, 2)
        full = read_train_config(f"paper/{row.config}")
        assert replace(found.network, seed=full.network.seed) == full.network
        assert replace(found.loss, side=full.loss.side) == full.loss
        assert (found.batch_size, found.optimizer.learning_rate) == (
            full.batch_size,
            full.optimizer.learning_rate,
        )
        assert not (found.freeze_backbone or found.freeze_normalisation or found.backbone_from)
        assert found.steps == 500 and found.data[0].targets == full.data[0].targets
        folders.add(paper_tables.training.folder_of(row, options, 0))
    assert len(folders) == len(TERMS)  # Table 6 and the check of Table 5 have no runs of their own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokens", "49", "--device", "cpu"], "--tokens has no effect with --full-size"),
        (["--read-outs", "--device", "cpu"], "--read-outs has no effect with --full-size"),
        (["--short", "--width", "64", "--device", "cpu"], "--width has no effect with --full-size"),
        ([], "needs a GPU, and there is none"),
    ],
)
def test_full_size_refuses_options_without_effect_and_machines_without_a_gpu(
    paper_tables, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    options = paper_tables.command.options_of([str(tmp_path), "--full-size", *arguments])
    with pytest.raises(UserError, match=message):
        paper_tables.command.make(options)


def test_settings_add_up_and_the_page_shows_what_rows_trained_with(paper_tables):
    command = ["OUT", "--set", "validation.cool_down=0", "--set", "loss.shape=0.2", "steps=70"]
    options = paper_tables.command.options_of(command)
    assert options.changed == " --set validation.cool_down=0 loss.shape=0.2 steps=70"
    for row in paper_tables.rows.ROWS:
        config = paper_tables.training.configuration(row, options, 0)
        assert (config.loss.shape, config.steps, config.validation.cool_down) == (0.2, 70, 0)
    text = paper_tables.page._introduction(options)
    assert "for up to 70 steps" in text.replace("\n", " ") and "the learning rate falls" not in text


def test_rows_that_are_one_run_have_one_number_in_the_paper(paper_tables):
    of_ho3d_v2: dict[str, tuple[float, ...]] = {}
    errors = [paper_tables.rows.WITH_AUC.index(name) for name in paper_tables.rows.ERRORS]
    for row in paper_tables.rows.ROWS:
        if row.table in ("1", "3", "4", "5"):
            four = tuple(row.paper[k] for k in errors) if row.table == "1" else row.paper
            assert of_ho3d_v2.setdefault(row.run, four) == four


def test_the_paper_s_own_numbers_bear_out_its_conclusions(paper_tables):
    """Each claim has the right sign and rows: the paper's numbers satisfy it."""
    checked = 0
    for claim in paper_tables.claims.CLAIMS:
        table = next(one for one in paper_tables.rows.TABLES if one.name == claim.table)
        rows = {row.run: row for row in paper_tables.rows.ROWS if row.paper}
        if not set(claim.weights) <= set(rows):
            assert claim.table == "6"  # without numbers
            continue
        total = 0.0
        for run, weight in claim.weights.items():
            measures = next(one for one in paper_tables.rows.TABLES if one.name == rows[run].table).measures
            total += weight * rows[run].paper[measures.index(claim.measure)]
        assert total > 0, (claim, table)
        checked += 1
    assert checked > 20


def write_photos(folder: Path, columns: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "photos.parquet")
    return folder


def test_intervals_are_those_of_a_normal_mean(paper_tables, tmp_path):
    """For one seed the bootstrap of a mean is the textbook's: 1.96 std over the root of n."""
    errors = np.random.default_rng(0).normal(10, 3, 400)
    runs = paper_tables.statistics.Runs({"one": [write_photos(tmp_path / "a", {"pa_mpjpe_mm": errors})]})
    found = runs.interval({"one": 1.0}, "PA-MPJPE")
    assert found.mean == pytest.approx(errors.mean())
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * errors.std() / 20, rel=0.08)


def test_runs_are_compared_photo_by_photo(paper_tables, tmp_path):
    """Photos differ by far more than the runs do, so only paired draws can tell them apart."""
    errors = np.random.default_rng(0).normal(50, 30, 200)
    folders = {
        name: [write_photos(tmp_path / name, {"pa_mpjpe_mm": errors + more})]
        for name, more in (("one", 0.0), ("worse", 0.5))
    }
    runs = paper_tables.statistics.Runs(folders)
    verdict = paper_tables.statistics.verdict
    gain = runs.interval({"worse": 1.0, "one": -1.0}, "PA-MPJPE")
    assert (gain.low, gain.high) == pytest.approx((0.5, 0.5)) and verdict(gain) == "holds"
    assert verdict(runs.interval({"one": 1.0, "worse": -1.0}, "PA-MPJPE")) == "does not hold"


def test_seeds_that_disagree_leave_a_comparison_open(paper_tables, tmp_path):
    errors = np.full(100, 10.0)
    seeds = [write_photos(tmp_path / str(k), {"pa_mpjpe_mm": errors + k}) for k in (-1, 0, 1)]
    base = [write_photos(tmp_path / "base", {"pa_mpjpe_mm": errors})]
    runs = paper_tables.statistics.Runs({"seeds": seeds, "base": base})
    assert (
        paper_tables.statistics.verdict(runs.interval({"seeds": 1.0, "base": -1.0}, "PA-MPJPE"))
        == "too close"
    )


def test_sparsification_of_a_perfect_and_of_a_constant_std(paper_tables, tmp_path):
    errors = np.linspace(1, 20, 200)
    folders = {
        name: [write_photos(tmp_path / name, {"mpjpe_mm": errors, "joint_std_mm": std})]
        for name, std in (("perfect", errors), ("constant", np.full(200, 17.3)))
    }
    runs = paper_tables.statistics.Runs(folders)
    assert runs.ause("perfect", "MPJPE").mean == pytest.approx(0)
    # Of evenly spread errors the best share s has a mean of about (1 + 19 s / 2) / 10.5, so chance scores 1 minus its
    # mean over s.
    assert runs.ause("constant", "MPJPE").mean == pytest.approx(1 - (1 + 19 / 4) / 10.5, abs=0.01)
    half = paper_tables.statistics.KEPT.index(0.5)
    assert runs.sparsified("perfect", "MPJPE")[half] == pytest.approx((1 + 19 / 4) / 10.5, abs=0.01)
    assert runs.sparsified("constant", "MPJPE") == pytest.approx(1)
    assert runs.sparsified("constant", "MPJPE", "MPJPE") == pytest.approx(runs.sparsified("perfect", "MPJPE"))


def small_options(paper_tables, out, *more):
    """Sizes that take seconds: a row is two steps, measured twice."""
    sizes = "--hands 16 --validation 8 --photos 8 --seeds 1 --steps 2 --every 1 --crop-px 64 --tokens 32"
    arguments = [str(out), *sizes.split(), "--jobs", "1", "--device", "cpu", *more]
    return paper_tables.command.options_of(arguments)


def test_a_row_of_other_settings_is_refused_and_keeps_its_results(paper_tables, tmp_path):
    paper_tables.command.make(small_options(paper_tables, tmp_path, "--rows", "supervised-prior-net"))
    results = tmp_path / "runs/supervised-prior-net/seed-0/results/metrics.json"
    held = results.read_bytes()
    with pytest.raises(UserError, match="other settings"):
        options = small_options(
            paper_tables, tmp_path, "--rows", "supervised-prior-net", "--set", "loss.kl=3"
        )
        paper_tables.command.make(options)
    assert results.read_bytes() == held


def test_rows_that_sample_maps_find_them_in_the_cache(paper_tables, tmp_path):
    arguments = ["--rows", "table5-b", "--set", "network.amvur.start=prior_net", "network.amvur.aligned=true"]
    options = small_options(paper_tables, tmp_path, *arguments)
    paper_tables.command.make(options)
    assert (tmp_path / "runs/table5-b/seed-0/results/metrics.json").is_file()
    info = read_cache_info(str(paper_tables.training.caches(options)["hands"]))
    assert (
        info.features > 1152 + 64 // 8 * 64 // 8
    )  # the global feature, and more than the map of stride 8 has cells


def test_a_row_stands_still_only_before_its_cool_down(paper_tables, tmp_path):
    options = paper_tables.command.options_of([str(tmp_path), "--steps", "1200", "--every", "100"])
    row = paper_tables.rows.ROWS[0]
    log = paper_tables.training.folder_of(row, options, 0) / "run/validation.jsonl"
    log.parent.mkdir(parents=True)

    def end(*errors):
        log.write_text(
            "".join(json.dumps({"step": 100 * k, "error": error}) + "\n" for k, error in enumerate(errors, 1))
        )
        return paper_tables.training.ending(row, options, 0)

    falling = [20 - k for k in range(10)]
    assert end(*falling, 11, 11) == (1200, False)
    # Without a gain up to step 1,000, where the cool-down of 200 steps starts in any case.
    assert end(*falling[:7], 14, 14, 14, 13, 13) == (1200, True)
    assert end(*falling[:8], 13, 13, 13, 13) == (1200, False)
    assert end(*falling[:3], 18, 18, 18, 17, 17) == (800, True)


def test_rows_end_to_end_are_measured_a_dozen_times(paper_tables):
    options = paper_tables.command.options_of(["OUT"])
    for row in paper_tables.rows.ROWS:
        config = paper_tables.training.configuration(row, options, 0)
        assert config.steps // config.validation.every == (12 if row.end_to_end else 24)


def test_sizes_on_the_command_line_precede_those_of_short(paper_tables):
    options = paper_tables.command.options_of(["OUT", "--short", "--steps", "7", "--rows", "weak"])
    assert (options.steps, options.rows, options.hands) == (7, ["weak"], 600)
    assert options.changed == " --steps 7 --short"


@pytest.mark.parametrize("text", ["0", "-3", "many"])
def test_a_size_that_is_no_count_is_one_line(paper_tables, capsys, text):
    with pytest.raises(SystemExit):
        paper_tables.command.options_of(["OUT", f"--steps={text}"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.endswith(f"argument --steps: '{text}' is not a number of at least 1")


def test_a_killed_command_repeats_no_finished_row(paper_tables, tmp_path, monkeypatch):
    arguments = [str(tmp_path), "--short", "--jobs", "1", "--device", "cpu"]
    options = paper_tables.command.options_of(arguments)
    small = {"hands": 16, "validation": 8, "photos": 8, "steps": 2, "every": 2, "crop_px": 64, "tokens": 32}
    for name, value in small.items():
        setattr(options, name, value)
    options.rows = ["supervised-prior-net", "supervised-amvur"]
    began = []
    whole = paper_tables.training.train_and_evaluate

    def stopped(row, *rest):
        began.append(row.run)
        if len(began) == 2:
            raise KeyboardInterrupt
        return whole(row, *rest)

    monkeypatch.setattr(paper_tables.training, "train_and_evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        paper_tables.command.make(options)
    paper_tables.command.make(options)
    assert began == ["supervised-prior-net", "supervised-amvur", "supervised-amvur"]
    text = (tmp_path / "ablations.md").read_text()
    gains = [line for line in text.splitlines() if line.startswith("| supervised: AMVUR beats prior-net")]
    assert len(gains) == 2 and all("not run" not in line for line in gains)
    assert "| weak: final | `paper/weak` | 10.3 / not run |" in text
    assert "37 have not run" in text  # two compare AMVUR with prior-net
    assert_wrapped(text)
    (shown,) = re.findall(r"!\[.*\]\((.*)\)", text)
    with Image.open(tmp_path / shown) as picture:
        assert picture.format == "PNG" and picture.height > picture.width > 400  # supervised alone


def assert_wrapped(text):
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", " "))) <= 100


def test_a_full_size_run_fills_table_6_and_leaves_out_the_check_of_the_small_one(paper_tables, tmp_path):
    options = paper_tables.command.options_of(
        [str(tmp_path), "--full-size", "--short", "--jobs", "1", "--device", "cpu", "--set"]
        # ImageNet's weights would be fetched; the layers are those of the paper, but fewer.
        + [
            "network.imagenet=false",
            "network.amvur.width=64",
            "network.amvur.blocks=1",
            "network.texture.tokens=16",
        ]
    )
    small = {"hands": 4, "validation": 2, "photos": 3, "steps": 1, "every": 1, "crop_px": 64, "batch_size": 2}
    for name, value in small.items():
        setattr(options, name, value)
    options.rows = ["supervised-end-to-end", "table6-hand-end-to-end"]
    paper_tables.command.make(options)
    assert sorted(folder.name for folder in (tmp_path / "runs").iterdir()) == [
        "supervised",
        "table6-hand",
    ]
    text = (tmp_path / "ablations.md").read_text()
    assert "photos: compare rows" in text and "Backbone and heads train together." in text
    assert "network.imagenet=false" in text and "Table 5, end to end" not in text
    (row,) = [line for line in text.splitlines() if line.startswith("| HAND: global feature")]
    assert "not run" not in row
    assert "31 have not run" in text  # of 33; Table 6 has two
    assert_wrapped(text)
