"""A page of pictures of a label folder: what the model did and how sure it is."""

from __future__ import annotations

import html
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from annotator.errors import UserError
from annotator.io.labels import label_files, outcome_rows, read_columns, read_faces
from annotator.run_record import RunRecord, RunSettings, read_run_record
from annotator.stations import count_outcomes
from annotator.tiles import Picture, contact_sheet, hand_tiles, uncertainty_colours

TILE_PX = 192
KINDS = ("photo", "overlay", "uncertainty", "texture")

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fafafa; margin: 2rem auto; max-width: 1100px;
  padding: 0 1rem; }
h1 { font-weight: 600; } .note { background: #fff4d6; border-left: 4px solid #e0a000; padding: .6rem 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem 1.2rem .2rem 0; text-align: left; }
.hands { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 1.2rem; }
figure { margin: 0; background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .5rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #555; overflow-wrap: anywhere; }
.scale { height: 14px; width: 260px; image-rendering: auto; vertical-align: middle; }
@media (max-width: 480px) { .hands { grid-template-columns: 1fr; } }
"""


def write_report(labels: str, out: Path | None = None, count: int = 24) -> Path:
    """Write `index.html` and `contact_sheet.png` with up to `count` hands, evenly taken from the whole set.

    Returns the page's path.

    Raises:
        UserError: `labels` is not a label folder, holds no hand, or `out` can't be written.
    """
    record = read_run_record(labels, RunSettings)
    if record is None:
        raise UserError(f"'{labels}' is not a label folder: give one that `amvur annotate` made")
    hands = list(_sample(labels, count))
    if not hands:
        raise UserError(f"'{labels}' holds no hand to show: no row has status ok")
    faces = read_faces(labels)
    out = out or Path(labels) / "report"
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _write_page(out, labels, record, hands, faces)
    except OSError as error:
        raise UserError(f"can't write the report to '{out}': {error.strerror}") from None


def _sample(labels: str, count: int) -> Iterator[dict[str, Any]]:
    """Evenly spaced rows with status ok; heavy columns are read from their files alone."""
    files = sorted(label_files(labels))
    places: list[tuple[str, int]] = []
    for name in files:
        statuses = read_columns(labels, name, ["status"])["status"].to_pylist()
        places += [(name, row) for row, status in enumerate(statuses) if status == "ok"]
    chosen = (
        [places[i] for i in np.unique(np.linspace(0, len(places) - 1, count).astype(int))] if places else []
    )
    for name in files:
        rows = [row for file, row in chosen if file == name]
        if rows:
            yield from read_columns(labels, name).take(rows).to_pylist()


def _write_page(
    out: Path, labels: str, record: RunRecord, hands: list[dict[str, Any]], faces: np.ndarray
) -> Path:
    # Counted here: of a run that goes on or was killed, the record does not know yet.
    counts = count_outcomes(outcome_rows(labels, label_files(labels)))
    # One scale for all hands, so that colours compare; never so narrow that noise fills it.
    stds = np.concatenate([np.linalg.norm(np.array(hand["vertices_std_mm"]), axis=-1) for hand in hands])
    low, high = (float(v) for v in np.percentile(stds, [2, 98]))
    middle, half = (low + high) / 2, max(high - low, 1.0) / 2
    std_range = (middle - half, middle + half)
    sheet: list[list[Picture]] = []
    figures = []
    for index, hand in enumerate(hands):
        tiles = hand_tiles(hand, faces, TILE_PX, std_range)
        row = [tiles[kind] for kind in KINDS]
        sheet.append(row)
        contact_sheet([row], gap_px=2).save(out / f"hand-{index:03d}.png")
        side = "right" if hand["is_right"] else "left"
        figures.append(
            f'<figure><img src="hand-{index:03d}.png" alt="photo, mesh over it, uncertainty, texture">'
            f"<figcaption>{html.escape(hand['image_id'])} · {side} hand · joints ±{hand['joint_std_mm']:.1f} mm"
            "</figcaption></figure>"
        )
    columns = 2 if len(sheet) > 6 else 1
    rows = [list(chain(*sheet[i : i + columns])) for i in range(0, len(sheet), columns)]
    contact_sheet(rows).save(out / "contact_sheet.png")
    ramp = uncertainty_colours(np.linspace(0, 1, 256)[None], 0, 1)
    Image.fromarray((ramp * 255).astype(np.uint8)).save(out / "scale.png")
    outcomes = "".join(
        f"<tr><td>{html.escape(outcome)}</td><td>{number}</td></tr>"
        for outcome, number in sorted(counts.items())
    )
    untrained = (
        '<p class="note">Untrained weights: every hand is the mean hand, with one uncertainty for all. '
        "What the pictures show is the way a photo goes, not what a trained model sees.</p>"
        if record.settings.trained_steps == 0
        else ""
    )
    page = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>amvur: {html.escape(labels)}</title><style>{_STYLE}</style>
<h1>{html.escape(labels)}</h1>
{untrained}
<table><tr><th>photos</th><td>{sum(counts.values())}</td></tr>{outcomes}
<tr><th>hand model</th><td>{record.settings.hand}</td></tr>
<tr><th>checkpoint</th><td>{record.settings.checkpoint}</td></tr></table>
<p>{len(hands)} of {counts["ok"]} hands. In each: the crop, the mesh over it, the mesh coloured by
predicted standard deviation, the mesh with its texture.<br>
{std_range[0]:.1f} mm <img class="scale" src="scale.png" alt="surest to least sure"> {std_range[1]:.1f} mm</p>
<div class="hands">{"".join(figures)}</div>
</html>
"""
    path = out / "index.html"
    path.write_text(page, encoding="utf-8")
    return path
