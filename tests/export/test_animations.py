"""Animated exports, read back by trimesh and by readers written here from the definitions of BVH and glTF."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import roma
import torch
import trimesh
from scipy.spatial.transform import Rotation

from annotator import UserError
from annotator.commands.filter import Keep, filter_labels
from annotator.export import export_labels
from annotator.hand import JOINT_NAMES
from annotator.labels.folder import write_faces
from tests.support.moving_labels import (
    HAND,
    LAYER,
    LIST_COLUMNS,
    RATE_HZ,
    VIDEO_COLUMNS,
    Clip,
    Moving,
    table_of,
    write_labels,
)
from tests.support.tracked_labels import rows_of, write_tracked

#: From the axes of a mesh (y up) to those of the camera.
CAMERA = np.array([1, -1, -1])
LEFT = Moving(range(4, 34), is_right=False, start_px=(420.0, 150.0), speed_px=(-4.0, 1.0), seed=5)
RIGHT = Moving(range(36), seed=1, missing=(7, 8))
#: Joints of the layer are regressed from the mesh; the skeleton has the joints themselves.
REGRESSED_MM = 1.2


@pytest.fixture(scope="module")
def labels(tmp_path_factory) -> Path:
    clips = [
        Clip("videos/two hands.mp4", 36, [RIGHT, LEFT], unreadable=(30,)),
        Clip("one.mp4", 6, [Moving(range(6), seed=2)]),
    ]
    folder = tmp_path_factory.mktemp("in")
    (folder / "photos" / "videos").mkdir(parents=True)
    return write_labels(folder / "labels", [table_of(clip, VIDEO_COLUMNS) for clip in clips], VIDEO_COLUMNS)


@pytest.fixture(scope="module")
def tracked(labels) -> Path:
    return write_tracked(labels, labels.parent / "tracked")


def placed_mm(row: dict, name: str = "joints3d_mm") -> np.ndarray:
    return np.array(row[name]) + row["camera"]["cam_t_mm"]


# --- bvh


class Bvh:
    """A BVH file by its definition (Meredith and Maddock, 2001): offsets, channels, and their order of rotations."""

    def __init__(self, path: Path) -> None:
        words = path.read_text().split()
        self.names: list[str] = []
        self.parents: list[int] = []
        self.offsets: list[list[float]] = []
        self.channels: list[list[str]] = []
        self.tips: dict[str, str] = {}
        stack: list[int] = []
        at = 1
        assert words[0] == "HIERARCHY"
        while words[at] != "MOTION":
            word = words[at]
            if word in ("ROOT", "JOINT", "End"):
                self.parents.append(stack[-1] if stack else -1)
                self.names.append(words[at + 1])
                self.channels.append([])
                at += 2
            elif word == "OFFSET":
                self.offsets.append([float(value) for value in words[at + 1 : at + 4]])
                at += 4
            elif word == "CHANNELS":
                count = int(words[at + 1])
                self.channels[-1] = words[at + 2 : at + 2 + count]
                at += 2 + count
            else:
                stack = [*stack, len(self.names) - 1] if word == "{" else stack[:-1]
                at += 1
        assert words[at + 1] == "Frames:" and words[at + 3 : at + 5] == ["Frame", "Time:"] and not stack
        self.step_s = float(words[at + 5])
        self.frames = np.array(words[at + 6 :], float).reshape(int(words[at + 2]), -1)

    def joints_cm(self) -> dict[str, np.ndarray]:
        """Return each joint's path (N, 3); a tip has the name of its finger."""
        found: dict[str, np.ndarray] = {}
        positions, rotations = [], []
        column = 0
        for name, parent, offset, channels in zip(
            self.names, self.parents, self.offsets, self.channels, strict=True
        ):
            position = np.tile(np.array(offset), (len(self.frames), 1))
            rotation = np.tile(np.eye(3), (len(self.frames), 1, 1))
            for channel in channels:
                axis = "XYZ".index(channel[0])
                values = self.frames[:, column]
                column += 1
                if channel.endswith("position"):
                    position[:, axis] += values
                else:
                    rotation = (
                        rotation
                        @ Rotation.from_rotvec(np.radians(values)[:, None] * np.eye(3)[axis]).as_matrix()
                    )
            if parent >= 0:
                position = positions[parent] + np.einsum("nij,nj->ni", rotations[parent], position)
                rotation = rotations[parent] @ rotation
            positions.append(position)
            rotations.append(rotation)
            found[name if channels else self.names[parent].replace("_3", "_tip")] = position
        assert column == self.frames.shape[1]
        return found


