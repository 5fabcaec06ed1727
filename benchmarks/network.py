"""Measure the time of a prediction per part: `python benchmarks/network.py [PHOTOS]`.

Milliseconds per photo of both looks of the shipped checkpoint, and of the paper's network (ResNet-50, random weights)
at 224 px. Parts are the backbones, the heads (landmarks, prior-net, its refinement, AMVUR, cameras, texture, the
rasterizer, joints and projection), and the rest: the cuts of the second look, and the passes that repeat it. Figures
are medians over batches, after a warm-up. A GPU is timed by events on its stream, without synchronisation in between.
The last line is the table as JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import machine, photo_folder, prepared, print_figures
from torch import Tensor

from annotator.config import NetworkConfig, read_config
from annotator.model import network as network_module
from annotator.model import texture as texture_module
from annotator.model.checkpoint import load_checkpoint
from annotator.model.checkpoint_file import CheckpointInfo
from annotator.model.network import Network
from annotator.model.two_looks import TwoLooks
from annotator.predictor import Precision, Predictor
from annotator.runtime.malloc import keep_freed_memory

#: Modules of a network by part.
MODULES = {
    "backbone": "backbone",
    "landmarks": "landmarks",
    "heads": "landmarks",
    "prior_net": "prior-net",
    "refinement": "refinement",
    "amvur": "AMVUR",
    "prior_camera": "cameras",
    "camera": "cameras",
    "texture": "texture",
}

#: Functions of the rasterizer, by the module that calls them.
RASTERIZER = (
    (network_module, "nearest_faces"),
    (network_module, "visible_vertices"),
    (texture_module, "cover"),
)

#: Parts that are no head.
NOT_HEADS = ("backbone", "rest", "whole")


class Stopwatch:
    """Time nested parts; a part excludes its inner parts."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []
        self._open: list[str] = []

    def begin(self, part: str) -> None:
        """Start a part."""
        self._open.append(part)
        self._mark(part)

    def end(self) -> None:
        """End a part; time counts for the enclosing part again."""
        self._open.pop()
        self._mark(self._open[-1] if self._open else "")

    def _mark(self, part: str) -> None:
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((part, event))
        else:
            self._marks.append((part, time.perf_counter()))

    def take(self) -> dict[str, float]:
        """Return milliseconds per part since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent: dict[str, float] = defaultdict(float)
        for (part, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            spent[part] += start.elapsed_time(end) if self.device.type == "cuda" else (end - start) * 1000
        self._marks.clear()
        spent.pop("", None)
        return spent


@contextmanager
def watched(network: Network | TwoLooks, watch: Stopwatch) -> Iterator[None]:
    """Time the parts of a network, or of both looks together, while the block runs."""
    handles = []
    looks = [network.first, network.second] if isinstance(network, TwoLooks) else [network]
    for look, (name, part) in product(looks, MODULES.items()):
        module = getattr(look, name, None)
        if module is not None:
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: watch.begin(part)))
            handles.append(module.register_forward_hook(lambda *_: watch.end()))

    def timed(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            watch.begin(part)
            found = function(*args, **kwargs)
            watch.end()
            return found

        return run

    rasterizer = [(module, name, "rasterizer") for module, name in RASTERIZER]
    plain = [
        (owner, name, getattr(owner, name), part)
        for owner, name, part in (*rasterizer, (Network, "hands", "joints and projection"))
    ]
    for owner, name, function, part in plain:
        setattr(owner, name, timed(function, part))
    try:
        yield
    finally:
        for owner, name, function, _ in plain:
            setattr(owner, name, function)
        for handle in handles:
            handle.remove()


def parts_ms(
    network: Network | TwoLooks, images: Tensor, batch_size: int, rounds: int, precision: torch.dtype
) -> dict[str, float]:
    """Return milliseconds per photo by part: `rest` is in no other; `whole` is measured without timing of parts."""
    device = images.device
    watch = Stopwatch(device)
    batches = images.split(batch_size)
    found: dict[str, list[float]] = defaultdict(list)
    whole: list[float] = []
    half = torch.autocast(device.type, precision, enabled=precision != torch.float32)
    with torch.inference_mode(), half:
        for _ in range(3):
            network(batches[0])
        for _ in range(rounds):
            for batch in batches:
                watch.begin("whole")
                network(batch)
                watch.end()
                whole.append(watch.take()["whole"] / len(batch))
            with watched(network, watch):
                for batch in batches:
                    watch.begin("rest")
                    network(batch)
                    watch.end()
                    for part, spent in watch.take().items():
                        found[part].append(spent / len(batch))
    return {
        **{part: statistics.median(values) for part, values in found.items()},
        "whole": statistics.median(whole),
    }


#: Precisions of `torch.autocast`; int8 is OpenVINO's.
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "bfloat16")

#: Measured networks: the shipped one and the paper's.
NETWORKS = {"shipped": "default", "the paper's, ResNet-50, 224 px": "paper/supervised"}


def predictor_of(
    name: str, device: torch.device, batch_size: int, precision: Precision = "float32"
) -> Predictor:
    """Return a predictor of `default`, or of a configuration with random weights."""
    checkpoint = load_checkpoint("default")
    if name != "default":
        config = read_config(NetworkConfig, "network", name, ["imagenet=false"])
        network = Network(config, checkpoint.hand).eval()
        checkpoint = replace(checkpoint, network=network, info=CheckpointInfo(config, checkpoint.hand.id))
    return Predictor(checkpoint, device, batch_size, precision)


def images_for(predictor: Predictor, photos: Path) -> Tensor:
    """Return the network's input for all readable photos."""
    return prepared(photos, predictor.checkpoint.cut_px, predictor.checkpoint.cut_margin)


def heads_ms(ms: Mapping[str, float]) -> float:
    """Return the time of all heads together, from that of all parts."""
    return sum(spent for part, spent in ms.items() if part not in NOT_HEADS)


def main() -> None:
    """Print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "photos", nargs="?", help="folder of photos, each a crop; default: 256 synthetic ones"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    print(machine(args.device))
    photos = photo_folder(args.photos, args.count)
    table = {}
    for title, name in NETWORKS.items():
        predictor = predictor_of(name, torch.device(args.device), args.batch_size)
        images = images_for(predictor, photos)[: args.count].to(args.device)
        ms = parts_ms(predictor.network, images, args.batch_size, args.rounds, getattr(torch, args.precision))
        table[title] = ms | {
            "heads over backbone": heads_ms(ms) / ms["backbone"],
            "rasterizer over whole": ms["rasterizer"] / ms["whole"],
        }
    rows = list(dict.fromkeys(row for column in table.values() for row in column))
    print(
        f"| ms per photo, {args.threads} threads, batches of {args.batch_size}, {args.precision} | "
        + " | ".join(table)
        + " |"
    )
    print("|---|" + "---|" * len(table))
    for row in rows:
        print(
            f"| {row} | "
            + " | ".join(f"{column[row]:.3f}" if row in column else "" for column in table.values())
            + " |"
        )
    print_figures(
        {
            f"{title}: {row}": column[row]
            for title, column in table.items()
            for row in column
            if "over" in row
        },
        table=table,
    )


if __name__ == "__main__":
    main()
