"""Commands of amvur as jobs of a Ray cluster: this very code is sent there, runs there, and its log comes back."""

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

import annotator
from annotator.config import config_folder
from annotator.errors import UserError, first_line
from annotator.storage.files import is_local, local_path
from annotator.storage.remote import shown

#: How long an address may take to answer at all.
ANSWER_S = 5.0

#: How long a cluster that answered before may be silent until its job is left alone.
SILENCE_S = 120.0

#: How long a job that is told to stop may take.
STOP_S = 30.0

#: What the entry point of a job of ours begins with.
_MARK = "sh job.sh "

#: What runs the command there: the first Python that has Ray, for the cluster's `python` may be another; in the folder
#: of the submitting shell where there is one, so that relative paths mean the same.
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


def is_job_address(address: str | None) -> bool:
    """Whether an address is one that jobs are submitted to, rather than a cluster to join."""
    return (address or "").startswith(("http://", "https://"))


def submit(
    address: str,
    arguments: list[str],
    follow: Callable[[str], None],
    files: Mapping[str, str] | None = None,
    places: Sequence[str] = (),
) -> int:
    """Run `amvur ARGUMENTS` as a job of a cluster, and follow it to its end.

    Relative paths among the arguments mean the folder this process is in, which the cluster must see. Ctrl-C
    leaves the job running. A token of RAY_AUTH_MODE=token is found where Ray finds it.

    Args:
        address: `http(s)://HOST:8265`, the dashboard of the cluster's head.
        arguments: of the command line, such as `["train", "supervised", "run", "--address", "auto"]`.
        follow: is given what there is to show: the job's id, then its log as it grows, in pieces.
        files: text files to send along, by their path below the code, such as `annotator/configs/train/mine.yaml`.
        places: paths and URLs that the command reads or writes; the user is told which the cluster may not see.

    Returns:
        the command's exit code; 130 if the job was stopped, or left with Ctrl-C.

    Raises:
        UserError: nothing answers there, it wants a token, or the job could not start.
    """
    client = _client(address)
    here = [place for place in places if is_local(place)]
    if here and urlsplit(address).hostname not in ("localhost", "127.0.0.1", "::1"):
        names = ", ".join(f"'{shown(place)}'" for place in here)
        follow(f"{names}: give URLs, unless all machines of the cluster share this folder\n")
    with tempfile.TemporaryDirectory(prefix="amvur-job-") as folder:
        _stage(Path(folder), {"job.sh": _SCRIPT, **(files or {})})
        # Only relative paths need this shell's folder there.
        folder_here = str(Path.cwd()) if any(not local_path(place).is_absolute() for place in here) else ""
        entry = shlex.join(["sh", "job.sh", folder_here, sys.executable, *arguments])
        with _plain_errors(address):
            job = client.submit_job(entrypoint=entry, runtime_env={"working_dir": folder})
    follow(f"job {job} at {address}; Ctrl-C leaves it running\n")
    return _follow_or_leave(client, address, job, follow)


def without_address(arguments: Sequence[str], instead: str | None) -> list[str]:
    """A command's arguments with another `--address`, or none."""
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--address":
            next(rest, None)
        elif not argument.startswith("--address="):
            kept.append(argument)
    # Behind the command's name: what comes after `--` is no option any more.
    return [*kept[:1], "--address", instead, *kept[1:]] if instead else kept


def jobs_table(address: str) -> list[tuple[str, ...]]:
    """A head, and a row a job of ours, the newest first.

    Raises:
        UserError: as for `submit`.
    """
    client = _client(address)
    with _plain_errors(address):
        jobs = [job for job in client.list_jobs() if job.submission_id and _MARK in (job.entrypoint or "")]
    jobs.sort(key=lambda job: -(job.start_time or 0))
    rows: list[tuple[str, ...]] = [("job", "state", "began", "command")]
    for job in jobs:
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime((job.start_time or 0) / 1000))
        command = shown(shlex.join(["amvur", *shlex.split(job.entrypoint)[4:]]))
        rows.append((job.submission_id, str(job.status.value).lower(), began, command))
    return rows


def follow_job(address: str, job: str, follow: Callable[[str], None]) -> int:
    """Follow a job's log to its end, from its beginning; its exit code, 130 where it is left with Ctrl-C.

    Raises:
        UserError: there is no such job; or as for `submit`.
    """
    client = _client(address)
    _state(client, address, job)
    return _follow_or_leave(client, address, job, follow)


