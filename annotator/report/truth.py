"""Compare labels with a table of true joints: the error of each hand, and how well its std predicts it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from annotator import coordinates
from annotator.errors import UserError
from annotator.quality import metrics, uncertainty
from annotator.report.survey import floats, vectors
from annotator.storage.files import open_file

Floats = NDArray[np.floating]

#: Columns of labels for a comparison.
COLUMNS = ("joints3d_mm", "joints2d_px", "crop_xyxy", "camera")

#: Maximum hands in memory for reliability; of more, a random sample.
RELIABILITY_HANDS = 20_000

#: Maximum points of a curve.
_POINTS = 120


@dataclass(frozen=True)
class Panel:
    """Error against the share of hands kept, in millimetres."""

    title: str
    kept: Floats  # (points,)
    by_std: Floats
    by_error: Floats  # best possible order
    mean_mm: float
    best_half_mm: float
    spearman: float | None


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison."""

    hands: int
    panels: list[Panel]
    reliability: uncertainty.ReliabilityBins
    coverage: list[float] | None  # by `uncertainty.LEVELS`
    coverage_by_axis: dict[str, float]  # at `uncertainty.CALIBRATED_LEVEL`
    sampled_hands: int  # for reliability and coverage
    errors: dict[tuple[str, int], float]  # mean joint error, millimetres, by image_id and hand_index


class Truth:
    """True joints by photo; collects the errors of labels."""

    def __init__(self, path: str) -> None:
        """Read a table with `image_id` and `joints3d_mm`, and `joints2d_px` where photos have several hands.

        The joints are in the axes of the camera with `camera.focal_px` and `camera.principal_px`. Labels of a photo
        that was cut out of a larger one assume another camera. The truth is then rotated, so that both have the same
        axes in the label's crop.

        Raises:
            UserError: the table is missing, unreadable or lacks these columns.
        """
        table = _read(path)
        self._joints = vectors(table, "joints3d_mm")
        self._points = (
            vectors(table, "joints2d_px")
            if "joints2d_px" in table.column_names and not table["joints2d_px"].null_count
            else None
        )
        self._cameras = _cameras(table)
        self._photos: dict[str, list[int]] = defaultdict(list)  # rows of the truth
        for row, name in enumerate(table["image_id"].to_pylist()):
            self._photos[name].append(row)
        self._names: dict[str, str | None] = {}  # id by file name; None if several photos share it
        for photo in self._photos:
            name = _file_name(photo)
            self._names[name] = None if name in self._names else photo
        self._claims: dict[str, str | None] = {}  # label's id by the truth's; None if several labels match
        self._std: list[Floats] = []
        self._errors: list[Floats] = []
        self._ids: list[tuple[str, str, int]] = []  # truth's id, label's id, hand_index
        self._coordinates = _RandomSample()

    def add(self, table: pa.Table) -> None:
        """Compare the hands of a label file with the truth."""
        hands = table.filter(pc.and_(pc.equal(table["status"], "ok"), pc.is_valid(table["joints3d_mm"])))
        pairs = self._pairs(hands)
        if not pairs:
            return
        rows, truths = np.array(pairs).T
        predicted, true = vectors(hands, "joints3d_mm")[rows], self._joints[truths]
        crop = vectors(hands, "crop_xyxy")[rows]
        true = _rotated(true, (crop[:, :2] + crop[:, 2:]) / 2, self._cameras[truths], _cameras(hands)[rows])
        predicted, true = predicted - predicted[:, :1], true - true[:, :1]
        self._std.append(floats(hands, "joint_std_mm")[rows])
        self._errors.append(np.stack([metrics.mpjpe(predicted, true), metrics.pa_mpjpe(predicted, true)], 1))
        std = vectors(hands, "joints3d_std_mm")
        if len(std) == len(hands):
            self._coordinates.add(std[rows], predicted - true)

    def _pairs(self, hands: pa.Table) -> list[tuple[int, int]]:
        """Return pairs of rows, of labels and of the truth, of the same hand."""
        photos: dict[str, list[int]] = defaultdict(list)
        for row, name in enumerate(hands["image_id"].to_pylist()):
            photos[name].append(row)
        indices = hands["hand_index"].to_pylist()
        points = vectors(hands, "joints2d_px")
        pairs = []
        for name, rows in photos.items():
            photo = name if name in self._photos else self._names.get(_file_name(name))
            if photo is None:
                continue
            self._claims[photo] = name if self._claims.get(photo, name) == name else None
            for row, truth in self._matched(rows, self._photos[photo], points):
                pairs.append((row, truth))
                self._ids.append((photo, name, indices[row]))
        return pairs

    def _matched(self, rows: list[int], truths: list[int], points: Floats) -> list[tuple[int, int]]:
        if len(rows) == len(truths) == 1 or self._points is None or len(points) <= max(rows):
            return list(zip(rows, truths, strict=False))
        # Detectors number hands in any order: match the nearest pair in the photo first.
        gap = np.linalg.norm(points[rows][:, None] - self._points[truths][None], axis=-1).mean(-1)
        pairs = []
        for _ in range(min(len(rows), len(truths))):
            i, k = np.unravel_index(np.argmin(gap), gap.shape)
            pairs.append((rows[i], truths[k]))
            gap[i], gap[:, k] = np.inf, np.inf
        return pairs

    def comparison(self) -> Comparison | None:
        """Return the comparison so far; None if no hand has a known truth."""
        if not self._ids:
            return None
        # A file name shared by several photos identifies none of them.
        sure = np.array([self._claims[photo] is not None for photo, _, _ in self._ids])
        errors, std = np.concatenate(self._errors), np.concatenate(self._std)
        sure &= np.isfinite(std) & np.isfinite(errors).all(1)
        if not sure.any():
            return None
        titles = ("Wrists aligned", "After Procrustes alignment")
        coordinate_std, coordinate_error = self._coordinates.arrays()
        by_axis = uncertainty.coverage_by_axis(
            coordinate_std, coordinate_error, [uncertainty.CALIBRATED_LEVEL]
        )
        return Comparison(
            hands=int(sure.sum()),
            panels=[_panel(title, std[sure], errors[sure, k]) for k, title in enumerate(titles)],
            reliability=uncertainty.reliability(coordinate_std, coordinate_error),
            coverage=uncertainty.coverage(coordinate_std, coordinate_error),
            coverage_by_axis={axis: found[0] for axis, found in by_axis.items() if found},
            sampled_hands=len(coordinate_std),
            errors={
                (name, index): float(error)
                for (_, name, index), (error, _), one in zip(self._ids, errors, sure, strict=True)
                if one
            },
        )


