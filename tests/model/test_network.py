"""Compare the network with independently written formulas, and check every switch of the paper's tables."""

import dataclasses
import math

import numpy as np
import pytest
import roma
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import lsqr

from annotator.config import AmvurConfig, CameraConfig, NetworkConfig, TextureConfig
from annotator.hand import load_hand
from annotator.hand.anatomy import chirality
from annotator.hand.layer import HandLayer
from annotator.model.amvur import Amvur, Gaussian, joints_from_vertices
from annotator.model.attention import Attention, FeatureMap, Tokens
from annotator.model.camera import WeakCamera, joints2d_covariance
from annotator.model.landmark_maps import LOCAL, LandmarkHead
from annotator.model.landmarker.network import Landmarker, normalised
from annotator.model.network import Network
from annotator.model.prior_net import REACH
from annotator.model.texture import OcclusionAwareTexture, fit_colours, reverse_interpolate
from annotator.render import cover, interpolate, rasterize
from trainer import losses

HAND = load_hand("open")
V = HAND.vertex_count


def network(**changes):
    torch.manual_seed(0)
    config = dataclasses.replace(NetworkConfig(crop_px=64), **changes)
    return Network(config, HAND).eval()


def stirred(net, seed=1):
    """Change weights as training would: no layer remains at its zero start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if not name.startswith("backbone"):
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return net


def images(count=2, size=64, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    attention, asking, asked = Attention(8), torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        q, k, u = attention.query(asking), attention.key(asked), attention.value(asked)
    expected = torch.zeros(2, 5, 8)
    for b in range(2):
        for i in range(5):
            weights = torch.tensor([math.exp(q[b, i] @ k[b, j] / math.sqrt(8)) for j in range(3)])
            expected[b, i] = (weights / weights.sum()) @ u[b]
    torch.testing.assert_close(attention(asking, asked), expected, atol=1e-5, rtol=1e-5)


def test_two_heads_attend_on_their_own():
    torch.manual_seed(0)
    attention, tokens = Attention(8, heads=2), torch.randn(1, 4, 8)
    q, k, u = attention.query(tokens), attention.key(tokens), attention.value(tokens)
    halves = [
        torch.softmax(q[..., h] @ k[..., h].transpose(1, 2) / 2.0, -1) @ u[..., h]
        for h in (slice(0, 4), slice(4, 8))
    ]
    torch.testing.assert_close(attention(tokens, tokens), torch.cat(halves, -1), atol=1e-5, rtol=1e-5)


def test_tokens_equal_one_product_with_feature_and_position_joined():
    torch.manual_seed(0)
    positions, g = torch.randn(7, 3), torch.randn(2, 11)
    tokens = Tokens(11, positions, 5, "template")
    joined = torch.cat([g[:, None].expand(2, 7, 11), positions.expand(2, 7, 3)], -1)
    weight = torch.cat([tokens.from_feature.weight, tokens.from_place.weight], 1)
    torch.testing.assert_close(tokens(g), joined @ weight.T + tokens.from_feature.bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("read_outs", [False, True], ids=["", "read-outs"])
@pytest.mark.parametrize("variant", ["prior_net", "amvur", "both"])
def test_an_untrained_network_gives_the_mean_hand_for_any_photo(variant, read_outs):
    net = network(variant=variant, read_outs=read_outs)
    with torch.inference_mode():
        a, b = net(images(seed=0)), net(images(seed=5))
    torch.testing.assert_close(a.vertices.mean_mm, b.vertices.mean_mm)
    joints = a.joints3d.mean_mm[0].numpy()
    assert np.linalg.norm(joints[0]) < 1e-3
    assert 120 < np.linalg.norm(joints[12]) < 220  # middle tip
    assert (
        joints[12, 1] < -100 and joints[2, 0] > 10
    )  # fingers up, a right thumb to the right: palm to the camera
    assert chirality(joints[None])[0] > 0
    assert a.joints2d.abs().max() < 1 and a.joints2d.std() > 0.1  # in the crop, and filling it
    if read_outs:
        torch.testing.assert_close(a.landmark_hand.image[..., :2], a.joints2d)
        torch.testing.assert_close(a.is_right, torch.full((2,), 0.5))
    if variant != "amvur":
        assert a.prior.pose().shape == (2, 48)
        torch.testing.assert_close(
            a.prior.pose()[0, 3:], torch.from_numpy(HAND.hands_mean), atol=1e-4, rtol=1e-4
        )


SWITCHES = {
    "B0, both": {},
    "prior-net": {"variant": "prior_net"},
    "AMVUR": {"variant": "amvur"},
    "Table 5 A": {"amvur": AmvurConfig(kind="fully_connected")},
    "Table 5 B": {"amvur": AmvurConfig(cross_attention=False, positional="index")},
    "Table 5 C": {"amvur": AmvurConfig(positional="index")},
    "no self-attention": {"amvur": AmvurConfig(self_attention=False)},
    "every vertex a token": {"amvur": AmvurConfig(tokens=0), "texture": TextureConfig(tokens=0)},
    "learned upsampling": {"amvur": AmvurConfig(upsampling="learned")},
    "shared joint variance": {"amvur": AmvurConfig(joint_variance="shared")},
    "corrects prior-net": {"amvur": AmvurConfig(start="prior_net", tokens=98)},
    "formulas as written": {"amvur": AmvurConfig(plain=True, blocks=1, heads=1)},
    "three stages": {"amvur": AmvurConfig(width=128, stages=3, blocks=2, heads=4)},
    "aligned with the maps": {"amvur": AmvurConfig(start="prior_net", tokens=98, aligned=True)},
    "corrects prior-net, A": {"amvur": AmvurConfig(start="prior_net", kind="fully_connected")},
    "landmarks": {"landmarks": True},
    "read-outs": {
        "read_outs": True,
        "amvur": AmvurConfig(start="prior_net", tokens=98, aligned=True),
    },
    "read-outs, prior-net": {"read_outs": True, "variant": "prior_net"},
    "camera rotation": {"camera": CameraConfig(rotation=True)},
    "Table 6 HAND": {"texture": TextureConfig(kind="global")},
    "the paper's texture": {"texture": TextureConfig(photo_colour=False)},
    "no texture": {"texture": TextureConfig(kind="none")},
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_every_switch_gives_complete_predictions_and_trains_all_its_weights(switch):
    net = stirred(network(**SWITCHES[switch]))
    prediction = net(images())
    assert prediction.vertices.mean_mm.shape == (2, V, 3)
    assert prediction.joints3d.std_mm.shape == (2, 21, 3) and (prediction.joints3d.std_mm >= 0).all()
    assert prediction.joints2d_covariance.shape == (2, 21, 2, 2)
    assert prediction.visible.shape == (2, V) and 0.2 < prediction.visible.float().mean() < 0.95
    assert (prediction.rgb is None) == (switch == "no texture")
    for gaussian in (prediction.vertices, prediction.joints3d):
        torch.testing.assert_close(
            (net.R @ prediction.vertices.mean_mm)[:, 0], torch.zeros(2, 3), atol=1e-3, rtol=0
        )
        assert gaussian.mean_mm.isfinite().all()
    loss = prediction.vertices.mean_mm.square().mean() + prediction.vertices.std_mm.mean()
    loss = (
        loss
        + prediction.joints2d.square().mean()
        + prediction.joints2d_covariance.sum()
        + prediction.is_right.sum()
        + prediction.is_hand.sum()
    )
    for part in (prediction.prior, prediction.prior_camera):
        if part is not None:
            loss = loss + sum(t.square().mean() for t in vars(part).values() if t.requires_grad)
    if prediction.rgb is not None:
        loss = loss + prediction.rgb.square().mean()
    loss.backward()
    without = [name for name, p in net.named_parameters() if p.grad is None]
    assert not without


def test_amvur_adds_to_prior_nets_hand_if_configured():
    net = stirred(network(amvur=AmvurConfig(start="prior_net")))
    torch.nn.init.zeros_(net.amvur.mean[-1].weight)
    torch.nn.init.zeros_(net.amvur.mean[-1].bias)
    prediction = net(images())
    torch.testing.assert_close(prediction.vertices.mean_mm, prediction.prior.vertices_mm, atol=1e-3, rtol=0)
    assert (prediction.vertices.mean_mm - net.amvur.start_mm).abs().max() > 1
    # q's likelihood must not move prior-net, which has its own likelihood.
    prediction.vertices.mean_mm.square().sum().backward()
    assert all(p.grad is None for p in net.prior_net.parameters())


def test_a_kl_draws_prior_nets_hand_towards_the_offsets_of_q():
    net = stirred(network(amvur=AmvurConfig(start="prior_net")))
    prediction = net(images())
    prediction.prior.vertices_mm.retain_grad()
    losses.vertices_kl(prediction.vertices, prediction.prior.vertices_mm).sum().backward()
    offsets_mm = prediction.vertices.mean_mm - prediction.prior.vertices_mm
    assert offsets_mm.abs().max() > 0.1
    # Half a square in centimetres, with q's start as a constant.
    torch.testing.assert_close(
        prediction.prior.vertices_mm.grad, -offsets_mm.detach() / 100, atol=1e-6, rtol=1e-4
    )


def test_prior_net_stays_within_plausible_hands():
    net = stirred(network())
    with torch.no_grad():
        net.prior_net.mlp[-1].bias.copy_(torch.linspace(-1e4, 1e4, 61))
    prior = net(images()).prior
    assert prior.betas.abs().max() <= REACH
    assert prior.joints3d_mm.norm(dim=-1).max() < 500


def test_landmarks_are_where_their_maps_are_brightest():
    landmarks = LandmarkHead((21, 2, 3))
    with torch.no_grad():
        for name, parameter in landmarks.named_parameters():
            if not name.startswith("local"):
                parameter.zero_()
        landmarks.levels[0].weight[:21] = torch.eye(21)[..., None, None]
        landmarks.maps.weight[:, :21] = 50 * torch.eye(21)[..., None, None]
    fine = torch.zeros(1, 21, 4, 8)
    fine[0, 3, 2, 5] = 1  # joint 3: row 2 of 4, column 5 of 8
    fine[0, 4, 0, :2] = 1  # joint 4: between the first two cells of the first row
    pyramid = (fine, torch.randn(1, 2, 2, 4), torch.randn(1, 3, 1, 2))
    log_share, seen, feature = landmarks(pyramid)
    positions, local = feature.view(1, 21, -1).split([2, LOCAL], -1)
    assert torch.equal(seen, positions)
    torch.testing.assert_close(log_share.exp().sum((2, 3)), torch.ones(1, 21))
    torch.testing.assert_close(positions[0, 3], torch.tensor([2 * 5.5 / 8 - 1, 2 * 2.5 / 4 - 1]))
    torch.testing.assert_close(positions[0, 4], torch.tensor([2 * 1 / 8 - 1, 2 * 0.5 / 4 - 1]))
    torch.testing.assert_close(
        positions[0, 0], torch.zeros(2), atol=1e-6, rtol=0
    )  # a uniform map: the middle
    # The feature of joint 3 comes from its position in the photo.
    met = torch.nn.functional.pad(fine[:, :, 2, 5], (0, 43))[..., None, None]
    torch.testing.assert_close(local[0, 3], landmarks.local(met)[0, :, 0, 0])
    # A coarse cell counts for all the fine cells it covers.
    with torch.no_grad():
        landmarks.levels[2].weight[7, 1] = 1.0
    coarse = torch.tensor([[[[0.0, 0]], [[0, 9]], [[0, 0]]]])
    _, _, feature = landmarks((torch.zeros_like(fine), pyramid[1], coarse))
    positions = feature.view(1, 21, -1)[..., :2]
    assert positions[0, 7, 0] > 0.5 and abs(positions[0, 7, 1]) < 1e-5


@pytest.mark.slow
def test_switches_change_the_weights_they_name():
    names = {s: {n for n, _ in network(**SWITCHES[s]).named_parameters()} for s in SWITCHES}
    assert any(".cross." in n for n in names["B0, both"])
    assert not any(".cross." in n or n.startswith("amvur.joint_tokens") for n in names["Table 5 B"])
    assert not any(n.startswith("amvur") and ".self_attention." in n for n in names["no self-attention"])
    assert any(n.startswith("amvur.vertex_tokens.from_maps") for n in names["aligned with the maps"])
    assert not any(n.startswith(("amvur", "camera.")) for n in names["prior-net"])
    assert not any(n.startswith("prior_net") for n in names["AMVUR"])
    assert "amvur.vertex_tokens.index" in names["Table 5 C"]
    assert {"heads.image.weight", "prior_net.ik.1.weight"} < names["read-outs"]
    assert not any(n.startswith(("side", "presence")) for n in names["read-outs"])
    assert not any(n.startswith(("heads", "prior_net.ik")) for n in names["landmarks"])


def test_joint_variance_is_the_papers_and_matches_draws():
    torch.manual_seed(0)
    vertices = Gaussian(torch.randn(1, V, 3) * 50, torch.rand(1, V, 3) * 5 + 1)
    R = torch.from_numpy(HAND.joint_regressor)
    joints = joints_from_vertices(vertices, R, "independent")
    drawn = R @ (vertices.mean_mm + vertices.std_mm * torch.randn(4000, V, 3))
    torch.testing.assert_close(joints.std_mm[0], drawn.std(0), rtol=0.06, atol=0.02)
    shared = joints_from_vertices(vertices, R, "shared")
    # One random number moves all vertices, each by its own std; joints move accordingly.
    assert torch.allclose(shared.std_mm, (R @ vertices.std_mm).abs(), atol=1e-4)
    even = Gaussian(vertices.mean_mm, torch.full_like(vertices.std_mm, 7.0))
    assert torch.allclose(joints_from_vertices(even, R, "shared").std_mm, torch.tensor(7.0), atol=1e-2)


def test_sigma_2_matches_draws_of_joints_and_cameras():
    generator = torch.Generator().manual_seed(0)
    joints = Gaussian(torch.randn(1, 21, 3, generator=generator) * 60, torch.full((1, 21, 3), 4.0))
    rotvec = torch.tensor([[0.2, -0.4, 0.3]])
    camera = WeakCamera(
        torch.tensor([0.009]),
        rotvec,
        torch.tensor([[0.1, -0.2]]),
        torch.tensor([[0.03, 0, 0, 0, 0.02, 0.05]]),
    )
    covariance = joints2d_covariance(joints, camera, annotation_noise=0.01)[0]
    count = 200_000
    noise = torch.randn(count, 6, generator=generator)
    scale = (camera.scale_per_mm * 100 + 0.03 * noise[:, :1]) / 100
    translation = camera.translation + noise[:, 1:3] * torch.tensor([0.02, 0.05])
    rotation = roma.rotvec_to_rotmat(rotvec)[0]
    for k in (0, 8, 20):
        drawn = joints.mean_mm[0, k] + 4.0 * torch.randn(count, 3, generator=generator)
        points = scale * (drawn @ rotation.T)[:, :2] + translation
        points = points + 0.01 * torch.randn(count, 2, generator=generator)
        torch.testing.assert_close(points.T.cov(), covariance[k], rtol=0.03, atol=2e-5)


def test_reverse_interpolation_reads_a_ramp_exactly():
    centres = (torch.arange(8) + 0.5) / 8 * 2 - 1  # crop coordinates of pixel centres
    ramp = torch.stack([centres.expand(8, 8), centres[:, None].expand(8, 8)])[None]
    points = torch.rand(1, 20, 2, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    torch.testing.assert_close(reverse_interpolate(ramp, points), points, atol=1e-5, rtol=0)


def test_the_texture_samples_x_where_its_cells_are_centred():
    """In Lite0 cell i of 32 is centred on pixel 2i + 1.5 of 64, but `grid_sample` assumes 2i + 1."""
    net, seen = network(backbone="efficientnet_lite0", crop_px=64), {}
    net.texture.register_forward_pre_hook(
        lambda _, arguments: seen.update(zip("pq", arguments[3:5], strict=True))
    )
    with torch.inference_mode():
        net(images(2))
    torch.testing.assert_close(seen["q"], seen["p"][..., :2] - 0.5 / 32, atol=1e-6, rtol=0)


def test_a_hidden_vertex_does_not_take_the_colour_of_what_covers_it():
    torch.manual_seed(0)
    texture = OcclusionAwareTexture(6, 4, HAND, TextureConfig(tokens=20))
    for parameter in texture.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    g, X = torch.randn(1, 6), torch.randn(1, 4, 16, 16)
    points, visible = torch.rand(1, V, 3) * 1.5 - 0.75, torch.rand(1, V) > 0.5
    red, blue = torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    red[:, 0], blue[:, 2] = 1, 1
    # Only hidden vertices project into the right half, so its content must change nothing.
    points[..., 0] = torch.where(visible, -points[..., 0].abs() - 0.2, points[..., 0].abs() + 0.2)
    mixed = red.clone()
    mixed[..., 16:] = blue[..., 16:]
    nothing = torch.full((1, 32, 32), -1)
    faces = torch.from_numpy(HAND.faces).long()

    def colours(photo: torch.Tensor, X: torch.Tensor) -> torch.Tensor:
        return texture(photo, X, g, points, points[..., :2], visible, nothing, faces)

    torch.testing.assert_close(colours(red, X), colours(mixed, X))
    changed = X.clone()
    changed[..., 9:] += 1
    torch.testing.assert_close(colours(red, X), colours(red, changed))
    assert not torch.allclose(colours(red, X), colours(blue, X))


def test_fitted_colours_come_close_to_the_least_squares_ones():
    """Compare with scipy's solver: a mesh in random colours, drawn with noise; hidden vertices keep their colours."""
    net, generator = network(), torch.Generator().manual_seed(0)
    with torch.inference_mode():
        prediction = net(images(1))
        points = prediction.camera.project(prediction.vertices.mean_mm)
    fragments = rasterize(points, net.faces, 64)
    covered = fragments.face_ids[0] >= 0
    true = torch.rand(1, V, 3, generator=generator)
    painted = interpolate(fragments, true, net.faces)
    photo = (painted + 0.05 * torch.randn(painted.shape, generator=generator)).permute(0, 3, 1, 2)
    start = reverse_interpolate(photo, points[..., :2]).clamp(0, 1)
    fitted = fit_colours(start, photo, cover(points, net.faces, fragments.face_ids), 64)

    corners = HAND.faces[fragments.face_ids[0][covered].numpy()]
    rows = np.repeat(np.arange(len(corners)), 3)
    weights = fragments.barycentrics[0][covered].numpy().ravel()
    design = csr_matrix((weights, (rows, corners.ravel())), (len(corners), V))
    pixels = photo[0].permute(1, 2, 0)[covered].numpy()
    best = np.stack([lsqr(design, pixels[:, k])[0] for k in range(3)], 1)

    def left(colours: np.ndarray) -> float:
        return float(np.square(design @ colours - pixels).mean())

    at_start, at_best, at_end = left(start[0].numpy()), left(best), left(fitted[0].numpy())
    assert at_best < at_end < at_best + 0.25 * (at_start - at_best)
    unseen = np.asarray(design.sum(0)).ravel() == 0
    assert unseen.sum() > 100
    torch.testing.assert_close(fitted[0][unseen], start[0][unseen])


