"""docs/labels.md: its snippets run unchanged in the named programs, and its table matches the files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from annotator.labels.schema import ROUNDING, SAMPLES_ROUNDING, label_schema

PAGE = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

TYPES = {"string": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "int8": pa.int8()}
TYPES |= {"float32": pa.float32(), "float64": pa.float64(), "uint8": pa.uint8()}


def snippet(program: str) -> str:
    (found,) = [text for text in SNIPPETS if re.search(rf"import .*\b{program}\b", text)]
    return found


@pytest.fixture
def beside_labels(labelled, tmp_path, monkeypatch):
    """Change to a folder with `labels` in it, as on the page; return the rows as pyarrow reads them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "labels").symlink_to(labelled[0])
    return pq.read_table("labels/data")


def run(program: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(snippet(program), names)
    return names


def plain(value: Any) -> Any:
    """Convert any reader's values to lists, mappings and Python numbers."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        return plain(value.item())  # pandas has no missing integers
    return None if isinstance(value, float) and np.isnan(value) else value


def same(found: list[dict[str, Any]], table: pa.Table) -> None:
    """Check that every column of every row is exactly equal."""
    found = sorted(found, key=lambda row: row["image_id"])
    expected = sorted(table.to_pylist(), key=lambda row: row["image_id"])
    assert len(found) == len(expected) == 50
    for row, right in zip(found[::7], expected[::7], strict=True):
        assert list(row) == list(right)
        for name, value in right.items():
            assert plain(row[name]) == value, name


def test_duckdb(beside_labels):
    import duckdb

    imports, _, query = snippet("duckdb").partition("\n\n")
    names: dict[str, Any] = {}
    exec(f"{imports}\nfound = {query}", names)
    rows = names["found"].fetchall()
    assert len(rows) == 50 and [row[2] for row in rows] == sorted(row[2] for row in rows)
    every = duckdb.sql("select * from 'labels/data/*.parquet'")
    same([dict(zip(every.columns, row, strict=True)) for row in every.fetchall()], beside_labels)


def test_pandas(beside_labels):
    names = run("pandas")
    assert names["vertices_mm"].shape == (50, 800, 3)
    expected = np.array(beside_labels["vertices_mm"].to_pylist(), np.float32)
    np.testing.assert_array_equal(names["vertices_mm"], expected)
    frame = names["labels"]
    rows = [{name: frame[name][n] for name in frame} for n in range(len(frame))]
    same(rows, beside_labels)


def test_polars(beside_labels):
    names = run("polars")
    expected = np.array(beside_labels["vertices_mm"].to_pylist(), np.float32)
    np.testing.assert_array_equal(names["vertices_mm"], expected)
    same(names["labels"].to_dicts(), beside_labels)


def test_hugging_face_datasets(beside_labels, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    same(list(run("datasets")["labels"]), beside_labels)


def test_pyarrow_reads_the_facts_that_the_page_names(beside_labels):
    facts = run("json")["facts"]
    (documented,) = re.findall(r"JSON under the key `amvur`: (.*?)\.\n", PAGE, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", documented)) == set(facts)


def test_the_page_has_every_column_with_its_type():
    """Parse rows like `name`, `other` | type[21][3], type; a single type applies to all columns of its row."""
    documented = {}
    for names, types in re.findall(r"^\| (`[\w.]+`(?:, `[\w.]+`)*) \| ([\w\[\], ]+) \|", PAGE, re.MULTILINE):
        of_row = [one.strip() for one in types.split(",")]
        columns = re.findall(r"[\w.]+", names)
        documented |= dict(zip(columns, of_row * len(columns) if len(of_row) == 1 else of_row, strict=False))
    expected = {}
    for field in label_schema(800, samples=9):
        parts = field.type if pa.types.is_struct(field.type) else [field.with_name("")]
        expected |= {".".join(filter(None, (field.name, part.name))): part.type for part in parts}
    assert list(expected) == [name for name in documented if name in expected]
    for name, kind in expected.items():
        base, *sizes = re.findall(r"\w+", documented[name].replace("[V]", "[800]").replace("[N]", "[9]"))
        of_page = TYPES[base]
        for size in reversed(sizes):
            of_page = pa.list_(of_page, int(size))
        assert of_page == kind, name


def test_the_page_has_the_rounding_of_the_code():
    documented = (
        r"rounded to 1/(\d+) \(mm or px\), vertex std and samples' vertices to 1/(\d+) mm, "
        r"pose and betas to 1/(\d+)"
    )
    positions, std, pose = map(int, re.search(documented, " ".join(PAGE.split())).groups())
    assert {"joints3d_samples_mm": 1 / positions, "vertices_samples_mm": 1 / std} == SAMPLES_ROUNDING
    steps = dict.fromkeys(ROUNDING, 1 / positions) | {"vertices_std_mm": 1 / std}
    assert steps | {"pose": 1 / pose, "betas": 1 / pose} == ROUNDING
