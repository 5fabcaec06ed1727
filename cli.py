"""The `amvur` command line: parse, call one function per command, print. Heavy imports are inside commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from annotator.errors import UserError
from annotator.runtime.progress import counting_bar, photos_bar, training_bar

if TYPE_CHECKING:
    from annotator.job.record import RunRecord


class Stopped(BaseException):
    """Replace `KeyboardInterrupt`, after which Typer would exit silently."""


class Commands(typer.core.TyperGroup):
    """Commands that raise `Stopped` when they are interrupted."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Stopped from interrupt


app = typer.Typer(
    name="amvur",
    cls=Commands,
    help="Label hand photos with 3D joints, meshes, calibrated uncertainty and texture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class ExportFormat(str, Enum):
    """Export formats."""

    coco = "coco"
    freihand = "freihand"
    ho3d = "ho3d"
    webdataset = "webdataset"
    glb = "glb"
    ply = "ply"
    animated_glb = "animated-glb"
    bvh = "bvh"
    lerobot = "lerobot"
    csv = "csv"
    mano = "mano"


class Side(str, Enum):
    """Sides of the hands in the photos."""

    auto = "auto"
    left = "left"
    right = "right"


class Precision(str, Enum):
    """Precision of the backbone."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class LabelColumns(str, Enum):
    """Choices of columns."""

    all = "all"
    mesh = "mesh"
    joints = "joints"


class Search(str, Enum):
    """Effort of the detector's search."""

    quick = "quick"
    thorough = "thorough"


Checkpoint = Annotated[
    str,
    typer.Option(
        help="Checkpoint: 'default', 'fast', untrained:NAME, or path or URL of a .safetensors file."
    ),
]
Hand = Annotated[str | None, typer.Option(help="Hand model: 'open' or 'mano:PATH' (your MANO_RIGHT.pkl).")]
Sides = Annotated[
    Side, typer.Option(help="Side of the hands. 'auto': from the list, the detector or the network.")
]


Photos = Annotated[
    str,
    typer.Argument(
        help="Folder, glob, list (.txt, .csv, .json, .jsonl, .parquet), tar, Parquet file of photos, or video; path "
        "or URL."
    ),
]
Labels = Annotated[str, typer.Argument(help="Output label set, path or URL. An unfinished run resumes.")]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster: 'auto' joins this machine's cluster; http(s)://HOST:8265 submits the command."
    ),
]
EveryFrames = Annotated[int, typer.Option(min=1, help="Use every Nth video frame.")]
MaxHands = Annotated[int, typer.Option(min=1, help="Maximum hands per photo, for the detector.")]
SearchOption = Annotated[
    Search,
    typer.Option(
        help="'thorough': search photos with fewer than --max-hands hands again, rotated and in tiles, for small, "
        "sideways and upside-down hands. Only these photos take longer."
    ),
]
Relabel = Annotated[
    str | None,
    typer.Option(
        help='Label again only photos with a matching row, for example "status != ok" or "reason == missing".'
    ),
]
ShardSize = Annotated[int, typer.Option(min=1, help="Photos per label file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate photos, time and size without labelling.")]


