"""Compare our own skinning with smplx on the open hand: `python benchmarks/skinning.py` (smplx is in the extra `dev`).

Batches of random poses and shapes, alternating, on one thread. The script prints milliseconds per batch, forward alone
and with backward, their ratios, and the distance between vertices. A time is the minimum over all rounds.
"""

from __future__ import annotations

import argparse
import time

import roma
import torch
from common import machine, print_figures
from torch import nn

from annotator.hand import load_hand
from annotator.hand.skinning import Skinning
from annotator.hand.smplx_skinning import SmplxSkinning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hand = load_hand("open")
    rotations, betas = roma.random_rotmat((options.batch, 16)), torch.randn(options.batch, 10)
    slope = torch.randn(options.batch, hand.vertex_count, 3)

    def forward(skinning: nn.Module) -> torch.Tensor:
        with torch.no_grad():
            vertices: torch.Tensor = skinning(rotations, betas)[0]
        return vertices

    def forward_and_backward(skinning: nn.Module) -> None:
        inputs = rotations.clone().requires_grad_(), betas.clone().requires_grad_()
        torch.autograd.grad(skinning(*inputs)[0], inputs, slope)

    print(f"{machine()}, 1 thread, batch {options.batch}, {hand.vertex_count} vertices")
    both = {"smplx": SmplxSkinning(hand), "own": Skinning(hand)}
    apart_um = 1e6 * (forward(both["own"]) - forward(both["smplx"])).norm(dim=-1).max().item()
    figures = {"largest distance of vertices, micrometres": apart_um}
    for what, run in (("forward", forward), ("forward and backward", forward_and_backward)):
        times: dict[str, list[float]] = {name: [] for name in both}
        for _ in range(options.rounds):
            for name, skinning in both.items():
                began = time.perf_counter()
                run(skinning)
                times[name].append(1000 * (time.perf_counter() - began))
        least = {name: min(found) for name, found in times.items()}
        figures |= {f"{what}, {name}, ms": value for name, value in least.items()}
        figures[f"{what}, own over smplx"] = least["own"] / least["smplx"]
    print_figures(figures)


if __name__ == "__main__":
    main()
