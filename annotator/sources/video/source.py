"""List and read frames of videos with PyAV. A frame is located by its time stamp, or in AVI by its number."""

from __future__ import annotations

import contextlib
import heapq
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from annotator.photos.decode import Photo
from annotator.photos.errors import PhotoError
from annotator.photos.focal import video_focal_px
from annotator.sources.entry import Entry, Fault
from annotator.sources.faults import open_existing, unreadable
from annotator.sources.suffixes import VIDEO_SUFFIXES
from annotator.sources.video.end import is_cut
from annotator.sources.video.file import base, ffmpeg_error, film_focal_mm, is_counted, opened_video, ticks_of
from annotator.sources.video.frames import frames_at

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

__all__ = ["VIDEO_SUFFIXES", "list_video", "read_frames", "read_video"]

#: In H.264 and H.265 at most 16 frames, or 32 half frames, are stored after a frame but shown before it.
_MAX_REORDER = 64


def list_video(path: str, file_id: str, every: int = 1) -> Iterator[Entry]:
    """Yield every Nth frame in display order, from the first on; nothing is decoded.

    If the file ends early or is damaged, the last entry carries the fault for all remaining frames.

    Raises:
        UserError: PyAV is not installed.
    """
    count, start = 0, 0
    try:
        with open_existing(path) as file, opened_video(path) as (container, stream):
            counted, cut = is_counted(container, stream), is_cut(file)
            for ticks in _times(container, stream, cut):
                start = start if count else ticks
                if count % every == 0:
                    yield Entry(
                        path,
                        f"{file_id}#{count}",
                        count,
                        at=(count if counted else ticks,),
                        frame_index=count,
                        frame_time_s=float((ticks - start) * base(stream)),
                    )
                count += 1
            if cut:
                raise PhotoError("truncated", "the video is cut short")
            if not count:
                raise PhotoError("corrupt", "the video has no frames")
        return
    except PhotoError as error:
        fault = Fault(error.reason, str(error))
    except OSError as error:
        fault = unreadable(error)
    yield Entry(path, file_id, count, fault=fault)


def _times(container: InputContainer, stream: VideoStream, cut: bool) -> Iterator[int]:
    """Yield the time stamps of all frames in display order; packets come in decoding order."""
    failure = ffmpeg_error()
    waiting: list[int] = []
    last, decoded = -math.inf, -math.inf
    partial = False
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except failure:
            raise PhotoError("corrupt", "the video file is damaged") from None
        if packet is not None and _is_shown(packet, stream):
            heapq.heappush(waiting, ticks_of(packet))
            partial = packet.is_corrupt
            decoded = decoded if packet.dts is None else packet.dts
        while waiting and (packet is None or len(waiting) > _MAX_REORDER):
            ticks = heapq.heappop(waiting)
            if packet is None and (cut or partial) and ticks > decoded:
                break  # missing packets may contain frames that are shown earlier
            if ticks < last:
                raise PhotoError("corrupt", "the video's time stamps run backwards")
            if ticks > last:  # equal time stamps belong to the two halves of a frame
                yield ticks
            last = ticks
        if packet is None:
            break
    if partial:
        raise PhotoError("truncated", "the video is cut short")


def _is_shown(packet: Packet, stream: VideoStream) -> bool:
    if not packet.size or packet.is_discard or (packet.pts is None and packet.dts is None):
        return False
    # Bit 4 of a VP8 frame is off for hidden reference frames.
    return stream.codec_context.name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def read_frames(path: str, positions: Sequence[tuple[int, ...]]) -> Iterator[Photo | PhotoError]:
    """Yield the frame at each position, in the order of `positions`, or an error in its stead.

    Ascending positions are fastest. After damage, all frames up to the next keyframe are errors: each depends on
    the frames before it.

    Raises:
        UserError: PyAV is not installed.
        OSError: the file can't be read.
    """
    with contextlib.ExitStack() as stack:
        try:
            container, stream = stack.enter_context(opened_video(path))
        except PhotoError as error:
            yield from [error] * len(positions)
            return
        film_mm = film_focal_mm(container, stream)
        for pixels in frames_at(container, stream, [position[0] for position in positions]):
            if isinstance(pixels, PhotoError):
                yield pixels
                continue
            height, width = pixels.shape[:2]
            focal_px = None if film_mm is None else video_focal_px(film_mm, (width, height))
            yield Photo(pixels, width, height, exif_focal_px=focal_px)


def read_video(path: str, positions: Sequence[tuple[int, ...]]) -> Iterator[NDArray[np.uint8] | PhotoError]:
    """Yield the upright RGB frame (H, W, 3) at each position; see `read_frames`."""
    for frame in read_frames(path, positions):
        yield frame.pixels if isinstance(frame, Photo) else frame
