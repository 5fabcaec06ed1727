"""Decode frames of an open video, each from a keyframe on, and check their time stamps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from annotator.photos.decode import MIN_SIDE_PX
from annotator.photos.errors import PhotoError
from annotator.photos.exif import sensible_aspect
from annotator.photos.formats import MAX_PIXELS
from annotator.photos.pixels import square_pixels
from annotator.sources.video.file import base, can_seek, ffmpeg_error, is_counted, ticks_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Up to this far ahead, decoding the frames between is as fast as a seek.
_NEAR_S = 3
# A seek that lands too late is retried this much earlier.
_BACK_S = (0, 1, 4, 16, 64, math.inf)


def frames_at(
    container: InputContainer, stream: VideoStream, wanted: list[int]
) -> Iterator[NDArray[np.uint8] | PhotoError]:
    """Yield the frame at each wanted position (time stamp or number), in their order, or an error in its stead."""
    pixel_aspect = sensible_aspect(float(stream.sample_aspect_ratio or 1))
    from_start = is_counted(container, stream) or not can_seek(container)
    near = math.inf if from_start else _NEAR_S / base(stream)
    frames: Iterator[tuple[float, Any]] = iter(())
    # `frame` is the first frame at or after `low`, and its position is `at`; initially no frame is decoded.
    low, at, frame = math.inf, -math.inf, None
    for position in wanted:
        if not low <= position <= at + near:
            frames = _frames_before(container, stream, position)
            low, (at, frame) = position, next(frames, (-math.inf, None))
        while at < position and frame is not None:
            low = at + 1
            at, frame = next(frames, (math.inf, None))
        if at == position and frame is not None:
            yield _pixels(frame, pixel_aspect)
        else:
            yield PhotoError("corrupt", "the frame can't be decoded")


def _frames_before(
    container: InputContainer, stream: VideoStream, position: int
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield frames with their positions, in order, from the keyframe before `position` on; nothing if there is none."""
    if is_counted(container, stream):
        yield from _counted(container, stream)
        return
    for back in _BACK_S if can_seek(container) else (math.inf,):
        start = position - back / base(stream) if back < math.inf else -math.inf
        earliest = min(0, stream.start_time or 0)
        frames = _decoded(container, stream, int(max(start, earliest)))
        first = next(frames, None)
        if first is not None and first[0] <= position:
            yield first
            yield from frames
            return


def _decoded(
    container: InputContainer, stream: VideoStream, start: int
) -> Iterator[tuple[float, VideoFrame]]:
    failure = ffmpeg_error()
    # The keyframe's time: frames shown before it depend on frames that were not read.
    floor: int | None = None
    with contextlib.suppress(failure):
        container.seek(start, stream=stream)
        for packet in container.demux(stream):
            if floor is None:
                if not packet.is_keyframe or not packet.size:
                    continue
                floor = ticks_of(packet)
            for frame in _decode(packet):
                if frame is None:
                    floor = None
                    stream.codec_context.flush_buffers()
                elif floor is not None and ticks_of(frame) >= floor:
                    yield ticks_of(frame), frame


def _counted(container: InputContainer, stream: VideoStream) -> Iterator[tuple[float, VideoFrame]]:
    """Yield all frames with their numbers, up to the first that can't be decoded: later numbers would be unknown."""
    count = 0
    with contextlib.suppress(ffmpeg_error()):
        container.seek(0, stream=stream)
        for packet in container.demux(stream):
            for frame in _decode(packet):
                if frame is None:
                    return
                yield count, frame
                count += 1


def _decode(packet: Packet) -> Iterator[Any]:
    """Yield the frames that a packet completes; then None if there is any damage."""
    try:
        if packet.is_corrupt:
            yield None
            return
        for frame in packet.decode():
            yield None if frame.is_corrupt else frame
            if frame.is_corrupt:
                return
    except ffmpeg_error():
        yield None


def _pixels(frame: VideoFrame, pixel_aspect: float) -> NDArray[np.uint8] | PhotoError:
    if frame.width * frame.height > MAX_PIXELS:
        return PhotoError("too_large", f"the frame has {frame.width} x {frame.height} pixels")
    if min(frame.width, frame.height) < MIN_SIDE_PX:
        message = f"the frame has {frame.width} x {frame.height} pixels: too small to show a hand"
        return PhotoError("too_small", message)
    try:
        stored: Any = frame.to_ndarray(format="rgb24", threads=1)
        stored = square_pixels(stored, pixel_aspect)
        return np.ascontiguousarray(_upright(stored, frame))
    except (ffmpeg_error(), ValueError):
        return PhotoError("unsupported", "this pixel format is not supported")


def _upright(pixels: Any, frame: VideoFrame) -> Any:
    """Rotate and mirror by the display matrix; phones held upright store videos on their side."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    # A pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
