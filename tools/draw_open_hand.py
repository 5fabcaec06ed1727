"""Draw the open hand for the docs: `python tools/draw_open_hand.py [OUT.png]`.

The sheet shows six sides at rest, gestures, and both ends (-2.5 and 2.5) of each shape direction.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import roma
import torch
from PIL import Image, ImageDraw

from annotator.hand import anatomy, gestures, load_hand
from annotator.hand.layer import HandLayer
from annotator.render.shading import draw

SIZE_PX, COLUMNS = 150, 10
SKIN = (0.87, 0.68, 0.58)
# Half the width of a picture, metres.
REACH_M = 0.135

# Rows are the camera's axes (right, down, forward) in the rest frame.
SIDES = {
    "palm": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "back": ((0, 0, -1), (1, 0, 0), (0, -1, 0)),
    "thumb side": ((0, 1, 0), (1, 0, 0), (0, 0, -1)),
    "little side": ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    "tips": ((0, 0, 1), (0, -1, 0), (1, 0, 0)),
    "wrist": ((0, 0, -1), (0, -1, 0), (-1, 0, 0)),
}
# Gestures are drawn from the palm's thumb side.
OBLIQUE = roma.rotvec_to_rotmat(torch.tensor([0.0, -0.7, 0.0])) @ torch.tensor(SIDES["palm"]).float()


def main(out: Path) -> None:
    """Draw the sheet and write it to `out`."""
    hand = load_hand("open")
    rest = anatomy.rest_joints(hand)
    names = [name for name in gestures.GESTURES if name != "three"]
    flat, mean, palm = np.zeros(45), np.zeros(10), torch.tensor(SIDES["palm"]).float()
    pictures: list[tuple[str, torch.Tensor, anatomy.Array, anatomy.Array]]
    pictures = [(side, torch.tensor(axes).float(), flat, mean) for side, axes in SIDES.items()]
    pictures += [(name, OBLIQUE, gestures.gesture_pose(rest, name), mean) for name in names]
    ends = [(direction, end) for direction in range(10) for end in (-2.5, 2.5)]
    pictures += [(f"beta {k}: {end:+}", palm, flat, end * np.eye(10)[k]) for k, end in ends]

    labels, cameras, poses, betas = zip(*pictures, strict=True)
    rotvecs = torch.from_numpy(np.concatenate([np.zeros((len(poses), 3)), np.stack(poses)], axis=1)).float()
    layer = HandLayer(hand)
    vertices, _ = layer.articulate(
        roma.rotvec_to_rotmat(rotvecs.reshape(-1, 16, 3)), torch.from_numpy(np.stack(betas)).float()
    )
    points = vertices @ torch.stack(cameras).mT / REACH_M
    points = points - (points.amax(dim=1, keepdim=True) + points.amin(dim=1, keepdim=True)) / 2
    images = draw(points, layer.faces, torch.tensor(SKIN).expand_as(points), SIZE_PX, supersample=3)

    sheet = Image.new("RGB", (COLUMNS * SIZE_PX, -(-len(images) // COLUMNS) * SIZE_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (label, image) in enumerate(zip(labels, images, strict=True)):
        corner = (k % COLUMNS * SIZE_PX, k // COLUMNS * SIZE_PX)
        tile = Image.fromarray((255 * image.clamp(0, 1)).round().byte().numpy(), "RGBA")
        sheet.paste(tile, corner, tile)
        pen.text((corner[0] + 4, corner[1] + 2), label.replace("_", " "), fill="black")
    sheet.save(out, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/images/open_hand.png"))
