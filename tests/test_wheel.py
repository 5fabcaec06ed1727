"""The built wheel, outside the checkout, does what the checkout does."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

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
    recipes = ("build_open_hand.py", "draw_open_hand.py", "simplify_mesh.py")
    assert not [path for path in installed.rglob("*.py") if path.name in recipes]


def test_it_predicts_with_the_weights_that_come_with_it(installed, tmp_path):
    code = (
        "import numpy as np, annotator\n"
        f"assert annotator.__file__.startswith({str(installed)!r}), annotator.__file__\n"
        "predictor = annotator.load(device='cpu')\n"
        "label = predictor.predict([np.zeros((50, 50, 3), np.uint8)])[0]\n"
        "info = predictor.checkpoint.info\n"
        "print(label['vertices_mm'].shape, info.network.backbone, info.trained)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert shown.stdout.split() == ["(800,", "3)", "hand_landmark", "True"], shown.stderr
