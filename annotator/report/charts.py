"""Charts as inline SVG, coloured by the page's style sheet, so that they are sharp and follow its dark mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from numpy.typing import NDArray

from annotator.hand import BONES, JOINT_NAMES
from annotator.quality.uncertainty import ReliabilityBins
from annotator.report.survey import STEP_MM, Histogram
from annotator.report.tiles import uncertainty_colours
from annotator.report.truth import Panel

Range = tuple[float, float]

#: An open right hand from its palm's side, millimetres from the wrist, x right and y down: `JOINT_NAMES`' order.
_HAND = (
    *((0, 0), (29, -19), (54, -37), (76, -70), (89, -99)),
    *((39, -89), (46, -117), (52, -142), (59, -171)),
    *((11, -92), (9, -129), (9, -159), (9, -187)),
    *((-11, -88), (-18, -120), (-23, -146), (-29, -175)),
    *((-32, -80), (-40, -102), (-46, -118), (-54, -139)),
)
_PALM = (0, 1, 5, 9, 13, 17)


@dataclass(frozen=True)
class Axes:
    """The frame of a chart: values to places in its view box."""

    x: Range
    y: Range
    width: int = 340
    height: int = 230
    left: int = 46
    bottom: int = 42
    parts: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point is drawn."""
        inner_width, inner_height = self.width - self.left - 16, self.height - self.bottom - 12
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * inner_width
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * inner_height
        return self.left + across, 12 + inner_height - up

    def frame(self, x_title: str, y_title: str, x_percent: bool = False, whole: bool = False) -> None:
        """Ticks, a grid and titles; y counts something if it is `whole`."""
        right, floor = self.at(self.x[1], self.y[0])
        for tick in ticks(*self.y, 4, whole):
            _, y = self.at(self.x[0], tick)
            self.parts.append(f'<path class="grid" d="M{self.left} {y:.1f}H{right:.1f}"/>')
            self.parts.append(f'<text x="{self.left - 8}" y="{y + 4:.1f}" class="end">{short(tick)}</text>')
        for tick in ticks(*self.x, 5):
            x, _ = self.at(tick, self.y[0])
            shown = f"{tick * 100:.0f} %" if x_percent else short(tick)
            self.parts.append(f'<text x="{x:.1f}" y="{floor + 17:.1f}" class="mid">{shown}</text>')
        self.parts.append(f'<path class="axis" d="M{self.left} {floor:.1f}H{right:.1f}"/>')
        middle = (self.left + right) / 2
        self.parts.append(
            f'<text x="{middle:.1f}" y="{self.height - 5}" class="mid title">{escape(x_title)}</text>'
        )
        turned = f"translate(11 {(12 + floor) / 2:.1f}) rotate(-90)"
        self.parts.append(f'<text transform="{turned}" class="mid title">{escape(y_title)}</text>')

    def line(self, x: Sequence[float], y: Sequence[float], style: str) -> None:
        """A line through points."""
        places = (self.at(a, b) for a, b in zip(x, y, strict=True))
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        self.parts.append(f'<path class="line {style}" d="M{path}"/>')

    def svg(self, label: str) -> str:
        """The whole chart; `label` says it in words."""
        return _svg(self.width, self.height, label, "".join(self.parts))


def _svg(width: float, height: float, label: str, inside: str, style: str = "chart") -> str:
    return (
        f'<svg class="{style}" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">'
        f"{inside}</svg>"
    )


