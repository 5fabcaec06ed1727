"""WebDataset: tars with one sample per photo, its hands included."""

from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport, camera_field
from annotator.export.photo_encoding import StoredPhoto, as_others_read
from annotator.export.stored_photos import Address, At, PhotoOrError, Positions, stored_photos
from annotator.labels.arrays import array_of
from annotator.labels.folder import read_faces
from annotator.labels.schema import SAMPLES_ROUNDING
from annotator.photos.errors import PhotoError
from annotator.sources.read import location_of
from annotator.storage.files import atomic_file, is_local, join, local_path, write_atomic

#: A tar ends with the sample that exceeds this size: large enough to read quickly, small enough for many workers.
TAR_BYTES = 256 << 20

#: Photos prepared together, by one task; they and their hands wait in memory.
_PHOTOS_AT_ONCE = 128

HandArrays = tuple[dict[str, Any], dict[str, NDArray[Any]]]  # its scalars, its arrays

#: Arrays of a photo's hands, one row each, in `hands.npz`; columns that the labels lack are left out.
_ARRAYS = (
    *("box_xyxy", "crop_xyxy", "joints3d_mm", "joints3d_std_mm", "joints2d_px", "joints2d_std_px"),
    *("vertices_mm", "vertices_std_mm", "pose", "betas", "vertex_rgb", "vertex_visible"),
    *("joint_visible", "joint_visible_score"),
    *SAMPLES_ROUNDING,
)
_OF_PHOTO = (*("image_id", "image_uri", "duplicate", "frame_index", "frame_time_s", "width", "height"),)
_LEFT_OUT = ("status", "reason", "error")


def columns(labels: LabelsToExport) -> list[str]:
    """Return the names of the columns to read."""
    return [name for name in labels.columns if name not in _LEFT_OUT]


def local_photo(first: pa.Table) -> list[str]:
    """Return the path of the first photo if this machine has it: then all machines of a cluster need it."""
    frame = first["frame_index"][0].as_py() if "frame_index" in first.column_names else None
    path = location_of(first["image_uri"][0].as_py(), frame)[1]
    return [path] if is_local(path) and local_path(path).exists() else []


def write(labels: LabelsToExport, batches: Iterator[pa.Table], out: str) -> Exported:
    """Write `hands-000000.tar` and so on, and `faces.npy`, the triangles of right hands."""
    exported = Exported()
    with _Tars(out) as tars:
        for samples in labels.spread(_samples, None, _parts(batches)):
            for sample, hands in samples:
                if isinstance(sample, str):
                    exported.left_out[sample] += 1
                else:
                    tars.add(sample)
                    exported.hands += hands
    if exported.hands and "vertices_mm" in labels.columns:
        file = io.BytesIO()
        np.save(file, read_faces(labels.place).astype(np.int32))
        write_atomic(join(out, "faces.npy"), file.getvalue())
    return exported


def _parts(batches: Iterator[pa.Table]) -> Iterator[tuple[list[list[HandArrays]], list[At | None]]]:
    """Yield the hands of each photo (adjacent rows), some photos at a time, and the photos' positions."""
    positions = Positions()
    photos = (list(hands) for _, hands in groupby(_rows(batches), key=lambda hand: _address(hand[0])))
    while some := list(islice(photos, _PHOTOS_AT_ONCE)):
        yield some, positions.of([_stored_at(hands) for hands in some])


def _samples(
    _: None, photos: list[list[HandArrays]], positions: list[At | None]
) -> list[tuple[dict[str, bytes] | str, int]]:
    """Return the files of each photo's sample by extension, or why it is left out, and its number of hands."""
    stored = stored_photos([_stored_at(hands) for hands in photos], positions)
    return [(_sample(hands, photo), len(hands)) for hands, photo in zip(photos, stored, strict=True)]


def _stored_at(hands: list[HandArrays]) -> Address:
    return hands[0][0]["image_uri"], hands[0][0].get("frame_index")


def _address(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the key of a photo. A list may give each hand its own id; a duplicate is a photo of its own."""
    return row["image_uri"], row.get("frame_index"), row["image_id"] if row.get("duplicate") else None


def _rows(batches: Iterator[pa.Table]) -> Iterator[HandArrays]:
    """Yield each hand: its scalars, and its arrays that are not null."""
    for table in batches:
        heavy = [name for name in _ARRAYS if name in table.column_names]
        arrays = {name: array_of(table[name]) for name in heavy}
        valid = {name: table[name].is_valid().to_numpy() for name in heavy}
        if "camera" in table.column_names:
            for name in ("rotation", "translation", "cam_t_mm", "principal_px"):
                arrays[f"camera_{name}"] = camera_field(table, name)
                valid[f"camera_{name}"] = table["camera"].is_valid().to_numpy()
        for k, row in enumerate(table.drop_columns(heavy).to_pylist()):
            yield row, {name: values[k] for name, values in arrays.items() if valid[name][k]}


def _sample(hands: list[HandArrays], stored: PhotoOrError) -> dict[str, bytes] | str:
    first = hands[0][0]
    try:
        if isinstance(stored, PhotoError):
            raise stored
        photo = as_others_read(stored)
    except PhotoError as error:
        return f"photo {error.reason}"
    if (photo.width, photo.height) != (first["width"], first["height"]):
        return "photo with another size than the label"
    return _files(photo, hands)


def _files(photo: StoredPhoto, hands: list[HandArrays]) -> dict[str, bytes]:
    first = hands[0][0]
    about = {name: first[name] for name in _OF_PHOTO if name in first}
    own = [name for name in _OF_PHOTO if name != "image_id" or len({row[name] for row, _ in hands}) == 1]
    about["hands"] = [{name: value for name, value in row.items() if name not in own} for row, _ in hands]
    names = set.intersection(
        *(set(arrays) for _, arrays in hands)
    )  # a column is null for all hands of a photo or for none
    stacked: dict[str, Any] = {
        name: np.stack([arrays[name] for _, arrays in hands]) for name in sorted(names)
    }
    packed = io.BytesIO()
    np.savez(packed, **stacked)
    text = json.dumps(_plain(about), allow_nan=False, default=str)
    return {photo.suffix: photo.data, "json": text.encode(), "hands.npz": packed.getvalue()}


def _plain(value: Any) -> Any:
    """Return a value for strict JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Tars(ExitStack):
    """Tars in a folder; each appears when it is full."""

    def __init__(self, out: str) -> None:
        super().__init__()
        self._out, self._count, self._bytes, self._samples = out, 0, 0, 0
        self._tar: tarfile.TarFile | None = None

    def add(self, files: dict[str, bytes]) -> None:
        """Write a sample; its key is its number."""
        if self._tar is None:
            file = self.enter_context(atomic_file(join(self._out, f"hands-{self._count:06d}.tar")))
            self._tar = self.enter_context(tarfile.TarFile(fileobj=file, mode="w"))
        for extension, data in files.items():
            member = tarfile.TarInfo(f"{self._samples:09d}.{extension}")
            member.size = len(data)
            self._tar.addfile(member, io.BytesIO(data))
            self._bytes += len(data)
        self._samples += 1
        if self._bytes >= TAR_BYTES:
            self.close()
            self._tar, self._bytes, self._count = None, 0, self._count + 1
