"""Train and evaluate the rows: heads on cached features, or all of the network on the same cached crops."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from annotator.config import from_dict, to_dict
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.runtime.process_pool import process_pool
from paper_tables.rows import Row
from trainer.config import AugmentConfig, TrainConfig, read_train_config
from trainer.data.cache import is_cache, read_cache_info
from trainer.data.features import samples_maps
from trainer.data.fill_cache import fill_cache
from trainer.evaluation.evaluate import evaluate
from trainer.evaluation.predictions import HELD_OUT_SEED
from trainer.progress import TrainingProgress
from trainer.start import start_network
from trainer.train import train
from trainer.validation import BEST_FILE, LOG_FILE, stopped_improving

#: As in configs/shipped/4-upright.yaml: crops as a second look gets them, off by the first look's errors.
UPRIGHT = AugmentConfig(upright=True, rotation_deg=20, zoom=1.15, shift=0.08)

#: Seed of the synthetic hands to train on; validation and report have seeds of their own, so no hand is in two.
DRAWN_SEED = 77


def caches(options: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of the hands to train on, to stop by, and to report."""
    return {
        name: options.out / f"{name}-{count}-{options.crop_px}px"
        for name, count in (
            ("hands", options.hands),
            ("validation", options.validation),
            ("photos", options.photos),
        )
    }


def draw(rows: list[Row], options: argparse.Namespace) -> int:
    """Draw all hands, run the backbone over them if it stays as it is, and return the number drawn now."""
    hand = load_hand("open")
    configs = [] if options.full_size else [configuration(row, options, 0) for row in rows]
    backbone = start_network(configs[0], hand).backbone if configs else None
    maps = any(samples_maps(config.network) for config in configs)
    places, drawn = caches(options), 0
    for name, count, seed in (
        ("hands", options.hands, DRAWN_SEED),
        ("validation", options.validation, HELD_OUT_SEED + 1),
        ("photos", options.photos, HELD_OUT_SEED),
    ):
        began = time.monotonic()
        drawn += count - (read_cache_info(str(places[name])).done if is_cache(str(places[name])) else 0)

        def report(done: int, total: int, name: str = name, began: float = began) -> None:
            if done % 1000 == 0 or done == total:
                print(f"{name}: {done} of {total} drawn, {time.monotonic() - began:.0f} s", flush=True)

        fill_cache(
            str(places[name]),
            count,
            options.crop_px,
            seed,
            hand,
            UPRIGHT,
            backbone,
            maps,
            on_progress=report,
            # A GPU trains one row at a time, but does not draw.
            processes=os.cpu_count() or 1 if options.full_size else options.jobs,
        )
    return drawn


def configuration(row: Row, options: argparse.Namespace, seed: int) -> TrainConfig:
    """Return the row's configuration, smaller unless `--full-size`; only its own switches differ between rows."""
    places = caches(options)
    steps = steps_of(row, options)
    return read_train_config(
        f"paper/{row.config}",
        [str(places["hands"])],
        settings=[
            *([] if options.full_size else _reduced(row, options)),
            f"network.crop_px={options.crop_px}",
            f"network.seed={seed}",
            f"seed={seed}",
            f"steps={steps}",
            f"batch_size={options.batch_size}",
            f"optimizer.learning_rate={options.learning_rate}",
            "optimizer.schedule=constant",  # until the error stands still; then the rate falls
            f"optimizer.warmup_steps={min(steps // 10 + 1, 100)}",
            "optimizer.ema=0.99",
            "loss.side=0",  # no table has it, and it needs mirror images
            "augment.colour=0",  # cached crops are coloured already
            f"validation.source={places['validation']}",
            f"validation.every={measured_every(row, options)}",
            f"validation.patience={options.patience}",
            f"validation.cool_down={cool_down_steps(steps)}",
            "loaders=0",
            f"checkpoint_every={measured_every(row, options)}",
            "keep=1",
            f"pictures_every={steps}",
            *row.settings,
            *options.set,
        ],
    )


def _reduced(row: Row, options: argparse.Namespace) -> list[str]:
    """Return the settings that make a row small: a backbone that has seen hands, few tokens, heads alone."""
    return [
        "network.backbone=hand_landmark",
        "network.imagenet=false",
        f"backbone_from={options.backbone_from}",
        f"network.read_outs={str(options.read_outs).lower()}",
        f"network.amvur.tokens={options.tokens}",
        f"network.amvur.width={options.width}",
        "network.amvur.stages=1",
        f"network.amvur.blocks={options.blocks}",
        # As in the shipped network.
        "network.texture.tokens=48",
        "network.texture.width=32",
        "network.texture.raster_px=48",
        # A trained backbone moves less than new heads.
        *(
            ["optimizer.backbone_share=0.025", "freeze_normalisation=true"]
            if row.end_to_end
            else ["freeze_backbone=true"]
        ),
    ]


