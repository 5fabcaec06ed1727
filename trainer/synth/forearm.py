"""A forearm for a hand that ends at the wrist: a tapered tube from its open edge, bare or in a sleeve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand.model import HandModel

#: Where the rings of the bare tube lie behind the wrist's edge, and those of a sleeve behind its start, mm.
RINGS_MM = (6.0, 13.0, 21.0, 30.0, 42.0, 60.0, 85.0, 120.0, 170.0, 240.0, 480.0)
SLEEVE_MM = (0.0, 0.0, 3.0, 20.0, 60.0, 130.0, 450.0)
_CLOTH_MM = (0.0, 3.5, 5.0, 5.0, 6.0, 8.0, 10.0)

# The wrist bends over this length.
_BEND_MM = 40.0
# Radii as shares of the wrist's, at these distances.
_TAPER = ((0.0, 60.0, 200.0, 320.0), (1.0, 1.02, 1.38, 1.45))


def open_edge(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """The vertices (E,) of the one hole of a mesh (F, 3), in the order in which its faces run along it."""
    edges = {(int(face[k]), int(face[k - 2])) for face in faces for k in range(3)}
    following = {a: b for a, b in edges if (b, a) not in edges}
    loop = [min(following)]
    while len(loop) < len(following):
        loop.append(following[loop[-1]])
    return np.array(loop)


@dataclass(frozen=True, eq=False)
class ForearmMesh:
    """How forearm vertices, which follow a hand's V in the list, hang together."""

    edge: Tensor  # (E,) the hand's own vertices at the wrist
    skin_faces: Tensor  # (F, 3)
    sleeve_faces: Tensor  # (F, 3)

    @staticmethod
    def of(hand: HandModel) -> ForearmMesh:
        """The forearm of a hand model; any hand with one open edge will do."""
        edge = open_edge(hand.faces)
        count, first = len(edge), hand.vertex_count
        rings = first + np.arange((len(RINGS_MM) + len(SLEEVE_MM)) * count).reshape(-1, count)
        skin = np.concatenate([edge[None], rings[: len(RINGS_MM)]])
        return ForearmMesh(
            torch.from_numpy(edge),
            torch.from_numpy(_tube_faces(skin)),
            torch.from_numpy(_tube_faces(rings[len(RINGS_MM) :])),
        )


def _tube_faces(rings: NDArray[np.integer]) -> NDArray[np.int64]:
    """Rings (R, E) of vertices to faces; the first ring's edge is walked against the hand's own faces."""
    a, b = rings[:-1], np.roll(rings, -1, 1)[:-1]
    c, d = rings[1:], np.roll(rings, -1, 1)[1:]
    return np.concatenate([np.stack([b, a, c], -1).reshape(-1, 3), np.stack([b, c, d], -1).reshape(-1, 3)])


def forearms(edge_mm: Tensor, bend: Tensor, sleeve_start_mm: Tensor) -> Tensor:
    """Forearm vertices (B, A, 3) in the hand's rest frame, mm: the bare tube's rings, then the sleeve's.

    Args:
        edge_mm: the wrist's open edge (B, E, 3), rest frame.
        bend: axis-angle (B, 3) of the wrist: the forearm leaves along this turn of the +x axis.
        sleeve_start_mm: (B,) from the wrist's edge; infinite for a bare arm.
    """
    centre = edge_mm.mean(1)
    offsets = edge_mm - centre[:, None]
    around = torch.atan2(offsets[..., 2], offsets[..., 1])
    radii = offsets[..., 1:].abs().amax(1)
    oval = torch.stack([around.cos() * radii[:, :1], around.sin() * radii[:, 1:]], -1)
    oval = torch.nn.functional.pad(oval, (1, 0))

    bare = torch.tensor(RINGS_MM).expand(len(edge_mm), -1)
    covered = sleeve_start_mm.nan_to_num(posinf=0.0)[:, None] + torch.tensor(SLEEVE_MM)
    along = torch.cat([bare, covered], 1)
    cloth = torch.cat([torch.zeros(len(RINGS_MM)), torch.tensor(_CLOTH_MM)])
    taper = torch.from_numpy(np.interp(along.numpy(), *_TAPER)).to(along)
    rounded = (along / 30).clamp(max=1)[..., None, None]
    shape = offsets[:, None] * (1 - rounded) + oval[:, None] * rounded
    shape = shape * (taper + cloth / radii.mean(1, keepdim=True))[..., None, None]

    # The centreline is an arc over the bend, then straight: its mean direction up to s is at most half turned.
    share = (along / _BEND_MM).clamp(max=1)
    turned = roma.rotvec_to_rotmat(share[..., None] * bend[:, None])
    half = roma.rotvec_to_rotmat(share[..., None] * bend[:, None] / 2)
    whole = roma.rotvec_to_rotmat(bend)
    x = torch.tensor([1.0, 0, 0])
    arc = (half @ x) * along.clamp(max=_BEND_MM)[..., None]
    straight = (whole @ x)[:, None] * (along - _BEND_MM).clamp(min=0)[..., None]
    rings = torch.einsum("brij,brej->brei", turned, shape) + (centre[:, None] + arc + straight)[:, :, None]
    # A sleeve that is not worn has no area, and nothing without area is drawn.
    bare_arm = sleeve_start_mm.isinf()[:, None, None, None]
    rings[:, len(RINGS_MM) :] = torch.where(bare_arm, centre[:, None, None], rings[:, len(RINGS_MM) :])
    return rings.flatten(1, 2)
