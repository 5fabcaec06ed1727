"""The public API: every exported name exists, and docs/api.md has its signature and an example that compiles."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
from pathlib import Path

import pytest

import annotator

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE | re.DOTALL
)
STUBS = {
    node.name: node for block in BLOCKS for node in ast.parse(block).body if isinstance(node, ast.FunctionDef)
}
CALLABLE = sorted(set(annotator.__all__) - {"UserError", "__version__"})


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


@pytest.mark.parametrize("name", CALLABLE)
def test_the_page_has_the_real_signature(name):
    arguments = STUBS[name].args
    positional = [argument.arg for argument in arguments.args]
    keywords = [argument.arg for argument in arguments.kwonlyargs]
    defaults = {
        **dict(zip(positional[len(positional) - len(arguments.defaults) :], arguments.defaults, strict=True)),
        **{k: d for k, d in zip(keywords, arguments.kw_defaults, strict=True) if d is not None},
    }
    real = inspect.signature(getattr(annotator, name)).parameters.values()
    assert positional == [p.name for p in real if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert keywords == [p.name for p in real if p.kind is p.KEYWORD_ONLY]
    for parameter in real:
        assert (parameter.default is parameter.empty) == (parameter.name not in defaults), parameter.name
        if isinstance(default := defaults.get(parameter.name), ast.Constant) and default.value is not ...:
            assert parameter.default == default.value, parameter.name


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
