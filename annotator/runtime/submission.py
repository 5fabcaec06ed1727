"""Submit commands of amvur to a Ray cluster: this code is sent and run there, and its log is followed here.

Ray calls a submission a job.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from annotator.config import config_folder
from annotator.errors import UserError, first_line
from annotator.storage.files import is_local, local_path
from annotator.storage.remote import without_secrets

#: Maximum time for a first response of an address.
ANSWER_S = 5.0

#: Maximum silence of a cluster before its submission is no longer followed.
SILENCE_S = 120.0

#: Maximum time for a submission to stop.
STOP_S = 30.0

#: The start of the entry point of amvur's submissions.
_MARK = "sh job.sh "

#: Script that runs the command on the cluster, with the first Python that has Ray, since `python` may lack it. It runs
#: in the folder of the submitting shell if given, so that relative paths resolve to the same files.
_SCRIPT = """\
code=$PWD here=$1 named=$2; shift 2
if [ -n "$here" ] && ! cd "$here"; then
    echo "amvur: the cluster does not see $here: give URLs, or paths that all its machines share" >&2
    exit 2
fi
for python in python "$named" python3; do
    "$python" -c 'import importlib.util as u; u.find_spec("ray").name' 2>/dev/null && break
done
exec "$python" "$code/cli.py" "$@"
"""


def is_dashboard_address(address: str | None) -> bool:
    """Return whether an address is a dashboard, which takes submissions, instead of a cluster to join."""
    return (address or "").startswith(("http://", "https://"))


def submit(
    address: str,
    arguments: list[str],
    follow: Callable[[str], None],
    files: Mapping[str, str] | None = None,
    places: Sequence[str] = (),
) -> int:
    """Submit `amvur ARGUMENTS` to a cluster, and follow it to its end.

    Relative paths among the arguments start from this process's folder, which the cluster must see. Ctrl-C leaves the
    submission running. With RAY_AUTH_MODE=token, the token is read from the same places as Ray reads it.

    Args:
        address: `http(s)://HOST:8265`, the dashboard of the cluster's head.
        arguments: of the command line, for example `["train", "supervised", "run", "--address", "auto"]`.
        follow: called with text to show: the submission's id, then its log in pieces.
        files: text files to send along, by their path below the code, such as `annotator/configs/train/mine.yaml`.
        places: paths and URLs that the command reads or writes; a note lists those that the cluster may not see.

    Returns:
        The command's exit code; 130 if the submission was stopped, or left with Ctrl-C.

    Raises:
        UserError: the address does not respond, requires a token, or the submission failed to start.
    """
    client = _client(address)
    here = [place for place in places if is_local(place)]
    if here and urlsplit(address).hostname not in ("localhost", "127.0.0.1", "::1"):
        names = ", ".join(f"'{without_secrets(place)}'" for place in here)
        follow(f"{names}: give URLs, unless all machines of the cluster share this folder\n")
    with tempfile.TemporaryDirectory(prefix="amvur-job-") as folder:
        _stage(Path(folder), {"job.sh": _SCRIPT, **(files or {})})
        # Only relative paths need this shell's folder on the cluster.
        folder_here = str(Path.cwd()) if any(not local_path(place).is_absolute() for place in here) else ""
        entry = shlex.join(["sh", "job.sh", folder_here, sys.executable, *arguments])
        with _plain_errors(address):
            submission = client.submit_job(entrypoint=entry, runtime_env={"working_dir": folder})
    follow(f"submission {submission} at {address}; Ctrl-C leaves it running\n")
    return _follow_or_leave(client, address, submission, follow)


def without_address(arguments: Sequence[str], instead: str | None) -> list[str]:
    """Return a command's arguments with another `--address`, or without it."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--address":
            next(rest, None)
        elif not argument.startswith("--address="):
            kept.append(argument)
    # Directly after the command's name, since arguments after `--` are not options.
    return [*kept[:1], "--address", instead, *kept[1:]] if instead else kept


def submissions_table(address: str) -> list[tuple[str, ...]]:
    """Return a header and one row per submission of amvur, the newest first.

    Raises:
        UserError: as for `submit`.
    """
    client = _client(address)
    with _plain_errors(address):
        jobs = [job for job in client.list_jobs() if job.submission_id and _MARK in (job.entrypoint or "")]
    jobs.sort(key=lambda job: -(job.start_time or 0))
    rows: list[tuple[str, ...]] = [("submission", "state", "began", "command")]
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
        command = without_secrets(shlex.join(["amvur", *shlex.split(job.entrypoint)[4:]]))
        rows.append((job.submission_id, str(job.status.value).lower(), began, command))
    return rows


def follow_submission(address: str, submission: str, follow: Callable[[str], None]) -> int:
    """Follow a submission's log from its start to its end; return its exit code, or 130 after Ctrl-C.

    Raises:
        UserError: there is no such submission; or as for `submit`.
    """
    client = _client(address)
    _state(client, address, submission)
    return _follow_or_leave(client, address, submission, follow)


