"""Format the figures of an evaluation as a table; a metric without a target in any photo is "n/a"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Kinds of uncertainty, with their titles in the table.
UNCERTAINTIES = {
    "joints3d": "std, 3D joints",
    "joints3d_pa": "std, 3D joints, Procrustes",
    "guess3d": "std, 3D joints, from a detector's",
    "vertices": "std, vertices",
    "vertices_pa": "std, vertices, Procrustes",
    "joints2d": "std, 2D joints",
}


def table_text(summary: Mapping[str, Any]) -> str:
    """Return the figures of `summarise` as a table of text."""
    rows = table_rows(summary)
    widths = [max(len(row[k]) for row in rows) for k in range(2)]
    return "".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}\n" for a, b, c in rows)


def table_rows(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Format the figures of `summarise` as table rows (topic, measure, value)."""
    joints3d, vertices, joints2d = summary["joints3d"], summary["vertices"], summary["joints2d"]
    texture = summary["texture"]
    rows = [
        ("photos", "", str(summary["photos"])),
        ("3D joints", "photos", str(joints3d["count"])),
        ("", "PA-MPJPE", _shown(joints3d["pa_mpjpe_mm"], "mm")),
        ("", "PA-MPJPE, median", _shown(joints3d["pa_mpjpe_median_mm"], "mm")),
        ("", "MPJPE, root-relative", _shown(joints3d["mpjpe_mm"], "mm")),
        ("", "MPJPE, wrist and scale (HO3D)", _shown(joints3d["scale_aligned_mpjpe_mm"], "mm")),
        ("", "AUC, Procrustes", _shown(joints3d["pa_auc"])),
        ("", "AUC, root-relative", _shown(joints3d["auc"])),
        ("", "AUC, wrist and scale (HO3D)", _shown(joints3d["scale_aligned_auc"])),
        ("detector's 3D joints", "photos", str(summary["guess3d"]["count"])),
        ("", "distance after Procrustes", _shown(summary["guess3d"]["pa_mpjpe_mm"], "mm")),
        ("predicted hands", "wrist to middle fingertip", _shown(summary["size"]["hand_length_mm"], "mm")),
        ("vertices", "photos", str(vertices["count"])),
        ("", "PA-MPVPE", _shown(vertices["pa_mpvpe_mm"], "mm")),
        ("", "MPVPE, root-relative", _shown(vertices["mpvpe_mm"], "mm")),
        ("", "AUC, Procrustes", _shown(vertices["pa_auc"])),
        ("", "F@5 mm, Procrustes", _shown(vertices["pa_f5"])),
        ("", "F@15 mm, Procrustes", _shown(vertices["pa_f15"])),
        ("2D joints", "photos", str(joints2d["count"])),
        ("", "error, of the crop's side", _shown(joints2d["error_share_of_crop"], "%")),
        ("texture", "photos", str(texture["count"])),
        ("", "SSIM", _shown(texture["ssim"])),
        ("", "PSNR", _shown(texture["psnr_db"], "dB")),
        ("side", "right hands classified as right", _shown(summary["side"]["right_taken_for_right"], "%")),
        ("", "mirror images classified as left", _shown(summary["side"]["mirrored_taken_for_left"], "%")),
        ("presence", "hands classified as hands", _shown(summary["presence"]["hands_taken_for_hands"], "%")),
        (
            "",
            "squares without a hand, as no hand",
            _shown(summary["presence"]["nothing_taken_for_nothing"], "%"),
        ),
        ("visible joints", "joints", str(summary["visibility"]["count"])),
        ("", "of all", _shown(summary["visibility"]["visible_share"], "%")),
        ("", "classified correctly", _shown(summary["visibility"]["accuracy"], "%")),
        ("", "AUC of the score", _shown(summary["visibility"]["auc"])),
    ]
    for share, error in (summary["expected_error"] or {}).items():
        both = f"{_shown(error['expected_mm'], 'mm')}, actual {_shown(error['found_mm'], 'mm')}"
        rows.append(
            ("" if share != "25%" else "expected error", f"{share} of lowest std, without the wrist", both)
        )
    for name, title in UNCERTAINTIES.items():
        found = summary["uncertainty"][name]
        rows += [(title, "", "n/a")] if found is None else _uncertainty_rows(title, found)
    return rows


def _uncertainty_rows(title: str, found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    unit = found["unit"]
    rows = [
        (title, "Spearman with the error", _shown(found["spearman"])),
        ("", "AUSE (of random order)", f"{_shown(found['ause'])} ({_shown(found['ause_of_chance'])})"),
        ("", "error of all", _shown(found["mean_error"], unit)),
    ]
    for share, error in found["error_of_best"].items():
        part = f"{error / found['mean_error']:.0%} of all's" if found["mean_error"] else "n/a"
        rows.append(("", f"error of the {share} of lowest std", f"{_shown(error, unit)}, {part}"))
    for level, covered in (found.get("coverage") or {}).items():
        by_axis = ", ".join(
            f"{axis} {100 * one['coverage'][level]:.1f}" for axis, one in found["axes"].items()
        )
        rows.append(("", f"truth within the {level} interval", f"{_shown(covered, '%')} ({by_axis})"))
    if axes := found.get("axes"):
        order = ", ".join(f"{axis} {_shown(one['spearman'])}" for axis, one in axes.items())
        rows.append(("", "Spearman of hands, along each axis", order))
    if hands := found.get("coverage_of_hands"):
        shares = ", ".join(f"{100 * hands[name]:.0f}" for name in ("5%", "50%", "95%"))
        rows.append(("", "per hand, within the 68% interval", f"{shares} % (5, 50, 95 % of hands)"))
    return rows


def _shown(value: float | None, unit: str = "") -> str:
    if value is None:
        return "n/a"
    if unit == "%":
        return f"{value:.1%}".replace("%", " %")
    return f"{value:.2f} {unit}" if unit else f"{value:.3f}"
