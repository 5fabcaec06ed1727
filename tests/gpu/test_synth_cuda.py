from __future__ import annotations

import torch

from annotator.hand import load_hand
from trainer.synth import SyntheticHands


def test_a_gpu_draws_what_a_cpu_draws():
    index = torch.arange(16)
    hand = load_hand("open")
    cpu = SyntheticHands(hand, 128, seed=2).batch(index)
    gpu = SyntheticHands(hand, 128, seed=2, device="cuda").batch(index.cuda())
    for name, value in vars(gpu).items():
        assert value.device.type == "cuda", name
    torch.testing.assert_close(gpu.joints3d_mm.cpu(), cpu.joints3d_mm, atol=0.05, rtol=0)
    torch.testing.assert_close(gpu.joints2d.cpu(), cpu.joints2d, atol=1e-3, rtol=0)
    # Faces at a pixel's edge may differ by backend, and noise is the same.
    assert (gpu.image.cpu().int() - cpu.image.int()).abs().float().mean() < 3
    assert (gpu.hand_mask.cpu() != cpu.hand_mask).float().mean() < 0.01