@app.command(epilog="Example: amvur annotate photos/ labels/")
def annotate(
    photos: Photos,
    labels: Labels,
    checkpoint: Checkpoint = "default",
    hand: Hand = None,
    side: Sides = Side.auto,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Detect hands with MediaPipe's hand_landmarker.task: path, URL, or 'mediapipe' for the file in this "
            "folder. Default: each photo is the crop of one hand."
        ),
    ] = None,
    max_hands: MaxHands = 2,
    search: SearchOption = Search.quick,
    detect_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Run the detector on every Nth frame of a video; in between, the network follows the hands. 1: every "
            "frame. Default: 8.",
        ),
    ] = None,
    boxes: Annotated[
        str | None,
        typer.Option(help="Boxes of the hands: a list with boxes, or a label set of `amvur detect`."),
    ] = None,
    boxes_normalised: Annotated[
        bool,
        typer.Option("--boxes-normalised", help="Boxes are fractions of the photo's width and height."),
    ] = False,
    every: EveryFrames = 1,
    samples: Annotated[
        int,
        typer.Option(min=0, help="Samples per hand from its predicted distribution, 3.6 KB each."),
    ] = 0,
    hand_length_mm: Annotated[
        float | None,
        typer.Option(
            "--hand-length-mm",
            help="Length of all hands, wrist to middle fingertip, in mm; sets their scale. Default: predicted.",
        ),
    ] = None,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Precision of the backbone. float16 is faster on GPUs and moves vertices by 0.4 mm on average, "
            "bfloat16 by 7 mm."
        ),
    ] = Precision.float32,
    columns: Annotated[
        LabelColumns,
        typer.Option(
            help="'joints' omits mesh and texture: an eighth of the bytes, a seventh less time. 'mesh' omits the "
            "texture only."
        ),
    ] = LabelColumns.all,
    tie_sizes: Annotated[
        bool,
        typer.Option(
            help="Give a photo's right and left hand one length if it shows exactly one of each. Turn it off if they "
            "belong to different people."
        ),
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Model workers. Default: one per GPU, otherwise one per core.")
    ] = None,
    decoders: Annotated[
        int | None,
        typer.Option(min=1, help="Shards decoded at once. Default: at most one per core."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads per model. Default: cores divided by models.")
    ] = None,
    gpus_per_worker: Annotated[
        float,
        typer.Option(min=0.01, help="GPUs per model. A fraction such as 0.5 puts several models on one GPU."),
    ] = 1.0,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Photos per forward pass. Default: 32; on GPUs benchmarked at start."),
    ] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
    dry_run: DryRun = False,
) -> None:
    """Label every photo of a collection. Run it again to resume."""
    from annotator.job.options import ComputeOptions

    _submit_and_exit(address, photos, labels, *_existing(checkpoint, detector, boxes))
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "hand": hand,
        "side": side.value,
        "detector": detector,
        "max_hands": max_hands,
        "search": search.value,
        "detect_every": detect_every,
        "boxes": boxes,
        "boxes_normalised": boxes_normalised,
        "every": every,
        "samples": samples,
        "hand_length_mm": hand_length_mm,
        "tie_sizes": tie_sizes,
        "precision": precision.value,
        "columns": columns.value,
    }
    if dry_run and relabel:
        raise UserError(
            "--dry-run estimates unlabelled photos, and --relabel labels photos again: give one of them"
        )
    if dry_run:
        from annotator.commands.annotate import LabelOptions
        from annotator.commands.estimate import estimate

        with counting_bar("listing") as on_progress:
            found = estimate(photos, labels, LabelOptions(**options), address, on_progress)
        _print_table(found.table())
        return
    compute = ComputeOptions(workers, threads, batch_size, shard_size, decoders, gpus_per_worker, address)
    record = _annotate(photos, labels, **options, compute=compute, relabel=relabel)
    _print_record(labels, record)
    _exit_if_failed(record)


@app.command(epilog="Example: amvur synth hands/ --count 36")
def synth(
    out: Annotated[
        Path,
        typer.Argument(help="Output folder for photos (images/) and true labels (truth.parquet)."),
    ],
    count: Annotated[int, typer.Option(min=1, help="Number of hands.")] = 36,
    seed: Annotated[int, typer.Option(help="Random seed. Equal seeds draw equal photos.")] = 0,
    size_px: Annotated[int, typer.Option(min=32, max=1024, help="Side of a photo in pixels.")] = 256,
    sequences: Annotated[
        int, typer.Option(min=0, help="Draw this many sequences of moving hands, with --count frames each.")
    ] = 0,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Ray tasks at once. Default: this process, or all cores for many hands."),
    ] = None,
    address: Address = None,
) -> None:
    """Draw photos of synthetic hands, or sequences of moving hands."""
    from trainer.synth import write_photos

    _submit_and_exit(address, str(out))
    with counting_bar("drawing") as on_progress:
        draw: dict[str, Any] = {"workers": workers, "address": address, "on_progress": on_progress}
        if sequences:
            from trainer.synth.write_sequences import write_sequences

            write_sequences(out, sequences, count, seed, size_px, **draw)
        else:
            write_photos(out, count, seed, size_px, **draw)
    if sequences:
        typer.echo(
            f"{sequences} sequences of {count} frames in {out / 'images'}, listed with boxes in {out / 'frames.csv'}, "
            f"their true labels in {out / 'truth.parquet'}"
        )
    else:
        typer.echo(f"{count} photos in {out / 'images'}, their true labels in {out / 'truth.parquet'}")


