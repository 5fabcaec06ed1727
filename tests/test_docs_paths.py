"""Paths that the documentation names exist in the repository, and its lines wrap."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted(ROOT.glob("docs/*.md")))]

FOLDERS = ("annotator", "trainer", "tests", "benchmarks", "tools", "configs", "docs")

#: A placeholder, and a file that the reader of docs/training.md creates.
NOT_OURS = {"benchmarks/NAME.py", "mix.yaml"}


@pytest.fixture(scope="module")
def files() -> list[str]:
    """Return the path of every file of the repository, each with a leading slash."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")] + list(ROOT.glob("*.*"))
    return [f"/{path.relative_to(ROOT)}" for path in found]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str, files: list[str]) -> None:
    """Accept a full path or its end, in prose, tables and diagrams."""
    text = re.sub(r"https?://[^\s)]+", "", (ROOT / page).read_text())
    named = re.findall(r"(?<![\w./-])\w[\w./-]*\.(?:py|md)\b", text)
    named += re.findall(r"`([\w./-]+\.yaml)`", text) + re.findall(r"\]\(([^)#]+\.(?:py|md|yaml))", text)
    ends = {name.removeprefix("../") for name in named} - NOT_OURS
    assert [name for name in sorted(ends) if not any(file.endswith(f"/{name}") for file in files)] == []


@pytest.mark.parametrize("page", PAGES)
def test_folders_that_a_page_names_exist(page: str) -> None:
    """Check each folder in backticks that starts with a folder of this repository."""
    text = (ROOT / page).read_text()
    pattern = r"`((?:annotator|trainer|tests|benchmarks|tools|configs|docs)/[\w/-]*)`"
    assert [name for name in re.findall(pattern, text) if not (ROOT / name).exists()] == []


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them, and those that it sets itself."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    lines = re.findall(r"^#+ (.+)$", text, re.M)
    own = re.findall(r'<a id="([\w-]+)">', text)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in lines} | set(own)


@pytest.mark.parametrize("page", PAGES)
def test_anchors_that_a_page_links_to_exist(page: str) -> None:
    here = ROOT / page
    links = re.findall(r"\]\(([\w./-]*\.md|)#([\w-]+)\)", here.read_text())
    assert [
        link for link in links if link[1] not in headings(here.parent / link[0] if link[0] else here)
    ] == []


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_prose_of_a_page_wraps_at_100_characters(page: str) -> None:
    """Tables, code, diagrams and pictures may be wider."""
    prose = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.M | re.S)
    wide = [line for line in prose.splitlines() if len(line) > 100]
    assert [line for line in wide if not line.startswith(("|", "!", "    "))] == []
