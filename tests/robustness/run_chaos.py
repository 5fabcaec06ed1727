"""Kill a run of real photos repeatedly, and compare every row with an undisturbed run.

    python -m tests.robustness.run_chaos [PHOTOS] [--kills 24] [--count 1500] [--seed 0]

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

from annotator.commands.annotate import annotate
from annotator.job.options import ComputeOptions
from tests.robustness.chaos import BATCH, SHARD, Chaos, labels_below
from trainer.synth import write_photos


def main() -> None:
    """Print the kills and the comparison; the exit code is 1 if a row differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", nargs="?", help="folder of photos; default: synthetic ones")
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--count", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="amvur-chaos-"))
    photos = scratch / "photos"
    photos.mkdir()
    if not args.photos:
        write_photos(scratch / "drawn", args.count, seed=0, size_px=128)
    given = Path(args.photos or scratch / "drawn" / "images")
    for number, path in enumerate(sorted(given.rglob("*.[jJ][pP]*[gG]"))[: args.count]):
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
    sys.exit(not same)


if __name__ == "__main__":
    main()
