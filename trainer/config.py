"""Configuration of a training run: one strict YAML file, by name in `configs/train` or by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from annotator.config import NetworkConfig, read_config
from annotator.errors import UserError

#: Targets of an example; each can be withheld.
Target = Literal["joints2d", "joints3d", "vertices", "hand_mask", "guess3d"]
TARGETS: tuple[Target, ...] = ("joints2d", "joints3d", "vertices", "hand_mask", "guess3d")

SYNTHETIC = "synth"


@dataclass(frozen=True)
class SourceConfig:
    """A source of part of each batch."""

    source: str = SYNTHETIC  # "synth", drawn as needed, or a folder or URL of examples
    share: float = 1.0  # of each batch, relative to the other sources
    targets: tuple[Target, ...] = TARGETS  # known targets to use; [joints2d] is weak training
    first: int = 0  # number of the first example
    count: int = 0  # number of examples; 0 = all
    empty: float = 0.0  # share of synthetic photos without a hand; no effect on stored ones

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise UserError(f"share is {self.share}, must be above 0")
        if not 0 <= self.empty < 1:
            raise UserError(f"empty is {self.empty}, must be 0 or more and below 1")
        if self.empty and self.source != SYNTHETIC:
            raise UserError(
                f"empty is for synthetic photos only: for '{self.source}' use `amvur convert --empty`"
            )
        if self.first < 0 or self.count < 0:
            raise UserError("first and count must not be negative")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms of `trainer/losses.py`; each term is a mean over the coordinates of its targets."""

    vertices: float = 1.0  # L_V, (3)
    joints3d: float = 1.0  # L_J3, (5)
    joints2d: float = 1.0  # L_J2, (6)
    camera: float = 1.0  # L_C, (4)
    aligned: float = 0.0  # squared error of 3D joints after Procrustes, not in the paper
    # The same against a detector's 3D joints, where there is no better target.
    detector_joints3d: float = field(default=0.0, metadata={"was": "guess"})
    texture: float = 1.0  # L_tex, (12)
    kl: float = 1.0  # w of (3) and (5), and of the KL terms of (8)
    kl_vertices: float = 1.0  # factors of kl, so that rows of Table 4 can omit each term
    kl_joints3d: float = 1.0
    kl_camera: float = 1.0
    prior: float = 1.0  # prior-net against the same targets
    landmarks: float = 1.0  # 2D landmarks, as maps or read-outs, if the network has them
    limits: float = 1.0  # joint angles of prior-net's hand
    pose: float = 0.0  # prior-net's pose, a standard normal prior, where 3D is hidden; not in the paper
    shape: float = 0.1  # prior-net's betas, a standard normal prior
    side: float = 1.0  # cross-entropy of left against right
    joint_visible: float = 1.0  # cross-entropy of visible against hidden joints, if the network predicts them
    presence: float = 0.0  # cross-entropy of hand against no hand, for data with empty squares
    # Errors that std learns in (3) and (5): with aligned wrists, or after Procrustes.
    std: Literal["wrist", "aligned"] = "wrist"
    # Factor on the std of 3D labels; 0 treats labels as truth. Not in the paper.
    label_std_scale: float = field(default=1.0, metadata={"was": "doubt"})
    draw: bool = True  # L_J2 at drawn J3 and C where 3D is hidden, as in (8); else at their means
    draw_all: bool = False  # the same where 3D is known, and L_tex at drawn V and C
    texture_moves_hand: bool = False  # L_tex has a gradient into mesh and camera, not into colours alone
    kl_moves_prior: bool = True  # KL terms have a gradient into prior-net's hand and camera too

    def __post_init__(self) -> None:
        if self.label_std_scale < 0:
            raise UserError(f"loss: label_std_scale is {self.label_std_scale}, must not be negative")


