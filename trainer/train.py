"""The training loop, in plain torch.

The same loop runs alone or in each worker of an existing process group (`ray_train.py`). All randomness follows from
the seed and the step number, so a stopped run resumes with the same steps.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader

from annotator.config import NetworkConfig
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.hand.model import HandModel
from annotator.model.checkpoint import Checkpoint, load_checkpoint
from annotator.model.landmarker import Landmarker
from annotator.model.landmarker_file import INPUT_PX, read_landmarker
from annotator.model.landmarker_weights import is_landmarker_file, load_landmarker
from annotator.model.network import Network, Prediction
from annotator.model.pretrained import PretrainedUnreachableError, load_pretrained
from annotator.runtime.device import device_of
from annotator.runtime.malloc import keep_freed_memory
from annotator.storage.files import check_writable, join
from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.data.features import unpacked
from trainer.data.stream import Order, Steps
from trainer.inverse_kinematics import train_inverse_kinematics
from trainer.objective import Objective
from trainer.run_log import RunLog
from trainer.state import MODEL_FILE, claim_folder, first_look_of, new_state, newest_state, save_state
from trainer.validation import Validation

if TYPE_CHECKING:
    from trainer.synth.backdrops import Backdrops

#: Maximum consecutive steps with gradients that are not finite, before the run stops.
PATIENCE = 20

#: Crops of the first steps for the statistics of batch norms, for files without any.
MEASURED_CROPS = 64

#: Photos per mirror image, which trains the side head.
PHOTOS_PER_MIRRORED = 4


@dataclass(frozen=True)
class Progress:
    """Progress of a run, reported every `log_every` steps."""

    step: int
    steps: int
    losses: dict[str, float]  # means over all workers
    photos_per_s: float
    waiting: float  # share of time spent waiting for data
    learning_rate: float


def train(
    config: TrainConfig,
    out: str,
    device: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train until `config.steps`; a run in the folder OUT (a path or an fsspec URL) resumes.

    Raises:
        UserError: invalid settings, missing data, a folder of another run, or gradients that are not finite for
            several steps.
    """
    keep_freed_memory()
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    place = device_of(device)
    hand = load_hand(config.hand)
    # A GPU draws hands itself: loaders on the CPU would not keep up.
    data = Steps(config, hand, rank, workers, draw_later=place.type == "cuda")
    data.check()
    if rank == 0:
        check_writable(out)
        claim_folder(out, config)
    saved = newest_state(out, hand)
    network = start_network(config, hand, resumes=saved is not None).to(place)
    for module in _frozen(network, config):
        module.requires_grad_(False)
    state = new_state(network, _optimizer(network, config), config)
    resumes = saved is not None
    if saved is not None:
        state.take(*saved)
        del saved
    if state.step >= config.steps:
        return
    data.check_features(network)
    validation = Validation(config, hand, out, state.step) if config.validation.source else None
    if validation is not None and validation.stands_still:
        return
    first_look = _first_look(config, out, resumes)
    objective = Objective(config.loss, network, hand).to(place)
    model: Any = torch.compile(network) if config.compile else network
    if workers > 1:
        # Gradients of depthwise filters may have either of two equivalent memory layouts.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        model = nn.parallel.DistributedDataParallel(model)
    run_log = RunLog(out, config, state.step) if rank == 0 else None
    backdrops = _backdrops(config, place)
    clock = _Clock()
    bad = 0
    for parts in clock.waited(_loader(data, state.step)):
        images, batch = _prepared(parts, data, config, place, backdrops)
        _set_mode(network, config)
        _set_rate(state.optimizer, config, state.step)
        with torch.autocast(place.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prediction = predicted(model, network, images, batch)
        terms = objective.terms(prediction, batch, images)
        loss, means = objective.total(terms)
        state.optimizer.zero_grad(set_to_none=True)
        norm = torch.tensor(math.nan)
        # Means are over all workers, so all decide alike. On NaN torch's backward of grid_sample may crash the process.
        if all(math.isfinite(mean) for mean in torch.stack([*means.values()]).tolist()):
            loss.backward()
            norm = _clip(network, config.optimizer.clip_norm)
        # Workers agree, because gradients are shared: one bad photo costs a step, not the run.
        bad = 0 if torch.isfinite(norm) else bad + 1
        if bad > PATIENCE:
            raise UserError(
                f"no finite gradient for {PATIENCE} steps before step {state.step}: lower the learning rate"
            )
        if not bad:
            state.optimizer.step()
            state.follow(config.optimizer.ema)
        state.step += 1
        clock.photos += config.batch_size
        last = state.step == config.steps
        if validation is not None and validation.is_due(state.step, last):
            last = validation.measure(state) or last
        if run_log and (state.step % config.log_every == 0 or last):
            progress = clock.progress(state.step, config, means, _rate(config, state.step))
            run_log.write(progress, float(norm))
            on_progress(progress)
        if run_log and (state.step % config.pictures_every == 0 or last):
            run_log.draw(state.step, images, batch, prediction, network.faces)
        if state.step % config.checkpoint_every == 0 or last:
            if run_log:
                # Before the state: a restart drops log entries of later steps, but can't recover lost ones.
                run_log.keep()
                save_state(state, out, config, hand, first_look)
            if workers > 1:
                dist.barrier()  # no worker runs ahead of the state that a restart resumes from
        if last:
            break
    if run_log:
        run_log.close()


def start_network(config: TrainConfig, hand: HandModel, resumes: bool = False) -> Network:
    """Return the network before its first step: from `start_from`, or from its seed and ImageNet weights.

    With `resumes`, weights will come from a checkpoint, so neither source need still exist.

    Raises:
        UserError: `start_from` can't be read or holds another network or another hand; requested ImageNet weights
            are unavailable, because a long training must not start from less than requested; or random layers
            would be frozen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.network.seed)
        network = Network(config.network, hand)
    if resumes:
        return network.train()
    if config.start_from.endswith(".task") or is_landmarker_file(config.start_from):
        _start_from_landmarker(network, config, hand)
        if config.inverse_kinematics:
            train_inverse_kinematics(network.prior_net, hand, config.inverse_kinematics, config.seed)
    elif config.start_from:
        checkpoint = load_checkpoint(config.start_from, config.hand)
        held = checkpoint.info.network
        adds_visibility = config.network.joint_visibility and not held.joint_visibility
        if adds_visibility:
            held = replace(held, joint_visibility=True)
        if _without_sizes(held) != _without_sizes(config.network):
            raise UserError(
                f"start_from '{config.start_from}' holds a different network: "
                "set `network` to the configuration it was trained with"
            )
        tensors = checkpoint.network.last_look.state_dict()
        if adds_visibility and network.visibility is not None:  # that head alone starts untrained
            tensors = {**tensors, **network.visibility.state_dict(prefix="visibility.")}
        network.load_state_dict(tensors)
    elif config.backbone_from:
        _take_backbone(network, config)
    elif config.network.imagenet:
        try:
            load_pretrained(network.backbone, config.network.backbone)
        except PretrainedUnreachableError as error:
            raise UserError(
                f"{error}; network.imagenet=false starts from random weights (and needs freeze_early=false)"
            ) from None
    elif config.freeze_early or config.freeze_backbone:
        frozen = "freeze_backbone" if config.freeze_backbone else "freeze_early"
        raise UserError(
            f"{frozen} would freeze random layers: set network.imagenet=true, start_from, or {frozen}=false"
        )
    return network.train()


def _take_backbone(network: Network, config: TrainConfig) -> None:
    """Give backbone and read-outs the weights of a checkpoint's last look.

    Raises:
        UserError: the checkpoint can't be read, or has another backbone.
    """
    held = load_checkpoint(config.backbone_from, config.hand)
    if held.info.network.backbone != config.network.backbone:
        raise UserError(
            f"backbone_from '{config.backbone_from}' holds the backbone {held.info.network.backbone}: set "
            f"network.backbone={held.info.network.backbone}, or backbone_from= and network.imagenet=true"
        )
    last = held.network.last_look
    network.backbone.load_state_dict(last.backbone.state_dict())
    if network.heads is not None and last.heads is not None:
        network.heads.load_state_dict(last.heads.state_dict())


def predicted(model: Any, network: Network, images: Tensor, batch: Batch) -> Prediction:
    """Return the prediction for a batch, from its cached features where it has them.

    `model` is the network, or a wrapper of it. Cached features are those of images that are not mirrored.
    """
    if batch.features.shape[1]:
        with torch.no_grad():
            seen = unpacked(batch.features, images, network.backbone)
        return model(images, None, seen)
    return model(images, mirrored_rows(batch))


def _first_look(config: TrainConfig, out: str, resumes: bool) -> Checkpoint | None:
    """Return the first look to keep: of `start_from`, or, if the run resumes, of the model in OUT."""
    if resumes:
        return first_look_of(join(out, MODEL_FILE), config.hand)
    is_checkpoint = config.start_from and not config.start_from.endswith(".task")
    if not is_checkpoint or is_landmarker_file(config.start_from):
        return None
    return first_look_of(config.start_from, config.hand)


def _start_from_landmarker(network: Network, config: TrainConfig, hand: HandModel) -> None:
    """Give backbone and read-outs the weights of MediaPipe's network or of one distilled from it.

    MediaPipe's file has no batch norms: they are measured on the first crops, of the file's own input size, with the
    same result on every worker. In training mode each batch then has the statistics that the layers expect, for any
    `crop_px`; at smaller sizes this moves outputs closer to MediaPipe's landmarks.
    """
    if config.network.backbone != "hand_landmark":
        raise UserError(
            f"start_from '{config.start_from}' holds the backbone hand_landmark, not {config.network.backbone}: "
            "set network.backbone=hand_landmark"
        )
    landmarker = (
        _measured_landmarker(config, hand)
        if config.start_from.endswith(".task")
        else load_landmarker(config.start_from)
    )
    network.backbone.load_state_dict(landmarker.backbone.state_dict())
    if network.heads is not None:
        network.heads.load_state_dict(landmarker.heads.state_dict())


def _measured_landmarker(config: TrainConfig, hand: HandModel) -> Landmarker:
    """Read MediaPipe's network and measure its batch norms on the training's first crops."""
    at_its_size = replace(config, network=replace(config.network, crop_px=INPUT_PX))
    data = Steps(at_its_size, hand)
    steps = range(math.ceil(MEASURED_CROPS / config.batch_size))
    crops = [_prepared(data[step], data, at_its_size, torch.device("cpu"))[0] for step in steps]
    return read_landmarker(config.start_from, torch.cat(crops))


def _without_sizes(config: NetworkConfig) -> NetworkConfig:
    """Return the configuration without fields that do not affect weights, such as the crop size."""
    plain = NetworkConfig()
    texture = replace(config.texture, raster_px=plain.texture.raster_px)
    return replace(config, crop_px=plain.crop_px, imagenet=plain.imagenet, seed=plain.seed, texture=texture)


def _loader(data: Steps, start: int) -> Iterator[list[Batch | Order]]:
    """Yield this worker's part of each step from `start` on; other processes read ahead."""
    loaders = data.config.loaders
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=range(start, data.config.steps),
            num_workers=loaders,
            prefetch_factor=4 if loaders else None,
            # A fork would copy locks held by threads of this process.
            multiprocessing_context="spawn" if loaders else None,
            worker_init_fn=_start_loader if loaders else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _start_loader(_: int) -> None:
    keep_freed_memory()


def mirrored_rows(batch: Batch) -> Tensor:
    """Return rows that are also shown as mirror images; keys choose them, so the number of workers has no effect."""
    return ((batch.key % PHOTOS_PER_MIRRORED == 0) & batch.has_hand).nonzero().squeeze(1)


def _backdrops(config: TrainConfig, device: torch.device) -> Backdrops | None:
    if not config.augment.backdrop:
        return None
    from trainer.synth.backdrops import Backdrops

    return Backdrops(config.seed, device)


def _prepared(
    parts: list[Batch | Order],
    data: Steps,
    config: TrainConfig,
    device: torch.device,
    backdrops: Backdrops | None = None,
) -> tuple[Tensor, Batch]:
    """Return the examples of all sources as augmented crops of one size."""
    crop_px = config.network.crop_px
    ready = []
    for part in data.filled(parts, device):
        margin = part.image.shape[-1] / crop_px
        ready.append(prepare(part, crop_px, margin, config.augment, backdrops))
    images = torch.cat([images for images, _ in ready]).contiguous(memory_format=torch.channels_last)
    # The original images differ in size between sources, and are not needed any more.
    return images, Batch.join([replace(batch, image=batch.image[..., :0, :0]) for _, batch in ready])


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


def _optimizer(network: Network, config: TrainConfig) -> torch.optim.Optimizer:
    settings = config.optimizer
    backbone = [p for p in network.backbone.parameters() if p.requires_grad]
    of_backbone = set(map(id, network.backbone.parameters()))
    rest = [p for p in network.parameters() if id(p) not in of_backbone and p.requires_grad]
    groups = [{"params": backbone, "share": settings.backbone_share}, {"params": rest, "share": 1.0}]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate)
    kind = torch.optim.Adam if settings.kind == "adam" else torch.optim.AdamW
    decay = settings.weight_decay if settings.kind == "adamw" else 0.0
    return kind(groups, lr=settings.learning_rate, weight_decay=decay)


