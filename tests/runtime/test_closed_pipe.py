"""`amvur ... | head` ends as other programs do: without a word, with the status of SIGPIPE."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annotator.job.record import RunRecord, RunSettings

ROOT = Path(__file__).parents[2]

#: A command that prints more than a pipe holds.
MUCH = """
import sys, cli, typer
@cli.app.command()
def much() -> None:
    for _ in range(100_000):
        {line}
sys.argv = ["amvur", "much"]
cli.main()
"""


def closed(arguments: list[str], stream: str = "stdout") -> tuple[int, str]:
    """Run a program with a closed output; return its exit code and the text of the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    out, err = (writer, subprocess.PIPE) if stream == "stdout" else (subprocess.PIPE, writer)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, text=True, timeout=120, stdout=out, stderr=err
    )
    os.close(writer)
    return done.returncode, (done.stderr if stream == "stdout" else done.stdout)


@pytest.mark.parametrize(
    "arguments", [["cli.py", "--help"], ["cli.py", "annotate", "--help"], ["cli.py"]], ids=str
)
def test_help_ends_quietly(arguments: list[str]) -> None:
    assert closed(arguments) == (141, "")


@pytest.mark.parametrize("line", ["typer.echo('a line')", "print('a line')"])
def test_output_ends_quietly(line: str) -> None:
    assert closed(["-c", MUCH.format(line=line)]) == (141, "")


@pytest.mark.slow
def test_a_mistake_keeps_its_code_and_its_line() -> None:
    code, line = closed(["cli.py", "annotate", "no such folder", "out"])
    assert code == 2 and line.startswith("amvur: 'no such folder' does not exist")


@pytest.mark.slow
def test_nobody_to_read_a_mistake() -> None:
    assert closed(["cli.py", "annotate", "no such folder", "out"], "stderr") == (141, "")


@pytest.mark.parametrize(("count", "end"), [(2, "a.txt, b.txt"), (3, "a.txt, b.txt, ...")])
def test_dots_stand_for_more_names_only(count: int, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    import cli

    settings = RunSettings.__new__(RunSettings)
    cli._print_outcomes(RunRecord(settings, skipped_files=count, skipped_names=["a.txt", "b.txt"]))
    printed = capsys.readouterr().out
    assert printed.endswith(f"{count} files skipped (not photos, or unreadable folders): {end}\n")
