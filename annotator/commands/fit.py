"""`fit`: fit hands to landmarks. Defines the stages; `annotator.job` runs them.

landmarks in entries --fit_shard (tasks, one core each)--> rows and label columns --write_labels--> a label file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from annotator.config import FitConfig, read_config, to_dict
from annotator.errors import UserError
from annotator.fitting.listed import ListedHands
from annotator.hand import HandModel, load_hand
from annotator.job.options import ComputeOptions
from annotator.job.record import FitSettings, RunRecord, read_run_record
from annotator.job.resources import plan_decoders
from annotator.job.run import Job, Progress, run_job
from annotator.job.shard import Shard
from annotator.job.stages import Stages
from annotator.job.stages.rows import drop_not_finite, first_row, row_of_error
from annotator.labels.arrays import joined_columns
from annotator.labels.folder import label_metadata, write_faces
from annotator.labels.schema import SCHEMA_VERSION, label_schema, without_hand
from annotator.labels.two_hands import relate_two_hands
from annotator.runtime.per_process import once_per_process
from annotator.sources.entry import Entry, ListedHand
from annotator.sources.landmarks import open_landmarks
from annotator.storage.files import FIRST_ANSWER_S, absolute, check_writable
from annotator.storage.remote import retry_limit, without_secrets

if TYPE_CHECKING:  # planning and writing start seconds sooner without torch
    from annotator.fitting.hand_fit import HandFitter

#: Version of the solver: a change that moves fits gets another checkpoint id.
FIT_VERSION = 1


def fit(
    found: str,
    labels: str,
    *,
    images: str | None = None,
    hand: str = "open",
    config: str = "default",
    compute: ComputeOptions = ComputeOptions(),
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[FitSettings]:
    """Fit a hand model to landmarks and write a label set. Run it again to resume.

    Args:
        found: a label set of `amvur detect`, or a COCO `.json` file with hand keypoints.
        labels: path or URL of the label set, created if missing.
        images: folder of the photos in a COCO file.
        hand: the hand model: `open`, or `mano:PATH`.
        config: a fit configuration's name or `.yaml` file.
        compute: `workers` are processes with one core each; `shard_size` and `address` as for `annotate`.
        relabel: as for `annotate`; landmarks, hand model and folder stay the same.
        on_progress: called before the first shard and after each.

    Returns:
        The label set's record: settings, and photos per outcome.

    Raises:
        UserError: a mistake in the arguments, before any work; or any error of `run_job`.
    """
    labels = absolute(labels)
    weights = read_config(FitConfig, "fit", config)
    with retry_limit(FIRST_ANSWER_S):  # a wrong name or key is reported before a model is loaded
        source = open_landmarks(absolute(found), images)
        if read_run_record(labels, FitSettings) is None:
            check_writable(labels)
    from annotator.fitting.calibration import shipped_calibration

    model = load_hand(hand)
    laws = shipped_calibration(model.id, weights)
    calibration = laws.with_depth if source.has_depth else laws.without_depth
    checkpoint = fit_id(weights, laws)
    settings = FitSettings(
        schema_version=SCHEMA_VERSION,
        source=source.place,
        landmarks=without_secrets(absolute(found)),
        checkpoint=checkpoint,
        hand=model.id,
        vertex_count=model.vertex_count,
        config=to_dict(weights),
    )
    stage = partial(
        fit_shard, hand=model, config=weights, checkpoint=checkpoint, box_source=source.box_source
    )
    metadata = label_metadata(checkpoint, model, calibration, std_is_constant=False, fit=to_dict(weights))
    stages = Stages(
        decode=stage,
        model=None,
        schema=label_schema(model.vertex_count, metadata, source.columns),
        finish_shard=partial(relate_two_hands, faces=model.faces, tie_sizes=False),
    )
    job = Job(
        labels,
        source,
        settings,
        lambda _: stages,
        plan_decoders,
        producer={"checkpoint": checkpoint},
        begin=lambda: write_faces(labels, model.faces),
        may_differ=("checkpoint", "config"),
    )
    return run_job(job, compute, relabel, on_progress)


def fit_id(config: FitConfig, laws: Any) -> str:
    """Return the id of a fit for the column `checkpoint`: a hash of its settings, without the hand model."""
    facts = json.dumps([FIT_VERSION, to_dict(config), asdict(laws)], sort_keys=True)
    return f"fit-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def fit_shard(
    entries: Sequence[Entry], hand: HandModel, config: FitConfig, checkpoint: str, box_source: str
) -> Shard:
    """Fit every hand of a shard. A photo without a hand becomes a row with its reason."""
    from annotator.fitting.hand_fit import MIN_LANDMARKS

    shard = Shard()
    hands: list[ListedHand] = []
    sizes, focals = [], []
    for entry in entries:
        row = first_row(entry)
        if entry.fault:
            shard.rows.append(row | without_hand(*entry.fault))
        for index, listed in enumerate(entry.hands or ()):
            known = sum(x is not None for x, _, _ in listed.landmarks or ())
            if known < MIN_LANDMARKS:
                message = f"{known} of 21 joints are known, a fit needs {MIN_LANDMARKS}"
                shard.rows.append(row | without_hand("too_few_joints", message) | {"hand_index": index})
                continue
            shard.hand_rows.append(len(shard.rows))
            shard.rows.append(
                row
                | {"status": "ok", "hand_index": index, "box_source": box_source, "checkpoint": checkpoint}
                | {"detection_score": listed.detection_score}
            )
            hands.append(listed)
            sizes.append((entry.extra["width"], entry.extra["height"]))
            focals.append(np.nan if entry.focal_px is None else entry.focal_px)
    if hands:
        listed_hands = ListedHands(hands, np.array(sizes, np.float64), np.array(focals, np.float64))
        _fit_hands(shard, listed_hands, fitter_of_process(hand, config))
    return shard


def _fit_hands(shard: Shard, hands: ListedHands, fitter: HandFitter) -> None:
    """Fill a shard's columns. A hand whose fit fails loses its own labels only."""
    from annotator.fitting.columns import fitted_columns

    try:
        shard.hands = fitted_columns(fitter, hands)
    except UserError:
        raise
    except Exception:
        parts: list[dict[str, Any]] = []
        good: list[int] = []
        for number, row in enumerate(shard.hand_rows):
            try:
                parts.append(fitted_columns(fitter, hands[number : number + 1]))
                good.append(row)
            except Exception as error:
                shard.rows[row] |= {"checkpoint": None, "box_source": None} | row_of_error(error)
        shard.hand_rows, shard.hands = good, joined_columns(parts)
    drop_not_finite(shard)


@once_per_process(lambda hand, config: (hand.id, config))
def fitter_of_process(hand: HandModel, config: FitConfig) -> HandFitter:
    """Return this process's fitter; the first call creates it."""
    import torch

    from annotator.fitting.hand_fit import HandFitter
    from annotator.runtime.malloc import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)  # one core per process
    return HandFitter(hand, config)
