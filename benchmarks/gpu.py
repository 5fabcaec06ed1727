"""Measure a GPU without Ray: `python benchmarks/gpu.py [PHOTOS]`.

Networks are the shipped one and the paper's (ResNet-50, 224 px, random weights), in each precision. Figures are
photos/s of the bare network and of the whole predictor (crops in host memory to label columns in host memory, with
texture). Beside them are two upper limits. Arithmetic: operations counted by torch, at the speed of a large matrix
product. Memory: bytes that layers read and write in this precision, at the speed of a large copy.

Then follow parts in milliseconds, backbones replayed as CUDA graphs, JPEGs decoded by the device, both rasterizers on
predicted meshes, the synthetic generator, and training in photos/s with the device's busy share.
`--device cpu --count 8 --steps 2` tries the script itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from common import machine, photo_folder, prepared, print_figures
from network import NETWORKS, PRECISIONS, heads_ms, parts_ms, predictor_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from annotator.config import read_config
from annotator.hand import load_hand
from annotator.model.network import Network
from annotator.photos.crops import Crops, crop_photo
from annotator.photos.decode import decode_photo
from annotator.render import nearest_faces
from annotator.runtime.malloc import keep_freed_memory
from trainer.config import TrainConfig
from trainer.progress import TrainingProgress
from trainer.synth import SyntheticHands
from trainer.train import train

#: The training: the paper's backbone and size, the project's own recipe.
TRAINING = (
    *("network.backbone=resnet50", "network.crop_px=224", "backbone_from=", "freeze_early=false"),
    *("precision=bf16", "checkpoint_every=1000000", "pictures_every=1000000"),
)


class Device:
    """The measured device."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_gpu = self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until all queued work is finished."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, do: Callable[[], object], repeat: int = 7) -> float:
        """Return the median seconds of a call, after two warm-up calls."""
        times = []
        for number in range(repeat + 2):
            self.wait()
            began = time.perf_counter()
            do()
            self.wait()
            if number >= 2:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def operations_per_s(self, precision: torch.dtype) -> float:
        """Measure a large matrix product; float32 uses TF32, like convolutions."""
        side = 8192 if self.is_gpu else 512
        a, b = (torch.randn(side, side, device=self.device, dtype=precision) for _ in range(2))
        torch.set_float32_matmul_precision("high")
        spent = self.seconds(lambda: a @ b)
        torch.set_float32_matmul_precision("highest")
        return 2 * side**3 / spent

    def bytes_per_s(self) -> float:
        """Measure a large copy, counting bytes read and written."""
        size = (1 << 30) if self.is_gpu else (1 << 26)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.seconds(lambda: target.copy_(source))


def operations(network: Network, images: Tensor) -> float:
    """Return the operations of a forward pass, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(images)
    return float(counter.get_total_flops())


def traffic_bytes(network: Network, images: Tensor, precision: torch.dtype) -> float:
    """Return the bytes of a forward pass if convolutions and linear layers access memory once, and all else is free."""
    moved = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        nonlocal moved
        moved += found.numel() + sum(x.numel() for x in given) + sum(p.numel() for p in module.parameters())

    layers = [module for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    return moved * precision.itemsize


def crops_of(images: Tensor) -> Crops:
    """Return the output of `prepared` as crops in host memory."""
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    side = pixels.shape[1]
    return Crops.stack([crop_photo(photo, side, side, side) for photo in pixels])


def forward(network: Network, images: Tensor, batch: int, precision: torch.dtype) -> None:
    """Run the network alone, batch by batch."""
    half = torch.autocast(images.device.type, precision, enabled=precision != torch.float32)
    with torch.inference_mode(), half:
        for part in images.split(batch):
            network(part)


def predictions(title: str, device: Device, photos: Path, count: int, batch: int) -> dict[str, float]:
    """Measure one of `NETWORKS`."""
    figures: dict[str, float] = {}
    for precision in PRECISIONS:
        predictor = predictor_of(NETWORKS[title], device.device, batch, precision)
        network = predictor.network.hand_network
        dtype = getattr(torch, precision)
        images = prepared(photos, network.config.crop_px)
        rows = torch.arange(count) % len(images)
        crops = crops_of(prepared(photos, predictor.checkpoint.cut_px, predictor.checkpoint.cut_margin)[rows])
        images = images[rows]
        images = images.to(device.device).contiguous(memory_format=torch.channels_last)

        bare = count / device.seconds(partial(forward, network, images, batch, dtype))
        whole = count / device.seconds(partial(predictor.predict_crops, crops, "right"))
        some = images[:batch]
        arithmetic = len(some) * device.operations_per_s(dtype) / operations(network, some)
        memory = len(some) * device.bytes_per_s() / traffic_bytes(network, some, dtype)
        ms = parts_ms(network, images, batch, 2, dtype)
        what = f"{title}, {precision}"
        figures |= {
            f"{what}: bare network, photos/s": bare,
            f"{what}: whole predictor, sides given, photos/s": whole,
            f"{what}: floor of arithmetic, photos/s": arithmetic,
            f"{what}: floor of memory, photos/s": memory,
            f"{what}: bare network over the lower floor": bare / min(arithmetic, memory),
            f"{what}: heads over backbone": heads_ms(ms) / ms["backbone"],
            f"{what}: rasterizer over whole predictor": ms["rasterizer"] * whole / 1000,
            **{f"{what}: {part}, ms a photo": value for part, value in ms.items()},
        }
        if device.is_gpu:
            for size in (1, 32, batch):
                eager, replay = graphed(network, images[:size], dtype)
                gain = device.seconds(eager) / device.seconds(replay)
                figures[f"{what}: backbone, batch of {size}, CUDA graph over eager"] = gain
    return figures


def graphed(
    network: Network, images: Tensor, precision: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two calls of the backbone on these images: eager, and the replay of its CUDA graph."""

    def eager() -> None:
        # Casts must not be cached outside a graph that replays them.
        half = torch.autocast("cuda", precision, enabled=precision != torch.float32, cache_enabled=False)
        with torch.no_grad(), half:
            network.backbone(images)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # kernels are chosen and memory is allocated before the capture
        for _ in range(3):
            eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager()
    return eager, graph.replay


