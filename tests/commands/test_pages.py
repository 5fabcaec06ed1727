"""Every command of every page, and every example of `--help`, is run: smaller, on this disk, by one process.

A page's commands are run in their order in one folder. Parts that a test cannot provide are
replaced: `s3://bucket` is a folder here, `--address` is left out (test_annotate_s3.py and test_train_ray.py have
both for real), trainings are short. The training page has tests/trainer/test_training_page.py.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer

import cli
from annotator.model.checkpoint_file import SHIPPED
from tests.commands.test_cli import run
from tests.trainer.test_training_page import ROOT, further, write_keypoints
from trainer.convert.convert import convert
from trainer.synth import write_photos

pytestmark = pytest.mark.slow

HELP = "--help"
README = (ROOT / "README.md").read_text()

#: Groups of pages that share one folder; work is not repeated for the next page.
GROUPS = (
    ("README.md", HELP, "docs/export.md", "docs/fit.md"),
    ("docs/tutorial.md",),
    ("docs/inputs.md",),
    ("docs/video.md", "docs/retargeting.md"),
    ("docs/cluster.md",),
    ("docs/model-card.md",),
)
PAGES = tuple(page for group in GROUPS for page in group if page != HELP)
OTHER_PAGES = (
    "docs/scale.md",
    "docs/labels.md",
    "docs/api.md",
    "docs/architecture.md",
    "docs/benchmarks.md",
    "docs/licences.md",
    "docs/glossary.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
)

#: Tested elsewhere: submissions to a cluster.
ELSEWHERE = ("amvur jobs",)

#: Needs MediaPipe, or its detections.
WITH_DETECTOR = re.compile(r"amvur detect|--detector|--boxes found|fit found|fitted")

#: Replacements that keep the numbers small.
SMALLER = {
    r"s3://bucket": "bucket",
    r" --address \S+": "",
    r"\$HEAD": "http://head:8265",
    r"raysubmit_\.\.\.": "raysubmit_x",
    r"steps=\d+": "steps=3",
    r"--first \d+": "--first 20",
    r"--count (36|500)": "--count 4",
    r"--count 1000": "--count 20",
    r" --workers 2": "",
}


def commands_of(page: str) -> list[str]:
    """Lines that begin as a command does, fenced or indented."""
    if page == HELP:
        return examples()
    text = (ROOT / page).read_text()
    return [
        line.partition(" #")[0].strip() for line in re.findall(r"^(?: {4})?(amvur .+)$", text, re.MULTILINE)
    ]


def examples() -> list[str]:
    """Return the examples of `--help`, ordered so that each has its inputs."""
    group = typer.main.get_command(cli.app)
    commands = [*group.commands.values(), *group.commands["jobs"].commands.values()]
    found = [command.epilog.removeprefix("Example: ") for command in commands if command.epilog]
    assert len(found) == len(commands) - 1  # `jobs` itself has none
    order = ["annotate", "synth", "detect", "fit", "track", "convert", "train"]
    return sorted(
        found, key=lambda line: order.index(name) if (name := line.split()[1]) in order else len(order)
    )


def smaller(line: str) -> str:
    for pattern, replacement in SMALLER.items():
        line = re.sub(pattern, replacement, line)
    return line


def parsed(line: str) -> None:
    """Raises the command's error; takes words out of the list it is given."""
    name, *rest = shlex.split(line)[1:]
    command = typer.main.get_command(cli.app).commands[name]
    if name == "jobs":
        name, *rest = rest
        command = command.commands[name]
    command.make_context(name, rest)


@pytest.fixture
def place(tmp_path, monkeypatch, hand_scenes, sign_digits):
    """Create the inputs that the pages assume: photos, the detector's model, a bucket."""
    for name in ("photos", "scenes", "bucket"):
        (tmp_path / name).mkdir()
    for path in sorted(sign_digits.glob("[145]/*.JPG"))[::220]:
        shutil.copy(path, tmp_path / "photos")
    for path in sorted((hand_scenes / "images").glob("*.jpg"))[3::500]:
        shutil.copy(path, tmp_path / "scenes")
    shutil.copytree(tmp_path / "photos", tmp_path / "bucket" / "photos")
    shutil.copy(hand_scenes.parents[1] / "models" / "hand_landmarker.task", tmp_path)
    shutil.copy(SHIPPED, tmp_path / "better.safetensors")
    write_photos(tmp_path / "drawn", 20, seed=5, size_px=48)
    write_keypoints(tmp_path / "drawn" / "truth.parquet", tmp_path / "keypoints.json", size_px=48)
    for name in ("examples", "held-out"):
        convert(f"synth:{tmp_path}/drawn", str(tmp_path / "bucket" / name))
    listed = (ROOT / "docs" / "inputs.md").read_text().partition("<<END\n")[2].partition("END\n")[0]
    (tmp_path / "hands.csv").write_text(listed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("group", GROUPS, ids=" ".join)
def test_every_command_works_when_pasted(group, place, sign_digits, local_ray, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import tutorial

    has_detector = importlib.util.find_spec("mediapipe") is not None
    if "docs/tutorial.md" in group:
        if not has_detector:
            pytest.skip("the tutorial begins with MediaPipe, which is not installed: pip install '.[detect]'")
        tutorial.write_lists(sign_digits.parents[1], place, every=120)
    for line in dict.fromkeys(line for page in group for line in commands_of(page)):
        parsed(line.replace("$HEAD", "http://head:8265"))
        if line.startswith(ELSEWHERE) or (not has_detector and WITH_DETECTOR.search(line)):
            continue
        name, *rest = shlex.split(smaller(line))[1:]
        if name == "doctor":
            rest = []  # its store is tests/commands/test_doctor.py's
        steps = ["--set", "steps=3"] if name == "train" else []
        code, _, error = run(monkeypatch, capsys, name, *rest, *further(name, *rest), *steps)
        # Also where hands.csv names a photo that is not here: it has a row that says so.
        assert code == 0, f"{line}: {error}"
    if "docs/tutorial.md" in group:
        found = tutorial.numbers(place)
        # Half of the hands, and those with the std of the last one: after three steps some are equal.
        count = found["labels"]["labels"]["hands"]
        assert -(-count // 2) <= found["labels"]["best"]["hands"] < count
        assert all(network["joints2d_percent"] > 1 for network in found["networks"].values())


def test_the_python_of_the_readme_works(place, local_ray):
    (block,) = re.findall(r"^```python\n(import annotator\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    photo = next((place / "photos").iterdir())
    photo.rename(photo.with_name("hand.jpg"))
    exec(block)
    assert len(list((place / "labels" / "data").iterdir())) == 1


@pytest.mark.parametrize("page", OTHER_PAGES)
def test_other_pages_have_no_command_that_is_not_run(page):
    assert not commands_of(page)


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_scripts_and_links_of_pages_are_there(page):
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in link or (ROOT / page).parent.joinpath(link).exists(), link
    for script, rest in re.findall(r"python (benchmarks/\w+\.py)([^`|\n]*)", text):
        if "NAME" not in script:
            source = Path(ROOT / script).read_text()
            assert all(f'"{flag}"' in source for flag in re.findall(r"--[a-z-]+", rest)), (script, rest)