def files_of(folder: Path) -> dict[str, Path]:
    """Files by the part of their names that is not a hash."""
    return {"-".join((p.name.split("-")[0], p.name.split("-")[-1])): p for p in sorted(folder.iterdir())}


def test_bvh_moves_the_joints_of_both_hands_as_labels_do(tracked, tmp_path):
    exported = export_labels(str(tracked), str(tmp_path / "bvh"), "bvh")
    files = files_of(tmp_path / "bvh")
    assert list(files) == ["one.mp4-track0.bvh", "two_hands.mp4-track0.bvh", "two_hands.mp4-track1.bvh"]
    assert exported.hands == 35 + 29 + 6 and exported.notes[0].startswith(
        "3 tracks; joints of the skeleton lie 0."
    )
    for track_id, first in ((0, 0), (1, 4)):
        bvh = Bvh(files[f"two_hands.mp4-track{track_id}.bvh"])
        rows = rows_of(tracked, "videos/two hands.mp4", track_id)
        assert bvh.step_s == pytest.approx(1 / RATE_HZ, abs=1e-6)
        # Frame 30 could not be read; a BVH file has no gaps, so it is between its neighbours.
        assert len(bvh.frames) == len(rows) + 1 and rows[0]["frame_index"] == first
        joints_cm = bvh.joints_cm()
        assert set(joints_cm) == set(JOINT_NAMES)
        found = np.stack([joints_cm[name] for name in JOINT_NAMES], 1) * 10 * CAMERA
        for row in rows:
            wanted = placed_mm(row)
            apart = np.linalg.norm(found[row["frame_index"] - first] - wanted, axis=1)
            # A metre of a millimetre per frame: the position is as the camera gives it, to the file's rounding.
            scale = max(1.0, np.linalg.norm(row["camera"]["cam_t_mm"]) * 1e-6)
            assert apart.max() < REGRESSED_MM * scale, (row["frame_index"], apart)
        between = found[30 - first]
        before, after = found[29 - first], found[31 - first]
        assert (np.linalg.norm(between - (before + after) / 2, axis=1) < 0.5).all()


@pytest.mark.slow
def test_skeletons_follow_joints_that_are_refined_beyond_the_pose(tmp_path):
    clip = Clip("refined.mp4", 30, [replace(RIGHT, refined=0.12), replace(LEFT, refined=0.12)])
    labels = write_labels(tmp_path / "labels", [table_of(clip, VIDEO_COLUMNS)], VIDEO_COLUMNS)
    tracked = write_tracked(labels, tmp_path / "tracked")
    export_labels(str(tracked), str(tmp_path / "bvh"), "bvh")
    export_labels(str(tracked), str(tmp_path / "glb"), "animated-glb")
    for track_id in (0, 1):
        rows = rows_of(tracked, "refined.mp4", track_id)
        joints = np.array([row["joints3d_mm"] for row in rows])
        rotations = roma.rotvec_to_rotmat(torch.tensor([row["pose"] for row in rows]).view(-1, 16, 3))
        _, of_pose = LAYER(rotations, torch.tensor([row["betas"] for row in rows]))
        of_pose = of_pose.numpy() * ([1, 1, 1] if rows[0]["is_right"] else [-1, 1, 1])
        assert np.linalg.norm(of_pose - joints, axis=-1).mean() > 7
        (path,) = (tmp_path / "bvh").glob(f"*-track{track_id}.bvh")
        bvh = Bvh(path)
        found = np.stack([bvh.joints_cm()[name] for name in JOINT_NAMES], 1) * 10 * CAMERA
        apart = np.linalg.norm(found - found[:, :1] - joints, axis=-1)
        assert apart.mean() < 1 and apart.max() < 3
        # As smooth as the joints themselves are, with whole angles between frames.
        shown = Rotation.from_euler("ZXY", bvh.frames[:, 3:].reshape(-1, 3), degrees=True).as_matrix()
        shown = shown.reshape(len(rows), 16, 3, 3)
        own = Rotation.from_rotvec(np.array([row["pose"] for row in rows]).reshape(-1, 3)).as_matrix()
        jerk = [np.diff(one, 3, axis=0).std() for one in (shown, own.reshape(shown.shape))]
        assert jerk[0] < 1.3 * jerk[1]
        _, nodes, meshes = Gltf(tmp_path / "glb" / f"{path.stem}.glb").animated()
        mesh = (meshes - nodes["wrist"][:, None]) * CAMERA * 1000
        vertices = np.array([row["vertices_mm"] for row in rows])
        assert np.linalg.norm(mesh - vertices, axis=-1).mean() < 2


