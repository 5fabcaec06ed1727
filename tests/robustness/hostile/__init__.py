"""Files and lists that break readers of photos, each with its allowed rows.

Expectations follow from how a file was made. Where damage may go unnoticed, `ok` is allowed only if a strict
`Image.open` also reads the file and most of the picture is intact.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from annotator.runtime.stderr import quiet_stderr
from tests.robustness.hostile.bombs import bombs
from tests.robustness.hostile.containers import write_parquets, write_tars
from tests.robustness.hostile.expected import Expected, File, Run
from tests.robustness.hostile.lists import write_lists
from tests.robustness.hostile.no_photos import other_files
from tests.robustness.hostile.photos import photos, pictures
from tests.robustness.hostile.places import write_places
from tests.robustness.hostile.refused import write_refused
from tests.robustness.hostile.videos import write_videos
from tests.robustness.hostile_photos import encoded

__all__ = ["Expected", "Run", "build"]


def build(folder: Path, every: int = 1, seed: int = 0) -> list[Run]:
    """Write the corpus, with every Nth of the cut and damaged photos."""
    folder, rng = folder.resolve(), random.Random(seed)
    picture, camera = pictures(rng)
    with quiet_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow and libtiff warn about files broken on purpose
        files = [
            *_thinned(photos(picture, camera, rng), every),
            *bombs(picture, full=every == 1),
            *other_files(picture),
        ]
    return [
        Run("folder", folder / "photos", _write_folder(folder / "photos", files, picture, rng)),
        *write_lists(folder / "lists", picture),
        *write_refused(folder / "refused", picture),
    ]


def _thinned(files: Iterable[File], every: int) -> Iterator[File]:
    for number, file in enumerate(files):
        if number % every == 0 or file.kind == "whole":
            yield file


def _write_folder(
    folder: Path, files: list[File], picture: Image.Image, rng: random.Random
) -> dict[str, Expected]:
    """Write photos, odd paths and containers into one folder."""
    expected: dict[str, Expected] = {}
    for file in files:
        path = folder / file.kind / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        image_id = f"{file.kind}/{file.name}"
        assert image_id not in expected, image_id
        expected[image_id] = Expected(file.kind, file.outcomes, file.size)
    return {
        **expected,
        **write_places(folder / "places", encoded(picture, "JPEG"), picture.size),
        **write_tars(folder / "tars", files, picture, rng),
        **write_parquets(folder / "parquets", files, picture),
        **write_videos(folder / "videos", picture),
    }