def test_untrained_texture_shows_the_photos_own_colours():
    photo = torch.zeros(1, 3, 64, 64)
    photo[:, 0] = 0.8
    photo[:, 1:] = 0.3
    with torch.inference_mode():
        rgb = network()(photo).rgb
    torch.testing.assert_close(rgb, torch.tensor([0.8, 0.3, 0.3]).expand(1, V, 3), atol=0.02, rtol=0)


def test_the_backs_vertices_are_hidden_when_the_palm_faces_the_camera():
    with torch.inference_mode():
        prediction = network()(images(1))
    normals_z = torch.zeros(V)
    corners = prediction.vertices.mean_mm[0][torch.from_numpy(HAND.faces).long()]
    face_normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    for k in range(3):
        normals_z.index_add_(0, torch.from_numpy(HAND.faces[:, k]).long(), face_normals[:, 2])
    facing, away = normals_z < -1, normals_z > 1  # z points away from the camera
    visible = prediction.visible[0]
    assert visible[facing].float().mean() > 0.85
    assert visible[away].float().mean() < 0.3


@pytest.mark.slow
def test_amvur_alone_can_overfit_hands():
    """A global rotation needs products of g and position, which a plain sum can't express."""
    torch.manual_seed(0)
    layer = HandLayer(HAND)
    count, generator = 24, torch.Generator().manual_seed(1)
    rotvecs = torch.randn(count, 16, 3, generator=generator) * torch.tensor([0.8] + [0.25] * 15)[:, None]
    betas = torch.randn(count, 10, generator=generator)
    truth_mm, _ = layer(roma.rotvec_to_rotmat(rotvecs), betas)
    g = torch.randn(count, 256, generator=generator)
    amvur = Amvur(256, HAND, layer, AmvurConfig(tokens=64, width=128, blocks=1))
    optimizer = torch.optim.Adam(amvur.parameters())
    steps = 600
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 6e-3 * min((step + 1) / 50, 1) * (1 - step / steps)
        loss = (amvur(g).mean_mm - truth_mm).square().mean() / 100
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(amvur.parameters(), 10)
        optimizer.step()
    with torch.no_grad():
        assert float((amvur(g).mean_mm - truth_mm).norm(dim=-1).mean()) < 3


