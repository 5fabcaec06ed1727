"""A label set as a source of another run: its files, the columns of the first, and the place of its photos."""

from __future__ import annotations

import json

import pyarrow as pa

from annotator.errors import UserError, printable
from annotator.labels.folder import LEASE_FILE, RUN_FILE, label_files, opened_label_file
from annotator.sources.entry import path_as_utf8
from annotator.storage.files import join, read_if_exists
from annotator.storage.remote import without_secrets


class LabelSet:
    """A finished label set."""

    def __init__(self, labels: str, unfinished: str, empty: str) -> None:
        """Read the schema of the first label file.

        Args:
            labels: path or URL of the label set.
            unfinished: the end of the error of an unfinished set, after its name. empty: the same without label files.

        Raises:
            UserError: the set is unfinished or has no label files.
        """
        self.labels, self.name = labels, printable(without_secrets(labels))
        if is_unfinished(labels):
            raise UserError(f"'{self.name}' {unfinished}")
        if not self.files():
            raise UserError(f"'{self.name}' {empty}")
        with opened_label_file(self.path_of(self.files()[0])) as file:
            self.schema: pa.Schema = file.schema_arrow

    def files(self) -> list[str]:
        """Return the names of the label files, in order."""
        return sorted(label_files(self.labels))

    def path_of(self, file: str) -> str:
        """Return the path or URL of a label file."""
        return join(self.labels, "data", file)

    def photos_place(self) -> str:
        """Return the source of the photos, which relative uris start from; without a record, the set itself."""
        record = read_if_exists(join(self.labels, RUN_FILE))
        source = None if record is None else json.loads(record)["settings"].get("source")
        return source or without_secrets(path_as_utf8(self.labels))


def is_unfinished(labels: str) -> bool:
    """Return whether a run is writing to the label set, or none has finished."""
    record = read_if_exists(join(labels, RUN_FILE))
    if record is None:
        return False
    return not json.loads(record).get("outcomes") or read_if_exists(join(labels, LEASE_FILE)) is not None
