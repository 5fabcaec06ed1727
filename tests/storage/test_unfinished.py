"""Only the command whose plan is in a folder's marker may resume there."""

from __future__ import annotations

import pytest

from annotator.errors import UserError
from annotator.storage.unfinished import is_left_unfinished, mark_unfinished

PLAN = {"to": "glb", "limit": 3, "size": (1, 2)}


def test_a_marked_folder_belongs_to_the_same_plan(tmp_path):
    out = str(tmp_path / "out")
    assert not is_left_unfinished(out, "_plan.json", PLAN)
    mark_unfinished(out, "_plan.json", PLAN)
    assert is_left_unfinished(out, "_plan.json", PLAN)
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        is_left_unfinished(out, "_plan.json", PLAN | {"limit": 4})


@pytest.mark.parametrize("content", [b'{"to": "gl', b"\xff", b"[]", None])
def test_a_damaged_marker_or_none_is_foreign_content(content, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    if content is not None:
        (tmp_path / "_plan.json").write_bytes(content)
    with pytest.raises(UserError, match="is not empty: give a new folder"):
        is_left_unfinished(str(tmp_path), "_plan.json", PLAN)
