"""The `amvur` command: parses, calls one function per command, prints. Heavy imports happen inside commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from annotator.errors import UserError
from annotator.runtime.progress import counting_bar, photos_bar, training_bar

if TYPE_CHECKING:
    from annotator.job.record import RunRecord

app = typer.Typer(
    name="amvur",
    help="Label hand photos with 3D joints, meshes, calibrated uncertainty and texture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class ExportFormat(str, Enum):
    """What labels can be exported to."""

    coco = "coco"
    freihand = "freihand"
    ho3d = "ho3d"
    webdataset = "webdataset"
    glb = "glb"
    ply = "ply"
    csv = "csv"
    mano = "mano"


class Side(str, Enum):
    """Which hands the photos show."""

    auto = "auto"
    left = "left"
    right = "right"


class Search(str, Enum):
    """How long the detector searches a photo without a hand."""

    quick = "quick"
    thorough = "thorough"


Checkpoint = Annotated[
    str,
    typer.Option(help="A .safetensors checkpoint (path or URL), 'default', 'fast', or untrained:NAME."),
]
Hand = Annotated[str | None, typer.Option(help="Hand model: 'open', or 'mano:PATH' of your MANO_RIGHT.pkl.")]
Sides = Annotated[Side, typer.Option(help="Which hands the photos show; 'auto' asks the network.")]


Photos = Annotated[
    str,
    typer.Argument(
        help="A folder, a glob, a list (.txt, .csv, .json, .jsonl, .parquet), a tar, a Parquet file with photos, or a "
        "video; a path or URL."
    ),
]
Labels = Annotated[
    str, typer.Argument(help="The label folder, a path or URL; an unfinished one is gone on with.")
]
Address = Annotated[
    str | None,
    typer.Option(help="A Ray cluster: 'auto', or http(s)://HOST:8265 to submit this as a job."),
]
JobAddress = Annotated[
    str | None, typer.Option(help="http(s)://HOST:8265 of a Ray cluster, to submit this as a job.")
]
EveryFrames = Annotated[int, typer.Option(min=1, help="Of a video, each so-many-th frame.")]
MaxHands = Annotated[int, typer.Option(min=1, help="Hands a photo, at most, that the detector looks for.")]
SearchOption = Annotated[
    Search,
    typer.Option(
        help="thorough: where the detector finds nothing, it looks again at the turned photo and at tiles of it, for "
        "small, sideways and upside-down hands. Only photos without a hand take longer."
    ),
]
Relabel = Annotated[
    str | None,
    typer.Option(
        help='Do photos with such a row again, such as "status != ok" or "reason == missing", and nothing else.'
    ),
]
ShardSize = Annotated[int, typer.Option(min=1, help="Photos a label file.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


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
            help="MediaPipe's hand_landmarker.task (path or URL), or 'mediapipe' where it lies in this folder: finds "
            "the hands; without, a photo is one's crop."
        ),
    ] = None,
    max_hands: MaxHands = 2,
    search: SearchOption = Search.quick,
    boxes: Annotated[
        str | None, typer.Option(help="Where the hands are: a list with boxes, or what `amvur detect` wrote.")
    ] = None,
    boxes_normalised: Annotated[
        bool,
        typer.Option(
            "--boxes-normalised", help="Boxes of a list are fractions of the photo's width and height."
        ),
    ] = False,
    every: EveryFrames = 1,
    samples: Annotated[
        int,
        typer.Option(
            min=0, help="Meshes to draw for each hand from its predicted distribution, 3.6 KB each."
        ),
    ] = 0,
    hand_length_mm: Annotated[
        float | None,
        typer.Option(
            "--hand-length-mm",
            help="Length of all hands, wrist to middle fingertip, in mm; sets their scale. Default: predicted.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Models at work; default one a GPU, else one a core.")
    ] = None,
    decoders: Annotated[
        int | None,
        typer.Option(min=1, help="Shards decoded at once; default at most one a core."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a model; default all cores, shared out.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option(min=0.01, help="A part, such as 0.5, for several models on one GPU.")
    ] = 1.0,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Photos a forward pass; default 32, on GPUs found by trying.")
    ] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
    dry_run: DryRun = False,
) -> None:
    """Label every photo of a collection. Run it again to go on where it stopped."""
    from annotator.job.resources import ComputeOptions

    _submit_to(address, photos, labels, *_there(checkpoint, detector, boxes))
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "hand": hand,
        "side": side.value,
        "detector": detector,
        "max_hands": max_hands,
        "search": search.value,
        "boxes": boxes,
        "boxes_normalised": boxes_normalised,
        "every": every,
        "samples": samples,
        "hand_length_mm": hand_length_mm,
    }
    if dry_run and relabel:
        raise UserError(
            "--dry-run says what is left to label, and --relabel does what is done already: give one"
        )
    if dry_run:
        from annotator.commands.estimate import estimate

        with counting_bar("listing") as on_progress:
            _print_table(estimate(photos, labels, **options, on_progress=on_progress).table())
        return
    compute = ComputeOptions(workers, threads, batch_size, shard_size, decoders, gpus_per_worker, address)
    record = _annotate(photos, labels, **options, compute=compute, relabel=relabel)
    _print_record(labels, record)
    _exit_if_failed(record)


@app.command(epilog="Example: amvur synth hands/ --count 36")
def synth(
    out: Annotated[
        Path,
        typer.Argument(help="Folder for the photos (out/images) and their true labels (out/truth.parquet)."),
    ],
    count: Annotated[int, typer.Option(min=1, help="How many hands.")] = 36,
    seed: Annotated[int, typer.Option(help="The same seed draws the same photos.")] = 0,
    size_px: Annotated[int, typer.Option(min=32, max=1024, help="Side of a photo.")] = 256,
    sequences: Annotated[
        int, typer.Option(min=0, help="Draw so many sequences of moving hands, `count` frames each.")
    ] = 0,
    address: JobAddress = None,
) -> None:
    """Draw photos of synthetic hands, or with --sequences of hands that move."""
    from trainer.synth import write_photos

    _submit_to(address, str(out))
    if sequences:
        from trainer.synth.write_sequences import write_sequences

        write_sequences(out, sequences, count, seed, size_px)
        typer.echo(
            f"{sequences} sequences of {count} frames in {out / 'images'}, listed with boxes in {out / 'frames.csv'}, "
            f"their true labels in {out / 'truth.parquet'}"
        )
        return
    write_photos(out, count, seed, size_px)
    typer.echo(f"{count} photos in {out / 'images'}, their true labels in {out / 'truth.parquet'}")


@app.command(epilog="Example: amvur detect photos/ found/ --model hand_landmarker.task")
def detect(
    photos: Photos,
    out: Labels,
    model: Annotated[
        str | None,
        typer.Option(help="Path or URL of MediaPipe's hand_landmarker.task; default the one in this folder."),
    ] = None,
    max_hands: MaxHands = 2,
    search: SearchOption = Search.quick,
    world_joints: Annotated[bool, typer.Option(help="Also keep the detector's guess of 3D joints.")] = False,
    every: EveryFrames = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
) -> None:
    """Find boxes, sides and 2D joints of hands with MediaPipe: weak labels of real photos."""
    from annotator.commands.detect import detect as find
    from annotator.job.resources import ComputeOptions

    _submit_to(address, photos, out, *_there(model))
    with photos_bar("looking", "hands") as on_progress:
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
    typer.echo(f"{record.photos} photos looked at, hands in {out}")
    _exit_if_failed(record)


@app.command(epilog="Example: amvur fit found/ fitted/")
def fit(
    found: Annotated[
        str,
        typer.Argument(
            help="What `amvur detect` wrote, or a .json file with hand keypoints in COCO's layout."
        ),
    ],
    labels: Labels,
    images: Annotated[
        str | None, typer.Option(help="Of COCO: the folder or URL that its file names start from.")
    ] = None,
    hand: Annotated[
        str, typer.Option(help="Hand model: 'open', or 'mano:PATH' of your MANO_RIGHT.pkl.")
    ] = "open",
    config: Annotated[str, typer.Option(help="A fit configuration's name or .yaml file.")] = "default",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
    shard_size: ShardSize = 256,
    address: Address = None,
    relabel: Relabel = None,
) -> None:
    """Fit meshes to landmarks that are there already. Run it again to resume where it stopped."""
    from annotator.commands.fit import fit as fit_hands
    from annotator.job.resources import ComputeOptions

    _submit_to(address, found, labels, *_there(images))
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
        str, typer.Argument(help="A label folder of videos, or of a list with a `sequence` column.")
    ],
    out: Annotated[
        str, typer.Argument(help="The tracked label folder, a path or URL; an unfinished one resumes.")
    ],
    max_gap: Annotated[
        int, typer.Option(min=0, help="Frames that a hand may be missing for; they are filled.")
    ] = 10,
    hand: Annotated[
        str, typer.Option(help="Hand model of the labels: 'open', or 'mano:PATH' of your MANO_RIGHT.pkl.")
    ] = "open",
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default one a core.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Sequences per label file.")] = 1,
    address: Address = None,
) -> None:
    """Join hands over the frames of videos and smooth their motion. Run it again to resume where it stopped."""
    from annotator.commands.track import track as track_hands
    from annotator.job.resources import ComputeOptions

    _submit_to(address, labels, out)
    with photos_bar("tracking", "hands") as told:
        record = track_hands(
            labels,
            out,
            max_gap=max_gap,
            hand=hand,
            compute=ComputeOptions(workers, shard_size=shard_size, address=address),
            on_progress=told,
        )
    _print_outcomes(record)
    typer.echo(f"{record.photos} frames in {out}; '{labels}' is unchanged")
    _exit_if_failed(record)


@app.command(epilog="Example: amvur convert synth:hands/ examples/")
def convert(
    source: Annotated[
        str, typer.Argument(help="KIND:PATH, KIND being freihand, ho3d, coco, labels or synth.")
    ],
    out: Annotated[str, typer.Argument(help="A new folder or URL for the examples.")],
    hand: Annotated[
        str, typer.Option(help="'open', or 'mano:PATH' for meshes of FreiHAND and HO3D.")
    ] = "open",
    split: Annotated[str | None, typer.Option(help="'train' (default) or 'evaluation'.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder of the photos, where coco or labels don't lead to them.")
    ] = None,
    empty: Annotated[
        float, typer.Option(help="Of labels: squares without a hand, from this share of the photos.")
    ] = 0.0,
    outline: Annotated[
        bool,
        typer.Option(help="Hands before a plain wall: find their masks by colour, for augment.backdrop."),
    ] = False,
    address: JobAddress = None,
) -> None:
    """Turn a data set, labels or synthetic photos into training examples."""
    from trainer.convert.convert import convert as to_examples

    _submit_to(address, source.partition(":")[2], out, *_there(images))
    summary = to_examples(source, out, hand, split, images, empty, outline)
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
            help="A configuration's name (supervised, weak, paper/supervised, ...) or .yaml file."
        ),
    ],
    out: Annotated[str, typer.Argument(help="Folder or URL of the run; an unfinished one is gone on with.")],
    data: Annotated[
        list[str] | None,
        typer.Option(help="Examples to train on instead of the configuration's: a folder, a URL or 'synth'."),
    ] = None,
    hand: Hand = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another value of a setting: steps=100, loss.texture=0.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Workers; default one a GPU, else one. More than one: Ray Train."),
    ] = None,
    address: Address = None,
    local: Annotated[bool, typer.Option("--local", help="This process alone, in plain torch.")] = False,
    device: Annotated[str | None, typer.Option(help="With --local: cpu, cuda, cuda:1.")] = None,
) -> None:
    """Train a network. Run it again to go on where it stopped."""
    from trainer.config import read_train_config
    from trainer.launch import run_training

    chosen = read_train_config(config, data or [], hand, settings or [])
    with training_bar() as on_progress:
        job_code = run_training(chosen, out, workers, address, local, device, on_progress, _as_it_comes)
    if job_code is not None:  # it said all there is to say
        raise typer.Exit(job_code)
    typer.echo(f"trained {chosen.steps} steps; the model is {out.rstrip('/')}/model.safetensors")


Examples = Annotated[str, typer.Argument(help="Examples that `amvur convert` wrote, or 'synth'.")]
First = Annotated[int, typer.Option(min=0, help="Number of the first example.")]
Count = Annotated[int, typer.Option(min=0, help="How many examples; 0 = all (of synth: 1000).")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default a GPU if there is one.")]


@app.command(epilog="Example: amvur evaluate run/model.safetensors synth results/")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors checkpoint, 'default' or 'fast'.")],
    examples: Examples,
    out: Annotated[str, typer.Argument(help="Folder or URL for the results.")],
    hand: Hand = None,
    first: First = 0,
    count: Count = 0,
    device: Device = None,
    submission: Annotated[
        str | None, typer.Option(help="Also a benchmark's files: freihand, ho3d_v2 or ho3d_v3.")
    ] = None,
    address: JobAddress = None,
) -> None:
    """Hold a checkpoint against the truth: errors, what its uncertainty is worth, submission files."""
    _submit_to(address, *_there(checkpoint, examples), out)
    from trainer.evaluation.evaluate import evaluate as judge
    from trainer.evaluation.results import table_rows

    with counting_bar("judging") as on_progress:
        summary = judge(checkpoint, examples, out, hand, first, count, device, submission, on_progress)
    if summary is None:
        typer.echo("these examples have no targets: nothing to measure")
    else:
        _print_table(table_rows(summary))
    typer.echo(f"results in {out}")


@app.command(epilog="Example: amvur calibrate run/model.safetensors synth calibrated.safetensors")
def calibrate(
    checkpoint: Annotated[str, typer.Argument(help="A .safetensors checkpoint.")],
    examples: Examples,
    out: Annotated[str, typer.Argument(help="Where the calibrated checkpoint goes; may be the same file.")],
    hand: Hand = None,
    first: First = 0,
    count: Count = 0,
    device: Device = None,
    address: JobAddress = None,
) -> None:
    """Fit the uncertainties to errors on examples that the checkpoint was not trained on."""
    _submit_to(address, *_there(checkpoint, examples), out)
    from trainer.evaluation.evaluate import calibrate as fit

    with counting_bar("predicting") as on_progress:
        found = fit(checkpoint, examples, out, hand, first, count, device, on_progress)
    for name, formula in found.table():
        typer.echo(f"{name:<22}  {formula}")
    typer.echo(f"calibrated on {found.fitted_on}: {out}")


@app.command("filter", epilog="Example: amvur filter labels/ best/ --keep-best 0.5")
def filter_(
    labels: Annotated[str, typer.Argument(help="A label folder, a path or URL.")],
    out: Annotated[str, typer.Argument(help="A new label folder; with --list a new text file.")],
    max_joint_std_mm: Annotated[
        float | None, typer.Option(help="Keep hands whose least sure joint has no larger std.")
    ] = None,
    keep_best: Annotated[float | None, typer.Option(help="Keep this share of them, the surest.")] = None,
    per: Annotated[str | None, typer.Option(help="Keep that share of each value of this column.")] = None,
    where: Annotated[
        str | None,
        typer.Option(help='Keep rows that meet this, such as "is_right and detection_score > 0.9".'),
    ] = None,
    as_list: Annotated[bool, typer.Option("--list", help="Write the photos' uris, one a line.")] = False,
    sort: Annotated[
        bool, typer.Option(help="Sort each file by std in small row groups, for later filters to skip.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Files at once; default this process, or all cores for much data."),
    ] = None,
    address: Address = None,
) -> None:
    """Keep the labels that are good enough, as a new label folder or a list of photos."""
    from annotator.commands.filter import Keep, filter_labels

    _submit_to(address, labels, out)
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
    typer.echo(f"{filtered.kept} {'rows led to the photos in' if as_list else 'rows in'} {out}")


@app.command(epilog="Example: amvur export labels/ hands.json --to coco")
def export(
    labels: Annotated[str, typer.Argument(help="A label folder, a path or URL.")],
    out: Annotated[
        str, typer.Argument(help="A new .json (coco) or .csv file, or a new folder; a path or URL.")
    ],
    to: Annotated[ExportFormat, typer.Option(help="The format; docs/export.md says what each holds.")],
    where: Annotated[
        str | None,
        typer.Option(help='Only rows that meet this, such as "is_right and detection_score > 0.9".'),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help="So many hands at most; 0 = all. Default 1000 for glb and ply, else all."),
    ] = None,
    colour: Annotated[
        str | None, typer.Option(help="Of glb and ply: 'texture' (default), or 'std', each vertex's.")
    ] = None,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="Of glb and ply: also the meshes that `annotate --samples` drew."),
    ] = False,
    order: Annotated[
        str | None, typer.Option(help="HO3D's evaluation.txt, where it does not lie with the photos.")
    ] = None,
    address: JobAddress = None,
) -> None:
    """Write labels as other tools read them: keypoints, meshes, tables, submissions."""
    from annotator.export import export_labels

    _submit_to(address, labels, out, order)
    with counting_bar("exporting") as on_progress:
        exported = export_labels(
            labels,
            out,
            to.value,
            where=where,
            limit=limit,
            colour=colour,
            samples=samples,
            order=order,
            on_progress=on_progress,
        )
    for reason, count in exported.left_out.items():
        typer.echo(f"left out  {count}  {reason}")
    for note in exported.notes:
        typer.echo(note)
    typer.echo(f"{exported.hands} hands in {out}")


@app.command(epilog="Example: amvur report labels/")
def report(
    labels: Annotated[str, typer.Argument(help="A label folder, a path or URL.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder on disk; default LABELS/report, of a URL's labels NAME-report here."),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many hands to show, with their meshes.")] = 48,
    truth: Annotated[
        str | None,
        typer.Option(help="True joints to measure errors by, such as the truth.parquet of `amvur synth`."),
    ] = None,
) -> None:
    """A page that opens from disk: outcomes, uncertainty, the surest and least sure hands, meshes to turn."""
    from annotator.report import write_report

    typer.echo(f"look at {write_report(labels, out, count, truth)}")


@app.command(epilog="Example: amvur demo demo/")
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for photos, labels and report.")] = Path("demo"),
    count: Annotated[int, typer.Option(min=1, help="How many hands.")] = 36,
    show: Annotated[bool, typer.Option(help="Open the report in a browser.")] = True,
) -> None:
    """Draw hands, label them and open the report: the whole of amvur in a minute."""
    from annotator.report import write_report
    from trainer.synth import write_photos

    typer.echo(f"drawing {count} hands")
    write_photos(out, count, seed=0, size_px=256)
    record = _annotate(str(out / "images"), str(out / "predicted"))
    _print_record(str(out / "predicted"), record)
    page = write_report(str(out / "predicted"), out / "report", 24).resolve()
    typer.echo(f"look at {page}")
    if show:
        typer.launch(page.as_uri())


@app.command(epilog="Example: amvur doctor --store s3://bucket/labels")
def doctor(
    store: Annotated[str | None, typer.Option(help="URL of a folder to read and write.")] = None,
    hand: Annotated[str | None, typer.Option(help="'mano:PATH' of your MANO_RIGHT.pkl.")] = None,
    model: Annotated[str | None, typer.Option(help="Path or URL of hand_landmarker.task.")] = None,
) -> None:
    """Try every part of amvur once: what works here, what does not, and what to do about it."""
    from annotator.commands.doctor import examine

    marks = {"ok": "ok", "absent": "-", "broken": "BROKEN"}
    bad = 0
    for finding in examine(store, hand, model):
        bad += finding.is_bad
        typer.echo(f"{finding.part:<16} {marks[finding.state]:<7} {finding.said}")
    if bad:
        raise typer.Exit(1)


jobs_app = typer.Typer(help="The jobs that --address http(s)://... submitted.", no_args_is_help=True)
app.add_typer(jobs_app, name="jobs")

Dashboard = Annotated[
    str, typer.Option(envvar="RAY_API_SERVER_ADDRESS", help="http(s)://HOST:8265 of the cluster's head.")
]
JobId = Annotated[str, typer.Argument(help="The id that was printed when the job was submitted.")]
LOCAL_DASHBOARD = "http://127.0.0.1:8265"


@jobs_app.command("list", epilog="Example: amvur jobs list --address http://head:8265")
def jobs_list(address: Dashboard = LOCAL_DASHBOARD) -> None:
    """The cluster's jobs of amvur, the newest first: id, state, when it began, what it runs."""
    from annotator.runtime.submission import jobs_table

    _print_table(jobs_table(address))