def test_bvh_angles_do_not_jump(tracked, tmp_path):
    export_labels(str(tracked), str(tmp_path / "bvh"), "bvh")
    for path in (tmp_path / "bvh").iterdir():
        assert np.abs(np.diff(Bvh(path).frames[:, 3:], axis=0)).max() < 60


def test_times_that_are_not_even_are_resampled(tmp_path):
    times = (np.cumsum(np.tile([0.5, 1.0, 1.5], 8)) / RATE_HZ).tolist()
    clip = Clip("vfr", 24, [Moving(range(24), noise=0.0)], times=times, listed=True)
    labels = write_labels(tmp_path / "labels", [table_of(clip, LIST_COLUMNS)], LIST_COLUMNS)
    tracked = write_tracked(labels, tmp_path / "tracked")
    export_labels(str(tracked), str(tmp_path / "bvh"), "bvh")
    (path,) = (tmp_path / "bvh").iterdir()
    bvh = Bvh(path)
    assert bvh.step_s * (len(bvh.frames) - 1) == pytest.approx(times[-1] - times[0], abs=1e-5)
    assert bvh.step_s == pytest.approx(1 / RATE_HZ, rel=0.1) and path.name.startswith("vfr-")
    rows = sorted(pq.read_table(tracked / "data").to_pylist(), key=lambda row: row["frame"])
    wrist = np.array([row["camera"]["cam_t_mm"] for row in rows])
    grid = times[0] + bvh.step_s * np.arange(len(bvh.frames))
    wanted = np.stack([np.interp(grid, times, part) for part in wrist.T], 1)
    np.testing.assert_allclose(bvh.joints_cm()["wrist"] * 10 * CAMERA, wanted, rtol=1e-5, atol=0.01)


# --- glb


class Gltf:
    """A binary glTF file by the specification: accessors, a node tree, a skin, an animation."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        size = int.from_bytes(data[12:16], "little")
        self.json = json.loads(data[20 : 20 + size])
        self.bytes = data[28 + size :]
        assert int.from_bytes(data[8:12], "little") == len(data) and (20 + size) % 4 == 0

    def array(self, number: int) -> np.ndarray:
        accessor = self.json["accessors"][number]
        view = self.json["bufferViews"][accessor["bufferView"]]
        kind = {5126: "<f4", 5125: "<u4", 5121: "u1"}[accessor["componentType"]]
        width = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}[accessor["type"]]
        assert view["byteOffset"] % 4 == 0
        part = self.bytes[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
        values = np.frombuffer(part, kind).reshape(accessor["count"], width)
        if "min" in accessor:
            np.testing.assert_array_equal(values.min(0), np.float32(accessor["min"]))
            np.testing.assert_array_equal(values.max(0), np.float32(accessor["max"]))
        return values

    def animated(self) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Return times (T,), paths of nodes (T, 3) by name, and the skinned mesh (T, V, 3)."""
        (animation,) = self.json["animations"]
        samplers = animation["samplers"]
        (clock,) = {sampler["input"] for sampler in samplers}
        times = self.array(clock)[:, 0]
        moving = {
            (channel["target"]["node"], channel["target"]["path"]): self.array(
                samplers[channel["sampler"]]["output"]
            )
            for channel in animation["channels"]
        }
        world: dict[int, np.ndarray] = {}

        def visit(node: int, above: np.ndarray) -> None:
            own = np.tile(np.eye(4), (len(times), 1, 1))
            about = self.json["nodes"][node]
            own[:, :3, 3] = moving.get((node, "translation"), about.get("translation", [0, 0, 0]))
            rotation = moving.get((node, "rotation"), [about.get("rotation", [0, 0, 0, 1])])
            own[:, :3, :3] = Rotation.from_quat(np.array(rotation)).as_matrix()
            world[node] = above @ own
            for child in about.get("children", []):
                visit(child, world[node])

        for root in self.json["scenes"][self.json["scene"]]["nodes"]:
            visit(root, np.tile(np.eye(4), (len(times), 1, 1)))
        (mesh,), (skin,) = self.json["meshes"], self.json["skins"]
        (primitive,) = mesh["primitives"]
        attributes = {name: self.array(at) for name, at in primitive["attributes"].items()}
        binds = self.array(skin["inverseBindMatrices"]).reshape(-1, 4, 4).swapaxes(1, 2)
        maps = np.stack([world[node] for node in skin["joints"]], 1) @ binds
        weights, bones = attributes["WEIGHTS_0"], attributes["JOINTS_0"]
        np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
        each = np.einsum("vk,tvkij->tvij", weights, maps[:, bones])
        rest = np.concatenate([attributes["POSITION"], np.ones((len(weights), 1))], 1)
        names = [node["name"] for node in self.json["nodes"]]
        return (
            times,
            {names[node]: matrix[:, :3, 3] for node, matrix in world.items()},
            np.einsum("tvij,vj->tvi", each, rest)[..., :3],
        )


