"""`calibrate`: fit the std of a checkpoint to the errors on held-out examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from annotator.errors import UserError
from annotator.model.checkpoint import load_checkpoint, save_checkpoint
from annotator.quality.calibration import Calibration
from annotator.storage.files import check_writable
from trainer.evaluation.fit_calibration import check_enough, fit_calibration
from trainer.evaluation.parts import MeasurementSettings, PartResult, measured_parts
from trainer.evaluation.predictions import OnProgress, open_examples


def calibrate(
    checkpoint: str,
    examples: str | Mapping[str, int],
    out: str,
    hand: str | None = None,
    first: int = 0,
    count: int = 0,
    device: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
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
    measurement = MeasurementSettings(
        Calibration(), device, against_labels=shares_label_errors, label_errors=shares_label_errors
    )
    for one in opened.values():
        for part in measured_parts(loaded, one, measurement, workers, address, on_progress):
            whole.extend(part)
    names = [examples] if isinstance(examples, str) else [place.rpartition("/")[2] for place in places]
    fitted = fit_calibration(whole.errors, ", ".join(names))
    save_checkpoint(replace(loaded, info=replace(loaded.info, calibration=fitted)), out)
    return fitted
