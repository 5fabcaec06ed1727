"""Submission files of the benchmarks: `pred.json` (two lists, joints then vertices) and `pred.zip` around it."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand.model import FREIHAND_FROM_MANO
from annotator.storage.files import join, write_whole

Floats = NDArray[np.floating]

#: The benchmarks compare with MANO's vertices, one by one. `hand.mano` would bring torch along.
_MANO_VERTICES = 778

#: Camera axes (y down, z forward) to OpenGL's (y up, z backward).
_OPENGL = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's server expects."""

    title: str
    entries: int  # photos of its evaluation split
    opengl: bool  # axes: OpenGL's, or the camera's
    joint_order: tuple[int, ...]  # where each of its 21 joints is found in ours
    tips: tuple[int, ...] = ()  # the vertices that are its last five joints; none: ours are its own


_FREIHAND_ORDER = tuple(range(21))

#: Wrist, then index, middle, little, ring, thumb three each, then the tips from thumb to little: MANO's own order.
_HO3D_ORDER = tuple(FREIHAND_FROM_MANO.index(k) for k in range(21))

#: Thumb to little. Ours are 320 and 443 at index and middle.
_HO3D_TIPS = (744, 333, 444, 555, 672)

BENCHMARKS = {
    "freihand": Benchmark("FreiHAND", 3960, opengl=False, joint_order=_FREIHAND_ORDER),
    "ho3d_v2": Benchmark("HO3D v2", 11524, opengl=True, joint_order=_HO3D_ORDER, tips=_HO3D_TIPS),
    "ho3d_v3": Benchmark("HO3D v3", 20137, opengl=True, joint_order=_HO3D_ORDER, tips=_HO3D_TIPS),
}


def check_vertices(title: str, hand: str | None, vertex_count: int) -> None:
    """Whether hands of a model (its id, V) can be submitted: benchmarks compare with MANO's vertices, one by one.

    Raises:
        UserError: they can't.
    """
    if vertex_count != _MANO_VERTICES:
        raise UserError(
            f"{title} compares MANO's {_MANO_VERTICES} vertices, but hand model {hand} has "
            f"{vertex_count}: submit a checkpoint trained with --hand mano:PATH"
        )


def write_submission(
    out: str, benchmark: Benchmark, joints3d_mm: Floats, vertices_mm: Floats, wrist_mm: Floats
) -> None:
    """Write OUT/pred.json and OUT/pred.zip, metres; the text passes through memory whole (half a gigabyte for HO3D v3).

    Joints are ours in the benchmark's order; tips that it defines by other vertices come from the mesh.

    Args:
        out: a folder or fsspec URL.
        benchmark: one of `BENCHMARKS`.
        joints3d_mm: (n, 21, 3) wrist-relative, camera axes, right hands, in the order of the benchmark's list.
        vertices_mm: (n, 778, 3) likewise.
        wrist_mm: (n, 3) the wrist before the camera. HO3D gives it (the one point of `handJoints3D`, its y and z
            flipped to camera axes); for FreiHAND it is the predicted `cam_t_mm`.

    Raises:
        UserError: not as many hands as the benchmark has photos, one that is not a number, or the folder can't
            be written.
    """
    count = len(joints3d_mm)
    if count != benchmark.entries:
        raise UserError(
            f"{benchmark.title} expects {benchmark.entries} hands in its list's order, found {count}"
        )
    text = io.BytesIO()
    text.write(b"[[")
    joints = joints3d_mm[:, benchmark.joint_order]
    if benchmark.tips:
        joints[:, -len(benchmark.tips) :] = vertices_mm[:, benchmark.tips]
    _write_hands(text, benchmark, joints, wrist_mm)
    text.write(b"], [")
    _write_hands(text, benchmark, vertices_mm, wrist_mm)
    text.write(b"]]")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        # A date of its own, the epoch of zip files: the same hands give the same bytes.
        archive.writestr(zipfile.ZipInfo("pred.json"), text.getbuffer(), zipfile.ZIP_DEFLATED)
    try:
        write_whole(join(out, "pred.json"), text.getvalue())
        write_whole(join(out, "pred.zip"), packed.getvalue())
    except OSError as error:
        raise UserError(f"can't write the submission to '{out}': {error.strerror or error}") from None


def _write_hands(text: io.BytesIO, benchmark: Benchmark, points_mm: Floats, wrist_mm: Floats) -> None:
    """Points (n, N, 3), wrist-relative in camera axes, as a JSON list's items in the benchmark's own frame."""
    for index, (points, wrist) in enumerate(zip(points_mm, wrist_mm, strict=True)):
        metres = (np.asarray(points, np.float64) + wrist) / 1000
        if not np.isfinite(metres).all():
            raise UserError(f"hand {index} of the submission to {benchmark.title} is not a number")
        if benchmark.opengl:
            metres = metres * _OPENGL
        text.write(b", " if index else b"")
        text.write(json.dumps(metres.round(6).tolist()).encode())  # micrometres