def is_check(row: Row, options: argparse.Namespace) -> bool:
    """Return whether a row trains end to end at the reduced size, where it takes fewer steps and seeds than others."""
    return row.end_to_end and not options.full_size


def steps_of(row: Row, options: argparse.Namespace) -> int:
    """Return the maximum of steps of a row."""
    return int(options.end_to_end_steps if is_check(row, options) else options.steps)


def measured_every(row: Row, options: argparse.Namespace) -> int:
    """Return the steps between measurements of a row: `options.every`, or a twelfth of a check's steps."""
    steps = steps_of(row, options)
    return max(steps // 12, 1) if is_check(row, options) else min(options.every, steps)


def cool_down_steps(steps: int) -> int:
    """Return the steps of a row's cool-down, for its maximum of steps."""
    return steps // 6


def folder_of(row: Row, options: argparse.Namespace, seed: int) -> Path:
    """Return the folder of one seed of a row; at full size all rows are end to end, so some share a run."""
    run = replace(row, end_to_end=False).run if options.full_size else row.run
    return Path(options.out) / "runs" / run / f"seed-{seed}"


def seeds_of(row: Row, options: argparse.Namespace) -> range:
    """Return the seeds of a row."""
    return range(options.end_to_end_seeds if is_check(row, options) else options.seeds)


def is_finished(row: Row, options: argparse.Namespace, seed: int) -> bool:
    """Return whether a row's results exist, for these settings."""
    folder = folder_of(row, options, seed)
    with suppress(OSError, ValueError, UserError):
        stored = json.loads((folder / "run/config.json").read_text())
        config = json.loads(json.dumps(to_dict(from_dict(TrainConfig, stored, str(folder)))))
        found = json.loads((folder / "results/metrics.json").read_text())
        wanted = json.loads(json.dumps(to_dict(configuration(row, options, seed))))
        return bool(config == wanted and found["photos"] == options.photos)
    return False


def train_and_evaluate(row: Row, options: argparse.Namespace, seed: int) -> float:
    """Train or resume one seed of a row, evaluate its best network, and return the seconds taken."""
    torch.set_num_threads(options.threads)
    folder, began = folder_of(row, options, seed), time.monotonic()

    def report(progress: TrainingProgress) -> None:
        if progress.step % measured_every(row, options) == 0:
            print(
                f"{row.run} seed {seed}: step {progress.step}, {progress.photos_per_s:.0f} photos/s, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )

    train(configuration(row, options, seed), str(folder / "run"), options.device, report)
    # Only now: a run of other settings is refused, and keeps its results.
    shutil.rmtree(folder / "results", ignore_errors=True)
    evaluate(
        str(folder / "run" / BEST_FILE),
        str(caches(options)["photos"]),
        str(folder / "results"),
        device=options.device,
    )
    return time.monotonic() - began


def run_all(rows: list[Row], options: argparse.Namespace) -> None:
    """Train and evaluate all rows that are not finished, `options.jobs` at a time."""
    by_run = {folder_of(row, options, 0): row for row in rows}
    waiting = [
        (row, seed)
        for row in by_run.values()
        for seed in seeds_of(row, options)
        if not is_finished(row, options, seed)
    ]
    # The first seed of every row comes first, so that an early stop leaves whole tables.
    waiting.sort(key=lambda one: (one[1], one[0].end_to_end))
    if options.jobs == 1:
        for row, seed in waiting:
            train_and_evaluate(row, options, seed)
        return
    with process_pool(options.jobs) as pool:
        running = {
            pool.submit(train_and_evaluate, row, options, seed): f"{row.run} seed {seed}"
            for row, seed in waiting
        }
        for number, done in enumerate(as_completed(running), 1):
            if error := done.exception():
                print(f"{running[done]}: failed; rows in training end, no further one starts", flush=True)
                pool.shutdown(cancel_futures=True)
                raise error
            print(
                f"{running[done]}: finished in {done.result():.0f} s, {number} of {len(running)}", flush=True
            )


def ending(row: Row, options: argparse.Namespace, seed: int) -> tuple[int, bool]:
    """Return the steps a run took, and whether its validation error stopped improving before its last cool-down."""
    config = configuration(row, options, seed)
    log = (folder_of(row, options, seed) / "run" / LOG_FILE).read_text().splitlines()
    measured = [json.loads(line) for line in log]
    stopped = stopped_improving(measured, config.validation)
    stood_still = stopped is not None and stopped <= config.steps - config.validation.cool_down
    return int(measured[-1]["step"]), stood_still


def mean_hand(options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of an untrained network, which predicts the mean hand, upright."""
    photos = caches(options)["photos"]
    folder = Path(options.out) / f"mean-hand-{photos.name}"
    file = folder / "metrics.json"
    if not file.exists():
        evaluate("untrained:default", str(photos), str(folder), device=options.device)
    found: dict[str, Any] = json.loads(file.read_text())
    return found
