"""What several tests share: one local Ray, one predictor, real photos where they lie beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
    from annotator.pipeline import embedded_ray

    with embedded_ray():
        yield


@pytest.fixture(scope="session")
def predictor():
    """The default checkpoint, ready to predict."""
    import annotator

    return annotator.load("default", device="cpu")
