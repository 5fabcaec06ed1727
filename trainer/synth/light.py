"""Light on a scene: lamp and sky, shadows of fingers on the palm, ambient occlusion, sheen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.keyed_random import Draws
from trainer.synth.surface_samples import Samples, dot, unit

# Radii of ambient occlusion: a surface behind the mean depth of its surroundings loses light.
_HOLLOWS_MM, _HOLLOW_SHARE = (4.0, 12.0), 0.45
# Distances towards the lamp at which an occluder is tested.
_SHADOW_STEPS_MM = (4.0, 8.0, 13.0, 20.0, 30.0, 45.0, 65.0)
# A surface nearer than the ray by more than this passes in front of the ray.
_THICKNESS_MM = 40.0
# How far light wraps around skin, per colour: red reaches farthest.
_WRAP = (0.38, 0.24, 0.2)


class Light:
    """Random light of B photos."""

    def __init__(self, draws: Draws) -> None:
        count, device = len(draws), draws.key.device
        to_lamp = draws.normal(3) * torch.tensor([0.8, 0.6, 0.6], device=device)
        to_lamp[:, 1] -= 0.6
        # Mostly from the camera's side, sometimes from behind.
        sign = torch.where(draws.chance(0.12), 1.0, -1.0)
        to_lamp[:, 2] = sign * (to_lamp[:, 2].abs() + 0.2)
        self.to_lamp = F.normalize(to_lamp, dim=1)
        fill = draws.normal(3)
        fill[:, 2] = -fill[:, 2].abs() - 0.3
        self.frames_to_fill = F.normalize(fill, dim=1)
        ambient = draws.uniform(1, low=0.2, high=0.75)
        fill_share = draws.uniform(1) ** 2 * 0.35
        tint = draws.normal(3, 2)

        def colour(k: int, spread: float) -> Tensor:
            """Draw white light between lamp and sky, with a colour cast."""
            warm = spread * tint[:, k, :1]
            return torch.exp(torch.cat([warm, 0.1 * spread * tint[:, k, 1:], -warm], 1))

        self.lamp_rgb = (1 - ambient) * colour(0, 0.12)
        self.fill_rgb = fill_share * colour(1, 0.15)
        self.sky_rgb = ambient * colour(2, 0.12)
        self.ground_rgb = self.sky_rgb * draws.uniform(1, low=0.35, high=0.9)
        self.shadow = draws.uniform(low=0.3, high=1.0)
        self.sheen = draws.uniform(low=0.0, high=1.0) ** 2 * 0.09
        self.gloss = torch.exp2(draws.uniform(low=2.5, high=5.5))
        self.count = count

    def shade(self, albedo: Tensor, sheen: Tensor, open_: Tensor, lit: Tensor, seen: Samples) -> Tensor:
        """Return linear RGB (3, N) of surfaces.

        Args:
            albedo: (3, N). sheen: (N,) factor on the sheen of the photo's skin.
            open_: (N,) share of the sky that reaches the surface. lit: (N,) share of the lamp.
            seen: the samples' normals and views.
        """
        lights = [
            self.to_lamp,
            self.lamp_rgb,
            self.frames_to_fill,
            self.fill_rgb,
            self.sky_rgb,
            self.ground_rgb,
        ]
        table = torch.cat([*lights, self.sheen[:, None], self.gloss[:, None]], 1).t().contiguous()
        of_sample = table.index_select(1, seen.photo)
        to_lamp, lamp, frames_to_fill, fill, sky, ground = of_sample[:18].view(6, 3, -1)
        own_sheen, gloss = of_sample[18:]
        wrap = albedo.new_tensor(_WRAP)[:, None]
        facing = dot(seen.normal, to_lamp)
        lamp = lamp * lit
        received = lamp * ((facing + wrap) / (1 + wrap)).clamp(min=0)
        around = fill * (dot(seen.normal, frames_to_fill) * 0.6 + 0.4).clamp(min=0)
        around = around + torch.lerp(sky, ground, seen.normal[1] * 0.5 + 0.5)
        received = torch.addcmul(received, around, open_)
        half = unit(to_lamp + seen.view)
        glint = torch.exp(dot(seen.normal, half).clamp(min=1e-3).log() * gloss)
        return torch.addcmul(albedo * received, lamp, glint * own_sheen * sheen * (gloss * 0.05 + 0.5))


def reached(depth_mm: Tensor, focal: Tensor, ray: Tensor, light: Light) -> Tensor:
    """Return shares (B, 2, G, G) of sky and lamp light that reach each pixel of depth images (B, G, G).

    Depth is infinite on the background. `focal` (B,) and `ray` (B, 2) are the scene's.
    """
    size, device = depth_mm.shape[1], depth_mm.device
    covered = depth_mm.isfinite()
    nearest = depth_mm.amin((1, 2), keepdim=True)
    # A depth behind the whole figure, so that edges in front of the background stay light.
    farthest = torch.where(covered, depth_mm, nearest).amax((1, 2), keepdim=True)
    depth = torch.where(covered, depth_mm, farthest)
    px_per_mm = focal * size / 2 / depth.mean((1, 2))
    openness = torch.ones_like(depth)
    for reach_mm in _HOLLOWS_MM:
        around = blurred(depth[:, None], reach_mm * px_per_mm)[:, 0]
        openness = openness * torch.exp(-_HOLLOW_SHARE * ((depth - around) / reach_mm).clamp(0, 1.5))

    centre = (torch.arange(size, device=device) * 2 + 1) / size - 1
    focal = focal[:, None, None]
    away_x, away_y = ray[:, :1, None], ray[:, 1:, None]
    position_x = (centre[None, None] / focal + away_x) * depth
    position_y = (centre[None, :, None] / focal + away_y) * depth
    blocked = torch.zeros_like(depth)
    scene = torch.where(covered, depth_mm, 1e6)[:, None]
    for step in _SHADOW_STEPS_MM:
        x, y, z = (step * light.to_lamp[:, k, None, None] for k in range(3))
        way = (depth + z).clamp(min=1.0)
        at_x, at_y = (position_x + x) / way - away_x, (position_y + y) / way - away_y
        at = torch.stack([at_x * focal, at_y * focal], -1)
        scene_depth_mm = F.grid_sample(scene, at, mode="nearest", padding_mode="border", align_corners=False)[
            :, 0
        ]
        behind = way - scene_depth_mm
        blocked = torch.maximum(blocked, ((behind - 1.0) / 2.5).clamp(0, 1) * (behind < _THICKNESS_MM))
    soft = F.avg_pool2d(F.pad(blocked[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    lit = 1 - light.shadow[:, None, None] * soft
    return torch.stack([openness, lit], 1)


def blurred(planes: Tensor, sigma_px: Tensor) -> Tensor:
    """Blur each image (B, C, H, W) by a Gaussian of its own width (B,), cut off at 9 pixels."""
    reach = 9
    taps = torch.arange(-reach, reach + 1, device=planes.device)
    kernel = torch.exp(-0.5 * (taps / sigma_px.clamp(0.05, 4.0)[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    count, channels, height, width = planes.shape
    weight = kernel.repeat_interleave(channels, 0)
    rows = F.pad(planes, (reach, reach, reach, reach), mode="replicate").view(
        1, -1, height + 2 * reach, width + 2 * reach
    )
    rows = F.conv2d(rows, weight[:, None, None], groups=count * channels)
    return F.conv2d(rows, weight[:, None, :, None], groups=count * channels).view(
        count, channels, height, width
    )


def contact_shadow(cover: Tensor, light: Light, draws: Draws) -> Tensor:
    """Return the light on the background (B, 1, S, S); the figure shadows it, most where it is close."""
    size = cover.shape[-1]
    strength = draws.uniform(1, 1, 1, low=-0.5, high=0.75).clamp(min=0)
    distance = draws.uniform(1, low=0.02, high=0.3)
    shift = distance * light.to_lamp[:, :2]
    side = min(48, size)
    centre = (torch.arange(side, device=cover.device) * 2 + 1) / side - 1
    grid = torch.stack(torch.meshgrid(centre, centre, indexing="xy"), -1) + shift[:, None, None]
    small = F.grid_sample(cover, grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(small, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    return 1 - strength * F.interpolate(soft, size=(size, size), mode="bilinear", align_corners=False)
