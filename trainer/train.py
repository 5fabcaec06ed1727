"""The training loop, in plain torch.

It runs by itself, or in each worker of a process group that someone else has set up (`distributed.py`: Ray
Train); it does not know which. Everything random follows from the seed and the step's number, so a run that was
stopped goes on as if it had not been.
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
from annotator.model.checkpoint import load_checkpoint
from annotator.model.landmarker_file import INPUT_PX, read_landmarker
from annotator.model.network import Network
from annotator.model.pretrained import PretrainedUnreachableError, load_pretrained
from annotator.runtime.device import device_of
from annotator.runtime.malloc import keep_freed_memory
from annotator.storage.files import check_writable
from trainer.augment import prepare
from trainer.batch import Batch
from trainer.config import TrainConfig
from trainer.data.stream import Order, Steps
from trainer.inverse_kinematics import train_inverse_kinematics
from trainer.objective import Objective
from trainer.run_log import Diary
from trainer.state import claim_folder, new_state, newest_state, save_state

if TYPE_CHECKING:
    from trainer.synth.backdrops import Backdrops

#: So many steps in a row may have gradients that are not finite before the run gives up.
PATIENCE = 20

#: Batch norms that a file came without are measured on so many crops of the first steps.
MEASURED_CROPS = 64

#: One mirror image for so many photos teaches the side head.
PHOTOS_PER_MIRRORED = 4


@dataclass(frozen=True)
class Progress:
    """What a run says of itself every `log_every` steps."""

    step: int
    steps: int
    losses: dict[str, float]  # means over all workers
    photos_per_s: float
    waiting: float  # share of the time in which the model waited for data
    learning_rate: float


def train(
    config: TrainConfig,
    out: str,
    device: str | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> None:
    """Train until `config.steps`, from where the folder OUT (a path or an fsspec URL) was left.

    Raises:
        UserError: settings that can't be, data that is not there, a folder of another run, or gradients that
            stopped being finite.
    """
    keep_freed_memory()
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    place = device_of(device)
    hand = load_hand(config.hand)
    # Where there is a GPU, hands are drawn there: loaders on the CPU would not keep up.
    data = Steps(config, hand, rank, workers, draw_later=place.type == "cuda")
    data.check()
    if rank == 0:
        check_writable(out)
        claim_folder(out, config)
    left = newest_state(out, hand)
    network = start_network(config, hand, resumes=left is not None).to(place)
    for module in _frozen(network, config):
        module.requires_grad_(False)
    state = new_state(network, _optimizer(network, config), config)
    if left is not None:
        state.take(*left)
        del left
    if state.step >= config.steps:
        return
    objective = Objective(config.loss, network, hand).to(place)
    model: Any = torch.compile(network) if config.compile else network
    if workers > 1:
        # Gradients of depthwise filters lie in memory in two ways that mean the same.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        model = nn.parallel.DistributedDataParallel(model)
    diary = Diary(out, config, state.step) if rank == 0 else None
    backdrops = _backdrops(config, place)
    clock = _Clock()
    bad = 0
    for parts in clock.waited(_loader(data, state.step)):
        images, batch = _prepared(parts, data, config, place, backdrops)
        _set_mode(network, config)
        _set_rate(state.optimizer, config, state.step)
        with torch.autocast(place.type, torch.bfloat16, enabled=config.precision == "bf16"):
            prediction = model(images, mirrored_rows(batch))
        terms = objective.terms(prediction, batch, images)
        loss, means = objective.total(terms)
        state.optimizer.zero_grad(set_to_none=True)
        norm = torch.tensor(math.nan)
        # Means are of all workers, so all decide alike. On NaN, torch's backward of grid_sample may crash the process.
        if all(math.isfinite(mean) for mean in torch.stack([*means.values()]).tolist()):
            loss.backward()
            norm = _clip(network, config.optimizer.clip_norm)
        # The same on every worker, for gradients are: one bad photo costs a step, not the run.
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
        if diary and (state.step % config.log_every == 0 or last):
            progress = clock.progress(state.step, config, means, _rate(config, state.step))
            diary.write(progress, float(norm))
            on_progress(progress)
        if diary and (state.step % config.pictures_every == 0 or last):
            diary.draw(state.step, images, batch, prediction, network.faces)
        if state.step % config.checkpoint_every == 0 or last:
            if diary:
                diary.keep()  # first: what is noted too early is forgotten on restart, what is lost stays lost
                save_state(state, out, config, hand)
            if workers > 1:
                dist.barrier()  # nobody runs ahead of what a restart would go on from
    if diary:
        diary.close()


def start_network(config: TrainConfig, hand: HandModel, resumes: bool = False) -> Network:
    """Return the network before its first step: from `start_from`, or from its seed and ImageNet weights.

    With `resumes` its weights will be a checkpoint's, and neither of the two need be there any more.

    Raises:
        UserError: `start_from` can't be read or holds another network or another hand; ImageNet weights are asked
            for and out of reach: days of training must not start from less than was asked for; or random layers
            would be frozen.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.network.seed)
        network = Network(config.network, hand)
    if resumes:
        return network.train()
    if config.start_from.endswith(".task"):
        _start_from_landmarker(network, config, hand)
        if config.inverse_kinematics:
            train_inverse_kinematics(network.prior_net, hand, config.inverse_kinematics, config.seed)
    elif config.start_from:
        checkpoint = load_checkpoint(config.start_from, config.hand)
        if _without_sizes(checkpoint.info.network) != _without_sizes(config.network):
            raise UserError(
                f"start_from '{config.start_from}' holds another network than this configuration's: "
                "set network as it was trained"
            )
        network.load_state_dict(checkpoint.network.last_look.state_dict())
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
            f"{frozen} would keep random layers as they are: set network.imagenet=true, start_from, "
            f"or {frozen}=false"
        )
    return network.train()