@app.command(epilog="Example: amvur detect photos/ found/ --model hand_landmarker.task")
def detect(
    photos: Photos,
    out: Labels,
    model: Annotated[
        str | None,
        typer.Option(help="MediaPipe's hand_landmarker.task, path or URL. Default: the file in this folder."),
    ] = None,
    max_hands: MaxHands = 2,
    search: SearchOption = Search.quick,
    world_joints: Annotated[
        bool, typer.Option(help="Also write the detector's estimate of 3D joints.")
    ] = False,
    every: EveryFrames = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
) -> None:
    """Detect boxes, sides and 2D joints of hands with MediaPipe."""
    from annotator.commands.detect import detect as find
    from annotator.job.options import ComputeOptions

    _submit_and_exit(address, photos, out, *_existing(model))
    with photos_bar("detecting", "hands") as on_progress:
        record = find(
            photos,
            out,
            model,
            max_hands=max_hands,
            search=search.value,
            world_joints=world_joints,
            every=every,
            compute=ComputeOptions(workers, shard_size=shard_size, address=address),
            relabel=relabel,
            on_progress=on_progress,
        )
    _print_outcomes(record)
    typer.echo(f"{record.photos} photos searched, hands in {out}")
    _exit_if_failed(record)


@app.command(epilog="Example: amvur fit found/ fitted/")
def fit(
    found: Annotated[
        str,
        typer.Argument(help="Label set of `amvur detect`, or a COCO .json file with hand keypoints."),
    ],
    labels: Labels,
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos in a COCO file.")] = None,
    hand: Annotated[
        str, typer.Option(help="Hand model: 'open' or 'mano:PATH' (your MANO_RIGHT.pkl).")
    ] = "open",
    config: Annotated[str, typer.Option(help="Name or .yaml file of a fit configuration.")] = "default",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
) -> None:
    """Fit hand meshes to existing landmarks. Run it again to resume."""
    from annotator.commands.fit import fit as fit_hands
    from annotator.job.options import ComputeOptions

    _submit_and_exit(address, found, labels, *_existing(images))
    with photos_bar("fitting", "hands") as on_progress:
        record = fit_hands(
            found,
            labels,
            images=images,
            hand=hand,
            config=config,
            compute=ComputeOptions(workers, shard_size=shard_size, address=address),
            relabel=relabel,
            on_progress=on_progress,
        )
    _print_outcomes(record)
    typer.echo(f"{record.photos} photos in {labels}")
    _exit_if_failed(record)


@app.command(epilog="Example: amvur track clip-labels/ tracked/")
def track(
    labels: Annotated[
        str, typer.Argument(help="Label set of videos, or of a list with a `sequence` column.")
    ],
    out: Annotated[str, typer.Argument(help="Output label set, path or URL. An unfinished run resumes.")],
    max_gap: Annotated[
        int, typer.Option(min=0, help="Maximum number of missing frames in a track; they are filled.")
    ] = 10,
    one_person: Annotated[
        bool, typer.Option("--one-person", help="One shape and length for all hands of a sequence.")
    ] = False,
    hand: Annotated[
        str, typer.Option(help="Hand model of the labels: 'open' or 'mano:PATH' (your MANO_RIGHT.pkl).")
    ] = "open",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes. Default: one per core.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Sequences per label file.")] = 1,
    address: Address = None,
) -> None:
    """Join hands across video frames and smooth their motion. Run it again to resume."""
    from annotator.commands.track import track as track_hands
    from annotator.job.options import ComputeOptions

    _submit_and_exit(address, labels, out)
    with photos_bar("tracking", "hands") as on_progress:
        record = track_hands(
            labels,
            out,
            max_gap=max_gap,
            one_person=one_person,
            hand=hand,
            compute=ComputeOptions(workers, shard_size=shard_size, address=address),
            on_progress=on_progress,
        )
    _print_outcomes(record)
    typer.echo(f"{record.photos} frames in {out}; '{labels}' is unchanged")
    _exit_if_failed(record)


