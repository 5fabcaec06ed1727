"""FreiHAND's and HO3D's submission files from labels of their evaluation photos."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from annotator.errors import UserError
from annotator.export.benchmarks import BENCHMARKS, Benchmark, write_submission
from annotator.export.exported import Exported
from annotator.export.rows import Labels, camera_of
from annotator.hand.mano_mesh import check_mano_vertices
from annotator.labels.arrays import array_of
from annotator.storage.files import join, read_whole

_NEEDED = ("image_uri", "image_id", "is_right", "joints3d_mm", "vertices_mm", "camera")

#: The photos' names, as they are downloaded.
_FREIHAND_NAME = re.compile(r"(?:^|/)(\d{8})\.\w+$")
_HO3D_NAME = re.compile(r"^(?:(.*)/)?evaluation/([^/]+)/rgb/([^/.]+)\.\w+$")


def columns(labels: Labels) -> list[str]:
    """What it reads.

    Raises:
        UserError: the hands are not MANO's.
    """
    labels.need_meshes("a submission")
    check_mano_vertices("the benchmark", labels.hand, labels.vertex_count)
    return list(_NEEDED)


def write_freihand(labels: Labels, batches: Iterator[pa.Table], out: str) -> Exported:
    """Photos in the order of their numbers, `00000000.jpg` and on.

    Raises:
        UserError: other photos, a hand that is left, or not each photo once.
    """

    def places(ids: list[str], uris: list[str]) -> list[int]:
        found = []
        for image_id in ids:
            name = _FREIHAND_NAME.search(image_id)
            if not name:
                raise UserError(
                    f"'{image_id}' is no photo of FreiHAND's evaluation, which are 00000000.jpg to 00003959.jpg"
                )
            found.append(int(name[1]))
        return found

    hands = _Hands(labels, batches)
    benchmark = BENCHMARKS["freihand"]
    hands.check_count([benchmark])
    return hands.submit(out, benchmark, places)


def write_ho3d(labels: Labels, batches: Iterator[pa.Table], out: str, order: str | None = None) -> Exported:
    """Photos in the order of `evaluation.txt`; v2 or v3 by how many there are.

    Raises:
        UserError: as for FreiHAND; or there is no such list.
    """

    def places(ids: list[str], uris: list[str]) -> list[int]:
        names = []
        for uri in uris:
            name = _HO3D_NAME.search(uri)
            if not name:
                raise UserError(
                    f"'{uri}' is no photo of HO3D's evaluation, which are evaluation/SEQUENCE/rgb/FRAME"
                )
            names.append(name)
        lines = _order(order or join("." if names[0][1] is None else names[0][1], "evaluation.txt"))
        return [lines.get(f"{name[2]}/{name[3]}", -1) for name in names]

    hands = _Hands(labels, batches)
    return hands.submit(out, hands.check_count([BENCHMARKS["ho3d_v2"], BENCHMARKS["ho3d_v3"]]), places)


def _order(path: str) -> dict[str, int]:
    text = read_whole(path)
    if text is None:
        raise UserError(
            f"there is no '{path}', which says in what order HO3D wants its hands: give --order PATH of its "
            "evaluation.txt"
        )
    lines = text.decode("utf-8", "replace").split()
    return {line: place for place, line in enumerate(lines)}


class _Hands:
    """All hands at once: a benchmark has few, and its file is written whole."""

    def __init__(self, labels: Labels, batches: Iterator[pa.Table]) -> None:
        self._labels = labels
        tables = []
        most = max(benchmark.entries for benchmark in BENCHMARKS.values())
        self.count = 0
        for table in batches:
            self.count += len(table)
            if self.count <= most:  # of more, only their number matters
                tables.append(table)
        self._table = pa.concat_tables(tables)

    def check_count(self, among: list[Benchmark]) -> Benchmark:
        """The benchmark that has as many photos as there are hands.

        Raises:
            UserError: none has.
        """
        for benchmark in among:
            if benchmark.entries == self.count:
                return benchmark
        wanted = " or ".join(f"{b.title} {b.entries}" for b in among)
        other = self._labels.rows - self.count
        without = f" ({other} more rows are not exported)" if other else ""
        raise UserError(
            f"a submission has a hand of each photo, {wanted}, found {self.count}{without}: label the whole "
            "evaluation split without a detector, each photo once"
        )

    def submit(
        self, out: str, benchmark: Benchmark, places: Callable[[list[str], list[str]], list[int]]
    ) -> Exported:
        """Write the files; `places`: where in the benchmark's list each photo is, by ids and uris; -1 nowhere."""
        table = self._table
        left = self.count - sum(table["is_right"].to_pylist())
        if left:
            raise UserError(
                f"{benchmark.title} has right hands only, {left} of these are left ones: label with --side right"
            )
        ids, uris = table["image_id"].to_pylist(), table["image_uri"].to_pylist()
        at = np.array(places(ids, uris))
        for place, image_id in zip(at, ids, strict=True):
            if not 0 <= place < benchmark.entries:
                raise UserError(f"'{image_id}' is not in {benchmark.title}'s evaluation")
        rows = np.argsort(at, kind="stable")
        for first, second in itertools.pairwise(rows):
            if at[first] == at[second]:
                raise UserError(f"'{ids[first]}' and '{ids[second]}' are one photo of {benchmark.title}")
        arrays = array_of(table["joints3d_mm"]), array_of(table["vertices_mm"]), camera_of(table, "cam_t_mm")
        joints3d_mm, vertices_mm, wrist_mm = (values[rows] for values in arrays)
        write_submission(out, benchmark, joints3d_mm, vertices_mm, wrist_mm)
        return Exported(self.count)
