"""The upper sections of a page: what became of the photos, how sure the labels are, how right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from annotator.hand import JOINT_NAMES
from annotator.job.record import FitSettings, RunRecord, RunSettings, TrackSettings
from annotator.quality.calibration import UNCALIBRATED_3D
from annotator.quality.uncertainty import CALIBRATED_LEVEL, LEVELS
from annotator.report import charts
from annotator.report.survey import Survey
from annotator.report.truth import Comparison

#: Shares of the hands whose largest std is told: what `amvur filter --keep-best` would keep.
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

#: A name that is longer is cut in its middle.
_LONGEST_NAME = 120

Record = RunRecord[RunSettings] | RunRecord[FitSettings] | RunRecord[TrackSettings]


def readable(name: str) -> str:
    """A name on one line, not too long, in which what can't be seen or turns the text around is spelt out."""
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME // 2]}…{name[-_LONGEST_NAME // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def summary(record: Record, found: Survey) -> str:
    """A few large numbers."""
    ok = found.outcomes["ok"] / max(found.photos, 1)
    tiles = [
        ("photos", f"{found.photos:,}", ""),
        ("hands", f"{found.hands:,}", _sides(found)),
        ("photos with a hand", share(ok), ""),
    ]
    if found.std.total:
        data = escape(readable(found.calibration.fitted_on))
        below = f"calibrated on {data}" if found.calibration.measures_3d else "not calibrated"
        tiles.append(("median std of joints", f"{found.std.quantile(0.5):.1f} mm", below))
    # What was kept of a run says nothing of how fast it was.
    if record.seconds > 0 and not record.filtered and record.photos:
        tiles.append(
            ("photos a second", _rate(record.photos / record.seconds), f"in {_time(record.seconds)}")
        )
    return "".join(
        f'<div class="tile"><dt>{name}</dt><dd>{value}</dd><dd class="sub">{below}</dd></div>'
        for name, value, below in tiles
    )


def share(part: float) -> str:
    """A share in per cent, which is 100 % only where it is all, and 0 % where it is none."""
    if 0 < part < 0.001:
        return "&lt; 0.1 %"
    if 0.999 < part < 1:
        return "&gt; 99.9 %"
    return f"{part * 100:.1f}".removesuffix(".0") + " %"


def _sides(found: Survey) -> str:
    left = found.hands - found.right
    return f"{found.right:,} right, {left:,} left" if found.hands else ""


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def notes(record: Record, found: Survey) -> str:
    """What a reader must know before the numbers."""
    said = []
    if found.hands == 0:
        said.append("No photo gave a hand: the causes are below, and there is nothing to be drawn.")
    elif isinstance(record.settings, RunSettings) and record.settings.trained_steps == 0:
        said.append(
            "Untrained weights: every hand is the mean hand, with one uncertainty for all. "
            "What the pictures show is the way a photo goes, not what a trained model sees."
        )
    elif found.is_constant:
        said.append(
            "All hands have one standard deviation: it says how wrong they are on average, not which ones."
        )
    elif not found.calibration.fitted_on:
        said.append("Standard deviations are not calibrated: they order errors, and do not measure them.")
    else:
        data = f"<bdi>{escape(readable(found.calibration.fitted_on))}</bdi>"
        said.append(
            f"Standard deviations were calibrated on {data}. They measure errors on photos like those; on others they "
            "may be too small or too large."
            if found.calibration.measures_3d
            else f"Only the standard deviations in 2D were calibrated, on {data}: {UNCALIBRATED_3D}."
        )
    if sum(record.outcomes.values()) != found.photos:
        said.append("The run goes on, or was stopped: this is what there is so far.")
    if found.hands > found.std.total:
        missing = found.hands - found.std.total
        said.append(f"{missing:,} hands have no finite standard deviation; histograms leave them out.")
    return "".join(f'<p class="note">{one}</p>' for one in said)


def outcomes(found: Survey) -> str:
    """What became of the photos, by cause."""
    lines = []
    most = max(found.outcomes.values(), default=1)
    for outcome, number in sorted(found.outcomes.items(), key=lambda pair: (pair[0] != "ok", -pair[1])):
        status, _, reason = outcome.partition(": ")
        named = "".join(
            f"<li><bdi>{escape(readable(name))}</bdi><small>{escape(readable(error))}</small></li>"
            for name, error in found.examples.get(outcome, [])
        )
        part = number / max(found.photos, 1)
        cause = escape(reason.replace("_", " ")) or "labelled"
        lines.append(
            f'<tr class="{escape(status)}"><th scope="row"><span class="dot"></span>{cause}'
            f'<small>{escape(status)}</small></th><td class="number">{number:,}</td>'
            f'<td class="number">{share(part)}</td>'
            f'<td class="bar"><i style="width:{max(number / most * 100, 0.5):.1f}%"></i></td>'
            f'<td class="examples">{f"<ul>{named}</ul>" if named else ""}</td></tr>'
        )
    return "".join(lines)


def settings(record: Record, found: Survey) -> str:
    """With what it was made."""
    made = record.settings
    filtered = [
        ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in plan.items() if v and k not in ("labels", "sort"))
        for plan in record.filtered
    ]
    labelled_by = "fit" if isinstance(made, FitSettings) else "checkpoint"
    shown = {
        "photos from": made.source,
        labelled_by: ", ".join(f"{name} ({n:,} hands)" for name, n in found.checkpoints.most_common(4))
        if len(found.checkpoints) > 1
        else made.checkpoint,
        **_of_maker(made),
        "calibrated on": found.calibration.fitted_on or "nothing",
        "hand model": f"{made.hand}, {made.vertex_count} vertices",
        "kept by filter": "; ".join(filtered),
        "relabelled": f"{len(record.relabelled)} times" if record.relabelled else "",
        "asked again": ", ".join(f"{n:,} × {what}" for what, n in record.retries.items()),
        "files that are no photos": f"{record.skipped_files:,}" if record.skipped_files else "",
    }
    return "".join(
        f"<div><dt>{name}</dt><dd><bdi>{escape(readable(str(value)))}</bdi></dd></div>"
        for name, value in shown.items()
        if value
    )


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