def _rate(config: TrainConfig, step: int) -> float:
    """Return the learning rate: a linear warm-up, then half a cosine down to a hundredth."""
    settings = config.optimizer
    warm = min((step + 1) / max(settings.warmup_steps, 1), 1.0)
    if settings.schedule == "constant":
        return settings.learning_rate * warm
    done = max(step - settings.warmup_steps, 0) / max(config.steps - settings.warmup_steps, 1)
    return settings.learning_rate * warm * (0.505 + 0.495 * math.cos(math.pi * min(done, 1.0)))


def _set_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = _rate(config, step) * group["share"]


def _clip(network: Network, limit: float) -> Tensor:
    """Limit the norm of all gradients and return it; the head of visibility, apart from all else, has its own limit."""
    head = [] if network.visibility is None else list(network.visibility.parameters())
    of_head = set(map(id, head))
    rest = [parameter for parameter in network.parameters() if id(parameter) not in of_head]
    nn.utils.clip_grad_norm_(head, limit or math.inf)
    return nn.utils.clip_grad_norm_(rest, limit or math.inf)


class _Clock:
    """Measure the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.photos = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()
        self._first = True

    def waited(self, loader: Iterator[list[Batch | Order]]) -> Iterator[list[Batch | Order]]:
        """Yield the loader's items and count the time until each as waiting; the first counts as start-up."""
        while True:
            began = time.perf_counter()
            parts = next(loader, None)
            if parts is None:
                return
            if self._first:
                self._first, self._since = False, time.perf_counter()
            else:
                self._waited_s += time.perf_counter() - began
            yield parts

    def progress(self, step: int, config: TrainConfig, means: dict[str, Tensor], rate: float) -> Progress:
        """Return progress since the last call."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        progress = Progress(
            step=step,
            steps=config.steps,
            losses={name: float(value) for name, value in means.items()},
            photos_per_s=self.photos / seconds,
            waiting=self._waited_s / seconds,
            learning_rate=rate,
        )
        self.photos, self._waited_s, self._since = 0, 0.0, now
        return progress
