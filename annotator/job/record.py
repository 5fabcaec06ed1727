"""`_run.json`: with which settings a label folder is made, and what became of its photos so far.

A folder holds labels of one kind. Its settings are written before the first label; a run with others is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from annotator.errors import UserError
from annotator.job.lease import FILE as LEASE_FILE
from annotator.storage.files import join, names_in, read_whole, write_whole

FILE = "_run.json"


@dataclass(frozen=True)
class RunSettings:
    """Whatever changes a label; two runs into one folder must agree in all of it."""

    schema_version: int
    source: str
    checkpoint: str  # id
    trained_steps: int
    hand: str  # id
    vertex_count: int
    side: str
    crop_px: int
    detector: str | None = None  # id; none: each photo is the crop around one hand
    max_hands: int = 1
    search: str = "quick"  # of the detector
    every: int = 1  # of a video's frames
    boxes: str | None = None  # where the hands are listed
    boxes_normalised: bool = False  # whether as fractions of the photo
    samples: int = 0  # meshes drawn for each hand
    hand_length_mm: float | None = None  # of every hand; None: predicted


@dataclass(frozen=True)
class FitSettings:
    """Likewise of `amvur fit`."""

    schema_version: int
    source: str  # where the photos are
    landmarks: str  # where the landmarks are
    checkpoint: str  # id of the fit
    hand: str  # id
    vertex_count: int
    config: dict[str, Any]  # of `FitConfig`


@dataclass(frozen=True)
class TrackSettings:
    """Likewise of `amvur track`."""

    schema_version: int
    source: str  # where the photos are
    tracked_labels: str  # the label set whose hands were joined
    checkpoint: str  # id of those labels
    hand: str  # id
    vertex_count: int
    max_gap: int  # frames that a hand may be missing for
    tracker: int  # version of the method


#: Every kind of job has settings of its own.
Settings = TypeVar("Settings")


@dataclass
class RunRecord(Generic[Settings]):
    """Settings and outcomes of a label folder."""

    settings: Settings
    outcomes: dict[str, int] = field(default_factory=dict)  # rows by "ok" or "status: reason"
    skipped_files: int = 0  # files of the source that are no photos
    skipped_names: list[str] = field(default_factory=list)  # the first few of them
    failed: list[list[str]] = field(default_factory=list)  # the first few that failed: uri, error
    #: How often something was asked again, by what had come first, over all runs.
    retries: dict[str, int] = field(default_factory=dict)
    relabelled: list[dict[str, str]] = field(default_factory=list)  # what rows were done again, by whom
    filtered: list[dict[str, Any]] = field(default_factory=list)  # what `amvur filter` kept of it
    seconds: float = 0.0  # of labelling, start-up left out, over all runs

    @property
    def photos(self) -> int:
        """How many photos have a row."""
        return sum(self.outcomes.values())


def read_run_record(labels: str, kind: type[Settings]) -> RunRecord[Settings] | None:
    """The record of a label folder, None where the folder is empty or does not exist.

    Raises:
        UserError: the folder holds something else, another kind of labels, or labels of a newer schema.
    """
    data = read_whole(join(labels, FILE))
    if data is None:
        # A killed run's unfinished files, and those that file managers leave, start with a dot.
        if any(not name.startswith(".") for name in names_in(labels) - {"faces.parquet", LEASE_FILE}):
            raise UserError(
                f"'{labels}' holds something that is not a label set: give an empty or a new folder"
            )
        return None
    try:
        values: dict[str, Any] = json.loads(data)
        settings = kind(**values.pop("settings"))
        return RunRecord(settings, **values)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"'{labels}' was made by another command or another version of amvur, or its {FILE} is damaged: "
            "give a new folder"
        ) from None


def read_mesh_record(labels: str) -> RunRecord[Any] | None:
    """The record of a label folder with meshes: its settings are `RunSettings`, `FitSettings` or `TrackSettings`.

    Raises:
        UserError: as for `read_run_record`.
    """
    data = read_whole(join(labels, FILE)) or b""
    if b'"tracked_labels"' in data:
        return read_run_record(labels, TrackSettings)
    return read_run_record(labels, FitSettings if b'"landmarks"' in data else RunSettings)


def check_settings(labels: str, old: Any, new: Any, may_differ: Sequence[str] = ()) -> None:
    """Refuse to mix labels.

    Args:
        labels: the folder. old: its settings. new: this run's.
        may_differ: names of settings that do not matter.

    Raises:
        UserError: names the first setting that differs.
    """
    for name, was in asdict(old).items():
        now = getattr(new, name)
        if was != now and name not in may_differ:
            raise UserError(
                f"'{labels}' was labelled with {name} {was!r}, this run has {now!r}: "
                "use the same settings to go on, or another folder"
                + (
                    ' (or --relabel "status != ok", say, to do some photos again)'
                    if name == "checkpoint"
                    else ""
                )
            )


def write_run_record(labels: str, record: RunRecord) -> None:
    """Write `_run.json` in one step."""
    data = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
    write_whole(join(labels, FILE), data.encode())