def test_aligned_tokens_hold_the_maps_where_prior_nets_hand_projects():
    torch.manual_seed(0)
    net = network(amvur=AmvurConfig(start="prior_net", tokens=98, aligned=True))
    tokens, points = net.amvur.vertex_tokens, torch.rand(2, 98, 2) * 1.6 - 0.8
    g = torch.randn(2, net.backbone.feature_dim)
    # The channels of this map are its own coordinates, so a sample is the point itself.
    dims = net.backbone.pyramid_dims
    axis = (torch.arange(16) * 2 + 1) / 16 - 1
    ramp = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))
    levels = [torch.zeros(2, dim, 16, 16) for dim in dims]
    levels[1][:, :2] = ramp
    maps = [FeatureMap(level, lambda points: points) for level in levels]
    posed = torch.zeros(2, 98, 5)
    added = tokens(g, posed, points, maps) - tokens(g, posed)
    expected = points @ tokens.from_maps[1].weight[:, :2].T
    torch.testing.assert_close(added, expected, atol=1e-4, rtol=1e-4)


def test_a_map_with_fewer_cells_than_points_is_multiplied_first_with_the_same_result():
    generator = torch.Generator().manual_seed(0)
    tokens = Tokens(4, torch.rand(30, 3, generator=generator), 8, "template", map_dims=(6, 6))
    g, points = torch.rand(2, 4, generator=generator), torch.rand(2, 30, 2, generator=generator) * 3 - 1.5
    coarse, fine = (torch.rand(2, 6, side, side, generator=generator) for side in (4, 7))  # 16 and 49 cells
    with torch.no_grad():
        ours = tokens(g, None, points, [FeatureMap(coarse, torch.clone), FeatureMap(fine, torch.clone)])
        expected = tokens(g)
        for layer, values in zip(tokens.from_maps, (coarse, fine), strict=True):
            expected = expected + layer(reverse_interpolate(values, points))
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "hand_landmark"])
def test_maps_are_sampled_where_their_cells_lie(backbone):
    """Each map holds the positions of its cells' centres, in crop coordinates: a sample is the point itself."""
    net = network(backbone=backbone, amvur=AmvurConfig(start="prior_net", tokens=98, aligned=True)).eval()
    given: list[list[FeatureMap]] = []
    net.amvur.register_forward_pre_hook(lambda _, inputs: given.append(inputs[3]))
    with torch.inference_mode():
        net(torch.rand(2, 3, 96, 96), torch.tensor([1]))
    points = torch.rand(2, 30, 2) * 0.6 - 0.3
    for stride, level in zip((8, 16, 32), given[0], strict=True):
        first = net.backbone.first_centre_px(96, stride)
        cells = (first + stride * torch.arange(level.values.shape[-1])) / 96 * 2 - 1
        own = torch.stack(torch.meshgrid(cells, cells, indexing="xy"))[None].expand(2, -1, -1, -1)
        torch.testing.assert_close(reverse_interpolate(own, level.in_map(points)), points, atol=1e-5, rtol=0)


