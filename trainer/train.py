"""The training loop, in plain torch.

The same loop runs alone or in each worker of an existing process group (`ray_train.py`). All randomness follows from
the seed and the step number, so a stopped run resumes with the same steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.model import HandModel
from annotator.model.network import Network, Prediction
from annotator.runtime.device import device_of
from annotator.runtime.malloc import keep_freed_memory
from annotator.storage.files import check_writable
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.data.features import unpacked
from trainer.data.loaders import read_steps
from trainer.data.steps import Steps
from trainer.inputs import backdrops_of, network_inputs
from trainer.objective import Objective
from trainer.optimizer import clip_gradients, learning_rate, new_optimizer, set_learning_rate
from trainer.progress import Clock, TrainingProgress
from trainer.run_log import RunLog
from trainer.start import kept_first_look, start_network
from trainer.state import TrainingState, claim_folder, new_state, newest_state, save_state
from trainer.validation import Validation

#: Maximum consecutive steps with gradients that are not finite, before the run stops.
MAX_BAD_STEPS = 20

#: Photos per mirror image, which trains the side head.
PHOTOS_PER_MIRRORED = 4


def train(
    config: TrainConfig,
    out: str,
    device: str | None = None,
    on_progress: Callable[[TrainingProgress], None] = lambda _: None,
) -> None:
    """Train until `config.steps`; a run in the folder OUT (a path or an fsspec URL) resumes.

    Raises:
        UserError: invalid settings, missing data, a folder of another run, or gradients that are not finite for
            several steps.
    """
    keep_freed_memory()
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch_device = device_of(device)
    if workers > 1 and config.share_normalisation and torch_device.type == "cpu":
        raise UserError(
            "share_normalisation needs GPUs: set it to false, with freeze_normalisation=true or one worker"
        )
    hand = load_hand(config.hand)
    # A GPU draws hands itself: loaders on the CPU would not keep up.
    data = Steps(config, hand, rank, workers, draw_later=torch_device.type == "cuda")
    data.check()
    if rank == 0:
        check_writable(out)
        claim_folder(out, config)
    state, resumes = _start_or_resume(config, hand, out, torch_device)
    network = state.network
    if state.step >= config.steps:
        return
    data.check_features(network)
    validation = Validation(config, hand, out, state.step) if config.validation.source else None
    if validation is not None and validation.is_over(state.step):
        return
    first_look = kept_first_look(config, out, resumes)
    objective = Objective(config.loss, network, hand).to(torch_device)
    model = _wrapped(network, config, workers)
    run_log = RunLog(out, config, state.step) if rank == 0 else None
    backdrops = backdrops_of(config, torch_device)
    clock = Clock()
    bad = 0
    _set_mode(network, config)
    for parts in clock.waited(read_steps(data, state.step)):
        images, batch = network_inputs(parts, data, config, torch_device, backdrops)
        if not network.training:  # after validation, or where a saved checkpoint shares the network
            _set_mode(network, config)
        cools_from = None if validation is None else validation.cools_from
        rate = learning_rate(config, state.step, cools_from)
        set_learning_rate(state.optimizer, rate)
        with torch.autocast(torch_device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prediction = predict_batch(model, network, images, batch)
        loss, means = objective.total(objective.terms(prediction, batch, images))
        norm = _set_gradients(state, config, loss, means)
        # Workers agree, because gradients are shared: one bad photo costs a step, not the run.
        bad = 0 if torch.isfinite(norm) else bad + 1
        if bad > MAX_BAD_STEPS:
            raise UserError(
                f"no finite gradient for {MAX_BAD_STEPS} steps before step {state.step}: lower the learning rate"
            )
        if not bad:
            state.optimizer.step()
            state.update_mean(config.optimizer.ema)
        state.step += 1
        clock.photos += config.batch_size
        last = state.step == config.steps
        if validation is not None and validation.is_due(state.step, last):
            last = validation.measure(state) or last
        if run_log and (state.step % config.log_every == 0 or last):
            progress = clock.progress(state.step, config, means, rate)
            run_log.write(progress, float(norm))
            on_progress(progress)
        if run_log and (state.step % config.pictures_every == 0 or last):
            run_log.draw(state.step, images, batch, prediction, network.faces)
        if state.step % config.checkpoint_every == 0 or last:
            if run_log:
                # Before the state: a restart drops log entries of later steps, but can't recover lost ones.
                run_log.upload()
                save_state(state, out, config, hand, first_look)
            if workers > 1:
                dist.barrier()  # no worker runs ahead of the state that a restart resumes from
        if last:
            break
    if run_log:
        run_log.close()


def _start_or_resume(
    config: TrainConfig, hand: HandModel, out: str, device: torch.device
) -> tuple[TrainingState, bool]:
    """Return the newest state of a run, or that before the first step; and whether the run resumes."""
    saved = newest_state(out, hand)
    network = start_network(config, hand, resumes=saved is not None).to(device)
    for module in _frozen(network, config):
        module.requires_grad_(False)
    state = new_state(network, new_optimizer(network, config), config)
    if saved is not None:
        state.restore(*saved)
    return state, saved is not None


def _wrapped(network: Network, config: TrainConfig, workers: int) -> Any:
    """Return the network, compiled and with gradients shared between workers as the settings need."""
    if workers > 1 and config.share_normalisation:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # in place, with the same parameters
    model: Any = torch.compile(network) if config.compile else network
    if workers > 1:
        # Gradients of depthwise filters may have either of two equivalent memory layouts.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        model = nn.parallel.DistributedDataParallel(model)
    return model


def _set_gradients(
    state: TrainingState, config: TrainConfig, loss: Tensor, means: dict[str, Tensor]
) -> Tensor:
    """Set and clip the gradients of a loss; return their norm, NaN without a backward pass if a mean is not finite."""
    state.optimizer.zero_grad(set_to_none=True)
    # Means are over all workers, so all decide alike. On NaN torch's backward of grid_sample may crash the process.
    if not all(math.isfinite(mean) for mean in torch.stack([*means.values()]).tolist()):
        return torch.tensor(math.nan)
    loss.backward()
    return clip_gradients(state.network, config.optimizer.clip_norm)


def predict_batch(model: Any, network: Network, images: Tensor, batch: Batch) -> Prediction:
    """Return the prediction for a batch, from its cached features where it has them.

    `model` is the network, or a wrapper of it. Cached features are those of images that are not mirrored.
    """
    if batch.features.shape[1]:
        with torch.no_grad():
            features = unpacked(batch.features, images, network.backbone)
        return model(images, None, features)
    return model(images, mirrored_rows(batch))


def mirrored_rows(batch: Batch) -> Tensor:
    """Return rows that are also shown as mirror images; keys choose them, so the number of workers has no effect."""
    return ((batch.key % PHOTOS_PER_MIRRORED == 0) & batch.has_hand).nonzero().squeeze(1)


def _set_mode(network: Network, config: TrainConfig) -> None:
    network.train()
    for module in _frozen(network, config):
        module.eval()
    if config.freeze_normalisation:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


def _frozen(network: Network, config: TrainConfig) -> list[nn.Module]:
    """Return the parts that keep the weights and statistics they start from."""
    if config.freeze_backbone:
        return [network.backbone] if network.heads is None else [network.backbone, network.heads]
    return network.backbone.early() if config.freeze_early else []
