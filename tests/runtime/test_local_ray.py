"""A Ray of this machine's own starts where homes, temporary folders and processors are not as usual."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from annotator.errors import UserError
from annotator.runtime import local_ray
from annotator.runtime.local_ray import SOCKET_BYTES, _made_folder
from tests.robustness.hostile_photos import encoded, noise

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

#: Limit on file sizes (`ulimit -f`).
LIMIT_BYTES = 200 << 20

#: Prints the result of a task, and the folder of its Ray session.
TASK = """
import os, ray, sys
from annotator.runtime.ray_session import connected
with connected():
    print(ray.get(ray.remote(lambda: 6 * 7).remote()), ray._private.worker._global_node.temp_dir)
print(*(name for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN") if name in os.environ))
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder:
        yield Path(folder)


def ran(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a new process, with these settings of Ray only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_a_local_run_needs_no_home_no_short_tmpdir_and_no_large_files(tmp_path: Path) -> None:
    long = tmp_path / ("long" * 30)
    long.mkdir()
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LIMIT_BYTES}, {LIMIT_BYTES}))"
    done = ran(limited + TASK, HOME="/dev/null/x", TMPDIR=str(long))
    assert done.returncode == 0, done.stderr
    answer, folder = done.stdout.split()
    assert answer == "42" and not Path(folder).exists()
    assert len(f"{folder}/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store") <= SOCKET_BYTES
    assert not list(long.glob("**/auth_token"))


def test_a_start_that_is_too_slow_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import os
from annotator.runtime import local_ray
end = local_ray._end_processes
def end_and_wait_longer(folder):
    end(folder)
    os.environ["RAY_gcs_server_port_wait_time_s"] = "120"
local_ray._end_processes = end_and_wait_longer
{TASK}"""
    home = tmp_path / "home"
    home.mkdir()
    done = ran(code, HOME=str(home), RAY_gcs_server_port_wait_time_s="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("42 ") and len(done.stdout.split()) == 2  # and no token in the environment
    assert not (home / ".ray").exists()


def test_a_local_run_starts_no_dashboard_no_autoscaler_and_no_collector_of_logs() -> None:
    code = """
import psutil, ray
from annotator.runtime.ray_session import connected
from ray._private.node import Node
before = Node.start_monitor
with connected():
    ray.get(ray.remote(lambda: 1).remote())
    print(*(" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)), sep="\\n")
assert Node.start_monitor is before  # for other users of Ray in this process
"""
    done = ran(code)
    assert done.returncode == 0, done.stderr
    assert "raylet" in done.stdout
    for part in ("dashboard.py", "/monitor.py", "log_monitor.py"):
        assert part not in done.stdout


def test_one_that_never_starts_is_one_plain_line(tmp_path: Path, short_folder: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(encoded(noise(), "JPEG"))
    arguments = ["annotate", "photos", "labels", "--checkpoint", "untrained:default"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=tmp_path,
        # Without a storage of this name Ray's server ends before it has a port, however long one waits.
        env={
            **os.environ,
            "RAY_gcs_storage": "absent",
            "RAY_gcs_server_port_wait_time_s": "0",
            "RAY_TMPDIR": str(short_folder),
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert last.startswith("amvur: Ray did not start on this machine in 4 tries")
    assert "RAY_raylet_start_wait_time_s" in last
    assert not list(short_folder.iterdir())
    lines = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if any(str(short_folder) in argument for argument in line)]


def test_a_folder_of_ray_that_belongs_to_others_is_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    for variable, value in (("RAY_TMPDIR", blocked), ("TMPDIR", tmp_path / "absent")):
        monkeypatch.setenv(variable, str(value))
    (made := Path(_made_folder())).rmdir()
    assert made.parent not in (blocked, tmp_path / "absent") and made.name.startswith("ray-")


def test_without_any_folder_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "SOCKET_BYTES", 10)
    with pytest.raises(UserError, match="set RAY_TMPDIR"):
        _made_folder()


def test_a_limit_on_file_sizes_shrinks_the_store_or_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = local_ray._store_bytes()
    for limit, store in ((256 << 20, 128 << 20), (resource.RLIM_INFINITY, wanted), (1 << 40, wanted)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert local_ray._store_bytes() == store
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1 << 20, 1 << 20))
    with pytest.raises(UserError, match=r"1,048,576 bytes here \(`ulimit -f`\).*needs 201,326,592"):
        local_ray._store_bytes()
