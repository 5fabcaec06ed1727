"""Frames of videos: each shows its own number as bars, which identifies it."""

from __future__ import annotations

import dataclasses
import io
import os
import random
import struct
import sys
import tracemalloc
from pathlib import Path

import fsspec
import numpy as np
import pytest

from annotator.errors import UserError
from annotator.photos.camera import UNKNOWN
from annotator.photos.errors import PhotoError
from annotator.sources.camera import camera_of
from annotator.sources.entry import Entry
from annotator.sources.read import photos_of
from annotator.sources.video.source import VIDEO_SUFFIXES, list_video, read_video

av = pytest.importorskip("av")

COUNT, RATE = 100, 30

#: File -> encoder and its settings: B-frames, B-pyramids, open groups, hidden frames, only keyframes.
KINDS = {
    "closed.mp4": ("libx264", {"x264-params": "keyint=25:bframes=3:b-pyramid=normal:open-gop=0"}),
    "open.mp4": ("libx264", {"x264-params": "keyint=25:bframes=3:open-gop=1:scenecut=0"}),
    "refresh.mp4": ("libx264", {"x264-params": "keyint=25:intra-refresh=1:bframes=0"}),
    "one_key.mov": ("libx264", {"x264-params": "keyint=infinite:bframes=3:scenecut=0"}),
    "open.mkv": ("libx264", {"x264-params": "keyint=25:bframes=3:open-gop=1:scenecut=0"}),
    "closed.avi": ("libx264", {"x264-params": "keyint=25:bframes=3"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=25:bframes=3:open-gop=1:log-level=none"}),
    "hevc.mkv": ("libx265", {"x265-params": "keyint=25:bframes=3:open-gop=1:log-level=none"}),
    "old.m4v": ("mpeg4", {"bf": "2", "g": "12"}),
    "old.avi": ("mpeg4", {"bf": "2", "g": "12"}),
    "plain.avi": ("mpeg4", {"bf": "0", "g": "12"}),
    "motion.avi": ("mjpeg", {}),
    "old.mpg": ("mpeg2video", {"bf": "2", "g": "12"}),
    "old.mpeg": ("mpeg1video", {"bf": "2", "g": "12"}),
    "closed.ts": ("libx264", {"x264-params": "keyint=25:bframes=3:b-pyramid=normal:open-gop=0"}),
    "old.mts": ("mpeg2video", {"bf": "2", "g": "12"}),
    "old.3gp": ("mpeg4", {"bf": "2", "g": "12"}),
    "closed.flv": ("libx264", {"x264-params": "keyint=25:bframes=3"}),
    "old.flv": ("flv", {"g": "12"}),
    "old.wmv": ("wmv2", {"g": "12"}),
    "vp8.webm": ("libvpx", {"g": "25", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
    "vp9.webm": ("libvpx-vp9", {"g": "25", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}),
}


def bars(number: int) -> np.ndarray:
    """Return a picture (64, 160, 3) with the bits of a number as ten bars."""
    bits = np.array([number >> bit & 1 for bit in range(10)], np.uint8) * 215 + 20
    return np.repeat(np.tile(np.repeat(bits, 16), (64, 1))[..., None], 3, 2)


def number_in(pixels: np.ndarray) -> int:
    assert pixels.shape == (64, 160, 3)
    assert pixels.dtype == np.uint8
    middle = pixels[24:40].mean((0, 2)).reshape(10, 16)[:, 4:12].mean(1)
    assert (np.abs(middle - 128) > 40).all()
    return sum(int(value > 128) << bit for bit, value in enumerate(middle))


def write_video(
    target: Path | io.BytesIO,
    codec: str,
    options: dict[str, str],
    count: int = COUNT,
    picture=bars,
    times=lambda number: number,
    **container: object,
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    with av.open(target if isinstance(target, io.BytesIO) else str(target), "w", **container) as out:
        stream = out.add_stream(codec, rate=RATE, options=options)
        height, width = picture(0).shape[:2]
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture(number)), format="rgb24")
            frame.pts = times(number)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Return a function from the name of a kind of video to its path; each video is written once."""
    folder = tmp_path_factory.mktemp("videos")

    def video(name: str) -> Path:
        path = folder / name
        if not path.exists():
            write_video(path, *KINDS[name])
        return path

    return video


def listed(path: Path | str, every: int = 1) -> list[Entry]:
    entries = list(list_video(str(path), "v", every))
    for entry in entries:
        assert Entry.from_json(entry.to_json()) == entry
        assert entry.file_id == "v"
    return entries


def numbers(path: Path | str, entries: list[Entry]) -> list[int | str]:
    found = list(read_video(str(path), [entry.at for entry in entries]))
    assert len(found) == len(entries)
    return [frame.reason if isinstance(frame, PhotoError) else number_in(frame) for frame in found]


def test_the_suffixes():
    assert all(Path(name).suffix in VIDEO_SUFFIXES for name in KINDS)


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("name", KINDS)
def test_frames_match_their_index_in_any_order(videos, name, every):
    path = videos(name)
    entries = listed(path, every)
    expected = list(range(0, COUNT, every))
    assert [entry.frame_index for entry in entries] == [entry.order for entry in entries] == expected
    assert [entry.id for entry in entries] == [f"v#{number}" for number in expected]
    assert {entry.inside for entry in entries} == {None}
    for entry in entries:
        assert entry.frame_time_s == pytest.approx(entry.frame_index / RATE, abs=0.0011)
    assert entries[0].frame_time_s == 0
    assert numbers(path, entries) == expected
    random.Random(every).shuffle(entries)
    entries = entries[:30] + entries[:3] * 2 + entries[2:3] * 2
    assert numbers(path, entries) == [entry.frame_index for entry in entries]


def test_times_of_uneven_frames(tmp_path):
    path = tmp_path / "v.mkv"
    write_video(path, "libx264", KINDS["open.mkv"][1], times=lambda number: number + (number // 10) * 20)
    entries = listed(path, 3)
    expected = [(entry.frame_index + entry.frame_index // 10 * 20) / RATE for entry in entries]
    assert [entry.frame_time_s for entry in entries] == pytest.approx(expected, abs=0.0011)
    assert numbers(path, entries) == list(range(0, COUNT, 3))


def test_a_video_that_starts_late_or_has_sound_starts_at_0(tmp_path):
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as out:
        stream, sound = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=48_000)
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuv420p"
        for number in range(60):
            noise = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            noise.sample_rate = 48_000
            noise.pts = number * 1024
            out.mux(sound.encode(noise))
            frame = av.VideoFrame.from_ndarray(bars(number), format="rgb24")
            frame.pts = number + 90
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        out.mux(sound.encode())
    entries = listed(path)
    assert [entry.frame_time_s for entry in entries] == pytest.approx(
        [n / RATE for n in range(60)], abs=0.0011
    )
    assert numbers(path, entries[::-1]) == list(range(60))[::-1]


def test_frames_that_are_not_shown_do_not_count(videos, tmp_path):
    path = tmp_path / "v.webm"
    with av.open(str(videos("vp8.webm"))) as source, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            data = bytearray(bytes(packet))
            if not data:
                continue
            if number in (10, 40):
                data[0] &= ~0x10  # as an encoder does for a hidden reference frame
            copy = av.Packet(bytes(data))
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.is_keyframe, copy.stream = packet.is_keyframe, stream
            out.mux(copy)
    entries = listed(path)
    shown = [number for number in range(COUNT) if number not in (10, 40)]
    assert [entry.frame_index for entry in entries] == list(range(COUNT - 2))
    assert numbers(path, entries) == shown


def test_frames_before_an_edited_start_do_not_count(tmp_path):
    path = tmp_path / "v.mp4"
    options = {"avoid_negative_ts": "disabled"}
    write_video(path, *KINDS["closed.mp4"], times=lambda number: number - 10, container_options=options)
    with av.open(str(path)) as container:
        assert sum(packet.is_discard for packet in container.demux(video=0)) == 10
    entries = listed(path)
    assert numbers(path, entries) == list(range(10, COUNT))
    assert [entry.frame_index for entry in entries] == list(range(COUNT - 10))
    assert entries[0].frame_time_s == 0
    assert numbers(path, entries[::-9]) == list(range(10, COUNT))[::-9]


@pytest.mark.slow
def test_listing_decodes_nothing_and_takes_little_memory(tmp_path, monkeypatch):
    path = tmp_path / "v.mp4"
    write_video(path, "libx264", {"x264-params": "keyint=infinite:bframes=3:scenecut=0"}, count=3000)
    monkeypatch.setattr("annotator.sources.video.source.frames_at", None)
    next(iter(list_video(str(path), "v", 1)))
    tracemalloc.start()
    assert sum(1 for _ in list_video(str(path), "v", 1)) == 3000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400_000  # 3000 entries would be 2 MB


def test_frames_near_ahead_are_reached_without_a_seek(videos, monkeypatch):
    seeks = []
    from annotator.sources.video import frames as video_frames

    plain = video_frames._decoded
    monkeypatch.setattr(video_frames, "_decoded", lambda *args: seeks.append(args[2]) or plain(*args))
    entries = listed(videos("closed.mp4"), 7)
    assert numbers(videos("closed.mp4"), entries) == list(range(0, COUNT, 7))
    assert len(seeks) == 1
    assert numbers(videos("closed.mp4"), [entries[0], entries[-1], entries[-1]]) == [0, 98, 98]
    assert len(seeks) == 3


def test_a_time_between_two_frames_is_an_error(videos):
    entries = listed(videos("open.mp4"))
    between = [entries[50].at[0] + 1, entries[-1].at[0] + 1, entries[0].at[0] - 1, 10**12, -(10**12)]
    positions = [(position,) for position in between] + [entries[50].at]
    *none, frame = read_video(str(videos("open.mp4")), positions)
    assert [error.reason for error in none] == ["corrupt"] * 5
    assert number_in(frame) == 50


MATRICES = {
    # display matrix a, b, c, d -> function from the upright picture to the stored one
    (1, 0, 0, 1): lambda upright: upright,
    (0, 1, -1, 0): lambda upright: np.rot90(upright),  # displayed rotated clockwise by 90 degrees
    (-1, 0, 0, -1): lambda upright: np.rot90(upright, 2),
    (0, -1, 1, 0): lambda upright: np.rot90(upright, -1),
    (-1, 0, 0, 1): lambda upright: upright[:, ::-1],
    (1, 0, 0, -1): lambda upright: upright[::-1],
    (0, 1, 1, 0): lambda upright: upright.swapaxes(0, 1),
}


@pytest.mark.parametrize("matrix", MATRICES)
def test_videos_of_phones_held_in_any_way_are_upright(tmp_path, matrix):
    path = tmp_path / "v.mp4"
    write_video(path, "libx264", {"crf": "10"}, count=5, picture=lambda n: MATRICES[matrix](bars(n + 300)))
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0
    plain = struct.unpack_from(">9i", data, at)
    assert plain == (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = matrix
    struct.pack_into(">9i", data, at, a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert numbers(path, listed(path)) == [300, 301, 302, 303, 304]
    with av.open(str(path)) as container:
        rotated = next(container.decode(video=0)).rotation  # counterclockwise
    if matrix[0] + matrix[3] != 0 and matrix[1] == 0:
        assert rotated in ((0,) if matrix[0] == 1 else (180, -180))
    elif matrix[1] == -matrix[2] != 0:
        assert rotated == (-90 if matrix[1] == 1 else 90)


_LATE = (".mp4", ".avi")  # four bytes are too few to recognise these


@pytest.mark.parametrize(
    "name", ["closed.mp4", "fast.mp4", "pieces.mp4", "open.mkv", "vp9.webm", "motion.avi", "old.mpg"]
)
def test_a_video_cut_anywhere_gives_the_frames_before_and_a_fault(videos, tmp_path, name):
    flags = {"fast.mp4": "faststart", "pieces.mp4": "frag_keyframe+empty_moov"}.get(name)
    path = tmp_path / f"v{Path(name).suffix}"
    if flags:
        write_video(path, *KINDS["open.mp4"], container_options={"movflags": flags})
    whole = path.read_bytes() if flags else videos(name).read_bytes()
    step = len(whole) // 23
    for cut in (0, 4, 40, 300, *range(step, len(whole) - step // 2, step)):
        path.write_bytes(whole[:cut])
        entries = listed(path)
        good = [entry for entry in entries if not entry.fault]
        assert [entry.frame_index for entry in good] == list(range(len(good)))
        found = numbers(path, good)
        # The last packets may be incomplete, and B-frames may lack the frame after them.
        wrong = [(n, got) for n, got in enumerate(found) if got not in (n, "corrupt")]
        assert not wrong, cut
        assert found.count("corrupt") <= (COUNT if name == "old.mpg" else 4), cut
        if name != "old.mpg":
            fault = entries[-1].fault
            assert fault is not None, cut
            expected = (
                "empty" if cut == 0 else "not_a_photo" if cut == 4 and path.suffix in _LATE else "truncated"
            )
            assert fault.reason == expected, cut
            assert entries[-1].order == len(good)
            assert entries[-1].id == "v"


@pytest.mark.parametrize(
    "name", ["closed.mp4", "open.mkv", "closed.avi", "old.avi", "old.mpg", "vp8.webm", "hevc.mp4"]
)
def test_damage_anywhere_raises_nothing_and_reads_alike_twice(videos, tmp_path, name):
    whole = videos(name).read_bytes()
    path = tmp_path / name
    lost = 0
    for seed in range(25):
        rng = random.Random(seed)
        data = bytearray(whole)
        at = rng.randrange(len(data) // 8, len(data))
        data[at : at + 3] = rng.randbytes(len(data[at : at + 3]))
        path.write_bytes(data)
        entries = listed(path, 2)
        good = [entry for entry in entries if not entry.fault]
        frames = list(read_video(str(path), [entry.at for entry in good]))
        assert len(frames) == len(good)
        lost += sum(isinstance(frame, PhotoError) for frame in frames)
        again = list(read_video(str(path), [entry.at for entry in good]))
        assert [type(frame) for frame in again] == [type(frame) for frame in frames]
    assert lost < 25 * COUNT / 2 * 0.7


def test_after_damage_frames_are_left_out_up_to_the_next_keyframe(videos, tmp_path):
    path = tmp_path / "v.mp4"
    data = bytearray(videos("closed.mp4").read_bytes())
    with av.open(io.BytesIO(bytes(data))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        keys = sorted(packet.pts for packet in packets if packet.is_keyframe)
        hit = packets[30]
        assert keys[1] < hit.pts < keys[2]
        start = hit.pos
    data[start : start + hit.size] = b"\xff" * hit.size
    path.write_bytes(data)
    entries = listed(path)
    assert len(entries) == COUNT
    found = numbers(path, entries)
    lost = [number for number, got in enumerate(found) if got == "corrupt"]
    assert [got for got in found if got != "corrupt"] == [n for n in range(COUNT) if n not in lost]
    assert lost
    assert all(keys[1] <= entries[number].at[0] < keys[2] for number in lost)
    assert numbers(path, entries[::-1]) == found[::-1]


def test_files_that_are_not_videos_or_do_not_exist(tmp_path, videos):
    def fault(path: Path | str) -> str:
        (entry,) = listed(path)
        (error,) = list(read_video(str(path), [(0,)])) if os.path.isfile(path) else [None]  # noqa: PTH113
        assert error is None or error.reason == entry.fault.reason
        return entry.fault.reason

    path = tmp_path / "v.mp4"
    assert fault(path) == "missing"
    assert fault(f"{path}\0") == "missing"
    assert fault(tmp_path) == "io_error"
    with pytest.raises(FileNotFoundError):
        list(read_video(str(path), [(0,)]))
    for content in (b"this is text\n" * 50, b"G" + b"text" * 100, bytes(5000), b"GIF89a" + bytes(500)):
        path.write_bytes(content)
        assert fault(path) == "not_a_photo"
    path.write_bytes(b"")
    assert fault(path) == "empty"
    whole = videos("open.mkv").read_bytes()
    path.write_bytes(whole[:60] + b"\xff" * (len(whole) - 60))
    assert fault(path) == "corrupt"
    for playlist in (
        f"ffconcat version 1.0\nfile '{videos('closed.mp4')}'\n",
        f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:{videos('closed.mp4')}\n#EXT-X-ENDLIST\n",
    ):
        path.write_text(playlist)
        assert fault(path) == "not_a_photo"
    with av.open(str(path), "w") as out:
        sound = out.add_stream("aac", rate=48_000)
        noise = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        noise.sample_rate = 48_000
        out.mux(sound.encode(noise))
        out.mux(sound.encode())
    assert fault(path) == "not_a_photo"
    if os.geteuid():
        path.chmod(0)
        assert fault(path) == "no_permission"


def test_names_with_a_special_meaning_in_ffmpeg(tmp_path, videos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("concat:a|b.mp4", "pipe:0.mp4", "100%d.mp4", os.fsdecode(b"\xff\xfe.mp4"), "-i.mp4"):
        Path(name).write_bytes(videos("closed.mp4").read_bytes())
        assert numbers(name, listed(name, 30)) == [0, 30, 60, 90]


def test_a_video_behind_a_url(videos):
    for name in ("closed.mp4", "closed.avi", "vp8.webm"):
        url = f"memory://videos/{name}"
        with fsspec.open(url, "wb") as file:
            file.write(videos(name).read_bytes())
        entries = listed(url, 9)
        random.Random(0).shuffle(entries)
        assert numbers(url, entries) == [entry.frame_index for entry in entries]
    (entry,) = listed("memory://videos/none.mp4")
    assert entry.fault.reason == "missing"


def test_without_pyav_the_error_names_the_package(videos, monkeypatch):
    path = str(videos("closed.mp4"))
    monkeypatch.setitem(sys.modules, "av", None)
    for frames in (list_video(path, "v", 1), read_video(path, [(0,)])):
        with pytest.raises(UserError, match=r"pip install 'amvur-annotator\[video\]'"):
            next(iter(frames))


def film_video(path: Path, size: tuple[int, int], facts: dict[str, str]) -> Path:
    """Write three frames with metadata of the whole file, as QuickTime keys."""
    with av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata.update(facts)
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        for number in range(3):
            pixels = np.full((size[1], size[0], 3), 60 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


FOCAL_KEY = "com.apple.quicktime.camera.focal_length.35mm_equivalent"


@pytest.mark.parametrize(
    ("name", "size", "facts", "across_deg"),
    [
        # Film is 36 x 24 mm. A picture of 16:9 has its width; one of 4:3 has its diagonal.
        ("a.mov", (320, 180), {FOCAL_KEY: "26"}, 2 * np.degrees(np.arctan(18 / 26))),
        ("a.mp4", (320, 180), {FOCAL_KEY: "50.00mm"}, 2 * np.degrees(np.arctan(18 / 50))),
        ("a.mov", (180, 320), {FOCAL_KEY: "26"}, 2 * np.degrees(np.arctan(18 / 26 * 9 / 16))),
        ("a.mov", (320, 240), {FOCAL_KEY: "26"}, 2 * np.degrees(np.arctan(0.8 * np.hypot(18, 12) / 26))),
        ("a.mov", (320, 320), {FOCAL_KEY: "26"}, None),  # cut: no camera's picture
        ("a.mov", (320, 180), {FOCAL_KEY: "0"}, None),
        ("a.mov", (320, 180), {FOCAL_KEY: "26 inches"}, None),
        ("a.mov", (320, 180), {"make": "none"}, None),
        ("a.mkv", (320, 180), {}, None),
    ],
)
def test_a_focal_length_that_a_video_states_is_its_cameras(name, size, facts, across_deg, tmp_path):
    entries = list(list_video(str(film_video(tmp_path / name, size, facts)), "v"))
    photos = list(photos_of(entries, lambda entry: 32))
    assert len(photos) == 3
    for entry, photo in zip(entries, photos, strict=True):
        camera = camera_of(entry, photo)
        if across_deg is None:
            assert camera == UNKNOWN
        else:
            assert camera.focal_source == "exif" and (photo.width, photo.height) == size
            assert 2 * np.degrees(np.arctan(size[0] / 2 / camera.focal_px)) == pytest.approx(across_deg)
    given = camera_of(dataclasses.replace(entries[0], focal_px=99.0), photos[0])
    assert (given.focal_px, given.focal_source) == (99.0, "given")
