"""Predict labels from crops in batches: the network, samples, back to the photo; without shards or Ray."""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import torch

from annotator.errors import UserError
from annotator.labels.arrays import joined_columns
from annotator.labels.finite import rows_of
from annotator.labels.hand_length import hand_lengths_mm
from annotator.labels.label import Label
from annotator.labels.schema import Columns, check_columns
from annotator.model.amvur import Gaussian
from annotator.model.checkpoint import Checkpoint, load_checkpoint
from annotator.model.network import Prediction, images_of
from annotator.model.samples import MeshSampler, keyed_noise
from annotator.model.sides import features_and_sides, mirror
from annotator.photos.crops import Crops, Side
from annotator.predicted_columns import predicted_columns, sample_columns
from annotator.runtime.device import device_of, numpy_of
from annotator.runtime.precision import CPU_BATCH, Precision, autocast
from annotator.sources.entry import Camera
from annotator.sources.given_photos import crops_of_photos

#: Batch sizes to try on a GPU, and the minimum speed-up that justifies the next one's memory.
_GPU_BATCHES, _MIN_SPEED_UP = (32, 64, 128, 256, 512, 1024), 1.05


@dataclass
class Predictor:
    """A checkpoint that labels crops, in batches, on one device."""

    checkpoint: Checkpoint
    device: torch.device
    batch_size: int = CPU_BATCH
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        # A copy: the checkpoint's network keeps its saved weights.
        self.network = copy.deepcopy(self.checkpoint.network).eval()
        self.network.fold_normalisation()
        if self.precision == "int8":
            self._check_int8()
        if self.device.type == "cpu" and self.precision in ("float32", "int8"):
            from annotator.model.compiled import compile_backbones  # not needed on GPUs

            ranges = self.checkpoint.info.ranges if self.precision == "int8" else None
            compile_backbones(self.network, ranges)
        self.network.to(self.device)

    def _check_int8(self) -> None:
        """Raise a UserError if int8 is not for this device or checkpoint."""
        if self.device.type != "cpu":
            raise UserError("precision int8 is for CPUs: use float16 on a GPU")
        if not torch.cpu._is_vnni_supported():
            # Their sums of products overflow 16 bits, so that labels would depend on the machine.
            raise UserError("precision int8 needs a CPU with VNNI: leave it out")
        if not self.checkpoint.info.ranges:
            raise UserError(
                "this checkpoint has no ranges for int8: use the shipped `default`, or leave precision out"
            )

    @torch.inference_mode()
    def warm_up(self, columns: Columns = "all") -> None:
        """Run one batch of zeros, to allocate memory and choose kernels before the first photo."""
        cut_px = self.checkpoint.cut_px
        images = torch.zeros(self.batch_size, 3, cut_px, cut_px, device=self.device)
        with autocast(self.device, self.precision):
            features: Any = self.network.extract(images)
        self.network.hands(images, features, columns)

    @torch.inference_mode()
    def predict_crops(
        self, crops: Crops, side: Side = "auto", samples: int = 0, columns: Columns = "all"
    ) -> dict[str, Any]:
        """Return label columns (`labels/schema.py`) of n crops: name to array (n, ...).

        With `samples`, also `vertices_samples_mm` (n, samples, V, 3), hands drawn from q(V | I) by `model/samples.py`,
        and `joints3d_samples_mm` (n, samples, 21, 3), R times these. The draws of a row are keyed by its crop's pixels.
        They do not depend on other rows or the batch size, and more samples extend fewer.

        `columns`: `mesh` leaves out the texture, `joints` the mesh too; neither is then computed.
        """
        check_columns(columns, samples)
        if samples < 0:
            raise UserError(f"samples is {samples}: give 0 or more")
        if side not in get_args(Side):
            raise UserError(f"side is {side!r}, may be {', '.join(get_args(Side))}")
        parts: list[dict[str, Any]] = []
        start = 0
        while start < len(crops):
            try:
                parts.append(
                    self._predict_batch(crops[start : start + self.batch_size], side, samples, columns)
                )
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self._halve_batch()
            else:
                start += len(parts[-1]["is_right"])
        return joined_columns(parts)

    def _halve_batch(self) -> None:
        self.batch_size = max(1, self.batch_size // 2)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def find_batch_size(self) -> None:
        """Choose the smallest batch size beyond which a GPU is hardly faster or runs out of memory."""
        best = 0.0
        for size in _GPU_BATCHES:
            before, self.batch_size = self.batch_size, size
            try:
                rate = size / self._seconds_per_batch()
            except torch.OutOfMemoryError:
                self.batch_size = size
                self._halve_batch()
                return
            if rate < best * _MIN_SPEED_UP:
                self.batch_size = before
                return
            best = rate

    def photos_per_s(self, columns: Columns = "all") -> float:
        """Measure the network's photos/s, on zeros."""
        return self.batch_size / self._seconds_per_batch(columns)

    def _seconds_per_batch(self, columns: Columns = "all", repeat: int = 3) -> float:
        self.warm_up(columns)
        self._synchronise()
        began = time.perf_counter()
        for _ in range(repeat):
            self.warm_up(columns)
        self._synchronise()
        return (time.perf_counter() - began) / repeat

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def predict(
        self,
        images: Sequence[np.ndarray | str | Path],
        samples: int = 0,
        side: Side = "auto",
        boxes_xyxy: Sequence[Sequence[float]] | None = None,
        cameras: Sequence[Camera | None] | None = None,
    ) -> list[Label]:
        """Label photos: arrays (H, W, 3) uint8 RGB, or paths. Return one label per photo.

        Args:
            images: photos, each showing one hand.
            samples: hands to draw from q(V | I) besides its mean, see `predict_crops`.
            side: of the hands; `auto` uses the network's prediction.
            boxes_xyxy: the hand's box in each photo, in pixels. Default: the photo itself is the crop.
            cameras: of each photo; None where it is not known. Default: from EXIF, else assumed.

        Raises:
            annotator.PhotoError: a photo that can't be read.
            UserError: an array that is not (H, W, 3) uint8, or an impossible camera.
        """
        checkpoint = self.checkpoint
        cut = crops_of_photos(images, checkpoint.cut_px, checkpoint.cut_margin, boxes_xyxy, cameras)
        if not cut:
            return []
        columns = self.predict_crops(Crops.stack(cut), side, samples)
        return [cast(Label, rows_of(columns, index)) for index in range(len(cut))]

    def _predict_batch(self, crops: Crops, side: Side, samples: int, wanted: Columns) -> dict[str, Any]:
        """Predict crops, with left hands mirrored, and transform results back to the photo's frame."""
        # Unknown sides are NaN, so the comparison is false.
        mirrored = crops.right_score < 0.5 if side == "auto" else np.full(len(crops), side == "left")
        images = images_of(crops.pixels, self.device)
        mirror(images, np.flatnonzero(mirrored))
        detector_joints2d = crops.detector_joints2d * np.where(mirrored[:, None, None], (-1, 1), 1)
        listed = crops.right_score if side == "auto" else None
        features, right = features_and_sides(self.network, images, listed, detector_joints2d, self.precision)
        if right is not None:
            mirrored = right < 0.5
        prediction = self.network.hands(images, features, wanted)
        columns = predicted_columns(prediction, crops, mirrored, self.checkpoint)
        columns["side_score"] = None if right is None else np.maximum(right, 1 - right)
        if samples:
            drawn = self._draw(prediction, crops, samples)
            # Samples scale with a given length, as the mean does.
            size = columns["hand_length_mm"] / hand_lengths_mm(numpy_of(prediction.joints3d.mean_mm))
            size = np.where(np.isnan(crops.hand_length_mm), 1, size).astype(np.float32)
            columns |= sample_columns(drawn, self.network.R @ drawn, crops, mirrored, size)
        return columns

    @cached_property
    def _sampler(self) -> MeshSampler:
        return MeshSampler(self.checkpoint.hand).to(self.device)

    def _draw(self, prediction: Prediction, crops: Crops, count: int) -> torch.Tensor:
        """Draw meshes (B, count, V, 3) of right hands, crop axes, with the calibrated std."""
        calibration = self.checkpoint.info.calibration
        vertices, joints3d = prediction.vertices, prediction.joints3d
        vertices_std_mm = torch.from_numpy(calibration.vertices(numpy_of(vertices.std_mm)))
        joints3d_std_mm = torch.from_numpy(calibration.joints3d(numpy_of(joints3d.std_mm)))
        noise = keyed_noise(
            [zlib.crc32(pixels.tobytes()) for pixels in crops.pixels], count, self._sampler.parameter_count
        )
        drawn: torch.Tensor = self._sampler(
            Gaussian(vertices.mean_mm, vertices_std_mm.to(self.device)),
            Gaussian(joints3d.mean_mm, joints3d_std_mm.to(self.device)),
            noise.to(self.device),
        )
        return drawn


def load(
    checkpoint: str = "default",
    hand: str | None = None,
    device: str | None = None,
    precision: Precision = "float32",
) -> Predictor:
    """Load a checkpoint and return its predictor.

    Args:
        checkpoint: `default`, `fast`, `untrained:NAME`, or the path or URL of a `.safetensors` checkpoint.
        hand: `mano:PATH`, required for checkpoints made with MANO.
        device: `cpu`, `cuda`, `cuda:1`, ...; default a GPU if available.
        precision: of the backbone. `float16` is for GPUs; few CPUs are faster with it. `int8` is for CPUs.

    Raises:
        UserError: the checkpoint is missing or damaged, the hand model is wrong, or the device does not exist.
    """
    if precision not in get_args(Precision):
        raise UserError(f"precision is {precision!r}, may be {', '.join(get_args(Precision))}")
    return Predictor(load_checkpoint(checkpoint, hand), device_of(device), precision=precision)
