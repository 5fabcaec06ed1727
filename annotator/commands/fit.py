"""Fit hands to landmarks: `amvur fit`, the stages of its job.

landmarks in entries --fit_shard (tasks, a core each)--> rows and label columns --shard_table--> a label file
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from annotator.config import FitConfig, read_config, to_dict
from annotator.errors import UserError
from annotator.hand import HandModel, load_hand
from annotator.job.dispatcher import Stations
from annotator.job.record import FitSettings, RunRecord, read_run_record
from annotator.job.resources import ComputeOptions, openers_only
from annotator.job.run import Job, Progress, label_folder, run_job
from annotator.job.stages import Shard, drop_not_finite, first_row, joined_columns, row_of_error
from annotator.labels.folder import fit_metadata, write_faces
from annotator.labels.schema import SCHEMA_VERSION, label_schema, without_hand
from annotator.sources.entry import Entry, ListedHand
from annotator.sources.landmarks import open_landmarks
from annotator.storage.files import FIRST_ANSWER_S, check_writable
from annotator.storage.remote import patience, shown

if TYPE_CHECKING:  # whoever plans and writes starts seconds sooner without torch
    from annotator.fitting.hand_fit import HandFitter

#: The solver's own version: a change that moves fits is another maker of labels.
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
    """Fit a hand model to landmarks and write a label folder; run it again to resume where it stopped.

    Args:
        found: a label folder that `amvur detect` wrote, or a `.json` file with hand keypoints in COCO's layout.
        labels: path or URL of the label folder, made if need be.
        images: of COCO, the folder that its `file_name`s start from.
        hand: the hand model: `open`, or `mano:PATH`.
        config: a fit configuration's name or `.yaml` file.
        compute: `workers` are processes, a core each; `shard_size` and `address` as for `annotate`.
        relabel: as for `annotate`; landmarks stay those that were read first, hand and folder too.
        on_progress: called before the first shard and after each.

    Returns:
        The label folder's record: settings, and how many photos ended in what.

    Raises:
        UserError: a mistake in the arguments, before any work; or what `run_job` raises.
    """
    labels = label_folder(labels)
    weights = read_config(FitConfig, "fit", config)
    with patience(FIRST_ANSWER_S):  # a wrong name or key is reported before a model is loaded
        source = open_landmarks(label_folder(found), images)
        if read_run_record(labels, FitSettings) is None:
            check_writable(labels)
    from annotator.fitting.calibration import shipped_calibration

    model = load_hand(hand)
    laws = shipped_calibration(model.id, weights)
    calibration = laws.with_depth if source.has_depth else laws.without_depth
    maker = fit_id(weights, laws)
    settings = FitSettings(
        schema_version=SCHEMA_VERSION,
        source=source.place,
        landmarks=shown(label_folder(found)),
        checkpoint=maker,
        hand=model.id,
        vertex_count=model.vertex_count,
        config=to_dict(weights),
    )
    station = partial(fit_shard, hand=model, config=weights, checkpoint=maker, box_source=source.box_source)
    metadata = fit_metadata(maker, model, to_dict(weights), calibration)
    stations = Stations(
        open=station, model=None, schema=label_schema(model.vertex_count, metadata, source.columns)
    )
    job = Job(
        labels,
        source,
        settings,
        lambda _: stations,
        openers_only,
        maker={"checkpoint": maker},
        begin=lambda: write_faces(labels, model.faces),
        may_differ=("checkpoint", "config"),
    )
    return run_job(job, compute, relabel, on_progress)


def fit_id(config: FitConfig, laws: Any) -> str:
    """Return the name of a fit in labels' `checkpoint`: a hash of whatever moves it, apart from the hand model."""
    facts = json.dumps([FIT_VERSION, to_dict(config), asdict(laws)], sort_keys=True)
    return f"fit-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


@dataclass(frozen=True, eq=False)
class ListedHands:
    """n hands of several photos, with landmarks."""

    hands: Sequence[ListedHand]
    photo_size_px: NDArray[np.float64]  # (n, 2) width, height
    focal_px: NDArray[np.float64]  # (n,) NaN where nobody gave it

    def __len__(self) -> int:
        return len(self.hands)

    def __getitem__(self, rows: slice) -> ListedHands:
        return ListedHands(self.hands[rows], self.photo_size_px[rows], self.focal_px[rows])


def fit_shard(
    entries: Sequence[Entry], hand: HandModel, config: FitConfig, checkpoint: str, box_source: str
) -> Shard:
    """Fit every hand of a shard; a photo without one gets its row at once."""
    from annotator.fitting.hand_fit import LEAST_LANDMARKS

    shard = Shard()
    hands: list[ListedHand] = []
    sizes, focals = [], []
    for entry in entries:
        row = first_row(entry)
        if entry.fault:
            shard.rows.append(row | without_hand(*entry.fault))
        for index, listed in enumerate(entry.hands or ()):
            known = sum(x is not None for x, _, _ in listed.landmarks or ())
            if known < LEAST_LANDMARKS:
                message = f"{known} of 21 joints are known, a fit needs {LEAST_LANDMARKS}"
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
    """Fill a shard's columns; a hand at which the fit fails loses its own labels and no others."""
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


_of_process: dict[tuple[str, FitConfig], HandFitter] = {}


def fitter_of_process(hand: HandModel, config: FitConfig) -> HandFitter:
    """Return this process's fitter, made when it is first needed."""
    key = (hand.id, config)
    if key not in _of_process:
        import torch

        from annotator.fitting.hand_fit import HandFitter
        from annotator.runtime.malloc import keep_freed_memory

        keep_freed_memory()
        torch.set_num_threads(1)  # a core for each process
        _of_process[key] = HandFitter(hand, config)
    return _of_process[key]
