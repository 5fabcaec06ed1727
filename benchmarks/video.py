"""Errors and jitter of `amvur track` on synthetic sequences with true motion, beside filters tuned on the same ones.

python benchmarks/video.py [SEQUENCES] [FRAMES] [SEED]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from common import machine, print_figures
from numpy.typing import NDArray
from scipy.signal import savgol_filter

import annotator
from annotator.hand import HandModel, load_hand
from annotator.hand.layer import HandLayer
from annotator.labels.schema import label_schema, labels_to_table
from annotator.labels.side import right_scores
from annotator.photos.crops import Crops, crop_photo
from annotator.predictor import Predictor
from annotator.quality.metrics import mpjpe, pa_mpjpe
from annotator.quality.uncertainty import coverage
from annotator.sources.sequences import ADDED
from annotator.track.association import Hands, track_ids
from annotator.track.sequence import track_sequence
from annotator.track.vertex_columns import VERTEX_COLUMNS, VertexRows
from trainer.synth.sequences import Sequences
from trainer.synth.truth import true_columns
from trainer.synth.write_sequences import SEQUENCE_COLUMNS

Floats = NDArray[np.floating]

#: Joints (T, 21, 3) and times (T,) to joints.
Filter = Callable[[Floats, Floats], Floats]

SIZE_PX, MAX_GAP = 320, 10

#: Standard deviation of each edge of a detector's box, shares of its longer side.
BOX_NOISE = 0.03


@dataclass(frozen=True, eq=False)
class Sequence:
    """One synthetic sequence: truth, labels, and labels that were tracked; joints (T, 21, 3) in camera axes."""

    time_s: Floats
    true_mm: Floats
    is_right: bool
    labels: dict[str, Any]
    before: pa.Table
    after: pa.Table


def main(count: int, frames: int, seed: int) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    print(machine())
    hand = load_hand("open")
    layer = HandLayer(hand)
    predictor = annotator.load("default", device="cpu")
    source = Sequences(hand, SIZE_PX, seed)
    found, tracking_s = [], 0.0
    for number in range(count):
        one, seconds = _sequence(source, predictor, hand, layer, number, frames, seed)
        found.append(one)
        tracking_s += seconds
        print(f"sequence {number} of {count}", file=sys.stderr, flush=True)
    figures = _errors(found)
    figures |= (
        _sides(found) | _coverage(found) | {"tracked frames/s of one core": count * frames / tracking_s}
    )
    figures |= _identities(found)
    print_figures(figures)


def _sequence(
    source: Sequences,
    predictor: Predictor,
    hand: HandModel,
    layer: HandLayer,
    number: int,
    frames: int,
    seed: int,
) -> tuple[Sequence, float]:
    """Draw, label and track one sequence; return it and the seconds that tracking took."""
    drawn = source.sequence(number, frames)
    right = torch.full((frames,), drawn.is_right)
    truth = true_columns(drawn.photos, source.hands, right, SIZE_PX)
    images = drawn.photos.image if drawn.is_right else drawn.photos.image.flip(-1)
    boxes = truth["box_xyxy"]
    side_px = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    boxes = boxes + np.random.default_rng([seed, number]).normal(size=boxes.shape) * BOX_NOISE * side_px
    checkpoint = predictor.checkpoint
    crops = Crops.stack(
        [
            crop_photo(
                np.ascontiguousarray(image),
                *(SIZE_PX, SIZE_PX, checkpoint.cut_px, box.tolist()),
                margin=checkpoint.cut_margin,
            )
            for image, box in zip(images.permute(0, 2, 3, 1).numpy(), boxes, strict=True)
        ]
    )
    labels = predictor.predict_crops(crops)
    rows = [
        {"image_uri": f"{k}.jpg", "image_id": f"{k}.jpg", "duplicate": False, "hand_index": 0, "status": "ok"}
        | {"width": SIZE_PX, "height": SIZE_PX, "sequence": str(number), "frame": k}
        | {"time_s": float(drawn.time_s[k]), "checkpoint": checkpoint.id}
        for k in range(frames)
    ]
    schema = label_schema(hand.vertex_count, None, SEQUENCE_COLUMNS)
    before = labels_to_table(rows, labels, range(frames), schema)
    began = time.process_time()
    made = track_sequence(
        before.drop(list(VERTEX_COLUMNS)), VertexRows([before], hand.vertex_count), layer, MAX_GAP
    )
    tables = made.tables(label_schema(hand.vertex_count, None, SEQUENCE_COLUMNS | ADDED))
    after = pa.concat_tables(tables)
    seconds = time.process_time() - began
    true_mm = np.asarray(truth["joints3d_mm"], np.float64)
    return Sequence(drawn.time_s, true_mm, drawn.is_right, labels, before, after), seconds


def _joints(table: pa.Table, name: str = "joints3d_mm") -> Floats:
    return np.array(table[name].to_pylist(), np.float64)


def _errors(found: list[Sequence]) -> dict[str, float]:
    """Print errors before and after, and those of the filters at the setting with the lowest error."""
    one_side = [_without_other_side(one) for one in found]
    raw = [_joints(one.before) for one in found]
    methods: dict[str, list[Floats]] = {
        "labels": raw,
        "labels, other side filled": one_side,
        "`amvur track`": [_joints(one.after) for one in found],
    }
    for name, filters in (("Savitzky-Golay", _savgol()), ("one euro", _one_euro())):
        settings = list(filters)
        for kind, joints in (("", raw), (", other side filled", one_side)):
            made = [[run(one, s.time_s) for one, s in zip(joints, found, strict=True)] for _, run in settings]
            best = int(np.argmin([_figures(one, found)[0] for one in made]))
            methods[f"{name}{kind} ({settings[best][0]})"] = made[best]
    print("| | root-relative MPJPE, mm | PA-MPJPE, mm | acceleration error, mm/frame² | jitter, mm/frame³ |")
    print("|---|---|---|---|---|")
    figures: dict[str, float] = {}
    names = ("MPJPE, mm", "PA-MPJPE, mm", "acceleration error", "jitter")
    for method, joints in methods.items():
        values = _figures(joints, found)
        print(f"| {method} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
        figures |= {f"{method}, {name}": value for name, value in zip(names, values, strict=True)}
    print(f"| true motion | 0 | 0 | 0 | {np.mean([_jitter(one.true_mm) for one in found]):.2f} |")
    return figures


def _figures(joints: list[Floats], found: list[Sequence]) -> list[float]:
    """Return mean errors over sequences: root-relative, PA, of acceleration, and jitter."""
    values = [
        [
            mpjpe(one, s.true_mm).mean(),
            pa_mpjpe(one, s.true_mm).mean(),
            np.linalg.norm(np.diff(one - s.true_mm, 2, axis=0), axis=-1).mean(),
            _jitter(one),
        ]
        for one, s in zip(joints, found, strict=True)
    ]
    return [float(value) for value in np.mean(values, 0)]


def _jitter(joints: Floats) -> float:
    """Return the mean length of the third difference over frames."""
    return float(np.linalg.norm(np.diff(joints, 3, axis=0), axis=-1).mean())


def _without_other_side(one: Sequence) -> Floats:
    """Return labels with frames that are not of the track's side filled linearly: the help that a filter may have."""
    joints, right = _joints(one.before), np.array(one.before["is_right"].to_pylist())
    keep = np.flatnonzero(right == one.after["is_right"][0].as_py())
    flat = joints.reshape(len(joints), -1)
    filled = [np.interp(one.time_s, one.time_s[keep], channel[keep]) for channel in flat.T]
    return np.stack(filled, 1).reshape(joints.shape)


