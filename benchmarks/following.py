"""`annotate --detector` on synthetic videos with true motion: detection in every frame against every Nth.

python benchmarks/following.py [--sequences 4] [--frames 240] [--model hand_landmarker.task] [--checkpoint default]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import torch
from common import machine, print_figures
from numpy.typing import NDArray
from PIL import Image

import annotator
from annotator.detection.detector import HandDetector
from annotator.detection.locator import HandLocator
from annotator.job.detect_hands import FollowSettings
from annotator.job.shard import Shard
from annotator.job.stages import decode_shard, predict_shard
from annotator.model.checkpoint_file import read_checkpoint
from annotator.photos.crops import box_around_joints, box_overlaps
from annotator.predictor import Predictor
from annotator.quality.metrics import pa_mpjpe
from annotator.sources.video.source import list_video
from trainer.synth.write_sequences import write_sequences

Floats = NDArray[np.floating]

SHARED = Path(__file__).parents[2] / "shared"
EVERY = (1, 8)
SIZE_PX, SEED, MAX_HANDS, SHARD = 320, 0, 2, 256

#: A box shows the hand if its centre is at most this share of the true box's longer side from the true centre.
HIT = 1 / 3


@dataclass
class Timed:
    """A call with the seconds of processor time that it took in all, and the count of calls."""

    call: Callable[..., Any]
    seconds: float = 0.0
    calls: int = 0

    def __call__(self, *args: Any) -> Any:
        """Call, and count."""
        began = time.process_time()
        result = self.call(*args)
        self.seconds += time.process_time() - began
        self.calls += 1
        return result


@dataclass
class Figures:
    """Results of one way of detecting on all videos."""

    frames: int = 0
    hits: int = 0
    false: int = 0
    hands: int = 0
    detections: int = 0
    wrong_side: int = 0
    detect_s: float = 0.0
    label_s: float = 0.0
    overlaps: list[float] = field(default_factory=list)
    errors_mm: list[float] = field(default_factory=list)
    boxes: dict[tuple[str, int], Floats] = field(default_factory=dict)


class TimedDetector:
    """A detector whose calls are timed."""

    def __init__(self, model: str) -> None:
        self.detect = Timed(HandDetector(model, MAX_HANDS).detect)


def main() -> None:
    """Print the table; one JSON line last."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--frames", type=int, default=240)
    parser.add_argument("--drawn", type=Path, help="folder of `amvur synth --sequences`, instead of drawing")
    parser.add_argument("--model", default=str(SHARED / "models" / "hand_landmarker.task"))
    parser.add_argument("--checkpoint", default="default")
    parser.add_argument("--every", type=int, nargs="+", default=EVERY, help="1 is added")
    args = parser.parse_args()
    print(machine())
    if not Path(args.model).is_file():
        print("left out: give --model")
        print_figures({})
        return
    torch.set_num_threads(1)
    predictor = annotator.load(args.checkpoint, device="cpu")
    locator = HandLocator(read_checkpoint(args.checkpoint))
    found = {every: Figures() for every in sorted({1, *args.every})}
    with tempfile.TemporaryDirectory() as scratch:
        drawn = args.drawn or Path(scratch) / "drawn"
        if args.drawn is None:
            write_sequences(drawn, args.sequences, args.frames, SEED, SIZE_PX)
        for name, rows in _truth(drawn):
            video = Path(scratch) / f"{name}.mp4"
            _encode(video, [drawn / row["image_uri"] for row in rows])
            for every in found:
                _measure(found[every], video, rows, every, predictor, locator, args.model)
    _print(found)


def _truth(drawn: Path) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    columns = ["image_uri", "sequence", "joints3d_mm", "joints2d_px", "is_right"]
    rows = pq.read_table(drawn / "truth.parquet", columns=columns).to_pylist()
    for name in sorted({row["sequence"] for row in rows}):
        yield name, [row for row in rows if row["sequence"] == name]


def _encode(video: Path, photos: list[Path]) -> None:
    with av.open(str(video), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"crf": "20"})
        stream.width = stream.height = Image.open(photos[0]).width
        stream.pix_fmt = "yuv420p"
        for photo in photos:
            out.mux(stream.encode(av.VideoFrame.from_image(Image.open(photo))))
        out.mux(stream.encode())


