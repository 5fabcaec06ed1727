"""The mesh of every photo: hand, forearm, sleeve, watch and two objects, in this order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from annotator.hand.model import HandModel
from trainer.synth import objects
from trainer.synth.forearm import BAND, RINGS_MM, SLEEVE_MM, open_edge, tube_faces

#: Materials of faces.
HAND, ARM, SLEEVE, WATCH, OBJECT_A, OBJECT_B = range(6)
MATERIALS = 6


@dataclass(frozen=True, eq=False)
class Figure:
    """The topology that all photos share: N vertices and F faces; the hand's V vertices come first."""

    edge: Tensor  # (E,) the hand's own vertices at the wrist
    faces: Tensor  # (F, 3)
    material: Tensor  # (F,) HAND to OBJECT_B
    uv: Tensor  # (N, 2) position on a pattern; zero for skin
    vertex_count: int  # V
    face_count: int  # of the hand alone
    skin_face_count: int  # of hand and bare arm, which come first

    @staticmethod
    def of(hand: HandModel, device: torch.device | str = "cpu") -> Figure:
        """Build the figure of a hand model with one open edge."""
        edge = open_edge(hand.faces)
        first, parts = hand.vertex_count, [hand.faces.astype(np.int64)]
        uv = [torch.zeros(first, 2)]
        around = 1 - (torch.arange(len(edge)) / len(edge) * 2 - 1).abs()
        for offsets in (RINGS_MM, SLEEVE_MM, BAND):
            rings = first + np.arange(len(offsets) * len(edge)).reshape(-1, len(edge))
            first += rings.size
            parts.append(tube_faces(np.concatenate([edge[None], rings]) if offsets is RINGS_MM else rings))
            along = torch.tensor(offsets) / 150
            grid = torch.stack([around.expand(len(offsets), -1), along[:, None].expand(-1, len(edge))], -1)
            uv.append(grid.flatten(0, 1) * (offsets is not RINGS_MM))
        for _ in range(2):
            parts.append(objects.object_faces(first))
            uv.append(objects.object_uv())
            first += objects.VERTICES
        material = torch.cat([torch.full((len(part),), m) for m, part in enumerate(parts)])
        return Figure(
            torch.from_numpy(edge).to(device),
            torch.from_numpy(np.concatenate(parts)).to(device),
            material.to(device),
            torch.cat(uv).to(device),
            hand.vertex_count,
            len(hand.faces),
            len(parts[HAND]) + len(parts[ARM]),
        )
