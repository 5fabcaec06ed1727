"""The tasks of a run on Ray: each call submits one and returns references to its results."""

from __future__ import annotations

from functools import partial
from typing import Any

from annotator.job.manifest import PlannedShard
from annotator.job.resources import WorkerPlan
from annotator.job.shard import join_hands
from annotator.job.stages import Stages, shard_table, write_labels
from annotator.job.tasks import decode_piece, give_up, give_up_hand, join_pieces
from annotator.sources.entry import Entry

#: Ray retries nothing: it cannot distinguish a photo that crashes processes from a lost machine.
_ONCE: dict[str, Any] = {"max_retries": 0, "scheduling_strategy": "SPREAD"}


class RemoteTasks:
    """The tasks of a run, with the resources of its worker plan. Shards and results are references."""

    def __init__(self, labels: str, stages: Stages, plan: WorkerPlan) -> None:
        import ray

        task = partial(ray.remote, num_cpus=plan.decoder_cpus, **_ONCE)
        self._labels = labels
        self._decode_piece: Any = task(num_returns=2)(decode_piece)
        self._join_pieces, self._join_hands = task()(join_pieces), task()(join_hands)
        self._give_up, self._give_up_hand = task()(give_up), task()(give_up_hand)
        self._write_labels = task()(write_labels)
        self._decode = ray.put(stages.decode)
        self._table_of = ray.put(partial(shard_table, schema=stages.schema, finish_shard=stages.finish_shard))

    def decode(self, entries: list[Entry], limit_s: float) -> tuple[Any, Any]:
        """Decode entries; return references to its `TaskStats` and to the shard."""
        stats, shard = self._decode_piece.remote(self._decode, entries, limit_s)
        return stats, shard

    def join_pieces(self, parts: list[Any]) -> Any:
        """Join a shard that was decoded in pieces."""
        return self._join_pieces.remote(*parts)

    def join_hands(self, shard: Any, parts: list[Any]) -> Any:
        """Join a shard whose hands were labelled one by one."""
        return self._join_hands.remote(shard, *parts)

    def give_up(self, shard: Any) -> Any:
        """Record the hands of a shard as crashed."""
        return self._give_up.remote(shard)

    def give_up_hand(self, shard: Any, number: int) -> Any:
        """Record one hand of a shard as crashed."""
        return self._give_up_hand.remote(shard, number)

    def write(self, planned: PlannedShard, shard: Any) -> Any:
        """Write a label file; return a reference to its report and retries."""
        return self._write_labels.remote(self._labels, planned.number, planned.all_ids, shard, self._table_of)
