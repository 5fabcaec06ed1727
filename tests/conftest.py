"""What several tests share: one local Ray, one predictor, real photos where they lie beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from annotator.pipeline import ComputeOptions, annotate, embedded_ray
from tests.hostile_photos import encoded

# The suite is many small runs; more threads than one only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def sign_digits() -> Path:
    """A folder of 2,062 real photos of hands."""
    folder = SHARED / "data" / "sign-digits" / "images"
    if not folder.is_dir():
        pytest.skip("the real photos (sign-digits) are not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def local_ray():
    """One embedded Ray for every job that this process runs."""
    with embedded_ray():
        yield


@pytest.fixture(scope="session")
def predictor():
    """The default checkpoint, ready to predict."""
    import annotator

    return annotator.load("default", device="cpu")


SMALL = ComputeOptions(threads=1, shard_size=16)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """50 small photos in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(50):
        below = folder / ("left" if index % 2 else "right")
        below.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (40 + index, 60, 3), np.uint8)
        (below / f"{index:03d}.jpg").write_bytes(encoded(pixels, "JPEG"))
    return folder


@pytest.fixture(scope="session")
def labelled(photos, tmp_path_factory, local_ray):
    """The label folder of `photos`, its record, and what was told on the way."""
    labels = tmp_path_factory.mktemp("out") / "labels"
    told = []
    record = annotate(str(photos), str(labels), compute=SMALL, on_progress=told.append)
    return labels, record, told
