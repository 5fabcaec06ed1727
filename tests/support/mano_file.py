"""A made-up hand in a file with the exact structure of the official `MANO_RIGHT.pkl`.

The geometry is ours: a right hand of boxes and tubes with MANO's 778 vertices, 1,538 triangles, 16 joints,
fingertip vertices and open wrist. The pickle is written opcode by opcode as Python 2 and chumpy did.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TIPS = (744, 320, 443, 555, 672)  # thumb to little
PALM_RINGS, FINGER_RINGS = 8, 16
JOINT_RINGS = (6, 11)  # of a finger, where its second and third joint lie
FIRST_JOINT = (13, 1, 4, 10, 7)  # thumb to little, MANO's numbering


@dataclass
class Sparse:
    """Stands for a `scipy.sparse.csc_matrix`."""

    full: np.ndarray


@dataclass
class Selected:
    """Stands for a `chumpy.reordering.Select` of a `chumpy.Ch`: the first `columns` of the last axis."""

    whole: np.ndarray
    columns: int


def mano_fields() -> dict[str, Any]:
    """The fields of the file by name: arrays of float64 and integers, `Sparse` and `Selected`."""
    rng = np.random.default_rng(0)
    vertices, faces, weights, regressor, along, girth = _hand()
    axes = np.eye(3)
    whole = np.zeros((778, 3, 20))
    whole[:, :, 0] = 0.04 * (vertices - vertices[0])
    for k in range(3):
        whole[:, :, 1 + k] = 0.03 * np.outer((vertices - vertices[0])[:, k], axes[k])
    whole[:, :, 4:9] = 0.002 * along.transpose(1, 2, 0)
    whole[:, :, 9] = 0.0005 * girth
    whole[:, :, 10:] = rng.normal(size=(778, 3, 10))  # the Select leaves these out
    mean = np.tile([0.02, -0.03, 0.4], 15)
    mean[36:] = np.tile([0.2, 0.1, 0.15], 3)
    coefficients = rng.normal(size=(1554, 45)) * np.linspace(1.2, 0.05, 45)
    parents = [4294967295, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
    return {
        "hands_components": np.linalg.qr(rng.normal(size=(45, 45)))[0],
        "f": faces.astype(np.uint32),
        "J_regressor": Sparse(regressor),
        "kintree_table": np.array([parents, range(16)]),
        "J": regressor @ vertices,
        "bs_style": "lbs",
        "hands_coeffs": coefficients,
        "weights": weights,
        "posedirs": np.asfortranarray((weights @ rng.normal(0, 5e-5, (16, 405))).reshape(778, 3, 135)),
        "hands_mean": mean,
        "v_template": vertices,
        "shapedirs": Selected(whole, 10),
        "bs_type": "lrotmin",
    }


def write_mano_file(path: Path, **changes: Any) -> dict[str, Any]:
    """Write the file and return its fields; `changes` replace fields, or remove those given as None."""
    fields = {name: value for name, value in (mano_fields() | changes).items() if value is not None}
    path.write_bytes(dump(fields))
    return fields


def left_fields() -> dict[str, Any]:
    """The fields that make the file a left hand's: mirrored in x, as the official left hand is."""
    fields = mano_fields()
    mirror = np.array([-1.0, 1.0, 1.0])
    return {
        "v_template": fields["v_template"] * mirror,
        "f": fields["f"][:, ::-1],
        "shapedirs": Selected(fields["shapedirs"].whole * mirror[:, None], 10),
        "posedirs": fields["posedirs"] * mirror[:, None],
        "J": fields["J"] * mirror,
        "hands_mean": fields["hands_mean"] * np.tile([1, -1, -1], 15),
    }


