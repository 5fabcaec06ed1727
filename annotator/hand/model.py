"""The data of a parametric hand, independent of its file.

The layout is MANO's (Romero et al., 2017), so that one layer (`layer.py`) poses them all.
Only this folder depends on the number of vertices.

Rest frame: metres, a right hand, fingers towards -x, palm facing -y, thumb towards +z.
Articulated joints are stored in MANO's order (wrist, then index, middle, little, ring, thumb, three
each). Every other part of the project uses 21 joints in FreiHAND's order, `JOINT_NAMES`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from annotator.errors import UserError

FINGERS = ("thumb", "index", "middle", "ring", "little")

#: FreiHAND's order: the wrist, then each finger from palm to tip.
JOINT_NAMES = ("wrist",) + tuple(f"{f}_{k}" for f in FINGERS for k in (1, 2, 3, "tip"))
JOINT_COUNT = len(JOINT_NAMES)

#: Skeleton over the 21 joints: (parent, child), 20 bones.
BONES = tuple((0 if k == 0 else 4 * f + k, 4 * f + k + 1) for f in range(5) for k in range(4))

#: Index of each of the 21 joints in [16 articulated joints in MANO's order, 5 tips thumb..little].
FREIHAND_FROM_MANO = (
    0,
    *(13, 14, 15, 16),  # thumb, its tip
    *(1, 2, 3, 17),  # index
    *(4, 5, 6, 18),  # middle
    *(10, 11, 12, 19),  # ring
    *(7, 8, 9, 20),  # little
)

#: The index in FreiHAND's order of each of the 21 joints in MANO's: 16 articulated joints, then the tips from thumb to
#: little.
MANO_FROM_FREIHAND = tuple(FREIHAND_FROM_MANO.index(k) for k in range(21))

#: The three angles of a finger joint (`joint_angles.py`), and the names of all 45, such as `index_1_flexion`.
ANGLE_KINDS = ("spread", "flexion", "twist")
ANGLE_NAMES = tuple(
    f"{finger}_{joint}_{kind}" for finger in FINGERS for joint in (1, 2, 3) for kind in ANGLE_KINDS
)

#: Indices among the 45 of the 20 angles that a real hand moves: the spread of joints 1, the flexion of all.
MOVING_ANGLES = tuple(k for k, name in enumerate(ANGLE_NAMES) if name.endswith(("1_spread", "flexion")))

#: Pose components with a smaller standard deviation (radians) move no joint.
_NO_MOTION = 1e-6


@dataclass(frozen=True, eq=False)
class HandModel:
    """A parametric hand in MANO's layout; arrays are NumPy, lengths in metres.

    V vertices, F faces, 16 articulated joints, 10 shape directions.
    """

    name: str  # "open" or "mano"
    v_template: np.ndarray  # (V, 3) float32
    faces: np.ndarray  # (F, 3) int32, counter-clockwise seen from outside
    shapedirs: np.ndarray  # (V, 3, 10) float32
    posedirs: np.ndarray  # (V, 3, 135) float32
    J_regressor: np.ndarray  # (16, V) float32, joints of the shaped rest mesh
    weights: np.ndarray  # (V, 16) float32, skinning
    kintree_table: np.ndarray  # (2, 16) int64, row 0 the parents, -1 for the wrist
    hands_mean: np.ndarray  # (45,) float32, mean pose, axis-angle, MANO's joint order
    hands_components: np.ndarray  # (45, 45) float32, rows are pose directions
    hands_std: np.ndarray  # (45,) float32, standard deviation along each row
    tip_vertices: np.ndarray  # (5,) int64, thumb to little
    joint_regressor: np.ndarray  # (21, V) float32, `R`: R V is the articulated joint, bent or not

    def __post_init__(self) -> None:
        v, f = len(self.v_template), len(self.faces)
        shapes = {
            "v_template": (v, 3),
            "faces": (f, 3),
            "shapedirs": (v, 3, 10),
            "posedirs": (v, 3, 135),
            "J_regressor": (16, v),
            "weights": (v, 16),
            "kintree_table": (2, 16),
            "hands_mean": (45,),
            "hands_components": (45, 45),
            "hands_std": (45,),
            "tip_vertices": (5,),
            "joint_regressor": (21, v),
        }
        for field, shape in shapes.items():
            array = getattr(self, field)
            if array.shape != shape:
                raise UserError(
                    f"hand model '{self.name}': {field} has shape {array.shape}, expected {shape}"
                )
            if not np.isfinite(array).all():
                raise UserError(f"hand model '{self.name}': {field} holds values that are not finite")

    def moving_components(self) -> np.ndarray:
        """Return the indices (K,) of the pose components that move a joint at all."""
        return np.flatnonzero(self.hands_std > _NO_MOTION)

    @property
    def vertex_count(self) -> int:
        """The number of vertices, V."""
        return len(self.v_template)

    @property
    def id(self) -> str:
        """Name and content hash, e.g. `open-1f0c9a7e62d4`, to which checkpoints and labels refer.

        `joint_regressor` is excluded: for MANO it is fitted when the file is read, and rounding differs by machine.
        """
        digest = hashlib.sha256()
        for field in fields(self):
            if field.name not in ("name", "joint_regressor"):
                array = np.ascontiguousarray(getattr(self, field.name))
                digest.update(f"{field.name}{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes())
        return f"{self.name}-{digest.hexdigest()[:12]}"
