"""The log of a training run: numbers as JSON lines and for TensorBoard, and pictures of predictions."""

from __future__ import annotations

import io
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from torch import Tensor

from annotator.hand.model import BONES
from annotator.model.network import Prediction
from annotator.render.shading import draw
from annotator.render.std_colours import std_colours
from annotator.report.tiles import SKIN, contact_sheet
from annotator.storage.disk_space import name_in_errors
from annotator.storage.files import (
    is_local,
    join,
    local_path,
    read_if_exists,
    write_atomic,
    write_in_place,
)
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.progress import TrainingProgress

#: Hands per picture, and the side of a tile.
SHOWN, TILE_PX = 8, 192

#: Interval in which TensorBoard sees new entries.
FLUSH_EVERY_S = 30.0

#: Range of the uncertainty colours.
STD_RANGE_MM = (2.0, 25.0)


class _Board:
    """TensorBoard's file of events, written in this thread.

    The writer thread of tensorboardX ends on a full disk, and its queue then blocks the training.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        """Open a new file; TensorBoard drops entries of other files from `purge_step` on."""
        folder.mkdir(parents=True, exist_ok=True)
        with name_in_errors(folder):
            self._writer = EventsWriter(str(folder / "events"))
        self._path = max(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        self._flushed_s = time.monotonic()
        self.write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, **event: Any) -> None:
        """Write an event, with the fields of TensorBoard's `Event`."""
        with name_in_errors(self._path):
            self._writer.write_event(Event(wall_time=time.time(), **event))
        if time.monotonic() > self._flushed_s + FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """Write buffered events to the disk."""
        with name_in_errors(self._path):
            self._writer.flush()
        self._flushed_s = time.monotonic()

    def close(self) -> None:
        """Flush and close the file."""
        with name_in_errors(self._path):
            self._writer.close()


class RunLog:
    """Write OUT/metrics.jsonl, OUT/tensorboard/ and OUT/pictures/; a remote OUT receives them at each `upload`."""

    def __init__(self, out: str, config: TrainConfig, step: int) -> None:
        """Open the log at the step where the run resumes, and drop entries of later steps, which will be repeated."""
        self.out, self.config = out, config
        # Removed when this process ends, even if the run does not finish.
        self._scratch = None if is_local(out) else tempfile.TemporaryDirectory(prefix="amvur-")
        self._uploaded: dict[Path, tuple[int, int]] = {}  # size and time of uploaded files
        self._folder = Path(self._scratch.name) if self._scratch else local_path(out)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._metrics = self._folder / "metrics.jsonl"
        if self._scratch and (earlier := read_if_exists(join(out, "metrics.jsonl"))):
            write_atomic(str(self._metrics), earlier)
        if self._metrics.exists():
            lines = [line for line in self._metrics.read_text().splitlines() if _step(line) <= step]
            write_atomic(str(self._metrics), "".join(f"{line}\n" for line in lines).encode())
        self._board = _Board(self._folder / "tensorboard", step + 1)

    def write(self, progress: TrainingProgress, gradient_norm: float) -> None:
        """Log the numbers of a step."""
        numbers = {f"loss/{name}": value for name, value in progress.losses.items()}
        numbers |= {
            "photos_per_s": progress.photos_per_s,
            "waiting": progress.waiting,
            "learning_rate": progress.learning_rate,
            "gradient_norm": gradient_norm,
        }
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._board.write(step=progress.step, summary=Summary(value=values))
        with name_in_errors(self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps({"step": progress.step, **numbers}) + "\n")

    def draw(self, step: int, images: Tensor, batch: Batch, prediction: Prediction, faces: Tensor) -> None:
        """Save OUT/pictures/step-N.png; per hand: photo, mesh over it, 2D joints (true green, predicted red), std."""
        sheet = picture(images, batch, prediction, faces)
        (self._folder / "pictures").mkdir(exist_ok=True)
        path = self._folder / "pictures" / f"step-{step:08d}.png"
        png = io.BytesIO()
        sheet.save(png, "PNG")
        write_in_place(path, png.getvalue())
        image = Summary.Image(
            height=sheet.height, width=sheet.width, colorspace=3, encoded_image_string=png.getvalue()
        )
        self._board.write(step=step, summary=Summary(value=[Summary.Value(tag="predictions", image=image)]))

    def upload(self) -> None:
        """Flush the log, and upload new or changed files if OUT is remote."""
        self._board.flush()
        if not self._scratch:
            return
        for path in filter(Path.is_file, self._folder.rglob("*")):
            state = (path.stat().st_size, path.stat().st_mtime_ns)
            if self._uploaded.get(path) != state:
                write_atomic(join(self.out, path.relative_to(self._folder).as_posix()), path.read_bytes())
                self._uploaded[path] = state

    def close(self) -> None:
        """Flush, upload and close the log."""
        self.upload()
        self._board.close()
        if self._scratch:
            self._scratch.cleanup()


def _step(line: str) -> int:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # cut off by a kill
        return 1 << 62


@torch.no_grad()
def picture(images: Tensor, batch: Batch, prediction: Prediction, faces: Tensor) -> Image.Image:
    """Return a contact sheet of the first hands of a batch (PIL image)."""
    count = min(SHOWN, len(images))
    vertices, camera = prediction.vertices, prediction.camera
    points = camera.project(vertices.mean_mm.float())[:count].cpu()
    std_mm = vertices.std_mm[:count].float().norm(dim=-1).cpu().numpy()
    skin = torch.tensor(SKIN).expand(count, points.shape[1], 3)
    std_rgb = torch.from_numpy(std_colours(std_mm, *STD_RANGE_MM)).float()
    mesh = draw(points, faces.cpu(), skin, TILE_PX).numpy()
    std_picture = draw(points, faces.cpu(), std_rgb, TILE_PX).numpy()
    photos = torch.nn.functional.interpolate(images[:count].float().cpu(), size=TILE_PX, mode="bilinear")
    photo = (photos.permute(0, 2, 3, 1).numpy() * 255).astype(np.uint8)
    rows = []
    for i in range(count):
        bones = Image.fromarray(photo[i])
        if bool(batch.has_joints2d[i].any()):
            draw_bones(bones, batch.joints2d[i].cpu().numpy(), (40, 200, 80))
        draw_bones(bones, prediction.joints2d[i].float().cpu().numpy(), (230, 60, 40))
        rows.append([photo[i], _over(mesh[i], photo[i]), np.asarray(bones), _over(std_picture[i], photo[i])])
    half = (count + 1) // 2
    return contact_sheet([a + b for a, b in zip(rows[:half], rows[half:] or rows[:half], strict=False)])


def draw_bones(image: Image.Image, joints2d: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Draw a hand's bones into a square crop; `joints2d` (21, 2) in crop coordinates, -1 to 1."""
    pen = ImageDraw.Draw(image)
    at_px = (joints2d + 1) / 2 * image.width
    for a, b in BONES:
        pen.line([*at_px[a], *at_px[b]], fill=colour, width=2)


def _over(rgba: np.ndarray, photo: np.ndarray) -> np.ndarray:
    alpha = rgba[..., 3:] * 0.8
    return (rgba[..., :3] * 255 * alpha + photo * (1 - alpha)).astype(np.uint8)