def _hand() -> tuple[np.ndarray, ...]:
    """Vertices (778, 3), faces, weights, joint regressor, finger stretch (5, 778, 3), radial direction."""
    points: list[np.ndarray] = []
    faces: list[tuple[int, ...]] = []
    weights = np.zeros((778, 16))
    regressor = np.zeros((16, 778))
    along = np.zeros((5, 778, 3))
    girth = np.zeros((778, 3))

    def quad(a: int, b: int, c: int, d: int) -> None:
        faces.extend([(a, b, c), (a, c, d)])

    # The palm: rings of 16, eight on the back from index to little, eight on the palm side the other way.
    for x in np.linspace(0.095, 0.0, PALM_RINGS):
        width = 0.04 - 0.12 * x
        across = np.linspace(width, -width, 8)
        points += [np.array([x, 0.012, z]) for z in across] + [np.array([x, -0.012, z]) for z in across[::-1]]
    weights[: 16 * PALM_RINGS, 0] = 1
    regressor[0, :16] = 1 / 16
    bases = []
    for ring in range(PALM_RINGS - 1):
        for k in range(16):
            here, there = 16 * ring, 16 * ring + 16
            corners = (here + k, here + (k + 1) % 16, there + (k + 1) % 16, there + k)
            if (ring, k) == (2, 15):
                bases.append(corners)  # the thumb grows from the index side
            else:
                quad(*corners)
    end = 16 * (PALM_RINGS - 1)
    for k in range(7):
        corners = (end + k, end + 15 - k, end + 14 - k, end + k + 1)
        if k % 2:
            quad(*corners[::-1])  # the web between two fingers
        else:
            bases.append(corners[::-1])

    directions = np.array(
        [[-0.6, -0.25, 0.75], [-1, -0.06, 0.1], [-1, -0.06, 0.03], [-1, -0.06, -0.04], [-1, -0.06, -0.12]]
    )
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    apexes = []
    for finger, (base, axis) in enumerate(zip(bases, directions, strict=True)):
        length = (0.078, 0.074, 0.082, 0.076, 0.06)[finger]
        first = FIRST_JOINT[finger]
        centre = np.mean([points[v] for v in base], axis=0)
        weights[list(base)] = 0
        weights[np.ix_(base, [0, first])] = 0.5
        regressor[first, list(base)] = 1 / 4
        u = points[base[0]] - centre
        u -= (u @ axis) * axis
        u /= np.linalg.norm(u)
        w = np.cross(axis, u)
        rings = []
        for k in range(FINGER_RINGS):
            share = (k + 1) / (FINGER_RINGS + 0.5)
            radius = (0.0105 if finger == 0 else 0.0095) - 0.003 * share
            bend = np.array([0, -0.006 * share**2, 0])
            rings.append(range(len(points), len(points) + 8))
            for angle in np.radians(45 * np.arange(8)):
                out = np.cos(angle) * u + np.sin(angle) * w
                along[finger, len(points)] = share * axis
                girth[len(points)] = out
                points.append(centre + share * length * axis + bend + radius * out)
            blend = np.clip([(k - JOINT_RINGS[0]) / 4 + 0.5, (k - JOINT_RINGS[1]) / 4 + 0.5], 0, 1)
            weights[rings[k], first : first + 3] = [1 - blend[0], blend[0] - blend[1], blend[1]]
        for joint, k in enumerate(JOINT_RINGS, start=first + 1):
            regressor[joint, rings[k]] = 1 / 8
        apexes.append(len(points))
        along[finger, len(points)] = axis
        weights[len(points), first + 2] = 1
        points.append(centre + length * axis + np.array([0, -0.006, 0]))

        ring = list(rings[0])
        for j in range(4):
            a, b, corner, middle, after = base[j], base[(j + 1) % 4], 2 * j, 2 * j + 1, (2 * j + 2) % 8
            faces.extend(
                [(a, b, ring[middle]), (a, ring[middle], ring[corner]), (b, ring[after], ring[middle])]
            )
        for near, far in itertools.pairwise(rings):
            for m in range(8):
                quad(near[m], near[(m + 1) % 8], far[(m + 1) % 8], far[m])
        faces.extend((rings[-1][m], rings[-1][(m + 1) % 8], apexes[-1]) for m in range(8))

    # Five more vertices, each in the middle of a triangle, make 778.
    for a, b, c in faces[:80:16]:
        new = len(points)
        points.append((points[a] + points[b] + points[c]) / 3)
        weights[new] = weights[[a, b, c]].mean(axis=0)
        faces.remove((a, b, c))
        faces.extend([(a, b, new), (b, c, new), (c, a, new)])

    order = np.arange(778)  # order[new number] = old number
    for tip, apex in zip(TIPS, apexes, strict=True):
        there = int(np.flatnonzero(order == apex)[0])
        order[[tip, there]] = order[[there, tip]]
    vertices = np.array(points)[order]
    renumbered = np.argsort(order)[np.array(faces)]
    return vertices, renumbered, weights[order], regressor[:, order], along[:, order], girth[order]


