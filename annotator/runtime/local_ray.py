"""Start a local Ray session for this process; stop it and remove its files."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from annotator.errors import UserError, first_line
from annotator.runtime.stderr import quiet_stderr
from annotator.runtime.termination import same_sigterm

#: Object store for shards between stages, minimum and per core: two or three shards per model.
STORE_BYTES, STORE_BYTES_PER_CORE = 1 << 30, 1 << 26

#: Ray's minimum is 75 MiB. Its file is larger than the store; twice the bytes are enough.
MIN_STORE_BYTES = 96 << 20

#: How long idle processes are kept. Ray's default of a second is less than a shard takes: each task would start a new
#: process, which costs a second of a core.
IDLE_MS = 600_000

#: Maximum start time of Ray's parts, unless the environment sets it. Ray's default of 30 s is too short on a busy
#: machine. `_ms` is in milliseconds.
START_S = 120
WAITS = {
    "RAY_gcs_server_port_wait_time_s": START_S,
    "RAY_raylet_start_wait_time_s": START_S,
    "RAY_gcs_rpc_server_reconnect_timeout_s": START_S,
    "RAY_worker_register_timeout_seconds": START_S,
    "RAY_agent_register_timeout_ms": START_S * 1000,
}

#: Ray waits 30 s at most for the last of its parts, whatever the environment sets: too short on a busy machine.
TRIES = 4

#: Parts of Ray that serve clusters and people alone: dashboard, autoscaler and collector of logs. Ray waits for the
#: first before it starts anything else; together they take 2 s of a core.
_UNUSED_PARTS = ("start_api_server", "start_monitor", "start_log_monitor")

#: Maximum bytes of a socket's path, and the bytes that Ray adds to its folder's path (a process id has 7 digits).
SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
_ADDED_BYTES = len("/session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store")


@contextmanager
def local_ray() -> Iterator[None]:
    """Run a local Ray session within the block.

    It needs neither files in the home folder nor folders of other users.

    Raises:
        UserError: Ray does not start, no short folder is writable, or the limit on file sizes is too low.
    """
    store_bytes = _store_bytes()
    with _longer_waits(), _own_token(), _own_folder() as folder:
        import ray

        _start(folder, store_bytes)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _longer_waits() -> Iterator[None]:
    """Set the start times within the block; later, joining a cluster that has ended must fail after seconds."""
    ours = {name: str(wait) for name, wait in WAITS.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _start(folder: str, store_bytes: int) -> None:
    import ray

    for attempt in range(1, TRIES + 1):
        try:
            with (
                same_sigterm(),
                quiet_stderr(),
                _without_unused_parts(),
            ):  # Ray's C++ announces its log level there; failures are exceptions
                ray.init(
                    address="local",  # never a cluster that runs on this machine
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=store_bytes,
                    _temp_dir=folder,
                    _system_config={
                        "task_events_report_interval_ms": 0,  # only the dashboard needs them
                        "idle_worker_killing_time_threshold_ms": IDLE_MS,
                    },
                )
            return
        except BaseException as error:
            with quiet_stderr():
                ray.shutdown()
                _end_processes(folder)
            if not isinstance(error, Exception):  # Ctrl-C
                raise
            if attempt == TRIES:
                raise UserError(_not_started(error)) from error


@contextmanager
def _without_unused_parts() -> Iterator[None]:
    """Start fewer of Ray's processes within the block; its options start all of them."""
    from ray._private import node, utils

    replaced: list[tuple[Any, str, Any]] = [(node.Node, name, _nothing) for name in _UNUSED_PARTS]
    # Otherwise Ray imports the dashboard's libraries to find out whether they are installed.
    replaced.append((utils, "get_dashboard_dependency_error", lambda: ImportError("not used")))
    with ExitStack() as undo:
        for owner, name, ours in replaced:
            if hasattr(owner, name):  # a later Ray may lack it
                undo.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, ours)
        yield


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _not_started(error: Exception) -> str:
    reason = first_line(error)
    return (
        f"Ray did not start on this machine in {TRIES} tries ({reason.rstrip('.')}): free memory or processors and "
        "run the same command again; on a slow machine, set RAY_raylet_start_wait_time_s and "
        "RAY_gcs_server_port_wait_time_s to more seconds"
    )


def _end_processes(folder: str) -> None:
    """Kill the processes of a failed start: children of this process with the folder in their command lines."""
    import psutil  # part of Ray

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(folder in argument for argument in process.cmdline()):
                process.kill()
                process.wait(5)


def _store_bytes() -> int:
    """Return the size of the object store, a single file, in bytes.

    Raises:
        UserError: the shell's limit on file sizes is too low for the smallest one.
    """
    wanted = max(STORE_BYTES, STORE_BYTES_PER_CORE * (os.cpu_count() or 1))
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return wanted
    if limit < 2 * MIN_STORE_BYTES:
        raise UserError(
            f"files may have at most {limit:,} bytes here (`ulimit -f`), and Ray's object store needs "
            f"{2 * MIN_STORE_BYTES:,}: raise the limit to that, or `ulimit -f unlimited`"
        )
    return min(wanted, limit // 2)


@contextmanager
def _own_token() -> Iterator[None]:
    """Pass Ray a token by the environment, so that it neither reads nor writes one in the home folder."""
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        yield
        return
    before = {name: os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        _drop_cached_token()
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _drop_cached_token()


def _drop_cached_token() -> None:
    """Drop Ray's cached mode and token: the next cluster may have others."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
    except ImportError:  # Ray before tokens
        return
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_folder() -> Iterator[str]:
    """Make a folder for sockets, logs and spilled objects, which is removed at the end.

    Raises:
        UserError: no usual folder has a short path and is writable.
    """
    folder = _made_folder()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _made_folder() -> str:
    given = [os.environ.get(name) for name in ("RAY_TMPDIR", "TMPDIR")]
    usual = [tempfile.gettempdir(), "/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"]
    for parent in (*given, *usual):
        if not parent or not parent.isascii() or "%" in parent:  # Ray formats its paths
            continue
        with suppress(OSError):
            folder = tempfile.mkdtemp(prefix="ray-", dir=Path(parent).absolute())
            if len(folder) + _ADDED_BYTES <= SOCKET_BYTES:
                return folder
            Path(folder).rmdir()
    limit = SOCKET_BYTES - _ADDED_BYTES - len("/ray-12345678")
    raise UserError(
        f"Ray needs a writable folder with a path of at most {limit} bytes: set RAY_TMPDIR to one"
    )
