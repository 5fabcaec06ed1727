from __future__ import annotations

import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from annotator.labels.schema import REASONS
from annotator.photos import decode, pixels
from annotator.photos.decode import decode_photo, read_photo
from annotator.photos.errors import PhotoError
from annotator.photos.jpeg_end import ends_early
from tests.robustness import hostile_photos
from tests.robustness.hostile_photos import arrow, encoded, exif, noise, png, png_chunk, rotated

# pytest removes the module's own filter.
pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")

PHOTOS = hostile_photos.hostile_photos()
REAL = Path(__file__).parents[3] / "shared" / "data"


def outcome(data: bytes) -> tuple[str, str]:
    try:
        photo = decode_photo(data)
    except PhotoError as error:
        return error.reason, str(error)
    height, width, channels = photo.pixels.shape
    assert (photo.width, photo.height, channels, photo.pixels.dtype) == (width, height, 3, np.uint8)
    assert photo.pixels.flags.c_contiguous
    assert photo.pixels.flags.writeable
    return "ok", ""


@pytest.mark.parametrize("name", PHOTOS, ids=ascii)
def test_every_hostile_photo_ends_as_expected_twice(name):
    data, expected = PHOTOS[name]
    reason, message = outcome(data)
    assert reason == expected
    assert (reason == "ok") == (message == "")
    assert message == "" or (message.isprintable() and len(message) < 120 and " at 0x" not in message)
    assert outcome(data) == (reason, message)


def test_the_folder_holds_every_reason_and_reads_as_expected(tmp_path):
    expected = hostile_photos.write_hostile_photos(tmp_path)
    found = {}
    for path in tmp_path.iterdir():
        try:
            found[path.name] = outcome(read_photo(str(path)))[0]
        except PhotoError as error:
            found[path.name] = error.reason
    assert found == expected
    codes = {"ok", "missing", "empty", "not_a_photo", "truncated", "corrupt", "too_large", "too_small"}
    codes |= {"unsupported"}
    assert set(found.values()) == codes
    assert codes - {"ok"} | {"no_permission"} <= set(REASONS)


