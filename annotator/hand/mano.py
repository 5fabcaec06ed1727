"""Read MANO from the official file (Romero et al., 2017), safely and without chumpy or SciPy.

The file was written by Python 2. It refers to seven globals, listed in `_GLOBALS`. A file with any other global is
refused, with its name, before any code runs.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np

from annotator.errors import UserError
from annotator.hand.mano_mesh import TIP_VERTICES, VERTEX_COUNT
from annotator.hand.model import HandModel
from annotator.hand.regressor import fit_joint_regressor
from annotator.runtime import safe_pickle

_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
_EXPECTED = "expected mano_v1_2/models/MANO_RIGHT.pkl from https://mano.is.tue.mpg.de"


class _FieldError(Exception):
    """A field is missing or invalid for MANO; the message names it."""


class _Sparse(safe_pickle.StoredObject):
    """`scipy.sparse.csc_matrix`: `data`, `indices`, `indptr`."""


class _Ch(safe_pickle.StoredObject):
    """`chumpy.Ch`: an array `x`."""


class _Select(safe_pickle.StoredObject):
    """`chumpy.reordering.Select`: `a` flattened, taken at `idxs`, shaped `preferred_shape`."""


_GLOBALS: safe_pickle.Globals = {
    ("__builtin__", "set"): lambda items=(): items,
    ("numpy", "dtype"): safe_pickle.StoredDtype,
    ("numpy", "ndarray"): safe_pickle.never,
    ("numpy.core.multiarray", "_reconstruct"): safe_pickle.StoredArray,
    ("scipy.sparse.csc", "csc_matrix"): _Sparse,
    ("chumpy.ch", "Ch"): _Ch,
    ("chumpy.reordering", "Select"): _Select,
}


def read_mano(path: str | Path) -> HandModel:
    """Return MANO's right hand from its official `MANO_RIGHT.pkl`, metres.

    `hands_std` is the std of the file's 1,554 scans along each pose component. The joint regressor `R` is fitted here
    on posed meshes, in a fraction of a second.

    Raises:
        UserError: the file can't be read, is refused by `safe_pickle.load`, or is not MANO's right hand; or the
            extra `mano`, which poses it, is not installed.
    """
    try:
        with Path(path).open("rb") as file:
            stored = safe_pickle.load(file, _GLOBALS, str(path))
        arrays = _arrays(stored)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; {_EXPECTED}") from None
    except UserError as error:
        raise UserError(f"{error}; {_EXPECTED}") from None
    except _FieldError as error:
        raise UserError(f"{path}: {error}; {_EXPECTED}") from None
    hand = HandModel(
        name="mano",
        tip_vertices=np.array(TIP_VERTICES, dtype=np.int64),
        joint_regressor=np.zeros((21, VERTEX_COUNT), dtype=np.float32),
        **arrays,
    )
    if not _is_right(hand):
        raise UserError(f"{path}: this is a left hand (MANO_LEFT.pkl?); {_EXPECTED}")
    return dataclasses.replace(hand, joint_regressor=fit_joint_regressor(hand)[0])


def _arrays(stored: object) -> dict[str, np.ndarray]:
    """Return the fields of `HandModel` from the file, checked."""
    if type(stored) is not dict:
        raise _FieldError("has no named fields")
    v = VERTEX_COUNT
    if _array(_field(stored, "v_template"), "v_template").shape == (6890, 3):
        raise _FieldError("holds a body of 6,890 vertices (SMPL?), not a hand")

    def floats(name: str, *shape: int) -> np.ndarray:
        return _shaped(_array(_field(stored, name), name), name, shape).astype(np.float32)

    weights = floats("weights", v, 16)
    if not np.allclose(weights.sum(axis=1), 1, atol=1e-3):
        raise _FieldError("weights do not add up to 1 at every vertex")
    coefficients = stored.get("hands_coeffs")
    return {
        "v_template": floats("v_template", v, 3),
        "faces": _faces(_field(stored, "f")),
        "shapedirs": floats("shapedirs", v, 3, 10),
        "posedirs": floats("posedirs", v, 3, 135),
        "J_regressor": _dense(_field(stored, "J_regressor"), "J_regressor", (16, v)),
        "weights": weights,
        "kintree_table": _kinematic_tree(_field(stored, "kintree_table")),
        "hands_mean": floats("hands_mean", 45),
        "hands_components": floats("hands_components", 45, 45),
        # Files reduced for sharing lack the coefficients of the scans.
        "hands_std": np.ones(45, dtype=np.float32) if coefficients is None else _spread(coefficients),
    }


def _field(fields: dict[str, Any], name: str) -> Any:
    try:
        return fields[name]
    except KeyError:
        raise _FieldError(f"has no field {name}") from None


def _array(value: object, name: str) -> np.ndarray:
    """Return the array of a stored array, `Ch` or `Select`."""
    match value:
        case safe_pickle.StoredArray():
            return value.array()
        case _Ch():
            x = _field(value.state, "x")
            if isinstance(x, safe_pickle.StoredArray):
                return x.array()
        case _Select():
            inside = value.state.get("a")
            if isinstance(inside, _Ch | safe_pickle.StoredArray):
                return _selected(_array(inside, name), value.state, name)
    raise _FieldError(f"{name} is not an array")


def _selected(full: np.ndarray, state: dict[str, Any], name: str) -> np.ndarray:
    indices = _integers(_field(state, "idxs"), f"{name}'s selection").ravel()
    if indices.size and not 0 <= indices.min() <= indices.max() < full.size:
        raise _FieldError(f"{name} selects values that do not exist")
    shape = _field(state, "preferred_shape")
    sizes = shape if type(shape) is tuple and all(type(n) is int and 0 <= n < 2**31 for n in shape) else ()
    if math.prod(sizes) != indices.size:
        raise _FieldError(f"{name} selects {indices.size} values for a shape of another size")
    return full.ravel()[indices].reshape(sizes)


def _integers(value: object, name: str) -> np.ndarray:
    array = _array(value, name)
    if array.dtype.kind not in "iu":
        raise _FieldError(f"{name} does not hold integers")
    return array.astype(np.int64)


def _shaped(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape:
        raise _FieldError(f"{name} has shape {array.shape}, MANO's is {shape}")
    if not np.isfinite(array).all():
        raise _FieldError(f"{name} holds values that are not finite")
    return array


def _dense(value: object, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Convert a compressed-column matrix to a dense one, float32."""
    if not isinstance(value, _Sparse):
        return _shaped(_array(value, name), name, shape).astype(np.float32)
    data = _array(_field(value.state, "data"), name)
    rows = _integers(_field(value.state, "indices"), name)
    starts = _integers(_field(value.state, "indptr"), name)
    is_valid = (
        value.state.get("_shape", shape) == shape
        and data.shape == rows.shape == (data.size,)
        and starts.shape == (shape[1] + 1,)
        and starts[0] == 0
        and starts[-1] == data.size
        and (np.diff(starts) >= 0).all()
        and (rows >= 0).all()
        and (rows < shape[0]).all()
    )
    if not is_valid:
        raise _FieldError(f"{name} is not a sparse matrix of shape {shape}")
    full = np.zeros(shape)
    np.add.at(full, (rows, np.repeat(np.arange(shape[1]), np.diff(starts))), data)
    return _shaped(full, name, shape).astype(np.float32)


