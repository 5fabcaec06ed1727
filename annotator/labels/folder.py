"""A label folder from the outside: its files, what its metadata says, and what lies beside the rows.

LABELS/data/*.parquet   the rows, and nothing else
LABELS/faces.parquet    the triangles of every mesh in it, for right hands; a left hand's winding is reversed
LABELS/_run.json        settings and outcomes
LABELS/_entries/        which photo is in which file
LABELS/_outcomes/       what became of each file's photos
LABELS/_lease.json      while a run writes here
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator.errors import UserError
from annotator.labels.schema import ROUNDING, SAMPLES_ROUNDING, SCHEMA_VERSION, encode_table
from annotator.quality.calibration import Calibration, read_calibration
from annotator.storage.files import join, names_in, open_file, write_whole

if TYPE_CHECKING:
    from annotator.hand import HandModel
    from annotator.model.checkpoint import Checkpoint
    from annotator.quality.calibration import Calibration


def label_metadata(checkpoint: Checkpoint, samples: int = 0) -> dict[str, str]:
    """Describe label files with `samples` drawn meshes per hand: JSON, the key `amvur` of their Parquet metadata."""
    info = checkpoint.info
    return _metadata(
        checkpoint.id,
        checkpoint.hand,
        info.calibration,
        samples,
        trained_steps=info.trained_steps,
        std_is_constant=info.network.variant == "prior_net",
        crop_px=checkpoint.cut_px,
    )


def fit_metadata(
    fit: str, hand: HandModel, config: dict[str, Any], calibration: Calibration
) -> dict[str, str]:
    """Return the same facts for the labels of `amvur fit`; `config` takes the place of a network's facts."""
    return _metadata(fit, hand, calibration, std_is_constant=False, fit=config)


def _metadata(
    maker: str, hand: HandModel, calibration: Calibration, samples: int = 0, **facts: Any
) -> dict[str, str]:
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
    write_whole(join(labels, "faces.parquet"), encode_table(pa.table(columns)))


def read_faces(labels: str) -> np.ndarray:
    """The triangles (F, 3) int64 of a label folder's meshes."""
    with open_file(join(labels, "faces.parquet")) as file:
        # A thread of Arrow's that still lets go of Python's file when the program ends aborts it.
        table = pq.ParquetFile(file).read(use_threads=False)
    return np.stack([table[name].to_numpy() for name in ("a", "b", "c")], 1).astype(np.int64)


def label_files(labels: str) -> set[str]:
    """Names of the label files that are there."""
    return {name for name in names_in(join(labels, "data")) if name.endswith(".parquet") and name[0] != "."}


def read_columns(labels: str, file_name: str, columns: list[str] | None = None) -> pa.Table:
    """Some columns of one label file.

    Raises:
        UserError: the file is damaged.
    """
    path = join(labels, "data", file_name)
    try:
        with open_file(path) as file:
            return pq.ParquetFile(file).read(columns, use_threads=False)
    except pa.ArrowInvalid:
        raise _damaged(path) from None


def label_columns(labels: str, file_name: str) -> list[str]:
    """The names of a label file's columns.

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
    return UserError(f"'{path}' is damaged: delete it and run the same command again")


@contextmanager
def opened_label_file(path: str) -> Iterator[pq.ParquetFile]:
    """A label file to read parts of.

    Raises:
        UserError: it is damaged, or something else.
    """
    try:
        with open_file(path) as raw:
            yield pq.ParquetFile(raw, pre_buffer=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        words = str(error).splitlines()[0]
        raise UserError(f"'{path}' is damaged, or no label file: {words}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise UserError(f"'{path}' is damaged: {str(error).splitlines()[0]}") from None


def label_facts(path: str, schema: pa.Schema) -> dict[str, Any]:
    """What a label file says of itself.

    Raises:
        UserError: it is none, or of another schema version.
    """
    try:
        facts = json.loads((schema.metadata or {})[b"amvur"])
        version = int(facts["schema_version"])
    except (KeyError, ValueError, TypeError):
        raise UserError(
            f"'{path}' is no label file, for it does not say so (key 'amvur' of its metadata): give a folder that "
            "`amvur annotate`, `detect` or `filter` wrote"
        ) from None
    if facts.get("examples"):
        raise UserError(f"'{path}' holds training examples, not labels: give the labels they were made of")
    if version != SCHEMA_VERSION:
        further = "update amvur" if version > SCHEMA_VERSION else "label the photos again"
        raise UserError(
            f"'{path}' is of label schema {version}, this amvur reads schema {SCHEMA_VERSION}: {further}"
        )
    return facts


def calibration_of(path: str, facts: dict[str, Any]) -> Calibration:
    """Return the calibration in a label file's metadata; of labels that no network made, one without a fit.

    Raises:
        UserError: it is of another amvur.
    """
    return read_calibration(facts.get("calibration", {}), f"'{path}': calibration")


def one_hand(path: str, facts: dict[str, Any], hand: str | None) -> None:
    """Nothing, if a file's meshes are of that hand model (None: it has none).

    Raises:
        UserError: they are of another.
    """
    if facts.get("hand") != hand:
        raise UserError(
            f"'{path}' is of hand model {facts.get('hand')}, other files are of {hand}: meshes of several hand models "
            "can't be mixed; keep them in folders of their own"
        )


def groups_that_stay(file: pq.ParquetFile, stay: NDArray[np.bool_]) -> tuple[list[int], NDArray[np.bool_]]:
    """The row groups in which any row stays, and which of their rows do: the others need not be read."""
    groups, masks, start = [], [np.zeros(0, bool)], 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if stay[start:end].any():
            groups.append(group)
            masks.append(stay[start:end])
        start = end
    return groups, np.concatenate(masks)


def replace_rows(labels: str, file_name: str, table: pa.Table, ids: list[str]) -> pa.Table:
    """A label file's table with the rows of some entries in place of those it had; `ids`: of all entries in order."""
    again = table["image_id"].combine_chunks()
    old = read_columns(labels, file_name)
    kept = old.filter(pc.invert(pc.is_in(old["image_id"], again)))
    columns = [
        kept[field.name].cast(field.type)
        if field.name in kept.column_names
        else pa.nulls(len(kept), field.type)
        for field in table.schema
    ]
    both = pa.concat_tables([pa.Table.from_arrays(columns, schema=table.schema), table])
    place = pc.index_in(both["image_id"], value_set=pa.array(ids))
    order = np.lexsort((both["hand_index"].to_numpy(), place.to_numpy()))
    return both.take(order)