def _savgol() -> Iterator[tuple[str, Filter]]:
    for window, order in product((5, 7, 9, 13, 17, 21, 27, 35), (1, 2, 3)):
        yield f"window {window}, order {order}", partial(_savitzky_golay, window=window, order=order)


def _savitzky_golay(joints: Floats, time_s: Floats, window: int, order: int) -> Floats:
    smoothed: Floats = savgol_filter(joints, window, order, axis=0, mode="interp")
    return smoothed


def _one_euro() -> Iterator[tuple[str, Filter]]:
    for cutoff, beta in product((0.2, 0.4, 0.8, 1.5, 3.0, 6.0), (0.0, 0.0005, 0.002, 0.01, 0.05)):
        yield f"cutoff {cutoff} Hz, beta {beta}", partial(_euro, cutoff_hz=cutoff, beta=beta)


def _euro(joints: Floats, time_s: Floats, cutoff_hz: float, beta: float) -> Floats:
    """Filter (Casiez et al., 2012): a low pass whose cutoff grows with speed; it sees no future frame."""

    def alpha(hz: Any, step: float) -> Any:
        return 1 / (1 + 1 / (2 * np.pi * hz * step))

    out = [joints[0]]
    speed = np.zeros_like(joints[0])
    for k in range(1, len(joints)):
        step = float(time_s[k] - time_s[k - 1])
        speed = speed + alpha(1.0, step) * ((joints[k] - joints[k - 1]) / step - speed)
        out.append(out[-1] + alpha(cutoff_hz + beta * np.abs(speed), step) * (joints[k] - out[-1]))
    return np.stack(out)


