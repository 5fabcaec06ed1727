"""train, evaluate, calibrate and annotate in sequence, through the command line."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

import annotator
from tests.commands.test_cli import run
from tests.support.example_files import write_stick_hands

pytestmark = pytest.mark.slow

TINY = """
network:
  backbone: efficientnet_lite0
  crop_px: 48
  amvur: {tokens: 32, width: 32}
  texture: {tokens: 32, width: 16, raster_px: 32}
batch_size: 8
steps: 6
loaders: 0
checkpoint_every: 2
log_every: 1
pictures_every: 100
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A configuration, examples, and the same photos as files."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.yaml").write_text(TINY)
    (folder / "misspelt.yaml").write_text(TINY.replace("crop_px", "crop_pixels"))
    write_stick_hands(folder / "examples", 48)
    (folder / "photos").mkdir()
    (folder / "empty").mkdir()
    for row in pq.read_table(folder / "examples/data", columns=["image_id", "image"]).to_pylist()[:12]:
        (folder / "photos" / f"{row['image_id']}.png").write_bytes(row["image"])
    return folder


@pytest.fixture(scope="module")
def amvur(place):
    """Run a command in the folder; return its exit code and output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)

        def command_line(capsys, command: str) -> tuple[int, str, str]:
            return run(patch, capsys, *command.split())

        yield command_line


def test_a_run_is_trained_evaluated_calibrated_and_used(amvur, place, local_ray, capsys):
    code, printed, _ = amvur(capsys, "train tiny.yaml run --data examples")
    assert code == 0 and printed == "trained 6 steps; the model is run/model.safetensors\n"

    code, printed, _ = amvur(capsys, "evaluate run/model.safetensors examples results")
    lines = [line.split() for line in printed.splitlines()]
    assert code == 0 and lines[0] == ["photos", "48"] and printed.endswith("results in results\n")
    assert any(line[0] == "PA-MPJPE" for line in lines)
    before = json.loads((place / "results/metrics.json").read_text())
    assert before["calibration"]["fitted_on"] == "" and before["trained_steps"] == 6
    assert pq.read_table(place / "results/photos.parquet").num_rows == 48

    code, printed, _ = amvur(capsys, "calibrate run/model.safetensors examples calibrated.safetensors")
    assert code == 0 and "calibrated on examples, 48 photos" in printed
    laws = {}
    for line in printed.splitlines()[:5]:
        name, _, law = line.partition("  std = ")
        scale, _, exponent = law.partition(" x std ^ ")
        laws[name.strip()] = float(scale), float(exponent)
    kinds3d = [f"{kind}, {axes}" for kind in ("vertices", "3D joints") for axes in ("image plane", "depth")]
    assert list(laws) == [*kinds3d, "2D joints"]

    # On the photos of the calibration, 68 % of the coordinates now lie within one std.
    code, _, _ = amvur(capsys, "evaluate calibrated.safetensors examples again")
    after = json.loads((place / "again/metrics.json").read_text())
    assert after["joints3d"] == before["joints3d"] | {"per_joint_mm": after["joints3d"]["per_joint_mm"]}
    kinds = "joints3d", "joints2d"
    off = [[abs(r["uncertainty"][k]["coverage"]["68%"] - 0.68) for k in kinds] for r in (before, after)]
    assert max(off[1]) < 0.1 and max(off[1]) < max(off[0])

    code, printed, _ = amvur(
        capsys, "annotate photos labels --checkpoint calibrated.safetensors --side right"
    )
    assert code == 0 and "ok  12" in printed and "untrained" not in printed
    (file,) = (place / "labels/data").iterdir()
    facts = json.loads(pq.read_schema(file).metadata[b"amvur"])
    assert facts["calibration"]["fitted_on"].startswith("examples, 48 photos") and facts["trained_steps"] == 6

    labels = sorted(pq.read_table(file).to_pylist(), key=lambda row: row["image_id"])
    paths = [str(place / "photos" / row["image_id"]) for row in labels]
    plain = annotator.load(str(place / "run/model.safetensors"), device="cpu").predict(paths, side="right")
    for column, kind, step in (
        ("joints3d_std_mm", "3D joints", 1 / 16),
        ("vertices_std_mm", "vertices", 1 / 8),
    ):
        plane, depth = laws[f"{kind}, image plane"], laws[f"{kind}, depth"]
        scale, exponent = np.transpose([plane, plane, depth])
        labelled = np.array([row[column] for row in labels])
        raw = np.array([row[column] for row in plain])
        expected = scale * raw**exponent
        # The laws were printed with four digits and three decimals, and the raw std was rounded.
        slack = step + expected * (0.003 + exponent * step / np.maximum(raw, step))
        assert (np.abs(labelled - expected) <= slack).all()
        assert np.abs(labelled - raw).mean() > 1


def test_a_finished_run_takes_no_step_and_resumes_with_more_steps(amvur, place, capsys):
    amvur(capsys, "train tiny.yaml run --data examples")
    before = (place / "run/model.safetensors").read_bytes()
    code, printed, _ = amvur(capsys, "train tiny.yaml run --data examples")
    assert code == 0 and printed.startswith("trained 6 steps")
    assert (place / "run/model.safetensors").read_bytes() == before
    code, printed, _ = amvur(capsys, "train tiny.yaml run --data examples --set steps=7")
    assert code == 0 and printed.startswith("trained 7 steps")
    with safe_open(place / "run/model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["amvur"])["trained_steps"] == 7


def test_drawn_hands_and_photos_share_a_batch(amvur, place, capsys):
    code, printed, _ = amvur(capsys, "train tiny.yaml mixed --data examples --data synth --set steps=2")
    assert code == 0 and printed.startswith("trained 2 steps")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train nonesuch OUT", "no configuration 'nonesuch': give a path to a .yaml file, or one of "),
        ("train nonesuch.yaml OUT", "no configuration 'nonesuch.yaml'"),
        ("train misspelt.yaml OUT", "unknown key 'crop_pixels'; did you mean 'crop_px'?"),
        ("train tiny.yaml OUT --set stepz=9", "unknown key 'stepz'; did you mean 'steps'?"),
        ("train tiny.yaml OUT --set loss.textur=9", "unknown key 'textur'; did you mean 'texture'?"),
        ("train tiny.yaml OUT --set steps=many", "steps is 'many', must be int"),
        ("train tiny.yaml OUT --set steps", "give KEY=VALUE"),
        ("train tiny.yaml OUT --set batch_size=0", "batch_size is 0, must be at least 1"),
        ("train tiny.yaml OUT --data empty", "'empty' holds no examples (data/*.parquet): make them with"),
        ("train tiny.yaml OUT --data nowhere", "'nowhere' holds no examples"),
        ("train tiny.yaml OUT --data examples --hand clay", "no hand model 'clay'"),
        ("train tiny.yaml OUT --data examples --local --workers 2", "--local runs one process"),
        ("train tiny.yaml OUT --data examples --device cpu", "--device needs --local"),
        ("train tiny.yaml tiny.yaml --data examples", "can't write to 'tiny.yaml'"),
        ("train tiny.yaml run --data examples --set batch_size=4", "holds a run with other settings (batch_size)"),
        ("train tiny.yaml run --data empty", "'empty' holds no examples"),
        ("evaluate nowhere.safetensors examples OUT", "there is no such file"),
        ("evaluate run examples OUT", "give a .safetensors file"),
        ("evaluate run/model.safetensors empty OUT", "'empty' holds no examples"),
        ("evaluate run/model.safetensors examples OUT --first 48", "has no examples from number 48 on"),
        ("evaluate run/model.safetensors examples OUT --submission freihand", "FreiHAND compares MANO's 778 vertices"),
        ("evaluate run/model.safetensors examples OUT --submission kaggle", "no benchmark 'kaggle': give one of"),
        ("calibrate run/model.safetensors examples OUT.safetensors --count 19", "has 19 photos, too few to"),
        ("calibrate run/model.safetensors examples tiny.yaml/a.safetensors", "can't write to 'tiny.yaml'"),
        ("calibrate run/model.safetensors examples OUT", "a name that ends in .safetensors"),
        ("convert examples OUT", "is not a source of examples: give one of freihand:PATH"),
        ("convert synth:nowhere OUT", "nowhere/truth.parquet' does not exist"),
        ("convert labels:empty OUT", "empty' holds no labels"),
        ("convert labels:empty examples", "'examples' is not empty"),
        ("convert labels:empty OUT --split test", "split is 'test', may be train, evaluation"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_leaves_nothing_behind(command, words, amvur, place, capsys):
    if not (place / "run").exists():
        amvur(capsys, "train tiny.yaml run --data examples")
    code, printed, error = amvur(capsys, command)
    assert code == 2 and words in error
    assert error.startswith("amvur: ") and error.count("\n") == 1 and printed == ""
    assert not [path for path in place.rglob("*") if path.is_file() and "OUT" in str(path)]
