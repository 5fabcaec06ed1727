"""A proxy process between an S3 client and `tests.support.s3_server` that breaks requests on purpose.

    with faulty(server.endpoint, Faults(reset=0.1), folder / "proxy.log") as proxy:
        environment = dataclasses.replace(server, endpoint=proxy.endpoint).environment

Requests are forwarded unchanged, Host included, so signatures stay valid.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

KINDS = ("internal_error", "slow_down", "reset", "lost", "cut", "stall", "stall_inside")

PIECE = 1 << 18
ERRORS = {
    "internal_error": (b"500 Internal Server Error", b"InternalError", b"We encountered an internal error."),
    "slow_down": (b"503 Slow Down", b"SlowDown", b"Please reduce your request rate."),
}


@dataclass(frozen=True)
class Faults:
    """Probability of each fault per request; a request has one fault at most."""

    internal_error: float = 0.0  # 500, not executed
    slow_down: float = 0.0  # 503, not executed
    reset: float = 0.0  # RST instead of an answer, not executed
    lost: float = 0.0  # executed, then RST instead of the answer
    cut: float = 0.0  # executed, the connection ends within the body (without a body: within the head)
    stall: float = 0.0  # executed, the whole answer is late
    stall_inside: float = 0.0  # executed, the answer pauses where `cut` would end it
    stall_s: float = 30.0
    #: After this many faults, the same request (method, path, query and range) passes once.
    most_in_a_row: int = 3
    #: Seed: the nth arrival of the same request has the same fault in each run.
    seed: int = 0

    @classmethod
    def each(cls, probability: float, **others: Any) -> Faults:
        """Return faults of all kinds with equal probability."""
        probabilities: dict[str, Any] = dict.fromkeys(KINDS, probability)
        return cls(**probabilities, **others)

    def __post_init__(self) -> None:
        each = [getattr(self, kind) for kind in KINDS]
        if min(each) < 0 or sum(each) > 1 + 1e-9:
            raise ValueError("probabilities must be at least 0, with a sum of at most 1")


@dataclass(frozen=True)
class Proxy:
    """A test's handle on the proxy."""

    endpoint: str
    log: Path
    process: subprocess.Popen[str]

    def counts(self) -> dict[str, int]:
        """Count requests by fault, and those "passed"; also works after the proxy ended.

        "broken" exists only if S3 itself failed to answer. Connections during a pause are not counted.
        """
        lines = self.log.read_text().splitlines(keepends=True)
        found = Counter(line.split("\t")[0] for line in lines if line.endswith("\n"))
        return {**dict.fromkeys((*KINDS, "passed"), 0), **found}

    def pause(self) -> None:
        """Simulate an outage of S3: reset open connections and refuse new ones."""
        self._command("pause")

    def resume(self) -> None:
        """End the outage, at the same endpoint."""
        self._command("resume")

    def _command(self, command: str) -> None:
        assert self.process.stdin and self.process.stdout
        print(command, file=self.process.stdin, flush=True)
        if self.process.stdout.readline() != f"{command}\n":
            raise RuntimeError(f"the proxy did not {command}")


@contextmanager
def faulty(upstream: str, faults: Faults, log: Path) -> Iterator[Proxy]:
    """Start a proxy for the S3 at UPSTREAM; LOG gets a line per request: fault, time, method, path."""
    command = [
        sys.executable,
        "-m",
        "tests.robustness.faulty_proxy",
        upstream,
        json.dumps(asdict(faults)),
        str(log.resolve()),
    ]
    # A new session, so that Ctrl-C does not reach the proxy; it ends with its stdin.
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout
            port = process.stdout.readline().strip()
            if not port:
                raise RuntimeError("the proxy did not start")
            yield Proxy(f"http://127.0.0.1:{port}", log, process)
        finally:
            process.kill()


