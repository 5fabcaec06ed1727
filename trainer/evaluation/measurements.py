"""Per-photo errors of a network's predictions, in a few numbers each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from annotator.errors import UserError
from annotator.labels.hand_length import hand_lengths_mm
from annotator.model.network import Prediction
from annotator.quality import metrics
from annotator.quality.calibration import Calibration
from annotator.runtime.device import numpy_of
from trainer.batch import Batch

Floats = NDArray[np.floating]

#: Numbers per photo, as in `photos.parquet`; NaN where the target is unknown. Errors in millimetres are with aligned
#: wrists, `pa_` after Procrustes; 2D errors are shares of the crop's side.
PHOTO_COLUMNS = (
    "mpjpe_mm",
    "pa_mpjpe_mm",
    "scale_aligned_mpjpe_mm",
    "mpvpe_mm",
    "pa_mpvpe_mm",
    "vertices_auc",
    "pa_vertices_auc",
    "f5",
    "f15",
    "pa_f5",
    "pa_f15",
    "joints2d_error",
    "hand_length_mm",  # predicted: wrist to the middle finger's tip, along the bones
    "guess_pa_mpjpe_mm",  # distance from a detector's 3D joints
    "joint_std_mm",
    "max_joint_std_mm",
    "vertex_std_mm",
    "joints2d_std",
    "right_probability",
    "mirrored_right_probability",
    "hand_probability",  # of photos with a hand ...
    "empty_hand_probability",  # ... and without one: then nothing else is known
    "ssim",
    "psnr_db",
)

#: Numbers per joint of a photo: (21, ...), as above. 2D in crop half-sides.
_JOINT_COLUMNS = {
    "joints3d_error_mm": (21, 3),
    "joints3d_std_mm": (21, 3),
    "pa_joint_errors_mm": (21,),
    "scale_aligned_joint_errors_mm": (21,),
    "joints2d_errors": (21, 2),
    "joints2d_stds": (21, 2),
}

#: Numbers per joint (21,) of the photos alone whose truth is known for a joint: truth 0 or 1, and probability.
_VISIBILITY_COLUMNS = ("joint_visible", "joint_visible_score")

# Coverage of vertices uses this many per photo, of at most this many photos.
_VERTICES_PER_PHOTO, _VERTEX_PHOTOS = 24, 16384


@dataclass(frozen=True)
class StdAndError:
    """Predicted std and actual error of one kind, over the n photos with known truth."""

    title: str
    unit: str
    std: Floats  # (n,) mean over points of the norm of std
    error: Floats  # (n,) mean over points of the distance
    #: Std and signed error (m, points, axes) in crop axes of m of the photos, NaN where the truth is unknown; None
    #: after Procrustes, because std does not describe such an error.
    coordinates: tuple[Floats, Floats] | None


class PhotoErrors:
    """Per-photo errors of predictions: about 1 KB per photo, for any hand model."""

    def __init__(self, calibration: Calibration | None = None, seed: int = 0) -> None:
        """Use std as in labels with a checkpoint's calibration; without it, as the network predicts it.

        `seed` chooses the vertices of `vertex_pairs`.
        """
        self.calibration = calibration or Calibration()
        self._ids: list[str] = []
        self._columns: dict[str, list[Floats]] = {
            name: [] for name in (*PHOTO_COLUMNS, *_JOINT_COLUMNS, *_VISIBILITY_COLUMNS)
        }
        self._vertex_pairs = _EveryKth(_VERTEX_PHOTOS)
        self._picks = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def image_ids(self) -> list[str]:
        """Return one id per photo, in the order added."""
        return list(self._ids)

    def __getitem__(self, name: str) -> Floats:
        """Return a column over all photos: one of `PHOTO_COLUMNS` (n,), or per joint (n, 21, ...).

        Visibility has rows for the photos alone whose truth is known.
        """
        parts = self._columns[name]
        shapes = _JOINT_COLUMNS | dict.fromkeys(_VISIBILITY_COLUMNS, (21,))
        return np.concatenate(parts) if parts else np.zeros((0, *shapes.get(name, ())), np.float32)

    def vertex_pairs(self) -> tuple[Floats, Floats]:
        """Return std and signed error (m, 24, 3) of some vertices of m photos, mm: a random sample of bounded size."""
        pairs = self._vertex_pairs.rows((_VERTICES_PER_PHOTO, 2, 3))
        return pairs[:, :, 0], pairs[:, :, 1]

    def joint_errors(self) -> tuple[Floats, Floats]:
        """Return the `joint_std_mm` (m,) of the m photos with 3D joints, and the mean error of those joints, mm.

        Both exclude the wrist; `mpjpe_mm` counts it as a joint without error, as benchmarks do.
        """
        error = np.linalg.norm(self["joints3d_error_mm"][:, 1:], axis=-1).mean(1)
        known = ~np.isnan(error)
        return self["joint_std_mm"][known], error[known]

    def add(
        self,
        batch: Batch,
        prediction: Prediction,
        image_ids: Sequence[str] | None = None,
        rendered: Tensor | None = None,
        region: Tensor | None = None,
    ) -> None:
        """Add the errors of a batch's predictions.

        Args:
            batch: right hands in crop coordinates and crop axes, as in training.
            prediction: the network's output for `batch.image / 255`, and for any number of mirror images.
            image_ids: names for the per-photo file; default: the batch's keys.
            rendered: I' (B, 3, S, S) in 0..1, the mesh drawn in its predicted colours.
            region: M (B, S, S) bool, the visible hand, where I' is compared with the photo. With `rendered` only.

        Raises:
            UserError: a prediction is not a number.
        """
        ids = list(image_ids) if image_ids is not None else [str(key) for key in batch.key.tolist()]
        columns = {
            name: np.full((len(batch), *shape), np.nan, np.float32)
            for name, shape in {**dict.fromkeys(PHOTO_COLUMNS, ()), **_JOINT_COLUMNS}.items()
        }
        joint_std_mm, vertex_std_mm = self._stds(prediction, ids, columns)
        self._side_and_presence(batch, prediction, columns)
        self._length(batch, prediction, columns)
        self._joints3d(batch, prediction, joint_std_mm, columns)
        self._guess(batch, prediction, columns)
        self._vertices(batch, prediction, vertex_std_mm, columns)
        self._joints2d(batch, prediction, columns)
        if prediction.joint_visible_logit is not None:
            known = batch.has_joint_visible.cpu().numpy()
            score = _floats(prediction.joint_visible_logit.sigmoid())
            rows = known.any(1)
            for name, values in zip(_VISIBILITY_COLUMNS, (_floats(batch.joint_visible), score), strict=True):
                columns[name] = np.where(known, values, np.nan)[rows].astype(np.float32)
        if rendered is not None and region is not None:
            shown, photo = (_floats(images).transpose(0, 2, 3, 1) for images in (rendered, batch.image / 255))
            where = region.cpu().numpy().astype(bool)
            has_hand = batch.has_hand.cpu().numpy()
            columns["ssim"][:] = np.where(has_hand, metrics.ssim(shown, photo, where), np.nan)
            columns["psnr_db"][:] = np.where(has_hand, metrics.psnr(shown, photo, where), np.nan)
        self._ids += ids
        for name, values in columns.items():
            self._columns[name].append(values)

    def extend(self, other: PhotoErrors) -> None:
        """Add the photos of other measurements, of at most 16,384 photos."""
        self._ids += other._ids
        for name, parts in other._columns.items():
            self._columns[name] += parts
        for pairs in other._vertex_pairs.parts:
            self._vertex_pairs.add(pairs)

    def _stds(
        self, prediction: Prediction, ids: list[str], columns: dict[str, Floats]
    ) -> tuple[Floats, Floats]:
        joint_std_mm = self.calibration.joints3d(_floats(prediction.joints3d.std_mm)).copy()
        joint_std_mm[:, 0] = 0  # the wrist is the origin
        vertex_std_mm = self.calibration.vertices(_floats(prediction.vertices.std_mm))
        means = (_floats(gaussian.mean_mm) for gaussian in (prediction.joints3d, prediction.vertices))
        outputs = (joint_std_mm, vertex_std_mm, *means)
        finite = np.all([np.isfinite(values).all((1, 2)) for values in outputs], axis=0)
        if not finite.all():
            raise UserError(
                f"the prediction for photo '{ids[int(np.argmin(finite))]}' is not a number, so the "
                "checkpoint's training diverged: use an earlier checkpoint"
            )
        per_joint = np.linalg.norm(joint_std_mm[:, 1:], axis=-1)
        columns["joint_std_mm"][:] = per_joint.mean(1)
        columns["max_joint_std_mm"][:] = per_joint.max(1)
        columns["vertex_std_mm"][:] = np.linalg.norm(vertex_std_mm, axis=-1).mean(1)
        return joint_std_mm, vertex_std_mm

    def _side_and_presence(self, batch: Batch, prediction: Prediction, columns: dict[str, Floats]) -> None:
        has_hand, mirrored = batch.has_hand.cpu().numpy(), _floats(prediction.mirrored_is_right)
        columns["right_probability"][:] = np.where(has_hand, _floats(prediction.is_right), np.nan)
        columns["mirrored_right_probability"][: len(mirrored)] = np.where(
            has_hand[: len(mirrored)], mirrored, np.nan
        )
        columns["hand_probability"][:] = np.where(has_hand, _floats(prediction.is_hand), np.nan)
        columns["empty_hand_probability"][:] = np.where(has_hand, np.nan, _floats(prediction.is_hand))

    def _length(self, batch: Batch, prediction: Prediction, columns: dict[str, Floats]) -> None:
        length_mm = hand_lengths_mm(_floats(prediction.joints3d.mean_mm))
        columns["hand_length_mm"][:] = np.where(batch.has_hand.cpu().numpy(), length_mm, np.nan)

    def _joints3d(
        self, batch: Batch, prediction: Prediction, std_mm: Floats, columns: dict[str, Floats]
    ) -> None:
        rows = np.flatnonzero(batch.has_joints3d.cpu().numpy())
        if not len(rows):
            return
        predicted, truth = _floats(prediction.joints3d.mean_mm)[rows], _floats(batch.joints3d_mm)[rows]
        error = (predicted - predicted[:, :1]) - (truth - truth[:, :1])
        aligned = metrics.distances(metrics.align(predicted, truth), truth)
        scaled = metrics.distances(metrics.align_wrist_and_scale(predicted, truth), truth)
        columns["joints3d_error_mm"][rows] = error
        columns["joints3d_std_mm"][rows] = std_mm[rows]
        columns["pa_joint_errors_mm"][rows] = aligned
        columns["scale_aligned_joint_errors_mm"][rows] = scaled
        columns["mpjpe_mm"][rows] = np.linalg.norm(error, axis=-1).mean(1)
        columns["pa_mpjpe_mm"][rows] = aligned.mean(1)
        columns["scale_aligned_mpjpe_mm"][rows] = scaled.mean(1)

    def _guess(self, batch: Batch, prediction: Prediction, columns: dict[str, Floats]) -> None:
        rows = np.flatnonzero(batch.has_guess3d.cpu().numpy())
        if len(rows):
            predicted, guess = _floats(prediction.joints3d.mean_mm)[rows], _floats(batch.guess3d_mm)[rows]
            distance = metrics.distances(metrics.align(predicted, guess), guess)
            columns["guess_pa_mpjpe_mm"][rows] = distance.mean(1)

    def _vertices(
        self, batch: Batch, prediction: Prediction, std_mm: Floats, columns: dict[str, Floats]
    ) -> None:
        rows = np.flatnonzero(batch.has_vertices.cpu().numpy())
        if not len(rows):
            return
        # Both are wrist-relative already.
        predicted, truth = _floats(prediction.vertices.mean_mm)[rows], _floats(batch.vertices_mm)[rows]
        for prefix, moved in (("", predicted), ("pa_", metrics.align(predicted, truth))):
            error = metrics.distances(moved, truth)
            columns[f"{prefix}mpvpe_mm"][rows] = error.mean(1)
            columns[f"{prefix}vertices_auc"][rows] = [metrics.auc_of_pck(one) for one in error]
            scores = metrics.f_score(moved, truth, (5.0, 15.0))
            columns[f"{prefix}f5"][rows], columns[f"{prefix}f15"][rows] = scores.T
        picked = self._picks.integers(0, truth.shape[1], (len(rows), _VERTICES_PER_PHOTO, 1))
        pairs = [np.take_along_axis(values, picked, 1) for values in (std_mm[rows], predicted - truth)]
        self._vertex_pairs.add(np.stack(pairs, 2))

    def _joints2d(self, batch: Batch, prediction: Prediction, columns: dict[str, Floats]) -> None:
        known = batch.has_joints2d.cpu().numpy()
        variance = _floats(prediction.joints2d_covariance.diagonal(dim1=-2, dim2=-1))
        error = _floats(prediction.joints2d) - _floats(batch.joints2d)
        error = np.where(known[..., None], error, np.nan)
        std = np.where(known[..., None], self.calibration.joints2d(np.sqrt(variance)), np.nan)
        columns["joints2d_errors"][:], columns["joints2d_stds"][:] = error, std
        rows = known.any(1)
        for name, values in (("joints2d_error", error), ("joints2d_std", std)):
            columns[name][rows] = np.nanmean(np.linalg.norm(values[rows], axis=-1), 1) / 2

    def std_and_errors(self) -> Iterator[tuple[str, StdAndError]]:
        """Yield name, std and error per kind of uncertainty, for the kinds with known truth in some photo."""
        joints = self["joints3d_std_mm"][:, 1:], self["joints3d_error_mm"][:, 1:]
        # Half-sides of the crop to percent of its side.
        joints2d = 50 * self["joints2d_stds"], 50 * self["joints2d_errors"]
        kinds = (
            ("joints3d", "3D joints", "mm", "joint_std_mm", "mpjpe_mm", joints),
            ("joints3d_pa", "3D joints, Procrustes", "mm", "joint_std_mm", "pa_mpjpe_mm", None),
            ("guess3d", "3D joints, from a detector's", "mm", "joint_std_mm", "guess_pa_mpjpe_mm", None),
            ("vertices", "vertices", "mm", "vertex_std_mm", "mpvpe_mm", self.vertex_pairs()),
            ("vertices_pa", "vertices, Procrustes", "mm", "vertex_std_mm", "pa_mpvpe_mm", None),
            ("joints2d", "2D joints", "% of the crop", "joints2d_std", "joints2d_error", joints2d),
        )
        for name, title, unit, std_name, error_name, coordinates in kinds:
            error = self[error_name]
            known = ~np.isnan(error)
            if not known.any():
                continue
            scale = 1 if unit == "mm" else 100
            yield (
                name,
                StdAndError(title, unit, scale * self[std_name][known], scale * error[known], coordinates),
            )


class _EveryKth:
    """Every kth row of a stream; k doubles whenever more than `limit` rows are held."""

    def __init__(self, limit: int) -> None:
        self._limit, self._step, self._seen, self.parts = limit, 1, 0, list[Floats]()

    def add(self, rows: Floats) -> None:
        number = self._seen + np.arange(len(rows))
        self._seen += len(rows)
        self.parts.append(rows[number % self._step == 0])
        while sum(map(len, self.parts)) > self._limit:
            self.parts = [np.concatenate(self.parts)[::2]]
            self._step *= 2

    def rows(self, shape: tuple[int, ...]) -> Floats:
        return np.concatenate(self.parts) if self.parts else np.zeros((0, *shape), np.float32)


def _floats(tensor: Tensor) -> Floats:
    """Return a tensor of any type, with or without a gradient, as float32."""
    return numpy_of(tensor.detach().float())
