"""HO3D v2 and v3 (Hampali et al., CVPR 2020; arXiv 2107.00887) as downloaded; right hands.

    train.txt, evaluation.txt          lines SEQUENCE/FRAME
    train/SEQUENCE/rgb/FRAME.png       .jpg in v3
    train/SEQUENCE/meta/FRAME.pkl      a pickle, read by `annotator.runtime.safe_pickle`, which runs no code
    train/SEQUENCE/seg/FRAME.jpg       optional, rendered segmentations: `ho3d_masks.py`
    evaluation_{xyz,verts}.json        the evaluation's truth, published later; used if present

Units are metres, in OpenGL axes: y up, z backwards. Joints are in MANO's order, followed by the tips, thumb to little.
K counts pixels from the centre of the first one. The half pixel is not corrected: it is below the annotation error.

**Tips.** HO3D's are other vertices than ours, which are FreiHAND's (`annotator/hand/mano_mesh.py`). Index and middle
differ by some millimetres. HO3D's own pages do not list them: other
projects use these vertices for the published joints, and without the files they are not checked here. With MANO,
examples take tips from the mesh at our vertices, so that J3 = R V; this does not need HO3D's list. Without MANO there
is no mesh, and tips stay HO3D's. A submission takes HO3D's tips from the predicted mesh
(`annotator/export/benchmark_files.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import roma
import torch
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.hand.layer import HandLayer
from annotator.hand.mano_mesh import TIP_VERTICES, VERTEX_COUNT
from annotator.hand.model import FREIHAND_FROM_MANO, HandModel
from annotator.runtime import safe_pickle
from annotator.sources.fields import numbers, opened_file, read_arrays
from annotator.storage.files import join, names_in
from trainer.convert.ho3d_masks import HandMasks
from trainer.convert.photos import required_photo
from trainer.convert.pinhole import camera_columns, hand_columns

#: OpenGL axes to camera axes (x right, y down, z forward): 180 degrees about x, no mirror.
CAMERA_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])

#: Size limit, far above real files of a few kilobytes.
_MAX_META_BYTES = 1 << 20


def _encoded(text: object, encoding: object) -> bytes:
    """Replace `_codecs.encode`, with which Python 3 writes bytes for Python 2."""
    if type(text) is not str or encoding != "latin1":
        raise safe_pickle.UnsafePickleError("encodes something other than bytes")
    return text.encode("latin1")


def _scalar(dtype: object, raw: object) -> float:
    """Replace the constructor of a NumPy scalar."""
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    if not isinstance(dtype, safe_pickle.StoredDtype) or type(data) is not bytes:
        raise safe_pickle.UnsafePickleError("holds an invalid NumPy number")
    return np.frombuffer(data, dtype.dtype, 1)[0].item()


_META_GLOBALS: safe_pickle.Globals = {
    **safe_pickle.NUMPY_ARRAYS,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encoded,
}


def ho3d_examples(
    root: str, hand: HandModel, split: str, chance: np.random.Generator
) -> Iterator[dict[str, Any] | str]:
    """Yield the examples of a split (`train` or `evaluation`), shuffled, or the reason why one is left out.

    Meshes, poses and betas exist if `hand` is MANO. Without `evaluation_xyz.json`, evaluation examples have no targets:
    only photo, box, K and the wrist's position.

    Raises:
        UserError: a file is missing or malformed; the message names the file and the field.
    """
    frames = _frames(join(root, f"{split}.txt"))
    suffix = _photo_suffix(join(root, split, frames[0][0], "rgb"))
    layer = HandLayer(hand) if hand.name == "mano" else None
    truth = _Truth.read(root, len(frames)) if split == "evaluation" else None
    masks = HandMasks(root) if split == "train" else None
    if masks is not None:
        masks.find_colour(
            (frames[index] for index in np.random.default_rng(0).permutation(len(frames))),
            lambda sequence, frame: _joints_seen(root, sequence, frame, suffix),
        )
    for index in chance.permutation(len(frames)).tolist():
        sequence, frame = frames[index]
        path = join(root, split, sequence, "meta", f"{frame}.pkl")
        meta = _read_meta(path)
        if meta.get("handJoints3D") is None:
            yield "no annotation of the hand (handJoints3D)"
            continue
        photo = f"{split}/{sequence}/rgb/{frame}{suffix}"
        row = required_photo(join(root, photo))
        row |= {
            "image_uri": join(root, photo),
            "image_id": photo,
            "source_index": index,
            "is_right": True,
        }
        K = _field(meta, "camMat", (3, 3), path)
        if split == "train":
            joints = _field(meta, "handJoints3D", (21, 3), path)
            mano = None if layer is None else _mano_columns(meta, layer, path)
            row |= _hand_columns(joints, mano, K, path)
            if masks is not None:
                row["hand_mask"] = masks.mask(sequence, frame, row["width"], row["height"])
        else:
            row |= _evaluation_columns(meta, truth, index, layer is not None, K, path)
        if meta.get("handBoundingBox") is not None:
            row["box_xyxy"] = _field(meta, "handBoundingBox", (4,), path)
            row["box_source"] = "list"
        yield row


def _hand_columns(
    joints: NDArray[np.float64], mano: dict[str, Any] | None, K: NDArray, path: str
) -> dict[str, Any]:
    """Return the columns of a hand from the file's joints (21, 3).

    `mano` has wrist-relative `vertices_mm` if the hand is MANO: then tips are ours, not HO3D's.
    """
    joints_mm = 1000 * joints[list(FREIHAND_FROM_MANO)] @ CAMERA_FROM_OPENGL
    mesh_mm = None if mano is None else mano["vertices_mm"] + joints_mm[0]
    if mesh_mm is not None:
        joints_mm[4::4] = mesh_mm[list(TIP_VERTICES)]
    return hand_columns(joints_mm, mesh_mm, K, path) | (mano or {})


def _joints_seen(
    root: str, sequence: str, frame: str, suffix: str
) -> tuple[NDArray[np.float64], int, int] | None:
    """Return a training frame's 2D joints (21, 2) and its photo's width and height; None without annotation."""
    path = join(root, "train", sequence, "meta", f"{frame}.pkl")
    meta = _read_meta(path)
    if meta.get("handJoints3D") is None:
        return None
    photo = required_photo(join(root, "train", sequence, "rgb", frame + suffix))
    K = _field(meta, "camMat", (3, 3), path)
    columns = _hand_columns(_field(meta, "handJoints3D", (21, 3), path), None, K, path)
    return columns["joints2d_px"], photo["width"], photo["height"]


def _mano_columns(meta: dict[str, Any], layer: HandLayer, path: str) -> dict[str, Any]:
    """Return pose, betas and mesh in camera axes. `handTrans` is not needed: joints give the position."""
    pose = torch.from_numpy(_field(meta, "handPose", (48,), path)).float().view(16, 3)
    betas = torch.from_numpy(_field(meta, "handBeta", (10,), path)).float()
    rotations = roma.rotvec_to_rotmat(pose)
    # Only the global rotation changes with the axes; rotations of fingers are relative.
    rotations[0] = torch.from_numpy(CAMERA_FROM_OPENGL).float() @ rotations[0]
    pose[0] = roma.rotmat_to_rotvec(rotations[0])
    with torch.inference_mode():
        vertices_mm, _ = layer(rotations[None], betas[None])
    return {
        "pose": pose.reshape(48).numpy(),
        "betas": betas.numpy(),
        "vertices_mm": vertices_mm[0].numpy().astype(np.float64),
    }


class _Truth:
    """The evaluation's truth, published after its challenge: joints (n, 21, 3), vertices (n, 778, 3)."""

    def __init__(self, xyz: NDArray[np.float32], verts: NDArray[np.float32] | None) -> None:
        self.xyz, self.verts = xyz, verts

    @staticmethod
    def read(root: str, count: int) -> _Truth | None:
        names = names_in(root)
        xyz, verts = (
            read_arrays(join(root, name), shape) if name in names else None
            for name, shape in (
                ("evaluation_xyz.json", (21, 3)),
                ("evaluation_verts.json", (VERTEX_COUNT, 3)),
            )
        )
        for name, values in (("xyz", xyz), ("verts", verts)):
            if values is not None and len(values) != count:
                raise UserError(
                    f"{join(root, f'evaluation_{name}.json')}: holds {len(values)} entries, "
                    f"expected {count} as in evaluation.txt"
                )
        return None if xyz is None else _Truth(xyz, verts)


