"""Kill a run of real photos repeatedly, and compare every row with an undisturbed run.

    python benchmarks/chaos.py [PHOTOS] [--kills 24] [--count 1500] [--seed 0]

Ray simulates two machines. Labels go to a real S3 server behind a proxy that breaks one request in fourteen. Random
kills hit models, tasks, whole machines and the driver, and the store is cut off at times (`tests/robustness/chaos.py`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from machine import machine, photo_folder, print_figures

from annotator.commands.annotate import annotate
from annotator.job.options import ComputeOptions
from tests.robustness.chaos import BATCH, SHARD, Chaos, labels_below


def main() -> None:
    """Print the kills and the comparison, then one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos; default: synthetic ones")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(machine())
    scratch = Path(tempfile.mkdtemp(prefix="amvur-chaos-"))
    photos = scratch / "photos"
    photos.mkdir()
    for number, path in enumerate(sorted(photo_folder(args.photos, args.count).rglob("*.[jJ][pP]*[gG]"))):
        if number < args.count:
            (photos / f"{number:05d} {path.name}").symlink_to(path.resolve())
    undisturbed = scratch / "undisturbed"
    began = time.monotonic()
    annotate(
        str(photos), str(undisturbed), compute=ComputeOptions(threads=1, batch_size=BATCH, shard_size=SHARD)
    )
    alone_s = time.monotonic() - began
    import ray

    ray.shutdown()
    with ExitStack() as stack:
        chaos = Chaos(stack, scratch, photos, "default", args.seed)
        outcome = chaos.run(args.kills, every_s=(0.2, 2.0), patience_s=3600)
        found = labels_below(chaos.server.store / "bucket" / "labels")
    expected = labels_below(undisturbed)
    same = found.equals(expected)
    broken = sum(count for kind, count in outcome.faults.items() if kind != "passed")
    print(f"undisturbed: {len(expected)} rows in {alone_s:.0f} s")
    print(
        f"{outcome.killed.total()} kills ({', '.join(f'{n} {what}' for what, n in outcome.killed.items())}), "
        f"{broken} broken requests of {sum(outcome.faults.values())}, the command started {outcome.drivers} times: "
        f"{len(found)} rows in {outcome.seconds:.0f} s, {'identical' if same else 'DIFFERENT'}"
    )
    shutil.rmtree(scratch)
    print_figures(
        {
            "chaos, kills": outcome.killed.total(),
            "chaos, broken requests": broken,
            "chaos, rows that differ from an undisturbed run's": 0 if same else len(expected),
            "chaos, s": outcome.seconds,
            "chaos, s undisturbed": alone_s,
        },
        killed=dict(outcome.killed),
        faults=outcome.faults,
        drivers=outcome.drivers,
    )
    sys.exit(not same)


if __name__ == "__main__":
    main()
