"""Imports go one way: as docs/architecture.md lists them, at run time, in functions and for types."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("annotator", "trainer")
    for path in (ROOT / package).rglob("*.py")
}


def imports(module: str) -> set[str]:
    """Return all modules of this repository that one imports anywhere in its text."""
    names = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module} has a relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in inner}
    return (names & MODULES.keys()) - {module}


GRAPH = {module: imports(module) for module in MODULES}


def room(module: str) -> str:
    """Return the folder or module directly below `annotator/` that holds a module, as the page writes it."""
    if module == "annotator":
        return "__init__.py"
    name = module.split(".")[1]
    return f"{name}/" if (ROOT / "annotator" / name).is_dir() else f"{name}.py"


@pytest.fixture(scope="module")
def lines() -> dict[str, int]:
    """Return the line of each room in the page's list."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"## Direction of imports.*?```\n(.*?)```", page, re.S)
    assert block
    return {name: line for line, text in enumerate(block[1].splitlines()) for name in text.split()}


def test_the_page_lists_every_room(lines):
    assert lines.keys() == {room(module) for module in MODULES if module.startswith("annotator")}


def test_rooms_import_from_lines_above_alone(lines):
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if module.startswith("annotator") and target.startswith("annotator")
        if room(module) != room(target) and lines[room(target)] >= lines[room(module)]
    ]
    assert wrong == []


def test_the_annotator_never_imports_the_trainer():
    wrong = [
        f"{module} imports {target}"
        for module, targets in GRAPH.items()
        for target in targets
        if module.startswith("annotator") and target.startswith("trainer")
    ]
    assert wrong == []


def test_no_modules_import_each_other():
    TopologicalSorter(GRAPH).prepare()  # raises with the cycle
