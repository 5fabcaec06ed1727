"""Convert public data sets, labels and synthetic photos to training examples: `amvur convert SOURCE OUT`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.storage.files import (
    check_writable,
    is_local,
    join,
    local_path,
    names_in,
    read_whole,
    remove_file,
    write_whole,
)
from trainer.convert.coco import coco_examples
from trainer.convert.cut_out import outlined
from trainer.convert.freihand import freihand_examples
from trainer.convert.ho3d import ho3d_examples
from trainer.convert.labels import label_examples, label_tables, synthetic_tables
from trainer.data.examples import SUMMARY_FILE, UNFINISHED, example_schema, write_examples

#: Kinds of sources; a source is a kind, a colon, and a path or URL.
KINDS = {
    "freihand": "the folder of FreiHAND, which holds training_K.json",
    "ho3d": "the folder of HO3D v2 or v3, which holds train.txt",
    "coco": "a JSON file of 2D hand keypoints in COCO's layout",
    "labels": "a folder that `amvur annotate` or `amvur detect` wrote",
    "synth": "a folder that `amvur synth` wrote",
}
SPLITS = ("train", "evaluation")

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
) -> ConvertSummary:
    """Write the examples of a source to `OUT/data/*.parquet` (`trainer.data.examples`) in shuffled order.

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

    Raises:
        UserError: an invalid argument, or a missing or malformed file; the message names the file and the field.
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
    existing = {name for name in names_in(out) if not name.startswith(".")}
    # A summary left by a conversion without examples does not block a corrected one.
    if existing and not (existing == {SUMMARY_FILE} and read_whole(join(out, SUMMARY_FILE)) == UNFINISHED):
        raise UserError(f"'{out}' is not empty: delete it, or give a new folder")
    split = split or "train"
    path = str(local_path(path).absolute()) if is_local(path) else path
    chance = np.random.default_rng(_SEED)
    rows: Iterator[dict[str, Any] | str]
    hand_id: str | None
    std_note = ""
    if kind in ("labels", "synth"):
        tables = label_tables(path, images, empty) if kind == "labels" else synthetic_tables(path)
        hand_id, vertex_count, std_note = tables.hand, tables.vertex_count, tables.std_note
        rows = label_examples(tables, chance)
    else:
        model = load_hand(hand)
        hand_id, vertex_count = model.id, model.vertex_count
        if kind == "coco":
            rows = coco_examples(path, images, chance)
        else:
            rows = (freihand_examples if kind == "freihand" else ho3d_examples)(path, model, split, chance)
    if outline:
        rows = map(outlined, rows)
    summary = ConvertSummary(source, split, hand_id, std_note=std_note)
    left_out: Counter[str] = Counter()
    check_writable(out)
    # Training refuses an unfinished conversion.
    write_whole(join(out, SUMMARY_FILE), UNFINISHED)
    schema = example_schema(vertex_count, {"hand": hand_id, "source": kind, "split": split})
    summary.examples = write_examples(out, _kept(rows, left_out), schema)
    summary.left_out = dict(left_out.most_common())
    if not summary.examples:
        remove_file(join(out, SUMMARY_FILE))
        why = "; ".join(f"{count}: {reason}" for reason, count in summary.left_out.items())
        hint = "; give the photos' folder as --images" if "photo missing" in left_out else ""
        raise UserError(f"'{source}' gives no examples ({why or 'it is empty'}){hint}")
    write_whole(
        join(out, SUMMARY_FILE), (json.dumps(asdict(summary), indent=2, ensure_ascii=False) + "\n").encode()
    )
    return summary


def _kept(rows: Iterator[dict[str, Any] | str], left_out: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows that are examples, and count the reasons of the others."""
    for row in rows:
        if isinstance(row, str):
            left_out[row] += 1
        else:
            yield {"status": "ok", "hand_index": 0} | row
