"""The losses of sections 3.2 to 3.4, formulas (3) to (6), (8) and (12), each a pure function.

Not in the paper: joints after Procrustes, std after Procrustes, landmarks, and targets with a std of their own. The
network's formulas, (9) to (11), are in `annotator/model/`.

**Unit of length: centimetres.** Functions take millimetres, like all code, and divide by `CM`. The unit matters: it
sets how far a prior with a variance of 1 lets a vertex stray, and the size of sigma. With w = 1 the log terms of (3)
cancel, and the sigma that minimises

    e^2 / (2 sigma^2) + log sigma + w KL( N(mu, sigma^2) || N(V_p, 1) )

has sigma^2 = |e| in units of length: an error of 10 mm gives a sigma of 10 mm in centimetres, of 3 mm in
millimetres and of 100 mm in metres. Any other w gives

    sigma^2 = ( w - 1 + sqrt((w - 1)^2 + 4 w e^2) ) / (2 w),

which tends to e^2, the squared error, as w goes to 0. So sigma ranks errors but has their size only at a centimetre;
calibration corrects the size. The camera has its own units: crop half-sides per decimetre, radians, crop half-sides. 2D
joints are in crop half-sides.

**Sum or mean.** Functions do not reduce: they return one number per example and coordinate (per joint in 2D, per pixel
in colour). The objective masks these and divides their sum by the count of known values over all workers. So each loss
is a mean over the coordinates of known targets, with x, y and z counted separately. Its size depends neither on the
number of vertices nor on the labelled share of a batch.

**Weights** are in `trainer.config.LossConfig`: one per mean, and w = `kl` for the KL terms of (3), (5) and (8).

**Gradients.** Only two things are detached: the fit inside `aligned_loss`, whose own slope is zero, and the means in
`aligned_std_loss`. A KL pulls on both sides: q towards prior-net's output and, with `kl_moves_prior`, prior-net (its
hand and its camera) towards q; the std of p is constant. With `amvur.start: prior_net`, q's mean is V_p, a constant
here, plus offsets. Then a likelihood moves only the offsets, and a KL pulls offsets to zero and V_p by as much in
their direction.

Likelihoods omit constant terms (log sqrt(2 pi) per number). All functions need float32 or better.
"""

from __future__ import annotations

import numpy as np
import roma
import torch
from torch import Tensor
from torch.nn.functional import softplus

from annotator.hand import HandModel, anatomy
from annotator.hand.joint_angles import JointAngles
from annotator.model.amvur import Gaussian
from annotator.model.camera import PRIOR_STD, WeakCamera
from annotator.model.prior_net import PRIOR_STD_MM

#: Millimetres in the losses' unit of length.
CM = 10.0

#: Crop half-sides: below it the loss of a read-out landmark is quadratic in its distance, above it linear.
LANDMARK_SCALE = 0.02

#: Free range beyond a joint limit.
TOLERANCE_DEG = 2.0


