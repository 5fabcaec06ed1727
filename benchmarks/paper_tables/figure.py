"""Draw the sparsification curves of all rows with an uncertainty, as a PNG beside the page."""

from __future__ import annotations

import io

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from paper_tables.rows import UNCERTAIN
from paper_tables.statistics import KEPT, Runs

_COLOURS = {"prior-net": "#7f7f7f", "AMVUR": "#d9772b", "final": "#2a6fb0"}

ERRORS = {"MPJPE": "root-relative", "PA-MPJPE": "after Procrustes"}


def sparsification(runs: Runs) -> bytes | None:
    """Return a PNG with a panel per kind of training and of error; None if no row has finished."""
    rows = [row for row in UNCERTAIN if row.run in runs]
    kinds = sorted({row.title.partition(": ")[0] for row in rows})
    if not rows:
        return None
    figure = Figure(figsize=(5.4 * len(kinds), 7.6), dpi=110)
    figure.set_layout_engine("constrained", h_pad=0.1, w_pad=0.12)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(kinds), sharex=True, sharey=True, squeeze=False)
    for (error, aligned), line in zip(ERRORS.items(), panels, strict=True):
        for kind, panel in zip(kinds, line, strict=True):
            for row in rows:
                of_kind, _, name = row.title.partition(": ")
                if of_kind != kind:
                    continue
                found = runs.ause(row.run, error)
                title = f"{name} (constant std)" if name == "prior-net" else name
                label = f"{title}: AUSE {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
                colour = _COLOURS[name]
                panel.plot(KEPT, runs.sparsified(row.run, error), color=colour, linewidth=1.9, label=label)
                panel.plot(KEPT, runs.sparsified(row.run, error, error), "--", color=colour, linewidth=1)
            panel.plot(
                [], [], "--", color="#222222", linewidth=1, label="oracle of each, by the error itself"
            )
            panel.set_title(f"{kind}, {aligned}", fontsize=11)
            panel.legend(frameon=False, fontsize=8.5, loc="lower right")
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(color="#e6e6e6", linewidth=0.7)
            panel.set_axisbelow(True)
            panel.set_xlim(0, 1)
            panel.xaxis.set_major_formatter(PercentFormatter(1))
    panels[0, 0].set_ylim(bottom=0)  # shared, so after all curves
    for panel in panels[-1]:
        panel.set_xlabel("photos kept, lowest std first")
    for panel in panels[:, 0]:
        panel.set_ylabel("mean joint error, relative to all photos")
    sink = io.BytesIO()
    figure.savefig(sink, format="png")
    return sink.getvalue()
