"""Two looks at a crop: the first locates and orients the hand, the second predicts it from an upright, tight square.

Images are `WIDE` times as wide as the tight crop, so that a rotated square still shows the photo and not its padding.
All outputs are in the coordinates and axes of the tight crop, as for a single network. The axes of the second look's
square differ from those of the tight crop by its rotation in the plane. The small rotation between the rays through the
two centres is ignored; it would require the camera.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from annotator.config import NetworkConfig
from annotator.coordinates import axis_aligned, axis_aligned_covariance, rotated_std
from annotator.labels.schema import Columns
from annotator.model.amvur import Gaussian
from annotator.model.camera import WeakCamera
from annotator.model.checkpoint_file import WIDE
from annotator.model.network import Features, Network, Prediction
from annotator.model.prior_net import PriorHand
from annotator.model.square import Square

#: Maximum repeats of a second look. If its joints still disagree with its square, four rotations of the crop are tried.
REPEATS = 2

#: Presence in the first look above which a second look may be repeated.
MIN_PRESENCE_TO_REPEAT = 0.5

#: Minimum presence in the second look; below it the whole crop is tried in four rotations, if the first look finds a
#: hand.
MIN_SECOND_PRESENCE = 0.5


@dataclass
class TwoLookFeatures:
    """Features of both looks at B crops, and the squares between them."""

    first: Features
    square: Square
    shown: Tensor  # (B, 3, crop_px, crop_px) of the second network, cut along the square
    second: Features

    def __getitem__(self, rows: Any) -> TwoLookFeatures:
        return TwoLookFeatures(self.first[rows], self.square[rows], self.shown[rows], self.second[rows])

    def put(self, rows: Tensor, other: TwoLookFeatures) -> None:
        """Replace these rows by those of `other`, in place."""
        self.first.put(rows, other.first)
        self.square.put(rows, other.square)
        self.shown[rows] = other.shown
        self.second.put(rows, other.second)


class TwoLooks(nn.Module):
    """Two networks with the interface of one, for prediction without gradients.

    Images are (B, 3, input_px, input_px), `WIDE` times as wide as the tight crop. All returned coordinates are -1 to 1
    over the tight crop. Presence comes from the first network. So does the side, unless the second network reads it.
    """

    faces: Tensor  # (F, 3)
    R: Tensor  # (21, V)

    def __init__(self, first: Network, second: Network) -> None:
        """Join two networks of one hand model; for `first`, the result of `without_hands` is enough."""
        super().__init__()
        self.first, self.second = first, second
        self.register_buffer("faces", second.faces, persistent=False)
        self.register_buffer("R", second.R, persistent=False)

    @property
    def config(self) -> NetworkConfig:
        """The configuration of the second network, which predicts."""
        return self.second.config

    @property
    def input_px(self) -> int:
        """Side of the images, pixels: the tight crop in their middle has the second look's `crop_px`."""
        return math.ceil(WIDE * self.second.config.crop_px)

    @property
    def hand_network(self) -> Network:
        """The network that predicts hands."""
        return self.second

    def is_right(self, features: TwoLookFeatures) -> Tensor:
        """Return the probability (B,) of a right hand: the second look's, if that network reads the side."""
        return (
            self.first.is_right(features.first)
            if self.second.heads is None
            else self.second.is_right(features.second)
        )

    def fold_normalisation(self) -> None:
        """Fold the batch norms of both backbones, see `Backbone.fold_normalisation`."""
        self.first.fold_normalisation()
        self.second.fold_normalisation()

    def forward(self, images: Tensor, also_mirrored: Tensor | None = None) -> Prediction:
        """Predict as `Network.forward` does, from wide images."""
        shown = images if also_mirrored is None else torch.cat([images, images[also_mirrored].flip(-1)])
        features = self.extract(shown)
        with torch.autocast(images.device.type, enabled=False):
            mirrored_is_right = self.is_right(features[len(images) :])
        return replace(self.hands(images, features[: len(images)]), mirrored_is_right=mirrored_is_right)

    def extract(self, images: Tensor) -> TwoLookFeatures:
        """Return the features of both looks at wide images. Under autocast only the backbones use half precision."""
        return self.second_look(images, self.first_look(images))

    def first_look(self, images: Tensor) -> Features:
        """Return the features of the first look at wide images."""
        return self.first.extract(self._tight(images))

    @torch.no_grad()
    def second_look(
        self, images: Tensor, first: Features, detector_joints2d: Tensor | None = None
    ) -> TwoLookFeatures:
        """Return the features of both looks at wide images, given the first.

        Where `detector_joints2d` (B, 21, 2) are not NaN, the second look is taken around them. The first look still
        gives the presence, so that one number means the same with and without a detector.

        If the second look's joints differ too much from its square, it is repeated with the square of these joints.
        If that fails, or the second look finds no hand, the whole crop is tried in four rotations.
        """
        with torch.autocast(images.device.type, enabled=False):
            joints2d = first.joints2d
            if joints2d is None:
                joints2d = self.first.hands(self._tight(images), first, "joints").joints2d
            if detector_joints2d is not None:
                joints2d = torch.where(detector_joints2d.isnan(), joints2d, detector_joints2d)
            is_hand = self.first.is_hand(first)
        features = self._look(images, first, Square.around(joints2d))
        better, is_off = self._better(features)
        (retried,) = torch.where(is_off & (is_hand > MIN_PRESENCE_TO_REPEAT))
        for _ in range(REPEATS):
            if not len(retried):
                break
            features.put(retried, self._look(images[retried], first[retried], better[retried]))
            better, is_off = self._better(features)
            retried = retried[is_off[retried]]
        if self.second.heads is not None:
            not_found = is_off | (self.second.is_hand(features.second) < MIN_SECOND_PRESENCE)
            (lost,) = torch.where(not_found & (is_hand > MIN_PRESENCE_TO_REPEAT))
            if len(lost):
                self._search(images, features, lost)
        return features

    def _better(self, features: TwoLookFeatures) -> tuple[Square, Tensor]:
        """Return the squares of the joints that the second look predicts, and where (B,) its own differ too much."""
        better = Square.around(features.square.to_tight(self._joints2d(features)))
        return better, features.square.is_off(better)

    def _search(self, images: Tensor, features: TwoLookFeatures, lost: Tensor) -> None:
        """Replace the second looks of rows in which only the first look finds a hand, in place.

        The whole crop is tried in four rotations. The look with the highest presence of an upright hand gives the
        square of the last looks. A row is replaced if its presence increases.
        """
        first, seen = features.first[lost], self.second.is_hand(features.second[lost])
        looks = [self._look(images[lost], first, Square.whole(images[lost], quarter)) for quarter in range(4)]
        upright = torch.stack(
            [torch.cos(self._better(look)[0].rotation_rad - look.square.rotation_rad) for look in looks]
        )
        presence = torch.stack([self.second.is_hand(look.second) for look in looks])
        chosen = (presence * upright).argmax(0)
        best = looks[0]
        for number in range(1, len(looks)):
            (rows,) = torch.where(chosen == number)
            best.put(rows, looks[number][rows])
        last = self._look(images[lost], first, self._better(best)[0])
        for _ in range(REPEATS - 1):
            last = self._look(images[lost], first, self._better(last)[0])
        (rows,) = torch.where(self.second.is_hand(last.second) > seen)
        features.put(lost[rows], last[rows])

    @torch.no_grad()
    def hands(self, images: Tensor, features: TwoLookFeatures, columns: Columns = "all") -> Prediction:
        """Return the hands in wide images with these features, as `Network.hands` does."""
        with torch.autocast(images.device.type, enabled=False):
            seen = self.second.hands(features.shown, features.second, columns)
            prediction = _carried(seen, features.square)
            return replace(
                prediction, is_right=self.is_right(features), is_hand=self.first.is_hand(features.first)
            )

    def _tight(self, images: Tensor) -> Tensor:
        """Return the tight crops at the size of the first look, shrunk by Pillow's filter as single crops are."""
        with torch.autocast(images.device.type, enabled=False):
            margin = round(images.shape[-1] * (1 - 1 / WIDE) / 2)
            middle = images[..., margin:-margin, margin:-margin].contiguous()
            size_px = self.first.config.crop_px
            return F.interpolate(middle, size=size_px, mode="bilinear", antialias=True)

    def _look(self, images: Tensor, first: Features, square: Square) -> TwoLookFeatures:
        """Take the second look along squares of wide images."""
        with torch.autocast(images.device.type, enabled=False):
            shown = square.cut(images, self.second.config.crop_px)
        return TwoLookFeatures(first, square, shown, self.second.extract(shown))

    def _joints2d(self, features: TwoLookFeatures) -> Tensor:
        """Return the joints (B, 21, 2) that the second look predicts in its squares."""
        if features.second.joints2d is not None:
            return features.second.joints2d
        with torch.autocast(features.shown.device.type, enabled=False):
            return self.second.hands(features.shown, features.second, "joints").joints2d