class _RandomSample:
    """Std and error of coordinates, of a random sample once there are many hands."""

    def __init__(self) -> None:
        self._share, self._rng = 1.0, np.random.default_rng(1)
        self._keys, self._std, self._error = np.zeros(0), np.zeros((0, 20, 3)), np.zeros((0, 20, 3))

    def add(self, std: Floats, error: Floats) -> None:
        """Add joints (n, 21, 3), without the wrist, which has neither."""
        keys = self._rng.random(len(std))
        self._keys = np.concatenate([self._keys, keys])
        self._std = np.concatenate([self._std, std[:, 1:]])
        self._error = np.concatenate([self._error, error[:, 1:]])
        while (self._keys < self._share).sum() > RELIABILITY_HANDS:
            self._share *= 0.75
        self._keep(self._keys < self._share)

    def _keep(self, rows: NDArray[np.bool_]) -> None:
        self._keys, self._std, self._error = self._keys[rows], self._std[rows], self._error[rows]

    def arrays(self) -> tuple[Floats, Floats]:
        """Return std and error (n, 20, 3) of hands with finite values."""
        fine = np.isfinite(self._std).all((1, 2)) & np.isfinite(self._error).all((1, 2))
        return self._std[fine], self._error[fine]


def _panel(title: str, std: Floats, error: Floats) -> Panel:
    count = len(std)
    at = np.unique(np.linspace(1, count, min(count, _POINTS)).round().astype(int)) - 1
    return Panel(
        title,
        (at + 1) / count,
        uncertainty.mean_error_of_kept(std, error)[at],
        uncertainty.mean_error_of_kept(error, error)[at],
        float(error.mean()),
        uncertainty.error_of_best(std, error, [0.5])[0],
        uncertainty.spearman(std, error),
    )


def _cameras(table: pa.Table) -> Floats:
    """Return focal length and principal point (n, 3) of each row's camera, photo pixels; NaN where unknown."""
    fields = {"focal_px", "principal_px"}
    kind = table.schema.field("camera").type if "camera" in table.column_names else pa.null()
    if not pa.types.is_struct(kind) or not fields <= {field.name for field in kind}:
        return np.full((len(table), 3), np.nan)
    camera = table["camera"]
    principal = pc.struct_field(camera, "principal_px")
    parts = [
        pc.struct_field(camera, "focal_px"),
        pc.list_element(principal, 0),
        pc.list_element(principal, 1),
    ]
    return np.stack([np.asarray(part.cast(pa.float64()).fill_null(np.nan)) for part in parts], 1)


def _rotated(points: Floats, centre_px: Floats, of_camera: Floats, to_camera: Floats) -> Floats:
    """Rotate points (n, N, 3) from one camera's axes to another's; both rays meet at the crop's centre (n, 2).

    Cameras (n, 3) are from `_cameras`; points with an unknown camera stay unchanged.
    """
    rays = [(centre_px - camera[:, 1:]) / camera[:, :1] for camera in (of_camera, to_camera)]
    known = np.isfinite(np.concatenate(rays, 1)).all(1, keepdims=True)
    of_axes, to_axes = (coordinates.axes_of_ray(np.where(known, ray, 0)) for ray in rays)
    return coordinates.camera_from_crop(coordinates.crop_from_camera(points, of_axes), to_axes)


def _file_name(photo: str) -> str:
    """Return the part after the last slash; for a member of a tar, its own name."""
    name = photo.rsplit("/", 1)[-1]
    inside = name.rpartition("#")[2]
    return name if inside.isdigit() else inside


def _read(path: str) -> Any:
    wanted = ["image_id", "joints3d_mm"]
    try:
        with open_file(path) as file:
            names = pq.read_schema(file).names
            if not set(wanted) <= set(names):
                raise UserError(
                    f"'{path}' is not a table of true joints: it needs the columns {' and '.join(wanted)}"
                )
            table = pq.read_table(
                file, columns=[name for name in (*wanted, "joints2d_px", "camera") if name in names]
            )
    except OSError as error:
        raise UserError(f"can't read the truth '{path}': {error.strerror or error}") from None
    except pa.ArrowInvalid:
        raise UserError(
            f"'{path}' is not a Parquet file: give a table like truth.parquet of `amvur synth`"
        ) from None
    table = table.filter(pc.and_(pc.is_valid(table["image_id"]), pc.is_valid(table["joints3d_mm"])))
    if vectors(table, "joints3d_mm").shape[1:] != (21, 3):
        raise UserError(f"'{path}': joints3d_mm must be a list of 21 lists of 3 numbers")
    return table