class _Python2Writer:
    """Protocol 2 as Python 2's cPickle wrote it: text and bytes are both BINSTRING."""

    def __init__(self) -> None:
        self.out = bytearray(b"\x80\x02")
        self.memo: dict[str, int] = {}

    def named(self, name: str) -> None:
        """`module name`, from the memo the second time."""
        if name in self.memo:
            self.out += b"h" + bytes([self.memo[name]])
        else:
            self.memo[name] = len(self.memo)
            self.out += b"c" + name.replace(" ", "\n").encode() + b"\nq" + bytes([self.memo[name]])

    def write(self, value: Any) -> None:
        match value:
            case None:
                self.out += b"N"
            case bool():
                self.out += b"\x88" if value else b"\x89"
            case int():
                self.out += b"J" + struct.pack("<i", value)
            case str():
                self.write(value.encode("latin1"))
            case bytes() if len(value) < 256:
                self.out += b"U" + bytes([len(value)]) + value
            case bytes():
                self.out += b"T" + struct.pack("<i", len(value)) + value
            case tuple():
                self.out += b"("
                self.each(value)
                self.out += b"t"
            case list():
                self.out += b"]("
                self.each(value)
                self.out += b"e"
            case dict():
                self.out += b"}("
                for pair in value.items():
                    self.each(pair)
                self.out += b"u"
            case set():
                self.called("__builtin__ set", (sorted(value),))
            case np.ndarray():
                self.array(value)
            case Sparse():
                self.sparse(value.full)
            case Selected():
                self.selected(value)
            case _:
                raise TypeError(type(value))

    def each(self, values: Any) -> None:
        for value in values:
            self.write(value)

    def called(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.named(name)
        self.write(arguments)
        self.out += b"R"

    def instance(self, name: str, state: dict[str, Any]) -> None:
        self.named(name)
        self.out += b")\x81"
        self.write(state)
        self.out += b"b"

    def array(self, array: np.ndarray) -> None:
        self.named("numpy.core.multiarray _reconstruct")
        self.out += b"("
        self.named("numpy ndarray")
        self.each([(0,), "b"])
        self.out += b"tR("
        self.each([1, array.shape])
        self.called("numpy dtype", (array.dtype.str[1:], 0, 1))
        self.write((3, array.dtype.str[0], None, None, None, -1, -1, 0))
        self.out += b"b"
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        self.each([fortran, array.tobytes("F" if fortran else "C")])
        self.out += b"tb"

    def sparse(self, full: np.ndarray) -> None:
        columns, rows = np.nonzero(full.T)
        starts = np.searchsorted(columns, np.arange(full.shape[1] + 1))
        state = {
            "indices": rows.astype(np.int32),
            "data": full.T[columns, rows],
            "maxprint": 50,
            "_shape": full.shape,
            "indptr": starts.astype(np.int32),
        }
        self.instance("scipy.sparse.csc csc_matrix", state)

    def selected(self, selected: Selected) -> None:
        whole, columns = selected.whole, selected.columns
        common = {"_make_sparse": False, "_dirty_vars": set(), "_itr": None, "_depends_on_deps": {}}
        picked = np.arange(whole.size).reshape(whole.shape)[..., :columns]
        self.named("chumpy.reordering Select")
        self.out += b")\x81}("
        self.write("a")
        self.instance("chumpy.ch Ch", common | {"x": whole, "_status": "new"})
        for pair in (common | {"preferred_shape": picked.shape, "idxs": picked.ravel()}).items():
            self.each(pair)
        self.out += b"ub"


def dump(value: Any) -> bytes:
    """The pickle of a value, as Python 2 wrote it."""
    writer = _Python2Writer()
    writer.write(value)
    return bytes(writer.out) + b"."
