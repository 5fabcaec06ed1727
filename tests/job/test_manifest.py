"""The manifest over runs that are killed at any point, against a plain list of planned entries."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotator.errors import UserError
from annotator.job.manifest import (
    PART_ENTRIES,
    PART_SHARDS,
    DoneShards,
    Manifest,
    PlannedShard,
    shard_file_name,
)
from annotator.sources import FolderSource, ListSource, Source
from annotator.sources.entry import Camera, Entry, Fault, ListedHand
from tests.sources.test_containers import tar_of


class Numbers(Source):
    """Entries by number; `kind` is the position of new ones."""

    place = "numbers"

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self.numbers = numbers

    def key(self, entry: Entry) -> tuple[Any, ...]:
        return (entry.order,)

    def __iter__(self) -> Iterator[Entry]:
        return (Entry(f"/p/{n}.jpg", f"{n}.jpg", order=n) for n in self.numbers)


def finish(labels: Path, shard: PlannedShard) -> None:
    """Write the label file of a shard."""
    (labels / "data").mkdir(exist_ok=True)
    (labels / "data" / shard_file_name(shard.number)).touch()


def run(labels: Path, source: Source, size: int, kill_after: int | None = None) -> list[PlannedShard]:
    """Run as `annotator.job.run` does, stop after some shards, and return the planned shards."""
    done, manifest = DoneShards(str(labels)), Manifest(str(labels))

    def planned() -> Iterator[PlannedShard]:
        yield from manifest.pending(done)
        yield from manifest.new(source, size)

    return list(islice(planned(), kill_after))


RUN = st.tuples(
    st.integers(1, 7),  # shard size
    st.none() | st.integers(0, 12),  # killed after
    st.sets(st.integers(0, 60), max_size=25),  # entries that came since
    st.sets(st.integers(0, 12)),  # of the shards given, those that were done
)


@pytest.mark.slow
@settings(deadline=None, max_examples=120)
@given(st.lists(RUN, min_size=1, max_size=6), st.booleans())
def test_every_entry_is_in_one_shard_for_good_however_runs_end(runs, at_the_end_only):
    with tempfile.TemporaryDirectory() as name:
        labels = Path(name)
        numbers: list[int] = []
        shards: dict[int, list[str]] = {}
        done: set[int] = set()
        for size, kill_after, more, finished in [*runs, (3, None, set(), set())]:
            if at_the_end_only:
                numbers = [*numbers, *range(len(numbers), len(numbers) + len(more))]
            else:
                numbers = sorted({*numbers, *more})
            given = run(labels, Numbers(numbers), size, kill_after)
            assert done.isdisjoint(shard.number for shard in given)
            for place, shard in enumerate(given):
                ids = [entry.id for entry in shard.entries]
                assert shards.setdefault(shard.number, ids) == ids
                if place in finished:
                    finish(labels, shard)
                    done.add(shard.number)
            manifest = Manifest(str(labels))
            noted = {shard.number: [entry.id for entry in shard.entries] for shard in manifest.all()}
            assert noted.items() >= shards.items() and list(noted) == list(range(len(noted)))
            assert manifest.shard_count == len(noted) and set(DoneShards(str(labels))) == done
            assert dict(manifest.counts()) == {number: len(ids) for number, ids in noted.items()}
            assert manifest.shard_count == len(noted)  # however often it is counted
            shards = noted
        everything = [name for ids in shards.values() for name in ids]
        assert sorted(everything) == sorted(f"{n}.jpg" for n in numbers)
        assert list(Manifest(str(labels)).unplanned(Numbers(numbers))) == []
        names = sorted(path.name for path in (labels / "_entries").iterdir()) if shards else []
        assert [int(name[10:16]) for name in names] == list(range(len(names)))
        # An entry missing from the source keeps its row, and nothing else is planned.
        assert run(labels, Numbers(numbers[::2]), 3) == run(labels, Numbers([]), 3)


def test_work_starts_with_the_first_shard_and_parts_stay_small(tmp_path):
    asked = 0

    class Slow(Numbers):
        def __iter__(self):
            nonlocal asked
            for entry in super().__iter__():
                asked += 1
                yield entry

    manifest = Manifest(str(tmp_path))
    list(manifest.pending(DoneShards(str(tmp_path))))
    shards = manifest.new(Slow(list(range(1000))), 4)
    assert [entry.order for entry in next(shards).entries] == [0, 1, 2, 3] and asked == 4
    list(shards)
    lines = [path.read_bytes().count(b"\n") for path in sorted((tmp_path / "_entries").iterdir())]
    assert lines[:4] == [1, 2, 4, 8] and max(lines) == PART_SHARDS and sum(lines) == 250
    assert set(lines[4:-1]) == {PART_SHARDS}
    large = Manifest(str(tmp_path / "large"))
    list(large.new(Numbers(list(range(3 * PART_ENTRIES))), PART_ENTRIES))
    assert len(list((tmp_path / "large/_entries").iterdir())) == 3


def test_the_numbers_of_generations_and_parts_have_no_end(tmp_path):
    first = run(tmp_path, Numbers([0]), 1)
    (tmp_path / "_entries/part-0000-000000.jsonl").rename(tmp_path / "_entries/part-9999-000000.jsonl")
    assert [s.number for s in run(tmp_path, Numbers([0, 1]), 1)] == [0, 1]
    assert [s.number for s in run(tmp_path, Numbers([0, 1, 2]), 1)] == [0, 1, 2] and len(first) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a\nb\nc", "a\nx\nc"),
        ("a\nb", "b"),
        ("a\nb\nc", "a\nc"),
        ("a\nb", "0\na\nb"),
        ("a\nb", "a\nb.jpg\nc"),
    ],
)
def test_a_list_that_changed_is_refused_and_one_that_grew_is_not(tmp_path, before, after):
    path, labels = tmp_path / "l.txt", tmp_path / "labels"
    path.write_text(before)
    run(labels, ListSource(str(path)), 2)
    path.write_text(f"{before}\nmore")
    assert [e.id for s in run(labels, ListSource(str(path)), 2)[-1:] for e in s.entries] == [
        f"{before.count(chr(10)) + 1}:more"
    ]
    path.write_text(after)
    with pytest.raises(
        UserError, match="has changed: its entry . was .* and is now .*; only append"
    ) as raised:
        run(labels, ListSource(str(path)), 2)
    assert "\n" not in str(raised.value)


def test_a_file_of_photos_that_is_whole_or_away_another_day(tmp_path):
    """Unreadable entries have a row with the reason; once readable, they get new rows, once."""
    photos, labels = tmp_path / "photos", tmp_path / "labels"
    photos.mkdir()
    tar = photos / "t.tar"
    (photos / "z.jpg").touch()
    whole = tar_of([(f"{n}.jpg", b"x" * 600) for n in range(4)])
    two = whole[: 2 * 1536]
    seen: list[str] = []
    for data, new in (
        (two, ["t.tar#0.jpg", "t.tar#1.jpg", "t.tar", "z.jpg"]), (two, []), (whole, ["t.tar#2.jpg", "t.tar#3.jpg"]),
        (b"", []), (whole, []), (two, []),
    ):  # fmt: skip
        tar.write_bytes(data)
        planned = [e.id for shard in run(labels, FolderSource(str(photos)), 2) for e in shard.entries]
        assert planned[len(seen) :] == new
        seen += new
    tar.write_bytes(tar_of([("3.jpg", b"1"), ("0.jpg", b"2")]))
    with pytest.raises(UserError, match="has changed"):
        run(labels, FolderSource(str(photos)), 2)


def refused(labels: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        run(labels, Numbers(list(range(40))), 2)
    assert "\n" not in str(raised.value)


def test_a_part_that_is_damaged_or_missing_is_refused(tmp_path):
    for shard in run(tmp_path, Numbers(list(range(40))), 2):
        finish(tmp_path, shard)
    parts = sorted((tmp_path / "_entries").iterdir())
    for part in parts:
        data = part.read_bytes()
        part.unlink()
        refused(tmp_path, "is missing: give|but is missing in")
        first, *more = data.splitlines(keepends=True)
        damages = [b"", data[:-1], data[:-2] + b"\n", b"\n" + data, data * 2, b"".join(more), b"{}\n"]
        damages += [first.replace(b'"shard":', b'"shard":9'), data[: len(data) // 2]]
        for damaged in damages:
            part.write_bytes(damaged)
            refused(tmp_path, "is damaged|but is missing in")
        part.write_bytes(data)
    assert run(tmp_path, Numbers(list(range(40))), 2) == []


def test_entries_that_are_none_are_refused_when_they_are_needed(tmp_path):
    run(tmp_path, Numbers([0, 1]), 2)
    (part,) = (tmp_path / "_entries").iterdir()
    line = part.read_text()
    good = json.loads(line)["entries"]
    for entries in (
        [1, 2],
        [["a"], ["b"]],
        ["x", "y"],
        good[:1],
        [{**good[0], "what": 1}, good[1]],
        [{}, {}],
    ):
        part.write_text(f'{{"shard":0,"count":2,"entries":{json.dumps(entries, separators=(",", ":"))}}}\n')
        refused(tmp_path, "is damaged")
    part.write_bytes(line.encode().replace(b"0.jpg", b"\xff.jpg"))
    refused(tmp_path, "is damaged")


def test_a_label_file_that_no_run_made_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("shard-1.parquet", "mine.parquet"):
        (tmp_path / "data" / name).touch()
        refused(tmp_path, "which is not a label file")
        (tmp_path / "data" / name).unlink()
    (tmp_path / "data" / ".unfinished.parquet").touch()
    (tmp_path / "data" / shard_file_name(3)).touch()
    refused(tmp_path, "shard 3 has labels but is missing in")


TEXT = st.text(st.characters(), max_size=8)
NUMBER = st.floats(allow_nan=False) | st.floats(width=32, allow_nan=False)
HAND = st.builds(
    ListedHand,
    box_xyxy=st.none() | st.tuples(*[NUMBER] * 4),
    right_score=st.none() | st.floats(0, 1),
    landmarks=st.none() | st.lists(st.tuples(*[NUMBER] * 3), max_size=3).map(tuple),
    detection_score=st.none() | st.floats(0, 1),
)  # fmt: skip
ENTRY = st.builds(
    Entry,
    path=TEXT,
    id=TEXT,
    order=st.integers(0, 1 << 62),
    inside=st.none() | TEXT,
    at=st.lists(st.integers(-(1 << 62), 1 << 62), max_size=3).map(tuple),
    frame_index=st.none() | st.integers(0, 9),
    frame_time_s=st.none() | st.floats(0, 1e9),
    hands=st.none() | st.lists(HAND, max_size=3).map(tuple),
    focal_px=st.none() | st.floats(0, 1e9),
    camera=st.none() | st.builds(
        Camera,
        *[st.floats(1, 1e6)] * 4,
        model=st.sampled_from(["pinhole", "fisheye"]),
        distortion=st.lists(NUMBER, max_size=14).map(tuple),
    ),
    duplicate=st.booleans(),
    fault=st.none() | st.builds(Fault, TEXT, TEXT),
    extra=st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(0, (1 << 64) - 1) | NUMBER | TEXT, max_size=3),
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(ENTRY, min_size=1, max_size=4))
def test_entries_come_back_as_they_were(entries):
    class These(Numbers):
        def __iter__(self):
            return iter(entries)

    with tempfile.TemporaryDirectory() as labels:
        run(Path(labels), These([]), 3)
        assert [entry for shard in run(Path(labels), Numbers([]), 3) for entry in shard.entries] == entries


def test_what_is_no_number_comes_back_too():
    (entry,) = [Entry.from_json(json.loads(json.dumps(Entry("a", "a", extra={"x": math.nan}).to_json())))]
    assert math.isnan(entry.extra["x"])
