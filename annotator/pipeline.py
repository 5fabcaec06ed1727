"""The job: a source of photos to a label folder, on Ray Data.

    manifest -> decode (tasks) -> predict (actors, one model each) -> write (tasks)

What travels between the stations is one row a shard, so that the engine can neither split nor join what must be
committed together. A shard's label file is its commit (see `io/manifest.py`): the same command again does what is
missing and nothing else, however the last run ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

from annotator import stations
from annotator.allocator import keep_freed_memory
from annotator.cluster import connected
from annotator.detect.hands import HandDetector, detector_of_process, model_id
from annotator.errors import UserError
from annotator.io.labels import label_files, label_metadata, outcome_rows, write_faces
from annotator.io.manifest import Manifest, ShardRef
from annotator.io.schema import SCHEMA_VERSION, label_schema
from annotator.io.sources import FolderSource, readable
from annotator.io.storage import check_writable, is_local, join, local_path, remove_folder
from annotator.model.checkpoint import Checkpoint, load_checkpoint
from annotator.predictor import Predictor, Side
from annotator.run_record import RunRecord, RunSettings, check_settings, read_run_record, write_run_record
from annotator.stations import ShardReport, count_outcomes

#: Decoding and writing are tasks of half a core each.
TASK_CPUS = 0.5


@dataclass(frozen=True)
class ComputeOptions:
    """How the work is spread; labels differ by float rounding at most."""

    workers: int | None = None  # model actors; one per GPU, or one in all on CPUs
    threads: int | None = None  # of each model actor; the cores shared out among the actors
    batch_size: int = 32
    shard_size: int = 256  # photos a label file


@dataclass(frozen=True)
class Progress:
    """Told before the first shard and after each."""

    photos: int  # labelled so far, earlier runs included
    total: int
    outcomes: dict[str, int]  # of all of them
    rate: float  # photos per second of this run, since its first prediction began
    shard_began: float  # when the prediction of the shard just committed began, time.time()


def annotate(
    source: str,
    labels: str,
    *,
    checkpoint: str = "default",
    hand: str | None = None,
    side: Side = "auto",
    detector: str | None = None,
    max_hands: int = 2,
    compute: ComputeOptions = ComputeOptions(),
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[RunSettings]:
    """Label every photo of a folder into `labels`; run it again to go on where it stopped.

    Args:
        source: a folder of photos.
        labels: the label folder, made if need be.
        checkpoint: as for `annotator.load`. hand: likewise.
        side: which hands the photos show; `auto` asks the detector, or else the network.
        detector: path or URL of MediaPipe's `hand_landmarker.task`, which finds the hands in each photo; without,
            each photo is the crop around one hand.
        max_hands: how many the detector looks for in a photo.
        compute: workers, threads and sizes.
        on_progress: called before the first shard and after each.

    Returns:
        The label folder's record: settings, and how many photos ended in what.

    Raises:
        UserError: a mistake in the arguments, before any work.
    """
    if side not in get_args(Side):
        raise UserError(f"side is {side!r}, may be {', '.join(get_args(Side))}")
    if is_local(labels):
        labels = str(local_path(labels).absolute())  # workers may start elsewhere
    photos = FolderSource(source, leave_out=labels)
    if next(iter(photos), None) is None:
        raise UserError(f"there are no photos in '{source}' ({photos.skipped_count} files of other kinds)")
    record = read_run_record(labels, RunSettings)
    if record is None:
        check_writable(labels)
    loaded = load_checkpoint(checkpoint, hand)
    settings = RunSettings(
        schema_version=SCHEMA_VERSION,
        source=readable(photos.folder),
        checkpoint=loaded.id,
        trained_steps=loaded.info.trained_steps,
        hand=loaded.hand.id,
        vertex_count=loaded.hand.vertex_count,
        side=side,
        crop_px=loaded.info.network.crop_px,
        detector=model_id(detector) if detector else None,
        max_hands=max_hands if detector else 1,
    )
    find = partial(detector_of_process, detector, max_hands) if detector else None
    if record is None:
        write_faces(labels, loaded.hand.faces)
        record = RunRecord(settings)
        write_run_record(labels, record)
    else:
        check_settings(labels, record.settings, settings)
    manifest = Manifest(labels)
    done = label_files(labels)
    strange = done - {ref.file_name for ref in manifest.refs}
    if strange:
        raise UserError(
            f"'{labels}/data' holds {min(strange)}, which '_entries' does not know: give a new folder"
        )
    manifest.add(photos, compute.shard_size)
    pending = manifest.pending(done)
    if not pending and record.photos == manifest.entry_count:
        return record
    check_writable(labels)
    outcomes = Counter(count_outcomes(outcome_rows(labels, done)))
    before = outcomes.total()
    began = shard_began = math.inf  # of the first prediction: start-up is no part of the rate

    def tell() -> None:
        if on_progress:
            done_now = outcomes.total()
            rate = (done_now - before) / max(time.time() - began, 1e-3)
            on_progress(Progress(done_now, manifest.entry_count, dict(outcomes), rate, shard_began))

    tell()
    if pending:
        with connected():
            for report in _run(labels, pending, loaded, side, find, compute):
                outcomes.update(report.outcomes)
                shard_began = report.began
                began = min(began, shard_began)
                tell()
    record.outcomes = dict(sorted(outcomes.items()))
    record.skipped_files, record.skipped_names = photos.skipped_count, photos.skipped
    record.seconds = round(record.seconds + max(time.time() - began, 0.0), 1)
    write_run_record(labels, record)
    remove_folder(join(labels, "_tmp"))
    return record


def _run(
    labels: str,
    pending: list[ShardRef],
    checkpoint: Checkpoint,
    side: Side,
    find: Callable[[], HandDetector] | None,
    compute: ComputeOptions,
) -> Iterator[ShardReport]:
    """Send shards through the stations; yields a report as each is committed."""
    import ray

    cpus, gpus = ray.cluster_resources().get("CPU", 1), int(ray.cluster_resources().get("GPU", 0))
    workers = compute.workers or gpus or 1
    if gpus and workers > gpus:
        raise UserError(f"{workers} workers asked for, but there are {gpus} GPUs: one worker a GPU at most")
    threads = compute.threads or max(1, int(cpus) // workers)
    actor_cpus = cpus_of_an_actor(cpus, workers, threads, gpus)
    crop_px = checkpoint.info.network.crop_px
    schema = label_schema(checkpoint.hand.vertex_count, label_metadata(checkpoint))

    def decode(row: dict[str, Any]) -> dict[str, Any]:
        return stations.packed(stations.decode_shard(labels, ShardRef(**row), crop_px, find))

    def write(row: dict[str, Any]) -> dict[str, Any]:
        return stations.packed(stations.write_shard(labels, stations.unpacked(row), schema))

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # failures come as exceptions, once
    context.print_on_execution_start = False
    rows = ray.data.from_items([asdict(ref) for ref in pending], override_num_blocks=len(pending))
    reports = (
        rows.map(decode, num_cpus=TASK_CPUS)
        .map(
            _PredictActor,  # type: ignore[arg-type]  # Ray takes classes too, its hints do not say so
            fn_constructor_args=(ray.put(checkpoint), threads, compute.batch_size, side),
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2),
            num_cpus=actor_cpus,
            num_gpus=1 if gpus else 0,
        )
        .map(write, num_cpus=TASK_CPUS)
    )
    try:
        for row in reports.iter_rows():
            yield stations.unpacked(row)
    except ray.exceptions.RayError as error:
        cause = _root_cause(error)
        if isinstance(cause, OSError):
            raise UserError(
                f"labels could not be written to '{labels}': {cause.strerror or cause}; "
                "what is there stays, run the same command again to go on"
            ) from error
        raise


def cpus_of_an_actor(cpus: float, workers: int, threads: int, gpus: int) -> float:
    """How many CPUs a model actor declares to Ray: one less than its threads, one on a GPU.

    All of them together leave a core, or half of a single one, for decoders and writers, who would otherwise wait for
    ever.

    Raises:
        UserError: there are too many workers for that.
    """
    spare = min(2 * TASK_CPUS, cpus / 2)
    wanted = 1.0 if gpus else max(1.0, threads - 1.0)
    declared = min(wanted, math.floor((cpus - spare) / workers * 100) / 100)
    if declared < 0.01:
        raise UserError(
            f"{workers} workers are too many for {cpus:.0f} cores: give --workers {max(1, int(cpus) - 1)}"
        )
    return declared


class _PredictActor:
    """One model on one device, fed shard by shard.

    One thread of its own does all that torch does. Ray makes an actor in one thread and calls it in another; OpenMP
    would keep a team for each, more threads than there are cores, and let both sleep between layers (a third slower).
    """

    def __init__(self, checkpoint_ref: Any, threads: int, batch_size: int, side: Side) -> None:
        import ray

        checkpoint = ray.get(checkpoint_ref)
        self.side = side
        self.thread = ThreadPoolExecutor(1)
        self.predictor = self.thread.submit(self._start, checkpoint, threads, batch_size).result()

    @staticmethod
    def _start(checkpoint: Checkpoint, threads: int, batch_size: int) -> Predictor:
        import torch

        keep_freed_memory()
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        predictor = Predictor(checkpoint, device, batch_size)
        predictor.warm_up()
        return predictor

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = stations.unpacked(row)
        return stations.packed(
            self.thread.submit(stations.predict_shard, self.predictor, shard, self.side).result()
        )


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None or getattr(error, "cause", None) is not None:
        error = error.__cause__ or error.cause  # type: ignore[attr-defined]
    return error
