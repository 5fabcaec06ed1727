"""The write stage: a shard to its label file, whose appearance commits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa

from annotator.job.manifest import shard_file_name
from annotator.job.shard import Shard
from annotator.job.tally import OUTCOME_COLUMNS, ShardReport, report_of
from annotator.labels.folder import opened_label_file, replace_rows
from annotator.labels.schema import encode_table, labels_to_table
from annotator.storage.files import join, move_atomic, write_atomic
from annotator.storage.remote import take_retries


def shard_table(
    shard: Shard, schema: pa.Schema, finish_shard: Callable[[Shard], None] | None = None
) -> pa.Table:
    """Return the table of a shard's label file, after `finish_shard` has changed the shard."""
    if shard.parts:
        return pa.concat_tables([shard_table(part, schema) for part in shard.parts])
    if shard.file:
        with opened_label_file(shard.file) as opened:
            return opened.read(use_threads=False)
    if finish_shard is not None and shard.hands:
        finish_shard(shard)
    return labels_to_table(shard.rows, shard.hands, shard.hand_rows, schema)


def write_labels(
    labels: str, number: int, all_ids: list[str] | None, shard: Shard, table_of: Callable[[Shard], pa.Table]
) -> tuple[ShardReport, dict[str, int]]:
    """Write a shard's label file, which commits it; return its report and the store's retries by cause.

    `all_ids`: None, or the ids of all entries of a file whose rows are replaced in part.
    """
    name = shard_file_name(number)
    if shard.file and all_ids is None:
        with opened_label_file(shard.file) as opened:
            rows = written = opened.read(OUTCOME_COLUMNS, use_threads=False).to_pylist()
        move_atomic(shard.file, join(labels, "data", name))
    else:
        table = table_of(shard)
        written = table.select(OUTCOME_COLUMNS).to_pylist()
        if all_ids is not None:
            table = replace_rows(labels, name, table, all_ids)
        write_atomic(join(labels, "data", name), encode_table(table), scratch=join(labels, "_tmp"))
        rows = table.select(OUTCOME_COLUMNS).to_pylist()
    report = report_of(number, rows)
    return replace(report, written=sum(row["hand_index"] <= 0 for row in written)), take_retries()