def test_a_jpeg_or_png_cut_anywhere_is_an_error():
    for name in ("jpeg_named.png", "progressive.jpg", "png_named.jpg"):
        data = PHOTOS[name][0]
        for cut in range(3, len(data), max(1, len(data) // 200)):
            assert outcome(data[:cut])[0] in ("truncated", "not_a_photo"), (name, cut)


def test_a_jpeg_cut_and_closed_again_is_an_error_at_any_scale():
    smooth = Image.fromarray(noise(8, 6)).resize((640, 480), Image.Resampling.BICUBIC)
    for options in ({}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        data = encoded(smooth, "JPEG", quality=90, **options)
        assert not ends_early(data)
        start = data.index(b"\xff\xda") + 14
        for share in (0.1, 0.5, 0.9):
            end = int(start + share * (len(data) - start))
            closed = data[:end].removesuffix(b"\xff") + b"\xff\xd9"
            for min_side_px in (None, 60, 200):
                with pytest.raises(PhotoError) as caught:
                    decode_photo(closed, min_side_px)
                assert caught.value.reason == "truncated"


def test_truncated_photos_stay_errors_with_pillows_load_truncated_images(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("cut_at_50_a.jpg", "cut_at_50_a.png", "cut.gif", "cut.bmp"):
        assert outcome(PHOTOS[name][0])[0] == "truncated"


def test_damage_anywhere_raises_nothing_but_photo_errors_and_prints_nothing():
    script = """
import sys, random
from tests.robustness import hostile_photos
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError
rng = random.Random(0)
photos = [data for data, _ in hostile_photos.hostile_photos().values() if data]
reasons = set()
for round in range(25):
    for data in photos:
        forged = bytearray(data)
        for _ in range(rng.randint(1, 5)):
            forged[rng.randrange(min(len(forged), rng.choice((64, 10**9))))] = rng.randrange(256)
        try:
            decode_photo(bytes(forged))
        except PhotoError as error:
            assert str(error).isprintable()
            reasons.add(error.reason)
assert {"truncated", "corrupt", "not_a_photo", "too_large"} <= reasons, reasons
"""
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_too_large_a_header_takes_no_memory():
    for name in ("huge.png", "huge.jpg", "huge_progressive.jpg", "huge.gif", "huge.webp"):
        tracemalloc.start()
        with pytest.raises(PhotoError, match=r"\d+ x \d+ pixels"):
            decode_photo(PHOTOS[name][0])
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.stop()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_makes_the_arrow_upright(orientation, format):
    upright = arrow(46, 30)
    stored = Image.fromarray(rotated(upright, orientation))
    options = {"lossless": True} if format == "WEBP" else {"quality": 95, "subsampling": 0}
    if format == "TIFF":
        data = encoded(stored, format, tiffinfo={274: orientation})
    else:
        data = encoded(stored, format, exif=exif(orientation), **options)
    photo = decode_photo(data)
    assert (photo.width, photo.height) == (46, 30)
    assert np.abs(photo.pixels.astype(int) - upright).mean() < 4


def test_the_arrow_itself_is_rotated_as_exif_says():
    # Orientation 6: display rotates the stored picture clockwise by 90 degrees, so that its left side becomes the top.
    stored = rotated(arrow(), 6)
    assert np.array_equal(np.rot90(stored, -1), arrow())
    assert np.array_equal(rotated(arrow(), 3), arrow()[::-1, ::-1])
    assert np.array_equal(rotated(arrow(), 2), arrow()[:, ::-1])


@pytest.mark.parametrize(
    "block", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\x7f", exif(0), exif(9), b"Exif\0\0XX"]
)
def test_damaged_exif_means_upright(block):
    photo = decode_photo(encoded(arrow(), "PNG", exif=block))
    assert np.array_equal(photo.pixels, arrow())


def test_little_endian_exif_is_read():
    tiff = (
        b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHII", 0x10F, 2, 4, 0)
        + struct.pack("<HHIHH", 0x112, 3, 1, 3, 0)
    )
    photo = decode_photo(encoded(arrow(), "PNG", exif=b"Exif\0\0" + tiff + bytes(4)))
    assert np.array_equal(photo.pixels, arrow()[::-1, ::-1])


def ramp_16_bit(channels: int) -> np.ndarray:
    return np.linspace(0, 65535, 20 * 30 * channels).astype(np.uint16).reshape(20, 30 * channels)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3)])
def test_16_bit_png_is_scaled_not_clipped(colour, channels):
    values = ramp_16_bit(channels)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    photo = decode_photo(png(30, 20, 16, colour, rows))
    expected = np.broadcast_to(values.reshape(20, 30, channels) / 257, (20, 30, 3))
    assert np.abs(photo.pixels - expected).max() <= 1
    assert (photo.pixels.min(), photo.pixels.max()) == (0, 255)


def test_16_bit_tiff_is_scaled_in_both_byte_orders():
    values = ramp_16_bit(1)
    for data in (encoded(Image.fromarray(values), "TIFF"), _big_endian_tiff(values, 16)):
        assert np.abs(decode_photo(data).pixels[..., 1] - values / 257).max() <= 1


def _big_endian_tiff(values: np.ndarray, bits: int) -> bytes:
    raw = values.astype(">u2").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(raw)}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return (
        b"MM\0*" + struct.pack(">I", 8 + len(raw)) + raw + struct.pack(">H", len(tags)) + entries + bytes(4)
    )


def test_grey_has_three_equal_channels():
    grey = noise(channels=1)[..., 0]
    assert np.array_equal(decode_photo(encoded(grey, "PNG")).pixels, np.repeat(grey[..., None], 3, axis=2))


def test_transparency_lies_on_white():
    rgba = noise(channels=4)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(decode_photo(encoded(rgba, "PNG")).pixels - expected).max() <= 0.51