def test_normalised_landmarks_have_neither_position_nor_size():
    points = torch.randn(3, 21, 3, generator=torch.Generator().manual_seed(0))
    found = normalised(points)
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(found.square().sum((1, 2)), torch.full((3,), 21.0))
    torch.testing.assert_close(normalised(0.3 * points + 5), found, atol=1e-4, rtol=1e-4)
    # Straight lines through the wrist do not change.
    torch.testing.assert_close(torch.linalg.cross(found, points - points[:, :1]), torch.zeros(3, 21, 3))
    assert normalised(torch.zeros(1, 21, 3)).isfinite().all()


def test_weights_of_a_landmarker_fit_and_give_its_landmarks():
    torch.manual_seed(1)
    landmarker = Landmarker().eval()
    net = network(backbone="hand_landmark", **SWITCHES["read-outs"])
    kept = net.load_state_dict(landmarker.state_dict(), strict=False)
    assert not kept.unexpected_keys
    with torch.inference_mode():
        expected, prediction = landmarker(images()), net(images(), torch.tensor([1]))
        mirrored = landmarker(images()[1:].flip(-1))
    for ours, theirs in zip(prediction.landmark_hand, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.is_right, expected.is_right.sigmoid(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.is_hand, expected.presence.sigmoid(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        prediction.mirrored_is_right, mirrored.is_right.sigmoid(), atol=1e-4, rtol=1e-4
    )


def reading(net, points):
    """Make the read-outs give these landmarks (21, 3) for any photo."""
    with torch.no_grad():
        net.heads.image.weight.zero_()
        net.heads.image.bias.copy_(points.flatten())
    return net


@pytest.mark.parametrize("variant", ["prior_net", "amvur", "both"])
def test_an_untrained_network_lays_the_mean_hand_onto_its_landmarks(variant):
    amvur = AmvurConfig() if variant == "amvur" else SWITCHES["read-outs"]["amvur"]
    net = network(variant=variant, read_outs=True, amvur=amvur)
    with torch.inference_mode():
        joints = net(images()).joints3d.mean_mm[0]
        reading(net, 0.004 * joints + torch.tensor([0.3, -0.2, 0]))
        prediction = net(images())
        off = net.extract(images()).joints2d - prediction.joints2d
        # LandmarkHead that no hand in front of a camera gives: the camera is that of a network without landmarks.
        upside_down = reading(net, -joints)(images())
    torch.testing.assert_close(prediction.joints3d.mean_mm[0], joints)
    torch.testing.assert_close(off, torch.zeros(2, 21, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.camera.scale_per_mm, torch.full((2,), 0.004))
    torch.testing.assert_close(
        upside_down.camera.scale_per_mm, network(variant="amvur")(images()).camera.scale_per_mm
    )


def test_inverse_kinematics_depend_on_landmarks_alone_not_on_position_or_photo():
    net = stirred(network(variant="prior_net", read_outs=True))
    torch.nn.init.zeros_(net.prior_net.mlp[-1].weight)
    torch.nn.init.zeros_(net.prior_net.mlp[-1].bias)
    points = torch.randn(21, 3, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        here = reading(net, points)(images()).prior
        there = reading(net, 0.2 * points - 0.5)(images(seed=4)).prior
        alone = net.prior_net.from_landmarks(normalised(points[None]))
    assert (here.vertices_mm - net.prior_net.layer.template).abs().max() > 1
    torch.testing.assert_close(here.vertices_mm, there.vertices_mm, atol=1e-2, rtol=0)
    torch.testing.assert_close(here.vertices_mm[:1], alone.vertices_mm, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "switches", [SWITCHES["landmarks"], SWITCHES["read-outs"]], ids=["maps", "read-outs"]
)
def test_rows_put_in_are_predicted_as_by_themselves(switches):
    net, photos = stirred(network(**switches)), images(3)
    with torch.inference_mode():
        features = net.extract(photos)
        features.put(torch.tensor([2]), net.extract(photos.flip(-1))[torch.tensor([0])])
        photos[2] = photos[0].flip(-1)
        found, expected = net.hands(photos, features), net(photos)
    torch.testing.assert_close(found.vertices.mean_mm, expected.vertices.mean_mm, atol=1e-2, rtol=0)
    torch.testing.assert_close(found.joints2d, expected.joints2d, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.is_right, expected.is_right, atol=1e-5, rtol=0)
