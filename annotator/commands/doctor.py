"""Check every part of amvur on this machine by using it once, with a fix for each failure."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from annotator.errors import UserError

State = Literal["ok", "absent", "broken"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    part: str
    state: State  # absent: not installed or not given
    message: str
    is_needed: bool = True  # by amvur or by the user's options

    @property
    def is_bad(self) -> bool:
        """Whether a needed part does not work."""
        return self.state == "broken" or (self.is_needed and self.state != "ok")


def examine(store: str | None = None, hand: str | None = None, model: str | None = None) -> Iterator[Finding]:
    """Check all parts, one after the other.

    Args:
        store: URL of a folder in a store, to test reading and writing.
        hand: `mano:PATH`, to test MANO.
        model: path or URL of the hand detector's model.
    """
    yield Finding(
        "amvur", "ok", f"{_version('amvur-annotator')}, Python {platform.python_version()}, {sys.platform}"
    )
    yield _check("PyTorch", _torch)
    yield _check("GPU", _gpu, is_needed=False)
    yield _check("default weights", _weights)
    yield _check("nvdiffrast", _nvdiffrast, is_needed=False)
    yield _check("Ray", _ray)
    yield _check("videos", _videos, is_needed=False)
    yield _check("hand detector", lambda: _detector(model), is_needed=model is not None)
    yield _check("MANO", lambda: _mano(hand), is_needed=hand is not None)
    yield _check("store", lambda: _store(store), is_needed=store is not None)


class _AbsentError(Exception):
    """An optional part is missing."""


def _check(part: str, check: Callable[[], str], is_needed: bool = True) -> Finding:
    try:
        return Finding(part, "ok", check(), is_needed)
    except _AbsentError as absent:
        return Finding(part, "absent", str(absent), is_needed)
    except Exception as error:  # any error is the result of the check
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return Finding(part, "broken", " ".join(message.split())[:300], is_needed)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"


def _torch() -> str:
    import torch

    product = torch.ones(8, 8) @ torch.ones(8, 8)
    assert float(product[0, 0]) == 8
    return f"{torch.__version__}, {torch.get_num_threads()} threads on {os.cpu_count()} cores"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        raise _AbsentError(
            "none; everything works on CPUs"
            if built is None
            else f"none that PyTorch (for CUDA {built}) can use: check nvidia-smi"
        )
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    assert float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda"))[0, 0]) == 8
    free, total = torch.cuda.mem_get_info()
    return (
        f"{', '.join(names)}; {free / 2**30:.0f} of {total / 2**30:.0f} GiB free, CUDA {torch.version.cuda}"
    )


def _weights() -> str:
    import numpy as np

    from annotator.predictor import load

    predictor = load("default", device="cpu")
    label = predictor.predict([np.full((96, 96, 3), 127, np.uint8)])[0]
    assert np.isfinite(label["vertices_mm"]).all()
    ids = f"{predictor.checkpoint.id}, hand model {predictor.checkpoint.hand.id}"
    return f"{ids}, {predictor.photos_per_s():.0f} photos/s on the CPU"


def _nvdiffrast() -> str:
    import torch

    try:
        import nvdiffrast.torch as dr
    except ImportError:
        raise _AbsentError(
            "not installed; rendering is pure torch (pip install 'amvur-annotator[gpu]', non-commercial)"
        ) from None
    if not torch.cuda.is_available():
        raise _AbsentError("installed, but it needs a GPU; rendering is pure torch")
    dr.RasterizeCudaContext()
    return _version("nvdiffrast") if _version("nvdiffrast")[0].isdigit() else _version("diffrp-nvdiffrast")


def _ray() -> str:
    import ray

    from annotator.runtime.ray_session import connected

    with connected():
        cpus = ray.cluster_resources().get("CPU", 0)
        assert ray.get(ray.remote(num_cpus=0.5)(_plus_one).remote(1)) == 2
    submissions = (
        "" if _has("aiohttp_cors") else "; submissions not supported (pip install 'amvur-annotator[cluster]')"
    )
    return f"{ray.__version__}, a task ran, {cpus:.0f} CPUs{submissions}"


def _plus_one(number: int) -> int:
    return number + 1


def _videos() -> str:
    if not _has("av"):
        raise _AbsentError("not installed (pip install 'amvur-annotator[video]')")
    import av

    return f"PyAV {av.__version__}"


def _detector(model: str | None) -> str:
    from annotator.detection.detector import HandDetector, model_file, read_model

    if not _has("mediapipe"):
        raise _AbsentError("not installed (pip install 'amvur-annotator[detect]')")
    if model_file(model) is None:
        raise _AbsentError(
            "MediaPipe is installed, its model is not in this folder (--model PATH of hand_landmarker.task)"
        )
    import numpy as np

    detector_model = read_model(model)
    detector = HandDetector(detector_model)
    detector.detect(np.zeros((64, 64, 3), np.uint8))
    detector.close()
    return f"{detector_model.id}, MediaPipe {_version('mediapipe')}"


def _mano(hand: str | None) -> str:
    if hand is None:
        if not _has("smplx"):
            raise _AbsentError(
                "not installed (pip install 'amvur-annotator[mano]', non-commercial); not needed for the open hand"
            )
        raise _AbsentError(
            "not tested (--hand mano:PATH of your MANO_RIGHT.pkl); not needed for the open hand"
        )
    from annotator.hand import load_hand

    return load_hand(hand).id


def _store(store: str | None) -> str:
    from annotator.storage.files import FIRST_ANSWER_S, check_writable, names_in
    from annotator.storage.remote import retry_limit, without_secrets

    if store is None:
        raise _AbsentError("not tested (--store s3://bucket/folder)")
    with retry_limit(FIRST_ANSWER_S):
        count = len(names_in(store))
        check_writable(store)
    return f"'{without_secrets(store)}' can be read and written, {count} names in it"


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
