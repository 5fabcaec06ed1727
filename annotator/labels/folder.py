"""Read and write the files of a label set, and their metadata.

LABELS/data/*.parquet   the rows
LABELS/faces.parquet    the triangles of all meshes, for right hands; a left hand's winding is reversed
LABELS/_run.json        settings and outcomes
LABELS/_entries/        the photos of each label file
LABELS/_outcomes/       the counts of statuses per label file
LABELS/_lease.json      exists while a run writes here
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError, first_line
from annotator.hand import HandModel, load_hand
from annotator.labels.schema import ROUNDING, SAMPLES_ROUNDING, SCHEMA_VERSION, encode_table
from annotator.quality.calibration import Calibration, read_calibration
from annotator.storage.files import join, names_in, open_file, sizes_in, write_atomic

#: Beside the rows: settings and outcomes, the running run's lease, entries per label file, outcomes per label file.
RUN_FILE, LEASE_FILE, ENTRIES_FOLDER, OUTCOMES_FOLDER = "_run.json", "_lease.json", "_entries", "_outcomes"


def label_metadata(
    maker: str, hand: HandModel, calibration: Calibration, samples: int = 0, **facts: Any
) -> dict[str, str]:
    """Return the Parquet metadata of label files: JSON under the key `amvur`.

    Args:
        maker: id of the checkpoint or fit.
        hand: its hand model.
        calibration: of the std in the labels.
        samples: samples per hand.
        facts: further values, about the network or the fit.
    """
    drawn = {"joints3d_samples_mm": [samples, 21, 3], "vertices_samples_mm": [samples, hand.vertex_count, 3]}
    common = {
        "schema_version": SCHEMA_VERSION,
        "checkpoint": maker,
        "hand": hand.id,
        "calibration": asdict(calibration),
        "shapes": {
            "joints3d_mm": [21, 3],
            "joints2d_px": [21, 2],
            "vertices_mm": [hand.vertex_count, 3],
        }
        | (drawn if samples else {}),
        "rounding": ROUNDING | (SAMPLES_ROUNDING if samples else {}),
    }
    return {"amvur": json.dumps(common | facts, sort_keys=True)}


def write_faces(labels: str, faces: np.ndarray) -> None:
    """Write the triangles (F, 3) of the hand model."""
    columns = {name: faces[:, k].astype(np.int32) for k, name in enumerate(("a", "b", "c"))}
    write_atomic(join(labels, "faces.parquet"), encode_table(pa.table(columns)))


def read_faces(labels: str) -> np.ndarray:
    """Return the triangles (F, 3) int64 of a label set's meshes."""
    with open_file(join(labels, "faces.parquet")) as file:
        # Without threads: an Arrow thread that closes Python's file at exit would abort the process.
        table = pq.ParquetFile(file).read(use_threads=False)
    return np.stack([table[name].to_numpy() for name in ("a", "b", "c")], 1).astype(np.int64)


def label_files(labels: str) -> set[str]:
    """Return the names of the existing label files."""
    return {name for name in names_in(join(labels, "data")) if name.endswith(".parquet") and name[0] != "."}


def label_file_sizes(labels: str) -> dict[str, int]:
    """Return the size in bytes of each label file by name."""
    sizes = sizes_in(join(labels, "data"))
    return {name: size for name, size in sizes.items() if name.endswith(".parquet") and name[0] != "."}


def read_columns(labels: str, file_name: str, columns: list[str] | None = None) -> pa.Table:
    """Return the given columns of a label file; default: all.

    Raises:
        UserError: the file is damaged.
    """
    path = join(labels, "data", file_name)
    try:
        with open_file(path) as file:
            return pq.ParquetFile(file).read(columns, use_threads=False)
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def column_names(labels: str, file_name: str) -> list[str]:
    """Return the column names of a label file.

    Raises:
        UserError: the file is damaged.
    """
    path = join(labels, "data", file_name)
    try:
        with open_file(path) as file:
            return pq.read_schema(file).names
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def _damaged(path: str) -> UserError:
    return UserError(f"'{path}' is damaged: delete it and repeat the run that wrote it")


