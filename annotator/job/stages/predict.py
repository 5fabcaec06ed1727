"""The predict stage: crops of hands to label columns, by a predictor. An error fails one hand, not the shard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from annotator.job.shard import Shard, join_hands
from annotator.job.stages.rows import drop_not_finite, one_line
from annotator.labels.schema import Columns, without_hand
from annotator.photos.crops import Side

if TYPE_CHECKING:  # decoders and writers start seconds sooner without torch
    from annotator.predictor import Predictor


class ModelBrokenError(Exception):
    """A model that fails for every hand, for example after a GPU error that only a new process clears."""


def predict_shard(
    predictor: Predictor, shard: Shard, side: Side, samples: int = 0, columns: Columns = "all"
) -> Shard:
    """Label the crops of a shard; arguments are those of `Predictor.predict_crops`.

    Raises:
        ModelBrokenError: all of several hands fail.
    """
    crops = shard.crops
    if crops is None:
        return Shard(shard.rows, shard.hand_rows)
    try:
        hands = predictor.predict_crops(crops, side, samples, columns)
        return _labelled(shard, hands, predictor.checkpoint.id)
    except Exception as error:
        if len(crops) == 1:
            return _without_labels(shard, error)
    # One hand may have caused the error: label each alone, so that the others keep their labels.
    parts: list[Shard] = []
    failed = 0
    for number, row in enumerate(shard.hand_rows):
        alone = Shard([shard.rows[row]], [0], crops[number : number + 1])
        parts.append(predict_shard(predictor, alone, side, samples, columns))
        failed += not parts[-1].hands
    if failed == len(parts):
        raise ModelBrokenError(parts[0].rows[0]["error"])
    return join_hands(shard, *parts)


def _labelled(shard: Shard, hands: dict[str, Any], checkpoint: str) -> Shard:
    for row in shard.hand_rows:
        shard.rows[row] |= {"status": "ok", "checkpoint": checkpoint}
    labelled = Shard(shard.rows, shard.hand_rows, hands=hands)
    drop_not_finite(labelled)
    return labelled


def _without_labels(shard: Shard, error: Exception) -> Shard:
    for row in shard.hand_rows:
        shard.rows[row] |= without_hand("internal_error", one_line(error))
    return Shard(shard.rows)
