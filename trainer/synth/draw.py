"""Scenes to photos: skin, cloth, light, background and a camera's own faults."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from annotator.hand.model import HandModel
from annotator.render import interpolate, rasterize, visible_vertices
from annotator.render.shading import draw
from trainer.synth.background import backgrounds
from trainer.synth.colour import lab_to_linear, stored
from trainer.synth.forearm import RINGS_MM, SLEEVE_MM, ForearmMesh, forearms
from trainer.synth.scene import Scene
from trainer.synth.skin import SkinRegions, skin_colours

Floats = NDArray[np.floating]

#: Lengths in pixels are meant for photos of this side.
PLAIN_PX = 256

#: What is seen and what lies in hollows is found at this size, whatever the photo's.
SEEN_PX = 256

# Light is lost where a surface lies behind the mean of what surrounds it this far.
_HOLLOWS_MM, _HOLLOW_SHARE = (4.0, 10.0), 0.4

# The hand's mean luminance comes this near, as a power, to a well exposed one.
_EXPOSED, _EXPOSURE_POWER = 0.24, 0.42


@dataclass(frozen=True, eq=False)
class Figure:
    """A hand model with its forearm: what all photos share."""

    vertex_count: int  # V, the hand's; the forearm's follow
    faces: Tensor  # (F, 3) hand, bare forearm, sleeve
    positions_mm: Floats  # (N, 3) of hand and bare forearm at rest
    regions: SkinRegions  # of the same N
    sleeve_count: int  # vertices of a sleeve, the last ones

    @staticmethod
    def of(hand: HandModel, arm: ForearmMesh) -> Figure:
        """The figure of a hand model."""
        template = torch.from_numpy(hand.v_template) * 1000
        bare = forearms(template[None, arm.edge], torch.zeros(1, 3), torch.tensor([torch.inf]))[0]
        sleeve_count = len(SLEEVE_MM) * len(arm.edge)
        faces = torch.cat([torch.from_numpy(hand.faces).long(), arm.skin_faces, arm.sleeve_faces])
        return Figure(
            hand.vertex_count,
            faces,
            torch.cat([template, bare[:-sleeve_count]]).double().numpy(),
            SkinRegions.of(hand).with_forearm(arm.edge.numpy(), len(RINGS_MM)),
            sleeve_count,
        )


@dataclass(frozen=True, eq=False)
class Seen:
    """What the camera sees of a scene, before any light."""

    vertices: Tensor  # (B, V) bool: hidden neither by the hand nor by forearm or sleeve
    openness: Tensor  # (B, SEEN_PX, SEEN_PX, 1) 0..1: little where the surface lies behind what surrounds it


def see(figure: Figure, scene: Scene) -> Seen:
    """Visible vertices, and light lost in hollows: behind bent fingers, between them, on the palm of a fist."""
    points = scene.project(torch.cat([scene.vertices_mm, scene.forearm_mm], 1))
    fragments = rasterize(points, figure.faces, SEEN_PX)
    vertices = visible_vertices(fragments.face_ids, figure.faces, points.shape[1])[:, : figure.vertex_count]
    covered = (fragments.face_ids >= 0)[..., None]
    depth_mm = interpolate(fragments, points[..., 2:], figure.faces) / scene.scale_per_mm[:, None, None, None]
    # Behind all of the figure, so that edges before the background stay light.
    depth_mm = depth_mm.where(covered, depth_mm.amax((1, 2, 3), keepdim=True))
    openness = torch.ones_like(depth_mm)
    coarse_mm = _resized(depth_mm, SEEN_PX // 2)
    for reach_mm in _HOLLOWS_MM:
        reach_px = (reach_mm * scene.scale_per_mm * SEEN_PX / 4).numpy()
        around_mm = _resized(_blurred(coarse_mm, reach_px), SEEN_PX)
        openness = openness * torch.exp(-_HOLLOW_SHARE * ((depth_mm - around_mm) / reach_mm).clamp(0, 1.5))
    return Seen(vertices, openness.where(covered, 1))


def draw_photos(
    figure: Figure, scene: Scene, seen: Seen, size_px: int, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Photos (B, size_px, size_px, 3) uint8, and the hands' unlit skin (B, V, 3) uint8, both sRGB."""
    count = len(scene)
    skin = skin_colours(figure.regions, generator.uniform(size=count), figure.positions_mm, generator)
    cloth = _cloth(figure.sleeve_count, count, generator)
    colours = torch.from_numpy(np.concatenate([skin, cloth], 1)).float()
    points = scene.project(torch.cat([scene.vertices_mm, scene.forearm_mm], 1))
    lamp = _lamps(count, generator)
    drawn = draw(points, figure.faces, colours, size_px, light=lamp)
    cover = drawn[..., 3:]
    grain = 1 + 0.025 * _grain(count, size_px, generator)
    light = drawn[..., :3] * _resized(seen.openness, size_px) * grain
    behind = backgrounds(count, size_px, generator) * _contact_shadow(cover, lamp, generator)
    photo = light * cover + behind * (1 - cover)
    unlit = (stored(colours[:, : figure.vertex_count]) * 255).round().byte()
    return _taken(photo, light, cover, size_px, generator), unlit


