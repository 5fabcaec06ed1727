"""The coordinate frames of the project, and all transforms between them: photo, crop, camera.

- **Photo**: square pixels after EXIF rotation, x right, y down. Pixel centres are at half integers, so the photo
  covers [0, width] x [0, height].
- **Crop**: the square cut around a hand, -1 to 1 on both axes, x right, y down. A left hand's crop is
  mirrored (x changes sign), because the network predicts right hands only. It may be rotated in its plane, about its
  centre; labels are for the axis-aligned square.
- **Camera**: x right, y down, z forward along the optical axis, millimetres. Hands are wrist-relative here.
- **Crop axes**: camera axes rotated so that z points along the ray through the crop's centre, by the smallest
  rotation and so without roll. A network gets only the crop, so its 3D is in these axes; labels are in camera axes.

A weak-perspective camera maps crop axes to the crop: `J2 = s * (Rot(r) J3)_xy + t` (paper, section 3.1).
Functions take NumPy arrays unless the docstring has "tensors"; leading dimensions broadcast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:  # decoders use this file, and start seconds faster without torch
    from torch import Tensor

Floats = NDArray[np.floating]
Points = TypeVar("Points", Floats, "Tensor")  # either; results have the type of the argument

#: Assumed focal length, as a multiple of the photo's longer side: that of a typical phone for a full scene. It is
#: longer if the photo itself is the crop, cut from a wider view. At 1.2 a hand that fills the photo would be 25 cm
#: from the lens.
ASSUMED_FOCAL_SCENE = 1.2
ASSUMED_FOCAL_CROP = 5.0


class CropFrame(NamedTuple):
    """Positions of square crops in their photos: B crops, or one (then the fields have no B)."""

    centre_px: NDArray[np.float64]  # (B, 2)
    half_side_px: Floats | np.floating  # (B,)
    mirrored: NDArray[np.bool_] | np.bool_  # (B,) true where the crop's x axis points left in the photo
    rotation_rad: Floats | float = 0.0  # (B,) from the photo's x axis towards its y axis: clockwise

    def flipped(self) -> CropFrame:
        """Return the mirror image of each crop, at the same position."""
        return self._replace(mirrored=~np.asarray(self.mirrored))

    def crop_from_photo(self, points_px: ArrayLike) -> Floats:
        """Convert photo pixels (B, N, 2) to crop coordinates (B, N, 2)."""
        points = np.asarray(points_px, np.float64)
        half_side = np.asarray(self.half_side_px)[..., None, None]
        return (
            (points - np.asarray(self.centre_px)[..., None, :])
            / half_side
            @ self.in_plane_matrix()[..., :2, :2]
        )

    def photo_from_crop(self, points: ArrayLike) -> Floats:
        """Convert crop coordinates (B, N, 2) to photo pixels (B, N, 2)."""
        half_side = np.asarray(self.half_side_px)[..., None, None]
        centre = np.asarray(self.centre_px)[..., None, :]
        return axis_aligned(np.asarray(points), self.in_plane_matrix()) * half_side + centre

    def in_plane_matrix(self) -> Floats:
        """Return the in-plane rotation and mirroring (B, 3, 3) of each crop, see `in_plane_matrix`."""
        matrix: Floats = in_plane_matrix(np.asarray(self.rotation_rad, np.float64), np.asarray(self.mirrored))
        return matrix

    def axes(self, principal_px: ArrayLike, focal_px: ArrayLike) -> Floats:
        """Return the crop axes (B, 3, 3) of each crop, see `axes_of_ray`, ignoring rotation and mirroring.

        `principal_px` (B, 2) and `focal_px` (B,) are those of the camera, in photo pixels.
        """
        focal = np.asarray(focal_px, np.float64)[..., None]
        axes: Floats = axes_of_ray((np.asarray(self.centre_px) - np.asarray(principal_px)) / focal)
        return axes


def square_around(box_xyxy: ArrayLike, padding: float) -> CropFrame:
    """Return the square crop around a box (4,) in photo pixels, with `padding` times the box's longer side."""
    x0, y0, x1, y1 = np.asarray(box_xyxy, np.float64)
    half_side = max(x1 - x0, y1 - y0) / 2 * padding
    return CropFrame(np.array([(x0 + x1) / 2, (y0 + y1) / 2]), np.float64(half_side), np.bool_(False))


class UprightSquare(NamedTuple):
    """A rotated square in a photo, in which a hand's fingers point up: B squares, or one."""

    centre_px: Floats  # (B, 2)
    half_side_px: Floats  # (B,)
    rotation_rad: Floats  # (B,) from the photo's x axis to the square's, positive towards the photo's y


