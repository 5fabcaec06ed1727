"""The loss of a batch: formulas (3) to (6), (8) and (12) over the targets that each example has.

Supervised and weak training share one sum. Formula (3) is a likelihood of the target plus w KL; formula (8) keeps the
KL and drops the likelihood. So each likelihood is a mean over the examples with its target, each KL a mean over all
examples. A fully labelled batch has (3) to (6), a batch of 2D joints has (8), a mixed one has both. An example without
any target still has its KL terms and its texture.

A 3D target may be a label with its own std. q's likelihood is then the mean over the label's distribution, which q's
std weights. Terms without a predicted std (prior-net, joints after Procrustes) are weighted by `losses.label_weight`,
in the sum and in the count.

Every term is a sum and a count of coordinates. Counts are added over all workers before the division, so two workers
with half a batch each take the same step as one worker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from annotator.hand.model import HandModel
from annotator.model.amvur import Gaussian
from annotator.model.camera import WeakCamera, fit_camera, joints2d_covariance
from annotator.model.network import Network, Prediction
from annotator.model.prior_net import PRIOR_STD_MM, PriorHand
from annotator.render import interpolate as paint
from annotator.render import rasterize
from trainer import losses
from trainer.batch import Batch
from trainer.config import LossConfig
from trainer.keyed_random import Draws, keys


@dataclass(frozen=True)
class Term:
    """The sum of a loss, and the count of its values."""

    sum: Tensor  # ()
    count: Tensor  # ()


def _term(values: Tensor, known: Tensor) -> Term:
    """Sum values (B, ...) where `known` (the leading dimensions) is true, or with `known` as weights."""
    weight = known.to(values.dtype).reshape(*known.shape, *[1] * (values.ndim - known.ndim)).expand_as(values)
    # Not a product: unknown values may be NaN.
    return Term((torch.where(weight > 0, values, 0.0) * weight).sum(), weight.sum())


@dataclass(frozen=True)
class _Targets:
    """The targets of a batch that several terms share; weights follow the std of labels, and are 0 where unknown."""

    camera: Tensor  # (B, 6)
    has_camera: Tensor  # (B,)
    is_detector_target: Tensor  # (B,): a detector's 3D joints are the only ones
    vertices_std_mm: Tensor  # (B, V, 3)
    joints_std_mm: Tensor  # (B, 21, 3)
    vertex_weight: Tensor  # (B, V, 3)
    joint_weight: Tensor  # (B, 20, 3), without the wrist
    hand_weight: Tensor  # (B,)


def _prior(mean_mm: Tensor) -> Gaussian:
    return Gaussian(mean_mm, torch.full_like(mean_mm, PRIOR_STD_MM))


class Objective(nn.Module):
    """The terms of the loss and their weights, without parameters."""

    faces: Tensor  # (F, 3)

    def __init__(self, config: LossConfig, network: Network, hand: HandModel) -> None:
        super().__init__()
        self.config = config
        self.network_config = network.config
        # A draw of V has the correlation that the variance of joints assumes for vertices.
        self._errs_together = network.config.amvur.joint_variance == "shared"
        self.limits = losses.JointLimits(hand)
        self.register_buffer("faces", network.faces, persistent=False)
        prior = config.prior
        #: Weight of each term in the total.
        self.weights = {
            "vertices": config.vertices,
            "joints3d": config.joints3d,
            "joints2d": config.joints2d,
            "camera": config.camera,
            "aligned": config.aligned,
            "detector_joints3d": config.detector_joints3d,
            "texture": config.texture,
            "kl_vertices": config.kl * config.kl_vertices * config.vertices,
            "kl_joints3d": config.kl * config.kl_joints3d * config.joints3d,
            "kl_camera": config.kl * config.kl_camera * config.camera,
            "prior_vertices": prior * config.vertices,
            "prior_joints3d": prior * config.joints3d,
            "prior_joints2d": prior * config.joints2d,
            "prior_camera": prior * config.camera,
            "prior_aligned": prior * config.aligned,
            "prior_detector_joints3d": prior * config.detector_joints3d,
            "landmarks": config.landmarks,
            "landmarks_depth": config.landmarks,
            "limits": config.limits,
            "pose": config.pose,
            "shape": config.shape,
            # The same number of images counts for each side.
            "side_right": config.side / 2,
            "side_left": config.side / 2,
            "presence_hand": config.presence / 2,
            "presence_none": config.presence / 2,
            "joint_visible": config.joint_visible,
        }

    def terms(self, prediction: Prediction, batch: Batch, images: Tensor) -> dict[str, Term]:
        """Return every term of this network by name; `images` (B, 3, H, W) are its input."""
        targets = self._targets(batch)
        draws = Draws(keys(batch.key, 1))
        terms = self._amvur(prediction, batch, targets, draws)
        terms |= self._prior_net(prediction, batch, targets)
        terms |= self._landmarks(prediction, batch, targets)
        if prediction.joint_visible_logit is not None:
            terms["joint_visible"] = _term(
                losses.visibility_loss(prediction.joint_visible_logit, batch.joint_visible),
                batch.has_joint_visible,
            )
        if prediction.rgb is not None:
            terms["texture"] = self._texture(prediction, batch, images, draws)
        return terms | _side_and_presence(prediction, batch.has_hand)

    def total(self, terms: dict[str, Term]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted loss for the backward pass, and the mean per term over all workers (no gradient).

        DDP averages gradients over workers, so the loss is scaled by their number. The result is the gradient of sum /
        count over the whole batch.
        """
        names = sorted(terms)
        counts = torch.stack([terms[name].count.detach() for name in names])
        sums = torch.stack([terms[name].sum.detach() for name in names])
        workers = 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            workers = torch.distributed.get_world_size()
            both = torch.stack([counts, sums])
            torch.distributed.all_reduce(both)
            counts, sums = both
        counts = counts.clamp_min(1e-6)
        weighted = [
            self.weights[name] * terms[name].sum / count for name, count in zip(names, counts, strict=True)
        ]
        return workers * torch.stack(weighted).sum(), dict(zip(names, sums / counts, strict=True))

    def _targets(self, batch: Batch) -> _Targets:
        camera, has_camera = fit_camera(batch.joints3d_mm, batch.joints2d, batch.has_joints2d)
        vertices_std_mm = self.config.label_std_scale * batch.vertices_std_mm
        joints_std_mm = self.config.label_std_scale * batch.joints3d_std_mm
        joint_weight = losses.label_weight(joints_std_mm[:, 1:]) * batch.has_joints3d[:, None, None]
        return _Targets(
            camera=camera,
            has_camera=has_camera & batch.has_joints3d,
            # With weight 0 a detector's joints do not count as a target, so the pose prior still applies.
            is_detector_target=batch.has_guess3d & ~batch.has_joints3d & (self.config.detector_joints3d > 0),
            vertices_std_mm=vertices_std_mm,
            joints_std_mm=joints_std_mm,
            vertex_weight=losses.label_weight(vertices_std_mm) * batch.has_vertices[:, None, None],
            joint_weight=joint_weight,
            # One weight per hand: with a weight per joint, the Procrustes fit would not minimise the sum.
            hand_weight=joint_weight.mean((1, 2)),
        )

    def _amvur(
        self, prediction: Prediction, batch: Batch, targets: _Targets, draws: Draws
    ) -> dict[str, Term]:
        """Return the terms of q and its camera."""
        q, camera = prediction.joints3d, prediction.camera
        return {
            "vertices": _term(
                self._likelihood(
                    losses.vertices_loss, prediction.vertices, batch.vertices_mm, targets.vertices_std_mm
                ),
                batch.has_vertices,
            ),
            "joints3d": _term(
                self._likelihood(losses.joints3d_loss, q, batch.joints3d_mm, targets.joints_std_mm),
                batch.has_joints3d,
            ),
            "joints2d": self._joints2d(q, camera, batch, draws),
            "camera": self._camera(
                losses.camera_loss(camera, targets.camera), targets.has_camera, batch.has_hand
            ),
            **self._aligned("", q, batch, targets),
        }

    def _prior_net(self, prediction: Prediction, batch: Batch, targets: _Targets) -> dict[str, Term]:
        """Return the terms of prior-net, and with AMVUR behind it those of p and the KL; empty without prior-net."""
        prior, camera, every = prediction.prior, prediction.prior_camera, batch.has_hand
        if prior is None or camera is None:
            return {}
        is_unknown = every & ~batch.has_joints3d & ~targets.is_detector_target
        terms = {
            # A sum over the 15 joints, so that one joint bent too far keeps its full weight.
            "limits": _term(self.limits(prior.rotations).sum((1, 2)), every),
            "pose": _term(prior.coefficients.square() / 2, is_unknown),
            "shape": _term(prior.betas.square() / 2, every),
        }
        if self.network_config.variant != "both":
            return terms
        vertices, joints = _prior(prior.vertices_mm), _prior(prior.joints3d_mm)
        return (
            terms
            | self._kl(prediction, prior, camera, every)
            | {
                "prior_vertices": _term(
                    losses.vertices_loss(vertices, batch.vertices_mm), targets.vertex_weight
                ),
                "prior_joints3d": _term(
                    losses.joints3d_loss(joints, batch.joints3d_mm), targets.joint_weight
                ),
                **self._aligned("prior_", joints, batch, targets),
                "prior_joints2d": self._joints2d(joints, camera, batch, None),
                "prior_camera": self._camera(
                    losses.camera_loss(camera, targets.camera), targets.has_camera, every
                ),
            }
        )

    def _landmarks(self, prediction: Prediction, batch: Batch, targets: _Targets) -> dict[str, Term]:
        """Return the terms of landmark maps and of a landmark network; empty without either."""
        terms = {}
        if prediction.landmarks is not None:
            terms["landmarks"] = _term(
                losses.landmarks_loss(prediction.landmarks, batch.joints2d, batch.joints2d_std),
                batch.has_joints2d,
            )
        if prediction.landmark_hand is not None:
            image = prediction.landmark_hand.image
            terms["landmarks"] = _term(
                losses.read_out_loss(image[..., :2], batch.joints2d, batch.joints2d_std), batch.has_joints2d
            )
            per_mm = targets.camera[:, :1] / 100
            depth, depth_std = (per_mm * mm[..., 2] for mm in (batch.joints3d_mm, targets.joints_std_mm))
            terms["landmarks_depth"] = _term(
                losses.read_out_loss(image[..., 2:], depth[..., None], depth_std),
                targets.has_camera[:, None].expand_as(depth),
            )
        return terms

    def _likelihood(
        self, loss: Callable[..., Tensor], q: Gaussian, target_mm: Tensor, label_std_mm: Tensor
    ) -> Tensor:
        """Return (3) or (5) of q's means and std; with `std: aligned`, std learns errors after Procrustes.

        A label's std describes errors with aligned wrists, so the latter ignores it.
        """
        if self.config.std == "wrist":
            return loss(q, target_mm, label_std_mm)
        values = loss(Gaussian(q.mean_mm, q.std_mm.detach()), target_mm)
        of_std = losses.aligned_std_loss(q, target_mm)
        return values + of_std[:, of_std.shape[1] - values.shape[1] :]  # joints without the wrist

    def _aligned(self, prefix: str, joints: Gaussian, batch: Batch, targets: _Targets) -> dict[str, Term]:
        """Return the terms after Procrustes that have a weight: each fit takes a few percent of a step."""
        return {
            prefix + name: _term(losses.aligned_loss(joints.mean_mm, target_mm), known)
            for name, target_mm, known in (
                ("aligned", batch.joints3d_mm, targets.hand_weight),
                ("detector_joints3d", batch.guess3d_mm, targets.is_detector_target),
            )
            if self.weights[prefix + name]
        }

    def _kl(self, q: Prediction, prior: PriorHand, camera: WeakCamera, every: Tensor) -> dict[str, Term]:
        """Return the KL terms of (3), (5) and (8); without `kl_moves_prior`, prior-net is a constant in them."""
        vertices_mm, joints3d_mm = prior.vertices_mm, prior.joints3d_mm
        if not self.config.kl_moves_prior:
            vertices_mm, joints3d_mm = vertices_mm.detach(), joints3d_mm.detach()
            camera = WeakCamera(
                *(
                    each.detach()
                    for each in (camera.scale_per_mm, camera.rotvec, camera.translation, camera.std)
                )
            )
        return {
            "kl_vertices": _term(losses.vertices_kl(q.vertices, vertices_mm), every),
            "kl_joints3d": _term(losses.joints3d_kl(q.joints3d, joints3d_mm), every),
            "kl_camera": self._camera(losses.camera_kl(q.camera, camera), every, every),
        }

    def _camera(self, values: Tensor, known: Tensor, has_hand: Tensor) -> Term:
        """Sum values (B, 6) of a camera. Disabled parts do not count; r needs no label, its target is 0."""
        if not self.network_config.camera.rotation:
            return _term(values[:, [0, 4, 5]], known)
        is_rotation = torch.tensor([0, 1, 1, 1, 0, 0], dtype=torch.bool, device=values.device)
        return _term(values, known[:, None] | (is_rotation & has_hand[:, None]))

    def _joints2d(self, q: Gaussian, camera: WeakCamera, batch: Batch, draws: Draws | None) -> Term:
        """Return L_J2: (6) at the means; with `draws`, at drawn J3 and C where 3D is hidden (8), or everywhere.

        V enters only through J3 = R V, so J3 is drawn from its own marginal.
        """
        covariance = joints2d_covariance(q, camera, self.network_config.camera.annotation_noise)
        projected = camera.project(q.mean_mm)[..., :2]
        if draws is not None and (self.config.draw or self.config.draw_all):
            joints = losses.reparameterized(q.mean_mm, q.std_mm, draws.normal(21, 3))
            at_draws = _drawn_camera(camera, draws).project(joints)[..., :2]
            at_means = batch.has_joints3d & (not self.config.draw_all)
            projected = torch.where(at_means[:, None, None], projected, at_draws)
        values = losses.joints2d_loss(batch.joints2d, projected, covariance, batch.joints2d_std)
        return _term(values, batch.has_joints2d)

    def _texture(self, prediction: Prediction, batch: Batch, images: Tensor, draws: Draws) -> Term:
        """Return L_tex, (12): the projected coloured mesh against the photo, where the hand is visible.

        With `texture_moves_hand` the gradient reaches mesh and camera through the barycentrics of each pixel. Colours
        are still sampled at constant positions: sampled at the moving mesh, they would match anywhere.
        """
        assert prediction.rgb is not None
        size_px = self.network_config.texture.raster_px
        mesh_mm, camera = prediction.vertices.mean_mm, prediction.camera
        if self.config.draw_all:
            noise = draws.normal(1 if self._errs_together else mesh_mm.shape[1], 3)
            mesh_mm = losses.reparameterized(mesh_mm, prediction.vertices.std_mm, noise)
            camera = _drawn_camera(camera, draws)
        points = camera.project(mesh_mm)
        if not self.config.texture_moves_hand:
            points = points.detach()
        fragments = rasterize(points, self.faces, size_px)
        painted = paint(fragments, prediction.rgb.to(points.dtype), self.faces)
        photo = interpolate(images.float(), size=size_px, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        seen = interpolate(batch.hand_mask.float(), size=size_px, mode="area")[:, 0] > 254
        mask = (fragments.face_ids >= 0) & seen & batch.has_hand[:, None, None]
        return Term(losses.texture_loss(photo, painted, mask).sum(), mask.sum())


def _drawn_camera(camera: WeakCamera, draws: Draws) -> WeakCamera:
    """Draw C from q(C | I), reparameterized."""
    noise = draws.normal(6)
    return WeakCamera(
        losses.reparameterized(camera.scale_per_mm, camera.std[:, 0] / 100, noise[:, 0]).clamp_min(1e-5),
        losses.reparameterized(camera.rotvec, camera.std[:, 1:4], noise[:, 1:4]),
        losses.reparameterized(camera.translation, camera.std[:, 4:], noise[:, 4:]),
        camera.std,
    )


def _side_and_presence(prediction: Prediction, has_hand: Tensor) -> dict[str, Term]:
    """Return the cross-entropy of side and presence: one term per class."""
    all_mirrored = torch.ones_like(prediction.mirrored_is_right, dtype=torch.bool)
    # torch's own cross-entropy raises on NaN; here NaN only skips the step.
    return {
        name: _term(-of_truth.float().clamp_min(1e-12).log(), where)
        for name, of_truth, where in (
            ("side_right", prediction.is_right, has_hand),
            ("side_left", 1 - prediction.mirrored_is_right, all_mirrored),
            ("presence_hand", prediction.is_hand, has_hand),
            ("presence_none", 1 - prediction.is_hand, ~has_hand),
        )
    }