def _evaluation_columns(
    meta: dict[str, Any],
    truth: _Truth | None,
    index: int,
    with_mesh: bool,
    K: NDArray,
    path: str,
) -> dict[str, Any]:
    if meta.get("handBoundingBox") is None:
        raise UserError(f"{path}: handBoundingBox: missing field")
    if truth is None:
        # The wrist alone, of shape (3,) or (1, 3).
        root = np.squeeze(_array(meta["handJoints3D"]))
        wrist_mm = 1000 * numbers(root, (3,), f"{path}: handJoints3D") @ CAMERA_FROM_OPENGL
        return camera_columns(K, f"{path}: camMat") | {"wrist_mm": wrist_mm}
    mano = None
    if with_mesh and truth.verts is not None:
        verts_mm = 1000 * truth.verts[index].astype(np.float64) @ CAMERA_FROM_OPENGL
        wrist_mm = 1000 * truth.xyz[index, 0].astype(np.float64) @ CAMERA_FROM_OPENGL
        mano = {"vertices_mm": verts_mm - wrist_mm}
    return _hand_columns(truth.xyz[index].astype(np.float64), mano, K, path)


def _frames(path: str) -> list[tuple[str, str]]:
    """Read the lines SEQUENCE/FRAME of a split's list."""
    frames = []
    with opened_file(path) as file:
        for number, line in enumerate(file.read().decode("utf-8", "replace").splitlines(), start=1):
            match = re.fullmatch(r"(\w[\w.-]*)/(\w[\w.-]*)", line.strip())
            if match:
                frames.append((match[1], match[2]))
            elif line.strip():
                raise UserError(f"{path}: line {number}: expected SEQUENCE/FRAME, got {line.strip()[:60]!r}")
    if not frames:
        raise UserError(f"{path}: lists no frames: check that the file is complete")
    return frames


def _photo_suffix(folder: str) -> str:
    """Return the suffix of photos: `.png` in v2, `.jpg` in v3."""
    names = names_in(folder)
    for suffix in (".png", ".jpg"):
        if any(name.endswith(suffix) for name in names):
            return suffix
    raise UserError(f"{folder}: holds no photos, .png (v2) or .jpg (v3)")


def _read_meta(path: str) -> dict[str, Any]:
    with opened_file(path) as file:
        meta = safe_pickle.load(file, _META_GLOBALS, path, _MAX_META_BYTES)
    if type(meta) is not dict:
        raise UserError(f"{path}: holds no named fields")
    return meta


def _array(value: Any) -> Any:
    return value.array() if isinstance(value, safe_pickle.StoredArray) else value


def _field(meta: dict[str, Any], name: str, shape: tuple[int, ...], path: str) -> NDArray[np.float64]:
    if name not in meta:
        raise UserError(f"{path}: {name}: missing field")
    return numbers(_array(meta[name]), shape, f"{path}: {name}")