def stop_job(address: str, job: str) -> str:
    """Stop a job; what it is then.

    Raises:
        UserError: there is no such job; or as for `submit`.
    """
    client = _client(address)
    if _state(client, address, job).is_terminal():
        return f"had ended already ({_state(client, address, job).value.lower()})"
    with _plain_errors(address):
        client.stop_job(job)
    until = time.monotonic() + STOP_S
    while not (state := _state(client, address, job)).is_terminal() and time.monotonic() < until:
        time.sleep(0.5)
    return str(state.value).lower()


def _state(client: Any, address: str, job: str) -> Any:
    try:
        return client.get_job_status(job)
    except RuntimeError as error:
        if "does not exist" in str(error) or "404" in str(error):
            raise UserError(
                f"'{address}' has no job '{job}': `amvur jobs list` shows those there are"
            ) from None
        raise UserError(f"'{address}' says nothing of job '{job}': {first_line(error)}") from None


def _follow_or_leave(client: Any, address: str, job: str, follow: Callable[[str], None]) -> int:
    try:
        return _follow(client, address, job, follow)
    except KeyboardInterrupt:
        follow(
            f"\njob {job} goes on. Its log: amvur jobs logs {job} --address {address}\n"
            f"To stop it: amvur jobs stop {job} --address {address}\n"
        )
        return 130


def _stage(folder: Path, files: Mapping[str, str]) -> None:
    """Copy what a command needs, wherever it is installed: the code and the configurations, nothing else."""
    code = Path(annotator.__file__).parent
    leave = shutil.ignore_patterns("__pycache__", ".*")
    for package in ("annotator", "trainer"):
        shutil.copytree(code.parent / package, folder / package, ignore=leave)
    shutil.copy(code.parent / "cli.py", folder / "cli.py")
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
        # Ray's own requests would wait minutes for a machine that is not there.
        with suppress(HTTPError):  # an answer, such as that a token is wanted
            urlopen(f"{address.rstrip('/')}/api/version", timeout=ANSWER_S).close()
        with _own_address():
            return JobSubmissionClient(address)


@contextmanager
def _own_address() -> Iterator[None]:
    """Without the variables with which Ray overrides an address that is given."""
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
    except OSError:  # so are all that `requests` raises
        raise UserError(
            f"nothing answers at '{address}': give the dashboard of a head that was started with "
            "`ray start --head` where ray[default] is installed"
        ) from None
    except AuthenticationError:
        raise UserError(
            f"'{address}' wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN unless ~/.ray/auth_token holds it"
        ) from None
    except (RuntimeError, ValueError, LookupError, HTTPException) as error:
        raise UserError(f"'{address}' takes no jobs: {first_line(error)}") from None


def _follow(client: Any, address: str, job: str, follow: Callable[[str], None]) -> int:
    """Hand on the log until the job ends; its exit code."""
    import aiohttp

    log = _Log(follow)
    heard = time.monotonic()
    while True:
        # A connection held open for hours may be cut; the job knows nothing of it.
        with suppress(RuntimeError, OSError, aiohttp.ClientError):
            asyncio.run(log.read(client, job))
        try:
            info = client.get_job_info(job)
        except (RuntimeError, OSError):
            if time.monotonic() - heard > SILENCE_S:
                raise UserError(
                    f"'{address}' answers no more; if the cluster is still there, job {job} goes on"
                ) from None
        else:
            heard = time.monotonic()
            if info.status.is_terminal():
                break
        time.sleep(1)
    if info.status == "STOPPED":
        return 130
    if info.status == "FAILED" and info.driver_exit_code is None:
        raise UserError(f"job {job} could not run: {first_line(info.message)}")
    return info.driver_exit_code or 0


class _Log:
    """A job's log, which can only be read from its beginning: hands on each character once."""

    def __init__(self, follow: Callable[[str], None]) -> None:
        self._follow, self._shown = follow, 0

    async def read(self, client: Any, job: str) -> None:
        """Read on until the job ends or the connection does."""
        at = 0
        async for text in client.tail_job_logs(job):
            at += len(text)
            new = text[max(len(text) - (at - self._shown), 0) :] if at > self._shown else ""
            self._shown = max(self._shown, at)
            if new:
                self._follow(new)
