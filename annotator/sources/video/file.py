"""Opening videos, by PyAV, and what holds for listing and decoding them alike."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from annotator.errors import UserError
from annotator.photos.errors import PhotoError
from annotator.sources.faults import open_there
from annotator.sources.video.end import is_cut, is_video
from annotator.storage.files import is_local, local_path

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Among FFmpeg's formats are lists of other files and addresses, whatever the file's name: never those.
_FORMATS = "mov,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg"


def ffmpeg_error() -> type[Exception]:
    """What all of PyAV's own errors are.

    Raises:
        UserError: PyAV is missing.
    """
    try:
        from av import FFmpegError
    except ImportError:
        raise UserError("videos are read by PyAV: pip install 'amvur-annotator[video]'") from None
    return FFmpegError


@contextlib.contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A video and its main stream.

    Raises:
        PhotoError: it is no video, or damaged.
        OSError: it can't be read.
    """
    failure = ffmpeg_error()
    import av

    with open_there(path) as file, contextlib.ExitStack() as stack:
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
            raise cut if is_cut(file) else PhotoError("not_a_photo", "there is no video that can be decoded")
        stream.codec_context.thread_count = 1
        # Else it paints over what it can't decode.
        stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def _not_opened(path: str) -> PhotoError:
    with open_there(path) as file:
        start = file.read(256)
        if not start:
            return PhotoError("empty", "the file is empty")
        if not is_video(start):
            return PhotoError("not_a_photo", "this is not a video")
        if is_cut(file):
            return PhotoError("truncated", "the video is cut short")
    return PhotoError("corrupt", "the video file is damaged")


def is_counted(container: InputContainer, stream: VideoStream) -> bool:
    """Whether time stamps do not tell the order of frames, as in AVI, so that places are frames' numbers."""
    context = stream.codec_context
    return container.format.name == "avi" and (context.has_b_frames or context.name in ("h264", "hevc"))


def can_seek(container: InputContainer) -> bool:
    """Whether a frame has the same time stamp after a seek; MPEG's own files give few, and FFmpeg guesses more."""
    return not container.format.name.startswith("mpeg")


def ticks_of(timed: Packet | VideoFrame) -> int:
    """The time stamp."""
    ticks = timed.dts if timed.pts is None else timed.pts
    return -1 if ticks is None else ticks


def base(stream: VideoStream) -> Fraction:
    """Seconds a tick."""
    return stream.time_base or Fraction(1)
