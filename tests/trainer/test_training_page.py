"""Run every `sh` block of the training page at reduced size; all other commands must at least parse.

Commands of the other pages: tests/commands/test_pages.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

import cli
from annotator.sources import open_source
from tests.commands.test_cli import run
from trainer.config import LossConfig, read_train_config
from trainer.convert.convert import KINDS
from trainer.synth import write_photos

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text()

INPUTS = (ROOT / "docs" / "inputs.md").read_text()

#: Settings that reduce the commands to seconds.
SMALLER = {
    r"steps(=|: )(\d+)": lambda found: f"steps{found[1]}{int(found[2]) // 400}",
    r"--count 1000": "--count 30",
    r"--size-px 128": "--size-px 64",
    r"first: 100": "first: 20",
    r"--count 100\b": "--count 20",
}
TINY = (
    "network.crop_px=48 network.amvur.tokens=32 network.amvur.width=32 "
    "network.texture.tokens=32 network.texture.width=16 network.texture.raster_px=32 batch_size=4 loaders=0"
)

#: The same for configurations that start from the shipped weights, whose network has its own size.
FEW = "batch_size=2 loaders=0"

#: External programs on the page.
OTHERS = ("ray", "rclone", "tensorboard", "export", "mkdir")


def further(name: str, *arguments: str) -> list[str]:
    """Return what makes a command small, besides its own arguments."""
    if name == "train":
        settings = FEW if arguments[0] in ("weak", "finetune") else TINY
        return [word for setting in settings.split() for word in ("--set", setting)]
    is_drawn = name in ("evaluate", "calibrate") and "synth" in arguments
    return ["--count", "20"] if is_drawn and "--count" not in arguments else []


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands(kind: str) -> list[str]:
    return [line for block in blocks(kind) for line in block.splitlines()]


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER.items():
        text = re.sub(pattern, replacement, text)
    return text


def write_keypoints(truth: Path, out: Path, size_px: int) -> None:
    """Write the 2D joints of a folder of synthetic hands in COCO layout."""
    keypoints = {"images": [], "annotations": []}
    for number, row in enumerate(pq.read_table(truth).to_pylist()):
        points = [value for x, y in row["joints2d_px"] for value in (x, y, 2)]
        photo = {"id": number, "file_name": Path(row["image_uri"]).name, "width": size_px, "height": size_px}
        keypoints["images"].append(photo)
        keypoints["annotations"].append(
            {"image_id": number, "keypoints": points, "is_right": row["is_right"]}
        )
    out.write_text(json.dumps(keypoints))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Make the inputs that the page assumes: photos, and annotated keypoints."""
    write_photos(tmp_path / "drawn", 4, seed=5, size_px=64)
    shutil.move(tmp_path / "drawn/images", tmp_path / "photos")
    write_keypoints(tmp_path / "drawn/truth.parquet", tmp_path / "keypoints.json", size_px=64)
    (mix,) = blocks("yaml")
    (tmp_path / "mix.yaml").write_text(smaller(mix))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_works_when_pasted(place, local_ray, monkeypatch, capsys):
    done = []
    for line in map(smaller, commands("sh")):
        program, *arguments = shlex.split(line)
        if program == "tail":
            assert json.loads((place / arguments[-1]).read_text().splitlines()[-1])["step"] == 3
            continue
        assert program == "amvur"
        code, _, error = run(monkeypatch, capsys, *arguments, *further(*arguments))
        assert code == 0, f"{line}: {error}"
        done.append(arguments[0])
    assert set(done) == {"synth", "convert", "train", "evaluate", "calibrate", "annotate", "filter"}
    for made in (
        "labels/data",
        "results/table.txt",
        "run-mix/calibrated.safetensors",
        "run-own/model.safetensors",
    ):
        assert (place / made).exists()


@pytest.mark.parametrize("line", commands("sh elsewhere"))
def test_commands_that_need_something_from_elsewhere_parse(line):
    program, *arguments = shlex.split(line.partition("#")[0])
    if program == "python":
        assert (ROOT / arguments[0]).is_file()
    elif program != "amvur":
        assert program in OTHERS
    else:
        name, *rest = arguments
        # Raises the command's own errors; consumes the given list.
        typer.main.get_command(cli.app).commands[name].make_context(name, [*rest])
        if name == "train":
            read_train_config(rest[0])
        if name == "convert":
            assert rest[0].partition(":")[0] in KINDS


def test_the_list_on_the_page_is_valid(tmp_path):
    """The `sh` block writes the list; every column gets the role from the table."""
    (block,) = [text for text in re.findall(r"^```sh\n(.*?)^```$", INPUTS, re.M | re.S) if "cat >" in text]
    text = block.partition("<<END\n")[2].partition("END\n")[0]
    (tmp_path / "hands.csv").write_text(text)
    first, second = open_source(str(tmp_path / "hands.csv"))
    assert first.path == str(tmp_path / "photos/a.jpg") and first.hands[0][:2] == ((120, 80, 320, 310), 0.0)
    assert second.hands[0][:2] == ((40, 60, 260, 300), 1.0) and second.extra == {"subject": "p9"}


def test_the_table_of_weights_matches_the_code():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d.]+) \|", PAGE, re.MULTILINE)
    documented = {name: float(default) for names, default in rows for name in re.findall(r"\w+", names)}
    weights = {field.name: field.default for field in fields(LossConfig) if field.type == "float"}
    assert documented == weights


def test_every_benchmark_has_its_command_in_the_docs_and_make_bench_runs_those_of_minutes():
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"all", "common"}
    pages = "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
    assert [name for name in names if f"python benchmarks/{name}.py" not in pages] == []
    run_by_all = set(re.findall(r'"(\w+)"[,)]', (ROOT / "benchmarks/all.py").read_text())) & names
    alone = {"training", "gpu", "full_size", "long_video"}
    assert run_by_all == names - alone
    recipes = {path.stem for path in (ROOT / "tools").glob("*.py")} - {
        "simplify_mesh",
        "held_out",
        "draw_open_hand",
    }  # parts of another
    assert recipes == {name for name in recipes if f"tools/{name}.py" in pages} and recipes


def test_links_of_the_page_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    for link in links:
        assert link[1:] in headings if link.startswith("#") else (ROOT / "docs" / link).exists(), link
