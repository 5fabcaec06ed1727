"""The public API: every exported name exists, and docs/api.md has its signature and an example that compiles."""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import inspect
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import annotator
from annotator.labels.label import LabelCamera
from annotator.labels.schema import CAMERA, label_schema

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SHOWN = {node.name: node for block in BLOCKS for node in ast.parse(block).body if hasattr(node, "name")}

#: Classes that users get from a function, do not create.
RESULTS = ("Exported", "Filtered", "Label", "PhotoError", "Predictor", "RunRecord")
CALLABLE = sorted(set(annotator.__all__) - {"UserError", "__version__", *RESULTS})


def test_all_names_resolve_and_unknown_ones_do_not():
    for name in annotator.__all__:
        assert getattr(annotator, name) is not None
    assert set(annotator.__all__) <= set(dir(annotator))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        annotator.nothing  # noqa: B018


def test_the_version_is_the_packages():
    try:
        expected = importlib.metadata.version("amvur-annotator")
    except importlib.metadata.PackageNotFoundError:
        expected = "0+unknown"
    assert annotator.__version__ == expected
    assert (ROOT / "annotator" / "py.typed").exists()


def test_functions_are_no_modules_after_their_packages_are_imported():
    import annotator.export
    import annotator.track.sequence

    for name in CALLABLE:
        assert callable(getattr(annotator, name)), name


def shown_parameters(node) -> dict[str, tuple[bool, ast.expr | None]]:
    """Return a function's parameters, or a class's fields: whether each is for keywords alone, and its default."""
    if isinstance(node, ast.ClassDef):
        return {field.target.id: (False, field.value) for field in node.body}
    arguments = node.args
    defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
    shown = {arg.arg: (False, default) for arg, default in zip(arguments.args, defaults, strict=True)}
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return shown | {arg.arg: (True, default) for arg, default in pairs}


def check_signature(node, function) -> None:
    shown, real = shown_parameters(node), inspect.signature(function).parameters
    assert list(shown) == list(real)
    for name, (keyword_only, default) in shown.items():
        assert keyword_only == (real[name].kind is inspect.Parameter.KEYWORD_ONLY), name
        assert (real[name].default is inspect.Parameter.empty) == (default is None), name
        if isinstance(default, ast.Constant) and default.value is not ...:
            assert real[name].default == default.value, name


@pytest.mark.parametrize("name", CALLABLE)
def test_the_page_has_the_real_signature(name):
    real = getattr(annotator, name)
    assert isinstance(SHOWN[name], ast.ClassDef) == inspect.isclass(real)
    check_signature(SHOWN[name], real)


def test_the_page_has_the_signature_of_predict():
    [method] = SHOWN["Predictor"].body
    check_signature(method, annotator.Predictor.predict)


@pytest.mark.parametrize("name", sorted(set(RESULTS) - {"Label", "PhotoError", "Predictor"}))
def test_results_have_the_fields_of_the_page(name):
    real = getattr(annotator, name)
    assert isinstance(SHOWN[name], ast.ClassDef)
    names = {field.name for field in dataclasses.fields(real)} | set(dir(real))
    assert set(shown_parameters(SHOWN[name])) <= names


def test_every_result_has_a_heading():
    headings = " ".join(re.findall(r"^## (.+)$", PAGE, re.MULTILINE))
    assert [name for name in RESULTS if name not in re.split(r"\W+", headings)] == []


def test_a_photo_error_has_a_reason():
    error = annotator.PhotoError("missing", "no such file")
    assert error.reason == "missing" and str(error) == "no such file"


def test_label_and_schema_have_the_same_columns_and_shapes(predictor):
    """Predict with samples: the keys are all of `Label`, each a column of the schema, with its shape."""
    assert predictor.checkpoint.hand.vertex_count == 800
    [label] = predictor.predict([np.full((96, 96, 3), 127, np.uint8)], samples=2)
    assert label.keys() == annotator.Label.__annotations__.keys()
    schema = label_schema(800, samples=2)
    assert label.keys() <= set(schema.names)
    assert label["camera"].keys() == LabelCamera.__annotations__.keys() == {f.name for f in CAMERA}
    for name, value in label.items():
        if name != "camera" and value is not None:
            sizes, kind = [], schema.field(name).type
            while pa.types.is_fixed_size_list(kind):
                sizes.append(kind.list_size)
                kind = kind.value_type
            assert list(np.shape(value)) == sizes, name
            assert np.asarray(value).dtype.kind == np.dtype(kind.to_pandas_dtype()).kind, name


def test_every_name_has_an_example_with_valid_arguments():
    used = set()
    for block in BLOCKS:
        for node in ast.walk(ast.parse(block)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).removeprefix("annotator.")
            if name in CALLABLE:
                used.add(name)
                inspect.signature(getattr(annotator, name)).bind(
                    *node.args, **{keyword.arg: keyword.value for keyword in node.keywords}
                )
    assert used == set(CALLABLE)
