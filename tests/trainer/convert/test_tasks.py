"""Conversion as Ray tasks: the same files as in one process; an interrupted one is repeated to the same files."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from annotator.errors import UserError
from annotator.export import export_labels
from trainer.convert import convert as conversion
from trainer.convert.convert import convert
from trainer.data.examples import UNFINISHED
from trainer.synth import write_photos

READ = conversion._Photos.join


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "hands"
    write_photos(folder, 20, seed=2, size_px=64)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["synth", "coco", "labels"])
def test_tasks_write_the_same_files(kind, drawn, labelled, photos, local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_AT_ONCE", 3)
    if kind == "coco":
        export_labels(str(labelled[0]), str(tmp_path / "hands.json"), "coco")
        source, options = f"coco:{tmp_path / 'hands.json'}", {"images": str(photos)}
    else:
        source = f"synth:{drawn}" if kind == "synth" else f"labels:{labelled[0]}"
        options = {"outline": kind == "labels"}
    mark = tmp_path / "died"

    def dying_once(job: conversion._Photos, rows: list[Any]) -> list[Any]:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return READ(job, rows)

    one = convert(source, str(tmp_path / "one"), **options)
    monkeypatch.setattr(conversion._Photos, "join", dying_once)
    many = convert(source, str(tmp_path / "many"), workers=2, **options)
    assert mark.exists()
    assert one == many and one.examples
    assert contents(tmp_path / "one") == contents(tmp_path / "many")


def test_an_interrupted_conversion_is_repeated(drawn, tmp_path, monkeypatch):
    out = tmp_path / "out"
    convert(f"synth:{drawn}", str(tmp_path / "whole"))
    convert(f"synth:{drawn}", str(out))
    whole = contents(out)
    # As a killed process leaves it: an older part beyond those of the repetition, too.
    (out / "_convert.json").write_bytes(UNFINISHED)
    (out / "data" / "part-000007.parquet").write_bytes(b"of the first try")
    convert(f"synth:{drawn}", str(out))
    assert contents(out) == whole == contents(tmp_path / "whole")
    assert json.loads((out / "_convert.json").read_text())["examples"] == 20
    with pytest.raises(UserError, match="is not empty: delete it"):
        convert(f"synth:{drawn}", str(out))
    (out / "_convert.json").write_bytes(UNFINISHED)
    (out / "data" / "mine.parquet").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not empty: delete it"):
        convert(f"synth:{drawn}", str(out))
    assert (out / "data" / "mine.parquet").read_bytes() == b"mine"
