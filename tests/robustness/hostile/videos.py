"""Videos: intact, cut and damaged, and files with only the suffix of a video."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.robustness.hostile.expected import CUT, DAMAGED, OK, Expected
from tests.robustness.hostile_photos import encoded


def write_videos(folder: Path, picture: Image.Image) -> dict[str, Expected]:
    """Write the videos and return their expected rows by id; none without PyAV, which skips videos in a folder."""
    folder.mkdir()
    expected: dict[str, Expected] = {}

    def one(name: str, data: bytes, *outcomes: str) -> None:
        (folder / name).write_bytes(data)
        expected[f"videos/{name}"] = Expected("no videos", frozenset(outcomes))

    try:
        import av
    except ImportError:
        return expected
    one("empty.mp4", b"", "empty")
    one("text.mp4", b"no video\n" * 50, "not_a_photo")
    one("zeros.mov", bytes(5000), "not_a_photo")
    one("photo.mkv", encoded(picture, "JPEG"), "not_a_photo")
    one("page.webm", b"<!DOCTYPE html>" * 40, "not_a_photo")
    one("playlist.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "not_a_photo")
    one("script.avi", b"ffconcat version 1.0\nfile '../whole/camera.jpg'\n", "not_a_photo")
    one("mark.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(100), "truncated", "corrupt")
    one("mark.mkv", b"\x1aE\xdf\xa3" + bytes(200), "corrupt", "truncated", "not_a_photo")
    one("mark.avi", b"RIFF" + struct.pack("<I", 9000) + b"AVI LIST" + bytes(100), "truncated", "corrupt")
    one("sound.mp4", _sound(av), "not_a_photo")
    flags = {"movflags": "faststart"}  # index before the frames
    for name, codec, options in (
        ("index first.mp4", "mpeg4", flags),
        ("index last.mov", "mpeg4", {}),
        ("plain.avi", "mpeg4", {}),
        ("motion.avi", "mjpeg", {}),
        ("plain.mkv", "mpeg4", {}),
    ):
        _write_video(av, folder / name, picture, codec, options)
        data = (folder / name).read_bytes()
        packets = _packets(av, data)
        for number in range(len(packets)):
            expected[f"videos/{name}#{number}"] = Expected("videos", OK, picture.size)
        middle = packets[len(packets) // 2]
        holed = data[:middle] + bytes(300) + data[middle + 300 :]
        (folder / f"hole {name}").write_bytes(holed)
        expected[f"videos/hole {name}"] = Expected("damaged videos", DAMAGED, optional=True)
        for number, stop in enumerate(packets):
            # Frames depend on earlier ones, so the first ones are intact.
            before = stop < middle
            expected[f"videos/hole {name}#{number}"] = Expected(
                "damaged videos", OK if before else OK | DAMAGED, optional=not before
            )
        for share in (0.01, 0.2, 0.45, 0.7, 0.95):
            end = int(len(data) * share)
            cut = f"cut {end:06d} {name}"
            (folder / cut).write_bytes(data[:end])
            expected[f"videos/{cut}"] = Expected("cut videos", CUT)
            if name.startswith("index last"):
                continue
            for number, stop in enumerate(packets):
                # Readers differ on the cut frame and on the last one before it.
                if stop <= end:
                    last = number + 1 == len(packets) or packets[number + 1] > end
                    expected[f"videos/{cut}#{number}"] = Expected("cut videos", OK, optional=last)
                elif number == 0 or packets[number - 1] <= end:
                    expected[f"videos/{cut}#{number}"] = Expected("cut videos", DAMAGED, optional=True)
    return expected


def _write_video(
    av: Any, path: Path, picture: Image.Image, codec: str, options: dict[str, str], count: int = 12
) -> None:
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(
            codec, rate=10, options={"bf": "0", "g": "4"} if codec == "mpeg4" else {}
        )
        stream.width, stream.height = picture.size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(np.asarray(picture), number * 3, 1), format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _packets(av: Any, data: bytes) -> list[int]:
    """Return the end position of each frame in an intact video."""
    with av.open(io.BytesIO(data)) as container:
        return [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]


def _sound(av: Any) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44_100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()