def _sides(found: list[Sequence]) -> dict[str, float]:
    """Print how often the side changes, and how many frames are on the wrong one."""
    figures: dict[str, float] = {}
    print("\n| | side flips per 1,000 frames | frames on the wrong side, % | sequences |")
    print("|---|---|---|---|")
    for name, tables in (("labels", [s.before for s in found]), ("tracked", [s.after for s in found])):
        rights = [np.array(table["is_right"].to_pylist()) for table in tables]
        wrong = [right != s.is_right for right, s in zip(rights, found, strict=True)]
        flips = 1000 * sum(int((r[1:] != r[:-1]).sum()) for r in rights) / sum(map(len, rights))
        share = 100 * float(np.concatenate(wrong).mean())
        mostly = sum(bool(one.mean() > 0.5) for one in wrong)
        print(f"| {name} | {flips:.1f} | {share:.1f} | {mostly} of {len(found)} mostly on the wrong side |")
        figures |= {f"{name}, side flips per 1,000 frames": flips, f"{name}, % on the wrong side": share}
    return figures


def _coverage(found: list[Sequence]) -> dict[str, float]:
    """Print the share of joint coordinates within the intervals of their std, on tracks of the right side."""
    print("\n| | within 50 % | 68 % | 95 % | mean std, mm |")
    print("|---|---|---|---|---|")
    figures = {}
    right = [s for s in found if s.after["is_right"][0].as_py() == s.is_right]
    for name, tables in (("labels", [s.before for s in right]), ("tracked", [s.after for s in right])):
        std = np.concatenate([_joints(table, "joints3d_std_mm")[:, 1:] for table in tables])
        error = np.concatenate([(_joints(t) - s.true_mm)[:, 1:] for t, s in zip(tables, right, strict=True)])
        shares = coverage(std, error, (0.5, 0.68, 0.95)) or [np.nan] * 3
        print(
            f"| {name} | " + " | ".join(f"{100 * share:.0f}" for share in shares) + f" | {std.mean():.1f} |"
        )
        figures[f"{name}, % within 68 %"] = 100 * shares[1]
    return figures


def _identities(found: list[Sequence]) -> dict[str, float]:
    """Print how often an id moves to another hand where two hands cross: two sequences carried through each other."""
    switches = frames = tracks = 0
    for one, other in zip(found[::2], found[1::2], strict=False):
        hands, is_other = _crossing(one, other)
        ids = track_ids(hands, one.time_s, MAX_GAP)
        for second in (False, True):
            of_hand = ids[is_other == second]
            switches += int((of_hand[1:] != of_hand[:-1]).sum())
        frames += len(one.time_s)
        tracks += int(ids.max()) + 1
    pairs = len(found) // 2
    print(
        f"\n{pairs} pairs of hands that cross, {frames} frames: {switches} identity switches, {tracks} tracks"
    )
    return {"identity switches": switches}


def _crossing(one: Sequence, other: Sequence) -> tuple[Hands, NDArray[np.bool_]]:
    frames = len(one.time_s)
    way = np.linspace(-1.0, 1.0, frames)[:, None] * np.array([SIZE_PX, 0.0])
    parts: list[list[Any]] = [[], [], [], []]
    for s, moved in ((one, way), (other, -way)):
        labels = s.labels
        parts[0].append(labels["joints2d_px"] + moved[:, None])
        parts[1].append(labels["box_xyxy"] + np.tile(moved, 2))
        parts[2].append(right_scores(labels["is_right"], labels["side_score"].astype(float)))
        parts[3].append(labels["betas"])
    order = np.argsort(np.tile(np.arange(frames), 2), kind="stable")
    joints, boxes, right, betas = (np.concatenate(part)[order] for part in parts)
    hands = Hands(
        np.repeat(np.arange(frames), 2), joints, boxes, right, betas, np.full((2 * frames, 3), np.nan)
    )
    return hands, np.repeat([False, True], frames)[order]


if __name__ == "__main__":
    given = [int(number) for number in sys.argv[1:]]
    main(*given, *(12, 60, 11)[len(given) :])
