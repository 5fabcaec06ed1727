"""The side of each hand. Networks are trained on right hands, so images of left hands are mirrored for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from annotator.model.network import Network
from annotator.model.two_looks import TwoLooks
from annotator.runtime.device import numpy_of
from annotator.runtime.precision import Precision, autocast

#: Hands with a lower probability of being right are also predicted mirrored.
SURELY_RIGHT = 0.9


def mirror(images: torch.Tensor, rows: NDArray[np.int64]) -> None:
    """Mirror some images (B, 3, H, W), in place."""
    if len(rows):
        images[rows] = images[rows].flip(-1)


def features_and_sides(
    network: Network | TwoLooks,
    images: torch.Tensor,
    listed: NDArray[np.float32] | None,
    detector_joints2d: NDArray[np.float64],
    precision: Precision,
) -> tuple[Any, NDArray[np.float32] | None]:
    """Return features of images (n, 3, S, S), and the probability (n,) of a right hand or None without `listed`.

    `listed` is that probability, NaN where the network predicts it. Images that it lists as left are mirrored already.
    Left hands that the network finds are mirrored here, in `images` and in the features. `detector_joints2d`
    (n, 21, 2) are joints of a detector in the images as they are, or NaN.
    """
    is_left = np.zeros(len(images), bool)
    if isinstance(network, TwoLooks):
        # Only the first look, which is cheap, is taken at both sides of a left hand.
        with autocast(images.device, precision):
            first = network.first_look(images)
        if listed is not None:
            is_left = np.isnan(listed) & (numpy_of(network.first.is_right(first)) < 0.5)
        mirror(images, np.flatnonzero(is_left))
        with autocast(images.device, precision):
            if is_left.any():
                left = torch.from_numpy(np.flatnonzero(is_left)).to(images.device)
                first.put(left, network.first_look(images[left]))
            detector_joints2d = detector_joints2d * np.where(is_left[:, None, None], (-1, 1), 1)
            features: Any = network.second_look(images, first, torch.from_numpy(detector_joints2d).to(images))
    else:
        with autocast(images.device, precision):
            features = network.extract(images)
    if listed is None:
        return features, None
    return features, _right_scores(network, listed, is_left, images, features, precision)


def _right_scores(
    network: Network | TwoLooks,
    listed: NDArray[np.float32],
    is_left: NDArray[np.bool_],
    images: torch.Tensor,
    features: Any,
    precision: Precision,
) -> NDArray[np.float32]:
    """Return the probability (n,) of a right hand: `listed`, or the network's prediction where that is NaN.

    Where the hand shown may be a left one, it is also predicted mirrored, and both predictions are averaged. The
    likelier side stays, in `images` and `features`; `is_left` (n,) are images that show a mirrored hand.
    """
    shown = numpy_of(network.is_right(features)).copy()
    to_mirror = np.zeros(len(images), bool)
    unsure = np.flatnonzero(np.isnan(listed) & (shown < SURELY_RIGHT))
    if len(unsure):
        with autocast(images.device, precision):
            mirrored_features: Any = network.extract(images[unsure].flip(-1))
        shown[unsure] = (shown[unsure] + 1 - numpy_of(network.is_right(mirrored_features))) / 2
        to_mirror[unsure] = shown[unsure] < 0.5
        mirror(images, np.flatnonzero(to_mirror))
        features.put(
            torch.from_numpy(np.flatnonzero(to_mirror)).to(images.device),
            mirrored_features[torch.from_numpy(to_mirror[unsure]).to(images.device)],
        )
    return np.where(np.isnan(listed), np.where(is_left, 1 - shown, shown), listed)