@app.command(epilog="Example: amvur convert synth:hands/ examples/")
def convert(
    source: Annotated[
        str, typer.Argument(help="KIND:PATH, where KIND is freihand, ho3d, coco, labels or synth.")
    ],
    out: Annotated[str, typer.Argument(help="Output folder or URL, new.")],
    hand: Annotated[
        str, typer.Option(help="Hand model: 'open', or 'mano:PATH' for meshes of FreiHAND and HO3D.")
    ] = "open",
    split: Annotated[str | None, typer.Option(help="'train' (default) or 'evaluation'.")] = None,
    images: Annotated[
        str | None,
        typer.Option(help="Photo folder, if the paths in coco or labels are wrong."),
    ] = None,
    empty: Annotated[
        float, typer.Option(help="Share of photos (labels only) that add a negative example, 0 to 1.")
    ] = 0.0,
    outline: Annotated[
        bool,
        typer.Option(
            help="Find hand masks by colour, for photos in front of a plain wall (used by augment.backdrop)."
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ray tasks at once that read photos of coco, labels and synth. Default: this process."
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Convert a data set, labels or synthetic photos to training examples."""
    from trainer.convert.convert import convert as to_examples

    _submit_and_exit(address, source.partition(":")[2], out, *_existing(images))
    summary = to_examples(source, out, hand, split, images, empty, outline, workers, address)
    for reason, count in summary.left_out.items():
        typer.echo(f"left out  {count}  {reason}")
    if summary.std_note:
        typer.echo(f"note  {summary.std_note}")
    typer.echo(f"{summary.examples} examples in {out}")


@app.command(epilog="Example: amvur train supervised run/ --set steps=200")
def train(
    config: Annotated[
        str,
        typer.Argument(
            help="Name (supervised, weak, paper/supervised, ...) or .yaml file of a configuration."
        ),
    ],
    out: Annotated[str, typer.Argument(help="Output folder or URL. An unfinished run resumes.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Training examples instead of the configuration's: folder, URL or 'synth'."),
    ] = None,
    hand: Hand = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: steps=100, loss.texture=0.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Training workers. Default: one per GPU, otherwise one. Several use Ray Train."
        ),
    ] = None,
    address: Address = None,
    local: Annotated[bool, typer.Option("--local", help="Train in this process, without Ray.")] = False,
    device: Annotated[str | None, typer.Option(help="Device with --local: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Train a network. Run it again to resume."""
    from trainer.config import read_train_config
    from trainer.launch import run_training

    chosen = read_train_config(config, data or [], hand, settings or [])
    with training_bar() as on_progress:
        exit_code = run_training(chosen, out, workers, address, local, device, on_progress, _print_text)
    if exit_code is not None:  # a submission prints its own log
        raise typer.Exit(exit_code)
    typer.echo(f"trained {chosen.steps} steps; the model is {out.rstrip('/')}/model.safetensors")


Examples = Annotated[str, typer.Argument(help="Examples of `amvur convert`, or 'synth'.")]
First = Annotated[int, typer.Option(min=0, help="Index of the first example.")]
Count = Annotated[int, typer.Option(min=0, help="Number of examples; 0 = all (1000 for synth).")]
Device = Annotated[str | None, typer.Option(help="Device: cpu, cuda, cuda:1. Default: a GPU if available.")]
ExampleWorkers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Ray tasks at once. Default: this process, or with --address all GPUs or cores of the cluster.",
    ),
]


@app.command(epilog="Example: amvur evaluate run/model.safetensors synth results/")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: a .safetensors file, 'default' or 'fast'.")],
    examples: Examples,
    out: Annotated[str, typer.Argument(help="Output folder or URL.")],
    hand: Hand = None,
    first: First = 0,
    count: Count = 0,
    device: Device = None,
    submission: Annotated[
        str | None, typer.Option(help="Also write submission files: freihand, ho3d_v2 or ho3d_v3.")
    ] = None,
    workers: ExampleWorkers = None,
    address: Address = None,
) -> None:
    """Evaluate accuracy and uncertainty of a checkpoint."""
    _submit_and_exit(address, *_existing(checkpoint, examples), out)
    from trainer.evaluation.evaluate import evaluate as measure
    from trainer.evaluation.results_table import table_rows

    with counting_bar("evaluating") as on_progress:
        summary = measure(
            checkpoint,
            examples,
            out,
            hand=hand,
            first=first,
            count=count,
            device=device,
            submission=submission,
            on_progress=on_progress,
            workers=workers,
            address=address,
        )
    if summary is None:
        typer.echo("these examples have no targets: nothing to measure")
    else:
        _print_table(table_rows(summary))
    typer.echo(f"results in {out}")


