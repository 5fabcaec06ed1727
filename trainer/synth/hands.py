"""Synthetic hands: an endless in-memory stream of rendered scenes with all labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from annotator.coordinates import crop_from_camera
from annotator.hand.model import HandModel
from annotator.render import nearest_faces, visible_vertices
from trainer.batch import Batch
from trainer.keyed_random import Draws, keys
from trainer.synth import camera, occluders
from trainer.synth.background import backgrounds
from trainer.synth.colour import lab_to_linear, stored
from trainer.synth.figure import Figure
from trainer.synth.light import Light, contact_shadow, reached
from trainer.synth.paint import Cloth, painted
from trainer.synth.patterns import patterns
from trainer.synth.pool import Pool
from trainer.synth.scene import Scene, Scenes
from trainer.synth.skin import TEXELS, SkinLook, skin_map
from trainer.synth.surface_samples import Samples, samples
from trainer.synth.visible_joints import VisibleJoints

# Random streams per stage of a photo, so that more draws in one stage do not change others.
_SCENE, _SKIN, _CLOTH, _LIGHT, _BACKGROUND, _FLAT, _CAMERA, _EMPTY = range(8)

#: Image size for the visibility of vertices, for photos of any size.
VISIBILITY_RASTER_PX = 256


@dataclass(frozen=True, eq=False)
class DrawnPhotos:
    """B photos of right hands and their true labels."""

    scene: Scene
    image: Tensor  # (B, 3, S, S) uint8
    hand_mask: Tensor  # (B, 1, S, S) uint8, 255 where the hand is visible
    covered: Tensor  # (B, 1, S, S) 0..1, cover by flat occluders or by the outside of the photo
    skin_lab: Tensor  # (B, V, 3) the hand's colours without light, CIE Lab

    @property
    def vertex_rgb(self) -> Tensor:
        """Return unlit colours (B, V, 3) uint8 sRGB."""
        return (stored(lab_to_linear(self.skin_lab)) * 255).round().byte()


class SyntheticHands:
    """An endless source: example i depends only on the seed and i."""

    def __init__(self, hand: HandModel, size_px: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.size_px, self.seed = size_px, seed
        self.device = torch.device(device)
        self.figure = Figure.of(hand, self.device)
        self.scenes = Scenes(hand, self.figure, seed, self.device)
        self.skin_map = skin_map(hand).to(self.device)
        self.vertex_texel = _texel_of_vertices(self.figure.faces, hand.vertex_count)
        self.joint_visibility = VisibleJoints(hand, self.device)
        self.patterns = patterns(seed, self.device)
        self.noise = camera.noise_bank(seed, self.device)

    def batch(self, indices: Tensor, empty: float = 0.0) -> Batch:
        """Return examples (n,) as a batch with all targets; `key` holds the keys of their numbers.

        A share `empty` of them shows a room without a hand.
        """
        has_hand = ~Draws(keys(self.seed, _EMPTY, indices.to(self.device))).chance(empty)
        photos = self.photos(indices, has_hand)
        count, scene = len(photos.image), photos.scene
        axes, hand_factor = scene.axes(), has_hand[:, None, None]

        def known(*shape: int) -> Tensor:
            return has_hand.view(-1, *[1] * len(shape)).expand(-1, *shape).clone()

        return Batch(
            key=keys(self.seed, indices.to(self.device)),
            image=photos.image,
            has_hand=has_hand,
            joints2d=scene.project(scene.joints3d_mm) * hand_factor,
            joints2d_std=torch.zeros(count, 21, device=self.device),
            has_joints2d=known(21),
            joints3d_mm=crop_from_camera(scene.joints3d_mm, axes) * hand_factor,
            joints3d_std_mm=torch.zeros(count, 21, 3, device=self.device),
            has_joints3d=known(),
            vertices_mm=crop_from_camera(scene.vertices_mm, axes) * hand_factor,
            vertices_std_mm=torch.zeros_like(scene.vertices_mm),
            has_vertices=known(),
            guess3d_mm=torch.zeros(count, 21, 3, device=self.device),
            has_guess3d=torch.zeros_like(has_hand),
            hand_mask=photos.hand_mask,
            has_hand_mask=known(),
            joint_visible=self.visible_joints(photos, self.visible_vertices(photos)) & hand_factor[..., 0],
            has_joint_visible=known(21),
            ray=scene.ray,
            half_side_tan=1 / scene.focal,
            features=torch.zeros(count, 0, dtype=torch.float16, device=self.device),
        )

    @torch.no_grad()
    def photos(self, indices: Tensor, has_hand: Tensor | None = None) -> DrawnPhotos:
        """Draw photos (n,) with their labels, without hand and arm where `has_hand` (n,) is false."""
        indices = indices.to(self.device)

        def draws(stage: int) -> Draws:
            return Pool(keys(self.seed, stage, indices))

        scene = self.scenes.sample(draws(_SCENE))
        look, light = SkinLook(draws(_SKIN)), Light(draws(_LIGHT))
        figure, seen = self.drawn(scene, look, light, draws(_CLOTH))
        cover, hand_cover = seen.cover, seen.hand_cover
        if has_hand is not None:
            cover, hand_cover = (share * has_hand.view(-1, 1, 1, 1) for share in (cover, hand_cover))
        behind_draws = draws(_BACKGROUND)
        # Room and figure have different light.
        room = (
            contact_shadow(cover, light, behind_draws)
            * behind_draws.uniform(1, 1, 1, low=-0.9, high=0.4).exp()
        )
        owner = lab_to_linear(look.base_lab)
        behind = backgrounds(self.size_px, self.patterns, owner, room, behind_draws)
        photo = behind + (figure - behind) * cover
        brightness = figure.mean(1).sum((1, 2)) / (seen.cover > 0).sum((1, 2, 3)).clamp(min=1)
        photo, covered = occluders.cover_with_objects(photo, self.patterns, draws(_FLAT))
        shot = draws(_CAMERA)
        photo = camera.blurred_by_lens(camera.exposed(photo, brightness, shot), shot)
        image = (camera.taken(photo, self.noise, shot) * 255).round().byte()
        image, outside = occluders.beyond_the_photo(image, scene, shot)
        covered = torch.where(outside, 1.0, covered)
        channels = self.skin_map[self.vertex_texel]
        skin_lab = look.base_lab[:, None] + channels @ look.mix
        return DrawnPhotos(scene, image, (hand_cover * (1 - covered) > 0.5).byte() * 255, covered, skin_lab)

    @torch.no_grad()
    def visible_vertices(self, photos: DrawnPhotos) -> Tensor:
        """Return (B, V) bool: vertices that neither hand, object nor edge hides."""
        points = photos.scene.raster_points()
        face_ids = nearest_faces(points, self.figure.faces, VISIBILITY_RASTER_PX)
        seen = visible_vertices(face_ids, self.figure.faces, points.shape[1])[:, : self.figure.vertex_count]
        at = points[:, None, : self.figure.vertex_count, :2]
        covered = F.grid_sample(
            photos.covered, at, mode="nearest", padding_mode="border", align_corners=False
        )
        return seen & (covered[:, 0, 0] < 0.5)

    def visible_joints(self, photos: DrawnPhotos, visible_vertices: Tensor) -> Tensor:
        """Return (B, 21) bool: the visible joints, given the visible vertices (B, V)."""
        scene = photos.scene
        return self.joint_visibility.visible(scene.vertices_mm, scene.cam_t_mm, visible_vertices)

    def drawn(self, scene: Scene, look: SkinLook, light: Light, draws: Draws) -> tuple[Tensor, Samples]:
        """Return lit figures, linear RGB (B, 3, S, S), zero elsewhere, and the visible samples."""
        seen = samples(self.figure, scene, self.size_px)
        shares = reached(seen.depth_mm[:, ::2, ::2], scene.focal, scene.ray, light)
        size = (self.size_px, self.size_px)
        shares = F.interpolate(shares, size=size, mode="bilinear", align_corners=False)
        open_, lit = (shares[:, k].reshape(-1).index_select(0, seen.pixel) for k in range(2))
        cloth = Cloth(scene, look, draws)
        albedo, sheen = painted(self.figure, self.skin_map, self.patterns, look, cloth, seen)
        rgb = light.shade(albedo, sheen, open_, lit, seen)
        planes = rgb.new_zeros(3, len(scene) * self.size_px**2).index_copy(1, seen.pixel, rgb)
        return planes.view(3, len(scene), *size).transpose(0, 1).contiguous(), seen


def _texel_of_vertices(faces: Tensor, vertex_count: int) -> Tensor:
    """Return the nearest texel per vertex (V,), in any of its faces."""
    texel = torch.zeros(vertex_count, dtype=torch.int64, device=faces.device)
    last = TEXELS - 1
    for corner, cell in enumerate(((last, 0), (0, last), (0, 0))):
        rows = (faces[:, corner] < vertex_count).nonzero().squeeze(1)
        texel[faces[rows, corner]] = (rows * TEXELS + cell[0]) * TEXELS + cell[1]
    return texel
