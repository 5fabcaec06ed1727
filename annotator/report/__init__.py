"""Write the report of a label set: a folder with an HTML page that opens from disk, without a network."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from annotator.errors import UserError
from annotator.job.record import read_mesh_record
from annotator.labels.folder import RUN_FILE
from annotator.report.clips import Clips
from annotator.report.page import Report, page_of
from annotator.report.pictures import Pictures, each_row, galleries
from annotator.report.survey import survey
from annotator.report.truth import COLUMNS, Truth
from annotator.storage.disk_space import DiskFullError
from annotator.storage.files import is_local, local_path, names_in, write_atomic

__all__ = ["write_report"]


def write_report(labels: str, out: Path | None = None, count: int = 48, truth: str | None = None) -> Path:
    """Write `index.html`, `contact_sheet.png` and `hands/` with the pictures and meshes of up to `count` hands.

    Of a tracked set, also `clips/` with the frames of the first few sequences.

    Args:
        labels: path or URL of a label set; all rows are read once, meshes only for the hands shown.
        out: folder on disk; default LABELS/report, or NAME-report in the working directory for labels in a store.
        count: number of hands: a third of lowest std, a third of highest std, a third in between.
        truth: table of true joints, such as truth.parquet of `amvur synth`, to measure errors.

    Returns:
        The path of the page.

    Raises:
        UserError: `labels` is not a label set or has no rows, `truth` is invalid, or `out` is not writable.
    """
    record = read_mesh_record(labels) if RUN_FILE in names_in(labels) else None
    if record is None:
        raise UserError(f"'{labels}' is not a label set: give a folder that holds {RUN_FILE}")
    known = None if truth is None else Truth(truth)
    clips = Clips(labels)
    columns = (*(COLUMNS if known else ()), *clips.columns)

    def on_table(table: pa.Table) -> None:
        clips.add(table)
        if known:
            known.add(table)

    found = survey(labels, count, columns, on_table)
    if not found.rows:
        raise UserError(f"'{labels}' has no labels yet: run `amvur annotate` again to resume")
    comparison = known.comparison() if known else None
    if known and comparison is None and found.hands:
        raise UserError(f"no hand of '{labels}' is in '{truth}': neither image_id nor file name matches")
    parts = galleries(found, count)
    pictures = Pictures(labels, list(each_row(parts)))
    out = _folder(labels) if out is None else out
    try:
        out.mkdir(parents=True, exist_ok=True)
        shown = pictures.write(out)
        clips.write(out)
        path = out / "index.html"
        report = Report(
            *(labels, record, found, parts, shown, pictures.faces, pictures.range_mm, comparison), clips.found
        )
        write_atomic(str(path), page_of(report).encode())
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"can't write the report to '{out}': {error.strerror or error}") from None
    return path


def _folder(labels: str) -> Path:
    if is_local(labels):
        return local_path(labels) / "report"
    return Path(f"{labels.rstrip('/').rsplit('/', 1)[-1]}-report")
