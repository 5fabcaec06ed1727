"""Fixtures of several tests: one local Ray, one predictor, real photos if they lie beside the checkout."""

from __future__ import annotations

import copy
import dataclasses
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from annotator.commands.annotate import annotate
from annotator.job.options import ComputeOptions
from annotator.model.checkpoint import save_checkpoint
from annotator.predictor import Predictor
from annotator.runtime.ray_session import connected
from tests.robustness.hostile_photos import encoded

# The suite is many small runs; more threads than one only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests that start Ray as slow, and sort files marked `slow` first: both processes then end together."""
    for item in items:
        if "local_ray" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: "slow" not in (mark.name for mark in _file_marks(item)))


def _file_marks(item: pytest.Item) -> list[pytest.Mark]:
    marks = getattr(item.getparent(pytest.Module).module, "pytestmark", [])
    return [one.mark for one in (marks if isinstance(marks, list) else [marks])]


def _real_photos(name: str) -> Path:
    folder = SHARED / "data" / name
    if not (folder / "images").is_dir():
        pytest.skip(f"the real photos ({name}) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def sign_digits() -> Path:
    """A folder of 2,062 real photos of hands."""
    return _real_photos("sign-digits") / "images"


@pytest.fixture(scope="session")
def hand_photos() -> Path:
    """A folder of 2,138 real crops around hands: backs, fists, letters, pinches, own-arm views."""
    return _real_photos("hand-photos") / "images"


@pytest.fixture(scope="session")
def hand_scenes() -> Path:
    """1,245 real photos of people who hold up one or two hands, in images/, and their hands' boxes.csv."""
    return _real_photos("hand-scenes")


@pytest.fixture(scope="session")
def local_ray():
    """One embedded Ray for every job that this process runs."""
    with connected():
        yield


@pytest.fixture(scope="session")
def predictor():
    """The default network before training, ready to predict."""
    import annotator

    return annotator.load("untrained:default", device="cpu")


SMALL = ComputeOptions(workers=1, shard_size=16, threads=1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """50 small photos in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(50):
        below = folder / ("left" if index % 2 else "right")
        below.mkdir(exist_ok=True)
        # Every tenth is large enough to be decoded at a fraction of its size.
        shape = (600 + index, 700, 3) if index % 10 == 9 else (40 + index, 60, 3)
        pixels = rng.integers(0, 256, shape, np.uint8)
        (below / f"{index:03d}.jpg").write_bytes(encoded(pixels, "JPEG"))
    return folder


@pytest.fixture(scope="session")
def lively(predictor):
    """A predictor whose every output depends on the photo, as a trained one's does."""
    network = copy.deepcopy(predictor.checkpoint.network)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        # Statistics of real activations: without them a random backbone gives all photos one feature.
        network.backbone.train()
        for _ in range(20):
            side = int(torch.randint(4, 64, (), generator=generator))
            blobs = torch.rand(16, 3, side, side, generator=generator)
            network.backbone(torch.nn.functional.interpolate(blobs, (128, 128), mode="bilinear"))
        network.eval()
        for name, parameter in network.named_parameters():
            if not name.startswith("backbone"):
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    info = dataclasses.replace(predictor.checkpoint.info, trained_steps=1)
    return Predictor(
        dataclasses.replace(predictor.checkpoint, network=network, info=info), torch.device("cpu")
    )


@pytest.fixture(scope="session")
def lively_file(lively, tmp_path_factory):
    """The lively predictor's checkpoint as a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "lively.safetensors"
    save_checkpoint(lively.checkpoint, path)
    return str(path)


@pytest.fixture(scope="session")
def labelled(photos, lively_file, tmp_path_factory, local_ray):
    """The label set of `photos`, its record, and the reported progress."""
    labels = tmp_path_factory.mktemp("out") / "labels"
    reported = []
    record = annotate(
        str(photos), str(labels), checkpoint=lively_file, compute=SMALL, on_progress=reported.append
    )
    return labels, record, reported


def at_work(process: psutil.Process) -> bool:
    """Whether a process of Ray's writes anything; its agents take a minute to see that they are alone."""
    with suppress(psutil.NoSuchProcess):
        return process.name() == "raylet" or (
            process.name().startswith("ray::") and "Agent" not in process.name()
        )
    return False
