"""Detect video files that are shorter than the sizes they state: FFmpeg silently plays the remaining part."""

from __future__ import annotations

from typing import IO

_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid")
_MATROSKA, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_video(start: bytes) -> bool:
    """Return whether a file's first bytes are those of a supported container."""
    return (
        start[4:8] in _MP4_BOXES
        or start[:4] == _MATROSKA
        or (start[:4] == b"RIFF" and start[8:11] == b"AVI")
        or start[:4] in (b"\0\0\1\xba", b"\0\0\1\xb3")
        or is_transport_stream(start)
        or start[:4] in (b"FLV\1", b"OggS", b"\x30\x26\xb2\x75")  # the last is ASF, as in WMV
    )


def is_transport_stream(start: bytes) -> bool:
    """Return whether a file starts with packets of an MPEG transport stream, each possibly after a time stamp."""
    return b"\x47\x47" in (start[:189:188], start[4:197:192])


def is_cut(file: IO[bytes]) -> bool:
    """Return whether a file is cut short; only MP4, Matroska and AVI state their size, so others return False."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(64)
    if start[4:8] in _MP4_BOXES:
        return _mp4_is_cut(file, size)
    if start[:4] == _MATROSKA:
        return _matroska_is_cut(start, size)
    if start[:4] == b"RIFF":
        return _avi_is_cut(file, size)
    return False


def _mp4_is_cut(file: IO[bytes], size: int) -> bool:
    """Return whether an index or data box is longer than the file, or the index is missing."""
    position, index = 0, False
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length, kind = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        elif length == 0:  # up to the end
            length = size - position
        index = index or kind == b"moov"
        if position + length > size and kind in (b"moov", b"moof", b"mdat"):
            return True
        position += max(8, length)
    return not index


def _matroska_is_cut(start: bytes, size: int) -> bool:
    header, position = _number(start, 4)
    position += header
    if start[position : position + 4] != _SEGMENT or position + 5 > len(start):
        return position + 5 > size
    length, position = _number(start, position + 4)
    return length >= 0 and position + length > size


def _number(data: bytes, position: int) -> tuple[int, int]:
    """Return a size in EBML's encoding, -1 for unknown, and the position after it."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    value = int.from_bytes(data[position : position + width], "big") & ((1 << 7 * width) - 1)
    return (-1 if value == (1 << 7 * width) - 1 else value), position + width


def _avi_is_cut(file: IO[bytes], size: int) -> bool:
    position = 0
    while position + 12 <= size:  # a large file is a sequence of RIFF chunks of a gigabyte each
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF":
            return False
        position += 8 + int.from_bytes(header[4:8], "little")
    return position > size + 1