def gaussian_nll(target: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return `-log N(target | mean, std^2)` per element without the constant: e^2 / (2 sigma^2) + log sigma."""
    return ((target - mean) / std).square() / 2 + std.log()


def kl_to_prior(mean: Tensor, std: Tensor, prior_mean: Tensor, prior_std: float = 1.0) -> Tensor:
    """Return `KL( N(mean, std^2) || N(prior_mean, prior_std^2) )` per element.

    With a `prior_std` of 1 this is 1/2 [ sigma^2 + (mu - V_p)^2 - 1 - log sigma^2 ], as in (3).
    """
    ratio = std / prior_std
    return (ratio.square() + ((mean - prior_mean) / prior_std).square() - 1) / 2 - ratio.log()


def reparameterized(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """Return a reparameterized draw: `noise` is standard normal, gradients reach mean and std."""
    return mean + std * noise


def vertices_loss(q: Gaussian, target_mm: Tensor, label_std_mm: Tensor | None = None) -> Tensor:
    """Return the likelihood of L_V (B, V, 3); formula (3) is this + w `vertices_kl`.

    With prior-net's constant std it is half a squared error. Not in the paper: if the target is a prediction with std
    `label_std_mm` (B, V, 3), this is the mean over N(target, label_std^2). Then e^2 becomes e^2 + label_std^2 in the
    formula for the best sigma above. So a network that learns from labels does not become more certain than they
    are, as far as w lets sigma go. Each target pulls the mean by 1 / sigma^2.
    """
    values = gaussian_nll(target_mm / CM, q.mean_mm / CM, q.std_mm / CM)
    return values if label_std_mm is None else values + (label_std_mm / q.std_mm).square() / 2


def vertices_kl(q: Gaussian, prior_mm: Tensor) -> Tensor:
    """Return KL( q(V) || p(V) ) of (3) and (8), (B, V, 3), with p(V) = N(prior_mm, one centimetre)."""
    return kl_to_prior(q.mean_mm / CM, q.std_mm / CM, prior_mm / CM, PRIOR_STD_MM / CM)


def joints3d_loss(q: Gaussian, target_mm: Tensor, label_std_mm: Tensor | None = None) -> Tensor:
    """Return the likelihood of L_J3: (B, 21, 3) to (B, 20, 3); formula (5) is this + w `joints3d_kl`.

    The wrist is excluded: it is zero by definition, in the target and in q. `label_std_mm` (B, 21, 3): see
    `vertices_loss`.
    """
    return vertices_loss(
        _without_wrist(q), target_mm[:, 1:], None if label_std_mm is None else label_std_mm[:, 1:]
    )


def label_weight(label_std_mm: Tensor) -> Tensor:
    """Return the weight of targets with std `label_std_mm`, of any shape, in losses without a predicted std.

    Not in the paper. For p, whose std is a constant centimetre: 1 for truth, 1/2 for a std of one centimetre, 1/5 for
    two. It is the inverse of the sum of the label's and p's variances.
    """
    return 1 / (1 + (label_std_mm / CM).square())


def joints3d_kl(q: Gaussian, prior_mm: Tensor) -> Tensor:
    """Return KL( q(J3) || p(J3) ) of (5) and (8) for all joints but the wrist: (B, 21, 3) to (B, 20, 3)."""
    return vertices_kl(_without_wrist(q), prior_mm[:, 1:])


def aligned_loss(mean_mm: Tensor, target_mm: Tensor) -> Tensor:
    """Return half the squared error of joints after Procrustes, square centimetres (B, 21, 3). Not in the paper.

    `mean_mm` (B, 21, 3) are moved, rotated and scaled to lie closest to `target_mm`, as for PA-MPJPE. The global
    rotation takes long to learn, and until then its errors hide those of the fingers; this loss trains the fingers
    meanwhile. No gradient goes through the fit: at the optimum its slope is zero.
    """
    rotation, scale = _procrustes(mean_mm, target_mm)
    x, y = mean_mm - mean_mm.mean(1, keepdim=True), target_mm - target_mm.mean(1, keepdim=True)
    return ((scale * x @ rotation.mT - y) / CM).square() / 2


def aligned_std_loss(q: Gaussian, target_mm: Tensor) -> Tensor:
    """Return the likelihood of errors after Procrustes, as a function of std alone, (B, N, 3). Not in the paper.

    The target's points (B, N, 3) are rotated into q's frame, the frame of std. Errors of the global rotation hardly
    depend on a hand's shape; a std trained on this loss ranks shapes.
    """
    rotation, scale = _procrustes(q.mean_mm, target_mm)
    x, y = (points - points.mean(1, keepdim=True) for points in (q.mean_mm.detach(), target_mm))
    return gaussian_nll(y @ rotation / CM, scale * x / CM, q.std_mm / CM)


@torch.no_grad()
def _procrustes(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotation (B, 3, 3) and scale (B, 1, 1) about the means that align points (B, N, 3) with the target."""
    # Older versions raise on NaN. The loss of such points is still NaN, and the step is skipped.
    rotation, _, scale = roma.rigid_points_registration(
        points.nan_to_num(0, 0, 0), target.nan_to_num(0, 0, 0), compute_scaling=True
    )
    return rotation, scale[:, None, None]


def _without_wrist(q: Gaussian) -> Gaussian:
    return Gaussian(q.mean_mm[:, 1:], q.std_mm[:, 1:])


def camera_numbers(camera: WeakCamera) -> Tensor:
    """Return the mean of C = (s per decimetre, r, t), (B, 6), in the order and units of `WeakCamera.std`."""
    return torch.cat([camera.scale_per_mm[:, None] * 100, camera.rotvec, camera.translation], 1)


def camera_loss(camera: WeakCamera, target: Tensor) -> Tensor:
    """Return L_C, formula (4), against C* `target` (B, 6) from `annotator.model.camera.fit_camera`: (B, 6).

    s and t have a likelihood. r is always 0, so its likelihood would be unbounded. It has the KL from q(r) to the tight
    prior N(0, PRIOR_STD^2) instead, which needs no label. That term is zero if r is off (std 0).
    """
    numbers, std = camera_numbers(camera), camera.std
    nll = gaussian_nll(target[:, [0, 4, 5]], numbers[:, [0, 4, 5]], std[:, [0, 4, 5]])
    r = numbers[:, 1:4]
    rotation = _kl_where_std(r, std[:, 1:4], torch.zeros_like(r))
    return torch.cat([nll[:, :1], rotation, nll[:, 1:]], 1)


def camera_kl(q: WeakCamera, p: WeakCamera) -> Tensor:
    """Return KL( q(C) || p(C) ) of (8), (B, 6), with p(C) = N(prior-net's camera, PRIOR_STD^2); zero if r is off."""
    return _kl_where_std(camera_numbers(q), q.std, camera_numbers(p))


def _kl_where_std(mean: Tensor, std: Tensor, prior_mean: Tensor) -> Tensor:
    """Return `kl_to_prior` with PRIOR_STD; zero for constants, whose std is 0."""
    known = std > 0
    # The inner `where` keeps the logarithm's infinite slope at 0 out of the gradient.
    kl = kl_to_prior(mean, torch.where(known, std, PRIOR_STD), prior_mean, PRIOR_STD)
    return torch.where(known, kl, 0.0)


def joints2d_loss(
    target: Tensor, mean: Tensor, covariance: Tensor, label_std: Tensor | None = None
) -> Tensor:
    """Return L_J2, formula (6): `-log N(J2* | proj(mu_J), Sigma_2)` per joint without the constant, (B, 21).

    `target` and `mean` (B, 21, 2) and `covariance` (B, 21, 2, 2) are in crop half-sides. `label_std` (B, 21) is the std
    of the annotation; its square is added to both variances.
    """
    xx, xy, yy = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    if label_std is not None:
        xx, yy = xx + label_std.square(), yy + label_std.square()
    # x first, then y given x. Rounding must not make the remaining variance negative.
    slope = xy / xx
    rest = torch.maximum(yy - slope * xy, 1e-6 * yy)
    dx, dy = (target - mean).unbind(-1)
    return (dx.square() / xx + (dy - slope * dx).square() / rest + xx.log() + rest.log()) / 2


def landmarks_loss(log_share: Tensor, target: Tensor, std: Tensor) -> Tensor:
    """Return the cross-entropy (B, 21) of maps (B, 21, H, W) with 2D joints `target` (B, 21, 2). Not in the paper.

    The target distribution spreads a joint over the four nearest cells by bilinear weights, so the mean of the best map
    is the joint. Joints beyond the outermost cell centres are clamped to them. This trains several times faster than
    the distance of the map's mean, which has almost no gradient on a flat map. The annotation's `std` (B, 21), crop
    half-sides, reduces a joint's weight: to half at a tenth of a half-side.
    """
    size = torch.tensor([log_share.shape[-1], log_share.shape[-2]], device=target.device)
    cell = torch.minimum(((target + 1) * size - 1).clamp_min(0) / 2, size - 1)
    near = cell.floor().long()
    way = cell - near
    far = torch.minimum(near + 1, size - 1)
    flat, width = log_share.flatten(2), log_share.shape[-1]
    loss = torch.zeros_like(target[..., 0])
    for x, of_x in ((near[..., 0], 1 - way[..., 0]), (far[..., 0], way[..., 0])):
        for y, of_y in ((near[..., 1], 1 - way[..., 1]), (far[..., 1], way[..., 1])):
            loss = loss - of_x * of_y * flat.gather(2, (y * width + x)[..., None])[..., 0]
    return loss / (1 + (std / PRIOR_STD).square())


def read_out_loss(points: Tensor, target: Tensor, std: Tensor) -> Tensor:
    """Return a robust distance (pseudo-Huber) between landmarks and joints, (B, 21). Not in the paper.

    `points` and `target` (B, 21, D) are in crop half-sides; D = 2 in the crop, 1 in depth. The annotation's `std`
    (B, 21), crop half-sides, reduces a joint's weight as in `landmarks_loss`.
    """
    squared = ((points - target) / LANDMARK_SCALE).square().sum(-1)
    return ((1 + squared).sqrt() - 1) / (1 + (std / PRIOR_STD).square())


def visibility_loss(logit: Tensor, visible: Tensor) -> Tensor:
    """Return the cross-entropy (B, 21) of logits against visible joints (B, 21) bool. Not in the paper."""
    return softplus(torch.where(visible, -logit, logit))


def texture_loss(image: Tensor, rendered: Tensor, mask: Tensor) -> Tensor:
    """Return L_tex, formula (12): M |I - I'| per pixel, the mean of its three colours, (B, H, W).

    `image` and `rendered` (B, H, W, 3) are in 0..1, `mask` (B, H, W) in 0..1 or bool; divide the sum by the mask's sum.
    The norm is the absolute difference: a highlight, a ring or a strip of background inside the mask then counts as
    one wrong pixel among others. Squared differences would spread its colour over the skin.
    """
    return torch.where(mask > 0, (image - rendered).abs().mean(-1) * mask, 0.0)


class JointLimits(JointAngles):
    """Penalty on finger angles beyond the limits of real hands, for weak training. No parameters."""

    lower: Tensor  # (5, 3, 3)
    upper: Tensor  # (5, 3, 3)

    def __init__(self, hand: HandModel) -> None:
        super().__init__(hand)
        limits = np.zeros((5, 3, 3, 2))
        limits[:, 0, 0], limits[:, :, 1] = anatomy.LIMITS[:, 0], anatomy.LIMITS[:, 1:]
        for name, array in {
            "lower": np.radians(limits[..., 0] - TOLERANCE_DEG),
            "upper": np.radians(limits[..., 1] + TOLERANCE_DEG),
        }.items():
            self.register_buffer(name, torch.from_numpy(array).float(), persistent=False)

    def forward(self, rotations: Tensor) -> Tensor:
        """Return the squared excess beyond the limits, radians squared (B, 15, 3), joints as in `angles`, thumb first.

        Within 30 degrees of gimbal lock, the ambiguous rotations have a lower weight, so that gradients stay bounded.
        Angles wrap from 180 to -180 degrees.
        """
        angles, share = self._read(rotations)
        excess = torch.relu(self.lower - angles) + torch.relu(angles - self.upper)
        return (excess * share).square().flatten(1, 2)