def test_glb_skins_the_mesh_of_every_frame_of_both_hands(tracked, tmp_path):
    exported = export_labels(str(tracked), str(tmp_path / "glb"), "animated-glb")
    files = files_of(tmp_path / "glb")
    assert exported.hands == 70 and len(files) == 3
    for track_id, is_right in ((0, True), (1, False)):
        path = files[f"two_hands.mp4-track{track_id}.glb"]
        rows = rows_of(tracked, "videos/two hands.mp4", track_id)
        gltf = Gltf(path)
        times, nodes, meshes = gltf.animated()
        wanted_s = np.array([row["frame_time_s"] for row in rows])
        np.testing.assert_allclose(times, wanted_s - wanted_s[0], atol=1e-5)
        assert set(JOINT_NAMES) < set(nodes) and len(meshes) == len(rows)
        for k, row in enumerate(rows):
            # The camera of these labels is a kilometre away: float32 rounds positions there to a millimetre.
            off = nodes["wrist"][k] * CAMERA * 1000
            mesh = meshes[k] * CAMERA * 1000 - off
            np.testing.assert_allclose(off, row["camera"]["cam_t_mm"], rtol=1e-5, atol=0.05)
            vertices = np.array(row["vertices_mm"])
            assert np.abs(mesh - vertices).max() < REGRESSED_MM + 1e-6 * np.abs(off).max()
        extras = gltf.json["meshes"][0]["extras"]
        assert extras["is_right"] is is_right and extras["start_time_s"] == pytest.approx(
            wanted_s[0], abs=1e-6
        )
        assert extras["sequence"] == "videos/two hands.mp4" and extras["track_id"] == track_id


def test_trimesh_reads_the_hand_at_rest_with_its_outside_outside(tracked, tmp_path):
    export_labels(str(tracked), str(tmp_path / "glb"), "animated-glb")
    for path in (tmp_path / "glb").iterdir():
        mesh = trimesh.load(path, force="mesh", process=False)
        assert len(mesh.vertices) == HAND.vertex_count and 1e-4 < mesh.volume < 6e-4
        assert 0.1 < np.ptp(mesh.vertices, axis=0).max() < 0.25
        assert len(np.unique(mesh.visual.vertex_colors[:, :3])) == 1  # labels are painted with one grey


# --- mistakes


def test_sets_without_tracks_or_order_are_refused_in_one_line(labels, tracked, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(UserError, match="holds no tracks, which an animated file needs: give a label set of"):
        export_labels(str(labels), out, "bvh")
    one_file = tmp_path / "together"
    (one_file / "data").mkdir(parents=True)
    write_faces(str(one_file), HAND.faces)
    table = pq.read_table(tracked / "data")
    pq.write_table(table.take(np.arange(len(table)) * 29 % len(table)), one_file / "data" / "shard-0.parquet")
    with pytest.raises(UserError, match="rows of '.*' are not adjacent in .*filtered without --sort"):
        export_labels(str(one_file), out, "bvh")


def test_a_set_sorted_by_std_is_brought_back_into_the_order_of_frames(tracked, tmp_path):
    filter_labels(str(tracked), str(tmp_path / "sorted"), Keep(where="track_id >= 0"), sort=True)
    for name, labels in (("a", tracked), ("b", tmp_path / "sorted")):
        export_labels(str(labels), str(tmp_path / name), "bvh")
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 3
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_filtered_track_keeps_its_times(tracked, tmp_path):
    where = 'source == label and image_uri == "one.mp4" and frame_index != 3'
    exported = export_labels(str(tracked), str(tmp_path / "glb"), "animated-glb", where=where)
    assert exported.hands == 5 and not exported.left_out
    (path,) = (tmp_path / "glb").iterdir()
    np.testing.assert_allclose(np.diff(Gltf(path).animated()[0]), np.array([1, 1, 2, 1]) / RATE_HZ, atol=1e-5)
