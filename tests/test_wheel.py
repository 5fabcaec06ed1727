"""The built wheel, outside the checkout, does what the checkout does."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = out.glob("amvur_annotator-*.whl")
    site = out / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_it_holds_all_configurations_the_hand_and_nothing_else(installed):
    shipped = {p.relative_to(installed / "annotator" / "configs") for p in installed.rglob("*.yaml")}
    assert (
        shipped == {p.relative_to(ROOT / "configs") for p in (ROOT / "configs").rglob("*.yaml")} and shipped
    )
    assert (installed / "annotator" / "hand" / "open_hand.npz").exists()
    assert sorted(p.name for p in installed.iterdir() if not p.name.endswith(".dist-info")) == [
        "annotator",
        "cli.py",
        "trainer",
    ]
    assert list(installed.glob("*.dist-info/licenses/LICENSE"))


def test_it_loads_configurations_by_name_and_predicts(installed, tmp_path):
    code = (
        "import numpy as np, annotator\n"
        "from annotator.model.checkpoint import load_checkpoint\n"
        f"assert annotator.__file__.startswith({str(installed)!r}), annotator.__file__\n"
        "label = annotator.load('untrained:default', device='cpu').predict([np.zeros((50, 50, 3), np.uint8)])[0]\n"
        "print(label['vertices_mm'].shape, load_checkpoint('untrained:default').info.network.backbone)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert shown.stdout.split() == ["(800,", "3)", "efficientnet_lite0"], shown.stderr
