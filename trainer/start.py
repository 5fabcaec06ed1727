"""The network before its first step: random, from ImageNet's weights, from a checkpoint or from MediaPipe's network."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from annotator.config import NetworkConfig
from annotator.errors import UserError
from annotator.hand.model import HandModel
from annotator.model.checkpoint import Checkpoint, load_checkpoint
from annotator.model.landmarker.distilled_file import is_distilled_landmarker, load_distilled_landmarker
from annotator.model.landmarker.network import Landmarker
from annotator.model.landmarker.released_file import INPUT_PX, read_released_landmarker
from annotator.model.network import Network
from annotator.model.pretrained import PretrainedUnreachableError, load_pretrained
from annotator.storage.files import join
from trainer.config import TrainConfig
from trainer.data.steps import Steps
from trainer.inputs import network_inputs
from trainer.inverse_kinematics import train_inverse_kinematics
from trainer.state import MODEL_FILE, first_look_of

#: Crops of the first steps for the statistics of batch norms, for files without any.
MEASURED_CROPS = 64


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
    if config.start_from.endswith(".task") or is_distilled_landmarker(config.start_from):
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
        tensors = checkpoint.network.hand_network.state_dict()
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


def kept_first_look(config: TrainConfig, out: str, resumes: bool) -> Checkpoint | None:
    """Return the first look to keep: of `start_from`, or, if the run resumes, of the model in OUT."""
    if resumes:
        return first_look_of(join(out, MODEL_FILE), config.hand)
    is_checkpoint = config.start_from and not config.start_from.endswith(".task")
    if not is_checkpoint or is_distilled_landmarker(config.start_from):
        return None
    return first_look_of(config.start_from, config.hand)


def _take_backbone(network: Network, config: TrainConfig) -> None:
    """Give backbone and read-outs the weights of a checkpoint's hand network.

    Raises:
        UserError: the checkpoint can't be read, or has another backbone.
    """
    try:
        held = load_checkpoint(config.backbone_from)  # with its own hand: a backbone depends on none
    except UserError:
        held = load_checkpoint(config.backbone_from, config.hand)  # MANO's hand is in a file of its own
    if held.info.network.backbone != config.network.backbone:
        raise UserError(
            f"backbone_from '{config.backbone_from}' holds the backbone {held.info.network.backbone}: set "
            f"network.backbone={held.info.network.backbone}, or backbone_from= and network.imagenet=true"
        )
    last = held.network.hand_network
    network.backbone.load_state_dict(last.backbone.state_dict())
    if network.heads is not None and last.heads is not None:
        network.heads.load_state_dict(last.heads.state_dict())


def _start_from_landmarker(network: Network, config: TrainConfig, hand: HandModel) -> None:
    """Give backbone and read-outs the weights of MediaPipe's network or of one distilled from it.

    MediaPipe's file has no batch norms. They are measured on the first crops, of the file's own input size, with the
    same result on every worker. In training mode each batch then has the statistics that the layers expect, for any
    `crop_px`. At smaller sizes this moves outputs closer to MediaPipe's landmarks.
    """
    if config.network.backbone != "hand_landmark":
        raise UserError(
            f"start_from '{config.start_from}' holds the backbone hand_landmark, not {config.network.backbone}: "
            "set network.backbone=hand_landmark"
        )
    landmarker = (
        _measured_landmarker(config, hand)
        if config.start_from.endswith(".task")
        else load_distilled_landmarker(config.start_from)
    )
    network.backbone.load_state_dict(landmarker.backbone.state_dict())
    if network.heads is not None:
        network.heads.load_state_dict(landmarker.heads.state_dict())


def _measured_landmarker(config: TrainConfig, hand: HandModel) -> Landmarker:
    """Read MediaPipe's network and measure its batch norms on the training's first crops."""
    at_its_size = replace(config, network=replace(config.network, crop_px=INPUT_PX))
    data = Steps(at_its_size, hand)
    steps = range(math.ceil(MEASURED_CROPS / config.batch_size))
    crops = [network_inputs(data[step], data, at_its_size, torch.device("cpu"))[0] for step in steps]
    return read_released_landmarker(config.start_from, torch.cat(crops))


def _without_sizes(config: NetworkConfig) -> NetworkConfig:
    """Return the configuration without fields that do not affect weights, such as the crop size."""
    plain = NetworkConfig()
    texture = replace(config.texture, raster_px=plain.texture.raster_px)
    return replace(config, crop_px=plain.crop_px, imagenet=plain.imagenet, seed=plain.seed, texture=texture)
