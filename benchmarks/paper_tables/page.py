"""Write the tables of all finished rows as Markdown, beside the paper's numbers, with a verdict per conclusion."""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from common import machine

from annotator.runtime.device import device_of
from paper_tables.claims import CLAIMS, Claim
from paper_tables.figure import ERRORS
from paper_tables.rows import ROOT_ALIGNED, ROWS, TABLES, UNCERTAIN, Row, Table
from paper_tables.statistics import FAILS, HOLDS, KEPT, OPEN, Interval, Runs, verdict
from paper_tables.training import configuration, ending, folder_of, is_finished, mean_hand, seeds_of

_SHORT_NOTE = "**A short run: it shows that every part works. Its numbers mean nothing.**"

_INTRODUCTION = """\
Every row of the paper's tables, from its own file in `configs/paper`, beside the paper's numbers. The two sides use
different {different}: compare rows, not sides.

    python benchmarks/ablations.py OUT{changed}

Ours: {hands:,} synthetic hands, off the camera's axis and behind objects too, in upright crops of {crop_px} px.
{networks} Batch {batch_size}, Adam at {learning_rate:g}; seeds per row: {seeds}. A row trains for up to {steps:,}
steps, or until its error on {validation} other hands gained less than 0.5 % in {patience} measurements, {every} steps
apart; weak rows measure 2D joints alone. {cool_down}{end_to_end}A "*" marks rows whose error still fell {until}. The
best network of each run predicts {photos:,} held-out hands.

Intervals hold 95 % of bootstrap draws of photos and seeds. Meshes are the open hand's. Errors are mm; PA: after
Procrustes; else root-relative.

Machine: {machine}.
"""

_FULL_SIZE = "Backbone and heads train together."

_REDUCED = """\
The backbone of `{backbone_from}` ran over them once. Heads alone train on its features: AMVUR has {tokens} tokens,
width {width}, {blocks} blocks."""

_COOL_DOWN = "Then the learning rate falls to a hundredth in {steps} steps. "

_END_TO_END = """\
Rows "end to end" train the backbone too, for up to {end_to_end_steps:,} steps, measured every {end_to_end_every};
seeds: {end_to_end_seeds}. """

#: A check of the reduced size; at full size all rows are end to end.
_CHECK = "5, end to end"

_UNCERTAINTY = """\
Not in the paper. Std as the networks give it, not calibrated. Prior-net's is a constant of 10 mm, so it orders nothing,
and its AUSE is that of chance. Errors are means over the joints of a photo, relative to the mean of all photos. An AUSE
of 0 is the order of the errors themselves.
"""

#: Format of a measure; errors in mm and PSNR have one digit.
_FORMATS = {"AUC": ".3f", "F@": ".3f", "SSIM": ".3f"}


def finished_runs(options: argparse.Namespace) -> Runs:
    """Return the results of all finished runs."""
    return Runs(
        {
            row.run: [
                folder_of(row, options, seed) / "results"
                for seed in seeds_of(row, options)
                if is_finished(row, options, seed)
            ]
            for row in ROWS
        }
    )


def page(options: argparse.Namespace, runs: Runs, picture: str) -> str:
    """Return the whole page; rows that are not finished are marked.

    `picture`: place of the sparsification curves, relative to the page.
    """
    lines = ["# Ablations", *(["", _SHORT_NOTE] if options.short else [])]
    lines += _wrapped(_introduction(options))
    tables = [table for table in TABLES if not (options.full_size and table.name == _CHECK)]
    lines += _summary([claim for claim in CLAIMS if claim.table in {table.name for table in tables}], runs)
    for table in tables:
        lines += _table(table, runs, options)
    lines += _uncertainty(runs, picture)
    lines += _weak(runs, options)
    return "\n".join(lines) + "\n"


def _introduction(options: argparse.Namespace) -> str:
    """Return the text about the rows, with the settings that they trained with."""
    config = configuration(next(row for row in ROWS if not row.end_to_end), options, 0)
    end_to_end = configuration(next(row for row in ROWS if row.end_to_end), options, 0)
    known = {
        **vars(options),
        "machine": machine(device_of(options.device).type),
        "batch_size": config.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "patience": config.validation.patience,
        "every": config.validation.every,
        "steps": config.steps,
        "end_to_end_steps": end_to_end.steps,
        "end_to_end_every": end_to_end.validation.every,
        "until": "when the last cool-down began" if config.validation.cool_down else "at the last step",
        "cool_down": _COOL_DOWN.format(steps=config.validation.cool_down)
        if config.validation.cool_down
        else "",
        "different": "photos" if options.full_size else "photos and networks",
    }
    known["networks"] = (_FULL_SIZE if options.full_size else _REDUCED).format(**known)
    known["end_to_end"] = "" if options.full_size else _END_TO_END.format(**known)
    return _INTRODUCTION.format(**known)


def _wrapped(text: str) -> Iterator[str]:
    """Yield the lines of paragraphs, each after an empty one."""
    for paragraph in text.strip().split("\n\n"):
        yield from ["", *([paragraph] if paragraph.startswith(" ") else textwrap.wrap(paragraph, 100))]


