"""Contents of the upper sections of a page: summary, outcomes, settings and uncertainty, without any HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from annotator.hand import JOINT_NAMES
from annotator.job.record import FitSettings, RunRecord, RunSettings, TrackSettings
from annotator.quality.calibration import UNCALIBRATED_3D
from annotator.report import charts
from annotator.report.survey import Survey

#: Shares of hands whose largest std a table lists: the limits of `amvur filter --keep-best`.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

#: Longer names are cut in the middle.
_LONGEST_NAME = 120

Record = RunRecord[RunSettings] | RunRecord[FitSettings] | RunRecord[TrackSettings]


def display_name(name: str) -> str:
    """Return a name on one line, not too long, with invisible and direction-changing characters spelt out."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def in_words(outcome: str) -> str:
    """Return `unreadable: not_a_photo` without its status, which the reason implies."""
    return outcome.partition(": ")[2].replace("_", " ") or outcome


def share(part: float) -> str:
    """Format a share in per cent; only exact ones read 0 % or 100 %."""
    if 0 < part < 0.001:
        return "< 0.1 %"
    if 0.999 < part < 1:
        return "> 99.9 %"
    return f"{part * 100:.1f}".removesuffix(".0") + " %"


def percents(shares: Sequence[float]) -> str:
    """Return shares as `50, 68 and 95`."""
    *first, last = (f"{100 * part:.0f}" for part in shares)
    return f"{', '.join(first)} and {last}"


@dataclass(frozen=True)
class Tile:
    """One large number of the summary, with a line below it."""

    name: str
    value: str
    below: str = ""


def summary(record: Record, survey: Survey) -> list[Tile]:
    """Return the large numbers at the top of the page."""
    left = survey.hands - survey.right
    tiles = [
        Tile("photos", f"{survey.photos:,}"),
        Tile("hands", f"{survey.hands:,}", f"{survey.right:,} right, {left:,} left" if survey.hands else ""),
        Tile("photos with a hand", share(survey.outcomes["ok"] / max(survey.photos, 1))),
    ]
    if survey.std.total:
        data = display_name(survey.calibration.fitted_on)
        below = f"calibrated on {data}" if survey.calibration.measures_3d else "not calibrated"
        tiles.append(Tile("median std of joints", f"{survey.std.quantile(0.5):.1f} mm", below))
    # A filtered set has fewer photos than the run that took the time.
    if record.seconds > 0 and not record.filtered and record.photos:
        rate = _rate(record.photos / record.seconds)
        tiles.append(Tile("photos per second", rate, f"in {_time(record.seconds)}"))
    return tiles


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Note:
    """A remark above the numbers; `data` names the photos of a calibration between `text` and `rest`."""

    text: str
    data: str = ""
    rest: str = ""


def notes(record: Record, survey: Survey) -> list[Note]:
    """Return the remarks that a reader needs before the numbers."""
    remarks = [_main_note(record, survey)]
    if sum(record.outcomes.values()) != survey.photos:
        remarks.append(Note("The run is not finished: this page shows the photos labelled so far."))
    if survey.hands > survey.std.total:
        missing = f"{survey.hands - survey.std.total:,}"
        remarks.append(Note(f"{missing} hands have no finite standard deviation; histograms leave them out."))
    return remarks


def _main_note(record: Record, survey: Survey) -> Note:
    if survey.hands == 0:
        return Note("No photo has a labelled hand, so there is nothing to draw. The reasons are below.")
    if isinstance(record.settings, RunSettings) and record.settings.trained_steps == 0:
        return Note(
            "Untrained weights: every hand is the mean hand, with the same uncertainty. "
            "The pictures show that the pipeline works, not the predictions of a trained model."
        )
    if survey.is_constant:
        return Note(
            "All hands have one standard deviation: it measures their average error, and does not rank them."
        )
    calibration = survey.calibration
    if not calibration.fitted_on:
        return Note(
            "Standard deviations are not calibrated: they rank hands by error, but do not measure it."
        )
    if not calibration.measures_3d:
        text = "Only the standard deviations in 2D were calibrated, on "
        return Note(text, calibration.fitted_on, f": {UNCALIBRATED_3D}.")
    return Note(
        "Standard deviations were calibrated on ",
        calibration.fitted_on,
        ". They measure errors on similar photos; on others they may be too small or too large.",
    )


@dataclass(frozen=True)
class OutcomeRow:
    """One outcome of photos: how many, and examples (name, error)."""

    key: str  # "ok", or "status: reason"
    status: str
    cause: str
    photos: int
    share: float
    bar_percent: float
    examples: list[tuple[str, str]]

    @property
    def words(self) -> str:
        """The outcome as an option of the filter."""
        return in_words(self.key)


