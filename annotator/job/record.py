"""`_run.json`: the settings of a label set, and the outcomes of its photos so far.

Settings are written before the first label; a run with other settings is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from annotator.errors import UserError
from annotator.labels.folder import LEASE_FILE, RUN_FILE
from annotator.storage.files import join, names_in, read_if_exists, write_atomic


@dataclass(frozen=True)
class RunSettings:
    """All settings that change a label of `amvur annotate`; runs into one folder must agree on them."""

    schema_version: int
    source: str
    checkpoint: str  # id
    trained_steps: int
    hand: str  # id
    vertex_count: int
    side: str
    crop_px: int
    detector: str | None = None  # id; None: each photo is the crop around one hand
    max_hands: int = 1
    search: str = "quick"  # of the detector
    detect_every: int = 1  # frames of a video from one detection to the next
    every: int = 1  # use every Nth video frame
    boxes: str | None = None  # list or label set with boxes
    boxes_normalised: bool = False  # boxes are fractions of the photo
    samples: int = 0  # per hand
    hand_length_mm: float | None = None  # of every hand; None: predicted
    precision: str = "float32"  # of the backbone
    tie_sizes: bool = False  # one length for the right and left hand of a photo
    columns: str = "all"  # `labels.schema.Columns`


@dataclass(frozen=True)
class FitSettings:
    """All settings that change a label of `amvur fit`."""

    schema_version: int
    source: str  # of the photos
    landmarks: str  # path or URL
    checkpoint: str  # id of the fit
    hand: str  # id
    vertex_count: int
    config: dict[str, Any]  # of `FitConfig`


@dataclass(frozen=True)
class TrackSettings:
    """All settings that change a label of `amvur track`."""

    schema_version: int
    source: str  # of the photos
    tracked_labels: str  # the label set that was tracked
    checkpoint: str  # id of those labels
    hand: str  # id
    vertex_count: int
    max_gap: int  # maximum number of missing frames in a track
    tracker: int  # version of the method
    one_person: bool = False  # all hands of a sequence are of one person


#: Each kind of job has its own settings.
Settings = TypeVar("Settings")


@dataclass
class RunRecord(Generic[Settings]):
    """Settings and outcomes of a label set."""

    settings: Settings
    outcomes: dict[str, int] = field(default_factory=dict)  # photos per "ok" or "status: reason"
    skipped_files: int = 0  # files of the source that are not photos
    skipped_names: list[str] = field(default_factory=list)  # the first few of them
    failed: list[list[str]] = field(default_factory=list)  # the first few failures: uri, error
    #: Retries by cause, over all runs.
    retries: dict[str, int] = field(default_factory=dict)
    relabelled: list[dict[str, str]] = field(
        default_factory=list
    )  # conditions of --relabel, and the producer
    filtered: list[dict[str, Any]] = field(default_factory=list)  # settings of `amvur filter`, in order
    seconds: float = 0.0  # of labelling, without start-up, over all runs

    @property
    def photos(self) -> int:
        """Number of photos with a row."""
        return sum(self.outcomes.values())

    @property
    def failed_photos(self) -> int:
        """Number of photos that failed; `failed` names the first few of them."""
        return sum(count for outcome, count in self.outcomes.items() if outcome.startswith("failed"))


def read_run_record(labels: str, kind: type[Settings]) -> RunRecord[Settings] | None:
    """Return the record of a label set, or None if the folder is empty or missing.

    Raises:
        UserError: the folder holds other files, another kind of labels, or labels of a newer schema.
    """
    data = read_if_exists(join(labels, RUN_FILE))
    if data is None:
        # Unfinished files of killed runs and files of file managers start with a dot.
        if any(not name.startswith(".") for name in names_in(labels) - {"faces.parquet", LEASE_FILE}):
            raise UserError(f"'{labels}' holds files but is not a label set: give an empty or a new folder")
        return None
    try:
        values: dict[str, Any] = json.loads(data)
        settings = kind(**values.pop("settings"))
        return RunRecord(settings, **values)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(
            f"'{labels}' was made by another command or another version of amvur, or its {RUN_FILE} is damaged: "
            "give a new folder"
        ) from None


def read_mesh_record(labels: str) -> RunRecord[Any] | None:
    """Return the record of a label set with meshes, with settings of `annotate`, `fit` or `track`.

    Raises:
        UserError: as for `read_run_record`.
    """
    data = read_if_exists(join(labels, RUN_FILE)) or b""
    if b'"tracked_labels"' in data:
        return read_run_record(labels, TrackSettings)
    return read_run_record(labels, FitSettings if b'"landmarks"' in data else RunSettings)


def check_settings(labels: str, old: Any, new: Any, may_differ: Sequence[str] = ()) -> None:
    """Refuse to mix labels of different settings in one folder.

    Args:
        labels: the folder. old: its settings. new: this run's settings.
        may_differ: names of settings that may differ.

    Raises:
        UserError: names the first setting that differs.
    """
    for name, was in asdict(old).items():
        now = getattr(new, name)
        if was != now and name not in may_differ:
            raise UserError(
                f"'{labels}' was labelled with {name} {was!r}, this run has {now!r}: "
                "use the same settings to resume, or another folder"
                + (
                    ' (or label some photos again, for example with --relabel "status != ok")'
                    if name == "checkpoint"
                    else ""
                )
            )


def write_run_record(labels: str, record: RunRecord) -> None:
    """Write `_run.json` atomically."""
    data = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
    write_atomic(join(labels, RUN_FILE), data.encode())
