"""Write the tables of all finished rows as Markdown, beside the paper's numbers, with a verdict per conclusion."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from machine import machine

from paper_tables.claims import CLAIMS
from paper_tables.rows import ROOT_ALIGNED, ROWS, TABLES, UNCERTAIN, Row, Table
from paper_tables.statistics import KEPT, Interval, Runs, verdict
from paper_tables.training import ending, folder_of, is_finished, mean_hand, seeds_of

_INTRODUCTION = """\
Every row of the paper's tables, from its own file in `configs/paper`, beside the paper's numbers. The two sides use
different photos and networks: compare rows, not sides.

    python benchmarks/ablations.py OUT{changed}

Ours: {hands:,} drawn hands, off the camera's axis and behind objects too, in upright crops of {crop_px} px.
The backbone of `{backbone_from}` ran over them once. Heads alone train on its features, {seeds} seeds per row.
Rows "end to end" train backbone and heads on the same crops, {end_to_end_seeds} seeds. AMVUR has {tokens} tokens,
width {width}, {blocks} blocks; batch 32, Adam at {learning_rate:g}. A row ends when its error on {validation} other
hands gained less than 0.5 % in {patience} measurements, {every} steps apart; weak rows look at 2D joints alone. A "*"
marks rows that took all {steps:,} steps ({end_to_end_steps:,} end to end). The best network of each run predicts
{photos:,} held-out hands.

Intervals hold 95 % of bootstrap draws of photos and seeds. Meshes are the open hand's. Errors are mm; PA: after
Procrustes; else wrist on wrist.

