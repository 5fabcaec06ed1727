"""Odd names and paths of photos on disk: links, pipes, devices, unreadable files."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.robustness.hostile.expected import Expected

_NAMES = (
    *("with\nnewline.jpg", "手と指 рука.jpg", "quote'\",;.jpg", "#50%?&.jpg", " .jpg", "-rf.jpg"),
    *("*[a-z]?.jpg", "a" * 251 + ".jpg", "\x1b[31mred.jpg", "\u202egpj.jpg", "tab\t.jpg", "back\\slash.jpg"),
    *(os.fsdecode(b"not \xff\xfe utf-8.jpg"), os.fsdecode("Müller.jpg".encode("latin-1")), "e\u0301.jpg"),
)


def write_places(here: Path, jpeg: bytes, size: tuple[int, int]) -> dict[str, Expected]:
    """Write the files into a folder and return its expected rows by id."""
    here.mkdir()
    expected: dict[str, Expected] = {}

    def expect(name: str, *outcomes: str, kind: str = "places") -> Path:
        readable = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        expected[f"{here.name}/{readable}"] = Expected(
            kind, frozenset(outcomes), size if outcomes == ("ok",) else None
        )
        return here / name

    for name in _NAMES:
        try:
            (here / name).write_bytes(jpeg)
        except OSError:  # this file system refuses the name
            continue
        expect(name, "ok", kind="names")
    deep = "/".join(["deep"] * 40)
    (here / deep).mkdir(parents=True)
    expect(f"{deep}/x.jpg", "ok", kind="names").write_bytes(jpeg)
    (here / "folder.jpg").mkdir()
    expect("folder.jpg/inside.jpg", "ok").write_bytes(jpeg)
    (here / "folder.tar").mkdir()
    (here / "empty.png").mkdir()
    (here / ".hidden.jpg").write_bytes(jpeg)
    (here / ".hidden").mkdir()
    (here / ".hidden" / "x.jpg").write_bytes(jpeg)
    expect("dangling.jpg", "missing").symlink_to(here / "nowhere.jpg")
    expect("loop.jpg", "missing").symlink_to(here / "loop.jpg")
    expect("link.jpg", "ok").symlink_to(here / "folder.jpg" / "inside.jpg")
    expect("hard link.jpg", "ok").hardlink_to(here / "folder.jpg" / "inside.jpg")
    (here / "link to folder.jpg").symlink_to(here / "folder.jpg")
    for name in ("null", "zero", "urandom", "tty"):
        expect(f"{name}.jpg", "not_a_photo").symlink_to(f"/dev/{name}")
    os.mkfifo(expect("pipe.jpg", "not_a_photo"))
    expect("link to pipe.jpg", "not_a_photo").symlink_to(here / "pipe.jpg")
    os.mkfifo(here / "pipe without a suffix")
    # Neither a file nor named like a photo: must be skipped without blocking.
    for suffix in ("tar", "mp4", "parquet"):
        os.mkfifo(here / f"pipe.{suffix}")
        (here / f"endless.{suffix}").symlink_to("/dev/zero")
        (here / f"link to folder.{suffix}").symlink_to(here / "folder.jpg")
    for name in ("dangling.tar", "dangling.mp4", "dangling.parquet"):
        expect(name, "missing").symlink_to(here / "nowhere")
    with socket.socket(socket.AF_UNIX) as server, _inside(here):
        server.bind("socket.jpg")
    expect("socket.jpg", "not_a_photo")
    for name, length, outcome in (
        ("sparse terabyte.jpg", 2**40, "too_large"),
        ("sparse.png", 900_000_000, "too_large"),
        ("sparse.parquet", 2**40, "not_a_photo"),
        ("sparse.mp4", 2**40, "not_a_photo"),
    ):
        with expect(name, outcome).open("wb") as file:
            file.truncate(length)
    if os.geteuid() != 0:
        for name in ("forbidden.jpg", "forbidden.tar", "forbidden.mp4", "forbidden.parquet"):
            path = expect(name, "no_permission")
            path.write_bytes(jpeg)
            path.chmod(0)
    return expected


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Change into the folder, because names of sockets must be short."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