def short(value: float) -> str:
    """A number for an axis."""
    whole = abs(value - round(value)) < 1e-6
    return f"{value:,.0f}" if whole else f"{value:,.2f}".rstrip("0")


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers from `low` to `high`, integers if they must be `whole`."""
    step = nice((high - low) / about)
    step = math.ceil(step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def nice(value: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is not below `value`."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-12)))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * (1 - 1e-9))


@dataclass(frozen=True)
class Bars:
    """A histogram of few bars."""

    low: float
    width: float
    counts: NDArray[np.int64]
    beyond: int  # how many of the last bar's lie beyond it

    @property
    def high(self) -> float:
        """Where the last bar ends."""
        return self.low + self.width * len(self.counts)


def span_of(histograms: Sequence[Histogram]) -> Range:
    """What one axis for all of them must hold, but for the last thousandth."""
    known = [h for h in histograms if h.total]
    if not known:
        return 0.0, 1.0
    return min(h.quantile(0) for h in known), max(h.quantile(0.999) for h in known)


def rebinned(histogram: Histogram, span: Range, about: int) -> Bars:
    """About so many bars over a span; what lies beyond is in the last one."""
    width = max(nice((span[1] - span[0]) / about), STEP_MM)
    width = math.ceil(width / STEP_MM) * STEP_MM
    low = math.floor(span[0] / width) * width
    bars = max(math.ceil((span[1] - low) / width + 1e-9), 3)
    first, step = round(low / STEP_MM), round(width / STEP_MM)
    counts = np.zeros(bars * step, np.int64)
    inside = histogram.counts[first : first + bars * step]
    counts[: len(inside)] = inside
    counts = counts.reshape(bars, step).sum(1)
    beyond = histogram.total - int(counts.sum())
    counts[-1] += beyond
    return Bars(low, width, counts, beyond)


def _bars_for(histogram: Histogram, most: int) -> int:
    """So few that a bar of a small collection is not one hand."""
    return min(max(round(2 * math.sqrt(histogram.total)), 10), most)


def _colour(value: float, range_mm: Range) -> str:
    rgb = (uncertainty_colours(np.array([value]), *range_mm)[0] * 255).round().astype(int)
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def histogram_chart(histogram: Histogram, range_mm: Range, title: str) -> str:
    """Hands by std, for a wide screen and for a narrow one, of which the style sheet shows one."""
    wide = _histogram_chart(histogram, range_mm, title, 36, 640)
    narrow = _histogram_chart(histogram, range_mm, title, 20, 340)
    return f'<div class="wide-only">{wide}</div><div class="narrow-only">{narrow}</div>'


def _histogram_chart(histogram: Histogram, range_mm: Range, title: str, about: int, width: int) -> str:
    """Each bar in the colour of its std."""
    bars = rebinned(histogram, span_of([histogram]), _bars_for(histogram, about))
    axes = Axes((bars.low, bars.high), (0, float(bars.counts.max()) * 1.16), width, 250)
    axes.frame(title, "hands", whole=True)
    for k, count in enumerate(bars.counts):
        start = bars.low + k * bars.width
        x0, top = axes.at(start, float(count))
        x1, floor = axes.at(start + bars.width, 0)
        last = k == len(bars.counts) - 1 and bars.beyond
        said = f"{start:g} mm and more" if last else f"{start:g} to {start + bars.width:g} mm"
        if count:
            axes.parts.append(
                f'<rect x="{x0 + 0.6:.1f}" y="{min(top, floor - 1):.1f}" width="{x1 - x0 - 1.2:.1f}" rx="1" '
                f'height="{max(floor - top, 1):.1f}" fill="{_colour(start + bars.width / 2, range_mm)}">'
                f"<title>{said}: {count:,} hands</title></rect>"
            )
    median = histogram.quantile(0.5)
    x, floor = axes.at(median, 0)
    axes.parts.append(f'<path class="median" d="M{x:.1f} 12V{floor:.1f}"/>')
    side, shift = ("end", -6) if x > axes.width / 2 else ("start", 6)
    axes.parts.append(f'<text x="{x + shift:.1f}" y="22" class="{side} strong">median {median:.1f} mm</text>')
    return axes.svg(f"Histogram of {title}: {histogram.total:,} hands, median {median:.1f} mm")


def small_histogram(histogram: Histogram, span: Range, range_mm: Range, name: str) -> str:
    """The same of one joint, without axes."""
    bars = rebinned(histogram, span, _bars_for(histogram, 30))
    tallest = max(int(bars.counts.max()), 1)
    step = 100 / len(bars.counts)
    inside = "".join(
        f'<rect x="{k * step + 0.4:.1f}" y="{40 - 38 * count / tallest:.1f}" width="{step - 0.8:.1f}" '
        f'height="{38 * count / tallest:.1f}" fill="{_colour(bars.low + (k + 0.5) * bars.width, range_mm)}"/>'
        for k, count in enumerate(bars.counts)
        if count
    )
    label = f"{name}: median {histogram.quantile(0.5):.1f} mm, 90 % below {histogram.quantile(0.9):.1f} mm"
    return _svg(100, 41, label, inside + '<path class="axis" d="M0 40.5H100"/>', "small")


def hand_drawing(joints: Sequence[Histogram], range_mm: Range) -> str:
    """The median std of each joint on an open hand."""
    places = [(x + 78, y + 206) for x, y in _HAND]
    palm = "L".join(f"{x} {y}" for x, y in (places[k] for k in _PALM))
    flesh = [f'<path class="flesh palm" d="M{palm}Z"/>']
    for parent, child in BONES:
        (x0, y0), (x1, y1) = places[parent], places[child]
        if parent:
            flesh.append(f'<path class="flesh" d="M{x0} {y0}L{x1} {y1}"/>')
    bones = "".join(
        f'<path class="bone" d="M{places[a][0]} {places[a][1]}L{places[b][0]} {places[b][1]}"/>'
        for a, b in BONES
    )
    dots = []
    for name, (x, y), histogram in zip(JOINT_NAMES, places, joints, strict=True):
        median = histogram.quantile(0.5)
        fill = f' fill="{_colour(median, range_mm)}"' if name != "wrist" else ' class="wrist"'
        dots.append(
            f'<circle cx="{x}" cy="{y}" r="6"{fill}><title>{joint_name(name)}: {median:.1f} mm</title></circle>'
        )
    return _svg(
        184,
        226,
        "A hand whose joints have the colour of their median std",
        "".join(flesh) + bones + "".join(dots),
        "hand",
    )


def joint_name(name: str) -> str:
    """`index_tip` in words."""
    return name.replace("_", " ")


def kept_chart(panel: Panel) -> str:
    """Error of what is kept, the surest first, beside the best order there could be."""
    axes = Axes((0, 1), (0, max(float(panel.by_std.max()), panel.mean_mm, 0.1) * 1.1))
    axes.frame("hands kept, the surest first", "mean error, mm", x_percent=True)
    axes.line([panel.kept[0], 1], [panel.mean_mm] * 2, "chance")
    axes.line(panel.kept.tolist(), panel.by_error.tolist(), "oracle")
    axes.line(panel.kept.tolist(), panel.by_std.tolist(), "ours")
    return axes.svg(
        f"{panel.title}: mean error of all {panel.mean_mm:.1f} mm, of the surest half {panel.best_half_mm:.1f} mm"
    )


def reliability_chart(bins: ReliabilityBins) -> str:
    """Predicted std against the std that the errors have."""
    high = max(float(np.max(bins.std)), float(np.max(bins.observed))) * 1.08
    axes = Axes((0, high), (0, high))
    axes.frame("predicted std, mm", "std of the errors, mm")
    axes.line([0, high], [0, high], "chance")
    axes.line(bins.std.tolist(), bins.observed.tolist(), "ours")
    for std, observed, count in zip(bins.std, bins.observed, bins.count, strict=True):
        x, y = axes.at(std, observed)
        axes.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" class="ours">'
            f"<title>predicted {std:.1f} mm, observed {observed:.1f} mm, {count:,} coordinates</title></circle>"
        )
    return axes.svg("Reliability: predicted std against the std of the errors; on the diagonal they agree")