Machine: {machine}.
"""

#: Format of a measure; errors in mm and PSNR have one digit.
_FORMATS = {"AUC": ".3f", "F@": ".3f", "SSIM": ".3f"}


def page(options: argparse.Namespace) -> str:
    """Return the whole page; rows that are not finished are marked."""
    runs = Runs(
        {
            row.run: [
                folder_of(row, options, seed) / "results"
                for seed in seeds_of(row, options)
                if is_finished(row, options, seed)
            ]
            for row in ROWS
        }
    )
    known = {**vars(options), "changed": options.changed, "machine": machine()}
    lines = ["# Ablations", "", *_INTRODUCTION.format(**known).splitlines()]
    for table in TABLES:
        lines += _table(table, runs, options)
    lines += _uncertainty(runs)
    lines += _weak(runs, options)
    return "\n".join(lines) + "\n"


def _table(table: Table, runs: Runs, options: argparse.Namespace) -> Iterator[str]:
    rows = [row for row in ROWS if row.table == table.name]
    yield from ("", f"## Table {table.name}", "", table.about)
    if any(row.paper for row in rows):
        yield from ("", "Paper / ours:", "")
    else:
        yield ""
    yield from _lines(["row", "configuration", *table.measures])
    for row in rows:
        cells = [_cell(row, k, measure, runs) for k, measure in enumerate(table.measures)]
        yield _line([row.title + _mark(row, runs, options), f"`paper/{row.config}`", *cells])
    if table.name not in ("2", "6"):
        yield from ("", "Ours, wrist on wrist:", "")
        yield from _lines(["row", *ROOT_ALIGNED])
        for row in rows:
            yield _line([row.title, *(_ours(row.run, measure, runs) for measure in ROOT_ALIGNED)])
    claims = [claim for claim in CLAIMS if claim.table == table.name]
    if claims:
        yield from ("", "Conclusions; the gain is positive where one holds:", "")
        yield from _lines(["conclusion", "measure", "gain", "95 % interval", "verdict"])
    for claim in claims:
        cells = ["not run"] * 3
        if all(run in runs for run in claim.weights):
            found = runs.interval(claim.weights, claim.measure)
            shown = _format(claim.measure, extra=True)
            cells = [format(found.mean, shown), _between(found, shown), verdict(found)]
        yield _line([claim.text, claim.measure, *cells])


def _mark(row: Row, runs: Runs, options: argparse.Namespace) -> str:
    if row.run not in runs:
        return ""
    ends = [ending(row, options, seed) for seed in seeds_of(row, options) if is_finished(row, options, seed)]
    return "" if all(stood_still for _, stood_still in ends) else " *"


def _cell(row: Row, k: int, measure: str, runs: Runs) -> str:
    ours = _ours(row.run, measure, runs)
    return f"{format(row.paper[k], _format(measure))} / {ours}" if row.paper else ours


def _ours(run: str, measure: str, runs: Runs) -> str:
    if run not in runs:
        return "not run"
    found = runs.interval({run: 1.0}, measure)
    shown = _format(measure)
    return f"{format(found.mean, shown)} ± {format((found.high - found.low) / 2, shown)}"


def _uncertainty(runs: Runs) -> Iterator[str]:
    yield from ("", "## Uncertainty", "")
    yield "Not in the paper. Std as the networks give it, not calibrated. Prior-net's is a constant of 10 mm, so it"
    yield "ranks nothing: its AUSE is that of chance. Joints; AUSE relative to the mean error of all photos."
    yield ""
    error_names = {"MPJPE": "wrist on wrist", "PA-MPJPE": "Procrustes"}
    yield from _lines(
        ["row", *(f"AUSE, {name} (chance)" for name in error_names.values()), "Spearman",
         *(f"within 68 %: {kind}, {axis}" for kind in ("joints", "vertices") for axis in "xyz")]
    )  # fmt: skip
    finished = [row for row in UNCERTAIN if row.run in runs]
    for row in finished:
        figures = runs.figures(row.run)
        cells = []
        for error, kind in (("MPJPE", "joints3d"), ("PA-MPJPE", "joints3d_pa")):
            found = runs.ause(row.run, error)
            chance = np.mean([one["uncertainty"][kind]["ause_of_chance"] for one in figures])
            assert found is not None
            cells.append(f"{found.mean:.3f} [{_between(found, '.3f')}] ({chance:.3f})")
        orders = [one["uncertainty"]["joints3d"]["spearman"] for one in figures]
        cells.append("none" if None in orders else f"{np.mean(orders):.2f}")
        for kind in ("joints3d", "vertices"):
            for axis in "xyz":
                covered = [one["uncertainty"][kind]["axes"][axis]["coverage"]["68%"] for one in figures]
                cells.append(f"{np.mean(covered):.2f}")
        yield _line([row.title, *cells])
    yield from (
        "",
        "Sparsification: mean joint error of the most certain photos, relative to all (wrist on wrist):",
    )
    yield ""
    shown = [k for k, share in enumerate(KEPT) if round(share * 20) % 2 == 0]
    yield from _lines(["row", *(f"{KEPT[k]:.0%}" for k in shown)])
    for row in finished:
        curve = runs.sparsified(row.run, "MPJPE")
        yield _line([row.title, *(f"{curve[k]:.2f}" for k in shown)])


def _weak(runs: Runs, options: argparse.Namespace) -> Iterator[str]:
    mean = mean_hand(options)["joints3d"]["pa_mpjpe_mm"]
    yield from ("", "## Weak training against the mean hand", "")
    yield f"The mean hand has a PA-MPJPE of {mean:.1f} mm."
    yield ""
    yield from _lines(["row", "share of the mean hand's error", "Spearman"])
    for row in UNCERTAIN:
        if row.run in runs:
            found = runs.interval({row.run: 1.0}, "PA-MPJPE")
            orders = [one["uncertainty"]["joints3d"]["spearman"] for one in runs.figures(row.run)]
            order = "none" if None in orders else f"{np.mean(orders):.2f}"
            yield _line([row.title, f"{found.mean / mean:.0%}", order])


def _between(found: Interval, shown: str) -> str:
    return f"{format(found.low, shown)} to {format(found.high, shown)}"


def _format(measure: str, extra: bool = False) -> str:
    for part, shown in _FORMATS.items():
        if part in measure:
            return shown
    return ".2f" if extra else ".1f"


def _lines(heads: Sequence[str]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