def _measure(
    figures: Figures,
    video: Path,
    truth: list[dict[str, Any]],
    every: int,
    predictor: Predictor,
    locator: HandLocator,
    model: str,
) -> None:
    entries = list(list_video(str(video), video.name))
    timed, locate = TimedDetector(model), Timed(locator)
    timed.detect(np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8))
    timed.detect.seconds = timed.detect.calls = 0
    follow_settings = FollowSettings(lambda: locate, every, 1, MAX_HANDS) if every > 1 else None
    checkpoint = predictor.checkpoint
    for first in range(0, len(entries), SHARD):
        part = entries[first : first + SHARD]
        shard = decode_shard(
            part,
            checkpoint.cut_px,
            lambda: timed,  # type: ignore[arg-type, return-value]
            checkpoint.cut_margin,
            follow_settings=follow_settings,
        )
        began = time.process_time()
        labelled = predict_shard(predictor, shard, "auto")
        figures.label_s += time.process_time() - began
        _compare(figures, labelled, truth[first : first + SHARD], video.name)
    figures.detect_s += timed.detect.seconds + locate.seconds
    figures.detections += timed.detect.calls


def _compare(figures: Figures, shard: Shard, truth: list[dict[str, Any]], video: str) -> None:
    of_frame: dict[int, list[int]] = {}
    first = min(row["frame_index"] for row in shard.rows)
    for hand, row in enumerate(shard.hand_rows):
        of_frame.setdefault(shard.rows[row]["frame_index"] - first, []).append(hand)
    for frame, true in enumerate(truth):
        box = box_around_joints(np.array(true["joints2d_px"]))
        hands = of_frame.get(frame, [])
        off = [_off(shard.hands["box_xyxy"][hand], box) for hand in hands]
        figures.frames += 1
        figures.hands += len(hands)
        best = int(np.argmin(off)) if hands else -1
        if not hands or off[best] > HIT:
            figures.false += len(hands)
            continue
        figures.false += len(hands) - 1
        figures.hits += 1
        figures.overlaps.append(float(box_overlaps(shard.hands["box_xyxy"][hands[best]], box[None])[0]))
        figures.boxes[video, first + frame] = shard.hands["box_xyxy"][hands[best]]
        figures.wrong_side += bool(shard.hands["is_right"][hands[best]] != true["is_right"])
        joints = np.asarray(shard.hands["joints3d_mm"][hands[best]], np.float64)[None]
        figures.errors_mm.append(float(pa_mpjpe(joints, np.array(true["joints3d_mm"])[None])[0]))


def _off(box: Floats, true: Floats) -> float:
    """Return the distance of two boxes' centres over the longer side of the true one."""
    move = (box[:2] + box[2:] - true[:2] - true[2:]) / 2
    return float(np.linalg.norm(move) / (true[2:] - true[:2]).max())


def _print(found: dict[int, Figures]) -> None:
    print(
        "| detector on | frames with detection, % | missed, % | false per 100 frames | overlap with the true box | "
        "overlap with detection in every frame | PA-MPJPE, mm | wrong side, % | detection, ms per hand | "
        "network, ms per hand | hands/s, of every frame |\n" + "|---" * 11 + "|"
    )
    each = found[1]
    values_by_name: dict[str, float] = {}
    base = each.hands / (each.detect_s + each.label_s)
    for every, of in found.items():
        both = of.boxes.keys() & each.boxes.keys()
        agreement = [box_overlaps(of.boxes[key], each.boxes[key][None])[0] for key in both]
        rate = of.hands / (of.detect_s + of.label_s) / base
        values = {
            "frames with detection, %": 100 * of.detections / of.frames,
            "missed, %": 100 * (1 - of.hits / of.frames),
            "false per 100 frames": 100 * of.false / of.frames,
            "overlap": float(np.mean(of.overlaps)),
            "agreement": float(np.mean(agreement)),
            "PA-MPJPE, mm": float(np.mean(of.errors_mm)),
            "wrong side, %": 100 * of.wrong_side / max(of.hits, 1),
            "detection, ms per hand": 1000 * of.detect_s / max(of.hands, 1),
            "network, ms per hand": 1000 * of.label_s / max(of.hands, 1),
            "hands/s ratio": rate,
        }
        cells = " | ".join(f"{value:.3g}" for value in values.values())
        print(f"| {'every frame' if every == 1 else f'every {every}th'} | {cells} |")
        values_by_name |= {f"every {every}: {name}": value for name, value in values.items()}
    print_figures(values_by_name)


if __name__ == "__main__":
    main()
