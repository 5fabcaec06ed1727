"""The `amvur` command: parses, calls one function per command, prints. Heavy imports happen inside commands."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from annotator.errors import UserError

if TYPE_CHECKING:
    from annotator.run_record import RunRecord

app = typer.Typer(
    name="amvur",
    help="Label hand photos with 3D joints, meshes, calibrated uncertainty and texture.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Side(str, Enum):
    """Which hands the photos show."""

    auto = "auto"
    left = "left"
    right = "right"


Checkpoint = Annotated[
    str,
    typer.Option(
        help="A .safetensors checkpoint (path or URL), 'default', or 'untrained:NAME' of a network configuration."
    ),
]
Hand = Annotated[str | None, typer.Option(help="Hand model: 'open', or 'mano:PATH' of your MANO_RIGHT.pkl.")]
Sides = Annotated[Side, typer.Option(help="Which hands the photos show; 'auto' asks the network.")]


@app.command(epilog="Example: amvur annotate photos/ labels/")
def annotate(
    photos: Annotated[str, typer.Argument(help="A folder of photos, one hand each.")],
    labels: Annotated[str, typer.Argument(help="The label folder; an unfinished one is gone on with.")],
    checkpoint: Checkpoint = "default",
    hand: Hand = None,
    side: Sides = Side.auto,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Models at work; default one a GPU, else one.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads a model; default all cores, shared out.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Photos a forward pass.")] = 32,
    shard_size: Annotated[int, typer.Option(min=1, help="Photos a label file.")] = 256,
) -> None:
    """Label every photo of a folder. Run it again to go on where it stopped."""
    record = _annotate(photos, labels, checkpoint, hand, side, workers, threads, batch_size, shard_size)
    _print_record(labels, record)
    if any(outcome.startswith("failed") for outcome in record.outcomes):
        raise typer.Exit(3)


@app.command(epilog="Example: amvur synth hands/ --count 36")
def synth(
    out: Annotated[
        Path,
        typer.Argument(help="Folder for the photos (out/images) and their true labels (out/truth.parquet)."),
    ],
    count: Annotated[int, typer.Option(min=1, help="How many hands.")] = 36,
    seed: Annotated[int, typer.Option(help="The same seed draws the same photos.")] = 0,
    size_px: Annotated[int, typer.Option(min=32, max=1024, help="Side of a photo.")] = 256,
) -> None:
    """Draw photos of synthetic hands."""
    from trainer.synth import write_photos

    write_photos(out, count, seed, size_px)
    typer.echo(f"{count} photos in {out / 'images'}, their true labels in {out / 'truth.parquet'}")


@app.command(epilog="Example: amvur report labels/")
def report(
    labels: Annotated[str, typer.Argument(help="A label folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the report; default LABELS/report.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many hands to show.")] = 24,
) -> None:
    """Pictures of a sample of labels: photo, mesh over it, uncertainty, texture."""
    from annotator.report import write_report

    typer.echo(f"look at {write_report(labels, out, count)}")


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
    record = _annotate(
        str(out / "images"), str(out / "predicted"), "default", None, Side.auto, None, None, 32, 256
    )
    _print_record(str(out / "predicted"), record)
    page = write_report(str(out / "predicted"), out / "report", 24).resolve()
    typer.echo(f"look at {page}")
    if show:
        typer.launch(page.as_uri())


def _annotate(
    photos: str,
    labels: str,
    checkpoint: str,
    hand: str | None,
    side: Side,
    workers: int | None,
    threads: int | None,
    batch_size: int,
    shard_size: int,
) -> RunRecord:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[red]{task.fields[errors]}"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task("labelling", total=None, rate="starting", errors="")

    def on_progress(progress: Any) -> None:
        bar.start()  # not before there is work: a mistake shall be one line alone
        wrong = progress.photos - progress.outcomes.get("ok", 0)
        bar.update(
            task,
            completed=progress.photos,
            total=progress.total,
            rate=f"{progress.rate:.0f} photos/s" if progress.rate else "starting",
            errors=f"{wrong} without a label" if wrong else "",
        )

    from annotator.pipeline import ComputeOptions
    from annotator.pipeline import annotate as label

    try:
        return label(
            photos,
            labels,
            checkpoint=checkpoint,
            hand=hand,
            side=side.value,
            compute=ComputeOptions(workers, threads, batch_size, shard_size),
            on_progress=on_progress,
        )
    finally:
        if bar.live.is_started:
            bar.stop()


def _print_record(labels: str, record: RunRecord) -> None:
    width = max(map(len, record.outcomes), default=0)
    for outcome, count in sorted(record.outcomes.items(), key=lambda item: -item[1]):
        typer.echo(f"{outcome:<{width}}  {count}")
    if record.skipped_files:
        some = ", ".join(repr(name)[1:-1] for name in record.skipped_names)
        typer.echo(f"{record.skipped_files} left out, being no photos or not readable folders: {some}, ...")
    if record.settings.trained_steps == 0:
        typer.echo("untrained weights: every hand is the mean hand, with one uncertainty for all")
    typer.echo(f"{record.photos} photos labelled in {labels}")


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    # Typer raises Click's exceptions, from a Click of its own in recent versions; this names them in all.
    usage_error: Any = typer.BadParameter.__bases__[0]
    try:
        sys.exit(app(args=sys.argv[1:] or ["--help"], prog_name="amvur", standalone_mode=False))
    except UserError as error:
        _fail(str(error))
    except usage_error as error:
        _fail(error.format_message())
    except OSError as error:  # a place that can't be read or written, met half-way
        _fail(f"{error.filename or 'the system'}: {error.strerror or error}")
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("amvur: stopped; `annotate` goes on where it was when started again", err=True)
        sys.exit(130)


def _fail(message: str) -> None:
    typer.echo(f"amvur: {' '.join(message.split())}", err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
