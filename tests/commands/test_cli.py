"""The command line: a user's mistake is one plain line and exit code 2."""

import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

import cli
from annotator.detection import detector
from annotator.labels import schema
from annotator.photos import crops
from annotator.runtime import precision
from tests.robustness.hostile_photos import encoded, noise

ROOT = Path(__file__).parents[2]


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["amvur", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capsys.readouterr()
    return stop.value.code or 0, printed.out, printed.err


@pytest.fixture
def one_photo(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded(noise(), "JPEG"))
    return folder


@pytest.fixture
def full_folder(tmp_path):
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "thesis.txt").write_text("all of it")
    return folder


@pytest.fixture
def bad_configuration(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("bakbone: resnet50\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["annotate"], "Missing argument"),
        (["annotate", "{empty}", "{out}"], "there are no photos in"),
        (["annotate", "{empty}/nothing here", "{out}"], "does not exist"),
        (["annotate", "{photos}", "{photos}/a.jpg"], "can't write to"),
        (["annotate", "{photos}", "{photos}/a.jpg/below"], "can't write to"),
        (["annotate", "{photos}", "{full}"], "holds files but is not a label set"),
        (
            ["annotate", "{photos}", "{out}", "--checkpoint", "untrained:{config}"],
            "unknown key 'bakbone'; did you mean",
        ),
        (["annotate", "{photos}", "foo://bucket/labels"], "foo"),
        (["annotate", "{photos}", "{out}", "--checkpoint", "w.safetensors"], "there is no such file"),
        (["annotate", "{photos}", "{out}", "--hand", "mano:{photos}/a.jpg"], "a.jpg"),
        (["annotate", "{photos}", "{out}", "--hand", "clay"], "no hand model 'clay'"),
        (["annotate", "{photos}", "{out}", "--side", "up"], "--side"),
        (["annotate", "{photos}", "{out}", "--batch-size", "0"], "--batch-size"),
        (["anotate", "{photos}", "{out}"], "No such command"),
        (["report", "{full}"], "is not a label"),
        (["report", "{empty}/none"], "is not a label"),
        (["synth", "{full}"], "holds other files"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    arguments, words, tmp_path, one_photo, full_folder, bad_configuration, monkeypatch, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "out"
    places = {
        "empty": empty,
        "photos": one_photo,
        "full": full_folder,
        "config": bad_configuration,
        "out": out,
    }
    code, printed, error = run(monkeypatch, capsys, *(a.format(**places) for a in arguments))
    assert code == 2 and words in error
    assert error.startswith("amvur: ") and error.count("\n") == 1 and printed == ""
    assert not list(out.glob("data/*"))


@pytest.mark.slow
def test_help_is_quick_and_shows_an_example_for_every_command():
    started = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (
        time.perf_counter() - started < 3
    )  # benchmarks/startup.py measures; here only that nothing heavy loads
    for command in ("annotate", "synth", "report", "demo"):
        assert command in shown.stdout
        page = subprocess.run(
            [sys.executable, "-m", "cli", command, "--help"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert f"Example: amvur {command}" in page.stdout


def test_the_package_and_the_command_line_import_nothing_heavy():
    code = "import sys, annotator, cli; print([m for m in ('torch', 'ray', 'pyarrow', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_annotator_never_imports_trainer():
    for path in (ROOT / "annotator").rglob("*.py"):
        assert "trainer" not in [
            word.strip(".,") for word in path.read_text().split() if word.startswith("trainer")
        ], path
        assert "import trainer" not in path.read_text() and "from trainer" not in path.read_text(), path


@pytest.mark.slow
def test_demo_draws_labels_and_reports(tmp_path, local_ray, monkeypatch, capsys):
    for _ in range(2):  # twice: `make demo` may be typed again
        code, printed, _ = run(monkeypatch, capsys, "demo", tmp_path / "demo", "--count", 4, "--no-show")
        assert code == 0 and "untrained" not in printed and "4 photos labelled" in printed
    page = tmp_path / "demo" / "report" / "index.html"
    assert page.exists() and "Untrained weights" not in page.read_text()
    assert (page.parent / "contact_sheet.png").exists()


@pytest.mark.parametrize(
    ("shown", "accepted"),
    [(cli.Search, detector.Search), (cli.LabelColumns, schema.Columns), (cli.Side, crops.Side)],
)
def test_options_offer_what_the_library_accepts(shown, accepted):
    assert [each.value for each in shown] == list(get_args(accepted))
    # int8 is for Python alone.
    assert {each.value for each in cli.Precision} == {*get_args(precision.Precision)} - {"int8"}
