"""`annotate`: label a source of photos, with meshes. Defines the stages; `annotator.job` runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, get_args

from annotator.detection.detector import Search, check_search, detector_of_process, read_model
from annotator.detection.following import DETECT_EVERY
from annotator.errors import UserError
from annotator.job.detect_hands import FollowSettings
from annotator.job.options import ComputeOptions
from annotator.job.record import RunRecord, RunSettings, read_run_record
from annotator.job.resources import WorkerPlan, memory_of_model, plan_workers
from annotator.job.run import Job, Progress, run_job
from annotator.job.shard_predictor import ShardPredictor
from annotator.job.stages import Stages, decode_shard
from annotator.labels.folder import label_metadata, write_faces
from annotator.labels.schema import SCHEMA_VERSION, Columns, check_columns, label_schema
from annotator.labels.two_hands import relate_two_hands
from annotator.model.checkpoint_file import UNTRAINED, CheckpointFile, read_checkpoint
from annotator.photos.crops import Side
from annotator.runtime.precision import CPU_BATCH, Precision, check_precision
from annotator.sources import check_has_photos, open_source
from annotator.sources.entry import HAND_LENGTHS, is_hand_length
from annotator.storage.files import FIRST_ANSWER_S, absolute, check_writable
from annotator.storage.remote import retry_limit, without_secrets

if TYPE_CHECKING:
    from annotator.detection.locator import HandLocator

#: Maximum meshes drawn per hand: 160 MB for a shard of 256 hands.
MAX_SAMPLES = 64


@dataclass(frozen=True)
class LabelOptions:
    """The arguments of `annotate` that decide the labels; their meaning and defaults are there."""

    checkpoint: str
    hand: str | None
    side: Side
    detector: str | None
    max_hands: int
    search: Search
    detect_every: int | None
    boxes: str | None
    boxes_normalised: bool
    every: int
    samples: int
    hand_length_mm: float | None
    precision: Precision
    tie_sizes: bool
    columns: Columns


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
    detect_every: int | None = None,
    boxes: str | None = None,
    boxes_normalised: bool = False,
    every: int = 1,
    samples: int = 0,
    hand_length_mm: float | None = None,
    precision: Precision = "float32",
    tie_sizes: bool = True,
    columns: Columns = "all",
    compute: ComputeOptions = ComputeOptions(),
    relabel: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunRecord[RunSettings]:
    """Label every photo of a source into `labels`. Run it again to resume.

    Args:
        source: folder, glob, list, tar, Parquet file or video, see `annotator.sources.open_source`.
        labels: path or URL of the label set, created if missing.
        checkpoint: as for `annotator.load`. hand: likewise.
        side: of the hands; `auto` takes it from the list, the detector or the network, in this order.
        detector: path or URL of MediaPipe's `hand_landmarker.task`, which detects the hands. Without detector and
            boxes, each photo is the crop around one hand.
        max_hands: maximum hands per photo, for the detector.
        search: `thorough` searches photos with fewer hands again, rotated and in enlarged tiles.
        detect_every: run the detector on every Nth frame of a video; between, hands are followed by the network. 1
            detects in every frame. Default: 8, or the value of the labels to resume.
        boxes: of the hands: a list with boxes, or a label set of `amvur detect`.
        boxes_normalised: boxes of a list are fractions of each photo's width and height.
        every: use every Nth video frame.
        samples: meshes to draw per hand, at most `MAX_SAMPLES`; 0 leaves their columns out.
        hand_length_mm: length of all hands from wrist to middle fingertip along the bones, which sets the scale of
            meshes and camera; default: predicted. A list's column `hand_length_mm` takes precedence.
        precision: of the backbone, as for `annotator.load`. `float16` needs GPUs; `bfloat16` GPUs, or a CPU with its
            instructions.
        tie_sizes: whether a photo's only right and only left hand are of one person, and get one length.
        columns: `mesh` leaves out the texture, `joints` the mesh too; neither is then computed.
        compute: workers, threads, sizes and the cluster.
        relabel: a condition such as `status != ok`. Only photos with a matching row are labelled again, by any
            checkpoint with the same hand model and crop.
        on_progress: called before the first shard and after each.

    Returns:
        The label set's record: settings, and photos per outcome.

    Raises:
        UserError: a mistake in the arguments, before any work; or any error of `run_job`.
    """
    check_precision(precision, compute.address)
    options = LabelOptions(
        checkpoint=checkpoint,
        hand=hand,
        side=side,
        detector=detector,
        max_hands=max_hands,
        search=search,
        detect_every=detect_every,
        boxes=boxes,
        boxes_normalised=boxes_normalised,
        every=every,
        samples=samples,
        hand_length_mm=hand_length_mm,
        precision=precision,
        tie_sizes=tie_sizes,
        columns=columns,
    )
    job = annotate_job(source, labels, options, compute.batch_size)
    return run_job(job, compute, relabel, on_progress)


def annotate_job(
    source: str, labels: str, options: LabelOptions, batch_size: int | None = None, is_dry: bool = False
) -> Job[RunSettings]:
    """Return the job of `annotate`, not started; errors are the same. `is_dry` skips the write check."""
    labels = absolute(labels)
    _check(options)
    with retry_limit(FIRST_ANSWER_S):  # report a wrong name or key before loading a model
        photos = open_source(source, labels, options.every, options.boxes, options.boxes_normalised)
        check_has_photos(photos, source)
        record = read_run_record(labels, RunSettings)
        if record is None and not is_dry:
            check_writable(labels)
        found = read_model(options.detector) if options.detector else None
    file = _checkpoint_file(options.checkpoint, options.hand)
    detect_every = options.detect_every
    if options.detector and detect_every is None:
        detect_every = record.settings.detect_every if record else DETECT_EVERY
    settings = RunSettings(
        schema_version=SCHEMA_VERSION,
        source=photos.place,
        checkpoint=file.id,
        trained_steps=file.info.trained_steps,
        hand=file.hand.id,
        vertex_count=file.hand.vertex_count,
        side=options.side,
        crop_px=file.info.cut_px,
        detector=found.id if found else None,
        max_hands=options.max_hands if found else 1,
        search=options.search if found else "quick",
        detect_every=detect_every or 1,
        every=options.every,
        boxes=without_secrets(absolute(options.boxes)) if options.boxes else None,
        boxes_normalised=options.boxes_normalised,
        samples=options.samples,
        hand_length_mm=options.hand_length_mm,
        precision=options.precision,
        tie_sizes=options.tie_sizes,
        columns=options.columns,
    )
    get_detector = partial(detector_of_process, found, options.max_hands, options.search) if found else None
    follow_settings = _follow_settings(file, settings) if settings.detect_every > 1 else None
    metadata = _metadata(file, options.samples)
    schema = label_schema(file.hand.vertex_count, metadata, photos.columns, options.samples, options.columns)

    def stages(plan: WorkerPlan) -> Stages:
        return Stages(
            decode=partial(
                decode_shard,
                crop_px=settings.crop_px,
                get_detector=get_detector,
                margin=file.info.cut_margin,
                hand_length_mm=options.hand_length_mm,
                follow_settings=follow_settings,
            ),
            model=partial(
                ShardPredictor,
                file,
                plan.threads,
                batch_size,
                options.side,
                options.samples,
                options.precision,
                options.columns,
            ),
            schema=schema,
            finish_shard=partial(relate_two_hands, faces=file.hand.faces, tie_sizes=options.tie_sizes),
        )

    return Job(
        labels,
        photos,
        settings,
        stages,
        partial(plan_workers, model_bytes=_memory_of(file, batch_size)),
        producer={"checkpoint": file.id},
        begin=lambda: write_faces(labels, file.hand.faces),
        may_differ=("checkpoint", "trained_steps"),
    )


def _check(options: LabelOptions) -> None:
    """Refuse options that contradict each other."""
    if options.side not in get_args(Side):
        raise UserError(f"side is {options.side!r}, may be {', '.join(get_args(Side))}")
    check_search(options.search)
    if not 0 <= options.samples <= MAX_SAMPLES:
        raise UserError(f"samples is {options.samples}: give 0 to {MAX_SAMPLES}")
    check_columns(options.columns, options.samples)
    if options.search != "quick" and not options.detector:
        raise UserError(f"search {options.search!r} needs a detector: give one, or use `amvur detect`")
    if options.hand_length_mm is not None and not is_hand_length(options.hand_length_mm):
        raise UserError(f"hand_length_mm is {options.hand_length_mm:g}: expected {HAND_LENGTHS}")
    if options.detect_every is not None and not (options.detector and options.detect_every >= 1):
        raise UserError(f"detect_every is {options.detect_every}: give 1 or more frames, and a detector")
    if options.detector and options.boxes:
        raise UserError("detector and boxes both locate the hands: give one of them")


def _checkpoint_file(name: str, hand: str | None) -> CheckpointFile:
    """Read a checkpoint; torch loads for an untrained one alone."""
    if not name.startswith(UNTRAINED):
        return read_checkpoint(name, hand)
    from annotator.model.checkpoint import load_checkpoint

    made = load_checkpoint(name, hand)
    return CheckpointFile(name, made.to_bytes(), made.info, made.hand, made.id)


def _follow_settings(file: CheckpointFile, settings: RunSettings) -> FollowSettings:
    return FollowSettings(partial(_locator, file), settings.detect_every, settings.every, settings.max_hands)


def _locator(file: CheckpointFile) -> HandLocator:
    """Return this process's locator; torch loads with the first video."""
    from annotator.detection.locator import locator_of_process

    return locator_of_process(file)


def _metadata(file: CheckpointFile, samples: int) -> dict[str, str]:
    info = file.info
    return label_metadata(
        file.id,
        file.hand,
        info.calibration,
        samples,
        trained_steps=info.trained_steps,
        std_is_constant=info.network.variant == "prior_net",
        crop_px=info.cut_px,
    )


def _memory_of(file: CheckpointFile, batch_size: int | None) -> int:
    return memory_of_model(file.info.cut_px, batch_size or CPU_BATCH, file.weight_bytes)
