"""Every shipped configuration builds; the rows of the paper's tables train on what they name."""

import functools
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import roma
import torch

from annotator.config import NetworkConfig, config_folder, read_config
from annotator.hand import load_hand
from annotator.hand.model import HandModel
from annotator.model.network import Network
from trainer.batch import Batch, withhold
from trainer.config import TrainConfig, read_train_config
from trainer.objective import Objective

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
    """Four flat hands, each turned a little further, of which everything is known."""
    turns = roma.rotvec_to_rotmat(torch.tensor([[0.0, 0.0, 0.5 * i] for i in range(4)]))
    vertices = torch.from_numpy(hand().v_template) * 1000 @ turns.mT
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


@pytest.fixture
def ablations(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("ablations")


def test_the_benchmark_runs_every_row_and_changes_only_its_size(ablations):
    assert {row.config for row in ablations.ROWS} == set(TERMS)
    assert {row.table for row in ablations.ROWS} == {table.name for table in ablations.TABLES}
    options = ablations._parser().parse_args(["OUT"])
    for row in ablations.ROWS:
        short, full = ablations.configuration(row, options), read_train_config(f"paper/{row.config}")
        assert tiny(short.network) == tiny(full.network) or row.settings
        assert short.loss == full.loss or row.settings
        assert short.data[0].targets == full.data[0].targets and short.data[0].source == "synth"
        assert (short.steps, short.network.crop_px, short.batch_size) == (options.steps, 64, 32)


def test_rows_that_are_one_run_have_one_number_in_the_paper(ablations):
    of_ho3d_v2 = {}
    for row in ablations.ROWS:
        if row.table in ("1", "3", "4", "5"):
            assert of_ho3d_v2.setdefault(row.run, row.paper) == row.paper
