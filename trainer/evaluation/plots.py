"""Plots of an evaluation: PCK, error after filtering, reliability, std against error."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from annotator.quality import metrics, uncertainty
from trainer.evaluation.measurements import PhotoErrors, StdAndError

_BLUE, _ORANGE, _GREY, _INK = "#2a6fb0", "#d9772b", "#9a9a9a", "#222222"

#: Maximum points of a scatter plot; more merge into one blot.
_DOTS = 3000


def draw_plots(errors: PhotoErrors) -> dict[str, bytes]:
    """Return PNG files by name, for the kinds with known truth in some photo."""
    kinds = dict(errors.std_and_errors())
    plots = {}
    if "joints3d" in kinds:
        plots["pck"] = _pck(errors)
    if kinds:
        plots["kept"] = _panels([kinds[name] for name in kinds], _kept, "Mean error after filtering by std")
        sized = [one for one in kinds.values() if one.coordinates is not None]
        plots["reliability"] = _panels(sized, _reliability, "Reliability of std")
        plots["std_and_error"] = _panels(
            list(kinds.values()), _scatter, "Predicted std and true error per photo"
        )
    return plots


def _figure(columns: int, rows: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.4 * columns, 3.9 * rows + 0.3), dpi=110)
    figure.set_layout_engine("constrained", h_pad=0.12, w_pad=0.1)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, k + 1) for k in range(rows * columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color="#e6e6e6", linewidth=0.7)
        one.set_axisbelow(True)
    return figure, axes


def _panels(kinds: Sequence[StdAndError], draw: Callable[[Axes, StdAndError], None], title: str) -> bytes:
    columns = min(len(kinds), 3)
    rows = -(-len(kinds) // columns)
    figure, axes = _figure(columns, rows)
    for one, panel in zip(kinds, axes, strict=False):
        draw(panel, one)
        panel.set_title(one.title, fontsize=11)
    for empty in axes[len(kinds) :]:
        empty.remove()
    figure.suptitle(title, fontsize=12, color=_INK)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()


def _pck(errors: PhotoErrors) -> bytes:
    figure, (panel,) = _figure(1)
    kinds = (
        ("Procrustes", errors["pa_joint_errors_mm"], _BLUE, "-"),
        ("wrist and scale", errors["scale_aligned_joint_errors_mm"], _ORANGE, "--"),
        ("root-relative", np.linalg.norm(errors["joints3d_error_mm"], axis=-1), _INK, ":"),
    )
    for name, joint_errors, colour, style in kinds:
        known = joint_errors[~np.isnan(joint_errors)]
        label = f"{name}: AUC {metrics.auc_of_pck(known):.3f}"
        panel.plot(
            metrics.PCK_THRESHOLDS_MM, metrics.pck(known), style, color=colour, label=label, linewidth=1.8
        )
    panel.set(xlim=(0, 50), ylim=(0, 1), xlabel="threshold, mm", ylabel="joints within it")
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.legend(frameon=False, fontsize=9, loc="lower right")
    panel.set_title("PCK of the 21 joints", fontsize=11)
    return _png(figure)


def _kept(panel: Axes, pairs: StdAndError) -> None:
    curves = uncertainty.sparsify(pairs.std, pairs.error)
    if curves is None:
        return
    # The first points of a curve are means of very few photos.
    shown = curves.kept >= min(0.02, curves.kept[-1])
    mean = pairs.error.mean()
    kept = curves.kept[shown]
    panel.axhline(mean, color=_GREY, linestyle=":", label="at random")
    panel.plot(kept, mean * curves.by_std[shown], color=_BLUE, linewidth=1.8, label="lowest std first")
    panel.plot(
        kept,
        mean * curves.by_error[shown],
        "--",
        color=_ORANGE,
        linewidth=1.4,
        label="oracle: lowest error first",
    )
    panel.fill_between(
        kept, mean * curves.by_error[shown], mean * curves.by_std[shown], color=_BLUE, alpha=0.08
    )
    panel.set(xlim=(0, 1), xlabel="photos kept", ylabel=f"mean error of those, {pairs.unit}")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    note = f"AUSE {curves.ause:.3f}, chance {curves.ause_of_chance:.3f}"
    panel.legend(frameon=False, fontsize=8.5, loc="lower right", title=note, title_fontsize=8.5)


def _reliability(panel: Axes, pairs: StdAndError) -> None:
    assert pairs.coordinates is not None
    std, error = pairs.coordinates
    axes = {
        axis: uncertainty.reliability(std[..., k], error[..., k])
        for k, axis in enumerate("xyz"[: error.shape[-1]])
    }
    top = 1.1 * max(float(max(bins.std.max(), bins.observed.max())) for bins in axes.values())
    panel.plot([0, top], [0, top], color=_GREY, linestyle=":", label="std is exact")
    for (axis, bins), colour in zip(axes.items(), (_BLUE, _ORANGE, _INK), strict=False):
        label = f"{axis}: covers 68 % of errors"
        panel.plot(bins.std, bins.observed, "o-", color=colour, markersize=4, linewidth=1.2, label=label)
    panel.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    panel.set(xlabel=f"predicted std, {pairs.unit}", ylabel=f"observed std, {pairs.unit}")
    covered = uncertainty.coverage_by_axis(std, error)
    lines = [
        f"{', '.join(f'{axis} {100 * found[k]:.0f}' for axis, found in covered.items() if found)} % "
        f"within the {level:.0%} interval"
        for k, level in enumerate(uncertainty.LEVELS)
    ]
    panel.text(0.03, 0.97, "\n".join(lines), transform=panel.transAxes, va="top", fontsize=8.5, color=_INK)
    panel.legend(frameon=False, fontsize=8.5, loc="lower right")


def _scatter(panel: Axes, pairs: StdAndError) -> None:
    step = -(-len(pairs.std) // _DOTS)
    std, error = pairs.std[::step], pairs.error[::step]
    panel.scatter(std, error, s=7, color=_BLUE, alpha=min(1.0, 0.15 + 60 / len(std)), linewidths=0)
    rank = uncertainty.spearman(pairs.std, pairs.error)
    text = "Spearman n/a: std is constant" if rank is None else f"Spearman {rank:.2f}"
    panel.text(0.03, 0.97, text, transform=panel.transAxes, va="top", fontsize=9, color=_INK)
    panel.set(xlabel=f"predicted std, {pairs.unit}", ylabel=f"error, {pairs.unit}")
    # Limits ignore a few extreme photos, which would squeeze the rest into a corner.
    panel.set_xlim(0, 1.15 * float(np.quantile(pairs.std, 0.995)))
    panel.set_ylim(0, 1.25 * float(np.quantile(pairs.error, 0.995)))
