"""Print the paper's six tables, beside the paper's numbers: `make paper`, or `python benchmarks/ablations.py OUT`.

Hands are drawn once and one backbone runs over them once. Each row then trains its heads on the cached features until
its validation error stops improving, then a little longer at a falling learning rate. Rows about backbone or texture
train end to end on the same crops. A stopped command resumes: it repeats no finished row, and at most a few steps of an
unfinished one. `--full-size` trains the paper's own networks, ResNet-50 and EfficientNet-B0 from ImageNet's weights,
end to end, on a GPU. `--short` proves in minutes that every part runs; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import print_figures
from paper_tables.figure import sparsification
from paper_tables.page import finished_runs, page
from paper_tables.rows import ROWS, SHORT
from paper_tables.training import draw, folder_of, is_finished, run_all

from annotator.errors import UserError

#: Options of `--short`.
_SHORT = {
    "hands": 600, "validation": 64, "photos": 100, "seeds": 1, "steps": 40, "end_to_end_steps": 4, "every": 20,
    "rows": list(SHORT),
}  # fmt: skip

#: Defaults of `--full-size`: the paper's crops and batch, and the learning rate of the authors' code.
_FULL_SIZE = {
    "crop_px": 224,
    "batch_size": 32,
    "learning_rate": 1e-4,
    "steps": 20_000,
    "every": 500,
    "jobs": 1,
}

#: Options of the reduced size alone.
_OF_REDUCED = (
    "tokens", "width", "blocks", "read_outs", "backbone_from", "end_to_end_steps", "end_to_end_seeds",
)  # fmt: skip

#: Options that change the numbers, as the page shows them.
_SHOWN = (
    "hands", "validation", "photos", "seeds", "end_to_end_seeds", "steps", "end_to_end_steps", "every", "patience",
    "short", "full_size", "crop_px", "tokens", "width", "blocks", "batch_size", "learning_rate", "backbone_from",
    "read_outs", "set",
)  # fmt: skip


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "out", type=Path, nargs="?", help="folder of hands and runs; default: a temporary one"
    )
    parser.add_argument("--rows", nargs="*", default=[], metavar="RUN", help="only these; default: all")
    parser.add_argument("--short", action="store_true", help="a few steps of a few rows")
    parser.add_argument(
        "--full-size", action="store_true", help="the paper's own networks, end to end: needs a GPU"
    )
    parser.add_argument(
        "--hands", type=_at_least_one, default=20_000, help="hands to train on, 100 KB each at 160 px"
    )
    parser.add_argument(
        "--validation", type=_at_least_one, default=300, help="hands that decide when a row ends"
    )
    parser.add_argument("--photos", type=_at_least_one, default=1000, help="held-out hands for the tables")
    parser.add_argument("--seeds", type=_at_least_one, default=3)
    parser.add_argument("--end-to-end-seeds", type=_at_least_one, default=1)
    parser.add_argument("--steps", type=_at_least_one, default=4800, help="maximum steps of a row")
    parser.add_argument("--end-to-end-steps", type=_at_least_one, default=600, help="the same, end to end")
    parser.add_argument(
        "--every",
        type=_at_least_one,
        default=200,
        help="steps between measurements of the validation error; end to end, a twelfth of the steps",
    )
    parser.add_argument(
        "--patience", type=_at_least_one, default=3, help="measurements without a gain before a row ends"
    )
    parser.add_argument("--crop-px", type=_at_least_one, default=160)
    parser.add_argument("--tokens", type=_at_least_one, default=98)
    parser.add_argument("--width", type=_at_least_one, default=128)
    parser.add_argument("--blocks", type=_at_least_one, default=2)
    parser.add_argument("--batch-size", type=_at_least_one, default=8)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument(
        "--read-outs", action="store_true", help="heads also get the backbone's landmarks, unlike the paper's"
    )
    parser.add_argument(
        "--backbone-from",
        default="default",
        help="checkpoint of the backbone; with --read-outs, of these too",
    )
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of every row, as `amvur train --set`",
    )
    parser.add_argument(
        "--jobs",
        type=_at_least_one,
        default=os.cpu_count() or 1,
        help="rows, or processes that draw, at the same time",
    )
    parser.add_argument("--threads", type=_at_least_one, default=1, help="torch threads per row")
    parser.add_argument("--device", help="cpu or cuda; default: a GPU if available")
    parser.add_argument("--page", type=Path, help="Markdown file; default: OUT/ablations.md")
    return parser


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options, with `chosen`, the names that differ from the defaults, and `changed`, their text."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.full_size:
        parser.set_defaults(**_FULL_SIZE)
    if given.short:
        parser.set_defaults(**_SHORT)
    options, plain = parser.parse_args(arguments), parser.parse_args([])
    changed = {
        name: getattr(options, name) for name in _SHOWN if getattr(options, name) != getattr(plain, name)
    }
    options.chosen = list(changed)
    options.changed = "".join(
        f" --{name.replace('_', '-')}{_shown(value)}" for name, value in changed.items()
    )
    return options


def _shown(value: Any) -> str:
    if value is True:
        return ""
    return f" {shlex.join(value) if isinstance(value, list) else value}"


def _check_full_size(options: argparse.Namespace) -> None:
    """Raise UserError for options that have no effect at full size, or without a GPU."""
    for name in _OF_REDUCED:
        if name in options.chosen:
            raise UserError(
                f"--{name.replace('_', '-')} has no effect with --full-size: leave it out, or change rows with --set"
            )
    if options.device is None and not torch.cuda.is_available():
        raise UserError(
            "--full-size needs a GPU, and there is none: leave it out, or give --device cpu to try a few steps"
        )


def make(options: argparse.Namespace) -> None:
    """Draw the hands, train and evaluate the rows, and write the page."""
    if options.full_size:
        _check_full_size(options)
    by_run = {row.run: row for row in ROWS}
    unknown = [name for name in options.rows if name not in by_run]
    if unknown:
        raise UserError(f"unknown row '{unknown[0]}': give one of {', '.join(by_run)}")
    rows = [by_run[name] for name in options.rows or by_run]
    began = time.monotonic()
    drawn = draw(rows, options)
    drawn_s = time.monotonic() - began
    run_all(rows, options)
    target = options.page or options.out / "ablations.md"
    runs = finished_runs(options)
    picture = target.parent / "images" / "sparsification.png"
    if curves := sparsification(runs):
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_bytes(curves)
    shown = picture.relative_to(target.parent).as_posix()
    target.write_text(page(options, runs, shown), encoding="utf-8")
    print(target.read_text() if not options.short else f"tables in {target}")
    finished = {folder_of(row, options, 0) for row in rows if is_finished(row, options, 0)}
    print_figures(
        {
            "hands drawn": drawn,
            **({"of these per s": drawn / max(drawn_s, 1e-9)} if drawn else {}),
            "rows trained and evaluated": len(finished),
            "all, s": time.monotonic() - began,
        }
    )


def main() -> None:
    options = options_of()
    try:
        if options.out is not None:
            options.out = options.out.resolve()
            options.out.mkdir(parents=True, exist_ok=True)
            make(options)
            return
        with tempfile.TemporaryDirectory(prefix="amvur-") as folder:
            options.out = Path(folder)
            make(options)
    except UserError as error:
        raise SystemExit(f"ablations: {error}") from None


if __name__ == "__main__":
    main()
