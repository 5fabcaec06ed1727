"""Run every benchmark that takes minutes, and print one table: `make bench`.

    python benchmarks/all.py [PHOTOS] [--model hand_landmarker.task] [--only NAME ...] [--out bench.json]

PHOTOS is a folder of photos, each a crop around a hand; default: synthetic photos. MODEL is MediaPipe's; without it,
MediaPipe is left out. Each benchmark's last line is JSON with its figures; OUT has all figures, details and the name of
the machine. Benchmarks that take longer (training, all of ablations, full_size, long_video) or need a GPU
run separately.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import machine, shown

HERE = Path(__file__).parent

#: Benchmarks in order; the first ones get PHOTOS.
WITH_PHOTOS = ("startup", "versus", "network", "growth", "decode")
WITHOUT = (
    "rasterize",
    "skinning",
    "synth",
    "fit",
    "filter",
    "report",
    "scale",
    "detector",
    "video",
    "following",
    "track_memory",
    "ablations",
)


def run(name: str, arguments: list[str]) -> dict[str, Any]:
    """Run one benchmark with live output; return its last line, exit code and seconds."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, "-u", str(HERE / f"{name}.py"), *arguments]
    began, last = time.monotonic(), ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if not line.startswith("{"):
                print(line, end="", flush=True)
            last = line
    found: dict[str, Any] = json.loads(last) if last.startswith("{") else {"figures": {}}
    return {**found, "exit_code": process.returncode, "seconds": round(time.monotonic() - began)}


def main() -> None:
    """Print the table; the exit code is 1 if a benchmark failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--only", nargs="+", choices=WITH_PHOTOS + WITHOUT)
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    args = parser.parse_args()
    results: dict[str, Any] = {"machine": machine(), "photos": args.photos or "synthetic"}
    names = args.only or WITH_PHOTOS + WITHOUT
    for name in names:
        given = [args.photos] if args.photos and name in WITH_PHOTOS else []
        results[name] = run(
            name,
            [
                *given,
                *(["--model", args.model] if args.model and name == "versus" else []),
                *(["--short"] if name == "ablations" else []),
            ],
        )
        args.out.write_text(json.dumps(results, indent=1))
    print(f"\n{results['machine']}\n\n| benchmark | | |\n|---|---|---|")
    for name in names:
        for what, value in results[name]["figures"].items():
            print(f"| {name} | {what} | {shown(value)} |")
        if results[name]["exit_code"]:
            print(f"| {name} | **ended with exit code {results[name]['exit_code']}** | |")
    print(f"\nall figures: {args.out}")
    sys.exit(any(results[name]["exit_code"] for name in names))


if __name__ == "__main__":
    main()
