"""Measure how well each head learns from frozen features: `python benchmarks/heads.py [OUT]`.

Drawn hands pass once through the backbone of the shipped first look; only heads are trained on its output. Two tables:

- overfit: vertex error per head on 64 hands after training on the same hands by squared error;
- held out: prior-net and the q of AMVUR, trained together from the same start, on held-out hands.

OUT caches the features for the next run. 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from annotator.config import AmvurConfig
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.model.amvur import Amvur, Gaussian
from annotator.model.camera import CameraHead
from annotator.model.checkpoint import load_checkpoint
from annotator.model.landmarks import JOINTS, LOCAL
from annotator.model.network import Network
from annotator.model.prior_net import PriorNet, mean_hand
from annotator.model.two_looks import TwoLooks
from annotator.quality import metrics
from trainer import losses
from trainer.synth import SyntheticHands

TRAIN, HELD_OUT, OVERFIT = 5000, 600, 64
BATCH, RATE = 64, 2e-3
SEED, HELD_OUT_SEED = 17, 982_451_653


@dataclass
class Drawn:
    """Hands, and their features from a frozen backbone."""

    g: Tensor  # (N, feature_dim)
    maps: list[Tensor]  # (N, C, H, W) each
    vertices_mm: Tensor  # (N, V, 3)
    joints2d: Tensor  # (N, 21, 2)
    joints3d_mm: Tensor  # (N, 21, 3)

    def __getitem__(self, rows: Tensor | slice) -> Drawn:
        return Drawn(
            self.g[rows],
            [level[rows] for level in self.maps],
            self.vertices_mm[rows],
            self.joints2d[rows],
            self.joints3d_mm[rows],
        )

    def __len__(self) -> int:
        return len(self.g)


@torch.inference_mode()
def draw(count: int, seed: int) -> Drawn:
    """Draw hands and run the shipped backbone over them."""
    checkpoint = load_checkpoint("default")
    network = checkpoint.network.first if isinstance(checkpoint.network, TwoLooks) else checkpoint.network
    assert isinstance(network, Network) and network.landmarks is not None
    crop_px = network.config.crop_px
    hands = SyntheticHands(checkpoint.hand, crop_px, seed)
    parts = []
    for start in range(0, count, BATCH):
        batch = hands.batch(torch.arange(start, min(start + BATCH, count)))
        images = (batch.image.float() / 255).contiguous(memory_format=torch.channels_last)
        g, _, pyramid = network.backbone(images)
        _, _, at_joints = network.landmarks(pyramid)
        maps = [level.contiguous().half() for level in pyramid]
        parts.append(
            Drawn(torch.cat([g, at_joints], 1), maps, batch.vertices_mm, batch.joints2d, batch.joints3d_mm)
        )
    return Drawn(
        torch.cat([part.g for part in parts]),
        [torch.cat([part.maps[level] for part in parts]) for level in range(3)],
        torch.cat([part.vertices_mm for part in parts]),
        torch.cat([part.joints2d for part in parts]),
        torch.cat([part.joints3d_mm for part in parts]),
    )


def kept(path: Path | None, count: int, seed: int) -> Drawn:
    """Draw hands, or read the cached ones of an earlier run."""
    if path is not None and path.is_file():
        return Drawn(**torch.load(path, weights_only=True))
    drawn = draw(count, seed)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(drawn), path)
    return drawn


def fit(parameters: list[nn.Parameter], loss: Callable[[Tensor], Tensor], count: int, steps: int) -> None:
    """Minimise `loss(rows)` over batches of `count` examples: Adam, warm-up, cosine."""
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        rate = RATE * min((step + 1) / 50, 1) * (0.505 + 0.495 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = torch.randperm(count, generator=generator)[:BATCH]
        value = loss(rows)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()


def vertex_error_mm(predicted: Tensor, truth: Tensor) -> float:
    """Return the mean distance of vertices, root-relative, millimetres."""
    return float((predicted - truth).norm(dim=-1).mean())


def overfit(hand: HandModel, drawn: Drawn, steps: int) -> None:
    """Print the vertex error of each head on its training hands."""
    layer, few = HandLayer(hand), drawn[:OVERFIT]
    heads: dict[str, Callable[[], nn.Module]] = {"prior-net": lambda: PriorNet(few.g.shape[1], hand, layer)}
    for name, config in {
        "fully connected (Table 5 A)": AmvurConfig(kind="fully_connected", tokens=98),
        "AMVUR, plain": AmvurConfig(tokens=98, width=64, blocks=1, heads=1, plain=True),
        "AMVUR, one block": AmvurConfig(tokens=98, width=64, blocks=1, heads=4),
        "AMVUR, two blocks": AmvurConfig(tokens=98, width=64, blocks=2, heads=4),
        "AMVUR, paper": AmvurConfig(tokens=195, width=512, stages=3, blocks=3, heads=4),
    }.items():
        heads[name] = lambda config=config: Amvur(few.g.shape[1], hand, layer, config)  # type: ignore[misc]
    print(f"\n{OVERFIT} hands, {steps} steps\n| head | vertex error, mm |\n|---|---|")
    for name, build in heads.items():
        torch.manual_seed(0)
        head = build()

        def vertices(rows: Tensor, head: nn.Module = head) -> Tensor:
            output = head(few.g[rows])
            return output.mean_mm if isinstance(output, Gaussian) else output.vertices_mm

        def loss(rows: Tensor, vertices: Callable[[Tensor], Tensor] = vertices) -> Tensor:
            return ((vertices(rows) - few.vertices_mm[rows]) / losses.CM).square().mean()

        fit(list(head.parameters()), loss, len(few), steps)
        with torch.no_grad():
            error = vertex_error_mm(vertices(torch.arange(len(few))), few.vertices_mm)
        print(f"| {name} | {error:.1f} |", flush=True)


class Heads(nn.Module):
    """Prior-net, its camera and AMVUR behind it."""

    def __init__(self, hand: HandModel, feature_dim: int, map_dims: list[int], config: AmvurConfig) -> None:
        super().__init__()
        layer = HandLayer(hand)
        self.prior_net = PriorNet(feature_dim, hand, layer)
        camera = load_checkpoint("default").info.network.camera
        self.prior_camera = CameraHead(feature_dim, mean_hand(layer, hand), camera, constant_std=True)
        self.amvur = Amvur(feature_dim, hand, layer, config, map_dims, landmarks=True)
        self.config = config

    def forward(self, drawn: Drawn) -> tuple[Tensor, Tensor, Gaussian]:
        """Return prior-net's vertices (B, V, 3), their points (B, V, 2), and q."""
        prior = self.prior_net(drawn.g)
        points = self.prior_camera(drawn.g).project(prior.vertices_mm)[..., :2]
        if not self.config.aligned:
            return prior.vertices_mm, points, self.amvur(drawn.g, prior.vertices_mm)
        # Landmarks are the last features: per joint its position, then its appearance.
        landmarks = drawn.g[:, -JOINTS * (2 + LOCAL) :].unflatten(1, (JOINTS, -1))[..., :2]
        q = self.amvur(drawn.g, prior.vertices_mm, points, drawn.maps, landmarks)
        return prior.vertices_mm, points, q