def upright_square(joints_px: ArrayLike, padding: float = 1.35) -> UprightSquare:
    """Return the square around 2D joints (B, 21, 2), photo pixels, in which the middle knuckle is above the wrist.

    Its side is `padding` times the longer side of the joints' box along the square's own axes. A point p of the
    square, -1..1, is at `centre + half_side * Rot(angle) p` in the photo. The angle is 0 if wrist and knuckle
    coincide.
    """
    joints = np.asarray(joints_px, np.float64)
    up = joints[..., 9, :] - joints[..., 0, :]
    angle = np.arctan2(up[..., 0], 0.0 - up[..., 1])  # 0.0 - 0.0 is +0, whose angle is 0 and not pi
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (B, 2, 2)
    rotated_back = joints @ rotation
    low, high = rotated_back.min(-2), rotated_back.max(-2)
    centre = (rotation @ ((low + high) / 2)[..., None])[..., 0]
    return UprightSquare(centre, (high - low).max(-1) / 2 * padding, angle)


def in_plane_matrix(rotation_rad: Points, mirrored: Any) -> Points:
    """Return the matrices (..., 3, 3) that transform a rotated, mirrored crop's axes to the axis-aligned square's.

    `Rz(rotation_rad) diag(-1 or 1, 1, 1)`: orthogonal, with determinant -1 where `mirrored` (..., bool). The
    axis-aligned square has the crop's centre and side. Its point `matrix @ p` is the point p of the crop, which is
    rotated by `rotation_rad` (...) and then mirrored. NumPy or tensors.
    """
    if isinstance(rotation_rad, np.ndarray):
        cos, sin, sign = np.cos(rotation_rad), np.sin(rotation_rad), np.where(mirrored, -1.0, 1.0)
    else:
        cos, sin, sign = rotation_rad.cos(), rotation_rad.sin(), 1 - 2 * mirrored.to(rotation_rad)
    zero = 0 * cos
    return _matrices([cos * sign, -sin, zero, sin * sign, cos, zero, zero, zero, zero + 1])


def axis_aligned(points: Points, matrix: Points) -> Points:
    """Transform points or directions (..., N, 2 or 3) from a rotated, mirrored crop to the axis-aligned square.

    `matrix` is from `in_plane_matrix`. A weak-perspective translation is such a point; the scale is unchanged.
    """
    size = points.shape[-1]
    return points @ matrix[..., :size, :size].swapaxes(-1, -2)


def axis_aligned_covariance(covariance: Points, matrix: Points) -> Points:
    """Transform covariances (..., N, 2, 2 or 3, 3) of points from a rotated, mirrored crop to the axis-aligned square.

    For std use `rotated_std`. The rotation r of a weak-perspective camera transforms like points, because
    `J2 = s (Rot(r) J3)_xy + t`.
    """
    size = covariance.shape[-1]
    part = matrix[..., None, :size, :size]
    return part @ covariance @ part.swapaxes(-1, -2)


def project_weak(points_mm: Tensor, scale: Tensor, rotation: Tensor, translation: Tensor) -> Tensor:
    """Project points in crop axes (B, N, 3) to the crop (B, N, 3), with depth in the unit of x and y; tensors.

    `scale` (B,) in crop half-sides per millimetre, `rotation` (B, 3, 3), `translation` (B, 2) in crop
    half-sides. x and y are the paper's `s * (Rot(r) J)_xy + t`; z is `s * (Rot(r) J)_z`, smaller is nearer.
    """
    rotated = points_mm @ rotation.transpose(-1, -2) * scale[:, None, None]
    offset = rotated.new_zeros(len(rotated), 1, 3)
    offset[:, 0, :2] = translation
    return rotated + offset


def axes_of_ray(ray: Points) -> Points:
    """Return the rotations (..., 3, 3) that map the optical axis to a ray; the columns are the crop axes.

    It is the smallest rotation, about an axis perpendicular to both, so there is no roll. With the unit ray n it is
    `I + [v]x + [v]x^2 / (1 + n_z)`, `v = z x n` (Rodrigues). A point in crop axes is `axes @ point` in camera axes.

    Args:
        ray: (..., 2), x / z and y / z of the ray, NumPy or tensor; 0 on the optical axis gives the identity.
    """
    x, y = ray[..., 0], ray[..., 1]
    z = (1 + x * x + y * y) ** -0.5
    return _axes_of_unit(x * z, y * z, z)


def axes_of_direction(direction: Points) -> Points:
    """Return `axes_of_ray` of unit rays (..., 3), which may point anywhere but straight back."""
    return _axes_of_unit(direction[..., 0], direction[..., 1], direction[..., 2])


def _axes_of_unit(x: Any, y: Any, z: Any) -> Any:
    bend = 1 / (1 + z)
    entries = [1 - x * x * bend, -x * y * bend, x, -x * y * bend, 1 - y * y * bend, y, -x, -y, z]
    return _matrices(entries)


