"""Skin: tones from light to dark, and a map of palm, knuckles, nails, creases and veins on the hand.

The map is baked once on the hand at rest, with `TEXELS` x `TEXELS` values per channel and face. It is read by face and
barycentrics. Each photo mixes the channels into colour differently.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand import anatomy
from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from trainer.keyed_random import Draws
from trainer.synth.forearm import RINGS_MM, open_edge, tube_faces

Floats = NDArray[np.floating]

#: Skin from light to dark in CIE Lab, typical of spectrophotometer values on the back of hands and forearms.
TONES_LAB = (
    (71, 9, 14),
    (67, 11, 17),
    (62, 12, 19),
    (56, 13, 20),
    (49, 13, 20),
    (41, 12, 17),
    (33, 10, 13),
)

#: Texels along each side of a face, about 0.7 mm each.
TEXELS = 8

CHANNELS = (
    "palm",
    "red",
    "nail",
    "rim",
    "crease",
    "vein",
    "hair",
    "fine",
    "coarse",
    "blotch",
    "cloud_a",
    "cloud_b",
)
_WAVES = 40

# Offset in (L, a, b) of a channel at 1.
_RED_LAB, _NAIL_LAB, _RIM_LAB = (-2.5, 5.0, 1.5), (8.0, 2.0, -7.0), (-7.0, 3.0, 0.0)
_CREASE_LAB, _VEIN_LAB, _HAIR_LAB = (-9.0, 3.5, 0.0), (-3.5, -2.5, -4.0), (-9.0, -2.0, -3.0)
# Palms have little pigment: their colour moves towards this tone.
_PALM_LAB = (70.0, 14.0, 15.0)
_POLISH_SHARE = 0.06
# Cameras show skin redder and less yellow than measured.
_CAMERA_LAB = (0.0, 2.5, -1.5)

# Palm creases as polylines: along the palm (0 wrist, 1 knuckles) and across it (0 little, 1 index knuckle).
_PALM_LINES = (
    ((0.82, 1.1), (0.68, 0.85), (0.45, 0.6), (0.2, 0.5), (0.03, 0.5)),
    ((0.82, 1.1), (0.7, 0.7), (0.58, 0.35), (0.45, -0.1)),
    ((0.72, -0.2), (0.8, 0.15), (0.87, 0.45), (0.98, 0.75)),
)


def skin_map(hand: HandModel) -> Tensor:
    """Bake channels of every texel of hand and bare forearm, ((F + G) * TEXELS^2, len(CHANNELS)) float32."""
    rest = anatomy.rest_joints(hand) * 1000
    positions, facing, weights, distance = _texels(hand)
    maps = {"palm": _step(-facing, -0.25, 0.45)}
    back = _step(facing, -0.1, 0.5)

    order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
    nail, red, crease = (np.zeros(len(positions)) for _ in range(3))
    wobble = 0.5 * _noise(positions, 7.0, 1)
    for finger in range(5):
        joints = rest[1 + 4 * finger : 5 + 4 * finger]
        own = weights[:, order[finger]].sum(1)
        tip_share = weights[:, order[finger, 2]]
        bone = joints[3] - joints[2]
        along = ((positions - joints[2]) @ bone) / (bone @ bone)
        nail = np.maximum(nail, (tip_share > 0.8) * _step(along, 0.42, 0.55) * _step(facing, 0.45, 0.7))
        red = np.maximum(red, (tip_share > 0.6) * _step(along, 0.4, 0.9) * (1 - _step(facing, 0.2, 0.8)))
        for k in (1, 2):
            direction = joints[k + 1] - joints[k - 1]
            s = (positions - joints[k]) @ (direction / np.linalg.norm(direction)) + wobble
            near = (np.linalg.norm(positions - joints[k], axis=1) < 16) * (own > 0.5)
            lines = (-1.3, 1.3) if k == 1 else (0.0,)
            for line in lines:
                crease = np.maximum(crease, near * maps["palm"] * _line(s - line, 0.7))
            for line in (-4.2, -2.0, 0.4, 2.6):
                crease = np.maximum(crease, 0.65 * near * back * _line(s - line + wobble, 0.55))
        if finger:
            # A finger separates from the palm half-way along its first bone.
            bone = joints[1] - joints[0]
            s = ((positions - joints[0]) @ bone) / np.linalg.norm(bone) - 0.52 * np.linalg.norm(bone) + wobble
            near = np.linalg.norm(positions - (joints[0] + joints[1]) / 2, axis=1) < 14
            crease = np.maximum(crease, near * maps["palm"] * _line(s, 0.8))

    knuckles = rest[1:].reshape(5, 4, 3)[:, :3].reshape(-1, 3)
    red = np.maximum(red, 0.8 * _near(positions, knuckles, 8.0) * _step(facing, 0.0, 0.6))
    crease = np.maximum(crease, maps["palm"] * _palm_lines(rest, positions))
    # The wrist's bracelet lines.
    for line in (2.0, 7.0):
        crease = np.maximum(crease, 0.7 * maps["palm"] * _line(distance - line + wobble, 0.8))

    on_fingers = weights[:, 1:].sum(1)
    valley = _noise(positions * [0.45, 1, 1], 26.0, 2)
    maps["vein"] = _line(valley, 0.16) * _step(facing, 0.2, 0.7) * (1 - _step(on_fingers, 0.3, 0.9))
    strands = _step(_noise(positions * [0.3, 1, 1], 2.2, 3), 0.9, 1.6)
    maps["hair"] = strands * back * (0.5 * (1 - on_fingers) + _step(distance, 0, 60))
    maps |= {
        "nail": nail,
        "rim": 4 * nail * (1 - nail),
        "red": red * (1 - nail),
        "crease": crease * (1 - nail),
    }
    for seed, (name, length_mm) in enumerate(
        {"fine": 3.0, "coarse": 7.0, "blotch": 16.0, "cloud_a": 35.0, "cloud_b": 50.0}.items()
    ):
        maps[name] = _noise(positions, length_mm, 10 + seed)
    return torch.from_numpy(np.stack([maps[name] for name in CHANNELS], 1)).float()


class SkinLook:
    """Appearance of B people's skin: a base tone, and an offset per channel of the map."""

    def __init__(self, draws: Draws) -> None:
        device, count = draws.key.device, len(draws)
        tones = torch.tensor(TONES_LAB, dtype=torch.float32, device=device)
        # More light than dark tones, with all in between.
        at = draws.uniform() ** 1.3 * (len(tones) - 1.001)
        low = at.long()
        base = torch.lerp(tones[low], tones[low + 1], (at - low)[:, None])
        self.base_lab = (
            base + draws.normal(3) * base.new_tensor([2.0, 1.8, 2.8]) + base.new_tensor(_CAMERA_LAB)
        )

        def delta(lab: tuple[float, ...], low: float, high: float) -> Tensor:
            return draws.uniform(1, low=low, high=high) * base.new_tensor(lab)

        mix = base.new_zeros(count, len(CHANNELS), 3)
        palm = draws.uniform(1, low=0.2, high=0.6) * (base.new_tensor(_PALM_LAB) - self.base_lab)
        rows = {
            "palm": palm,
            "red": delta(_RED_LAB, 0.3, 1.8),
            "rim": delta(_RIM_LAB, 0.2, 1.3),
            "crease": delta(_CREASE_LAB, 0.2, 1.6),
            "vein": delta(_VEIN_LAB, 0.0, 1.2),
            "hair": delta(_HAIR_LAB, 0.0, 1.0) * draws.chance(0.5)[:, None],
            "fine": draws.normal(3) * base.new_tensor([0.7, 0.3, 0.3]),
            "coarse": draws.normal(3) * base.new_tensor([0.7, 0.5, 0.4]),
            "blotch": draws.normal(3) * base.new_tensor([0.8, 0.8, 0.5]),
            "cloud_a": draws.normal(3) * base.new_tensor([1.3, 1.1, 0.7]),
            "cloud_b": draws.normal(3) * base.new_tensor([1.3, 1.0, 0.7]),
        }
        natural = delta(_NAIL_LAB, 0.3, 1.3)
        polish = draws.normal(3) * base.new_tensor([20.0, 25.0, 20.0]) + base.new_tensor([45.0, 25.0, 5.0])
        rows["nail"] = torch.where(draws.chance(_POLISH_SHARE)[:, None], polish - self.base_lab, natural)
        for name, row in rows.items():
            mix[:, CHANNELS.index(name)] = row
        self.mix = mix

    def lab(self, channels: Tensor, counts: list[int]) -> Tensor:
        """Return Lab colours (N, 3) of texels with `channels` (N, C), ordered by photo, `counts` per photo."""
        mixed = [
            torch.addmm(base, part, mix)
            for base, part, mix in zip(self.base_lab, channels.split(counts), self.mix, strict=True)
        ]
        return torch.cat(mixed)