@app.command(epilog="Example: amvur calibrate run/model.safetensors synth calibrated.safetensors")
def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint: a .safetensors file.")],
    examples: Examples,
    out: Annotated[str, typer.Argument(help="Output checkpoint; may be the same file.")],
    hand: Hand = None,
    first: First = 0,
    count: Count = 0,
    device: Device = None,
    workers: ExampleWorkers = None,
    address: Address = None,
) -> None:
    """Calibrate uncertainties on held-out examples."""
    _submit_and_exit(address, *_existing(checkpoint, examples), out)
    from trainer.evaluation.calibrate import calibrate as fit

    with counting_bar("predicting") as on_progress:
        calibration = fit(
            checkpoint,
            examples,
            out,
            hand=hand,
            first=first,
            count=count,
            device=device,
            on_progress=on_progress,
            workers=workers,
            address=address,
        )
    for name, formula in calibration.table():
        typer.echo(f"{name:<22}  {formula}")
    typer.echo(f"calibrated on {calibration.fitted_on}: {out}")


@app.command("filter", epilog="Example: amvur filter labels/ best/ --keep-best 0.5")
def filter_(
    labels: Annotated[str, typer.Argument(help="Label set, path or URL.")],
    out: Annotated[str, typer.Argument(help="New label set; with --list a new text file.")],
    max_joint_std_mm: Annotated[
        float | None, typer.Option(help="Keep hands whose largest joint std is at most this.")
    ] = None,
    keep_best: Annotated[
        float | None, typer.Option(help="Keep this share of the hands, those with the lowest std.")
    ] = None,
    per: Annotated[str | None, typer.Option(help="Apply --keep-best per value of this column.")] = None,
    where: Annotated[
        str | None,
        typer.Option(help='Keep rows that match, for example "is_right and detection_score > 0.9".'),
    ] = None,
    as_list: Annotated[bool, typer.Option("--list", help="Write the photos' uris, one per line.")] = False,
    sort: Annotated[
        bool, typer.Option(help="Sort each file by std in small row groups, to speed up later filters.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Files at once. Default: one, or all cores for large label sets."),
    ] = None,
    address: Address = None,
) -> None:
    """Keep the best labels, as a new label set or a list of photos."""
    from annotator.commands.filter import Keep, filter_labels

    _submit_and_exit(address, labels, out)
    keep = Keep(max_joint_std_mm, keep_best, per, where)
    with counting_bar("filtering") as on_progress:
        filtered = filter_labels(
            labels,
            out,
            keep,
            as_list=as_list,
            sort=sort,
            address=address,
            workers=workers,
            on_progress=on_progress,
        )
    _print_table(filtered.table())
    typer.echo(f"{filtered.kept} {'rows kept, their photos listed in' if as_list else 'rows in'} {out}")


@app.command(epilog="Example: amvur export labels/ hands.json --to coco")
def export(
    labels: Annotated[str, typer.Argument(help="Label set, path or URL.")],
    out: Annotated[str, typer.Argument(help="New .json (coco) or .csv file, or new folder; path or URL.")],
    to: Annotated[ExportFormat, typer.Option(help="Format; see docs/export.md.")],
    where: Annotated[
        str | None,
        typer.Option(help='Export rows that match, for example "is_right and detection_score > 0.9".'),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0, help="Maximum number of hands; 0 = all. Default: 1000 for glb and ply, otherwise all."
        ),
    ] = None,
    colour: Annotated[
        str | None, typer.Option(help="Vertex colours of glb and ply: 'texture' (default) or 'std'.")
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Also export the samples of `annotate --samples` to glb and ply."),
    ] = False,
    by_photo: Annotated[
        bool,
        typer.Option(
            "--by-photo", help="For glb and ply: one file per photo, all hands in front of its camera."
        ),
    ] = False,
    order: Annotated[
        str | None, typer.Option(help="HO3D's evaluation.txt, if it is not beside the photos.")
    ] = None,
    hand: Annotated[
        str | None,
        typer.Option(
            help="The labels' hand model, for joint angles and skeletons: 'open' (default) or 'mano:PATH'."
        ),
    ] = None,
    photos: Annotated[
        str | None, typer.Option(help="Photos of lerobot: 'video' (default), 'frames' or 'none'.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ray tasks at once, for webdataset, glb and ply. Default: this process, or all cores for large "
            "exports.",
        ),
    ] = None,
    address: Address = None,
) -> None:
    """Export labels for other tools: keypoints, meshes, tables, submissions."""
    from annotator.export import export_labels

    _submit_and_exit(address, labels, out, order)
    with counting_bar("exporting") as on_progress:
        exported = export_labels(
            labels,
            out,
            to.value,
            where=where,
            limit=limit,
            colour=colour,
            samples=samples,
            by_photo=by_photo,
            order=order,
            hand=hand,
            photos=photos,
            workers=workers,
            address=address,
            on_progress=on_progress,
        )
    for reason, count in exported.left_out.items():
        typer.echo(f"left out  {count}  {reason}")
    for note in exported.notes:
        typer.echo(note)
    typer.echo(f"{exported.hands} hands in {out}")