@jobs_app.command("logs", epilog="Example: amvur jobs logs raysubmit_abc --address http://head:8265")
def jobs_logs(job: JobId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Follow a job's log to its end; Ctrl-C leaves the job running. Ends with the job's exit code."""
    from annotator.runtime.submission import follow_job

    raise typer.Exit(follow_job(address, job, _as_it_comes))


@jobs_app.command("stop", epilog="Example: amvur jobs stop raysubmit_abc --address http://head:8265")
def jobs_stop(job: JobId, address: Dashboard = LOCAL_DASHBOARD) -> None:
    """Stop a job; the same command submitted again goes on where it was."""
    from annotator.runtime.submission import stop_job

    typer.echo(f"job {job}: {stop_job(address, job)}")


def _there(*names: str | None) -> list[str]:
    """Those that name a file or URL."""
    return [name for name in names if name and ("://" in name or Path(name).exists())]


def _submit_to(address: str | None, *places: str | None) -> None:
    """If an address is one that jobs are submitted to, run this very command there and end with its exit code."""
    from annotator.runtime.submission import is_job_address, submit, without_address

    if address and is_job_address(address):
        arguments = without_address(
            sys.argv[1:], "auto" if sys.argv[1] in ("annotate", "detect", "fit", "filter") else None
        )
        raise typer.Exit(
            submit(address, arguments, _as_it_comes, places=[place for place in places if place])
        )


def _annotate(photos: str, labels: str, **settings: Any) -> RunRecord:
    """`annotator.annotate` with a progress bar."""
    from annotator.commands.annotate import annotate as label

    with photos_bar("labelling", "a label") as on_progress:
        return label(photos, labels, **settings, on_progress=on_progress)


def _as_it_comes(text: str) -> None:
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
    failed = sum(count for outcome, count in record.outcomes.items() if outcome.startswith("failed"))
    if failed > len(record.failed) > 0:
        typer.echo(f"and {failed - len(record.failed)} more: the rows whose status is 'failed'")
    if record.retries:
        often = ", ".join(f"{count} after {cause}" for cause, count in sorted(record.retries.items()))
        typer.echo(f"tried again: {often}")
    if record.skipped_files:
        some = [repr(name)[1:-1] for name in record.skipped_names]
        if record.skipped_files > len(some):
            some.append("...")
        typer.echo(
            f"{record.skipped_files} left out, being no photos or not readable folders: {', '.join(some)}"
        )


def _print_record(labels: str, record: RunRecord) -> None:
    _print_outcomes(record)
    if record.settings.trained_steps == 0:
        typer.echo("untrained weights: every hand is the mean hand, with one uncertainty for all")
    typer.echo(f"{record.photos} photos labelled in {labels}")


def _exit_if_failed(record: RunRecord) -> None:
    """Exit code 3 where some photos failed, which may end otherwise when tried again."""
    failed = sum(count for outcome, count in record.outcomes.items() if outcome.startswith("failed"))
    if failed:
        typer.echo(
            f'{failed} failed; to try them again: the same command with --relabel "status == failed"',
            err=True,
        )
        raise typer.Exit(3)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2.

    Where the reader of its output ends first, as `head` does, it ends without a word and with exit code 141.
    """
    from annotator.runtime.closed_pipe import CLOSED_PIPE_CODE, drop_closed_outputs

    try:
        _main()
    except BrokenPipeError as error:
        if drop_closed_outputs():
            sys.exit(CLOSED_PIPE_CODE)
        _fail(f"the system: {error.strerror or error}")
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # of Rich, which prints the pages of --help
            drop_closed_outputs()
            sys.exit(CLOSED_PIPE_CODE)
        raise


def _main() -> None:
    # Typer raises Click's exceptions, from a Click of its own in recent versions; this names them in all.
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="amvur", standalone_mode=False))
    except BrokenPipeError:
        raise
    except UserError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message().replace("Value error, ", ""))  # Pydantic's words, for no reader's use
    except OSError as error:  # a place that can't be read or written, met half-way
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("amvur: stopped; the same command goes on where it was", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    typer.echo(f"amvur: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
