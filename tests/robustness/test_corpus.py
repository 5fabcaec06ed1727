"""Label a part of the hostile corpus, and check that wrong rows are found. `run_corpus.py` runs all of it."""

from __future__ import annotations

import pytest

from annotator.job.options import ComputeOptions
from tests.robustness import corpus
from tests.robustness.hostile import Expected, build

pytestmark = pytest.mark.slow

SMALL = ComputeOptions(threads=1, shard_size=64)


def test_every_hostile_input_of_a_part_gets_its_one_right_row(tmp_path, local_ray):
    runs = build(tmp_path / "corpus", every=40)
    wrong = []
    for number, run in enumerate(runs):
        if run.name in ("folder", "list.jsonl", "refused"):
            wrong += corpus.labelled(run, tmp_path / "labels" / str(number), SMALL)
    assert not wrong, corpus.table(runs, wrong)
    assert sum(len(run.expected) for run in runs) > 600


def test_a_wrong_row_is_found():
    def row(**changes: object):
        fine = corpus.Row("ok", None, None, (4, 3), False, True, False)
        return fine._replace(**changes)

    ok = Expected("k", frozenset({"ok"}), (4, 3))
    cut = Expected("k", frozenset({"truncated"}))
    readable = {
        "status": "unreadable",
        "reason": "truncated",
        "error": "cut short",
        "mesh": False,
        "no_mesh": True,
    }
    assert corpus.fault_of([row()], ok) == ""
    assert corpus.fault_of([row(**readable)], cut) == ""
    assert corpus.fault_of([], cut._replace(optional=True)) == ""
    for rows, expected in [
        ([], ok),
        ([row(), row()], ok),
        ([row(mesh=False)], ok),
        ([row(size=(3, 4))], ok),
        ([row(duplicate=True)], ok),
        ([row(error="but")], ok),
        ([row()], cut),
        ([row(**readable | {"reason": "corrupt"})], cut),
        ([row(**readable | {"status": "failed"})], cut),
        ([row(**readable | {"no_mesh": False})], cut),
        ([row(**readable | {"error": "two\nlines"})], cut),
        ([row(**readable | {"error": ""})], cut),
        ([row(**readable), row(**readable)], cut),
    ]:
        assert corpus.fault_of(rows, expected), (rows, expected)
