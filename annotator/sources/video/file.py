"""Open videos with PyAV; shared helpers for listing and decoding them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from annotator.errors import UserError
from annotator.photos.errors import PhotoError
from annotator.sources.faults import open_existing
from annotator.sources.video.end import is_cut, is_video
from annotator.storage.files import is_local, local_path

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Some of FFmpeg's formats are playlists of other files and URLs, recognised under any file name: keep them out.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"

_FOCAL_KEY = "com.apple.quicktime.camera.focal_length.35mm_equivalent"
_FOCAL = re.compile(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:mm)?\s*", re.ASCII)


def ffmpeg_error() -> type[Exception]:
    """Return the base class of PyAV's errors.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        from av import FFmpegError
    except ImportError:
        raise UserError("videos need PyAV: pip install 'amvur-annotator[video]'") from None
    return FFmpegError


@contextlib.contextmanager
def opened_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video and its main stream.

    Raises:
        PhotoError: the file is not a video, or is damaged.
        OSError: the file can't be read.
    """
    failure = ffmpeg_error()
    import av

    with open_existing(path) as file, contextlib.ExitStack() as stack:
        source: Any = str(local_path(path).absolute()) if is_local(path) else file
        try:
            options = {"format_whitelist": _FORMATS}
            container = stack.enter_context(
                av.open(source, container_options=options, metadata_errors="replace")
            )
        except failure:
            raise _not_opened(path) from None
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            cut = PhotoError("truncated", "the video is cut short")
            raise (
                cut
                if is_cut(file)
                else PhotoError("not_a_photo", "the file has no video stream that can be decoded")
            )
        stream.codec_context.thread_count = 1
        # By default, FFmpeg conceals damage by painting over it.
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _not_opened(path: str) -> PhotoError:
    with open_existing(path) as file:
        start = file.read(256)
        if not start:
            return PhotoError("empty", "the file is empty")
        if not is_video(start):
            return PhotoError("not_a_photo", "this is not a video")
        if is_cut(file):
            return PhotoError("truncated", "the video is cut short")
    return PhotoError("corrupt", "the video file is damaged")


def is_counted(container: InputContainer, stream: VideoStream) -> bool:
    """Return whether frames are located by number, because time stamps do not give their order, as in AVI."""
    context = stream.codec_context
    return container.format.name == "avi" and (context.has_b_frames or context.name in ("h264", "hevc"))


def can_seek(container: InputContainer) -> bool:
    """Return whether time stamps stay the same after a seek; MPEG files store few, and FFmpeg guesses the others."""
    return not container.format.name.startswith("mpeg")


def film_focal_mm(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the focal length that is equivalent on 35 mm film, as phones note it in QuickTime files; else None.

    Apple's key belongs to the track; its cameras have written it for the whole file. Its value is text such as `26` or
    `26.00mm`.
    """
    for facts in (stream.metadata, container.metadata):
        found = _FOCAL.fullmatch(facts.get(_FOCAL_KEY, ""))
        if found:
            return float(found[1])
    return None


def ticks_of(timed: Packet | VideoFrame) -> int:
    """Return the time stamp in ticks; -1 if there is none."""
    ticks = timed.dts if timed.pts is None else timed.pts
    return -1 if ticks is None else ticks


def base(stream: VideoStream) -> Fraction:
    """Return the seconds per tick."""
    return stream.time_base or Fraction(1)
