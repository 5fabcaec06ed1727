from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from annotator.errors import UserError
from annotator.hand import anatomy, load_hand
from tests.support.example_files import stick_photo, write_stick_hands
from trainer.batch import Batch, withhold
from trainer.config import SourceConfig, TrainConfig
from trainer.data.examples import example_schema, write_examples
from trainer.data.steps import Steps, shares
from trainer.data.stored import StoredExamples

HAND = load_hand("open")


@pytest.fixture(scope="module")
def sticks(tmp_path_factory):
    return str(write_stick_hands(tmp_path_factory.mktemp("sticks"), 130))


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,500 examples in 47 row groups; the joints encode the number of each."""
    folder = tmp_path_factory.mktemp("many")
    rows = (
        {
            "image": stick_photo(np.full((21, 2), 5.0), 10, 10),
            "is_right": True,
            "width": 10,
            "height": 10,
            "joints3d_mm": np.full((21, 3), i),
        }
        for i in range(1500)
    )
    write_examples(str(folder), rows, example_schema(HAND.vertex_count, {"hand": HAND.id}))
    return str(folder)


def numbers(batch) -> list[int]:
    return batch.joints3d_mm[:, 0, 0].int().tolist()


def source(url: str, **settings) -> StoredExamples:
    return StoredExamples(url, HAND, 32, SourceConfig(source=url, **settings), seed=1)


@pytest.mark.slow
def test_all_examples_are_read_equally_often_in_a_new_order_per_epoch(many):
    stored = source(many)
    assert (len(stored), stored.lanes) == (1500, 48)
    # Lanes have 31 or 32 rows: after 31 rounds nearly all are read once, after 62 twice.
    rounds = [numbers(stored.batch(range(k * 48 * 31, (k + 1) * 48 * 31))) for k in (0, 1)]
    counts = np.bincount(rounds[0] + rounds[1], minlength=1500)
    assert len(set(rounds[0])) == 48 * 31
    assert set(counts) <= {1, 2} and (counts == 2).mean() > 0.95
    firsts = [[part[i] for i in range(0, len(part), 48)] for part in rounds]
    assert firsts[0] != firsts[1] and firsts[0] != sorted(firsts[0])


@pytest.mark.parametrize("count", [1, 7, 49, 130, 1025])
def test_lanes_hold_every_row_once(many, count):
    stored = source(many, count=count)
    rows = [
        (piece.file, piece.group, row)
        for lane in range(stored.lanes)
        for piece in stored._pieces(lane)
        for row in range(piece.start, piece.stop)
    ]
    sizes = [sum(map(len, stored._pieces(lane))) for lane in range(stored.lanes)]
    assert len(rows) == len(set(rows)) == count
    assert max(sizes) - min(sizes) <= 1


def test_an_example_depends_on_its_number_alone(many):
    one, other = source(many), source(many)
    for number in (700, 3, 2222):
        other.batch([number])
    assert numbers(one.batch([5, 29, 4000])) == numbers(other.batch([5, 29, 4000]))


@pytest.mark.slow
def test_workers_share_a_step_and_read_only_their_own_row_groups(many, monkeypatch):
    monkeypatch.setattr("trainer.data.stored.LANES", 6)
    config = TrainConfig(data=(SourceConfig(source=many),), batch_size=48)
    read = []
    original = StoredExamples._rows
    monkeypatch.setattr(
        StoredExamples, "_rows", lambda self, *group: (read.append(group), original(self, *group))[1]
    )
    groups, parts = [], []
    for rank in range(2):
        read.clear()
        steps = Steps(config, HAND, rank, 2)
        parts.append([steps[s][0] for s in range(31)])
        groups.append(set(read))
    alone = Steps(config, HAND)
    for step in range(31):
        whole, both = alone[step][0], Batch.join([part[step] for part in parts])
        pairs = [sorted(zip(batch.key.tolist(), numbers(batch), strict=True)) for batch in (whole, both)]
        assert pairs[0] == pairs[1]
    # All 47 are read; both workers read only those at the five edges between lanes.
    assert len(groups[0] | groups[1]) == 47
    assert len(groups[0] & groups[1]) <= 5


def test_a_row_group_is_read_once_for_all_its_rows(many, monkeypatch):
    read = []
    original = StoredExamples._rows
    monkeypatch.setattr(
        StoredExamples, "_rows", lambda self, *group: (read.append(group), original(self, *group))[1]
    )
    stored = source(many)
    stored.batch(range(48 * 20))
    assert len(read) == len(set(read))
    assert len(stored._held) <= stored.lanes + 1


def test_small_collections_are_shared_by_rows(sticks):
    config = TrainConfig(data=(SourceConfig(source=sticks),), batch_size=10)
    sizes = [len(Steps(config, HAND, rank, 2)[0][0]) for rank in range(2)]
    assert sizes == [5, 5]


def test_a_window_excludes_other_examples(many):
    stored = source(many, first=100, count=150)
    assert len(stored) == 150
    seen = {n for batch, _ in stored.in_order(32) for n in numbers(batch)}
    assert seen == set(range(100, 250))


def test_left_hands_arrive_as_right_ones(sticks):
    rights = pq.read_table(sticks, columns=["is_right"])["is_right"].to_pylist()
    assert {True, False} == set(rights)
    batch, _ = next(source(sticks).in_order(130))
    signs = anatomy.chirality(batch.joints3d_mm.numpy())
    assert (signs > 0).all()


def test_labels_lie_on_the_pixels_of_the_crop(sticks):
    batch, _ = next(source(sticks).in_order(130))
    red = (batch.image[:, 0].float() - batch.image[:, 1].float()).clamp(min=0) ** 2
    red = torch.where(red > 6000, red, 0)
    size = batch.image.shape[-1]
    at = (torch.arange(size) * 2 + 1) / size - 1
    found = torch.stack([(red.sum(1) * at).sum(1), (red.sum(2) * at).sum(1)], 1) / red.sum((1, 2))[:, None]
    error_px = (found - batch.joints2d[:, 8]).norm(dim=1) * size / 2
    assert error_px.median() < 0.5
    # 2D is the projection of 3D: one scale and shift per example.
    for i in range(0, 130, 10):
        design = np.stack([batch.joints3d_mm[i, :, 0], np.ones(21)], 1)
        _, rest, *_ = np.linalg.lstsq(design, batch.joints2d[i, :, 0].numpy(), rcond=None)
        assert rest < 1e-5


def test_targets_can_be_withheld(sticks):
    batch = source(sticks, targets=("joints2d",)).batch([0, 1])
    assert batch.has_joints2d.all()
    assert not batch.has_joints3d.any() and not batch.has_vertices.any()
    assert (batch.joints3d_mm == 0).all() and (batch.vertices_mm == 0).all()
    assert (withhold(batch, ()).joints2d == 0).all()


def test_meshes_of_another_hand_model_are_left_out(sticks):
    other = replace(HAND, name="other")
    batch = StoredExamples(sticks, other, 32, SourceConfig(source=sticks), seed=0).batch([0])
    assert batch.has_joints3d.all() and not batch.has_vertices.any()


def test_an_unreadable_photo_has_no_targets(tmp_path):
    row = {"image": b"no photo", "is_right": True, "width": 10, "height": 10, "joints3d_mm": np.ones((21, 3))}
    write_examples(str(tmp_path), [row], example_schema(HAND.vertex_count, {"hand": HAND.id}))
    batch = source(str(tmp_path)).batch([0])
    assert not (batch.has_joints2d.any() or batch.has_joints3d.any() or batch.hand_mask.any())


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: None, "holds no examples"),
        (
            lambda folder: (folder / "data").mkdir() or (folder / "data/a.parquet").write_bytes(b"no"),
            "damaged",
        ),
        (
            lambda folder: (
                (folder / "data").mkdir() or pq.write_table(pa.table({"a": [1]}), folder / "data/a.parquet")
            ),
            "missing column 'image'",
        ),
    ],
)
def test_wrong_collections_are_named(tmp_path, make, says):
    make(tmp_path)
    with pytest.raises(UserError, match=says):
        source(str(tmp_path))


def test_examples_of_an_earlier_schema_are_refused(tmp_path):
    """Schema 1 had 3D labels in crop axes; treated as camera axes they would be rotated twice."""
    folder = write_stick_hands(tmp_path / "old", 4)
    path = next((folder / "data").iterdir())
    table = pq.read_table(path)
    facts = json.loads(table.schema.metadata[b"amvur"]) | {"schema_version": 1}
    pq.write_table(table.replace_schema_metadata({"amvur": json.dumps(facts)}), path)
    with pytest.raises(
        UserError, match="examples of label schema 1, but amvur reads schema 2: convert them again"
    ):
        source(str(folder))


def test_shares_add_up():
    assert shares(32, [1, 1, 1]) in ([11, 11, 10], [11, 10, 11], [10, 11, 11])
    assert shares(10, [3, 1]) in ([8, 2], [7, 3])
    assert sum(shares(33, [0.2, 5, 1.7])) == 33


@pytest.mark.slow
def test_hands_drawn_later_equal_those_drawn_at_once():
    config = TrainConfig(data=(SourceConfig(count=5), SourceConfig(targets=("joints2d",))), batch_size=6)
    config = replace(config, network=replace(config.network, crop_px=32))
    at_once, later = Steps(config, HAND), Steps(config, HAND, draw_later=True)
    orders = later[2]
    assert [order.numbers for order in orders] == [[6, 7, 8]] * 2
    for a, b in zip(at_once[2], later.filled(orders, torch.device("cpu")), strict=True):
        for name, values in vars(a).items():
            assert torch.equal(values, getattr(b, name)), name