@dataclass(frozen=True)
class AugmentConfig:
    """Strength of augmentation. Synthetic photos already vary, so only their colours change."""

    # Cut crops upright and tight around the known 2D joints; rotation, zoom and shift are then offsets from that.
    upright: bool = False
    rotation_deg: float = 45.0  # maximum, uniform, both ways, in the image plane
    zoom: float = 1.25  # maximum factor, larger or smaller
    shift: float = 0.12  # maximum, crop half-sides, each way
    colour: float = 0.25  # brightness, contrast, saturation and balance
    blur: float = 0.3  # share of photos blurred or coarsened
    noise: float = 0.03  # maximum std, for pixels in 0..1
    backdrop: float = 0.0  # share of photos with a hand mask that get a drawn background
    erase: float = 0.3  # share of photos with a covering patch

    def __post_init__(self) -> None:
        if self.zoom < 1:
            raise UserError(f"augment: zoom is {self.zoom}, must be 1 or more")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule."""

    kind: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-4
    backbone_share: float = 1.0  # factor on the backbone's learning rate
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # maximum norm of all gradients together; 0 = no limit
    warmup_steps: int = 200
    schedule: Literal["cosine", "constant"] = "cosine"  # down to a hundredth at the last step
    ema: float = 0.999  # decay of the running mean of weights that is saved; 0 saves the last weights


@dataclass(frozen=True)
class ValidationConfig:
    """Held-out examples that decide how long a run takes: it ends when their error stops improving."""

    source: str = ""  # a folder or URL of examples, or a cache; empty = the run takes all its steps
    first: int = 0  # number of the first example
    count: int = 0  # number of examples; 0 = all
    every: int = 100  # steps between two measurements
    patience: int = 5  # measurements without a gain before the run ends
    gain: float = 0.005  # smallest gain that counts, share of the best error so far
    # Last steps of the run, in which the learning rate falls to a hundredth: after the error stopped improving, or at
    # the end of `steps`.
    cool_down: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.patience < 1 or self.cool_down < 0:
            raise UserError(
                "validation: every and patience must be at least 1, and cool_down must not be negative"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    network: NetworkConfig = field(default_factory=NetworkConfig, metadata={"group": "network"})
    hand: str = "open"  # or mano:PATH
    # Checkpoint to start from; or, for the backbone hand_landmark, MediaPipe's hand_landmarker.task or a network
    # that tools/landmarker.py distilled from it.
    start_from: str = ""
    # Checkpoint whose backbone and read-outs alone to start from; the rest may differ. `start_from` has precedence.
    backbone_from: str = ""
    data: tuple[SourceConfig, ...] = (SourceConfig(),)
    batch_size: int = 32  # over all workers
    steps: int = 100_000
    seed: int = 0
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    freeze_normalisation: bool = False  # batch norms keep their statistics
    share_normalisation: bool = False  # statistics over all workers' photos; several workers need GPUs
    freeze_early: bool = False  # freeze the backbone's layers before stride 8
    freeze_backbone: bool = False  # freeze backbone and read-outs, batch norms included
    # Steps of inverse kinematics on synthetic joints before the first photo (read_outs only).
    inverse_kinematics: int = 0
    loaders: int = 1  # processes per worker that read or draw examples; 0 = in the training process
    checkpoint_every: int = 500
    keep: int = 3  # number of checkpoints to keep
    log_every: int = 20
    pictures_every: int = 500

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("steps", 1), ("loaders", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}, must be at least {least}")
        for name in ("keep", "log_every", "pictures_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}, must not be negative")
        if self.validation.cool_down > self.steps:
            raise UserError(
                f"validation.cool_down is {self.validation.cool_down}, must not exceed steps ({self.steps})"
            )
        if self.freeze_normalisation and self.share_normalisation:
            raise UserError(
                "freeze_normalisation and share_normalisation contradict each other: set one of them"
            )
        if self.inverse_kinematics and not self.network.read_outs:
            raise UserError("inverse_kinematics needs landmarks: set network.read_outs=true")
        if not self.data:
            raise UserError("data is empty: give at least one source")


def read_train_config(
    name: str, data: Sequence[str] = (), hand: str | None = None, settings: Sequence[str] = ()
) -> TrainConfig:
    """Read a configuration by name or path, and override settings.

    Args:
        name: of a file in `configs/train` or `configs`, or a path.
        data: folders or URLs of examples that replace the configured sources, in equal shares and with the targets of
            its first source.
        hand: the hand model.
        settings: `KEY=VALUE` each.

    Raises:
        UserError: the configuration does not exist or is invalid.
    """
    config = read_config(TrainConfig, "train", name, settings)
    if data:
        first = config.data[0]
        sources = (
            replace(first, source=place, share=1.0, empty=first.empty if place == SYNTHETIC else 0.0)
            for place in data
        )
        config = replace(config, data=tuple(sources))
    return replace(config, hand=hand) if hand else config
