"""The page itself: sections of HTML around the charts, and what the page's script needs to know."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray

from annotator.job.record import FitSettings, RunRecord, RunSettings, TrackSettings
from annotator.report import sections
from annotator.report.pictures import Gallery, Shown, packed
from annotator.report.sections import readable
from annotator.report.survey import Row, Survey, outcome_of
from annotator.report.tiles import SKIN, STOPS
from annotator.report.truth import Comparison

_ALT = {
    "photo": "photo of",
    "overlay": "mesh over the photo of",
    "uncertainty": "mesh coloured by uncertainty of",
    "texture": "textured mesh of",
}


@dataclass(frozen=True)
class Report:
    """All that a page tells."""

    labels: str
    record: RunRecord[RunSettings] | RunRecord[FitSettings] | RunRecord[TrackSettings]
    found: Survey
    galleries: Sequence[Gallery]
    shown: Sequence[Shown]
    faces: NDArray[np.int64]
    range_mm: tuple[float, float]
    judged: Comparison | None


def page_of(report: Report) -> str:
    """The HTML of a report, whole: styles, scripts and data are in it; pictures and meshes lie beside it."""
    found = report.found
    numbers = {(hand.row.file, hand.row.index): hand for hand in report.shown}
    cards = [
        _gallery(gallery, [numbers[row.file, row.index] for row in gallery.rows])
        for gallery in report.galleries
    ]
    ramp = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in STOPS)
    place = readable(report.labels.rstrip("/"))
    title = place.rsplit("/", 1)[-1]
    return Template(_text("page.html")).substitute(
        title=escape(title),
        place=f"<bdi>{escape(place)}</bdi><br>" if place != title else "",
        faultless="" if any(found.examples.values()) else "faultless",
        ramp=ramp,
        css=_text("page.css"),
        viewer=_text("viewer.js"),
        script=_text("page.js"),
        data=script_safe(_data(report)),
        when=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        summary=sections.summary(report.record, found),
        notes=sections.notes(report.record, found),
        outcomes=sections.outcomes(found),
        settings=sections.settings(report.record, found),
        uncertainty=sections.uncertainty(found, report.range_mm),
        truth=sections.truth(report.judged, found),
        galleries="".join(cards) or '<p class="none">There is no hand to show: no photo ended well.</p>',
        shown_of=f"{len(report.shown):,} of {found.hands:,}",
        low=f"{report.range_mm[0]:.0f}",
        high=f"{report.range_mm[1]:.0f}",
        filters=_filters(found),
    )


def script_safe(data: Any) -> str:
    """JSON that nothing in it can end the script element of."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _text(name: str) -> str:
    return files("annotator.report").joinpath(name).read_text(encoding="utf-8")


def _gallery(gallery: Gallery, hands: Sequence[Shown]) -> str:
    cards = "".join(_card(hand) for hand in hands)
    return (
        f'<section class="gallery"><h3>{escape(gallery.title)} <span class="count">{len(hands)}</span></h3>'
        f'<p class="sub">{escape(gallery.note)}</p><ul class="cards">{cards}</ul>'
        '<p class="none" hidden>None of these meets the filters.</p>'
        '<button class="more" type="button" hidden></button></section>'
    )


def _card(hand: Shown) -> str:
    name = escape(_name(hand.row))
    tiles = "".join(
        f'<img src="{hand.stem}-{kind}.webp" alt="{_ALT[kind]} {name}" loading="lazy" width="256" height="256">'
        if kind in hand.kinds
        else f'<span class="gone">{"photo not found" if kind in ("photo", "overlay") else "no texture"}</span>'
        for kind in _ALT
    )
    std = _number(hand.row.values["joint_std_mm"], 1)
    return (
        f'<li><button class="card" type="button" data-hand="{hand.number}"><span class="tiles">{tiles}</span>'
        f'<span class="caption"><bdi class="name" title="{name}">{name}</bdi>'
        f'<span class="of">{_side(hand.row)}</span>'
        f'<span class="std">{"" if std is None else f"±{std:.1f} mm"}</span></span></button></li>'
    )


def _name(row: Row) -> str:
    name = readable(str(row.values["image_id"] or row.values["image_uri"]))
    index = row.values["hand_index"]
    return f"{name} (hand {index + 1})" if index and index > 0 else name


def _side(row: Row) -> str:
    return {True: "right", False: "left", None: ""}[row.values["is_right"]]


def _number(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def in_words(outcome: str) -> str:
    """`unreadable: not_a_photo` without its status, which the reason implies."""
    return outcome.partition(": ")[2].replace("_", " ") or outcome


def _filters(found: Survey) -> str:
    return "".join(
        f'<option value="{escape(outcome)}">{escape(in_words(outcome))} ({number:,})</option>'
        for outcome, number in sorted(found.outcomes.items(), key=lambda pair: (pair[0] != "ok", -pair[1]))
    )


def _data(report: Report) -> dict[str, Any]:
    """What the page's script knows: its rows, those with pictures first."""
    numbers = {(hand.row.file, hand.row.index): hand.number for hand in report.shown}
    rows = [hand.row for hand in report.shown]
    rows += [
        row
        for row in (*report.found.sample.rows, *report.found.others.rows)
        if (row.file, row.index) not in numbers
    ]
    errors = report.judged.errors if report.judged else {}
    return {
        "faces": packed(report.faces, "<u4"),
        "range": [round(value, 3) for value in report.range_mm],
        "stops": [[round(float(c) / 255, 4) for c in stop] for stop in STOPS],
        "skin": SKIN,
        "of": report.found.rows,
        "hands": [{"stem": hand.stem, "kinds": hand.kinds} for hand in report.shown],
        "truth": report.judged is not None,
        "rows": list(_rows(rows, numbers, errors)),
    }


def _rows(
    rows: Iterable[Row], numbers: Mapping[tuple[str, int], int], errors: Mapping[tuple[str, int], float]
) -> Iterable[dict[str, Any]]:
    for row in rows:
        values = row.values
        yield {
            "name": _name(row),
            "side": _side(row),
            "outcome": outcome_of(values),
            "words": in_words(outcome_of(values)),
            "said": readable(values["error"] or ""),
            "std": _number(values["joint_std_mm"], 2),
            "largest": _number(values["max_joint_std_mm"], 2),
            "score": _number(values["detection_score"], 3),
            "off": _number(errors.get((values["image_id"], values["hand_index"])), 1),
            "hand": numbers.get((row.file, row.index)),
        }
