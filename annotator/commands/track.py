"""`track`: the stage that turns a label set of videos into one whose hands are tracked; `annotator.job` runs it.

sequences of a label set --track_shard (tasks, a core each)--> a file of tables in `_tmp/` --write--> a label file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pyarrow as pa

from annotator.errors import UserError, printable
from annotator.hand import HandModel
from annotator.job.options import ComputeOptions
from annotator.job.record import RunRecord, TrackSettings, read_run_record
from annotator.job.resources import plan_decoders
from annotator.job.run import Job, Progress, run_job
from annotator.job.shard import Shard
from annotator.job.stages import Stages
from annotator.labels.folder import hand_of_labels, write_faces
from annotator.labels.schema import SCHEMA_VERSION, label_schema, without_hand, write_tables
from annotator.runtime.per_process import once_per_process
from annotator.sources.entry import Entry
from annotator.sources.sequences import ADDED, SequenceSource, read_sequence, sequence_batches
from annotator.storage.files import FIRST_ANSWER_S, absolute, atomic_file, check_writable, join
from annotator.storage.remote import retry_limit, without_secrets

if TYPE_CHECKING:  # planning and writing start seconds sooner without torch
    from annotator.hand.layer import HandLayer

#: Version of the method; it increases with every change that alters the labels.
TRACKER_VERSION = 3

#: Rows whose per-vertex columns are in memory while they are read.
READ_ROWS = 256

#: Default maximum of missing frames of a hand: a third of a second of most videos.
MAX_GAP = 10


def track(
    labels: str,
    out: str,
    *,
    max_gap: int = MAX_GAP,
    one_person: bool = False,
    hand: str = "open",
    compute: ComputeOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[TrackSettings]:
    """Join the hands of videos over their frames, smooth their motion and write a label set; run again to resume.

    Args:
        labels: path or URL of a label set of videos, or of a list with a `sequence` column. It is not changed.
        out: path or URL of the tracked set, created if missing.
        max_gap: maximum missing frames of a hand; they are filled where they have a row.
        one_person: all hands of a sequence are of one person: they share shape and length. A list's column `person`
            names the owners of hands instead.
        hand: the hand model of the labels: `open`, or `mano:PATH`.
        compute: `workers` are processes, a core each; `shard_size` is the number of sequences per file, one
            by default.
        on_progress: called before the first shard and after each.

    Returns:
        The tracked set's record.

    Raises:
        UserError: a mistake in the arguments, before any work; or any error of `run_job`.
    """
    labels, out = absolute(labels), absolute(out)
    if max_gap < 0:
        raise UserError(f"max_gap (--max-gap) is {max_gap}: give 0 or more frames")
    if labels == out:
        raise UserError(
            f"'{printable(without_secrets(out))}' is the label set to track: give another output folder"
        )
    compute = compute or ComputeOptions(shard_size=1)
    with retry_limit(FIRST_ANSWER_S):  # a wrong name or key is reported before a model is loaded
        source = SequenceSource(labels)
        if read_run_record(out, TrackSettings) is None:
            check_writable(out)
    model = hand_of_labels(printable(without_secrets(labels)), source.facts["hand"], hand)
    settings = TrackSettings(
        schema_version=SCHEMA_VERSION,
        source=source.place,
        tracked_labels=without_secrets(labels),
        checkpoint=source.facts["checkpoint"],
        hand=model.id,
        vertex_count=model.vertex_count,
        max_gap=max_gap,
        tracker=TRACKER_VERSION,
        one_person=one_person,
    )
    facts = source.facts | {"tracker": TRACKER_VERSION, "max_gap": max_gap, "one_person": one_person}
    schema = label_schema(
        model.vertex_count, {"amvur": json.dumps(facts, sort_keys=True)}, source.columns | ADDED
    )
    stages = Stages(
        decode=partial(
            track_shard,
            labels=labels,
            out=out,
            hand=model,
            max_gap=max_gap,
            schema=schema,
            one_person=one_person,
        ),
        model=None,
        schema=schema,
        crashed=partial(crashed_sequences, labels=labels),
    )
    job = Job(
        out,
        source,
        settings,
        lambda _: stages,
        plan_decoders,
        producer={"checkpoint": settings.checkpoint},
        begin=lambda: write_faces(out, model.faces),
    )
    return run_job(job, compute, None, on_progress)


def track_shard(
    entries: Sequence[Entry],
    labels: str,
    out: str,
    hand: HandModel,
    max_gap: int,
    schema: pa.Schema,
    one_person: bool = False,
) -> Shard:
    """Track each sequence of a shard, into a file in `_tmp/` of the tracked set."""
    made = join(out, "_tmp", f"sequences-{uuid4().hex}.parquet")
    with atomic_file(made) as file:
        write_tables(file, tracked_tables(entries, labels, hand, max_gap, schema, one_person), schema)
    return Shard(file=made)


def tracked_tables(
    entries: Sequence[Entry],
    labels: str,
    hand: HandModel,
    max_gap: int,
    schema: pa.Schema,
    one_person: bool = False,
) -> Iterator[pa.Table]:
    """Yield the label tables of some sequences, a block of rows at a time."""
    from annotator.track.sequence import copied_rows, track_sequence
    from annotator.track.vertex_columns import VERTEX_COLUMNS, VertexRows

    for entry in entries:
        table = read_sequence(labels, entry, without=VERTEX_COLUMNS)
        vertex_rows = VertexRows(
            sequence_batches(labels, entry, VERTEX_COLUMNS, READ_ROWS), hand.vertex_count
        )
        if entry.extra["of_none"]:
            made = copied_rows(table, vertex_rows)
        else:
            made = track_sequence(table, vertex_rows, _layer(hand), max_gap, one_person)
        yield from made.tables(schema)


def crashed_sequences(entries: Sequence[Entry], labels: str) -> Shard:
    """Return the rows of sequences that ended every process which tracked them."""
    columns = ["image_uri", "image_id", "duplicate", "frame_index", "frame_time_s", "hand_index"]
    failed = without_hand("crashed", "every process that tracked this sequence crashed")
    rows = [row for entry in entries for row in read_sequence(labels, entry, columns).to_pylist()]
    return Shard([row | failed for row in rows])


@once_per_process(lambda hand: hand.id)
def _layer(hand: HandModel) -> HandLayer:
    """Return this process's hand layer, made when it is first needed."""
    import torch

    from annotator.hand.layer import HandLayer
    from annotator.runtime.malloc import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(1)  # a core for each process
    return HandLayer(hand)
