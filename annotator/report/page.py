"""The page itself: Jinja2 templates filled with the sections' contents, and the data of the page's script."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from annotator.hand import BONES
from annotator.hand.model import FINGERS
from annotator.labels.outcomes import outcome_of
from annotator.quality.uncertainty import CALIBRATED_LEVEL, LEVELS
from annotator.render.std_colours import STOPS
from annotator.report import charts, sections
from annotator.report.clips import SequenceSummary
from annotator.report.pictures import Gallery, Shown, base64_of
from annotator.report.sections import Record, display_name, in_words
from annotator.report.survey import Row, Survey
from annotator.report.tiles import SKIN
from annotator.report.timeline import Timeline, timeline
from annotator.report.truth import Comparison


@dataclass(frozen=True)
class Report:
    """The contents of a page."""

    labels: str
    record: Record
    survey: Survey
    galleries: Sequence[Gallery]
    shown: Sequence[Shown]
    faces: NDArray[np.int64]
    range_mm: tuple[float, float]
    comparison: Comparison | None
    clips: Sequence[SequenceSummary] = ()  # of a tracked set


def page_of(report: Report) -> str:
    """Return the HTML of a report with its styles, scripts and data; pictures and meshes are files beside it."""
    place = display_name(report.labels.rstrip("/"))
    timelines = [timeline(clip) for clip in report.clips]
    ramp = ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in STOPS)
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=place.rsplit("/", 1)[-1],
            place=place,
            when=datetime.now(timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
            ramp=ramp,
            css=_own_text("page.css"),
            viewer=_own_text("viewer.js"),
            script=_own_text("page.js"),
            player=_own_text("player.js"),
            data=_data(report, timelines),
            timelines=timelines,
            survey=report.survey,
            shown=report.shown,
            notes=sections.notes(report.record, report.survey),
            tiles=sections.summary(report.record, report.survey),
            outcomes=sections.outcomes(report.survey),
            settings=sections.settings(report.record, report.survey),
            uncertainty=sections.uncertainty(report.survey, report.range_mm),
            fingers=FINGERS,
            truth=report.comparison,
            kept_chart=charts.kept_chart,
            reliability_chart=charts.reliability_chart,
            levels=LEVELS,
            calibrated_level=CALIBRATED_LEVEL,
            cards=_galleries(report),
            low=f"{report.range_mm[0]:.0f}",
            high=f"{report.range_mm[1]:.0f}",
        )
    )


def _environment() -> Environment:
    """Return templates that escape every value; only files of this package are inserted as they are."""
    environment = Environment(
        loader=PackageLoader("annotator.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "number": lambda value, digits=0: f"{value:.{digits}f}",
        "share": sections.share,
        "percents": sections.percents,
        "readable": display_name,
    }
    return environment


def _own_text(name: str) -> Markup:
    return Markup(files("annotator.report").joinpath(name).read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Card:
    """A hand with pictures in a gallery."""

    number: int
    stem: str
    kinds: Sequence[str]
    name: str
    side: str
    std_mm: float | None


def _galleries(report: Report) -> list[dict[str, Any]]:
    hands = {(hand.row.file, hand.row.index): hand for hand in report.shown}
    return [
        {
            "title": gallery.title,
            "note": gallery.note,
            "cards": [_card(hands[row.file, row.index]) for row in gallery.rows],
        }
        for gallery in report.galleries
    ]


def _card(hand: Shown) -> _Card:
    std_mm = _number(hand.row.values["joint_std_mm"], 1)
    return _Card(hand.number, hand.stem, hand.kinds, _name(hand.row), _side(hand.row), std_mm)


def _name(row: Row) -> str:
    name = display_name(str(row.values["image_id"] or row.values["image_uri"]))
    index = row.values["hand_index"]
    return f"{name} (hand {index + 1})" if index and index > 0 else name


def _side(row: Row) -> str:
    return {True: "right", False: "left", None: ""}[row.values["is_right"]]


def _number(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _data(report: Report, timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Return the data of the page's script; rows with pictures come first."""
    numbers = {(hand.row.file, hand.row.index): hand.number for hand in report.shown}
    rows = [hand.row for hand in report.shown]
    rows += [
        row
        for row in (*report.survey.sample.rows, *report.survey.others.rows)
        if (row.file, row.index) not in numbers
    ]
    errors = report.comparison.errors if report.comparison else {}
    return {
        "faces": base64_of(report.faces, "<u4"),
        "range": [round(value, 3) for value in report.range_mm],
        "stops": [[round(float(c) / 255, 4) for c in stop] for stop in STOPS],
        "skin": SKIN,
        "of": report.survey.rows,
        "hands": [{"stem": hand.stem, "kinds": hand.kinds} for hand in report.shown],
        "truth": report.comparison is not None,
        "bones": BONES,
        "clips": [each.data for each in timelines],
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
            "error": display_name(values["error"] or ""),
            "std": _number(values["joint_std_mm"], 2),
            "largest": _number(values["max_joint_std_mm"], 2),
            "score": _number(values["detection_score"], 3),
            "off": _number(errors.get((values["image_id"], values["hand_index"])), 1),
            "hand": numbers.get((row.file, row.index)),
        }
