"""A file that has no room is named, with the bytes it needs; limits and disks are real ones."""

from __future__ import annotations

import errno
import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from annotator.storage.disk_space import DiskFullError, name_in_errors
from annotator.storage.files import atomic_local_file, write_atomic

ROOT = Path(__file__).parents[2]


def limited(code: str, limit_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process whose files may have so many bytes."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes)),
    )


def test_a_limit_on_file_sizes_names_the_file_and_its_bytes(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from annotator.errors import UserError
from annotator.storage.files import atomic_local_file, write_atomic
folder = Path(sys.argv[1])
write_atomic(f"{folder}/small", bytes(900))
try:
    write_atomic(f"{folder}/large", bytes(123456), scratch=f"{folder}/scratch")
except UserError as error:
    print(error)
try:
    with atomic_local_file(folder / "growing") as file:
        for _ in range(100):
            file.write(bytes(1000))
except UserError as error:
    print(error)
"""
    done = limited(code, 50_000, str(tmp_path))
    first, second = done.stdout.splitlines()
    assert first.startswith(f"'{tmp_path}/large': it needs 123,456 bytes") and "ulimit -f" in first
    assert second.startswith(f"'{tmp_path}/growing': it needs at least 52,000 bytes")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["scratch", "small"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk here is always full")
def test_a_full_disk_names_the_file_and_its_bytes(tmp_path: Path) -> None:
    full = pytest.raises(DiskFullError, match=r"/out': it needs 70,000 bytes, and the disk has [\d,]+ free")
    with full, name_in_errors(tmp_path / "out", 70_000), Path("/dev/full").open("wb") as file:
        file.write(bytes(70_000))


@pytest.mark.slow
def test_the_command_line_says_so_in_one_line(tmp_path: Path) -> None:
    code = "import sys, cli; sys.argv[0] = 'amvur'; cli.main()"
    done = limited(code, 20_000, "synth", str(tmp_path / "out"), "--count", "2", "--size-px", "512")
    assert done.returncode == 2 and done.stderr.startswith(f"amvur: '{tmp_path}/out/")
    assert done.stderr.count("\n") == 1 and " bytes, above the limit on file sizes" in done.stderr


def test_other_errors_get_the_name_too_but_not_those_of_connections(tmp_path: Path) -> None:
    with pytest.raises(OSError) as failed, atomic_local_file(tmp_path / "a"):
        raise OSError(errno.EIO, "Input/output error")
    assert failed.value.filename == str(tmp_path / "a")
    with pytest.raises(ConnectionResetError) as reset, atomic_local_file(tmp_path / "a"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert reset.value.filename is None and not list(tmp_path.iterdir())


def test_it_travels_between_processes() -> None:
    error = DiskFullError(errno.EFBIG, "it needs 7 bytes", "a.parquet")
    assert str(pickle.loads(pickle.dumps(error))) == "'a.parquet': it needs 7 bytes"


def test_a_file_with_room_is_written(tmp_path: Path) -> None:
    write_atomic(str(tmp_path / "a"), b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_file_that_holds_others_up_is_not_blamed(tmp_path: Path) -> None:
    """A photo without room ends a table that is open meanwhile, whose own end then fails too."""
    with (
        pytest.raises(DiskFullError, match=r"photo\.jpg': it needs 7 bytes"),
        atomic_local_file(tmp_path / "table"),
    ):
        try:
            raise DiskFullError(errno.ENOSPC, "it needs 7 bytes", "photo.jpg")
        finally:
            raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


COMMANDS = {
    "coco": (["export", "{labels}", "{out}.json", "--to", "coco"], r"amvur-\*': it needs at least [1-9]"),
    "csv": (["export", "{labels}", "{out}.csv", "--to", "csv"], r"{out}\.csv': it needs at least [1-9]"),
    "webdataset": (
        ["export", "{labels}", "{out}", "--to", "webdataset"],
        r"\.tar': it needs at least [1-9]",
    ),
    "glb": (["export", "{labels}", "{out}", "--to", "glb"], r"\.glb': it needs [\d,]+ bytes"),
    "filter": (["filter", "{labels}", "{out}", "--keep-best", "0.9"], r"\.parquet': it needs [\d,]+ bytes"),
    "convert": (["convert", "labels:{labels}", "{out}"], r"{out}/data/.*\.parquet': it needs [\d,]+ bytes"),
    "report": (["report", "{labels}", "--out", "{out}"], r"{out}/contact_sheet.png': it needs [\d,]+ bytes"),
    "synth": (["synth", "{out}", "--count", "1"], r"{out}/truth\.parquet': it needs [\d,]+ bytes"),
    "annotate": (["annotate", "{photos}", "{out}"], r"files may have at most 40,960 bytes here"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", list(COMMANDS))
def test_each_command_names_its_file_under_a_limit(command, labelled, photos, tmp_path) -> None:
    arguments, message = COMMANDS[command]
    places = {"labels": str(labelled[0]), "photos": str(photos), "out": str(tmp_path / "out")}
    code = "import sys, cli; sys.argv[0] = 'amvur'; cli.main()"
    limit_bytes = 40_960 if command in ("report", "annotate") else 4_096
    done = limited(code, limit_bytes, *(argument.format(**places) for argument in arguments))
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert re.search(message.replace("{out}", re.escape(places["out"])), last) and "ulimit -f" in last
