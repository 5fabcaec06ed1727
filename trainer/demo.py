"""The steps of `amvur demo`: draw hands, label them, write a report. The drawing is in `trainer/`, so this is too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from annotator.report import write_report
from trainer.synth import write_photos

#: Side of a synthetic photo in pixels, and number of hands in the report.
_SIZE_PX, _REPORTED = 256, 24


def write_demo(out: Path, count: int, label: Callable[[str, str], None]) -> Path:
    """Write photos, labels and a report into one folder; return the path of the report's page.

    Args:
        out: the folder: photos go to `images/`, labels to `predicted/`, the page to `report/`.
        count: number of hands.
        label: labels the photos of a folder (first argument) into a label set (second).

    Raises:
        UserError: any error of `label` or `write_report`.
    """
    write_photos(out, count, seed=0, size_px=_SIZE_PX)
    labels = str(out / "predicted")
    label(str(out / "images"), labels)
    return write_report(labels, out / "report", _REPORTED).resolve()
