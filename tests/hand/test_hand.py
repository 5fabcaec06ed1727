from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import roma
import torch

from annotator.errors import UserError
from annotator.hand import HandModel, anatomy, load_hand, plausible_poses
from annotator.hand.layer import HandLayer
from annotator.hand.model import FREIHAND_FROM_MANO
from annotator.hand.regressor import (
    coarse_tokens,
    farthest_points,
    fit_joint_regressor,
    fit_linear_map,
    residual,
    sample_meshes,
)
from tools.simplify_mesh import collapse_edges

HAND = load_hand("open")
LAYER = HandLayer(HAND)


def rotations(*rotvecs: tuple[int, list[float]]) -> torch.Tensor:
    full = torch.zeros(1, 16, 3)
    for joint, rotvec in rotvecs:
        full[0, joint] = torch.tensor(rotvec)
    return roma.rotvec_to_rotmat(full)


def naive_skinning(hand: HandModel, matrices: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute MANO's formula for one hand: vertices (V, 3) and the 16 joints, metres."""
    shaped = hand.v_template + hand.shapedirs @ betas
    joints = hand.J_regressor @ shaped
    feature = (matrices[1:] - np.eye(3)).reshape(135)
    corrected = shaped + hand.posedirs @ feature
    rotated, placed = [matrices[0]], [joints[0]]
    for joint in range(1, 16):
        parent = hand.kintree_table[0, joint]
        placed.append(placed[parent] + rotated[parent] @ (joints[joint] - joints[parent]))
        rotated.append(rotated[parent] @ matrices[joint])
    vertices = np.zeros_like(shaped, dtype=np.float64)
    for joint in range(16):
        moved = (corrected - joints[joint]) @ rotated[joint].T + placed[joint]
        vertices += hand.weights[:, joint, None] * moved
    return vertices, np.stack(placed)


def test_the_layer_agrees_with_naive_skinning_also_with_pose_correctives():
    generator = np.random.default_rng(0)
    posedirs = generator.normal(scale=1e-3, size=HAND.posedirs.shape).astype(np.float32)
    hand = replace(HAND, posedirs=posedirs)
    matrices = roma.random_rotmat((2, 16)).double()
    betas = generator.normal(size=(2, 10))
    vertices, joints = HandLayer(hand).articulate(matrices.float(), torch.from_numpy(betas).float())
    for k in range(2):
        expected, placed = naive_skinning(hand, matrices[k].numpy(), betas[k])
        np.testing.assert_allclose(vertices[k], expected, atol=2e-6)
        together = np.concatenate([placed, expected[hand.tip_vertices]])[list(FREIHAND_FROM_MANO)]
        np.testing.assert_allclose(joints[k], together, atol=2e-6)


def test_rotating_the_wrist_rotates_the_hand_about_it():
    rotation = torch.tensor([0.3, -1.1, 0.7])
    still, _ = LAYER.articulate(rotations(), torch.zeros(1, 10))
    wrist = torch.from_numpy(HAND.J_regressor @ HAND.v_template)[0]
    rotated, _ = LAYER.articulate(rotations((0, rotation.tolist())), torch.zeros(1, 10))
    expected = (still - wrist) @ roma.rotvec_to_rotmat(rotation).T + wrist
    torch.testing.assert_close(rotated, expected, atol=1e-6, rtol=0)


def test_bending_the_index_by_90_degrees_moves_only_the_index():
    _, still = LAYER.articulate(rotations(), torch.zeros(1, 10))
    _, bent = LAYER.articulate(rotations((1, [0, 0, np.pi / 2])), torch.zeros(1, 10))
    moved = (bent - still)[0].norm(dim=-1)
    assert set(torch.nonzero(moved > 1e-5).flatten().tolist()) == {6, 7, 8}
    # In closed form: x becomes y, and y becomes -x, about the knuckle.
    before, after = still[0, 6] - still[0, 5], bent[0, 6] - bent[0, 5]
    torch.testing.assert_close(after, torch.stack([-before[1], before[0], before[2]]), atol=1e-6, rtol=0)
    assert bent[0, 8, 1] < still[0, 8, 1]


def test_forward_gives_wrist_relative_millimetres():
    matrices, betas = roma.random_rotmat((3, 16)), torch.randn(3, 10)
    vertices_mm, joints_mm = LAYER(matrices, betas)
    assert joints_mm[:, 0].abs().max() < 1e-3
    vertices_m, _ = LAYER.articulate(matrices, betas)
    joints_m = LAYER.joint_regressor @ vertices_m
    torch.testing.assert_close(vertices_mm, 1000 * (vertices_m - joints_m[:, :1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(LAYER.joint_regressor @ vertices_mm, joints_mm, atol=2e-3, rtol=0)


def test_the_layer_has_no_parameters_and_nothing_to_save():
    assert not list(LAYER.parameters())
    assert not LAYER.state_dict()
    assert LAYER.id == HAND.id


def test_gradients_reach_rotations_and_betas():
    matrices, betas = rotations((4, [0.1, 0.2, 0.3])).requires_grad_(), torch.zeros(1, 10, requires_grad=True)
    LAYER(matrices, betas)[0].square().sum().backward()
    assert matrices.grad.abs().sum() > 0
    assert (betas.grad.abs() > 0).all()


def test_the_open_hand_lies_in_the_rest_frame_and_has_a_hand_size():
    joints = anatomy.rest_joints(HAND)
    assert HAND.vertex_count != 778
    assert (joints[[8, 12, 16, 20], 0] < joints[0, 0] - 0.1).all()
    assert joints[4, 2] > joints[8, 2] > joints[12, 2] > joints[16, 2] > joints[20, 2]
    assert (joints[8::4, 1] < joints[5::4, 1]).all()
    assert 0.17 < np.linalg.norm(joints[12] - joints[0]) < 0.19


def test_the_open_hands_mesh_is_one_surface_open_at_the_wrist_and_faces_outwards():
    edges = HAND.faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2)
    directed = {tuple(edge) for edge in edges.tolist()}
    assert len(directed) == len(edges)
    border = [(a, b) for a, b in directed if (b, a) not in directed]
    assert len({a for a, _ in border}) == len(border)
    assert HAND.v_template[[a for a, _ in border], 0].min() > -0.02
    # The mesh is one disc: V - E + F = 1.
    assert HAND.vertex_count - (len(directed) + len(border)) // 2 + len(HAND.faces) == 1
    a, b, c = HAND.v_template[HAND.faces].astype(np.float64).swapaxes(0, 1)
    assert 2e-4 < np.einsum("fi,fi->", a, np.cross(b, c)) / 6 < 6e-4  # cubic metres, like a real hand


def test_the_open_hands_weights_and_regressors_sum_to_one():
    for rows in (HAND.weights, HAND.J_regressor, HAND.joint_regressor):
        np.testing.assert_allclose(rows.sum(axis=1), 1, atol=2e-6)
    assert HAND.weights.min() >= 0


def test_betas_change_the_size_and_not_the_pose():
    for direction in range(10):
        lengths = []
        for end in (-2.5, 2.5):
            _, joints = LAYER.articulate(rotations(), end * torch.eye(10)[None, direction])
            assert (anatomy.joint_axes(joints[0].double().numpy()).rest_angles[1:]).min() > -40
            lengths.append(float((joints[0, 12] - joints[0, 0]).norm()))
        assert 0.12 < min(lengths) <= max(lengths) < 0.26


def test_pose_components_are_orthonormal_and_hold_sampled_poses():
    components = HAND.hands_components.astype(np.float64)
    np.testing.assert_allclose(components @ components.T, np.eye(45), atol=1e-5)
    poses = plausible_poses.sample_poses(anatomy.rest_joints(HAND), 500, np.random.default_rng(9))
    scores = (poses - HAND.hands_mean) @ components.T
    np.testing.assert_allclose(scores[:, :6].std(axis=0), HAND.hands_std[:6], rtol=0.2)


def test_the_joint_regressor_finds_the_articulated_joints_of_fresh_poses():
    vertices, joints = sample_meshes(HAND, 100, seed=123)
    off = residual(HAND.joint_regressor, vertices, joints)
    assert off.mean_mm < 0.25
    assert off.max_mm < 2.0
    rest_only = residual(np.concatenate([HAND.J_regressor] * 2)[list(FREIHAND_FROM_MANO)], vertices, joints)
    assert rest_only.mean_mm > 2 * off.mean_mm


def test_the_stored_regressor_is_what_the_fit_gives():
    regressor, off = fit_joint_regressor(replace(HAND, joint_regressor=np.zeros_like(HAND.joint_regressor)))
    np.testing.assert_allclose(regressor, HAND.joint_regressor, atol=1e-3)
    assert off.mean_mm < 0.25
    assert np.abs(regressor).max() <= 1


def test_a_linear_map_is_recovered_and_stays_on_its_candidates():
    generator = np.random.default_rng(0)
    sources = generator.normal(size=(50, 8, 3))
    truth = np.zeros((2, 8))
    truth[0, [1, 3, 4]], truth[1, [0, 7]] = [0.5, 0.7, -0.2], [0.9, 0.1]
    candidates = [np.array([1, 3, 4, 6]), np.array([0, 2, 7])]
    found = fit_linear_map(sources, np.einsum("kv,nvc->nkc", truth, sources), candidates, noise=1e-6)
    np.testing.assert_allclose(found, truth, atol=1e-5)
    loose = fit_linear_map(sources, generator.normal(size=(50, 2, 3)), candidates, noise=1e3)
    np.testing.assert_allclose(loose[0, candidates[0]], 0.25, atol=1e-4)


def test_coarse_tokens_hold_the_fingertips_and_give_back_the_mesh():
    tokens, upsample = coarse_tokens(HAND, 195)
    assert len(set(tokens.tolist())) == 195
    assert set(HAND.tip_vertices.tolist()) <= set(tokens.tolist())
    np.testing.assert_allclose(upsample.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(upsample[tokens], np.eye(195))
    fresh, _ = sample_meshes(HAND, 50, seed=1)
    assert residual(upsample, fresh[:, tokens], fresh).mean_mm < 0.4
    again, same = coarse_tokens.__wrapped__(HAND, 195)  # without its cache
    np.testing.assert_array_equal(tokens, again)
    np.testing.assert_array_equal(upsample, same)


def test_farthest_points_takes_the_ends_of_a_line_then_its_middle():
    line = np.stack([np.arange(9.0), np.zeros(9), np.zeros(9)], axis=1)
    assert farthest_points(line, 3, [0]).tolist() == [0, 8, 4]


def test_collapsing_a_flat_grid_keeps_it_flat_and_whole():
    n = 12
    points = np.stack(
        [*np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), np.zeros((n, n))], -1
    ).reshape(-1, 3)
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).reshape(-1)
    faces = np.concatenate(
        [np.stack([corner, corner + n, corner + 1], 1), np.stack([corner + 1, corner + n, corner + n + 1], 1)]
    )
    corners = [0, n - 1, n * (n - 1), n * n - 1]
    kept, left = collapse_edges(points, faces, np.zeros((n * n, 1)), 60, keep=corners)
    assert len(kept) == 60
    assert set(corners) <= set(kept.tolist())
    a, b, c = points[kept][left].swapaxes(0, 1)
    doubled = np.cross(b - a, c - a)[:, 2]
    assert (doubled > 0).all()
    np.testing.assert_allclose(doubled.sum() / 2, (n - 1) ** 2)


def test_the_id_changes_with_every_array_but_the_fitted_regressor():
    named = [field.name for field in fields(HandModel) if field.name not in ("name", "joint_regressor")]
    ids = {HAND.id}
    for name in named:
        array = getattr(HAND, name).copy()
        array.flat[0] += 1
        ids.add(replace(HAND, **{name: array}).id)
    assert len(ids) == len(named) + 1
    assert replace(HAND, faces=HAND.faces.copy(), joint_regressor=0 * HAND.joint_regressor).id == HAND.id


def test_a_hand_with_a_wrong_shape_is_refused():
    with pytest.raises(UserError, match="weights has shape"):
        replace(HAND, weights=HAND.weights[:, :15])


def test_an_unknown_hand_is_refused_in_one_line():
    for name in ("smplx", "mano", "mano:", "open:x"):
        with pytest.raises(UserError, match="use 'open' or 'mano:PATH'"):
            load_hand(name)