def _matrices(entries: list[Any]) -> Any:
    """Stack nine arrays or tensors (...), row by row, to matrices (..., 3, 3)."""
    if isinstance(entries[0], (np.ndarray, np.generic)):
        stacked = np.stack(np.broadcast_arrays(*entries), -1)
        return stacked.reshape(*stacked.shape[:-1], 3, 3)
    import torch

    return torch.stack(torch.broadcast_tensors(*entries), -1).unflatten(-1, (3, 3))


def camera_from_crop(points: Points, axes: Points) -> Points:
    """Rotate points (..., N, 3) from crop axes (..., 3, 3) to camera axes."""
    return points @ axes.swapaxes(-1, -2)


def crop_from_camera(points: Points, axes: Points) -> Points:
    """Rotate points (..., N, 3) from camera axes to crop axes (..., 3, 3)."""
    return points @ axes


def rotated_std(std: Points, rotation: Points) -> Points:
    """Return the std (..., N, 2 or 3) along each axis after a rotation (..., 3, 3) of independent coordinates.

    It is the square root of the diagonal of `R diag(std^2) R^T`. The length of a std vector does not change. The
    covariances between axes that the rotation creates are dropped.
    """
    part = rotation[..., : std.shape[-1], : std.shape[-1]]
    return ((std * std) @ (part * part).swapaxes(-1, -2)) ** 0.5


def rotation_matrices(rotvec: Floats) -> Floats:
    """Return the matrices (..., 3, 3) of axis-angle vectors (..., 3)."""
    import torch

    from annotator.rotations import rotvec_to_rotmat

    matrices: Floats = rotvec_to_rotmat(torch.from_numpy(np.ascontiguousarray(rotvec))).numpy()
    return matrices


def rotation_vectors(matrices: Floats) -> Floats:
    """Return the axis-angle vectors (..., 3) of rotation matrices (..., 3, 3)."""
    import torch

    from annotator.rotations import rotmat_to_rotvec

    vectors: Floats = rotmat_to_rotvec(torch.from_numpy(np.ascontiguousarray(matrices))).numpy()
    return vectors


def mirror_points(points: Floats) -> Floats:
    """Return the mirror image, in the plane x = 0, of points in camera or crop axes (..., 2 or 3)."""
    mirrored = np.array(points)
    mirrored[..., 0] *= -1
    return mirrored


def mirror_rotvec(rotvec: Floats) -> Floats:
    """Return the rotation (..., 3) of mirrored points that corresponds to `rotvec` of the original points."""
    return np.asarray(rotvec) * np.array([1.0, -1.0, -1.0])


def mirror_rotation(matrices: Floats) -> Floats:
    """Return `mirror_rotvec` of rotation matrices (..., 3, 3)."""
    flip = np.array([-1.0, 1.0, 1.0])
    mirrored: Floats = np.asarray(matrices) * np.outer(flip, flip)
    return mirrored


def assumed_focal_px(width: int, height: int, photo_is_crop: bool) -> float:
    """Return the focal length assumed for a photo without one (photo pixels)."""
    return max(width, height) * (ASSUMED_FOCAL_CROP if photo_is_crop else ASSUMED_FOCAL_SCENE)


def camera_translation(points_mm: Floats, points_px: Floats, focal_px: Floats, centre_px: Floats) -> Floats:
    """Return `cam_t_mm` (B, 3), the position of the wrist in the axes of a pinhole camera.

    With this translation `points_mm` (B, N, 3) project closest to `points_px` (B, N, 2). It is the least-squares
    solution of `focal (x + tx) = u (z + tz)`, with `u` relative to the principal point `centre_px` (B, 2). It is
    refined with its own depths, so that the minimised error is in pixels.
    """
    focal = np.asarray(focal_px, np.float64)[:, None]
    uv = np.asarray(points_px, np.float64) - np.asarray(centre_px)[:, None]
    xyz = np.asarray(points_mm, np.float64)
    batch, count = uv.shape[:2]
    design = np.zeros((batch, count, 2, 3))
    design[..., 0, 0] = design[..., 1, 1] = focal
    design[..., 2] = -uv
    target = uv * xyz[..., 2:] - focal[..., None] * xyz[..., :2]
    weight = np.ones((batch, count, 1))
    translation: Floats = np.zeros((batch, 3))
    for _ in range(3):
        a = (design * weight[..., None]).reshape(batch, -1, 3)
        b = (target * weight).reshape(batch, -1, 1)
        normal = a.transpose(0, 2, 1) @ a
        # Joints that all project to one point do not determine the depth, and NaN joints determine nothing: such a
        # prediction is bad, but raises no error.
        valid = np.isfinite(normal).all((1, 2), keepdims=True)
        inverse = np.linalg.pinv(np.where(valid, normal, 0), hermitian=True)
        translation = (inverse @ a.transpose(0, 2, 1) @ b)[..., 0]
        depth = np.maximum(xyz[..., 2:] + translation[:, None, 2:], 1.0)
        weight = depth.mean(1, keepdims=True) / depth
    return translation