def _summary(claims: Sequence[Claim], runs: Runs) -> Iterator[str]:
    found = Counter(_judged(claim, runs)[1] for claim in claims if _has_run(claim, runs))
    yield from _wrapped(
        f"Of the paper's {len(claims)} conclusions in the tables below, {found[HOLDS]} hold, {found[FAILS]} do not "
        f"hold, {found[OPEN]} are too close to tell, and {len(claims) - found.total()} have not run."
    )


def _has_run(claim: Claim, runs: Runs) -> bool:
    return all(run in runs for run in claim.weights)


def _judged(claim: Claim, runs: Runs) -> tuple[Interval, str]:
    found = runs.interval(claim.weights, claim.measure)
    return found, verdict(found)


def _table(table: Table, runs: Runs, options: argparse.Namespace) -> Iterator[str]:
    rows = [row for row in ROWS if row.table == table.name]
    yield from ("", f"## Table {table.name}", "", table.about, "")
    if sum(row.run in runs for row in rows) < 2:
        yield "Too few of its rows have run to compare any."
        return
    if any(row.paper for row in rows):
        yield from ("Paper / ours:", "")
    yield from _lines(["row", "configuration", *table.measures])
    for row in rows:
        cells = [_cell(row, k, measure, runs) for k, measure in enumerate(table.measures)]
        yield _line([row.title + _mark(row, runs, options), f"`paper/{row.config}`", *cells])
    if table.name not in ("2", "6"):
        yield from ("", "Ours, root-relative:", "")
        yield from _lines(["row", *ROOT_ALIGNED])
        for row in rows:
            if row.run in runs:
                yield _line([row.title, *(_ours(row.run, measure, runs) for measure in ROOT_ALIGNED)])
    claims = [claim for claim in CLAIMS if claim.table == table.name and _has_run(claim, runs)]
    if claims:
        yield from ("", "Conclusions; the gain is positive where one holds:", "")
        yield from _lines(["conclusion", "measure", "gain", "95 % interval", "verdict"])
    for claim in claims:
        found, judged = _judged(claim, runs)
        shown = _format(claim.measure, extra=True)
        yield _line([claim.text, claim.measure, format(found.mean, shown), _between(found, shown), judged])


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


def _uncertainty(runs: Runs, picture: str) -> Iterator[str]:
    rows = [row for row in UNCERTAIN if row.run in runs]
    if not rows:
        return
    yield from ("", "## Uncertainty", *_wrapped(_UNCERTAINTY))
    yield from ("", f"![Sparsification curves of the rows below]({picture})", "")
    yield "Area under the sparsification error (AUSE), in brackets its interval, then that of chance:"
    yield ""
    yield from _lines(["row", *(f"AUSE, {name}" for name in ERRORS.values()), "Spearman, root-relative"])
    for row in rows:
        figures = runs.figures(row.run)
        cells = []
        for error, kind in (("MPJPE", "joints3d"), ("PA-MPJPE", "joints3d_pa")):
            found = runs.ause(row.run, error)
            chance = np.mean([one["uncertainty"][kind]["ause_of_chance"] for one in figures])
            cells.append(f"{found.mean:.3f} ({_between(found, '.3f')}), chance {chance:.3f}")
        yield _line([row.title, *cells, _spearman(row, runs)])
    yield from ("", "Share of coordinates within the 68 % interval, root-relative:", "")
    yield from _lines(["row", *(f"{kind}, {axis}" for kind in ("joints", "vertices") for axis in "xyz")])
    for row in rows:
        cells = [
            f"{np.mean([one['uncertainty'][kind]['axes'][axis]['coverage']['68%'] for one in figures]):.2f}"
            for figures in [runs.figures(row.run)]
            for kind in ("joints3d", "vertices")
            for axis in "xyz"
        ]
        yield _line([row.title, *cells])
    yield from ("", "Mean joint error of the photos with the lowest std, relative to all, root-relative:", "")
    shown = [k for k, share in enumerate(KEPT) if round(share * 20) % 2 == 0]
    yield from _lines(["row", *(_share(KEPT[k]) for k in shown)])
    for row in rows:
        curve = runs.sparsified(row.run, "MPJPE")
        yield _line([row.title, *(f"{curve[k]:.2f}" for k in shown)])


def _spearman(row: Row, runs: Runs) -> str:
    orders = [one["uncertainty"]["joints3d"]["spearman"] for one in runs.figures(row.run)]
    return "constant std" if None in orders else f"{np.mean(orders):.2f}"


def _weak(runs: Runs, options: argparse.Namespace) -> Iterator[str]:
    mean = mean_hand(options)["joints3d"]["pa_mpjpe_mm"]
    yield from ("", "## Against the mean hand", "")
    yield f"The mean hand has a PA-MPJPE of {mean:.1f} mm. Shares of it:"
    yield ""
    yield from _lines(["row", "share", "95 % interval"])
    for row in UNCERTAIN:
        if row.run in runs:
            found = runs.interval({row.run: 1.0}, "PA-MPJPE")
            between = f"{_share(found.low / mean)} to {_share(found.high / mean)}"
            yield _line([row.title, _share(found.mean / mean), between])


def _between(found: Interval, shown: str) -> str:
    return f"{format(found.low, shown)} to {format(found.high, shown)}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _format(measure: str, extra: bool = False) -> str:
    for part, shown in _FORMATS.items():
        if part in measure:
            return shown
    return ".2f" if extra else ".1f"


def _lines(heads: Sequence[str]) -> list[str]:
    return [_line(heads), _line(["---"] * len(heads))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