@contextmanager
def opened_label_file(path: str, raw: IO[bytes] | None = None) -> Iterator[pq.ParquetFile]:
    """Open a label file to read parts of it, from its path or through an open file `raw`.

    Raises:
        UserError: the file is damaged, or not a label file.
    """
    try:
        with raw or open_file(path) as file:
            yield pq.ParquetFile(file, pre_buffer=raw is None)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        reason = first_line(error)
        raise UserError(f"'{path}' is damaged, or not a label file: {reason}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"'{path}' is damaged: {first_line(error)}") from None


def label_facts(path: str, schema: pa.Schema) -> dict[str, Any]:
    """Return the facts in a label file's metadata.

    Raises:
        UserError: the file is not a label file, or has another schema version.
    """
    try:
        facts = json.loads((schema.metadata or {})[b"amvur"])
        version = int(facts["schema_version"])
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"'{path}' is not a label file (its metadata has no valid key 'amvur'): give a label set"
        ) from None
    if facts.get("examples"):
        raise UserError(f"'{path}' holds training examples, not labels: give the labels they were made from")
    if version != SCHEMA_VERSION:
        remedy = "update amvur" if version > SCHEMA_VERSION else "label the photos again"
        raise UserError(
            f"'{path}' has label schema {version}, this amvur reads schema {SCHEMA_VERSION}: {remedy}"
        )
    return facts


def calibration_of(path: str, facts: dict[str, Any]) -> Calibration:
    """Return the calibration in a label file's metadata; for labels without a network, an unfitted one.

    Raises:
        UserError: the calibration is from an incompatible amvur version.
    """
    return read_calibration(facts.get("calibration", {}), f"'{path}': calibration")


def check_hand_model(path: str, facts: dict[str, Any], hand: str | None) -> None:
    """Check that a file's meshes use the given hand model (None: no meshes).

    Raises:
        UserError: they use another hand model.
    """
    if facts.get("hand") != hand:
        raise UserError(
            f"'{path}' uses hand model {facts.get('hand')}, other files use {hand}: meshes of several hand models "
            "can't be mixed; keep them in separate folders"
        )


def hand_of_labels(title: str, hand_id: str, name: str) -> HandModel:
    """Return the hand model of a label set, loaded by its name.

    Args:
        title: of the label set, for messages. hand_id: of its hand model.
        name: as for `load_hand`.

    Raises:
        UserError: the name is that of another hand model.
    """
    model = load_hand(name)
    if model.id != hand_id:
        raise UserError(
            f"'{title}' uses hand model {hand_id}, not {model.id}: give the labels' hand model as hand "
            "(--hand open, or --hand mano:PATH)"
        )
    return model


def kept_groups(file: pq.ParquetFile, is_kept: NDArray[np.bool_]) -> tuple[list[int], NDArray[np.bool_]]:
    """Return the row groups with any row to keep, and the mask of kept rows within them; skip the other groups."""
    groups, masks, start = [], [np.zeros(0, bool)], 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if is_kept[start:end].any():
            groups.append(group)
            masks.append(is_kept[start:end])
        start = end
    return groups, np.concatenate(masks)


def replace_rows(labels: str, file_name: str, table: pa.Table, ids: list[str]) -> pa.Table:
    """Return a label file's table with the rows of `table` replacing those of the same entries.

    `ids` are the ids of all entries of the file, in their order.
    """
    replaced = table["image_id"].combine_chunks()
    old = read_columns(labels, file_name)
    kept = old.filter(pc.invert(pc.is_in(old["image_id"], replaced)))
    columns = [
        kept[field.name].cast(field.type)
        if field.name in kept.column_names
        else pa.nulls(len(kept), field.type)
        for field in table.schema
    ]
    both = pa.concat_tables([pa.Table.from_arrays(columns, schema=table.schema), table])
    position = pc.index_in(both["image_id"], value_set=pa.array(ids))
    order = np.lexsort((both["hand_index"].to_numpy(), position.to_numpy()))
    return both.take(order)