def uncertainty(found: Survey, range_mm: charts.Range) -> str:
    """Histograms of all hands and of each joint."""
    if not found.std.total:
        return ""
    if found.is_constant:
        return (
            '<section id="uncertainty"><h2>Uncertainty</h2><p class="lead">The standard deviation of a joint is '
            f"{found.std.quantile(0.5):.1f} mm long on average, in every one of {found.std.total:,} hands. "
            "There is nothing to sort or to filter by.</p></section>"
        )
    thresholds = "".join(
        f'<tr><th scope="row">{share(part)}</th><td class="number">{found.std.quantile(part):.1f}</td>'
        f'<td class="number">{found.largest.quantile(part):.1f}</td></tr>'
        for part in _SHARES
    )
    return (
        '<section id="uncertainty"><h2>Uncertainty</h2><p class="lead">The length of a joint’s predicted standard '
        f"deviation, in millimetres, of {_hands(found.std.total)}.</p>"
        f'<div class="split"><figure><figcaption>Mean over a hand’s joints</figcaption>'
        f"{charts.histogram_chart(found.std, range_mm, 'mean std of joints, mm')}</figure>"
        "<figure><figcaption>To keep the surest …</figcaption><table class='plain'><thead><tr><th>share</th>"
        "<th class='number'>mean std ≤</th><th class='number'>largest std ≤</th></tr></thead>"
        f"<tbody>{thresholds}</tbody></table>"
        '<p class="sub">Millimetres. <code>amvur filter --keep-best</code> and '
        "<code>--max-joint-std-mm</code> keep by them.</p></figure></div>"
        + _joints(found, range_mm)
        + "</section>"
    )


def _joints(found: Survey, range_mm: charts.Range) -> str:
    span = charts.span_of(found.joints[1:])
    cells = []
    for level, title in ((4, "tip"), (3, "3"), (2, "2"), (1, "1")):
        cells.append(f'<span class="level">{title}</span>')
        for finger in range(5):
            joint = 4 * finger + level
            histogram, name = found.joints[joint], charts.joint_name(JOINT_NAMES[joint])
            chart = charts.small_histogram(histogram, span, range_mm, name)
            cells.append(f'<div class="joint">{chart}<span>{histogram.quantile(0.5):.1f}</span></div>')
    heads = "".join(
        f'<span class="head">{finger}</span>' for finger in ("thumb", "index", "middle", "ring", "little")
    )
    return (
        '<figure class="joints"><figcaption>Joint by joint</figcaption><div class="hand-split">'
        f'<div>{charts.hand_drawing(found.joints, range_mm)}<p class="sub">A right hand from its palm’s side; the '
        "colour of a joint is its median. The wrist is the origin, and has none.</p></div>"
        f'<div class="grid"><span></span>{heads}{"".join(cells)}</div></div>'
        f'<p class="sub">Each from {span[0]:.0f} to {span[1]:.0f} mm; the number is the median. '
        "Joint 1 is the nearest to the palm.</p></figure>"
    )


def _hands(count: int) -> str:
    return "one hand" if count == 1 else f"all {count:,} hands"


def _listed(shares: Sequence[float]) -> str:
    *first, last = (f"{100 * part:.0f}" for part in shares)
    return f"{', '.join(first)} and {last}"


def _by_axis(judged: Comparison) -> str:
    return ", ".join(f"{100 * share:.0f} % along {axis}" for axis, share in judged.coverage_by_axis.items())


def truth(judged: Comparison | None, found: Survey) -> str:
    """Errors against what was kept, and reliability."""
    if judged is None:
        return ""
    panels = "".join(
        f"<figure><figcaption>{panel.title}</figcaption>{charts.kept_chart(panel)}"
        f'<p class="sub">All hands {panel.mean_mm:.1f} mm, the surest half <b>{panel.best_half_mm:.1f} mm</b>; rank '
        f"correlation of std and error {'—' if panel.spearman is None else f'{panel.spearman:.2f}'}.</p></figure>"
        for panel in judged.panels
    )
    sized = ""
    if len(judged.reliability.std):
        meant, held = _listed(LEVELS), _listed(judged.coverage or [])
        part = (
            f" Of {judged.sampled_hands:,} hands taken at random."
            if judged.sampled_hands < judged.hands
            else ""
        )
        sized = (
            f"<figure><figcaption>Reliability</figcaption>{charts.reliability_chart(judged.reliability)}"
            f'<p class="sub">Wrist on wrist, each coordinate. Intervals meant to hold {meant} % of the errors hold '
            f"{held} %; the {CALIBRATED_LEVEL:.0%} interval {_by_axis(judged)}.{part}</p></figure>"
        )
    return (
        '<section id="truth"><h2>Against the truth</h2><p class="lead">Mean joint error of '
        f"{judged.hands:,} of {found.hands:,} hands whose truth is known.</p>"
        f'<div class="thirds">{panels}{sized}</div><p class="legend"><span><i class="ours"></i>by predicted std</span>'
        '<span><i class="oracle"></i>best order possible</span><span><i class="chance"></i>no order, or '
        "perfect agreement</span></p></section>"
    )