@app.command(epilog="Example: amvur report labels/")
def report(
    labels: Annotated[str, typer.Argument(help="Label set, path or URL.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder on disk. Default: LABELS/report, or NAME-report in this folder for a URL."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Number of hands to show, with meshes.")] = 48,
    truth: Annotated[
        str | None,
        typer.Option(help="True joints to measure errors, such as the truth.parquet of `amvur synth`."),
    ] = None,
) -> None:
    """Write an HTML page: outcomes, uncertainty, hands of lowest and highest std, meshes to rotate."""
    from annotator.report import write_report

    typer.echo(f"report: {write_report(labels, out, count, truth)}")


@app.command(epilog="Example: amvur demo demo/")
def demo(
    out: Annotated[Path, typer.Argument(help="Output folder for photos, labels and report.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="Number of hands.")] = 36,
    show: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Draw synthetic hands, label them and open the report, in about a minute."""
    from trainer.demo import write_demo

    typer.echo(f"drawing {count} hands")
    page = write_demo(out, count, lambda photos, labels: _print_record(labels, _annotate(photos, labels)))
    typer.echo(f"report: {page}")
    if show:
        typer.launch(page.as_uri())


@app.command(epilog="Example: amvur doctor --store s3://bucket/labels")
def doctor(
    store: Annotated[str | None, typer.Option(help="URL of a folder to test reading and writing.")] = None,
    hand: Annotated[str | None, typer.Option(help="'mano:PATH' (your MANO_RIGHT.pkl) to test.")] = None,
    model: Annotated[str | None, typer.Option(help="hand_landmarker.task to test, path or URL.")] = None,
) -> None:
    """Check every part of amvur on this machine and print fixes."""
    from annotator.commands.doctor import examine

    marks = {"ok": "ok", "absent": "-", "broken": "BROKEN"}
    bad = 0
    for finding in examine(store, hand, model):
        bad += finding.is_bad
        typer.echo(f"{finding.part:<16} {marks[finding.state]:<7} {finding.message}")
    if bad:
        raise typer.Exit(1)


jobs_app = typer.Typer(
    help="List, follow and stop commands submitted with --address http(s)://...", no_args_is_help=True
)
app.add_typer(jobs_app, name="jobs")

Dashboard = Annotated[
    str,
    typer.Option(
        envvar="RAY_API_SERVER_ADDRESS", help="Dashboard of the cluster's head: http(s)://HOST:8265."
    ),
]
SubmissionId = Annotated[str, typer.Argument(help="Id that was printed on submission.")]
LOCAL_DASHBOARD = "http://127.0.0.1:8265"


@jobs_app.command("list", epilog="Example: amvur jobs list --address http://head:8265")
def jobs_list(address: Dashboard = LOCAL_DASHBOARD) -> None:
    """List submissions of amvur, newest first: id, state, start, command."""
    from annotator.runtime.submission import submissions_table

    _print_table(submissions_table(address))


@jobs_app.command("logs", epilog="Example: amvur jobs logs raysubmit_abc --address http://head:8265")
def jobs_logs(submission: SubmissionId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Follow a submission's log. Ctrl-C leaves it running. The exit code is the submission's."""
    from annotator.runtime.submission import follow_submission

    raise typer.Exit(follow_submission(address, submission, _print_text))


@jobs_app.command("stop", epilog="Example: amvur jobs stop raysubmit_abc --address http://head:8265")
def jobs_stop(submission: SubmissionId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Stop a submission. Submit the same command again to resume."""
    from annotator.runtime.submission import stop_submission

    typer.echo(f"submission {submission}: {stop_submission(address, submission)}")


#: Commands that use the workers of the cluster that they are submitted to.
CLUSTER_COMMANDS = (
    *("annotate", "detect", "fit", "track", "filter", "export"),
    *("synth", "convert", "evaluate", "calibrate"),
)


def _existing(*names: str | None) -> list[str]:
    """Return the names that are URLs or existing files."""
    return [name for name in names if name and ("://" in name or Path(name).exists())]


def _submit_and_exit(address: str | None, *places: str | None) -> None:
    """Submit this command if the address is a dashboard, and exit with the submission's exit code."""
    from annotator.runtime.submission import is_dashboard_address, submit, without_address

    if address and is_dashboard_address(address):
        arguments = without_address(sys.argv[1:], "auto" if sys.argv[1] in CLUSTER_COMMANDS else None)
        raise typer.Exit(submit(address, arguments, _print_text, places=[place for place in places if place]))


def _annotate(photos: str, labels: str, **settings: Any) -> RunRecord:
    """Run `annotator.annotate` with a progress bar."""
    from annotator.commands.annotate import annotate as label

    with photos_bar("labelling", "a label") as on_progress:
        return label(photos, labels, **settings, on_progress=on_progress)


def _print_text(text: str) -> None:
    typer.echo(text, nl=False)


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_outcomes(record: RunRecord) -> None:
    width = max(map(len, record.outcomes), default=0)
    for outcome, count in sorted(record.outcomes.items(), key=lambda item: -item[1]):
        typer.echo(f"{outcome:<{width}}  {count}")
    for uri, error in record.failed:
        typer.echo(f"failed  {uri}  {error}")
    if record.failed_photos > len(record.failed) > 0:
        typer.echo(f"and {record.failed_photos - len(record.failed)} more: see rows with status 'failed'")
    if record.retries:
        causes = ", ".join(f"{count} after {cause}" for cause, count in sorted(record.retries.items()))
        typer.echo(f"retries: {causes}")
    if record.skipped_files:
        some = [repr(name)[1:-1] for name in record.skipped_names]
        if record.skipped_files > len(some):
            some.append("...")
        typer.echo(
            f"{record.skipped_files} files skipped (not photos, or unreadable folders): {', '.join(some)}"
        )


def _print_record(labels: str, record: RunRecord) -> None:
    _print_outcomes(record)
    if record.settings.trained_steps == 0:
        typer.echo("untrained weights: every hand is the mean hand, and all stds are equal")
    typer.echo(f"{record.photos} photos labelled in {labels}")


def _exit_if_failed(record: RunRecord) -> None:
    """Exit with code 3 if photos failed, since a retry may label them."""
    if record.failed_photos:
        typer.echo(
            f'{record.failed_photos} failed; to retry them: the same command with --relabel "status == failed"',
            err=True,
        )
        raise typer.Exit(3)


def main() -> None:
    """Run the command line. A user's mistake prints one line on stderr and exits with code 2.

    If the reader of stdout closes it first, as `head` does, exit silently with code 141.
    """
    from annotator.runtime.closed_pipe import CLOSED_PIPE_CODE, drop_closed_outputs

    try:
        _main()
    except BrokenPipeError as error:
        if drop_closed_outputs():
            sys.exit(CLOSED_PIPE_CODE)
        _fail(f"operating system: {error.strerror or error}")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # raised by Rich, which prints --help
            drop_closed_outputs()
            sys.exit(CLOSED_PIPE_CODE)
        raise


def _main() -> None:
    from annotator.runtime.termination import TERMINATED_CODE, stop_on_sigterm, was_terminated

    stop_on_sigterm()
    # Recent versions of Typer bundle their own Click; this is the exception class in all versions.
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="amvur", standalone_mode=False))
    except BrokenPipeError:
        raise
    except UserError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message().replace("Value error, ", ""))  # drop Pydantic's prefix
    except OSError as error:  # a path that cannot be read or written
        _fail(f"{error.filename or 'operating system'}: {error.strerror or error}")
    except (Stopped, KeyboardInterrupt, typer.Abort):
        typer.echo("amvur: stopped; run the same command again to resume", err=True)
        sys.exit(TERMINATED_CODE if was_terminated() else 130)


def _fail(message: str) -> None:
    typer.echo(f"amvur: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