def stop_submission(address: str, submission: str) -> str:
    """Stop a submission; return its state.

    Raises:
        UserError: there is no such submission; or as for `submit`.
    """
    client = _client(address)
    if _state(client, address, submission).is_terminal():
        return f"had already ended ({_state(client, address, submission).value.lower()})"
    with _plain_errors(address):
        client.stop_job(submission)
    until = time.monotonic() + STOP_S
    while not (state := _state(client, address, submission)).is_terminal() and time.monotonic() < until:
        time.sleep(0.5)
    return str(state.value).lower()


def _state(client: Any, address: str, submission: str) -> Any:
    try:
        return client.get_job_status(submission)
    except RuntimeError as error:
        if "does not exist" in str(error) or "404" in str(error):
            raise UserError(
                f"'{address}' has no submission '{submission}': list them with `amvur jobs list`"
            ) from None
        raise UserError(
            f"'{address}' does not return the state of submission '{submission}': {first_line(error)}"
        ) from None


def _follow_or_leave(client: Any, address: str, submission: str, follow: Callable[[str], None]) -> int:
    try:
        return _follow(client, address, submission, follow)
    except KeyboardInterrupt:
        follow(
            f"\nsubmission {submission} keeps running. Its log: amvur jobs logs {submission} --address {address}\n"
            f"To stop it: amvur jobs stop {submission} --address {address}\n"
        )
        return 130


def _stage(folder: Path, files: Mapping[str, str]) -> None:
    """Copy code and configurations, nothing else, from any kind of installation."""
    code = Path(__file__).parents[2]
    leave = shutil.ignore_patterns("__pycache__", ".*")
    for package in ("annotator", "trainer"):
        shutil.copytree(code / package, folder / package, ignore=leave)
    shutil.copy(code / "cli.py", folder / "cli.py")
    shutil.copytree(config_folder(), folder / "annotator" / "configs", ignore=leave, dirs_exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for module in (
        "dashboard.modules.dashboard_sdk",
        "dashboard.modules.job.sdk",
        "_private.runtime_env.packaging",
    ):
        logging.getLogger(f"ray.{module}").setLevel(logging.WARNING)
    with _plain_errors(address):
        # Ray's own requests would wait minutes for a missing machine.
        with suppress(HTTPError):  # a response, for example that a token is required
            urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S).close()
        with _own_address():
            return JobSubmissionClient(address)


@contextmanager
def _own_address() -> Iterator[None]:
    """Unset the environment variables with which Ray overrides the given address."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


@contextmanager
def _plain_errors(address: str) -> Iterator[None]:
    from ray.exceptions import AuthenticationError

    try:
        yield
    except OSError:  # includes all errors of `requests`
        raise UserError(
            f"no response from '{address}': give the dashboard of a head started with "
            "`ray start --head` where ray[default] is installed"
        ) from None
    except AuthenticationError:
        raise UserError(
            f"'{address}' requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token"
        ) from None
    except (RuntimeError, ValueError, LookupError, HTTPException) as error:
        raise UserError(f"'{address}' does not accept submissions: {first_line(error)}") from None


def _follow(client: Any, address: str, submission: str, follow: Callable[[str], None]) -> int:
    """Pass on the log until the submission ends; return its exit code."""
    import aiohttp

    log = _Log(follow)
    last_response_s = time.monotonic()
    while True:
        # A connection may break after hours, while the submission keeps running.
        with suppress(RuntimeError, OSError, aiohttp.ClientError):
            asyncio.run(log.read(client, submission))
        try:
            info = client.get_job_info(submission)
        except (RuntimeError, OSError):
            if time.monotonic() - last_response_s > SILENCE_S:
                raise UserError(
                    f"'{address}' stopped responding; submission {submission} may still be running"
                ) from None
        else:
            last_response_s = time.monotonic()
            if info.status.is_terminal():
                break
        time.sleep(1)
    if info.status == "STOPPED":
        return 130
    if info.status == "FAILED" and info.driver_exit_code is None:
        raise UserError(f"submission {submission} failed to start: {first_line(info.message)}")
    return info.driver_exit_code or 0


class _Log:
    """A submission's log. Ray returns it from its start each time; each character is passed on once."""

    def __init__(self, follow: Callable[[str], None]) -> None:
        self._follow, self._shown = follow, 0

    async def read(self, client: Any, submission: str) -> None:
        """Read until the submission or the connection ends."""
        at = 0
        async for text in client.tail_job_logs(submission):
            at += len(text)
            new = text[max(len(text) - (at - self._shown), 0) :] if at > self._shown else ""
            self._shown = max(self._shown, at)
            if new:
                self._follow(new)