def _faces(stored: object) -> np.ndarray:
    faces = _integers(stored, "f")
    if faces.ndim != 2 or faces.shape[1] != 3 or faces.size == 0:
        raise _FieldError(f"f has shape {faces.shape}, MANO's is (1538, 3)")
    if not 0 <= faces.min() <= faces.max() < VERTEX_COUNT:
        raise _FieldError("f refers to vertices that do not exist")
    return faces.astype(np.int32)


def _kinematic_tree(stored: object) -> np.ndarray:
    tree = _shaped(_integers(stored, "kintree_table"), "kintree_table", (2, 16))
    # The file writes the wrist's parent as the largest 32-bit number.
    tree[0] = np.where(tree[0] == 2**32 - 1, -1, tree[0])
    if tuple(tree[0]) != _PARENTS or tuple(tree[1]) != tuple(range(16)):
        raise _FieldError("kintree_table is not the tree of a hand with five fingers of three joints")
    return tree


def _spread(stored: object) -> np.ndarray:
    coefficients = _array(stored, "hands_coeffs")
    if coefficients.ndim != 2 or not len(coefficients):
        raise _FieldError(f"hands_coeffs has shape {coefficients.shape}, MANO's is (1554, 45)")
    return _shaped(coefficients, "hands_coeffs", (len(coefficients), 45)).std(axis=0).astype(np.float32)


def _is_right(hand: HandModel) -> bool:
    """Return whether the mean pose bends the fingers like a right hand.

    On a right hand the flexion axis points from the little finger's knuckle to the index finger's. The template
    itself does not help, because its fingers are straight.
    """
    joints = hand.J_regressor @ hand.v_template
    index, little = joints[1], joints[7]
    flexion = hand.hands_mean.reshape(15, 3)[:12].sum(axis=0)
    return bool(flexion @ (index - little) > 0)
