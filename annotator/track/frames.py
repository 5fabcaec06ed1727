"""The frames of a sequence: their numbers and times, from columns of labels or of a list."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from annotator.errors import UserError

Floats = NDArray[np.floating]

#: Frames per second where only their numbers are known.
ASSUMED_RATE_HZ = 30.0

#: Columns of a list that number its frames and give their times.
FRAME, TIME = "frame", "time_s"


def frame_times(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the number (n,) of each row's frame, and its time in seconds.

    Raises:
        UserError: a number or time is missing or none, two photos have one number, or time goes back.
    """
    names = table.column_names
    if table["frame_index"].null_count < len(table):
        number = _numbers(table, "frame_index")
        time_s = (
            _numbers(table, "frame_time_s")
            if table["frame_time_s"].null_count == 0
            else number / ASSUMED_RATE_HZ
        )
    else:
        ids = table["image_id"].combine_chunks().dictionary_encode().indices.to_numpy()
        number = _numbers(table, FRAME) if FRAME in names else ids.astype(np.float64)
        time_s = _numbers(table, TIME) if TIME in names else number / ASSUMED_RATE_HZ
        _check_one_photo_each(table, number, ids)
    order = np.argsort(number, kind="stable")
    step, step_s = np.diff(number[order]), np.diff(time_s[order])
    back = np.flatnonzero((step > 0) & (step_s <= 0))
    if len(back):
        row = order[back[0] + 1]
        raise UserError(
            f"'{table['image_id'][row].as_py()}': time_s is {time_s[row]:g}, not later than in the previous frame; "
            "times must increase with frame numbers"
        )
    return number, time_s


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as numbers; from a CSV file it is text."""
    try:
        values = np.asarray(table[name].cast(pa.float64()).fill_null(np.nan))
    except pa.ArrowInvalid:
        values = np.array([_number(text) for text in table[name].to_pylist()])
    if not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values)))
        raise UserError(
            f"'{table['image_id'][row].as_py()}': {name} is {table[name][row].as_py()!r}; every frame of a sequence "
            "needs a number"
        )
    return values


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")


def _check_one_photo_each(table: pa.Table, number: Floats, ids: NDArray[np.integer]) -> None:
    same = np.asarray(table["duplicate"].fill_null(False))
    photo_of: dict[float, int] = {}
    for row in np.flatnonzero(~same):
        if photo_of.setdefault(float(number[row]), int(ids[row])) != ids[row]:
            raise UserError(
                f"'{table['image_id'][row].as_py()}': frame {number[row]:g} is the number of another photo; give "
                "each frame of a sequence its own number"
            )
