"""Charts of the report as shapes for inline SVG; the page's style sheet colours them, in dark mode too."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from annotator.hand import BONES, JOINT_NAMES
from annotator.quality.uncertainty import ReliabilityBins
from annotator.render.std_colours import std_colours
from annotator.report.survey import STEP_MM, Histogram
from annotator.report.truth import Panel

Range = tuple[float, float]
Attributes = Mapping[str, str | int]

#: An open right hand seen from the palm, millimetres from the wrist, x right and y down, in the order of `JOINT_NAMES`.
_HAND = (
    *((0, 0), (29, -19), (54, -37), (76, -70), (89, -99)),
    *((39, -89), (46, -117), (52, -142), (59, -171)),
    *((11, -92), (9, -129), (9, -159), (9, -187)),
    *((-11, -88), (-18, -120), (-23, -146), (-29, -175)),
    *((-32, -80), (-40, -102), (-46, -118), (-54, -139)),
)
_PALM = (0, 1, 5, 9, 13, 17)


@dataclass(frozen=True)
class Element:
    """One SVG element; `title` is its tooltip."""

    tag: str
    attributes: Attributes
    text: str = ""
    title: str = ""


@dataclass(frozen=True)
class Chart:
    """One drawing; `label` describes it to screen readers, `style` is its CSS class."""

    width: int
    height: int
    label: str
    shapes: Sequence[Element]
    style: str = "chart"


def _path(style: str, d: str) -> Element:
    return Element("path", {"class": style, "d": d})


@dataclass(frozen=True)
class Axes:
    """The frame of a chart: converts values to positions in its view box."""

    x: Range
    y: Range
    width: int = 340
    height: int = 230
    left: int = 46
    bottom: int = 42
    shapes: list[Element] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in the view box."""
        inner_width, inner_height = self.width - self.left - 16, self.height - self.bottom - 12
        across = (x - self.x[0]) / (self.x[1] - self.x[0]) * inner_width
        up = (y - self.y[0]) / (self.y[1] - self.y[0]) * inner_height
        return self.left + across, 12 + inner_height - up

    def frame(self, x_title: str, y_title: str, x_percent: bool = False, whole: bool = False) -> None:
        """Add ticks, a grid and titles; `whole` limits the ticks of y to integers."""
        right, floor = self.at(self.x[1], self.y[0])
        for tick in ticks(*self.y, 4, whole):
            _, y = self.at(self.x[0], tick)
            self.shapes.append(_path("grid", f"M{self.left} {y:.1f}H{right:.1f}"))
            attributes: Attributes = {"x": self.left - 8, "y": f"{y + 4:.1f}", "class": "end"}
            self.shapes.append(Element("text", attributes, axis_number(tick)))
        for tick in ticks(*self.x, 5):
            x, _ = self.at(tick, self.y[0])
            attributes = {"x": f"{x:.1f}", "y": f"{floor + 17:.1f}", "class": "mid"}
            self.shapes.append(
                Element("text", attributes, f"{tick * 100:.0f} %" if x_percent else axis_number(tick))
            )
        self.shapes.append(_path("axis", f"M{self.left} {floor:.1f}H{right:.1f}"))
        middle = f"translate({(self.left + right) / 2:.1f} {self.height - 5})"
        rotated = f"translate(11 {(12 + floor) / 2:.1f}) rotate(-90)"
        for transform, title in ((middle, x_title), (rotated, y_title)):
            self.shapes.append(Element("text", {"transform": transform, "class": "mid title"}, title))

    def line(self, x: Sequence[float], y: Sequence[float], style: str) -> None:
        """Add a line through points."""
        points = (self.at(a, b) for a, b in zip(x, y, strict=True))
        self.shapes.append(_path(f"line {style}", "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points)))

    def chart(self, label: str) -> Chart:
        """Return the finished chart."""
        return Chart(self.width, self.height, label, self.shapes)


def axis_number(value: float) -> str:
    """Format a number for an axis."""
    whole = abs(value - round(value)) < 1e-6
    return f"{value:,.0f}" if whole else f"{value:,.2f}".rstrip("0")


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Return about `about` round numbers from `low` to `high`; `whole` limits them to integers."""
    step = nice((high - low) / about)
    step = math.ceil(step) if whole else step
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def nice(value: float) -> float:
    """Return the smallest of 1, 2, 2.5 and 5 times a power of ten that is at least `value`."""
    power = 10.0 ** math.floor(math.log10(max(value, 1e-12)))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= value * (1 - 1e-9))


@dataclass(frozen=True)
class Bars:
    """A histogram with few bars."""

    low: float
    width: float
    counts: NDArray[np.int64]
    beyond: int  # values beyond the last bar, which counts them too

    @property
    def high(self) -> float:
        """The upper end of the last bar."""
        return self.low + self.width * len(self.counts)


def span_of(histograms: Sequence[Histogram]) -> Range:
    """Return the range of one axis for all histograms, without the largest thousandth."""
    known = [h for h in histograms if h.total]
    if not known:
        return 0.0, 1.0
    return min(h.quantile(0) for h in known), max(h.quantile(0.999) for h in known)


def rebinned(histogram: Histogram, span: Range, about: int) -> Bars:
    """Return about `about` bars over a span; the last one counts larger values too."""
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
    """Return a number of bars that leaves several hands per bar in small collections."""
    return min(max(round(2 * math.sqrt(histogram.total)), 10), most)


def _colour(value: float, range_mm: Range) -> str:
    rgb = (std_colours(np.array([value]), *range_mm)[0] * 255).round().astype(int)
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def histogram_chart(histogram: Histogram, range_mm: Range, title: str, about: int, width: int) -> Chart:
    """Return hands by std in about `about` bars, each in the colour of its std."""
    bars = rebinned(histogram, span_of([histogram]), _bars_for(histogram, about))
    axes = Axes((bars.low, bars.high), (0, float(bars.counts.max()) * 1.16), width, 250)
    axes.frame(title, "hands", whole=True)
    for k, count in enumerate(bars.counts):
        start = bars.low + k * bars.width
        x0, top = axes.at(start, float(count))
        x1, floor = axes.at(start + bars.width, 0)
        is_open = k == len(bars.counts) - 1 and bars.beyond
        interval = f"{start:g} mm and more" if is_open else f"{start:g} to {start + bars.width:g} mm"
        if count:
            bar: Attributes = {
                "x": f"{x0 + 0.6:.1f}",
                "y": f"{min(top, floor - 1):.1f}",
                "width": f"{x1 - x0 - 1.2:.1f}",
                "rx": 1,
                "height": f"{max(floor - top, 1):.1f}",
                "fill": _colour(start + bars.width / 2, range_mm),
            }
            axes.shapes.append(Element("rect", bar, title=f"{interval}: {count:,} hands"))
    median = histogram.quantile(0.5)
    x, floor = axes.at(median, 0)
    axes.shapes.append(_path("median", f"M{x:.1f} 12V{floor:.1f}"))
    side, shift = ("end", -6) if x > axes.width / 2 else ("start", 6)
    attributes: Attributes = {"x": f"{x + shift:.1f}", "y": 22, "class": f"{side} strong"}
    axes.shapes.append(Element("text", attributes, f"median {median:.1f} mm"))
    return axes.chart(f"Histogram of {title}: {histogram.total:,} hands, median {median:.1f} mm")


def small_histogram(histogram: Histogram, span: Range, range_mm: Range, name: str) -> Chart:
    """Return the histogram of one joint, without axes."""
    bars = rebinned(histogram, span, _bars_for(histogram, 30))
    tallest = max(int(bars.counts.max()), 1)
    step = 100 / len(bars.counts)
    shapes = [
        Element(
            "rect",
            {
                "x": f"{k * step + 0.4:.1f}",
                "y": f"{40 - 38 * count / tallest:.1f}",
                "width": f"{step - 0.8:.1f}",
                "height": f"{38 * count / tallest:.1f}",
                "fill": _colour(bars.low + (k + 0.5) * bars.width, range_mm),
            },
        )
        for k, count in enumerate(bars.counts)
        if count
    ]
    label = f"{name}: median {histogram.quantile(0.5):.1f} mm, 90 % below {histogram.quantile(0.9):.1f} mm"
    return Chart(100, 41, label, [*shapes, _path("axis", "M0 40.5H100")], "small")


def hand_drawing(joints: Sequence[Histogram], range_mm: Range) -> Chart:
    """Return an open hand whose joints have the colour of their median std."""
    points = [(x + 78, y + 206) for x, y in _HAND]
    palm = "L".join(f"{x} {y}" for x, y in (points[k] for k in _PALM))
    lines = [
        (parent, f"M{points[parent][0]} {points[parent][1]}L{points[child][0]} {points[child][1]}")
        for parent, child in BONES
    ]
    shapes = [_path("flesh palm", f"M{palm}Z")]
    shapes += [_path("flesh", line) for parent, line in lines if parent]
    shapes += [_path("bone", line) for _, line in lines]
    for name, (x, y), histogram in zip(JOINT_NAMES, points, joints, strict=True):
        median = histogram.quantile(0.5)
        colour: Attributes = {"fill": _colour(median, range_mm)} if name != "wrist" else {"class": "wrist"}
        title = f"{joint_name(name)}: {median:.1f} mm"
        shapes.append(Element("circle", {"cx": x, "cy": y, "r": 6, **colour}, title=title))
    return Chart(184, 226, "A hand whose joints have the colour of their median std", shapes, "hand")


def joint_name(name: str) -> str:
    """Return `index_tip` as `index tip`."""
    return name.replace("_", " ")


def kept_chart(panel: Panel) -> Chart:
    """Return mean error against the share of hands kept, lowest std first, beside the best possible order."""
    axes = Axes((0, 1), (0, max(float(panel.by_std.max()), panel.mean_mm, 0.1) * 1.1))
    axes.frame("hands kept, lowest std first", "mean error, mm", x_percent=True)
    axes.line([panel.kept[0], 1], [panel.mean_mm] * 2, "chance")
    axes.line(panel.kept.tolist(), panel.by_error.tolist(), "oracle")
    axes.line(panel.kept.tolist(), panel.by_std.tolist(), "ours")
    return axes.chart(
        f"{panel.title}: mean error of all hands {panel.mean_mm:.1f} mm, "
        f"of the half with the lowest std {panel.best_half_mm:.1f} mm"
    )


def reliability_chart(bins: ReliabilityBins) -> Chart:
    """Return predicted std against the std of the errors."""
    high = max(float(np.max(bins.std)), float(np.max(bins.observed))) * 1.08
    axes = Axes((0, high), (0, high))
    axes.frame("predicted std, mm", "std of the errors, mm")
    axes.line([0, high], [0, high], "chance")
    axes.line(bins.std.tolist(), bins.observed.tolist(), "ours")
    for std, observed, count in zip(bins.std, bins.observed, bins.count, strict=True):
        x, y = axes.at(std, observed)
        title = f"predicted {std:.1f} mm, observed {observed:.1f} mm, {count:,} coordinates"
        point: Attributes = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": 4, "class": "ours"}
        axes.shapes.append(Element("circle", point, title=title))
    return axes.chart("Reliability: predicted std against the std of the errors; equal on the diagonal")