def test_a_transparent_palette_or_key_colour_lies_on_white():
    palette = Image.fromarray(arrow()).quantize(8)
    index = palette.getpixel((0, 0))
    for data in (encoded(palette, "PNG", transparency=index), encoded(palette, "GIF", transparency=index)):
        pixels = decode_photo(data).pixels
        assert (pixels[:16, :24] == 255).all()
        assert np.abs(pixels[16:, :24].astype(int) - [0, 0, 255]).max() < 3
    rows = b"".join(b"\0" + row.tobytes() for row in arrow())
    keyed = png(48, 32, 8, 2, rows, png_chunk(b"tRNS", struct.pack(">HHH", 255, 0, 0)))
    assert (decode_photo(keyed).pixels[:16, :24] == 255).all()


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (20, 20, 20)])
def test_cmyk_has_about_the_right_colour(colour):
    c, m, y = (255 - v for v in colour)
    cmyk = Image.merge("CMYK", [Image.new("L", (32, 32), v) for v in (c, m, y, 0)])
    jpeg = encoded(cmyk, "JPEG", quality=95)
    assert b"Adobe" in jpeg  # the Adobe marker means that CMYK is inverted
    tiff = encoded(cmyk, "TIFF")
    for data in (jpeg, tiff):
        assert np.abs(decode_photo(data).pixels.astype(int) - colour).max() <= 6


def test_an_animation_gives_its_first_frame():
    frames = [Image.fromarray(np.full((16, 16, 3), shade, np.uint8)) for shade in (200, 100, 0)]
    for format in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert (decode_photo(data).pixels == 200).all()


