"""The network: backbone, prior-net, AMVUR, camera, texture, side and presence, joined (Figure 1 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from annotator.config import NetworkConfig
from annotator.hand.layer import HandLayer
from annotator.hand.model import HandModel
from annotator.labels.schema import Columns
from annotator.model.amvur import Amvur, Gaussian, joints_from_vertices
from annotator.model.attention import FeatureMap
from annotator.model.backbone import BackboneFeatures, build_backbone
from annotator.model.camera import CameraHead, WeakCamera, fit_camera, joints2d_covariance
from annotator.model.landmark_maps import LandmarkHead
from annotator.model.landmarker.network import NUMBERS, LandmarkHand, LandmarkHeads
from annotator.model.prior_net import PRIOR_STD_MM, PriorHand, PriorNet, mean_hand
from annotator.model.read_out import ReadOut
from annotator.model.refinement import Refinement
from annotator.model.texture import GlobalTexture, OcclusionAwareTexture
from annotator.model.visibility import JointVisibility
from annotator.render import nearest_faces, visible_vertices


@dataclass
class Prediction:
    """Hold the predictions for B crops: crop axes, wrist-relative millimetres; crop coordinates -1..1."""

    vertices: Gaussian  # q(V | I), (B, V, 3); prior-net's own with its constant std in the prior_net variant
    joints3d: Gaussian  # q(J3 | I), (B, 21, 3)
    camera: WeakCamera  # q(C | I)
    joints2d: Tensor  # (B, 21, 2) crop
    joints2d_covariance: Tensor  # (B, 21, 2, 2), Sigma_2, crop half-sides squared
    prior: PriorHand | None  # p(V | I), p(J3 | I); None in the amvur variant
    prior_camera: WeakCamera | None  # p(C | I)
    visible: Tensor  # (B, V) bool, not hidden by the hand itself
    rgb: Tensor | None  # (B, V, 3) in 0..1; None without a texture
    is_right: Tensor  # (B,) probability that the crop shows a right hand
    mirrored_is_right: Tensor  # (M,) the same of M of the crops, mirrored
    is_hand: Tensor  # (B,) probability that the crop shows a hand at all
    landmarks: Tensor | None = None  # (B, 21, H, W), log of each cell's share of a joint
    landmark_hand: LandmarkHand | None = None  # with `read_outs`
    joint_visible_logit: Tensor | None = None  # (B, 21), with `joint_visibility`


@dataclass
class Features:
    """Features of B crops from backbone and landmarks: the input of everything that predicts side and hand."""

    g: Tensor  # (B, feature_dim), features at landmarks included
    X: Tensor  # (B, shallow_dim, H/2, W/2)
    landmark_maps: Tensor | None  # (B, 21, H, W), `Prediction.landmarks`
    pyramid: tuple[Tensor, ...] = ()  # maps of strides 8, 16, 32, where a head samples them
    joints2d: Tensor | None = None  # (B, 21, 2) landmarks, read out or the means of their maps
    landmark_hand: LandmarkHand | None = None  # with `read_outs`

    def __getitem__(self, rows: Any) -> Features:
        landmark_maps, joints2d = (
            None if x is None else x[rows] for x in (self.landmark_maps, self.joints2d)
        )
        pyramid = tuple(level[rows] for level in self.pyramid)
        hand = None if self.landmark_hand is None else self.landmark_hand.rows(rows)
        return Features(self.g[rows], self.X[rows], landmark_maps, pyramid, joints2d, hand)

    def put(self, rows: Tensor, other: Features) -> None:
        """Replace these rows by those of `other`, in place."""
        self.g[rows], self.X[rows] = other.g, other.X
        for own, others in zip(
            (self.landmark_maps, self.joints2d, *self.pyramid),
            (other.landmark_maps, other.joints2d, *other.pyramid),
            strict=True,
        ):
            if own is not None and others is not None:
                own[rows] = others
        if self.landmark_hand is not None and other.landmark_hand is not None:
            self.landmark_hand.put(rows, other.landmark_hand)


def images_of(pixels: NDArray[np.uint8], device: torch.device | None = None) -> Tensor:
    """Return the input (B, 3, S, S) in 0..1 of a network for crops (B, S, S, 3)."""
    return torch.tensor(pixels, device=device).permute(0, 3, 1, 2).contiguous().float().div_(255)


class Network(nn.Module):
    """Predict hands from crops of right hands. `config.variant` selects the row of Tables 1 and 2."""

    faces: Tensor  # (F, 3)
    R: Tensor  # (21, V)

    def __init__(self, config: NetworkConfig, hand: HandModel) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config.backbone)
        feature_dim = self.backbone.feature_dim
        self.landmarks = LandmarkHead(self.backbone.pyramid_dims) if config.landmarks else None
        if self.landmarks is not None:
            feature_dim += self.landmarks.size
        # The parts are named as in a `Landmarker`, so that its weights load.
        self.heads = LandmarkHeads(feature_dim) if config.read_outs else None
        if self.heads is not None:
            feature_dim += NUMBERS
        layer = HandLayer(hand)
        start = mean_hand(layer, hand)
        if config.variant != "amvur":
            self.prior_net = PriorNet(feature_dim, hand, layer, landmarks=config.read_outs)
            self.prior_camera = CameraHead(feature_dim, start, config.camera, constant_std=True)
        self.refinement = Refinement(hand, config.refine_steps) if config.refine_steps else None
        if config.variant != "prior_net":
            self.amvur = Amvur(
                *(feature_dim, hand, layer, config.amvur, self.backbone.pyramid_dims),
                landmarks=config.landmarks or config.read_outs,
            )
            self.camera = CameraHead(feature_dim, start, config.camera, constant_std=False)
        if self.heads is None:
            self.side, self.presence = ReadOut(feature_dim), ReadOut(feature_dim)
        else:
            head = self.camera if config.variant == "amvur" else self.prior_camera
            projected = head(torch.zeros(1, feature_dim)).project(start.joints3d_mm)
            self.heads.start_at(projected[0], start.joints3d_mm[0])
        self.texture: nn.Module | None = None
        if config.texture.kind == "occlusion_aware":
            self.texture = OcclusionAwareTexture(feature_dim, self.backbone.shallow_dim, hand, config.texture)
        elif config.texture.kind == "global":
            self.texture = GlobalTexture(feature_dim, hand)
        # Last, so that it does not change the random start of the other parts.
        self.visibility: JointVisibility | None = None
        if config.joint_visibility:
            self.visibility = JointVisibility(feature_dim, hand, self.backbone.pyramid_dims)
        self.register_buffer("faces", torch.as_tensor(hand.faces).long(), persistent=False)
        self.register_buffer("R", torch.as_tensor(hand.joint_regressor), persistent=False)

    def forward(
        self,
        images: Tensor,
        also_mirrored: Tensor | None = None,
        backbone_features: BackboneFeatures | None = None,
    ) -> Prediction:
        """Predict from images (B, 3, crop_px, crop_px), RGB in 0..1.

        `also_mirrored` (M,): rows for which the side head, and nothing else, also gets the mirrored image.
        `backbone_features`: the backbone's output for these images, if it exists already; then none are mirrored.
        """
        if backbone_features is not None:
            return self.hands(images, self.extract(images, backbone_features))
        shown = images if also_mirrored is None else torch.cat([images, images[also_mirrored].flip(-1)])
        features = self.extract(shown)
        with torch.autocast(images.device.type, enabled=False):
            mirrored_is_right = self.is_right(features[len(images) :])
        return replace(self.hands(images, features[: len(images)]), mirrored_is_right=mirrored_is_right)

    @property
    def hand_network(self) -> Network:
        """The network that predicts hands: this one. `TwoLooks` has another."""
        return self

    def fold_normalisation(self) -> None:
        """Fold batch norms into convolutions, see `Backbone.fold_normalisation`."""
        self.backbone.fold_normalisation()

    def extract(self, images: Tensor, backbone_features: BackboneFeatures | None = None) -> Features:
        """Return features of images (B, 3, crop_px, crop_px). Under autocast only the backbone uses half precision.

        `backbone_features`: the backbone's output, if it exists already.
        """
        if backbone_features is None:
            backbone_features = self.backbone(images.contiguous(memory_format=self.backbone.memory_format))
        g, X, pyramid = backbone_features
        with torch.autocast(images.device.type, enabled=False):
            g, X, landmark_maps, joints2d, hand = g.float(), X.float(), None, None, None
            if self.landmarks is not None:
                landmark_maps, joints2d, at_joints = self.landmarks(pyramid)
                g = torch.cat([g, at_joints], -1)
            if self.heads is not None:
                hand = self.heads(g)
                joints2d = hand.image[..., :2]
                g = torch.cat([g, hand.numbers()], -1)
            sampled = self.config.amvur.aligned or self.visibility is not None
            return Features(g, X, landmark_maps, pyramid if sampled else (), joints2d, hand)

    def is_right(self, features: Features) -> Tensor:
        """Return the probability (B,) that each crop shows a right hand."""
        hand = features.landmark_hand
        return self.side(features.g) if hand is None else hand.is_right.sigmoid()

    def is_hand(self, features: Features) -> Tensor:
        """Return the probability (B,) that each crop shows a hand at all."""
        hand = features.landmark_hand
        return self.presence(features.g) if hand is None else hand.presence.sigmoid()

    def hands(self, images: Tensor, features: Features, columns: Columns = "all") -> Prediction:
        """Return the hands in images (B, 3, crop_px, crop_px) with these features; `mirrored_is_right` stays empty.

        Without the texture's `columns`, `rgb` is None; without those of the mesh, `vertices` and `visible` are empty.
        """
        with torch.autocast(images.device.type, enabled=False):
            return self._hands(images, features, columns)

    def _hands(self, images: Tensor, features: Features, columns: Columns) -> Prediction:
        g, X = features.g, features.X
        variant = self.config.variant
        # The start is prior-net's hand after refinement; without gradient, so training returns prior-net's own.
        prior: PriorHand | None = None
        start: PriorHand | None = None
        prior_camera: WeakCamera | None = None
        start_camera: WeakCamera | None = None
        fitted: tuple[Tensor, Tensor] | None = None
        size_px = images.shape[-2], images.shape[-1]
        feature_maps = [
            FeatureMap(level, partial(self.backbone.in_map, size_px=size_px, stride=stride))
            for level, stride in zip(features.pyramid, (8, 16, 32), strict=bool(features.pyramid))
        ]
        if variant != "amvur":
            hand = features.landmark_hand
            pose = self.prior_net.pose(g, None if hand is None else hand.normalised())
            refined = pose
            if self.refinement is not None and hand is not None:
                refined = self.refinement(pose, hand.image)
            start = self.prior_net.posed(*refined)
            fitted = _camera_at_landmarks(start.joints3d_mm, features)
            start_camera = self.prior_camera(g, fitted)
            if self.training and refined is not pose:  # prior-net's own hand is in the loss
                prior = self.prior_net.posed(*pose)
                prior_camera = self.prior_camera(g, _camera_at_landmarks(prior.joints3d_mm, features))
            else:
                prior, prior_camera = start, start_camera
        if prior is not None and prior_camera is not None and variant == "prior_net":
            vertices = Gaussian(prior.vertices_mm, torch.full_like(prior.vertices_mm, PRIOR_STD_MM))
            joints3d = Gaussian(prior.joints3d_mm, torch.full_like(prior.joints3d_mm, PRIOR_STD_MM))
            camera: WeakCamera = prior_camera
        else:
            prior_mm = prior_points = None
            if start is not None and start_camera is not None:
                prior_mm = start.vertices_mm
                if self.config.amvur.aligned:
                    prior_points = start_camera.project(prior_mm)[..., :2]
            vertices = self.amvur(g, prior_mm, prior_points, feature_maps, features.joints2d)
            joints3d = joints_from_vertices(vertices, self.R, self.config.amvur.joint_variance)
            if prior is None:
                fitted = _camera_at_landmarks(joints3d.mean_mm, features)
            camera = self.camera(g, fitted)
        joints2d = camera.project(joints3d.mean_mm)[..., :2]
        covariance = joints2d_covariance(joints3d, camera, self.config.camera.annotation_noise)
        rgb = None
        if columns == "joints":
            vertices = Gaussian(vertices.mean_mm[:, :0], vertices.std_mm[:, :0])
            visible = g.new_empty(len(g), 0, dtype=torch.bool)
        else:
            # Colours sampled at the mesh match at any position, so they must not move it.
            points = camera.project(vertices.mean_mm).detach()
            face_ids = nearest_faces(points, self.faces, self.config.texture.raster_px)
            visible = visible_vertices(face_ids, self.faces, points.shape[1])
            if columns == "all":
                rgb = self._colour(images, X, g, points, visible, face_ids)
        return Prediction(
            vertices=vertices,
            joints3d=joints3d,
            camera=camera,
            joints2d=joints2d,
            joints2d_covariance=covariance,
            prior=prior,
            prior_camera=prior_camera,
            visible=visible,
            rgb=rgb,
            is_right=self.is_right(features),
            mirrored_is_right=g.new_empty(0),
            is_hand=self.is_hand(features),
            landmarks=features.landmark_maps,
            landmark_hand=features.landmark_hand,
            joint_visible_logit=self._joint_visible(features, feature_maps),
        )

    def _joint_visible(self, features: Features, maps: list[FeatureMap]) -> Tensor | None:
        if self.visibility is None or features.joints2d is None:
            return None
        return self.visibility(features.g, features.joints2d, maps)

    def _colour(
        self, images: Tensor, X: Tensor, g: Tensor, points: Tensor, visible: Tensor, face_ids: Tensor
    ) -> Tensor | None:
        if self.texture is None:
            return None
        if isinstance(self.texture, GlobalTexture):
            return self.texture(g)
        points_in_X = self.backbone.in_map(points[..., :2], (images.shape[-2], images.shape[-1]), stride=2)
        return self.texture(images.float(), X, g, points, points_in_X, visible, face_ids, self.faces)


def _camera_at_landmarks(joints3d_mm: Tensor, features: Features) -> tuple[Tensor, Tensor] | None:
    """Return the cameras that `fit_camera` gives for read-out landmarks, where the network has them."""
    if features.landmark_hand is None:
        return None
    joints2d = features.landmark_hand.image[..., :2]
    return fit_camera(joints3d_mm, joints2d, torch.ones_like(joints2d[..., 0], dtype=torch.bool))
