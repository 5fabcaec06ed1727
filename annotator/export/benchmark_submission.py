"""Submission files of FreiHAND and HO3D, from labels of their evaluation photos."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from annotator.errors import UserError
from annotator.export.benchmark_files import BENCHMARKS, Benchmark, write_submission
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport, camera_field
from annotator.hand.mano_mesh import check_mano_vertices
from annotator.labels.arrays import array_of
from annotator.storage.files import join, read_if_exists

_NEEDED = ("image_uri", "image_id", "is_right", "joints3d_mm", "vertices_mm", "camera")

#: Names of the downloaded photos.
_FREIHAND_NAME = re.compile(r"(?:^|/)(\d{8})\.\w+$")
_HO3D_NAME = re.compile(r"^(?:(.*)/)?evaluation/([^/]+)/rgb/([^/.]+)\.\w+$")


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read.

    Raises:
        UserError: the hand model is not MANO.
    """
    labels.need_meshes("a submission")
    check_mano_vertices("the benchmark", labels.hand, labels.vertex_count)
    return list(_NEEDED)


def write_freihand(labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write a submission to FreiHAND, in the order of the photos' numbers (`00000000.jpg` and so on).

    Raises:
        UserError: there are other photos or left hands, or a photo is missing or repeated.
    """

    def positions(ids: list[str], uris: list[str]) -> list[int]:
        numbers = []
        for image_id in ids:
            name = _FREIHAND_NAME.search(image_id)
            if not name:
                raise UserError(
                    f"'{image_id}' is not a photo of FreiHAND's evaluation (00000000.jpg to 00003959.jpg)"
                )
            numbers.append(int(name[1]))
        return numbers

    hands = _Hands(labels, batches)
    benchmark = BENCHMARKS["freihand"]
    hands.check_count([benchmark])
    return hands.submit(out, benchmark, positions)


def write_ho3d(
    labels: LabelsToExport, batches: Iterator[pa.Table], out: str, order: str | None = None
) -> Exported:
    """Write a submission to HO3D, in the order of `evaluation.txt`; the number of photos decides between v2 and v3.

    Raises:
        UserError: as for FreiHAND, or the list is missing.
    """

    def positions(ids: list[str], uris: list[str]) -> list[int]:
        names = []
        for uri in uris:
            name = _HO3D_NAME.search(uri)
            if not name:
                raise UserError(
                    f"'{uri}' is not a photo of HO3D's evaluation (evaluation/SEQUENCE/rgb/FRAME)"
                )
            names.append(name)
        lines = _order(order or join("." if names[0][1] is None else names[0][1], "evaluation.txt"))
        return [lines.get(f"{name[2]}/{name[3]}", -1) for name in names]

    hands = _Hands(labels, batches)
    return hands.submit(out, hands.check_count([BENCHMARKS["ho3d_v2"], BENCHMARKS["ho3d_v3"]]), positions)


def _order(path: str) -> dict[str, int]:
    text = read_if_exists(path)
    if text is None:
        raise UserError(
            f"there is no '{path}', which holds the order of HO3D's hands: give --order PATH of its evaluation.txt"
        )
    lines = text.decode("utf-8", "replace").split()
    return {line: position for position, line in enumerate(lines)}


class _Hands:
    """All hands of a submission, in memory: benchmarks have few."""

    def __init__(self, labels: LabelsToExport, batches: Iterator[pa.Table]) -> None:
        self._labels = labels
        tables = []
        most = max(benchmark.entries for benchmark in BENCHMARKS.values())
        self.count = 0
        for table in batches:
            self.count += len(table)
            if self.count <= most:  # more than any benchmark has: only the count matters
                tables.append(table)
        self._table = pa.concat_tables(tables)

    def check_count(self, candidates: list[Benchmark]) -> Benchmark:
        """Return the benchmark with as many photos as there are hands.

        Raises:
            UserError: no benchmark matches.
        """
        for benchmark in candidates:
            if benchmark.entries == self.count:
                return benchmark
        wanted = " or ".join(f"{b.title} {b.entries}" for b in candidates)
        other = self._labels.rows - self.count
        without = f" ({other} more rows are not exported)" if other else ""
        raise UserError(
            f"a submission needs one hand per photo, {wanted}, found {self.count}{without}: label the whole "
            "evaluation split without a detector, each photo once"
        )

    def submit(
        self, out: str, benchmark: Benchmark, positions: Callable[[list[str], list[str]], list[int]]
    ) -> Exported:
        """Write the files; `positions` maps ids and uris to positions in the benchmark's list, -1 if not in it."""
        table = self._table
        left = self.count - sum(table["is_right"].to_pylist())
        if left:
            raise UserError(
                f"{benchmark.title} has only right hands, but {left} of these are left: label with --side right"
            )
        ids, uris = table["image_id"].to_pylist(), table["image_uri"].to_pylist()
        at = np.array(positions(ids, uris))
        for position, image_id in zip(at, ids, strict=True):
            if not 0 <= position < benchmark.entries:
                raise UserError(f"'{image_id}' is not in {benchmark.title}'s evaluation")
        rows = np.argsort(at, kind="stable")
        for first, second in itertools.pairwise(rows):
            if at[first] == at[second]:
                raise UserError(f"'{ids[first]}' and '{ids[second]}' are the same photo of {benchmark.title}")
        arrays = (
            array_of(table["joints3d_mm"]),
            array_of(table["vertices_mm"]),
            camera_field(table, "cam_t_mm"),
        )
        joints3d_mm, vertices_mm, wrist_mm = (values[rows] for values in arrays)
        write_submission(out, benchmark, joints3d_mm, vertices_mm, wrist_mm)
        return Exported(self.count)
