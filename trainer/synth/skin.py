"""Skin: tones from light to dark, and where on a hand it is paler or redder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.hand import anatomy
from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from trainer.synth.colour import lab_to_linear

Floats = NDArray[np.floating]

#: Skin from light to dark in CIE Lab, as spectrophotometers find it on the back of hands and forearms.
TONES_LAB = np.array(
    [[71, 9, 14], [67, 11, 17], [62, 12, 19], [56, 13, 20], [49, 13, 20], [41, 12, 17], [33, 10, 13]], float
)

# What a region adds to (L, a, b).
_RED_LAB = np.array([-2.5, 5.0, 1.5])
_NAIL_LAB = np.array([9.0, 2.0, -7.0])
# Palms hold little pigment: they come this near to the palm's own tone.
_PALM_LAB, _PALM_SHARE = np.array([70.0, 14.0, 15.0]), 0.45


@dataclass(frozen=True, eq=False)
class SkinRegions:
    """How much of a region each of V vertices is, 0..1."""

    palm: Floats  # (V,) palm and the fingers' inner sides
    red: Floats  # (V,) knuckles and fingertips
    nail: Floats  # (V,)

    def with_forearm(self, edge: NDArray[np.integer], ring_count: int) -> SkinRegions:
        """The same with the rings of a forearm behind it, which start as the wrist's edge (E,) ends."""
        fading = np.linspace(1, 0.5, ring_count)[:, None]
        palm = (self.palm[edge] * fading).reshape(-1)
        return SkinRegions(
            np.append(self.palm, palm), *(np.pad(r, (0, len(palm))) for r in (self.red, self.nail))
        )

    @staticmethod
    def of(hand: HandModel) -> SkinRegions:
        """Found from the hand at rest: its joints, normals and skinning."""
        joints = anatomy.rest_joints(hand)
        axes = anatomy.joint_axes(joints)
        # Each finger bone has a back of its own; the wrist's is the palm's.
        backs = np.tile([0.0, 1.0, 0.0], (16, 1))
        order = np.array(FREIHAND_FROM_MANO[1:]).reshape(5, 4)[:, :3]
        backs[order] = np.cross(axes.twist, axes.flexion)
        weighted = hand.weights @ backs
        facing = (_normals(hand) * weighted).sum(1) / np.linalg.norm(weighted, axis=1)
        palm = _step(-facing, -0.25, 0.45)

        vertices = hand.v_template
        knuckles = joints[1:].reshape(5, 4, 3)[:, :3].reshape(-1, 3)
        red = _near(vertices, knuckles, 0.008) * _step(facing, 0.0, 0.6) * 0.8
        red = np.maximum(red, _near(vertices, joints[4::4], 0.012) * (1 - _step(facing, 0.2, 0.8)))

        along = np.zeros(len(vertices))
        for finger in range(5):
            start, end = joints[4 * finger + 3], joints[4 * finger + 4]
            bone = end - start
            distal = hand.weights[:, order[finger, 2]] > 0.8
            along[distal] = ((vertices[distal] - start) @ bone) / (bone @ bone)
        nail = _step(along, 0.45, 0.6) * _step(facing, 0.5, 0.8)
        return SkinRegions(palm, red * (1 - nail), nail)


def skin_colours(
    regions: SkinRegions, tones: Floats, positions_mm: Floats, generator: np.random.Generator
) -> Floats:
    """Unlit skin (B, N, 3), linear RGB.

    Args:
        regions: of N vertices.
        tones: (B,) 0 light to 1 dark.
        positions_mm: (N, 3) where the vertices lie, for blotches of 15 to 60 mm.
        generator: draws them.
    """
    base = np.stack(
        [np.interp(tones * (len(TONES_LAB) - 1), range(len(TONES_LAB)), c) for c in TONES_LAB.T], 1
    )
    base = (base + generator.normal(size=base.shape) * [1.0, 1.2, 1.2])[:, None]
    lab = base + (_PALM_LAB - base) * _PALM_SHARE * regions.palm[:, None]
    strength = generator.uniform(0.4, 1.3, (len(tones), 1, 1))
    lab = lab + regions.red[:, None] * _RED_LAB * strength + regions.nail[:, None] * _NAIL_LAB
    lab = lab + _blotches(positions_mm, len(tones), generator) * np.array([1.6, 1.4, 0.8])
    return lab_to_linear(lab)


def _blotches(positions_mm: Floats, count: int, generator: np.random.Generator) -> Floats:
    """Smooth noise (count, N, 3) of unit variance: a sum of plane waves."""
    waves = 12
    direction = generator.normal(size=(count, waves, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    wave = direction * (2 * np.pi / generator.uniform(15, 60, (count, waves, 1)))
    phase = positions_mm @ wave.transpose(0, 2, 1) + generator.uniform(0, 2 * np.pi, (count, 1, waves))
    return np.sin(phase) @ generator.normal(scale=np.sqrt(2 / waves), size=(count, waves, 3))


def _normals(hand: HandModel) -> Floats:
    corners = hand.v_template[hand.faces].astype(np.float64)
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals = np.zeros((hand.vertex_count, 3))
    np.add.at(normals, hand.faces.reshape(-1), np.repeat(areas, 3, 0))
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def _near(vertices: Floats, points: Floats, width: float) -> Floats:
    """1 at the nearest of the points, falling off over `width`."""
    distance = np.linalg.norm(vertices[:, None] - points, axis=-1).min(1)
    return np.exp(-((distance / width) ** 2) / 2)


def _step(values: Floats, low: float, high: float) -> Floats:
    share = ((values - low) / (high - low)).clip(0, 1)
    return share * share * (3 - 2 * share)