def without_hands(network: Network) -> Network:
    """Return a copy for the first look: without texture and, if it has landmarks, without the layers for hands."""
    first = copy.deepcopy(network)
    first.config = first_look_config(network.config)
    first.texture = first.visibility = None
    if first.landmarks is not None:
        for name in ("prior_net", "prior_camera", "amvur", "camera"):
            if hasattr(first, name):
                delattr(first, name)
    return first


def first_look_config(config: NetworkConfig) -> NetworkConfig:
    """Return the configuration of `without_hands`."""
    return replace(config, texture=replace(config.texture, kind="none"), joint_visibility=False)


def _carried(prediction: Prediction, square: Square) -> Prediction:
    """Transform a prediction from rotated squares to the coordinates and axes of their tight crops."""
    matrix, size = square.in_plane_matrix(), square.half_side[:, None, None, None]

    def gaussian(points: Gaussian) -> Gaussian:
        return Gaussian(axis_aligned(points.mean_mm, matrix), rotated_std(points.std_mm, matrix))

    def camera(in_square: WeakCamera) -> WeakCamera:
        # J2 = h P (s Rot(r) J3 + t) + c = h s Rot(P r) (P J3) + (h P t + c)
        scale_std, rotation_std, translation_std = in_square.std[:, None].split([1, 3, 2], -1)
        std = [
            scale_std * size[:, 0],
            rotated_std(rotation_std, matrix),
            rotated_std(translation_std, matrix) * size[:, 0],
        ]
        return WeakCamera(
            in_square.scale_per_mm * square.half_side,
            axis_aligned(in_square.rotvec[:, None], matrix)[:, 0],
            square.to_tight(in_square.translation[:, None])[:, 0],
            torch.cat(std, -1)[:, 0],
        )

    def prior(hand: PriorHand) -> PriorHand:
        return replace(
            hand,
            vertices_mm=axis_aligned(hand.vertices_mm, matrix),
            joints3d_mm=axis_aligned(hand.joints3d_mm, matrix),
            rotations=torch.cat([matrix[:, None] @ hand.rotations[:, :1], hand.rotations[:, 1:]], 1),
        )

    return replace(
        prediction,
        vertices=gaussian(prediction.vertices),
        joints3d=gaussian(prediction.joints3d),
        camera=camera(prediction.camera),
        joints2d=square.to_tight(prediction.joints2d),
        joints2d_covariance=axis_aligned_covariance(prediction.joints2d_covariance, matrix) * size**2,
        prior=None if prediction.prior is None else prior(prediction.prior),
        prior_camera=None if prediction.prior_camera is None else camera(prediction.prior_camera),
        landmarks=None,  # its maps cover the rotated square
        landmark_hand=None,  # in its coordinates
    )
