"""The timeline of a tracked sequence: std over frames for each track, and the tracks as bars below."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from annotator.report.charts import Attributes, Axes, Chart, Element
from annotator.report.clips import MAX_FRAMES, SequenceSummary
from annotator.report.sections import display_name

#: Maximum points of a line, and tracks with a line and a bar; the style sheet has as many colours as `COLOURS`.
_POINTS, MAX_TRACKS, COLOURS = 600, 12, 6

_WIDTH, _PLOT_PX, _BAR_PX = 1100, 220, 14


@dataclass(frozen=True)
class Timeline:
    """One sequence on the page, and the positions of its frames for the page's script."""

    name: str
    frames: int
    tracks: int
    drawn_tracks: int
    filled: int
    in_player: int
    chart: Chart
    data: dict[str, Any]


def timeline(clip: SequenceSummary) -> Timeline:
    """Return the timeline of a sequence with at least one tracked hand."""
    frames, tracks = np.array(clip.frames), np.array(clip.tracks)
    std_mm, filled = np.array(clip.std_mm), np.array(clip.filled)
    numbers = np.unique(tracks)
    drawn = numbers[:MAX_TRACKS]
    first, last = int(frames.min()), int(frames.max())
    finite = std_mm[np.isfinite(std_mm)]
    high = max(float(finite.max()) if len(finite) else 0.0, 0.1) * 1.1
    height = _PLOT_PX + _BAR_PX * len(drawn) + 8
    axes = Axes((first, max(last, first + 1)), (0, high), _WIDTH, height, bottom=50 + _BAR_PX * len(drawn))
    axes.frame("frame", "mean std of joints, mm")
    for number, track in enumerate(drawn):
        own = np.flatnonzero(tracks == track)
        own = own[np.argsort(frames[own], kind="stable")]
        style = f"track-{number % COLOURS}"
        for run in np.split(own, np.flatnonzero(np.diff(frames[own]) > _gap(frames)) + 1):
            _line(axes, frames[run], std_mm[run], style)
        _bar(axes, frames[own], filled[own], number, style, int(track), _gap(frames))
    left, floor = axes.at(first, 0)
    right, top = axes.at(axes.x[1], high)
    label = f"Std over {last - first + 1} frames of {len(numbers)} tracks in {display_name(clip.name)}"
    return Timeline(
        name=display_name(clip.name),
        frames=len(np.unique(frames)),
        tracks=len(numbers),
        drawn_tracks=len(drawn),
        filled=int(filled.sum()),
        in_player=min(len(np.unique(frames)), MAX_FRAMES),
        chart=axes.chart(label),
        data={"left": left, "right": right, "top": top, "bottom": floor + 22 + _BAR_PX * len(drawn)}
        | {"span": [first, axes.x[1]], "tracks": drawn.tolist()},
    )


def _gap(frames: np.ndarray) -> int:
    """Return the usual step of frame numbers: more than it is a gap."""
    steps = np.diff(np.unique(frames))
    return int(steps.min()) if len(steps) else 1


def _line(axes: Axes, frames: np.ndarray, std_mm: np.ndarray, style: str) -> None:
    """Add a line through the largest std of each of at most `_POINTS` stretches of frames."""
    size = max(math.ceil(len(frames) / _POINTS), 1)
    points = [
        (float(frames[k : k + size].mean()), float(np.max(part)))
        for k in range(0, len(frames), size)
        if len(part := std_mm[k : k + size][np.isfinite(std_mm[k : k + size])])
    ]
    if len(points) == 1:
        x, y = axes.at(*points[0])
        axes.shapes.append(Element("circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": 3, "class": style}))
    elif points:
        axes.line([x for x, _ in points], [y for _, y in points], style)


def _bar(
    axes: Axes, frames: np.ndarray, filled: np.ndarray, number: int, style: str, track: int, step: int
) -> None:
    """Add the bar of a track: frames with a label full, filled ones pale."""
    _, floor = axes.at(axes.x[0], 0)
    top = floor + 24 + _BAR_PX * number
    cuts = np.flatnonzero((np.diff(frames) > step) | (np.diff(filled.astype(int)) != 0)) + 1
    for run in np.split(np.arange(len(frames)), cuts):
        low, high = int(frames[run[0]]), int(frames[run[-1]])
        x0 = axes.at(max(low - step / 2, axes.x[0]), 0)[0]
        x1 = axes.at(min(high + step / 2, axes.x[1]), 0)[0]
        kind = f"{style} filled" if filled[run[0]] else style
        bar: Attributes = {
            "x": f"{x0:.1f}",
            "y": f"{top:.1f}",
            "width": f"{max(x1 - x0, 1):.1f}",
            "height": 9,
            "rx": 2,
        }
        words = "filled from other frames" if filled[run[0]] else "labelled"
        title = f"track {track}, frames {low} to {high}, {words}"
        axes.shapes.append(Element("rect", {**bar, "class": kind}, title=title))
    at: Attributes = {"x": f"{axes.left - 8}", "y": f"{top + 9:.1f}", "class": "end"}
    axes.shapes.append(Element("text", at, f"track {track}"))