def _cloth(vertex_count: int, count: int, generator: np.random.Generator) -> Floats:
    lab = generator.normal(size=(count, 1, 3)) * [0.0, 12.0, 14.0]
    lab[..., 0] = generator.uniform(15, 90, (count, 1))
    return np.broadcast_to(lab_to_linear(lab), (count, vertex_count, 3))


def _lamps(count: int, generator: np.random.Generator) -> Tensor:
    """Towards the lamp (count, 3), camera axes: more from above, always from the camera's side."""
    light = generator.normal(size=(count, 3)) * [0.8, 0.6, 0.5] + [0.0, -0.6, 0.0]
    light[:, 2] = -np.abs(light[:, 2]) - 0.25
    return torch.from_numpy(light).float()


def _grain(count: int, size_px: int, generator: np.random.Generator) -> Tensor:
    """The skin's fine unevenness, (count, size_px, size_px, 1), about unit variance."""
    total = torch.zeros(count, size_px, size_px, 1)
    for cells in (48, 110):
        noise = torch.from_numpy(generator.standard_normal((count, cells, cells, 1), np.float32))
        total += _resized(noise, size_px)
    return total


def _contact_shadow(cover: Tensor, lamp: Tensor, generator: np.random.Generator) -> Tensor:
    """Light that reaches the background (B, H, W, 1): the hand takes some of it, more where it lies close."""
    count, size_px = cover.shape[:2]
    strength = torch.from_numpy(generator.uniform(-0.4, 0.75, (count, 1, 1, 1)).clip(0)).float()
    distance = torch.from_numpy(generator.uniform(0.02, 0.25, (count, 1))).float()
    shift = distance * F.normalize(lamp, dim=1)[:, :2]
    grid = F.affine_grid(
        torch.cat([torch.eye(2).expand(count, 2, 2), shift[..., None]], 2),
        [count, 1, 64, 64],
        align_corners=False,
    )
    small = F.grid_sample(cover.permute(0, 3, 1, 2), grid, padding_mode="border", align_corners=False)
    soft = F.avg_pool2d(F.pad(small, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
    return 1 - strength * _resized(soft.permute(0, 2, 3, 1), size_px)


def _taken(
    photo: Tensor, light: Tensor, cover: Tensor, size_px: int, generator: np.random.Generator
) -> Tensor:
    """Exposure, white balance, blur and noise of a camera: linear light to uint8 sRGB."""
    count = len(photo)

    def drawn(values: Floats) -> Tensor:
        return torch.from_numpy(values).float().view(count, 1, 1, -1)

    brightness = (light.mean(-1, keepdim=True) * cover).sum((1, 2), keepdim=True) / cover.sum(
        (1, 2), keepdim=True
    )
    gain = (_EXPOSED / brightness) ** _EXPOSURE_POWER * drawn(np.exp(generator.normal(0, 0.2, count)))
    balance = drawn(np.exp(generator.normal(size=(count, 3)) * [0.04, 0.015, 0.05] + [0.03, 0.0, -0.02]))
    sharpness_px = generator.uniform(0.3, 0.9, count) * size_px / PLAIN_PX
    sensed = _blurred(photo * gain * balance, sharpness_px)
    noise = torch.from_numpy(generator.standard_normal(photo.shape, np.float32))
    noise = noise * drawn(generator.uniform(0.003, 0.018, count))
    return ((stored(sensed.clamp(0, 1)) + noise).clamp(0, 1) * 255).round().byte()


def _resized(images: Tensor, size_px: int) -> Tensor:
    """Images (B, H, W, C) to (B, size_px, size_px, C)."""
    planes = images.permute(0, 3, 1, 2)
    return F.interpolate(planes, size=(size_px, size_px), mode="bilinear", align_corners=False).permute(
        0, 2, 3, 1
    )


def _blurred(images: Tensor, sigma_px: Floats) -> Tensor:
    """Each image (B, H, W, C) under a Gaussian of its own width (B,)."""
    reach = int(np.ceil(2.5 * sigma_px.max()))
    taps = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (taps / torch.from_numpy(sigma_px).float()[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[..., None, None, None]
    planes = images.permute(0, 3, 1, 2)
    for axis in (2, 3):
        size = planes.shape[axis]
        padded = F.pad(planes, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="replicate")
        planes = torch.zeros_like(planes)
        for k in range(2 * reach + 1):
            planes = planes.addcmul_(padded.narrow(axis, k, size), kernel[:, k])
    return planes.permute(0, 2, 3, 1)
