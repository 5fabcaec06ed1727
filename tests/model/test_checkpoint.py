"""Checkpoints: they load as they were saved, and invalid files are refused in one line."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.torch
import torch

import annotator
from annotator import UserError
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.model.checkpoint import load_checkpoint, save_checkpoint, untrained
from annotator.quality.calibration import AxisLaws, Calibration, PowerLaw
from tests.support.mano_file import write_mano_file


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    checkpoint = untrained("default")
    info = dataclasses.replace(
        checkpoint.info,
        trained_steps=7,
        calibration=Calibration(
            joints3d=AxisLaws(PowerLaw(1.5, 0.8), PowerLaw(4.5, 0.9)),
            joint_error=PowerLaw(0.4, 1.2),
            fitted_on="a set",
        ),
    )
    path = tmp_path_factory.mktemp("checkpoint") / "a b.safetensors"
    save_checkpoint(dataclasses.replace(checkpoint, info=info), path)
    return path, info, checkpoint


def rewritten(path, tmp_path, **header_changes):
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["amvur"]) | header_changes
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    out = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(tensors, out, {"amvur": json.dumps(header)})
    return out


def test_weights_configuration_and_calibration_come_back(saved):
    path, info, original = saved
    loaded = load_checkpoint(str(path))
    assert loaded.info == info and loaded.info.trained
    assert loaded.hand.id == original.hand.id and loaded.id != original.id
    for name, tensor in original.network.state_dict().items():
        torch.testing.assert_close(loaded.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_header_with_one_law_for_all_axes_keeps_its_meaning(saved, tmp_path):
    old = {
        "vertices": {"scale": 2.4, "exponent": 0.95},
        "joints3d": {"scale": 3.4, "exponent": 0.79},
        "joints2d": {"scale": 0.99, "exponent": 1.05},
        "fitted_on": "synth, 1000 photos: joints3d, vertices, joints2d",
    }
    found = load_checkpoint(str(rewritten(saved[0], tmp_path, calibration=old))).info.calibration
    std = np.random.default_rng(0).gamma(4, 3, (5, 21, 3)).astype(np.float32)
    for law, name in (
        (found.vertices, "vertices"),
        (found.joints3d, "joints3d"),
        (found.joints2d, "joints2d"),
    ):
        np.testing.assert_array_equal(law(std), old[name]["scale"] * std ** old[name]["exponent"])
    # The result of `filter` before this law existed: the mean of a Gaussian.
    np.testing.assert_allclose(
        found.joint_error(std[:, 0, 0]), std[:, 0, 0] * np.sqrt(8 / (3 * np.pi)), rtol=1e-6
    )
    assert found.fitted_on == old["fitted_on"] and found.measures_3d
    without = rewritten(
        saved[0], tmp_path, calibration={"joints3d": {"scale": 1.0, "exponent": 1.0}, "fitted_on": ""}
    )
    assert load_checkpoint(str(without)).info.calibration == Calibration()
    for wrong in ({"joints3d": {"width": 1}}, {"joints4d": {}}, []):
        with pytest.raises(UserError, match="changed.safetensors': calibration"):
            load_checkpoint(str(rewritten(saved[0], tmp_path, calibration=wrong)))


def test_the_same_configuration_and_seed_give_the_same_checkpoint():
    a, b = untrained("default"), untrained("default")
    assert a.id == b.id and a.to_bytes() == b.to_bytes() and not a.info.trained


def test_no_hand_model_is_inside(saved):
    path, _, original = saved
    names = set(safetensors.torch.load_file(path))
    v = original.hand.vertex_count
    assert not [n for n, t in safetensors.torch.load_file(path).items() if v in t.shape]
    assert not [n for n in names if "template" in n or "shapedirs" in n or "mano" in n]


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file_is_one_line(saved, tmp_path, keep):
    data = saved[0].read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(data[: int(len(data) * keep)] if isinstance(keep, float) else data[:keep])
    with pytest.raises(UserError, match="damaged or cut off") as error:
        load_checkpoint(str(cut))
    assert "\n" not in str(error.value)


def test_a_newer_version_another_hand_and_another_program_are_named(saved, tmp_path):
    path = saved[0]
    with pytest.raises(UserError, match="format version 99.*install a newer amvur"):
        load_checkpoint(str(rewritten(path, tmp_path, version=99)))
    with pytest.raises(UserError, match="format version 1.*train it again"):
        load_checkpoint(str(rewritten(path, tmp_path, version=1)))
    with pytest.raises(UserError, match="made with hand model open-000000000000"):
        load_checkpoint(str(rewritten(path, tmp_path, hand_id="open-000000000000")))
    with pytest.raises(UserError, match="give it with --hand mano:PATH"):
        load_checkpoint(str(rewritten(path, tmp_path, hand_id="mano-000000000000")))
    with pytest.raises(UserError, match="network: unknown key 'colour'"):
        load_checkpoint(str(rewritten(path, tmp_path, network={"colour": 1})))
    with pytest.raises(UserError, match="don't fit its own configuration"):
        config = dataclasses.asdict(saved[1].network) | {"backbone": "resnet50"}
        load_checkpoint(str(rewritten(path, tmp_path, network=config)))
    stranger = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(3)}, stranger)
    with pytest.raises(UserError, match="not a checkpoint that amvur wrote"):
        load_checkpoint(str(stranger))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.safetensors", "there is no such file"),
        ("weights.pt", "give a .safetensors file"),
        ("untrained:nope", "no configuration 'nope'"),
    ],
)
def test_names_without_a_file_are_refused(name, words):
    with pytest.raises(UserError, match=words):
        load_checkpoint(name)


def test_an_unknown_hand_is_refused():
    with pytest.raises(UserError, match="no hand model 'clay'"):
        load_checkpoint("default", hand="clay")
    assert load_hand("open").vertex_count != 778


def test_half_precision_halves_the_file_and_rounds_weights_alone(lively, tmp_path):
    save_checkpoint(lively.checkpoint, tmp_path / "whole.safetensors")
    save_checkpoint(lively.checkpoint, tmp_path / "half.safetensors", half=True)
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.55 * sizes[1]
    whole = lively.checkpoint.network.state_dict()
    for name, tensor in load_checkpoint(str(tmp_path / "half.safetensors")).network.state_dict().items():
        assert tensor.dtype == whole[name].dtype
        expected = whole[name].half().float() if tensor.ndim > 1 else whole[name]
        assert torch.equal(tensor, expected), name


def test_the_shipped_weights_are_the_open_hands(tmp_path):
    write_mano_file(tmp_path / "MANO_RIGHT.pkl")
    with pytest.raises(UserError, match="the shipped weights are for the open hand: leave out --hand"):
        load_checkpoint("default", f"mano:{tmp_path / 'MANO_RIGHT.pkl'}")


def test_a_mano_hand_uses_the_same_network_and_is_required_to_load(tmp_path):
    write_mano_file(tmp_path / "MANO_RIGHT.pkl")
    hand = f"mano:{tmp_path / 'MANO_RIGHT.pkl'}"
    predictor = annotator.load("untrained:default", hand=hand, device="cpu")
    label = predictor.predict([np.full((40, 40, 3), 128, np.uint8)])[0]
    assert label["vertices_mm"].shape == (778, 3) and label["joints3d_mm"].shape == (21, 3)
    assert chirality(label["joints3d_mm"]) > 0
    path = tmp_path / "mano.safetensors"
    save_checkpoint(predictor.checkpoint, path)
    assert not [t for t in safetensors.torch.load_file(path).values() if 778 in t.shape]
    assert load_checkpoint(str(path), hand).hand.id == predictor.checkpoint.hand.id
    with pytest.raises(UserError, match="give it with --hand mano:PATH"):
        load_checkpoint(str(path))
    with pytest.raises(UserError, match="was made with hand model mano-.*but 'open' is open-"):
        load_checkpoint(str(path), "open")


def test_a_path_with_percent_signs_and_letters_of_any_language_is_taken_as_it_is(tmp_path):
    path = tmp_path / "Modèle 手 %20" / "größe %41#é.safetensors"
    path.parent.mkdir()
    save_checkpoint(untrained("default"), path)
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(path.read_bytes())
    for place in (str(path), path.as_uri(), f"file://{path}"):
        assert load_checkpoint(place).id == load_checkpoint(str(plain)).id
