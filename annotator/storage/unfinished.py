"""Mark folders as unfinished: until a command ends, a file holds its plan, so that the same command may resume."""

from __future__ import annotations

import json
from typing import Any

from annotator.errors import UserError
from annotator.storage.files import check_writable, join, names_in, read_if_exists, write_atomic


def is_left_unfinished(out: str, marker: str, plan: dict[str, Any]) -> bool:
    """Return whether an unfinished command with the same plan left the folder; False if it is new or empty.

    Raises:
        UserError: the folder has other contents.
    """
    names = {name for name in names_in(out) if not name.startswith(".")}
    left = read_if_exists(join(out, marker)) if marker in names else None
    if names and (left is None or _plan_in(left) != json.loads(json.dumps(plan))):
        raise UserError(f"'{out}' is not empty: give a new folder")
    return bool(names)


def _plan_in(marker: bytes) -> Any:
    """Return the plan in a marker, or None if it is damaged."""
    try:
        return json.loads(marker)
    except ValueError:
        return None


def mark_unfinished(out: str, marker: str, plan: dict[str, Any]) -> None:
    """Create a folder with its marker, a file to remove at the end.

    Raises:
        UserError: as for `check_writable`.
    """
    check_writable(out)
    write_atomic(join(out, marker), json.dumps(plan, sort_keys=True).encode())