def _start_from_landmarker(network: Network, config: TrainConfig, hand: HandModel) -> None:
    """Give backbone and read-outs MediaPipe's weights, with batch norms measured on the first crops.

    Every worker measures the same. The crops have the size of the file's own input. In training mode each batch then
    has the statistics that its layers were made for, whatever `crop_px`; that brings MediaPipe's landmarks nearer at
    smaller sizes.
    """
    if config.network.backbone != "hand_landmark":
        raise UserError(
            f"start_from '{config.start_from}' holds the backbone hand_landmark, not {config.network.backbone}: "
            "set network.backbone=hand_landmark"
        )
    at_its_size = replace(config, network=replace(config.network, crop_px=INPUT_PX))
    data = Steps(at_its_size, hand)
    steps = range(math.ceil(MEASURED_CROPS / config.batch_size))
    crops = [_prepared(data[step], data, at_its_size, torch.device("cpu"))[0] for step in steps]
    landmarker = read_landmarker(config.start_from, torch.cat(crops))
    network.backbone.load_state_dict(landmarker.backbone.state_dict())
    if network.heads is not None:
        network.heads.load_state_dict(landmarker.heads.state_dict())


def _without_sizes(config: NetworkConfig) -> NetworkConfig:
    """The configuration without what its weights do not depend on, such as the size of photos."""
    plain = NetworkConfig()
    texture = replace(config.texture, raster_px=plain.texture.raster_px)
    return replace(config, crop_px=plain.crop_px, imagenet=plain.imagenet, seed=plain.seed, texture=texture)


def _loader(data: Steps, start: int) -> Iterator[list[Batch | Order]]:
    """This worker's part of each step from `start` on, read ahead by other processes."""
    loaders = data.config.loaders
    return iter(
        DataLoader(
            data,
            batch_size=None,
            sampler=range(start, data.config.steps),
            num_workers=loaders,
            prefetch_factor=4 if loaders else None,
            # A fork would take the threads' locks of this process with it.
            multiprocessing_context="spawn" if loaders else None,
            worker_init_fn=_start_loader if loaders else None,
            pin_memory=torch.cuda.is_available(),
        )
    )


def _start_loader(_: int) -> None:
    keep_freed_memory()


def mirrored_rows(batch: Batch) -> Tensor:
    """Rows that are also shown as mirror images: chosen by their keys, so by every number of workers alike."""
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
    """All sources' examples in crops of one size, changed as `augment` says."""
    crop_px = config.network.crop_px
    ready = []
    for part in data.filled(parts, device):
        margin = part.image.shape[-1] / crop_px
        ready.append(prepare(part, crop_px, margin, config.augment, backdrops))
    images = torch.cat([images for images, _ in ready]).contiguous(memory_format=torch.channels_last)
    # The images from before are of each source's own size, and nobody needs them any more.
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
    """Learning rate: a linear warm-up, then half a cosine down to a hundredth."""
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
    return nn.utils.clip_grad_norm_(network.parameters(), limit or math.inf)


class _Clock:
    """Where the time goes: waiting for data, or working."""

    def __init__(self) -> None:
        self.photos = 0
        self._waited_s = 0.0
        self._since = time.perf_counter()
        self._first = True

    def waited(self, loader: Iterator[list[Batch | Order]]) -> Iterator[list[Batch | Order]]:
        """The loader's items; the time they take to come is waiting (the first one's is starting)."""
        while True:
            asked = time.perf_counter()
            parts = next(loader, None)
            if parts is None:
                return
            if self._first:
                self._first, self._since = False, time.perf_counter()
            else:
                self._waited_s += time.perf_counter() - asked
            yield parts

    def progress(self, step: int, config: TrainConfig, means: dict[str, Tensor], rate: float) -> Progress:
        """Since the last time this was asked."""
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        said = Progress(
            step=step,
            steps=config.steps,
            losses={name: float(value) for name, value in means.items()},
            photos_per_s=self.photos / seconds,
            waiting=self._waited_s / seconds,
            learning_rate=rate,
        )
        self.photos, self._waited_s, self._since = 0, 0.0, now
        return said