def _texels(hand: HandModel) -> tuple[Floats, Floats, Floats, Floats]:
    """Return values at the texels' centres.

    These are position (T, 3) mm, the degree of facing the back of the hand (T,) and skinning weights (T, 16). The
    last is the distance behind the wrist's edge (T,) mm, negative on the hand.
    """
    vertices = hand.v_template.astype(np.float64) * 1000
    rest = anatomy.rest_joints(hand)
    axes = anatomy.joint_axes(rest)
    # Each finger bone has its own back direction; the wrist has the palm's.
    backs = np.tile([0.0, 1.0, 0.0], (16, 1))
    order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
    backs[order] = np.cross(axes.twist, axes.flexion)
    weighted = hand.weights @ backs
    facing = (_normals(hand) * weighted).sum(1) / np.linalg.norm(weighted, axis=1)

    edge = open_edge(hand.faces)
    wrist = vertices[edge, 0].mean()
    rings = [vertices] + [vertices[edge] + [mm, 0.0, 0.0] for mm in RINGS_MM]
    positions = np.concatenate(rings)
    facing = np.concatenate([facing, np.tile(facing[edge], len(RINGS_MM))])
    weights = np.concatenate([hand.weights, np.tile(np.eye(16)[0], (len(positions) - len(vertices), 1))])
    first = len(vertices) + np.arange(len(RINGS_MM) * len(edge)).reshape(-1, len(edge))
    faces = np.concatenate([hand.faces, tube_faces(np.concatenate([edge[None], first]))])
    step = (np.arange(TEXELS) + 0.5) / TEXELS
    b0, b1 = (grid.reshape(-1) for grid in np.meshgrid(step, step, indexing="ij"))
    # Texels beyond the diagonal repeat the nearest point on it.
    total = np.maximum(b0 + b1, 1)
    corners = np.stack([b0 / total, b1 / total, 1 - (b0 + b1) / total], 1)

    def spread(values: Floats) -> Floats:
        shape = (len(faces) * TEXELS**2, *values.shape[1:])
        return np.einsum("tk,fk...->ft...", corners, values[faces]).reshape(shape)

    position = spread(positions)
    return position, spread(facing), spread(weights), position[:, 0] - wrist