@pytest.mark.parametrize(
    ("min_side_px", "scale"),
    [(None, 1), (601, 1), (600, 1), (301, 1), (300, 2), (150, 4), (76, 4), (75, 8), (1, 8), (0, 8)],
)
def test_a_jpeg_is_scaled_down_only_as_far_as_the_caller_allows(min_side_px, scale):
    smooth = Image.fromarray(noise(8, 6)).resize((800, 600), Image.Resampling.BICUBIC)
    photo = decode_photo(encoded(smooth, "JPEG", quality=95), min_side_px)
    assert (photo.width, photo.height) == (800, 600)
    assert photo.pixels.shape == (600 // scale, 800 // scale, 3)
    whole = np.asarray(smooth).reshape(600 // scale, scale, 800 // scale, scale, 3).mean(axis=(1, 3))
    assert np.abs(photo.pixels - whole).mean() < 3


def test_a_scaled_and_rotated_jpeg_keeps_its_true_upright_size():
    data = encoded(rotated(arrow(333, 201), 6), "JPEG", exif=exif(6), quality=95)
    photo = decode_photo(data, 50)
    assert (photo.width, photo.height) == (333, 201)
    assert photo.pixels.shape == (51, 84, 3)
    assert np.abs(photo.pixels[4, 4].astype(int) - [255, 0, 0]).max() < 20


def test_a_jpeg_beyond_the_limit_is_halved(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 48 - 1)
    photo = decode_photo(encoded(noise(), "JPEG"))
    assert (photo.width, photo.height, photo.pixels.shape) == (64, 48, (24, 32, 3))


def test_converting_in_strips_changes_nothing(monkeypatch):
    names = ("jpeg_named.png", "alpha.png", "palette.png", "grey_16_bit.png", "cmyk.jpg", "orientation_6.jpg")
    whole = [decode_photo(PHOTOS[name][0]).pixels for name in names]
    monkeypatch.setattr(pixels, "_PIXELS_AT_ONCE", 200)
    for name, expected in zip(names, whole, strict=True):
        assert np.array_equal(decode_photo(PHOTOS[name][0]).pixels, expected), name


def test_pixels_of_ordinary_photos_are_pillows():
    for name in (
        "jpeg_named.png",
        "png_named.jpg",
        "plain.bmp",
        "plain.webp",
        "palette.png",
        "progressive.jpg",
    ):
        data = PHOTOS[name][0]
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(decode_photo(data).pixels, expected), name


def test_many_threads_decode_alike():
    items = list(PHOTOS.values()) * 4
    start = threading.Barrier(4)

    def first_together(item: tuple[bytes, str]) -> str:
        return outcome(item[0])[0]

    with ThreadPoolExecutor(4, initializer=start.wait) as pool:
        found = list(pool.map(first_together, items))
    assert found == [expected for _, expected in items]


# Files


def reason_of(path: object) -> str:
    with pytest.raises(PhotoError) as caught:
        read_photo(str(path))
    assert str(caught.value).isprintable()
    return caught.value.reason


def test_a_file_gives_its_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_photo(str(tmp_path / "a")) == b"abc"


def test_a_nonexistent_file_is_missing(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "loop", tmp_path / "file" / "inside", "a\0b", "x" * 5000):
        assert reason_of(path) == "missing"


def test_a_folder_and_a_pipe_are_not_photos(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason_of(tmp_path) == "not_a_photo"
    assert reason_of(tmp_path / "pipe.jpg") == "not_a_photo"


def test_a_giant_file_is_refused_unread(tmp_path):
    with (tmp_path / "giant.jpg").open("wb") as file:
        file.truncate(2**40)
    assert reason_of(tmp_path / "giant.jpg") == "too_large"


def test_a_file_without_permission_has_that_reason(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"abc")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert reason_of(path) == "no_permission"


def test_a_failing_disk_is_one_line(tmp_path, monkeypatch):
    def fail(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "a.jpg").write_bytes(b"abc")
    monkeypatch.setattr(Path, "read_bytes", fail)
    assert reason_of(tmp_path / "a.jpg") == "io_error"


def test_errors_travel_between_processes():
    error = pickle.loads(pickle.dumps(PhotoError("corrupt", "broken")))
    assert (error.reason, str(error)) == ("corrupt", "broken")


@pytest.mark.parametrize("name", ["sign-digits", "hand-scenes"])
def test_real_photos_decode_as_pillow_does(name):
    files = sorted((REAL / name / "images").rglob("*.*"))[::40]
    if not files:
        pytest.skip(f"{REAL / name} does not exist")
    for file in files:
        data = read_photo(str(file))
        with Image.open(io.BytesIO(data)) as image:
            assert np.array_equal(decode_photo(data).pixels, np.asarray(image.convert("RGB")))
        assert not ends_early(data)


def either_way(data: bytes, min_side_px: int | None, monkeypatch) -> list[tuple]:
    """Return the outcomes of a file with and without the decoder for plain JPEGs."""
    found = []
    for quick in (True, False):
        with monkeypatch.context() as patch:
            if not quick:
                patch.setattr(decode.plain_jpeg, "read_header", lambda data: None)
            try:
                photo = decode_photo(data, min_side_px)
                found.append(("ok", photo.width, photo.height, photo.pixels.shape, photo.pixels.tobytes()))
            except PhotoError as error:
                found.append((error.reason, str(error)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign-digits", "hand-scenes"])
def test_the_decoder_for_plain_jpegs_changes_no_pixel_and_no_error(name, monkeypatch):
    """Real photos, complete, cut, cut and closed, with bytes changed, missing or zeroed, at several sizes."""
    folder = REAL / name / "images"
    if not folder.is_dir():
        pytest.skip(f"the real photos ({name}) are not beside this checkout")
    random = np.random.default_rng(0)
    for path in sorted(folder.rglob("*.[jJ][pP][gG]"))[::150]:
        whole = path.read_bytes()
        assert decode.plain_jpeg.read_header(whole) is not None
        for min_side_px in (None, 96, 40):
            quick, slow = either_way(whole, min_side_px, monkeypatch)
            assert quick == slow and quick[0] == "ok"
        for kind in range(30):
            data = bytearray(whole)
            at = int(random.integers(2, len(data)))
            if kind % 5 < 2:
                data = data[:at] + b"\xff\xd9" * (kind % 5)
            elif kind % 5 == 2:
                data[at] = int(random.integers(256))
            elif kind % 5 == 3:
                del data[at : at + int(random.integers(1, 200))]
            else:
                data[at : at + 32] = bytes(32)
            quick, slow = either_way(bytes(data), 96 if kind % 2 else None, monkeypatch)
            assert quick == slow, (path, kind, at)


def test_hostile_photos_end_alike_either_way(monkeypatch):
    for name, (data, _) in PHOTOS.items():
        quick, slow = either_way(data, None, monkeypatch)
        assert quick == slow, ascii(name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_plain_jpeg_is_rotated_as_pillow_rotates_it(orientation, monkeypatch):
    image = Image.fromarray(noise(56, 40))
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        data = io.BytesIO()
        image.save(data, "JPEG", exif=exif(orientation), **options)
        for min_side_px in (None, 20, 5):
            quick, slow = either_way(data.getvalue(), min_side_px, monkeypatch)
            assert quick == slow and quick[0] == "ok"
