"""Detect JPEGs whose image data stops before the last block.

libjpeg fills missing blocks with one colour and only warns, and Pillow drops the warning. So a file that was cut and
closed again decodes to a half-grey photo. The check is an experiment: it inserts extra bytes where the image data ends
or restarts. A decoder ignores them if the data is complete, and draws them if blocks are missing.
"""

from __future__ import annotations

import io
import re

from PIL.JpegImagePlugin import JpegImageFile

# The end of a run of image data: any marker except a stuffed zero, a restart or a fill byte.
_END_OF_RUN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_START_OF_SCAN = 0xDA
# Segments allowed between the scans of a progressive JPEG: tables, restart interval, application data, comments.
_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)}
_PROBE = bytes((37 * k) % 251 for k in range(64))


def ends_early(data: bytes) -> bool:
    """Return whether blocks are missing, at the end or earlier, from a JPEG that decodes without an error."""
    probed = _with_probes(data)
    return probed is None or _eighth(data) != _eighth(probed)


def _eighth(data: bytes) -> bytes:
    """Return the picture at an eighth of its size: one pixel per block, enough to detect a change."""
    image = JpegImageFile(io.BytesIO(data))
    width, height = image.size
    image.draft(None, (max(1, width // 8), max(1, height // 8)))
    return image.tobytes()


def _with_probes(data: bytes) -> bytes | None:
    """Return the file with extra bytes before every restart, and after the image data of every scan.

    Returns None if a restart is missing from their numbered sequence.
    """
    parts = []
    start, position, marker = 0, 2, data[3]
    while marker in _SEGMENTS or marker == _START_OF_SCAN or 0xC0 <= marker <= 0xCF:
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == _START_OF_SCAN:
            body = position
            end = _END_OF_RUN.search(data, body)
            position = end.start() if end else len(data)
            run = data[body:position]
            numbers = [mark[0][1] & 7 for mark in _RESTART.finditer(run)]
            if numbers != [count % 8 for count in range(len(numbers))]:
                return None
            # At a due restart, the decoder draws nothing before the restart marker.
            due = bytes([0xFF, 0xD0 + len(numbers) % 8])
            probed = _RESTART.sub(lambda mark: _PROBE + mark[0], run)
            parts += [data[start:body], probed, _PROBE, due, _PROBE]
            start = position
        # Fill bytes may precede a marker.
        while data[position + 1 : position + 2] == b"\xff":
            position += 1
        if position + 1 >= len(data):
            break
        marker = data[position + 1]
    return b"".join([*parts, data[start:]])
