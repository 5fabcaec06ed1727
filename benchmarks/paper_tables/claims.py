"""The paper's conclusions, each as a sum of measures that is positive where the conclusion holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Claim:
    """A conclusion: `sum(weight * measure(run))` over its runs is above zero."""

    table: str
    text: str
    measure: str  # of `statistics.MEASURES`
    weights: Mapping[str, float] = field(default_factory=dict)


def _better(table: str, text: str, measure: str, better: str, worse: str) -> Claim:
    """Return the claim that one run has the smaller error."""
    return Claim(table, text, measure, MappingProxyType({worse: 1.0, better: -1.0}))


def _by_both(table: str, text: str, better: str, worse: str) -> list[Claim]:
    return [_better(table, text, measure, better, worse) for measure in ("PA-MPJPE", "PA-MPVPE")]


CLAIMS = (
    *_by_both("1", "supervised: AMVUR beats prior-net", "supervised-amvur", "supervised-prior-net"),
    *_by_both("1", "supervised: final beats AMVUR", "supervised", "supervised-amvur"),
    *_by_both("1", "supervised: final beats prior-net", "supervised", "supervised-prior-net"),
    *_by_both("1", "weak: final beats prior-net", "weak", "weak-prior-net"),
    *_by_both("1", "weak: final beats AMVUR", "weak", "weak-amvur"),
    _better("1", "weak: AMVUR has better joints than prior-net", "PA-MPJPE", "weak-amvur", "weak-prior-net"),
    _better("1", "weak: AMVUR has a worse mesh than prior-net", "PA-MPVPE", "weak-prior-net", "weak-amvur"),
    *_by_both("1", "final: supervised beats weak", "supervised", "weak"),
    _better("3", "L_J3 improves joints", "PA-MPJPE", "table3-joints3d", "table3-vertices"),
    Claim(
        "3",
        "L_J2, L_C and L_tex together gain less than L_J3",
        "PA-MPJPE",
        # (L_V - L_J3) - (L_J3 - all)
        MappingProxyType({"table3-vertices": 1.0, "table3-joints3d": -2.0, "supervised": 1.0}),
    ),
    _better("3", "all terms beat L_V alone", "PA-MPVPE", "supervised", "table3-vertices"),
    *_by_both("4", "L_tex and KL(C) improve on L_J2", "table4-texture", "table4-joints2d"),
    _better("4", "KL(V) improves the mesh", "PA-MPVPE", "table4-kl-vertices", "table4-texture"),
    _better("4", "KL(J3) improves joints", "PA-MPJPE", "weak", "table4-kl-vertices"),
    *_by_both("4", "all terms beat L_J2 alone", "weak", "table4-joints2d"),
    *_by_both("5", "self-attention (B) beats fully connected layers (A)", "table5-b", "table5-a"),
    *_by_both("5", "cross-attention (C) improves on B", "table5-c", "table5-b"),
    *_by_both("5", "positional encoding (D) improves on C", "supervised", "table5-c"),
    *_by_both("5", "AMVUR (D) beats fully connected layers (A)", "supervised", "table5-a"),
    *_by_both(
        "5, end to end", "final beats AMVUR alone", "supervised-end-to-end", "supervised-amvur-end-to-end"
    ),
    *_by_both("5, end to end", "final beats A", "supervised-end-to-end", "table5-a-end-to-end"),
    *_by_both("5, end to end", "AMVUR alone beats A", "supervised-amvur-end-to-end", "table5-a-end-to-end"),
    *(
        Claim(
            "6",
            "occlusion-aware colours beat colours from the global feature",
            measure,
            MappingProxyType({"supervised-end-to-end": 1.0, "table6-hand-end-to-end": -1.0}),
        )
        for measure in ("SSIM", "PSNR")
    ),
)
