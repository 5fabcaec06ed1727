"""Rotations and their gradients equal those of SciPy, roma and the matrix exponential, from 0 to 180 degrees."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation

from annotator.rotations import gram_schmidt, rotmat_to_rotvec, rotvec_to_rotmat

#: Radians; 180 degrees have two vectors, so the largest is just below.
ANGLES = [0.0, 1e-9, 1e-6, 1e-3, 0.1, 1.0, 2.0, 3.0, math.pi - 1e-4]


def rotvecs(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Vectors (9, 40, 3) of every angle about random axes, with the coordinate axes among them."""
    axes = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    axes[:3] = torch.eye(3, dtype=torch.float64)
    axes = axes / axes.norm(dim=1, keepdim=True)
    return (torch.tensor(ANGLES, dtype=torch.float64)[:, None, None] * axes).to(dtype)


def test_vectors_and_matrices_equal_scipys() -> None:
    rotations = rotvecs()
    expected = Rotation.from_rotvec(rotations.reshape(-1, 3).numpy())
    matrices = rotvec_to_rotmat(rotations)
    np.testing.assert_allclose(matrices.reshape(-1, 3, 3), expected.as_matrix(), atol=1e-14)
    np.testing.assert_allclose(rotmat_to_rotvec(matrices), rotations, atol=1e-11)


def test_single_precision_stays_within_its_noise() -> None:
    rotations = rotvecs(torch.float32)
    matrices = rotvec_to_rotmat(rotations)
    assert (matrices - rotvec_to_rotmat(rotvecs())).abs().max() < 5e-7
    # At 180 degrees the vector's sign is decided by the last digits.
    assert (rotvec_to_rotmat(rotmat_to_rotvec(matrices)) - matrices).abs().max() < 2e-6


def test_a_rotation_beyond_180_degrees_comes_back_the_short_way() -> None:
    back = rotmat_to_rotvec(rotvec_to_rotmat(torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64)))
    np.testing.assert_allclose(back, [0, 4.0 - math.tau, 0], atol=1e-12)


def test_gradients_equal_those_of_the_matrix_exponential() -> None:
    weights = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (gradient(rotvecs(), weights, function) for function in (rotvec_to_rotmat, exponential))
    np.testing.assert_allclose(found, expected, atol=1e-11)


def exponential(rotations: torch.Tensor) -> torch.Tensor:
    """Return exp of the cross-product matrices of vectors (..., 3)."""
    axes = torch.eye(3, dtype=rotations.dtype).expand(*rotations.shape, 3)
    return torch.matrix_exp(torch.linalg.cross(rotations[..., None, :].expand(axes.shape), axes).mT)


@pytest.mark.parametrize("angle", ANGLES)
def test_gradients_back_to_vectors_equal_romas(angle: float) -> None:
    weights = torch.randn(3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrices = rotvec_to_rotmat(rotvecs()[ANGLES.index(angle)])
    found, expected = (
        gradient(matrices, weights, function) for function in (rotmat_to_rotvec, roma.rotmat_to_rotvec)
    )
    # Roma's small angles are a series, 1e-6 off in its derivative.
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def gradient(points: torch.Tensor, weights: torch.Tensor, function: object) -> torch.Tensor:
    """Return the gradient of a weighted sum of a function's values at points."""
    points = points.clone().requires_grad_()
    assert callable(function)
    (function(points) * weights).sum().backward()
    assert points.grad is not None
    return points.grad


def test_gram_schmidt_keeps_the_first_axis_and_the_plane() -> None:
    columns = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrices = gram_schmidt(columns)
    np.testing.assert_allclose(matrices @ matrices.mT, np.broadcast_to(np.eye(3), (50, 3, 3)), atol=1e-12)
    assert torch.linalg.det(matrices).min() > 0.999
    first = columns[..., 0] / columns[..., 0].norm(dim=1, keepdim=True)
    np.testing.assert_allclose(matrices[..., 0], first, atol=1e-12)
    np.testing.assert_allclose((matrices[..., 2] * columns[..., 1]).sum(1), np.zeros(50), atol=1e-12)
    np.testing.assert_allclose(matrices, roma.special_gramschmidt(columns), atol=1e-12)


@pytest.mark.slow
def test_a_predictor_starts_without_torchs_compiler() -> None:
    code = (
        "import sys, annotator; annotator.load('fast').warm_up()\n"
        "print(sorted({'roma', 'sympy', 'torch._dynamo'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
