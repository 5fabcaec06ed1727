"""`amvur export`: convert a label set to one of several formats, from and to any path or URL.

Formats that read photos or write a file per hand prepare their parts in this process or as Ray tasks. The others take
less time per hand than a task: 0.1 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa

from annotator.errors import UserError
from annotator.export import (
    animations,
    benchmark_submission,
    coco,
    csv_table,
    lerobot,
    mano,
    meshes,
    webdataset,
)
from annotator.export.exported import Exported
from annotator.export.exported_labels import LabelsToExport
from annotator.export.lerobot_photos import FORMS as PHOTO_FORMS
from annotator.export.output_paths import check_new_file, check_new_folder, new_folder
from annotator.labels.folder import label_file_sizes
from annotator.runtime.ordered_tasks import ray_for_tasks, tasks_are_faster


@dataclass(frozen=True)
class _Format:
    columns: Callable[[LabelsToExport], list[str]]  # to read; UserError if the labels do not suit the format
    write: Callable[[LabelsToExport, Iterator[pa.Table], str], Exported]
    suffix: str | None = None  # of a format with one file; None: a folder
    limit: int = 0  # default maximum of hands; 0: all
    spreads: bool = False  # whether Ray tasks prepare its parts, by `LabelsToExport.spread`
    reads: Callable[[pa.Table], list[str]] = lambda first: []  # local files that its tasks read


#: Formats by the value of `to`.
FORMATS: dict[str, _Format] = {
    "coco": _Format(coco.columns, coco.write, suffix=".json"),
    "freihand": _Format(benchmark_submission.columns, benchmark_submission.write_freihand),
    "ho3d": _Format(benchmark_submission.columns, benchmark_submission.write_ho3d),
    "webdataset": _Format(webdataset.columns, webdataset.write, spreads=True, reads=webdataset.local_photo),
    # One file per hand: limited, so that no folder gets a million by accident.
    "glb": _Format(meshes.columns, partial(meshes.write, "glb"), limit=1000, spreads=True),
    "ply": _Format(meshes.columns, partial(meshes.write, "ply"), limit=1000, spreads=True),
    "animated-glb": _Format(animations.columns_with_colours, partial(animations.write, "glb")),
    "bvh": _Format(animations.columns, partial(animations.write, "bvh")),
    "lerobot": _Format(lerobot.columns, lerobot.write),
    "csv": _Format(csv_table.columns, csv_table.write, suffix=".csv"),
    "mano": _Format(mano.columns, mano.write),
}


def export_labels(
    labels: str,
    out: str,
    to: str,
    *,
    where: str | None = None,
    limit: int | None = None,
    colour: str | None = None,
    samples: bool = False,
    by_photo: bool = False,
    order: str | None = None,
    hand: str | None = None,
    photos: str | None = None,
    workers: int | None = None,
    address: str | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Write the hands of a label set (rows with status ok) in another tool's format.

    Args:
        labels: path or URL of a label set.
        out: path or URL of a new file (`coco`, `csv`) or a new folder; an unfinished folder of the same command is
            overwritten.
        to: one of `FORMATS`; see docs/export.md.
        where: export only rows that meet this condition, see `annotator.labels.conditions`.
        limit: maximum number of hands, from the first; 0: all. Default 1,000 for `glb` and `ply`, otherwise all.
        colour: for `glb` and `ply`: `texture` (default), or `std`, the uncertainty of each vertex.
        samples: for `glb` and `ply`: also write each mesh that `annotate --samples` drew.
        by_photo: for `glb` and `ply`: one file per photo, with all its hands in front of its camera.
        order: for `ho3d`: the benchmark's `evaluation.txt`; default: the one beside the photos.
        hand: the labels' hand model, for joint angles and skeletons: `open` (default), or `mano:PATH`.
        photos: for `lerobot`: `video` (default), `frames` or `none`.
        workers: maximum of Ray tasks at once; 1 uses this process alone. Default: this process, or all cores for large
            exports to formats that spread (`_Format.spreads`).
        address: a Ray cluster, as for `annotator.runtime.ray_session.connected`.
        on_progress: called with the numbers of read and of all label files.

    Raises:
        UserError: `labels` is not a label set, does not suit the format, or no row is left; or `out` exists.
    """
    if to not in FORMATS:
        raise UserError(f"no format '{to}': give one of {', '.join(FORMATS)}")
    if limit is not None and limit < 0:
        raise UserError(f"limit is {limit}: give a number of hands, or 0 for all")
    chosen = FORMATS[to]
    write = _with_options(chosen.write, to, colour, order, photos)
    if samples and to not in ("glb", "ply"):
        raise UserError(f"samples (--samples) is for glb and ply, not for {to}")
    most = chosen.limit if limit is None else limit
    as_tasks = chosen.spreads and _as_tasks(labels, most, workers, address)
    source = LabelsToExport(labels, where, most, on_progress, hand, as_tasks, workers)
    if by_photo:
        if to not in ("glb", "ply"):
            raise UserError(f"by_photo (--by-photo) is for glb and ply, not for {to}")
        if samples:
            raise UserError(
                "samples (--samples) writes a file per sample, by_photo (--by-photo) one per photo: give one of them"
            )
        write = partial(write, by_photo=True)
    columns = meshes.columns_with_samples(source) if samples else chosen.columns(source)
    plan = {
        "labels": labels,
        "to": to,
        "where": where,
        "limit": source.limit,
        "colour": colour,
        "samples": samples,
        "by_photo": by_photo,
        "order": order,
        "hand": hand,
        "photos": photos,
    }
    if chosen.suffix:
        check_new_file(out, chosen.suffix)
    else:
        check_new_folder(out, plan)
    batches = source.batches(columns)
    first = next(batches, None)
    if first is None:
        which = "has status ok" if where is None else f"has status ok and meets '{where}'"
        raise UserError(f"none of the {source.rows} rows of '{labels}' {which}: there is nothing to export")
    places = [labels, out, *chosen.reads(first)]
    with nullcontext() if chosen.suffix else new_folder(out, plan), ray_for_tasks(as_tasks, places, address):
        exported = write(source, chain([first], batches), out)
        if not exported.hands:
            reasons = ", ".join(f"{count} {reason}" for reason, count in exported.left_out.items())
            raise UserError(f"nothing of '{labels}' can be exported to {to}: {reasons}")
    if source.is_cut:
        exported.notes.append(f"these are the first {source.limit:,} hands; limit 0 (--limit 0) exports all")
    return exported


def _as_tasks(labels: str, limit: int, workers: int | None, address: str | None) -> bool:
    if workers is not None or address is not None:
        return workers != 1
    return limit == 0 and tasks_are_faster(labels, list(label_file_sizes(labels).values()))


def _with_options(
    write: Callable[..., Exported], to: str, colour: str | None, order: str | None, photos: str | None
) -> Any:
    if colour is not None:
        if to not in ("glb", "ply"):
            raise UserError(f"colour (--colour) is for glb and ply, not for {to}")
        if colour not in ("texture", "std"):
            raise UserError(f"no colour '{colour}': give texture or std")
        return partial(write, colour=colour)
    if photos is not None:
        if to != "lerobot":
            raise UserError(f"photos (--photos) is for lerobot, not for {to}")
        if photos not in PHOTO_FORMS:
            raise UserError(f"no photos '{photos}': give one of {', '.join(PHOTO_FORMS)}")
        return partial(write, photos=photos)
    if order is not None:
        if to != "ho3d":
            raise UserError(f"order (--order) is for ho3d, not for {to}")
        return partial(write, order=order)
    return write
