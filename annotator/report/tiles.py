"""Draw pictures of one label: the crop, the mesh over it, its uncertainty, its texture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from annotator.coordinates import CropFrame, project_weak
from annotator.errors import UserError
from annotator.photos.cut import cut
from annotator.photos.errors import PhotoError
from annotator.render.shading import draw
from annotator.render.std_colours import std_colours
from annotator.rotations import rotvec_to_rotmat
from annotator.sources.read import photo_at

Picture = NDArray[np.uint8]

SKIN = (0.86, 0.66, 0.56)
PAPER = 245  # grey behind meshes without a photo


def crop_points(label: Mapping[str, Any]) -> torch.Tensor:
    """Return the label's vertices in crop coordinates (V, 3), projected by its weak-perspective camera."""
    camera = label["camera"]
    rotation = rotvec_to_rotmat(torch.tensor(camera["rotation"], dtype=torch.float32))
    vertices = torch.from_numpy(_rows(label["vertices_mm"]))
    scale = torch.tensor([camera["scale"]], dtype=torch.float32)
    translation = torch.tensor(camera["translation"], dtype=torch.float32)
    return project_weak(vertices[None], scale, rotation[None], translation[None])[0]


def photo_tile(label: Mapping[str, Any], size_px: int) -> Picture | None:
    """Return the network's crop of the photo (size_px, size_px, 3); None if the photo is missing."""
    try:
        photo = photo_at(label["image_uri"], label["frame_index"])
    except (PhotoError, UserError, OSError):  # the last two: from stores, and for videos without PyAV
        return None
    x0, y0, x1, y1 = label["crop_xyxy"]
    frame = CropFrame(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.float64((x1 - x0) / 2), np.bool_(False))
    return cut(photo.pixels, frame, size_px, photo.width)


def mesh_tiles(
    label: Mapping[str, Any], faces: NDArray[np.int64], size_px: int, std_range_mm: tuple[float, float]
) -> dict[str, np.ndarray]:
    """Draw the label's mesh as RGBA in 0..1 (size_px, size_px, 4): plain, uncertainty, and texture if it has one."""
    # A left hand is a mirrored right one: reverse its triangles, so that they face outwards.
    winding = torch.from_numpy(faces if label["is_right"] else faces[:, ::-1].copy())
    std_mm = np.linalg.norm(_rows(label["vertices_std_mm"]), axis=-1)
    colours = {
        "plain": np.tile(np.array(SKIN, np.float32), (len(std_mm), 1)),
        "uncertainty": std_colours(std_mm, *std_range_mm),
    }
    if label.get("vertex_rgb") is not None:  # --columns mesh has no such column
        colours["texture"] = _rows(label["vertex_rgb"]) / 255
    points = crop_points(label)[None].expand(len(colours), -1, -1)
    drawn = draw(points, winding, torch.from_numpy(np.stack(list(colours.values()))).float(), size_px)
    return dict(zip(colours, drawn.numpy(), strict=True))


def hand_tiles(
    label: Mapping[str, Any], faces: NDArray[np.int64], size_px: int, std_range_mm: tuple[float, float]
) -> dict[str, Picture]:
    """Return four pictures (size_px, size_px, 3) of a label: photo, overlay, uncertainty, texture."""
    return on_paper(photo_tile(label, size_px), mesh_tiles(label, faces, size_px, std_range_mm))


def on_paper(photo: Picture | None, meshes: Mapping[str, np.ndarray]) -> dict[str, Picture]:
    """Return the four pictures on a grey background, which replaces a missing photo or texture."""
    size_px = len(meshes["plain"])
    paper = np.full((size_px, size_px, 3), PAPER, np.uint8)
    photo = paper if photo is None else photo
    return {
        "photo": photo,
        "overlay": _over(meshes["plain"], photo, strength=0.75),
        "uncertainty": _over(meshes["uncertainty"], paper),
        "texture": _over(meshes["texture"], paper) if "texture" in meshes else paper,
    }


def _over(rgba: np.ndarray, background: Picture, strength: float = 1.0) -> Picture:
    alpha = rgba[..., 3:] * strength
    mixed = rgba[..., :3] * 255 * alpha + background * (1 - alpha)
    return mixed.round().clip(0, 255).astype(np.uint8)


def _rows(nested: Any) -> np.ndarray:
    return np.stack(list(nested)).astype(np.float32)


def contact_sheet(rows: list[list[Picture]], gap_px: int = 6) -> Image.Image:
    """Arrange pictures of equal size in a grid, row by row, on grey."""
    size = rows[0][0].shape[0]
    step = size + gap_px
    width = max(map(len, rows))
    sheet = Image.new("RGB", (width * step + gap_px, len(rows) * step + gap_px), (PAPER,) * 3)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(Image.fromarray(picture), (gap_px + x * step, gap_px + y * step))
    return sheet
