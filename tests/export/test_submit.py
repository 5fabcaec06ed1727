import dataclasses
import io
import json
import zipfile

import numpy as np
import pytest

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.model import JOINT_NAMES
from tests.support.dataset_fixtures import HO3D_TIPS
from tests.support.mano_file import write_mano_file
from trainer.evaluation.submit import BENCHMARKS, check_submission, write_submission

HO3D_NAMES = [
    "wrist",
    *(f"{finger}_{k}" for finger in ("index", "middle", "little", "ring", "thumb") for k in (1, 2, 3)),
    *(f"{finger}_tip" for finger in ("thumb", "index", "middle", "ring", "little")),
]


def hands(count):
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(count, 21, 3)).astype(np.float32) * 60
    joints[:, 0] = 0
    return (
        joints,
        rng.normal(size=(count, 778, 3)).astype(np.float32) * 60,
        rng.normal(size=(count, 3)) * 50 + [0, 0, 500],
    )


def submitted(tmp_path, name, count=3):
    benchmark = dataclasses.replace(BENCHMARKS[name], entries=count)
    joints, vertices, wrist = hands(count)
    write_submission(str(tmp_path), benchmark, joints, vertices, wrist)
    text = (tmp_path / "pred.json").read_bytes()
    with zipfile.ZipFile(io.BytesIO((tmp_path / "pred.zip").read_bytes())) as archive:
        assert archive.namelist() == ["pred.json"]
        assert archive.read("pred.json") == text
    xyz, verts = json.loads(text)
    return np.array(xyz), np.array(verts), joints + wrist[:, None], vertices + wrist[:, None]


def test_freihand_wants_metres_before_the_camera(tmp_path):
    xyz, verts, joints, vertices = submitted(tmp_path, "freihand")
    np.testing.assert_allclose(xyz, joints / 1000, atol=1e-6)
    np.testing.assert_allclose(verts, vertices / 1000, atol=1e-6)


@pytest.mark.parametrize("name", ["ho3d_v2", "ho3d_v3"])
def test_ho3d_wants_its_own_joint_order_and_opengl_axes(tmp_path, name):
    xyz, verts, joints, vertices = submitted(tmp_path, name)
    flip = np.array([1, -1, -1])
    for index, joint in enumerate(HO3D_NAMES[:16]):
        np.testing.assert_allclose(
            xyz[:, index], joints[:, JOINT_NAMES.index(joint)] / 1000 * flip, atol=1e-6
        )
    np.testing.assert_allclose(xyz[:, 16:], vertices[:, HO3D_TIPS] / 1000 * flip, atol=1e-6)
    np.testing.assert_allclose(verts, vertices / 1000 * flip, atol=1e-6)
    assert (verts[..., 2] < 0).all()  # in front of an OpenGL camera


def test_the_same_hands_give_the_same_files(tmp_path):
    for folder in ("a", "b"):
        submitted(tmp_path / folder, "ho3d_v2")
    assert (tmp_path / "a/pred.zip").read_bytes() == (tmp_path / "b/pred.zip").read_bytes()


def test_only_manos_vertices_are_submitted(tmp_path):
    path = tmp_path / "MANO_RIGHT.pkl"
    write_mano_file(path)
    mano = load_hand(f"mano:{path}")
    assert check_submission("ho3d_v2", mano) is BENCHMARKS["ho3d_v2"]
    with pytest.raises(
        UserError, match="HO3D v2 compares MANO's 778 vertices, but hand model open-"
    ) as refused:
        check_submission("ho3d_v2", load_hand("open"))
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="give one of freihand, ho3d_v2, ho3d_v3"):
        check_submission("ho3d", mano)


@pytest.mark.parametrize(("name", "entries"), [("freihand", 3960), ("ho3d_v2", 11524), ("ho3d_v3", 20137)])
def test_a_wrong_count_is_named(tmp_path, name, entries):
    with pytest.raises(UserError, match=rf"expects {entries} hands in its list's order, found 2"):
        write_submission(str(tmp_path), BENCHMARKS[name], *hands(2))
    assert not list(tmp_path.iterdir())


def test_a_hand_that_is_not_a_number_is_refused(tmp_path):
    joints, vertices, wrist = hands(3)
    wrist[2, 1] = np.nan
    with pytest.raises(UserError, match="hand 2 of the submission to FreiHAND is not a number"):
        write_submission(
            str(tmp_path), dataclasses.replace(BENCHMARKS["freihand"], entries=3), joints, vertices, wrist
        )
    assert not list(tmp_path.iterdir())
