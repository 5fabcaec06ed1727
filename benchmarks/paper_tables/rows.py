"""The rows of the paper's tables, with the paper's numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of a table: its training, and the paper's result."""

    table: str
    title: str
    config: str  # in configs/paper
    paper: tuple[float, ...] = ()  # in the order of the table's measures
    settings: tuple[str, ...] = ()
    end_to_end: bool = False  # else heads alone, on cached features

    @property
    def run(self) -> str:
        """Return the name of its folder; rows of several tables may share one."""
        parts = (self.config, *self.settings, *(["end-to-end"] if self.end_to_end else []))
        return re.sub(r"[^\w.-]+", "-", "-".join(parts))


@dataclass(frozen=True)
class Table:
    """A table: heading, note, and the paper's measures, named as in `statistics.MEASURES`."""

    name: str
    about: str
    measures: tuple[str, ...]


ERRORS = ("PA-MPJPE", "PA-MPVPE", "PA-F@5", "PA-F@15")
WITH_AUC = ("PA-MPJPE", "PA-AUC, joints", "PA-MPVPE", "PA-AUC, vertices", "PA-F@5", "PA-F@15")

#: Root-relative; not in the paper's main text, but in its supplement.
ROOT_ALIGNED = ("MPJPE", "AUC, joints", "MPVPE", "AUC, vertices", "F@5", "F@15")

TABLES = (
    Table("1", "Supervised and weakly supervised. The paper's numbers are HO3Dv2's.", WITH_AUC),
    Table("2", "Our runs are those of Table 1. The paper's numbers are HO3Dv3's.", WITH_AUC),
    Table(
        "3", "Supervised, terms of the loss one by one; order of the rows inferred. Paper: HO3Dv2.", ERRORS
    ),
    Table("4", "Weakly supervised, the same; order of the rows inferred. Paper: HO3Dv2.", ERRORS),
    Table("5", "Parts of AMVUR, supervised. Paper: HO3Dv2.", ERRORS),
    Table("5, end to end", "A check of Table 5 and Table 1: backbone and heads trained together.", ERRORS),
    Table(
        "6",
        "Texture, in the hand region, end to end. We have the paper without its numbers.",
        ("SSIM", "PSNR"),
    ),
)

#: Rows of Tables 1 and 2: title, configuration, HO3Dv2, HO3Dv3.
_VARIANTS = (
    ("supervised: prior-net", "supervised-prior-net",
     (10.9, 0.783, 11.5, 0.77, 0.460, 0.936), (11.3, 0.780, 11.0, 0.781, 0.471, 0.931)),
    ("supervised: AMVUR", "supervised-amvur",
     (9.3, 0.814, 9.4, 0.813, 0.533, 0.958), (9.8, 0.803, 9.7, 0.811, 0.528, 0.953)),
    ("supervised: final", "supervised",
     (8.3, 0.835, 8.2, 0.836, 0.608, 0.965), (8.7, 0.826, 8.3, 0.834, 0.593, 0.964)),
    ("weak: prior-net", "weak-prior-net",
     (12.4, 0.752, 12.0, 0.760, 0.417, 0.925), (12.1, 0.759, 11.9, 0.763, 0.422, 0.921)),
    ("weak: AMVUR", "weak-amvur",
     (10.8, 0.778, 15.1, 0.698, 0.375, 0.907), (10.9, 0.778, 13.6, 0.724, 0.403, 0.904)),
    ("weak: final", "weak",
     (10.3, 0.787, 10.8, 0.784, 0.48, 0.949), (10.5, 0.789, 10.7, 0.785, 0.475, 0.944)),
)  # fmt: skip

ROWS = (
    *(Row("1", title, config, v2) for title, config, v2, _ in _VARIANTS),
    *(Row("2", title, config, v3) for title, config, _, v3 in _VARIANTS),
    Row("3", "L_V", "table3-vertices", (9.7, 8.4, 0.596, 0.960)),
    Row("3", "+ L_J3", "table3-joints3d", (8.5, 8.3, 0.605, 0.964)),
    Row("3", "+ L_J2, L_C", "table3-joints2d", (8.6, 8.3, 0.606, 0.963)),
    Row("3", "+ L_tex", "supervised", (8.3, 8.2, 0.608, 0.965)),
    Row("4", "L_J2", "table4-joints2d", (11.9, 11.8, 0.434, 0.931)),
    Row("4", "+ L_tex, KL(C)", "table4-texture", (11.6, 11.5, 0.442, 0.935)),
    Row("4", "+ KL(V)", "table4-kl-vertices", (11.1, 11.0, 0.46, 0.947)),
    Row("4", "+ KL(J3)", "weak", (10.3, 10.8, 0.48, 0.949)),
    Row("5", "A: fully connected", "table5-a", (11.4, 11.4, 0.462, 0.932)),
    Row("5", "B: self-attention", "table5-b", (10.5, 10.9, 0.496, 0.948)),
    Row("5", "C: + cross-attention", "table5-c", (8.9, 8.7, 0.581, 0.958)),
    Row("5", "D: + positional encoding", "supervised", (8.3, 8.2, 0.608, 0.965)),
    Row("5, end to end", "A: fully connected", "table5-a", (11.4, 11.4, 0.462, 0.932), end_to_end=True),
    Row("5, end to end", "AMVUR alone", "supervised-amvur", (9.3, 9.4, 0.533, 0.958), end_to_end=True),
    Row("5, end to end", "D: final", "supervised", (8.3, 8.2, 0.608, 0.965), end_to_end=True),
    Row("6", "HAND: global feature", "table6-hand", end_to_end=True),
    Row("6", "occlusion-aware", "supervised", end_to_end=True),
)

#: Rows with an uncertainty, weak and supervised: prior-net's constant, AMVUR's alone, and both.
UNCERTAIN = tuple(row for row in ROWS if row.table == "1")

#: Rows of the short form: Table 1 whole, and Table 6 for training end to end.
SHORT = tuple(dict.fromkeys(row.run for row in ROWS if row.table in ("1", "6")))
