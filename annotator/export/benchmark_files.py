"""Submission files of the benchmarks: `pred.json` (two lists, joints then vertices), also zipped as `pred.zip`."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand.mano_mesh import HO3D_TIP_VERTICES
from annotator.hand.model import MANO_FROM_FREIHAND
from annotator.storage.disk_space import DiskFullError
from annotator.storage.files import join, write_atomic

Floats = NDArray[np.floating]

#: Camera axes (y down, z forward) to OpenGL's (y up, z backward).
_OPENGL = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class Benchmark:
    """The format that a benchmark's server expects."""

    title: str
    entries: int  # photos of its evaluation split
    opengl: bool  # OpenGL's axes instead of the camera's
    joint_order: tuple[int, ...]  # index of each of its 21 joints in our order
    tips: tuple[int, ...] = ()  # vertices that replace its last five joints; empty: keep our tips


_FREIHAND_ORDER = tuple(range(21))

BENCHMARKS = {
    "freihand": Benchmark("FreiHAND", 3960, opengl=False, joint_order=_FREIHAND_ORDER),
    "ho3d_v2": Benchmark(
        "HO3D v2", 11524, opengl=True, joint_order=MANO_FROM_FREIHAND, tips=HO3D_TIP_VERTICES
    ),
    "ho3d_v3": Benchmark(
        "HO3D v3", 20137, opengl=True, joint_order=MANO_FROM_FREIHAND, tips=HO3D_TIP_VERTICES
    ),
}


def write_submission(
    out: str, benchmark: Benchmark, joints3d_mm: Floats, vertices_mm: Floats, wrist_mm: Floats
) -> None:
    """Write OUT/pred.json and OUT/pred.zip in metres; the text is built in memory (0.5 GB for HO3D v3).

    Joints are ours in the benchmark's order. Tips that the benchmark defines by other vertices come from the mesh.

    Args:
        out: a folder or fsspec URL.
        benchmark: one of `BENCHMARKS`.
        joints3d_mm: (n, 21, 3) of right hands, wrist-relative, camera axes, in the order of the benchmark's list.
        vertices_mm: (n, V, 3) likewise, of MANO's mesh.
        wrist_mm: (n, 3) position of the wrist, camera axes. HO3D gives it (the one point of `handJoints3D`, with y and
            z flipped); for FreiHAND it is the predicted `cam_t_mm`.

    Raises:
        UserError: the number of hands is not the benchmark's, a coordinate is not finite, or the folder is not
            writable.
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
        # A fixed date, so that the same hands give the same bytes.
        archive.writestr(zipfile.ZipInfo("pred.json"), text.getbuffer(), zipfile.ZIP_DEFLATED)
    try:
        write_atomic(join(out, "pred.json"), text.getvalue())
        write_atomic(join(out, "pred.zip"), packed.getvalue())
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"can't write the submission to '{out}': {error.strerror or error}") from None


def _write_hands(text: io.BytesIO, benchmark: Benchmark, points_mm: Floats, wrist_mm: Floats) -> None:
    """Write points (n, N, 3), wrist-relative in camera axes, as items of a JSON list in the benchmark's frame."""
    for index, (points, wrist) in enumerate(zip(points_mm, wrist_mm, strict=True)):
        metres = (np.asarray(points, np.float64) + wrist) / 1000
        if not np.isfinite(metres).all():
            raise UserError(f"hand {index} of the submission to {benchmark.title} is not a number")
        if benchmark.opengl:
            metres = metres * _OPENGL
        text.write(b", " if index else b"")
        text.write(json.dumps(metres.round(6).tolist()).encode())  # micrometres