def held_out(hand: HandModel, train: Drawn, test: Drawn, steps: int) -> None:
    """Print the errors of prior-net and of q on held-out hands, after one joint training per row."""
    R = torch.as_tensor(hand.joint_regressor)
    base = AmvurConfig(start="prior_net", tokens=98, width=64, joint_variance="shared")
    rows = {
        "plain": replace(base, plain=True, blocks=1, heads=1),
        "one block": replace(base, blocks=1),
        "two blocks": base,
        "one block, aligned": replace(base, blocks=1, aligned=True),
        "two blocks, aligned": replace(base, aligned=True),
    }
    print(f"\n{len(train)} hands, {steps} steps of {BATCH}, {len(test)} held out")
    columns = ("AMVUR", "MPVPE prior-net, mm", "q", "PA-MPVPE prior-net, mm", "q", "q against prior-net")
    print(f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", sep="\n")
    for name, config in rows.items():
        torch.manual_seed(0)
        heads = Heads(hand, train.g.shape[1], [level.shape[1] for level in train.maps], config)

        def loss(rows: Tensor, heads: Heads = heads) -> Tensor:
            part = train[rows]
            prior_mm, points, q = heads(part)
            of_prior = ((prior_mm - part.vertices_mm) / losses.CM).square().mean() / 2
            aligned = sum(
                losses.aligned_loss(R @ vertices, part.joints3d_mm).mean()
                for vertices in (prior_mm, q.mean_mm)
            )
            placed = torch.einsum("jv,bvc->bjc", R, points) - part.joints2d
            of_q = losses.vertices_loss(q, part.vertices_mm).mean()
            return of_prior + 5 * aligned + 20 * placed.square().mean() + of_q

        fit(list(heads.parameters()), loss, len(train), steps)
        errors = {"prior": ([], []), "q": ([], [])}  # type: dict[str, tuple[list[float], list[float]]]
        with torch.no_grad():
            for start in range(0, len(test), BATCH):
                part = test[torch.arange(start, min(start + BATCH, len(test)))]
                prior_mm, _, q = heads(part)
                truth = part.vertices_mm.numpy()
                for key, vertices in (("prior", prior_mm.numpy()), ("q", q.mean_mm.numpy())):
                    errors[key][0].extend(metrics.distances(vertices, truth).mean(1))
                    errors[key][1].extend(metrics.distances(metrics.align(vertices, truth), truth).mean(1))
        mean = {key: [sum(values) / len(values) for values in pair] for key, pair in errors.items()}
        gain = 1 - mean["q"][1] / mean["prior"][1]
        print(
            f"| {name} | {mean['prior'][0]:.2f} | {mean['q'][0]:.2f} | {mean['prior'][1]:.2f} | "
            f"{mean['q'][1]:.2f} | {100 * gain:+.1f} % |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, nargs="?", help="cache features here")
    parser.add_argument("--overfit-steps", type=int, default=600)
    parser.add_argument("--steps", type=int, default=1500)
    arguments = parser.parse_args()
    out: Path | None = arguments.out
    hand = load_checkpoint("default").hand
    train = kept(out and out / "train.pt", TRAIN, SEED)
    overfit(hand, train, arguments.overfit_steps)
    held_out(hand, train, kept(out and out / "held_out.pt", HELD_OUT, HELD_OUT_SEED), arguments.steps)


if __name__ == "__main__":
    main()
