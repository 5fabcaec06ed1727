"""Measure, calibrate and submit a checkpoint on photos with known truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from annotator.errors import UserError
from annotator.model.checkpoint import load_checkpoint, save_checkpoint
from annotator.quality.calibration import Calibration
from annotator.storage.files import check_writable
from trainer.evaluation.fit_calibration import check_enough, fit_calibration
from trainer.evaluation.parts import Measurement, PartResult, measured_parts
from trainer.evaluation.predictions import Progress, open_examples
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
    on_progress: Progress = lambda done, total: None,
    against_labels: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> dict[str, Any] | None:
    """Measure a checkpoint on examples and write the results to OUT (`results.write_results`).

    Args:
        checkpoint: as `load_checkpoint` takes it.
        examples: a folder or URL that `amvur convert` wrote, `synth`, or a cache of drawn hands.
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
    measurement = Measurement(
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
    return write_results(out, whole.measured, facts_of_run)


def calibrate(
    checkpoint: str,
    examples: str | Mapping[str, int],
    out: str,
    hand: str | None = None,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    on_progress: Progress = lambda done, total: None,
    shares_label_errors: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> Calibration:
    """Fit a checkpoint's calibration on held-out examples, and write the calibrated checkpoint to OUT.

    Arguments as for `evaluate`; `out` is a `.safetensors` file, which may be the checkpoint itself. `examples` may be
    several places, fitted together, with the number of examples of each (0 = all) in place of `count`.
    `shares_label_errors`: the checkpoint was trained on labels from the same source, such as fits, and repeats their
    errors; these are added by the labels' std.

    Raises:
        UserError: an invalid argument, or too few examples.
    """
    if not out.endswith(".safetensors"):
        raise UserError(f"'{out}': give the calibrated checkpoint a name that ends in .safetensors")
    loaded = load_checkpoint(checkpoint, hand)
    if loaded.info.network.variant == "prior_net":
        raise UserError(
            f"'{checkpoint}' is prior-net alone: its uncertainty is constant and cannot be calibrated"
        )
    places = {examples: count} if isinstance(examples, str) else examples
    opened = {place: open_examples(loaded, place, first, many) for place, many in places.items()}
    check_enough(sum(map(len, opened.values())), ", ".join(places))
    check_writable(out.rpartition("/")[0] or ".")
    whole = PartResult.empty()
    measurement = Measurement(
        Calibration(), device, against_labels=shares_label_errors, label_errors=shares_label_errors
    )
    for one in opened.values():
        for part in measured_parts(loaded, one, measurement, workers, address, on_progress):
            whole.extend(part)
    names = [examples] if isinstance(examples, str) else [place.rpartition("/")[2] for place in places]
    fitted = fit_calibration(whole.measured, ", ".join(names))
    save_checkpoint(replace(loaded, info=replace(loaded.info, calibration=fitted)), out)
    return fitted
