"""Run the example notebook, cell by cell, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.slow

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_goes_from_photos_to_pictures_of_the_better_half(tmp_path, monkeypatch, local_ray):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert not cell["outputs"] and cell["execution_count"] is None  # stored without outputs
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
    folder = tmp_path / "notebook-hands"
    assert names["record"].outcomes == {"ok": 12}
    everything = pq.read_table(folder / "labels" / "data", columns=["image_id", "joint_std_mm"])
    surest = everything.sort_by("joint_std_mm")["image_id"].to_pylist()[:6]
    kept = pq.read_table(folder / "best" / "data", columns=["image_id"])["image_id"].to_pylist()
    assert sorted(kept) == sorted(surest) and [row["image_id"] for row in names["rows"]] == surest
    sheet = np.asarray(names["sheet"])
    assert sheet.shape == (6 * 166 + 6, 4 * 166 + 6, 3)
    for row in range(6):  # every tile shows something
        for column in range(4):
            tile = sheet[6 + 166 * row :, 6 + 166 * column :][:160, :160]
            assert tile.std() > 5
    assert "hands whose truth is known" in names["page"].read_text()