def jpegs(device: Device, photos: Path, count: int) -> dict[str, float]:
    """Measure decoding by one core, and by the device if torchvision is installed."""
    data = [
        path.read_bytes() for path in sorted(photos.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg")
    ]
    data = (data * (1 + count // max(1, len(data))))[:count]
    if not data:
        return {}
    figures = {
        "JPEGs, one core, photos/s": count / device.seconds(lambda: [decode_photo(each) for each in data], 3)
    }
    if not device.is_gpu or find_spec("torchvision") is None:
        print("JPEGs by the device are left out: they need a GPU and torchvision")
        return figures
    from torchvision.io import ImageReadMode, decode_jpeg

    tensors = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]
    spent = device.seconds(lambda: decode_jpeg(tensors, ImageReadMode.RGB, device=device.device), 3)
    return figures | {"JPEGs, the device, photos/s": count / spent}


def rasterizers(device: Device, photos: Path, count: int) -> dict[str, float]:
    """Measure both backends on meshes that the shipped network predicts, 224 px."""
    network = predictor_of("default", device.device, count).network.hand_network
    images = prepared(photos, network.config.crop_px)[:count].to(device.device)
    with torch.inference_mode():
        prediction = network(images)
        points = prediction.camera.project(prediction.vertices.mean_mm)
    figures = {}
    for backend in ("torch", "nvdiffrast") if device.is_gpu and find_spec("nvdiffrast") else ("torch",):
        spent = device.seconds(partial(nearest_faces, points, network.faces, 224, backend))
        figures[f"rasterizer {backend}, 224 px, images/s"] = len(points) / spent
    return figures


def generator(device: Device, count: int) -> dict[str, float]:
    """Measure the synthetic generator on the device, in photos/s."""
    source = SyntheticHands(load_hand("open"), 224, seed=0, device=device.device)
    index = torch.arange(count, device=device.device)
    return {"synthetic hands, 224 px, photos/s": count / device.seconds(lambda: source.batch(index), 3)}


def training(device: Device, batch_size: int, steps: int) -> dict[str, float]:
    """Measure photos/s over the second third of the steps, and the device's busy share over the last."""
    settings = [*TRAINING, f"batch_size={batch_size}", f"steps={3 * steps}", f"log_every={steps}"]
    config = read_config(TrainConfig, "train", "supervised", settings)
    watch = profile(activities=[ProfilerActivity.CUDA if device.is_gpu else ProfilerActivity.CPU])
    ends: list[float] = []
    begins: list[float] = []
    waiting = 0.0

    def report(progress: TrainingProgress) -> None:
        nonlocal waiting
        device.wait()
        ends.append(time.perf_counter())
        if len(ends) == 2:
            waiting = progress.waiting
            watch.start()
        elif len(ends) == 3:
            watch.stop()
        begins.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        train(config, out, str(device.device), report)
    figures = {
        "training, ResNet-50 at 224 px, photos/s": steps * batch_size / (ends[1] - begins[0]),
        "training, share of time waiting for data": waiting,
    }
    if device.is_gpu:
        busy = busy_s(watch) / (ends[2] - begins[1])
        figures["training, busy share of the device"] = busy
    return figures


def busy_s(watch: Any) -> float:
    """Return the seconds in which at least one kernel or copy ran."""
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in watch.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6


def main() -> None:
    """Print figures as they arrive, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos, each a crop; default: synthetic ones")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--count", type=int, default=2048, help="photos per measurement")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30, help="of training")
    args = parser.parse_args()
    keep_freed_memory()
    print(machine(args.device))
    device = Device(args.device)
    photos = photo_folder(args.photos, min(args.count, 512))
    batch = min(args.batch_size, args.count)
    figures: dict[str, float] = {}

    def add(found: dict[str, float]) -> None:
        for name, value in found.items():
            print(f"{name}: {value:.4g}", flush=True)
        figures.update(found)

    add(generator(device, batch))
    add(rasterizers(device, photos, batch))
    add(jpegs(device, photos, batch))
    for title in NETWORKS:
        add(predictions(title, device, photos, args.count, batch))
    add(training(device, batch, args.steps))
    print_figures(figures, machine=machine(args.device))


if __name__ == "__main__":
    main()
