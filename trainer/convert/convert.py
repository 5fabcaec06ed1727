"""Convert public data sets, labels and synthetic photos to training examples: `amvur convert SOURCE OUT`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.runtime.ordered_tasks import in_order, ray_for_tasks
from annotator.sources.read import REQUESTS_AT_ONCE
from annotator.storage.files import (
    absolute,
    check_writable,
    join,
    names_in,
    read_if_exists,
    remove_file,
    write_atomic,
)
from trainer.convert import coco, labels
from trainer.convert.cut_out import outlined
from trainer.convert.freihand import freihand_examples
from trainer.convert.ho3d import ho3d_examples
from trainer.data.examples import SUMMARY_FILE, UNFINISHED, example_schema, write_examples

#: Kinds of sources; a source is a kind, a colon, and a path or URL.
KINDS = {
    "freihand": "the folder of FreiHAND, which holds training_K.json",
    "ho3d": "the folder of HO3D v2 or v3, which holds train.txt",
    "coco": "a JSON file of 2D hand keypoints in COCO's layout",
    "labels": "a label set",
    "synth": "an output folder of `amvur synth`",
}
SPLITS = ("train", "evaluation")

#: Examples read together, by one task; they wait in memory.
_AT_ONCE = 64

#: Seed of the order of examples: the same source gives the same files.
_SEED = 0


@dataclass
class ConvertSummary:
    """The result of a conversion."""

    source: str
    split: str
    hand: str | None  # id of the model whose meshes these are
    examples: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # reason to count
    std_note: str = ""  # a warning about the std of labels; empty without one


def convert(
    source: str,
    out: str,
    hand: str = "open",
    split: str | None = None,
    images: str | None = None,
    empty: float = 0.0,
    outline: bool = False,
    workers: int | None = None,
    address: str | None = None,
) -> ConvertSummary:
    """Write the examples of a source to `OUT/data/*.parquet` (`trainer.data.examples`) in shuffled order.

    An unfinished conversion is repeated from its start, to the same files.

    Args:
        source: `KIND:PATH`, see `KINDS`.
        out: an empty or new folder, or a URL.
        hand: `open`, or `mano:PATH`: then FreiHAND and HO3D also give meshes and poses. Labels and synthetic photos
            keep the hand they were made with.
        split: `train` (the default) or `evaluation`, for data sets with splits.
        images: folder of the photos, for `coco` and `labels` whose own paths do not lead to them.
        empty: for `labels`: share of photos that also give a square without a hand. The rows of a photo must be
            complete and consecutive, as they were written.
        outline: find each hand's mask by its colour against a plain wall (`trainer.convert.cut_out`).
        workers: maximum of Ray tasks at once that read the photos of `labels`, `synth` and `coco`; default 1, this
            process. `address`: a Ray cluster, as for `annotator.runtime.ray_session.connected`.

    Raises:
        UserError: an invalid argument, or a missing or malformed file; the message names the file and the field.
    """
    kind, _, path = source.partition(":")
    _check_arguments(source, hand, split, images, empty)
    _check_out(out)
    split = split or "train"
    path, images = absolute(path), images and absolute(images)
    opened = _open_source(kind, path, hand, split, images, empty, outline)
    summary = ConvertSummary(source, split, opened.hand, std_note=opened.std_note)
    left_out: Counter[str] = Counter()
    check_writable(out)
    # Training refuses an unfinished conversion.
    write_atomic(join(out, SUMMARY_FILE), UNFINISHED)
    schema = example_schema(opened.vertex_count, {"hand": opened.hand, "source": kind, "split": split})
    as_tasks = opened.photos is not None and workers != 1 and (workers is not None or address is not None)
    with ray_for_tasks(as_tasks, [path, *([images] if images else [])], address):
        examples: Any = opened.rows
        if opened.photos is not None:
            examples = _joined(opened.photos, opened.rows, as_tasks, workers)
        summary.examples = write_examples(out, _kept(examples, left_out), schema)
    summary.left_out = dict(left_out.most_common())
    if not summary.examples:
        remove_file(join(out, SUMMARY_FILE))
        why = "; ".join(f"{count}: {reason}" for reason, count in summary.left_out.items())
        hint = "; give the photos' folder as --images" if "photo missing" in left_out else ""
        raise UserError(f"'{source}' gives no examples ({why or 'it is empty'}){hint}")
    write_atomic(
        join(out, SUMMARY_FILE), (json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n").encode()
    )
    return summary


def _check_arguments(source: str, hand: str, split: str | None, images: str | None, empty: float) -> None:
    """Check the arguments of `convert` against the kind of source.

    Raises:
        UserError: one is invalid, or has no effect on this kind.
    """
    kind, _, path = source.partition(":")
    if kind not in KINDS or not path:
        choices = ", ".join(f"{name}:PATH" for name in KINDS)
        raise UserError(f"'{source}' is not a source of examples: give one of {choices}")
    if split not in (None, *SPLITS):
        raise UserError(f"split is {split!r}, may be {', '.join(SPLITS)}")
    if images and kind not in ("coco", "labels"):
        raise UserError(f"images only applies to coco and labels: leave it out for {kind}")
    if hand != "open" and kind in ("labels", "synth"):
        raise UserError(f"{kind} keeps the hand it was made with: leave out hand '{hand}'")
    if empty and kind != "labels":
        raise UserError(
            f"empty only applies to labels, which locate the hands of a photo: leave it out for {kind}"
        )
    if not 0 <= empty <= 1:
        raise UserError(f"empty is {empty}, must be a share from 0 to 1")


def _open_source(
    kind: str, path: str, hand: str, split: str, images: str | None, empty: float, outline: bool
) -> _Source:
    """Open a source; the arguments are those of `convert`, with absolute paths."""
    chance = np.random.default_rng(_SEED)
    if kind in ("labels", "synth"):
        tables = (
            labels.label_tables(path, images, empty) if kind == "labels" else labels.synthetic_tables(path)
        )
        photos = _Photos(labels.label_example, tables, outline)
        rows: Iterable[Any] = labels.label_rows(tables, chance)
        return _Source(rows, photos, tables.hand, tables.vertex_count, tables.std_note)
    model = load_hand(hand)
    if kind == "coco":
        rows = coco.coco_rows(path, chance)
        photos = _Photos(coco.coco_example, coco.photo_folders(path, images), outline)
        return _Source(rows, photos, model.id, model.vertex_count)
    rows = (freihand_examples if kind == "freihand" else ho3d_examples)(path, model, split, chance)
    return _Source(map(outlined, rows) if outline else rows, None, model.id, model.vertex_count)


def _check_out(out: str) -> None:
    """Check that the folder is new, empty, or left by an unfinished conversion, whose files are removed."""
    existing = {name for name in names_in(out) if not name.startswith(".")}
    if not existing:
        return
    parts = names_in(join(out, "data")) if "data" in existing else set()
    is_unfinished = read_if_exists(join(out, SUMMARY_FILE)) == UNFINISHED
    if not is_unfinished or existing - {SUMMARY_FILE, "data"} or any(map(_is_other, parts)):
        raise UserError(f"'{out}' is not empty: delete it, or give a new folder")
    for name in parts:
        remove_file(join(out, "data", name))


def _is_other(name: str) -> bool:
    return not (name.startswith("part-") and name.endswith(".parquet")) and not name.startswith(".")


@dataclass(frozen=True)
class _Photos:
    """Joins rows with their photos; pickled to other processes."""

    read: Callable[[Any, Any], dict[str, Any] | str]  # shared argument, row -> example, or why it is left out
    shared: Any
    outline: bool

    def join(self, rows: list[Any]) -> list[dict[str, Any] | str]:
        """Read the photos, several at once, because stores answer slowly."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return list(pool.map(self._example, rows))

    def _example(self, row: Any) -> dict[str, Any] | str:
        example = row if isinstance(row, str) else self.read(self.shared, row)
        return outlined(example) if self.outline else example


@dataclass(frozen=True)
class _Source:
    """An open source: its rows in shuffled order, and the hand model of its meshes."""

    rows: Iterable[Any]
    photos: _Photos | None  # to join with the rows; None if the rows have them
    hand: str | None  # id
    vertex_count: int
    std_note: str = ""


def _joined(
    photos: _Photos, rows: Iterable[Any], as_tasks: bool, workers: int | None
) -> Iterator[dict[str, Any] | str]:
    rest = iter(rows)
    some = ((part,) for part in iter(lambda: list(islice(rest, _AT_ONCE)), []))
    for examples in in_order(_Photos.join, photos, some, as_tasks, workers):
        yield from examples


def _kept(rows: Iterator[dict[str, Any] | str], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows that are examples, and count the reasons of the others."""
    for row in rows:
        if isinstance(row, str):
            left_out[row] += 1
        else:
            yield {"status": "ok", "hand_index": 0} | row
