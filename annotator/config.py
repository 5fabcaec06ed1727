"""Configurations: typed, strict, located by name in the package or by path.

A YAML file sets fields of one dataclass. An unknown key or a value of the wrong type raises a `UserError` with the
key and the valid values.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from annotator.errors import UserError, first_line

Config = TypeVar("Config")


@dataclass(frozen=True)
class AmvurConfig:
    """Section 3.3; the switches of Table 5."""

    kind: Literal["attention", "fully_connected"] = "attention"  # Table 5 A is fully connected
    cross_attention: bool = True
    self_attention: bool = True
    positional: Literal["template", "index"] = "template"  # Table 5 B and C: index
    # Offsets are added to the mean hand, or to prior-net's hand, whose vertices are then token positions too.
    start: Literal["mean_hand", "prior_net"] = "mean_hand"
    tokens: int = 195  # vertices used as tokens; 0 = every vertex, as in the paper
    upsampling: Literal["fixed", "learned"] = "fixed"  # from tokens to vertices
    width: int = 128  # d of formulas (9) and (10) in the first stage; each next stage has a quarter
    stages: int = 1
    blocks: int = 2  # in each stage; a block is (9), (10) and a feed-forward layer
    heads: int = 4
    # (9) and (10) as written: no normalisation, no feed-forward, and tokens that are sums of g and position.
    plain: bool = False
    # Tokens also hold the backbone's maps at the projections of prior-net's vertices and joints: (11)'s reverse
    # interpolation, for shape as well as colour.
    aligned: bool = False
    # sigma_J^2 from sigma_V^2: as in the paper, or as if all vertices had one common error.
    joint_variance: Literal["independent", "shared"] = "independent"

    @property
    def widths(self) -> tuple[int, ...]:
        """Token width per stage."""
        return tuple(self.width // 4**stage for stage in range(self.stages))


@dataclass(frozen=True)
class CameraConfig:
    """Weak perspective, section 3.1."""

    # Off: V and J3 are in crop axes already, so r would be a second global rotation.
    rotation: bool = False
    annotation_noise: float = 0.01  # std of a 2D label, crop half-sides; the floor of Sigma_2


@dataclass(frozen=True)
class TextureConfig:
    """Section 3.4; the switch of Table 6."""

    kind: Literal["occlusion_aware", "global", "none"] = "occlusion_aware"  # "global" is HAND in Table 6
    # Also sample the photo's own colours, beside the first convolution's features, and start from them.
    photo_colour: bool = True
    tokens: int = 195  # keys of the self-attention; 0 = every vertex
    width: int = 64
    raster_px: int = 128  # side of the image in which vertex visibility is computed


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that determines the network's structure, except the hand model's size."""

    backbone: str = "efficientnet_b0"
    imagenet: bool = False  # start the backbone from public ImageNet weights
    crop_px: int = 128
    variant: Literal["prior_net", "amvur", "both"] = "both"  # the three rows of Tables 1 and 2
    landmarks: bool = False  # append joint positions to the global feature, see model/landmark_maps.py
    # Use linear read-outs of the global feature instead, as in MediaPipe's network, see model/landmarker/network.py.
    read_outs: bool = False
    # With read-outs: solver steps from prior-net's hand to the landmarks, see model/refinement.py.
    refine_steps: int = 0
    joint_visibility: bool = False  # predict whether each joint is visible, see model/visibility.py
    amvur: AmvurConfig = field(default_factory=AmvurConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)
    texture: TextureConfig = field(default_factory=TextureConfig)
    seed: int = 0  # of the weights before training

    def __post_init__(self) -> None:
        _at_least("crop_px", self.crop_px, 32)
        if self.landmarks and self.read_outs:
            raise UserError("landmarks and read_outs both predict joint positions: set one of them to false")
        if self.joint_visibility and not (self.landmarks or self.read_outs):
            raise UserError("joint_visibility needs landmarks: set read_outs or landmarks to true")
        _at_least("refine_steps", self.refine_steps, 0)
        if self.refine_steps and (not self.read_outs or self.variant == "amvur"):
            raise UserError("refine_steps needs read_outs: true and a variant with prior-net")
        _at_least("amvur: width", self.amvur.width, 1)
        for name in ("heads", "stages", "blocks"):
            _at_least(f"amvur: {name}", getattr(self.amvur, name), 1)
        _at_least("texture: width", self.texture.width, 1)
        _at_least("texture: raster_px", self.texture.raster_px, 8)
        for part, tokens in (("amvur", self.amvur.tokens), ("texture", self.texture.tokens)):
            if tokens:  # the five fingertips are always among them
                _at_least(f"{part}: tokens", tokens, 5)
        if self.variant == "amvur" and self.amvur.start == "prior_net":
            raise UserError("amvur: start is prior_net, which the variant amvur does not have: use mean_hand")
        if self.variant == "amvur" and self.amvur.aligned:
            raise UserError(
                "amvur: aligned needs prior-net, which the variant amvur does not have: set it to false"
            )
        step = 4 ** (self.amvur.stages - 1) * self.amvur.heads
        if self.amvur.width % step:
            raise UserError(
                f"amvur: width {self.amvur.width} with {self.amvur.stages} stages and {self.amvur.heads} heads "
                f"must be a multiple of {step}"
            )


