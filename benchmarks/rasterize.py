"""Measure the rasterizer in images/s: `python benchmarks/rasterize.py [--help]`.

The mesh is a closed, bumpy ball of about 800 vertices and 1,600 faces that fills the crop like a hand. The script
prints medians over `--repeats` batches after a warm-up. They are for visibility alone (needed for every label), for
fragments, and for the share of a training step: forward to an image, and gradients back to colours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from common import machine, print_figures
from scipy.spatial import ConvexHull
from torch import Tensor

from annotator.render import Fragments, interpolate, nearest_faces, rasterize, visible_vertices


def ball(vertex_count: int) -> tuple[Tensor, Tensor]:
    """Return points (V, 3) spread evenly over the unit sphere by the golden angle, and faces (F, 3) of their hull."""
    i = np.arange(vertex_count) + 0.5
    height, angle = 1 - 2 * i / vertex_count, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), height], 1)
    faces = ConvexHull(points).simplices
    return torch.tensor(points, dtype=torch.float32), torch.tensor(faces, dtype=torch.int64)


def median_seconds(run: Callable[[], object], repeats: int, device: str) -> float:
    times = []
    for n in range(repeats + 2):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        if n >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--vertices", type=int, default=800)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    points, faces = ball(options.vertices)
    generator = torch.Generator().manual_seed(0)
    bumps = 1 + 0.2 * torch.rand(options.batch, len(points), 1, generator=generator)
    points = (points * bumps * 0.6).to(options.device)
    faces = faces.to(options.device)
    colours = torch.rand(options.batch, points.shape[1], 3, generator=generator).to(options.device)

    print(f"{machine(options.device)}, {options.threads} threads")
    print(f"batch {options.batch}, {points.shape[1]} vertices, {len(faces)} faces, backend {options.backend}")
    figures = {}
    for size_px in (128, 224):

        def label(size_px: int = size_px) -> Tensor:
            face_ids = nearest_faces(points, faces, size_px, options.backend)
            return visible_vertices(face_ids, faces, points.shape[1])

        def draw(size_px: int = size_px) -> Fragments:
            return rasterize(points, faces, size_px, options.backend)

        def train(size_px: int = size_px) -> None:
            moving, painted = points.clone().requires_grad_(), colours.clone().requires_grad_()
            fragments = rasterize(moving, faces, size_px, options.backend)
            interpolate(fragments, painted, faces).square().mean().backward()

        covered = (nearest_faces(points, faces, size_px, options.backend) >= 0).float().mean().item()
        for name, run in (("visibility", label), ("fragments", draw), ("forward and backward", train)):
            rate = options.batch / median_seconds(run, options.repeats, options.device)
            figures[f"{size_px} px, {covered:.0%} covered, {name}, images/s"] = rate
    print_figures(figures)


if __name__ == "__main__":
    main()