@dataclass
class _Head:
    """The start line and header lines of a request or answer."""

    lines: list[bytes]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> _Head | None:
        """Read a head; None if the other side has closed the connection."""
        try:
            data = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        return cls(data[:-4].split(b"\r\n"))

    def get(self, name: bytes) -> bytes:
        for line in self.lines[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name:
                return value.strip()
        return b""

    def bytes_without(self, *names: bytes, close: bool) -> bytes:
        """Return the head as received, without headers NAMES and with its own Connection header."""
        drop = (*names, b"connection", b"keep-alive")
        kept = [line for line in self.lines[1:] if line.partition(b":")[0].strip().lower() not in drop]
        if close:
            kept.append(b"Connection: close")
        return b"\r\n".join([self.lines[0], *kept, b"", b""])

    async def body(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        """Yield the body of a request in pieces."""
        if self.get(b"transfer-encoding"):
            raise NotImplementedError("a request in chunks, which no S3 client sends over plain http")
        size = int(self.get(b"content-length") or 0)
        while size:
            piece = await reader.read(min(size, PIECE))
            if not piece:
                raise ConnectionResetError("the client closed the connection within its body")
            size -= len(piece)
            yield piece


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN, and drop unsent data."""
    connection = writer.get_extra_info("socket")
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Server:
    """The proxy inside its process."""

    def __init__(self, upstream: str, faults: Faults, log: Path) -> None:
        self.upstream, self.faults = urlsplit(upstream), faults
        self.log = log.open("wb", buffering=0)  # a request's line is complete before its answer
        self.arrived: Counter[tuple[str, ...]] = Counter()
        self.in_a_row: Counter[tuple[str, ...]] = Counter()
        self.open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.listening: asyncio.Server | None = None
        # Keeps the port during a pause; a socket that does not listen refuses connections.
        self.holder = self._bound(0)
        self.port: int = self.holder.getsockname()[1]

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections in TIME_WAIT
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    async def resume(self) -> None:
        if not self.listening:
            self.listening = await asyncio.start_server(
                self._connection, sock=self._bound(self.port), limit=PIECE, backlog=1024
            )

    async def pause(self) -> None:
        if self.listening:
            self.listening.close()
            self.listening = None
        for task, writer in self.open.items():
            _reset(writer)
            task.cancel()

    def _note(self, kind: str, key: tuple[str, ...]) -> None:
        self.log.write("\t".join((kind, f"{time.time():.3f}", *key)).encode() + b"\n")

    def _choose(self, key: tuple[str, ...]) -> tuple[str, random.Random]:
        """Choose a fault, or "passed", for this arrival of the request KEY."""
        chance = random.Random(repr((self.faults.seed, key, self.arrived[key])))
        self.arrived[key] += 1
        weights = [getattr(self.faults, kind) for kind in KINDS]
        kind = chance.choices([*KINDS, "passed"], [*weights, max(0.0, 1 - sum(weights))])[0]
        if kind != "passed" and self.in_a_row[key] >= self.faults.most_in_a_row:
            kind = "passed"
        self.in_a_row[key] = 0 if kind == "passed" else self.in_a_row[key] + 1
        return kind, chance

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        if not self.listening:  # accepted just before a pause
            _reset(writer)
            return
        self.open[task] = writer
        try:
            while head := await _Head.read(reader):
                if not await self._request(head, reader, writer):
                    break
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client closed the connection, or S3 is down
        finally:
            del self.open[task]
            writer.close()

    async def _request(self, head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request, and return whether the connection may carry another."""
        method, target = head.lines[0].decode("latin-1").split(" ")[:2]
        key = (method, target, head.get(b"range").decode("latin-1"))
        kind, chance = self._choose(key)
        self._note(kind, key)
        if kind == "reset":
            _reset(writer)
            return False
        if head.get(b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
        keep = head.get(b"connection").lower() != b"close"
        if kind in ERRORS:
            async for _ in head.body(reader):
                pass
            writer.write(_error(kind, method, target, keep))
            await writer.drain()
            return keep
        try:
            assert self.upstream.hostname
            s3_reader, s3 = await asyncio.open_connection(
                self.upstream.hostname, self.upstream.port, limit=PIECE
            )
        except OSError:
            self._note("broken", key)
            _reset(writer)
            return False
        try:
            await self._pass_on(head, reader, s3)
            try:
                answer = await _Head.read(s3_reader)
            except (ConnectionError, asyncio.IncompleteReadError):
                answer = None
            if answer is None:
                self._note("broken", key)
                _reset(writer)
                return False
            return await self._answer(kind, chance, method, keep, answer, s3_reader, writer)
        finally:
            s3.close()

    @staticmethod
    async def _pass_on(head: _Head, reader: asyncio.StreamReader, s3: asyncio.StreamWriter) -> None:
        s3.write(head.bytes_without(b"expect", close=True))
        listens = True
        async for piece in head.body(reader):
            if listens:
                try:
                    s3.write(piece)
                    await s3.drain()
                except ConnectionError:
                    listens = False  # S3 may have answered already

    async def _answer(
        self,
        kind: str,
        chance: random.Random,
        method: str,
        keep: bool,
        answer: _Head,
        s3: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        """Forward S3's answer with the fault KIND."""
        empty = method == "HEAD" or answer.lines[0].split(b" ")[1] in (b"204", b"304")
        length = answer.get(b"content-length")
        # S3 and the client's connection close after the answer, so chunks need no parsing.
        keep = keep and (empty or bool(length))
        head = answer.bytes_without(close=not keep)
        if kind == "lost":
            while await s3.read(PIECE):
                pass
            _reset(writer)
            return False
        if kind == "stall":
            await asyncio.sleep(self.faults.stall_s)
        at = None  # position of the fault in the answer, bytes
        begin = head
        if kind in ("cut", "stall_inside"):
            if not length and not empty:
                begin += await s3.read()
                # Before the last chunk, which is b"0\r\n\r\n".
                at = len(head) + chance.randrange(max(1, len(begin) - len(head) - 5))
            elif empty or length == b"0":
                at = 1 + chance.randrange(len(head) - 1)
            else:
                at = len(head) + chance.randrange(int(length))
        sent, piece = 0, begin
        while piece:
            if at is not None and sent + len(piece) > at:
                writer.write(piece[: at - sent])
                await writer.drain()
                if kind == "cut":
                    return False
                await asyncio.sleep(self.faults.stall_s)
                piece, sent, at = piece[at - sent :], at, None
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            piece = await s3.read(PIECE)
        whole = empty or sent - len(head) == int(length or -1)
        return keep and whole


def _error(kind: str, method: str, target: str, keep: bool) -> bytes:
    status, code, message = ERRORS[kind]
    resource = target.partition("?")[0].encode("latin-1").replace(b"&", b"&amp;").replace(b"<", b"&lt;")
    body = (
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>' + code + b"</Code><Message>" + message
    ) + (b"</Message><Resource>" + resource + b"</Resource><RequestId>0123456789ABCDEF</RequestId></Error>")
    head = [b"HTTP/1.1 " + status, b"Content-Type: application/xml", b"Content-Length: %d" % len(body)]
    if not keep:
        head.append(b"Connection: close")
    return b"\r\n".join([*head, b"", b"" if method == "HEAD" else body])


async def _main(upstream: str, faults: Faults, log: Path) -> None:
    """Serve until stdin ends: print the port, then each command after its execution."""
    server = _Server(upstream, faults, log)
    await server.resume()
    print(server.port, flush=True)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while command := (await commands.readline()).decode().strip():
        await {"pause": server.pause, "resume": server.resume}[command]()
        print(command, flush=True)
    os._exit(0)  # without waiting for connections


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], Faults(**json.loads(sys.argv[2])), Path(sys.argv[3])))
