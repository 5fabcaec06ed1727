"""From an archive to its submission: `python tools/submit_benchmark.py freihand:FOLDER OUT --hand mano:MANO_RIGHT.pkl`.

Converts both splits, trains, and predicts the evaluation split: OUT/results has `pred.zip` for the benchmark's server,
and figures where its truth is in the folder. The same command after a stop resumes. FOLDER is the archive as unpacked:

    freihand:FreiHAND_pub_v2    evaluation photos in it, or in FreiHAND_pub_v2_eval beside it (--evaluation)
    ho3d_v2:HO3D_v2, ho3d_v3:HO3D_v3
"""

from __future__ import annotations

import argparse
from pathlib import Path

from annotator.errors import UserError
from trainer.config import read_train_config
from trainer.convert.convert import convert
from trainer.data.examples import is_converted
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.submit import BENCHMARKS
from trainer.launch import run_training
from trainer.progress import TrainingProgress
from trainer.state import MODEL_FILE


def run(arguments: list[str] | None = None) -> None:
    """Convert, train and evaluate: the steps that are not finished.

    Raises:
        UserError: as any of the three; or the benchmark's name is unknown.
    """
    options = _parser().parse_args(arguments)
    benchmark, _, folder = options.source.partition(":")
    if benchmark not in BENCHMARKS or not folder:
        raise UserError(
            f"'{options.source}': give one of {', '.join(f'{name}:FOLDER' for name in BENCHMARKS)}"
        )
    kind = benchmark.partition("_")[0]
    evaluation = options.evaluation or _evaluation_of(kind, folder)
    for split, place in (("train", folder), ("evaluation", evaluation)):
        examples = options.out / split
        if not is_converted(str(examples)):
            print(f"convert: {split}", flush=True)
            convert(f"{kind}:{place}", str(examples), options.hand, split)
    config = read_train_config(options.config, [str(options.out / "train")], options.hand, options.set)
    run_training(
        config,
        str(options.out / "run"),
        options.workers,
        local=options.device is not None,
        device=options.device,
        on_progress=_report,
    )
    evaluate(
        str(options.out / "run" / MODEL_FILE),
        str(options.out / "evaluation"),
        str(options.out / "results"),
        options.hand,
        device=options.device,
        submission=benchmark,
    )
    print(f"submit {options.out / 'results' / 'pred.zip'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="BENCHMARK:FOLDER")
    parser.add_argument("out", type=Path)
    parser.add_argument("--hand", required=True, help="mano:PATH, whose vertices the benchmarks compare")
    parser.add_argument("--evaluation", help="folder of FreiHAND's evaluation split, if elsewhere")
    parser.add_argument(
        "--config", default="paper/supervised", help="as for `amvur train`; default: paper/supervised"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of it")
    parser.add_argument("--workers", type=int, help="default: one per GPU, else one")
    parser.add_argument("--device", help="cpu or cuda; runs in this process")
    return parser


def _evaluation_of(kind: str, folder: str) -> str:
    """Return FreiHAND's second archive if its first lacks the evaluation split."""
    beside = f"{folder.rstrip('/')}_eval"
    is_apart = kind == "freihand" and not (Path(folder) / "evaluation").is_dir() and Path(beside).is_dir()
    return beside if is_apart else folder


def _report(progress: TrainingProgress) -> None:
    print(f"step {progress.step} of {progress.steps}, {progress.photos_per_s:.0f} photos/s", flush=True)


if __name__ == "__main__":
    try:
        run()
    except UserError as error:
        raise SystemExit(f"benchmark: {error}") from None
