"""Run a training in this process, on Ray Train's workers, or as a submission to a cluster."""

from __future__ import annotations

from collections.abc import Callable

import torch
import yaml

from annotator.config import to_dict
from annotator.errors import UserError
from annotator.runtime.submission import is_dashboard_address, submit
from annotator.storage.files import is_local, local_path
from trainer.config import SYNTHETIC, TrainConfig
from trainer.progress import TrainingProgress
from trainer.train import train

#: Name of the configuration file that a submission reads.
SUBMITTED = "submitted"


def run_training(
    config: TrainConfig,
    out: str,
    workers: int | None = None,
    address: str | None = None,
    local: bool = False,
    device: str | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
    follow: Callable[[str], None] = print,
) -> int | None:
    """Train with the given number of workers; default: one per GPU, otherwise one.

    Returns:
        the submission's exit code, if `address` is a dashboard; `follow` receives the lines of its log.

    Raises:
        UserError: settings contradict each other, or `train` or `submit` raises one.
    """
    if local and (address or (workers or 1) > 1):
        raise UserError("--local runs one process: remove --local, or --workers and --address")
    if device and not local:
        raise UserError("--device needs --local: with Ray each worker gets its own device")
    if address and is_dashboard_address(address):
        return _submit_training(config, out, workers, address, follow)
    if local or (not address and (workers or torch.cuda.device_count()) <= 1):
        train(config, out, device, on_progress)
        return None
    from trainer.ray_train import train_on_ray

    train_on_ray(config, out, workers, address, on_progress)
    return None


def _submit_training(
    config: TrainConfig, out: str, workers: int | None, address: str, follow: Callable[[str], None]
) -> int:
    places = [out, config.start_from, config.backbone_from, config.hand.removeprefix("mano:")]
    places.append(config.validation.source)
    places += [source.source for source in config.data if source.source != SYNTHETIC]
    here = [place for place in places if place and (place == out or local_path(place).exists())]
    if is_local(out):
        out = str(local_path(out).absolute())
    arguments = ["train", SUBMITTED, out, "--address", "auto"]
    if workers:
        arguments += ["--workers", str(workers)]
    files = {f"annotator/configs/train/{SUBMITTED}.yaml": yaml.safe_dump(to_dict(config))}
    return submit(address, arguments, follow, files, here)
