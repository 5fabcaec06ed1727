"""Loaders read each their own part of the files, and batches do not depend on their number."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, replace
from multiprocessing import get_context

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from annotator.hand import load_hand
from tests.robustness.hostile_photos import encoded
from tests.support.counted_files import NOTES, count_reads, reads_of_processes
from tests.support.example_files import write_stick_hands
from trainer.batch import Batch
from trainer.config import SourceConfig, TrainConfig
from trainer.data import examples
from trainer.data.examples import example_schema, write_examples
from trainer.data.loaders import read_steps
from trainer.data.steps import DeferredExamples, Steps
from trainer.data.stored import LANES, StoredExamples

HAND = load_hand("open")
SIDE_PX = 210  # of noise, so 130 kB as PNG
BATCH, STEPS = 24, 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two row groups of two large photos per lane: one epoch is `STEPS` batches."""
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH * STEPS, SIDE_PX, SIDE_PX, 3), np.uint8)
    rows = (
        {
            "status": "ok",
            "image": encoded(pixels[i], "PNG"),
            "is_right": True,
            "width": SIDE_PX,
            "height": SIDE_PX,
            "joints3d_mm": np.full((21, 3), i),
        }
        for i in range(BATCH * STEPS)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "GROUP", 2)
        write_examples(str(folder), rows, example_schema(HAND.vertex_count, {"hand": HAND.id}))
    return folder


@pytest.fixture(scope="module")
def sticks(tmp_path_factory):
    return write_stick_hands(tmp_path_factory.mktemp("sticks"), 30)


def config_for(*sources: SourceConfig, **settings) -> TrainConfig:
    config = TrainConfig(data=sources, batch_size=BATCH, steps=STEPS, **settings)
    return replace(config, network=replace(config.network, crop_px=32))


def same(one: Batch | DeferredExamples, other: Batch | DeferredExamples) -> bool:
    if isinstance(one, DeferredExamples):
        return one.numbers == other.numbers and torch.equal(one.key, other.key)
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch))


def check_equal(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        assert [same(a, b) for a, b in zip(one, other, strict=True)] == [True] * len(one) != []


def in_own_process(function, *arguments):
    """Call a function of this module in a new process, as a training has it; a crash there fails the test alone."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def check_one_epoch(data: Steps) -> int:
    """Check that loaders read one epoch as this process does alone; return the id of this process."""
    alone = [data[step] for step in range(STEPS)]
    numbers = sorted(n for (batch,) in alone for n in batch.joints3d_mm[:, 0, 0].tolist())
    assert numbers == [*range(BATCH * STEPS)]
    check_equal(read_steps(data, 0), alone)
    return os.getpid()


def check_resumed(config: TrainConfig) -> None:
    """Check that reading from step 5 on gives the steps of the whole run, with and without loaders."""
    whole = [Steps(config, HAND)[k] for k in range(STEPS)]
    check_equal(read_steps(Steps(config, HAND), 5), whole[5:])
    check_equal(read_steps(Steps(replace(config, loaders=0), HAND), 5), whole[5:])


@pytest.mark.slow
def test_processes_together_read_each_row_group_once(photos, tmp_path, monkeypatch):
    """In one epoch, by a file system that notes every read. Only footers are read by each process."""
    count_reads(tmp_path / "package", monkeypatch)
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv(NOTES, str(notes))
    loaders = 3
    data = Steps(config_for(SourceConfig(source=f"counted://{photos}"), loaders=loaders), HAND)
    own_pid = in_own_process(check_one_epoch, data)
    groups = [
        (path.name, g, _middle(footer.row_group(g).column(footer.schema.names.index("image"))))
        for path in (photos / "data").iterdir()
        for footer in [pq.read_metadata(path)]
        for g in range(footer.num_row_groups)
    ]
    assert len(groups) == 2 * LANES
    reads = reads_of_processes(notes)
    read = {
        pid: [
            (name, g)
            for name, g, middle in groups
            if any(name == file and start <= middle < end for file, start, end in found)
        ]
        for pid, found in reads.items()
    }
    here = read.pop(own_pid)
    assert [len(part) for part in read.values()] == [2 * LANES // loaders] * loaders
    assert sorted(group for part in read.values() for group in part) == here
    of_one, *of_others = (sum(end - start for _, start, end in reads[pid]) for pid in (own_pid, *read))
    assert sum(of_others) < 1.1 * of_one


def _middle(chunk: pq.ColumnChunkMetaData) -> int:
    """A byte in the middle of a chunk. Readers of its neighbours fetch at most 128 KiB ahead, so never this byte."""
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return start + chunk.total_compressed_size // 2


@pytest.mark.slow
def test_a_resumed_run_reads_the_same_batches_with_other_loaders(photos):
    in_own_process(check_resumed, config_for(SourceConfig(source=str(photos)), loaders=2))


@pytest.mark.slow
@pytest.mark.parametrize("draw_later", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_parts_of_any_number_of_loaders_are_the_step(photos, sticks, workers, draw_later):
    """Each loader has its own copy of the data, and none has read the steps before."""
    sources = SourceConfig(source=str(photos), share=2), SourceConfig(source=str(sticks))
    config = config_for(*sources, *([SourceConfig()] if draw_later else []))
    for rank in range(workers):
        for loaders in (2, 4, 5, 30):
            one = Steps(config, HAND, rank, workers, draw_later)
            own = [Steps(config, HAND, rank, workers, draw_later) for _ in range(loaders)]
            for step in (3, 4, 100):
                parts = [data.part(step, k, loaders) for k, data in enumerate(own)]
                check_equal([one.joined(step, parts)], [one[step]])


def test_a_loader_holds_the_row_groups_of_its_own_lanes(photos):
    config = config_for(SourceConfig(source=str(photos)))
    data = Steps(config, HAND)
    for step in range(2 * STEPS):
        data.part(step, 1, 4)
    (stored,) = data._opened.values()
    assert isinstance(stored, StoredExamples)
    assert len(stored._order) == LANES // 4
    assert len(stored._held) <= LANES // 4 + 1
