"""`evaluate`: measure a checkpoint on photos with known truth, and write the files of benchmarks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from annotator.errors import UserError
from annotator.model.checkpoint import load_checkpoint
from annotator.storage.files import check_writable
from trainer.evaluation.parts import MeasurementSettings, PartResult, measured_parts
from trainer.evaluation.predictions import OnProgress, open_examples
from trainer.evaluation.results import write_results
from trainer.evaluation.submit import check_submission, write_submission


def evaluate(
    checkpoint: str,
    examples: str,
    out: str,
    hand: str | None = None,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    submission: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
    against_labels: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> dict[str, Any] | None:
    """Measure a checkpoint on examples and write the results to OUT (`results.write_results`).

    Args:
        checkpoint: as `load_checkpoint` takes it.
        examples: a folder or URL that `amvur convert` wrote, `synth`, or a cache of synthetic hands.
        out: a folder or URL.
        hand: as `load_checkpoint` takes it.
        first: number of the first example. count: number of examples; 0 = all (of `synth` 1,000).
        device: device to run on; default: a GPU if available.
        submission: `freihand`, `ho3d_v2` or `ho3d_v3`: also write the benchmark's files.
        on_progress: called with the numbers of measured and of all examples.
        against_labels: accept predicted or fitted labels in place of truth; the figures are then agreement with them.
        workers: maximum of Ray tasks at once; default this process, with an address all cores or GPUs of the cluster.
            The results do not depend on it, except for rounding if processes have other numbers of threads.
        address: a Ray cluster, as for `annotator.runtime.ray_session.connected`.

    Returns:
        the figures; None if no example has a target, as in a benchmark's evaluation split.

    Raises:
        UserError: an invalid argument, missing examples, or a process that died too often.
    """
    loaded = load_checkpoint(checkpoint, hand)
    benchmark = check_submission(submission, loaded.hand) if submission else None
    opened = open_examples(loaded, examples, first, count)
    if benchmark and len(opened) != benchmark.entries:
        raise UserError(
            f"{benchmark.title} has {benchmark.entries} hands, '{examples}' has {len(opened)}: "
            "convert the whole evaluation split"
        )
    check_writable(out)
    measurement = MeasurementSettings(
        loaded.info.calibration, device, against_labels, textured=True, for_submission=bool(benchmark)
    )
    whole = PartResult.empty(loaded.info.calibration)
    for part in measured_parts(loaded, opened, measurement, workers, address, on_progress):
        whole.extend(part)
    if benchmark:
        # Examples are shuffled; a submission needs the data set's own order.
        in_order = [whole.hands[i] for i in np.argsort(whole.source_indices, kind="stable")]
        joints3d, vertices, wrists = (np.stack(parts) for parts in zip(*in_order, strict=True))
        write_submission(out, benchmark, joints3d, vertices, wrists)
    if not whole.targets:
        return None
    facts_of_run = {
        "checkpoint": loaded.id,
        "trained_steps": loaded.info.trained_steps,
        "hand": loaded.hand.id,
        "calibration": asdict(loaded.info.calibration),
        "examples": examples,
        "first": first,
    }
    return write_results(out, whole.errors, facts_of_run)