def _normals(hand: HandModel) -> Floats:
    corners = hand.v_template[hand.faces].astype(np.float64)
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((hand.vertex_count, 3))
    np.add.at(normals, hand.faces.reshape(-1), np.repeat(areas, 3, 0))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _noise(positions: Floats, length_mm: float, seed: int) -> Floats:
    """Return smooth noise (T,) of unit variance and about this wavelength: a sum of plane waves."""
    generator = np.random.default_rng([seed, 5])
    direction = generator.normal(size=(_WAVES, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave = direction * (2 * np.pi / (length_mm * generator.uniform(0.7, 1.4, (_WAVES, 1))))
    phase = generator.uniform(0, 2 * np.pi, _WAVES)
    total = np.zeros(len(positions), np.float32)
    points = positions.astype(np.float32)
    for k in range(_WAVES):
        total += np.sin(points @ wave[k].astype(np.float32) + np.float32(phase[k]))
    return total * np.sqrt(2 / _WAVES)


def _palm_lines(rest: Floats, positions: Floats) -> Floats:
    """Return the strength (T,) of palm creases, 0..1."""
    wrist, index, little = rest[0], rest[5], rest[17]
    along = (rest[9] + rest[13]) / 2 - wrist
    length = np.linalg.norm(along)
    along = along / length
    across = index - little
    across = across - along * (across @ along)
    width = np.linalg.norm(across)
    across = across / width
    start = (little - wrist) @ across
    flat = np.stack([(positions - wrist) @ along, (positions - wrist) @ across - start], 1)
    flat = flat + 1.2 * np.stack([_noise(positions, 30.0, 7), _noise(positions, 30.0, 8)], 1)
    nearest = np.full(len(positions), np.inf)
    for line in _PALM_LINES:
        points = np.array(line) * [length, width]
        for a, b in pairwise(points):
            way = (((flat - a) @ (b - a)) / ((b - a) @ (b - a))).clip(0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(flat - a - way[:, None] * (b - a), axis=1))
    return _line(nearest, 0.9)


def _line(distance: Floats, width: float) -> Floats:
    return np.exp(-((distance / width) ** 2))


def _near(positions: Floats, points: Floats, width: float) -> Floats:
    """Return a Gaussian of the distance to the nearest point, with std `width`."""
    nearest = np.full(len(positions), np.inf)
    for point in points:
        nearest = np.minimum(nearest, np.linalg.norm(positions - point, axis=1))
    return np.exp(-((nearest / width) ** 2) / 2)


def _step(values: Floats, low: float, high: float) -> Floats:
    share = ((values - low) / (high - low)).clip(0, 1)
    return share * share * (3 - 2 * share)