@dataclass(frozen=True)
class FitConfig:
    """Weights and tolerances in the cost of `amvur fit`; see `annotator/fitting/objective.py` for the formula."""

    tolerance_2d: float = 0.02  # a typical error of a landmark in the photo, share of the hand's span
    tolerance_3d_mm: float = 10.0  # likewise in 3D, on a palm of 90 mm
    depth_weight: float = 3.0  # of the 3D term
    pose_weight: float = 0.3  # of the squared pose coefficients
    shape_weight: float = 1.0  # of the squared betas
    most_steps: int = 20  # second-order steps per hand

    def __post_init__(self) -> None:
        for name in ("tolerance_2d", "tolerance_3d_mm", "pose_weight", "shape_weight"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}, must be greater than 0")
        if not self.depth_weight >= 0:
            raise UserError(f"depth_weight is {self.depth_weight}, must be at least 0")
        _at_least("most_steps", self.most_steps, 1)


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"{name} is {value}, must be at least {least}")


def from_dict(kind: type[Config], values: Any, where: str) -> Config:
    """Build a configuration dataclass from parsed YAML or JSON; `where` names it in errors.

    Raises:
        UserError: an unknown key, or a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, found {values!r}")
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    renamed = {f.metadata["was"]: f.name for f in known.values() if "was" in f.metadata}
    built = {}
    for key, value in ((renamed.get(key, key), value) for key, value in values.items()):
        if key not in known:
            near = difflib.get_close_matches(str(key), list(known), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known)}"
            raise UserError(f"{where}: unknown key '{key}'; {hint}")
        group = known[key].metadata.get("group")
        if group and isinstance(value, str):  # a section may name a shipped file
            built[key] = read_config(hints[key], group, value)
        else:
            built[key] = _checked(hints[key], value, key, where)
    try:
        return kind(**built)
    except UserError as error:  # a value out of range
        raise UserError(f"{where}: {error}") from None


def _checked(hint: Any, value: Any, key: str, where: str) -> Any:
    """Return `value` as the field's type, or raise a UserError with the key."""
    if is_dataclass(hint):
        return from_dict(hint, value, f"{where}: {key}")  # type: ignore[arg-type]
    if get_origin(hint) is tuple:  # tuple[X, ...]: a list in YAML
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {key} is {value!r}, must be a list")
        (element, _) = get_args(hint)
        return tuple(_checked(element, v, f"{key} {number}", where) for number, v in enumerate(value, 1))
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise UserError(f"{where}: {key} is {value!r}, may be {', '.join(map(str, get_args(hint)))}")
        return value
    if hint is str and value is None:  # `--set backbone_from=` and a key without a value
        return ""
    if hint is float and type(value) is int:
        return float(value)
    if hint is float and isinstance(value, str):
        with suppress(ValueError):  # YAML reads 1e-4 as a string, and only 1.0e-4 as a number
            return float(value)
    if type(value) is not hint:
        raise UserError(f"{where}: {key} is {value!r}, must be {hint.__name__}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Return a configuration as nested dictionaries, the inverse of `from_dict`."""
    return asdict(config)


def config_folder() -> Path:
    """Return the folder of the shipped configurations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def read_config(kind: type[Config], group: str, name: str, settings: Sequence[str] = ()) -> Config:
    """Read `configs/GROUP/NAME.yaml`, `configs/NAME.yaml`, or the YAML file at the path `name`.

    `settings` override it, as `steps=100` or `loss.texture=0`; values are YAML.

    Raises:
        UserError: unknown configuration, invalid YAML, or invalid content.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _shipped(group, name)
    if not path.is_file():
        folder = config_folder() / group
        names = ", ".join(
            sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))
        )
        raise UserError(f"no configuration '{name}': give a path to a .yaml file, or one of {names}")
    values = _read_yaml(path)
    for setting in settings:
        _set(kind, values, setting)
    return from_dict(kind, values, str(path))


def _read_yaml(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({first_line(error)})") from None
    return {} if values is None else values


def _shipped(group: str, name: str) -> Path:
    """Return the file of a name: in its group, or outside the groups, such as `paper/weak`."""
    in_group = config_folder() / group / f"{name}.yaml"
    return in_group if in_group.is_file() else config_folder() / f"{name}.yaml"


def _set(kind: type, values: Any, setting: str) -> None:
    """Set `a.b=VALUE` in nested mappings; a part given by name is expanded first."""
    path, equals, text = setting.partition("=")
    *parents, last = path.split(".")
    groups = {f.name: f.metadata["group"] for f in fields(kind) if "group" in f.metadata}
    for parent in parents:
        inside = values.setdefault(parent, {}) if isinstance(values, dict) else None
        if isinstance(inside, str) and parent in groups:
            inside = values[parent] = _read_yaml(_shipped(groups[parent], inside))
        values = inside
    if not equals or not isinstance(values, dict):
        raise UserError(f"setting '{setting}': give KEY=VALUE, such as steps=100 or loss.texture=0")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"setting '{setting}': '{text}' is not a YAML value") from None
