"""Compare our own skinning with `smplx`, and check that only MANO needs `smplx`."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from torch import Tensor

from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.hand.layer import HandLayer
from annotator.hand.skinning import Skinning
from annotator.hand.smplx_skinning import SmplxSkinning
from tests.support.mano_file import write_mano_file
from tests.trainer.test_train_cli import TINY

ROOT = Path(__file__).parents[2]
MM = 1e-3  # metres


@pytest.fixture(scope="module")
def mano_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mano") / "MANO_RIGHT.pkl"
    write_mano_file(path)
    return path


@pytest.fixture(scope="module", params=["open", "mano"])
def hand(request: pytest.FixtureRequest, mano_path: Path) -> HandModel:
    return load_hand("open") if request.param == "open" else load_hand(f"mano:{mano_path}")


def drawn(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rotvecs = 1.5 * torch.randn(count, 16, 3, generator=generator)
    return roma.rotvec_to_rotmat(rotvecs), 2 * torch.randn(count, 10, generator=generator)


def test_vertices_and_joints_are_those_of_smplx(hand: HandModel) -> None:
    own, other = Skinning(hand), SmplxSkinning(hand)
    assert (own.posedirs is None) == (hand.name == "open")
    for found, expected in zip(own(*drawn(64)), other(*drawn(64)), strict=True):
        assert float((found - expected).norm(dim=-1).max()) < 1e-3 * MM


def test_gradients_are_those_of_smplx(hand: HandModel) -> None:
    # With respect to full matrices: also in directions that are no rotations.
    slopes = []
    for skinning in (Skinning(hand), SmplxSkinning(hand)):
        rotations, betas = (values.requires_grad_() for values in drawn(8))
        vertices, joints = skinning(rotations, betas)
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (points * torch.randn(points.shape, generator=generator)).sum() for points in (vertices, joints)
        )
        slopes.append(torch.autograd.grad(loss, (rotations, betas)))
    for found, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_gradients_are_finite_differences(hand: HandModel) -> None:
    few = np.arange(0, hand.vertex_count, hand.vertex_count // 6)
    cut = {name: getattr(hand, name)[few] for name in ("v_template", "shapedirs", "posedirs", "weights")} | {
        "J_regressor": np.full((16, len(few)), 1 / len(few), np.float32)
    }
    small = replace(
        hand,
        **cut,
        faces=np.array([[0, 1, 2]], np.int32),
        joint_regressor=np.zeros((21, len(few)), np.float32),
    )
    rotations, betas = (values.double().requires_grad_() for values in drawn(1))
    assert torch.autograd.gradcheck(Skinning(small).double(), (rotations, betas))


def test_another_order_of_the_joints_is_the_same_hand(hand: HandModel) -> None:
    # The tree may be numbered in any order where parents come first.
    new = np.array([0, 13, 1, 4, 7, 10, 2, 14, 3, 5, 15, 6, 8, 9, 11, 12])  # new joint k is the old new[k]
    old = np.argsort(new)
    parents = hand.kintree_table[0][new]
    posedirs = hand.posedirs.reshape(-1, 3, 15, 9)[:, :, new[1:] - 1].reshape(-1, 3, 135)
    other = replace(
        hand,
        kintree_table=np.stack([np.where(parents < 0, -1, old[parents]), np.arange(16)]),
        J_regressor=hand.J_regressor[new],
        weights=hand.weights[:, new],
        posedirs=posedirs,
    )
    rotations, betas = drawn(4)
    vertices, joints = Skinning(hand)(rotations, betas)
    same, reordered = Skinning(other)(rotations[:, new], betas)
    torch.testing.assert_close(same, vertices, atol=1e-3 * MM, rtol=0)
    torch.testing.assert_close(reordered[:, old], joints, atol=1e-3 * MM, rtol=0)


def test_only_mano_is_posed_by_smplx(mano_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mano = load_hand(f"mano:{mano_path}")
    assert isinstance(HandLayer(mano).skinning, SmplxSkinning)
    assert isinstance(HandLayer(load_hand("open")).skinning, Skinning)
    monkeypatch.setitem(sys.modules, "smplx", None)  # as if it were not installed
    HandLayer(load_hand("open"))
    for needs in (lambda: HandLayer(mano), lambda: load_hand(f"mano:{mano_path}")):
        with pytest.raises(UserError, match=r"pip install 'amvur-annotator\[mano\]'") as refused:
            needs()
        assert "\n" not in str(refused.value)


@pytest.mark.slow
def test_drawing_labelling_and_training_never_import_smplx(tmp_path: Path, mano_path: Path) -> None:
    """Run new processes, also in Ray, with a `smplx` on their path that reports its import."""
    trap, imported = tmp_path / "trap", tmp_path / "imported"
    trap.mkdir()
    (trap / "smplx.py").write_text(
        f"open({str(imported)!r}, 'w').close()\nraise ImportError('smplx is not to be imported')\n"
    )
    (tmp_path / "tiny.yaml").write_text(TINY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(trap), str(ROOT))), "OMP_NUM_THREADS": "1"}

    def amvur(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli", *command.split()],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    training = "train tiny.yaml run --local --data synth --set steps=1"
    for command in ("demo drawn --count 2 --no-show", training):
        done = amvur(command)
        assert done.returncode == 0, done.stderr
    assert not imported.exists()
    refused = amvur(f"train tiny.yaml other --local --data synth --hand mano:{mano_path}")
    assert refused.returncode == 2 and "amvur-annotator[mano]" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert imported.exists()
