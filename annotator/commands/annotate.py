"""`annotate`: a source of photos to a label folder, with meshes. What its stations are; `job.py` runs them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, get_args

from annotator.detection.detector import Search, check_search, detector_of_process, read_model
from annotator.errors import UserError
from annotator.job.dispatcher import Crew, Stations
from annotator.job.record import RunRecord, RunSettings, read_run_record
from annotator.job.resources import ComputeOptions, crew_of, memory_of_model
from annotator.job.run import Job, Progress, label_folder, run_job
from annotator.job.stages import Shard, open_shard, predict_shard
from annotator.labels.folder import label_metadata, write_faces
from annotator.labels.schema import SCHEMA_VERSION, label_schema
from annotator.photos.crops import Side
from annotator.runtime.malloc import keep_freed_memory
from annotator.sources import Source, WithBoxes, open_source
from annotator.sources.entry import HAND_LENGTHS, is_hand_length
from annotator.storage.files import FIRST_ANSWER_S, check_writable
from annotator.storage.remote import patience, shown

if TYPE_CHECKING:
    from annotator.model.checkpoint import Checkpoint
    from annotator.predictor import Predictor

#: Meshes drawn for a hand: a shard of 256 hands then holds 160 MB of them.
MOST_SAMPLES = 64


def annotate(
    source: str,
    labels: str,
    *,
    checkpoint: str = "default",
    hand: str | None = None,
    side: Side = "auto",
    detector: str | None = None,
    max_hands: int = 2,
    search: Search = "quick",
    boxes: str | None = None,
    boxes_normalised: bool = False,
    every: int = 1,
    samples: int = 0,
    hand_length_mm: float | None = None,
    compute: ComputeOptions = ComputeOptions(),
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[RunSettings]:
    """Label every photo of a source into `labels`; run it again to go on where it stopped.

    Args:
        source: as for `annotator.sources.open_source`: a folder, a glob, a list, a tar, a Parquet file, a video.
        labels: path or URL of the label folder, made if need be.
        checkpoint: as for `annotator.load`. hand: likewise.
        side: which hands the photos show; `auto` asks the list or the detector, or else the network.
        detector: path or URL of MediaPipe's `hand_landmarker.task`, which finds the hands in each photo; without it
            and without boxes, each photo is the crop around one hand.
        max_hands: how many the detector looks for in a photo.
        search: `thorough` makes the detector look again where it finds nothing, at turned and at enlarged parts.
        boxes: where the hands are: a list with boxes, or labels that `amvur detect` wrote.
        boxes_normalised: boxes of a list are fractions of each photo's width and height.
        every: of a video, each so-many-th frame.
        samples: how many meshes to draw for each hand, `MOST_SAMPLES` at most; 0: no columns for them.
        hand_length_mm: length of all hands from wrist to middle fingertip along the bones, which sets the scale of
            meshes and camera; default: predicted. A list's column `hand_length_mm` takes precedence.
        compute: workers, threads, sizes, and the cluster.
        relabel: a condition such as `status != ok`: photos with such a row are labelled again, by any checkpoint of
            the same hand and crop, and nothing else is done.
        on_progress: called before the first shard and after each.

    Returns:
        The label folder's record: settings, and how many photos ended in what.

    Raises:
        UserError: a mistake in the arguments, before any work; or what `run_job` raises.
    """
    job = annotation(
        source,
        labels,
        checkpoint=checkpoint,
        hand=hand,
        side=side,
        detector=detector,
        max_hands=max_hands,
        search=search,
        boxes=boxes,
        boxes_normalised=boxes_normalised,
        every=every,
        samples=samples,
        hand_length_mm=hand_length_mm,
        batch_size=compute.batch_size,
    )
    return run_job(job, compute, relabel, on_progress)


def annotation(
    source: str,
    labels: str,
    *,
    checkpoint: str = "default",
    hand: str | None = None,
    side: Side = "auto",
    detector: str | None = None,
    max_hands: int = 2,
    search: Search = "quick",
    boxes: str | None = None,
    boxes_normalised: bool = False,
    every: int = 1,
    samples: int = 0,
    hand_length_mm: float | None = None,
    batch_size: int | None = None,
    is_dry: bool = False,
) -> Job[RunSettings]:
    """What `annotate` does, not begun yet; arguments and errors are its. `is_dry`: writing is not even tried."""
    labels = label_folder(labels)
    if side not in get_args(Side):
        raise UserError(f"side is {side!r}, may be {', '.join(get_args(Side))}")
    check_search(search)
    if not 0 <= samples <= MOST_SAMPLES:
        raise UserError(f"samples is {samples}: give 0 to {MOST_SAMPLES}")
    if search != "quick" and not detector:
        raise UserError(f"search {search!r} is for a detector: give one too, or run `amvur detect` with it")
    if hand_length_mm is not None and not is_hand_length(hand_length_mm):
        raise UserError(f"hand_length_mm is {hand_length_mm:g}: expected {HAND_LENGTHS}")
    if detector and boxes:
        raise UserError("detector and boxes both say where the hands are: give one of them")
    with patience(FIRST_ANSWER_S):  # a wrong name or key is told before a model is loaded
        photos = some_photos(source, labels, every, boxes, boxes_normalised)
        if read_run_record(labels, RunSettings) is None and not is_dry:
            check_writable(labels)
        found = read_model(detector) if detector else None
    from annotator.model.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint, hand)
    settings = RunSettings(
        schema_version=SCHEMA_VERSION,
        source=photos.place,
        checkpoint=loaded.id,
        trained_steps=loaded.info.trained_steps,
        hand=loaded.hand.id,
        vertex_count=loaded.hand.vertex_count,
        side=side,
        crop_px=loaded.cut_px,
        detector=found.id if found else None,
        max_hands=max_hands if found else 1,
        search=search if found else "quick",
        every=every,
        boxes=shown(label_folder(boxes)) if boxes else None,
        boxes_normalised=boxes_normalised,
        samples=samples,
        hand_length_mm=hand_length_mm,
    )
    find = partial(detector_of_process, found, max_hands, search) if found else None
    schema = label_schema(loaded.hand.vertex_count, label_metadata(loaded, samples), photos.columns, samples)

    def stations(crew: Crew) -> Stations:
        return Stations(
            open=partial(
                open_shard,
                crop_px=settings.crop_px,
                find=find,
                margin=loaded.cut_margin,
                hand_length_mm=hand_length_mm,
            ),
            model=partial(ShardPredictor, loaded, crew.threads, batch_size, side, samples),
            schema=schema,
        )

    return Job(
        labels,
        photos,
        settings,
        stations,
        partial(crew_of, model_bytes=_memory_of(loaded, batch_size)),
        maker={"checkpoint": loaded.id},
        begin=lambda: write_faces(labels, loaded.hand.faces),
        may_differ=("checkpoint", "trained_steps"),
    )


def some_photos(
    source: str,
    labels: str,
    every: int = 1,
    boxes: str | None = None,
    boxes_normalised: bool = False,
    by_hand: bool = True,
) -> Source:
    """A source that was found to have photos; arguments are those of `open_source`.

    Raises:
        UserError: it has none.
    """
    photos = open_source(source, labels, every, boxes, boxes_normalised, by_hand)
    listed = photos.photos if isinstance(photos, WithBoxes) else photos
    if next(iter(listed), None) is None:
        raise UserError(f"there are no photos in '{source}' ({listed.skipped_count} files of other kinds)")
    return photos


def _memory_of(checkpoint: Checkpoint, batch_size: int | None) -> int:
    from annotator.predictor import CPU_BATCH

    weight_bytes = sum(weights.nbytes for weights in checkpoint.network.state_dict().values())
    return memory_of_model(checkpoint.cut_px, batch_size or CPU_BATCH, weight_bytes)


class ShardPredictor:
    """One model on one device, fed shard by shard.

    One thread of its own does all that torch does. Ray makes an actor in one thread and calls it in another; OpenMP
    would keep a team for each, more threads than there are cores, and let both sleep between layers (a third slower).
    """

    def __init__(
        self, checkpoint: Checkpoint, threads: int, batch_size: int | None, side: Side, samples: int = 0
    ) -> None:
        """Load the model and warm it up."""
        self._side, self._samples = side, samples
        self._thread = ThreadPoolExecutor(1)
        self._predictor = self._thread.submit(self._start, checkpoint, threads, batch_size).result()

    @staticmethod
    def _start(checkpoint: Checkpoint, threads: int, batch_size: int | None) -> Predictor:
        import torch

        from annotator.predictor import CPU_BATCH, Predictor

        keep_freed_memory()
        torch.set_num_threads(threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        predictor = Predictor(checkpoint, device, batch_size or CPU_BATCH)
        if batch_size is None and device.type == "cuda":
            predictor.find_batch_size()
        predictor.warm_up()
        return predictor

    def __call__(self, shard: Shard) -> Shard:
        """The shard with its hands labelled."""
        return self._thread.submit(predict_shard, self._predictor, shard, self._side, self._samples).result()