def outcomes(survey: Survey) -> list[OutcomeRow]:
    """Return the outcomes of the photos: labelled ones first, then by count."""
    rows = []
    most = max(survey.outcomes.values(), default=1)
    for key, number in sorted(survey.outcomes.items(), key=lambda pair: (pair[0] != "ok", -pair[1])):
        status, _, reason = key.partition(": ")
        rows.append(
            OutcomeRow(
                key,
                status,
                reason.replace("_", " ") or "labelled",
                number,
                number / max(survey.photos, 1),
                max(number / most * 100, 0.5),
                survey.examples.get(key, []),
            )
        )
    return rows


def settings(record: Record, survey: Survey) -> dict[str, str]:
    """Return the settings of the run by name; empty values are not shown."""
    made = record.settings
    filtered = [
        ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in plan.items() if v and k not in ("labels", "sort"))
        for plan in record.filtered
    ]
    labelled_by = "fit" if isinstance(made, FitSettings) else "checkpoint"
    return {
        "photos from": made.source,
        labelled_by: ", ".join(f"{name} ({n:,} hands)" for name, n in survey.checkpoints.most_common(4))
        if len(survey.checkpoints) > 1
        else made.checkpoint,
        **_of_maker(made),
        "calibrated on": survey.calibration.fitted_on or "nothing",
        "hand model": f"{made.hand}, {made.vertex_count} vertices",
        "kept by filter": "; ".join(filtered),
        "relabelled": f"{len(record.relabelled)} times" if record.relabelled else "",
        "retried requests": ", ".join(f"{n:,} × {cause}" for cause, n in record.retries.items()),
        "files that are not photos": f"{record.skipped_files:,}" if record.skipped_files else "",
    }


def _of_maker(made: RunSettings | FitSettings | TrackSettings) -> dict[str, str]:
    if isinstance(made, FitSettings):
        return {"landmarks from": made.landmarks}
    if isinstance(made, TrackSettings):
        return {"tracked from": made.tracked_labels, "gaps filled": f"up to {made.max_gap} frames"}
    return {
        "training steps": f"{made.trained_steps:,}",
        "crop": f"{made.crop_px} px",
        "side": made.side,
        "hands found by": made.detector
        or (f"the list {made.boxes}" if made.boxes else "each photo is a crop"),
    }


@dataclass(frozen=True)
class Threshold:
    """Limits of std, millimetres, that keep a share of the hands."""

    share: float
    mean_mm: float
    largest_mm: float


@dataclass(frozen=True)
class Joint:
    """One joint's histogram and median std."""

    chart: charts.Chart
    median_mm: float


@dataclass(frozen=True)
class Uncertainty:
    """Histograms of all hands and of each joint; if std is constant, only its value."""

    hands: int
    median_mm: float
    is_constant: bool
    wide: charts.Chart | None = None  # for wide and narrow screens; the style sheet shows one
    narrow: charts.Chart | None = None
    thresholds: Sequence[Threshold] = ()
    hand: charts.Chart | None = None
    joints: Mapping[str, Sequence[Joint]] | None = None  # by level, tip first; thumb to little
    span_mm: charts.Range = (0, 0)


def uncertainty(survey: Survey, range_mm: charts.Range) -> Uncertainty | None:
    """Return the predicted standard deviations of all hands; None without any."""
    if not survey.std.total:
        return None
    median = survey.std.quantile(0.5)
    if survey.is_constant:
        return Uncertainty(survey.std.total, median, is_constant=True)
    title = "mean std of joints, mm"
    span = charts.span_of(survey.joints[1:])
    return Uncertainty(
        survey.std.total,
        median,
        is_constant=False,
        wide=charts.histogram_chart(survey.std, range_mm, title, 36, 640),
        narrow=charts.histogram_chart(survey.std, range_mm, title, 20, 340),
        thresholds=[
            Threshold(part, survey.std.quantile(part), survey.largest.quantile(part)) for part in _SHARES
        ],
        hand=charts.hand_drawing(survey.joints, range_mm),
        joints={
            title: [_joint(survey, 4 * finger + level, span, range_mm) for finger in range(5)]
            for level, title in ((4, "tip"), (3, "3"), (2, "2"), (1, "1"))
        },
        span_mm=span,
    )


def _joint(survey: Survey, joint: int, span: charts.Range, range_mm: charts.Range) -> Joint:
    name = charts.joint_name(JOINT_NAMES[joint])
    histogram = survey.joints[joint]
    return Joint(charts.small_histogram(histogram, span, range_mm, name), histogram.quantile(0.5))
