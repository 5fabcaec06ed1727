"""What a training run is: one YAML file, strict, found by name in `configs/train` or by path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from annotator.config import NetworkConfig, read_config
from annotator.errors import UserError

#: Targets an example may have; each can be withheld.
Target = Literal["joints2d", "joints3d", "vertices", "hand_mask", "guess3d"]
TARGETS: tuple[Target, ...] = ("joints2d", "joints3d", "vertices", "hand_mask", "guess3d")

SYNTHETIC = "synth"


@dataclass(frozen=True)
class SourceConfig:
    """Where some of each batch comes from."""

    source: str = SYNTHETIC  # "synth", drawn as needed, or a folder or URL of examples
    share: float = 1.0  # of each batch, relative to the other sources
    targets: tuple[Target, ...] = TARGETS  # what is used of what is known; [joints2d] is weak training
    first: int = 0  # only examples from this one on ...
    count: int = 0  # ... and only so many; 0 = all
    empty: float = 0.0  # share of drawn photos without a hand; stored ones are what they are

    def __post_init__(self) -> None:
        if self.share <= 0:
            raise UserError(f"share is {self.share}, must be above 0")
        if not 0 <= self.empty < 1:
            raise UserError(f"empty is {self.empty}, must be 0 or more and below 1")
        if self.empty and self.source != SYNTHETIC:
            raise UserError(
                f"empty is for drawn photos; '{self.source}' has those that `amvur convert --empty` put there"
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
    guess: float = 0.0  # the same against what a detector took the joints for, where nothing better is known
    texture: float = 1.0  # L_tex, (12)
    kl: float = 1.0  # w of (3) and (5), and of the KL terms of (8) ...
    kl_vertices: float = 1.0  # ... times these, so that Table 4's rows can leave each out
    kl_joints3d: float = 1.0
    kl_camera: float = 1.0
    prior: float = 1.0  # prior-net against the same targets
    landmarks: float = 1.0  # where joints are seen, as maps or read-outs, where the network has them
    limits: float = 1.0  # joint angles of prior-net's hand
    pose: float = 0.0  # its coefficients, standard normal among poses, where 3D is hidden; not in the paper
    shape: float = 0.1  # its betas, which are standard normal among people
    side: float = 1.0  # cross-entropy of left against right
    presence: float = 0.0  # cross-entropy of a hand against none, for data with squares that hold none
    # Whether (3) and (5) teach std errors wrist on wrist, or what Procrustes leaves of them.
    std: Literal["wrist", "aligned"] = "wrist"
    # Times what 3D labels say of their own std; 0 takes them for the truth. Not in the paper.
    doubt: float = 1.0
    draw: bool = True  # L_J2 at drawn J3 and C where 3D is hidden, as (8) says; else at their means
    draw_all: bool = False  # the same where 3D is known, and L_tex at drawn V and C
    texture_moves_hand: bool = False  # L_tex has a gradient into mesh and camera, not into colours alone

    def __post_init__(self) -> None:
        if self.doubt < 0:
            raise UserError(f"loss: doubt is {self.doubt}, must not be negative")


@dataclass(frozen=True)
class AugmentConfig:
    """How much photos change on their way in, labels with them. Synthetic ones vary by themselves: colours only."""

    # Crops are upright and tight around the known 2D joints; rotation, zoom and shift are then how far they are off.
    upright: bool = False
    rotation_deg: float = 45.0  # uniform, both ways, in the image plane
    zoom: float = 1.25  # up to so much larger or smaller
    shift: float = 0.12  # crop half-sides, each way
    colour: float = 0.25  # brightness, contrast, saturation and balance
    blur: float = 0.3  # share of photos blurred or coarsened
    noise: float = 0.03  # up to this std, of 0..1
    backdrop: float = 0.0  # share of photos with a hand mask whose background is drawn anew
    erase: float = 0.3  # share of photos with a patch of something else before them

    def __post_init__(self) -> None:
        if self.zoom < 1:
            raise UserError(f"augment: zoom is {self.zoom}, must be 1 or more")


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights follow gradients."""

    kind: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = 5e-4
    backbone_share: float = 1.0  # of the learning rate, for the backbone
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of all gradients together; 0 = never
    warmup_steps: int = 200
    schedule: Literal["cosine", "constant"] = "cosine"  # down to a hundredth at the last step
    ema: float = 0.999  # the weights that are kept are a running mean; 0 = the last ones


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    network: NetworkConfig = field(default_factory=NetworkConfig, metadata={"group": "network"})
    hand: str = "open"  # or mano:PATH
    # A checkpoint whose weights to start from; or MediaPipe's hand_landmarker.task, for a backbone hand_landmark.
    start_from: str = ""
    data: tuple[SourceConfig, ...] = (SourceConfig(),)
    batch_size: int = 32  # over all workers together
    steps: int = 100_000
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    freeze_normalisation: bool = False  # batch norms keep their statistics
    freeze_early: bool = False  # the backbone's layers before stride 8 keep what they start from
    freeze_backbone: bool = False  # backbone and read-outs keep what they start from, batch norms included
    # Before the first photo, prior-net learns inverse kinematics from drawn joints for so many steps (read_outs only).
    inverse_kinematics: int = 0
    loaders: int = (
        1  # processes that read or draw examples, for each worker; 0 = none beside the training itself
    )
    checkpoint_every: int = 500
    keep: int = 3  # how many checkpoints
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
        if self.inverse_kinematics and not self.network.read_outs:
            raise UserError("inverse_kinematics needs landmarks to learn from: set network.read_outs=true")
        if not self.data:
            raise UserError("data is empty: give at least one source")


def read_train_config(
    name: str, data: Sequence[str] = (), hand: str | None = None, settings: Sequence[str] = ()
) -> TrainConfig:
    """A configuration by name or path, with some of it changed.

    Args:
        name: of a file in `configs/train` or `configs`, or a path.
        data: places of examples to use in place of the configuration's own, in equal shares and with its first
            source's targets.
        hand: the hand model.
        settings: `KEY=VALUE` each.

    Raises:
        UserError: no such configuration, or wrong inside.
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
