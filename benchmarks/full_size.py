"""Memory and reads of `convert` and of training's loaders, on an archive as large as FreiHAND, with tiny photos.

    python benchmarks/full_size.py [PHOTOS ...]

Default: a tenth of FreiHAND's training photos, and all 130,240. Each archive has FreiHAND's own layout: four photos per
pose, masks, and JSON files of the real size (1.5 GB for all). Photos have 32 x 32 pixels. Figures per archive: peak
memory of `convert` and bytes that it read; then, with 1 and 4 loaders that read 4,800 examples for a training, memory
of the process tree (PSS) and bytes read per example by the loaders.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import machine, print_figures, shown
from PIL import Image

from annotator.hand import load_hand
from annotator.hand.mano_mesh import VERTEX_COUNT

PHOTOS, VERSIONS, SIZE_PX = 130_240, 4, 32
BATCH, STEPS = 32, 150

COLUMNS = (
    "convert, peak MB",
    "convert reads, MB",
    "convert, photos/s",
    *(
        f"{loaders}, {what}"
        for loaders in ("1 loader", "4 loaders")
        for what in ("PSS MB", "kB read per example")
    ),
)

#: Hard links to one file, below the limits of file systems.
_LINKS = 30_000

#: Each runs in a process of its own and prints one line of JSON.
_CONVERT = """
import json, resource, sys, time
from trainer.convert.convert import convert
began = time.perf_counter()
convert(f"freihand:{sys.argv[1]}", sys.argv[2])
read = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": time.perf_counter() - began, "peak": peak, "read": int(read["rchar"])}))
"""
_READ = """
import json, sys, time
from pathlib import Path
import psutil
from growth import tree_pss
from annotator.hand import load_hand
from trainer.config import SourceConfig, TrainConfig
from trainer.data.loaders import read_steps
from trainer.data.steps import Steps

def read_bytes():
    return sum(child.io_counters().read_chars for child in psutil.Process().children(recursive=True))

if __name__ == "__main__":
    place, loaders, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
    config = TrainConfig(data=(SourceConfig(source=place),), batch_size=batch, steps=steps + 10, loaders=loaders)
    data = Steps(config, load_hand("open"))
    data.check()
    peak, before, began = 0, 0, 0.0
    for step, _ in enumerate(read_steps(data, 0)):
        if step == 9:  # all have started
            before, began = read_bytes(), time.perf_counter()
        if step % 20 == 19:
            peak = max(peak, tree_pss(psutil.Process()))
        last = read_bytes() if step == steps + 4 else last if step > steps + 4 else 0
    seconds = time.perf_counter() - began
    print(json.dumps({"peak": peak, "read": (last - before) / (batch * (steps - 5)), "seconds": seconds}))
"""


def main(sizes: list[int]) -> None:
    """Print a row per archive."""
    print(machine())
    figures: dict[str, float] = {}
    print(f"| photos | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for photos in sizes:
        with tempfile.TemporaryDirectory(prefix="amvur-") as folder:
            source, out = Path(folder) / "FreiHAND", Path(folder) / "examples"
            write_archive(source, photos)
            made = _run(_CONVERT, str(source), str(out))
            read = [_run(_READ, str(out), str(loaders), str(BATCH), str(STEPS)) for loaders in (1, 4)]
        cells = [made["peak"] / 1e6, made["read"] / 1e6, photos / made["seconds"]]
        for one in read:
            cells += [one["peak"] / 1e6, one["read"] / 1e3]
        print(f"| {photos:,} | {' | '.join(map(shown, cells))} |", flush=True)
        figures |= {f"{photos:,} photos, {name}": cell for name, cell in zip(COLUMNS, cells, strict=True)}
    print_figures(figures)


def _run(code: str, *arguments: str) -> dict[str, float]:
    """Run code as the main file of a process, which its own processes can start again from."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "main.py"
        file.write_text(code)
        done = subprocess.run(
            [sys.executable, str(file), *arguments],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_archive(root: Path, photos: int) -> None:
    """Write FreiHAND's training split, of one pose."""
    hand, poses = load_hand("open"), photos // VERSIONS
    offset = np.array([0.0, 0.0, 0.5])
    joints, vertices = (
        hand.joint_regressor @ hand.v_template + offset,
        hand.v_template[:VERTEX_COUNT] + offset,
    )
    focal_px = 480 * SIZE_PX / 224
    entries = {
        "K": [[focal_px, 0, SIZE_PX / 2], [0, focal_px, SIZE_PX / 2], [0, 0, 1]],
        "xyz": joints.astype(float).tolist(),
        "verts": vertices.astype(float).tolist(),
        "scale": 0.03,
        "mano": [np.random.default_rng(0).normal(size=61).tolist()],
    }
    for name in ("rgb", "mask"):
        (root / "training" / name).mkdir(parents=True)
    for name, entry in entries.items():
        text = json.dumps(entry)
        with (root / f"training_{name}.json").open("w") as file:
            file.write("[")
            for k in range(poses):
                file.write(text if k == 0 else f", {text}")
            file.write("]")
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX, 3), np.uint8)
    for name, count in (("rgb", poses * VERSIONS), ("mask", poses)):
        first = root
        for k in range(count):
            file_path = root / "training" / name / f"{k:08d}.jpg"
            if k % _LINKS == 0:
                Image.fromarray(pixels).save(file_path)
                first = file_path
            else:
                file_path.hardlink_to(first)


if __name__ == "__main__":
    began = time.monotonic()
    main([int(photos) for photos in sys.argv[1:]] or [PHOTOS // 10, PHOTOS])
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
