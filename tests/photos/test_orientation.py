"""How stored pictures are displayed: orientation, pixel shape, and the bits that samples use."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from annotator.export.photo_encoding import as_others_read
from annotator.job.stages.decode import decode_shard, listed_box
from annotator.photos.crops import crop_photo
from annotator.photos.decode import Photo, decode_photo
from annotator.photos.errors import PhotoError
from annotator.photos.exif import Display, shown_as
from annotator.photos.pixels import square_size
from annotator.sources.entry import Entry, ListedHand
from annotator.sources.video.source import list_video, read_video
from tests.robustness.hostile_photos import arrow, encoded, exif, noise, png, png_chunk, rotated, tiff

FAULTS = Path(__file__).parents[3] / "shared" / "data" / "inputs"


def fault(name: str) -> bytes:
    if not (FAULTS / name).is_file():
        pytest.skip("the files of faults are not beside this checkout")
    return (FAULTS / name).read_bytes()


def tiff_of(order: str, *tags: tuple[int, int, bytes], extra: bytes = b"") -> bytes:
    """Return EXIF with one directory of (tag, type, four bytes); `extra` starts at byte 100."""
    head = (
        {"<": b"II*\0", ">": b"MM\0*"}[order]
        + struct.pack(order + "I", 8)
        + struct.pack(order + "H", len(tags))
    )
    body = b"".join(struct.pack(order + "HHI", tag, kind, 1) + value for tag, kind, value in tags)
    return (head + body + bytes(4)).ljust(100, b"\0") + extra


def as_pillow_rotates(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" %s</rdf:RDF></x:xmpmeta>'
)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_any_whole_type_and_order_is_pillows(orientation):
    for order in "<>":
        for kind, form in ((3, "H2x"), (4, "I")):
            block = b"Exif\0\0" + tiff_of(order, (274, kind, struct.pack(order + form, orientation)))
            for format in ("JPEG", "PNG", "WEBP"):
                data = encoded(rotated(arrow(46, 30), orientation), format, exif=block)
                assert np.array_equal(decode_photo(data).pixels, as_pillow_rotates(data)), (
                    order,
                    kind,
                    format,
                )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "form", [b'tiff:Orientation="%d"/>', b"><tiff:Orientation>%d</tiff:Orientation></rdf:Description>"]
)
def test_orientation_in_xmp_alone_is_pillows_and_exif_goes_first(orientation, form):
    packet = XMP % (form % orientation)
    stored = rotated(arrow(46, 30), orientation)
    files = [encoded(stored, format, xmp=packet) for format in ("JPEG", "WEBP")]
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + packet
    plain = encoded(stored, "PNG")
    files.append(plain[:33] + png_chunk(b"iTXt", text) + plain[33:])
    for data in files:
        assert np.array_equal(decode_photo(data).pixels, as_pillow_rotates(data))
        assert np.abs(decode_photo(data).pixels.astype(int) - arrow(46, 30)).mean() < 9
    both = encoded(arrow(46, 30), "JPEG", xmp=packet, exif=exif(1))
    assert decode_photo(both).width == 46
    by_pillow = Image.open(io.BytesIO(encoded(stored, "TIFF", tiffinfo={700: packet})))
    assert np.array_equal(
        decode_photo(encoded(stored, "TIFF", tiffinfo={700: packet})).pixels, np.asarray(by_pillow)
    )


@pytest.mark.parametrize(
    "name", ["exif6_long_be.jpg", "exif6_long_le.jpg", "xmp6.jpg", "exif6_rawprofile.png"]
)
def test_faults_met_are_upright(name):
    photo = decode_photo(fault(name))
    assert np.array_equal(photo.pixels, as_pillow_rotates(fault(name)))
    assert {"xmp6.jpg": (256, 192)}.get(name, photo.pixels.shape[1::-1]) == (photo.width, photo.height)


def test_damaged_metadata_is_none():
    size = (40, 30)
    whole = tiff_of(">", (274, 3, b"\0\6\0\0"), (282, 5, struct.pack(">I", 100)), (283, 5, struct.pack(">I", 108)),
                    extra=struct.pack(">4I", 300, 1, 600, 1))  # fmt: skip
    assert shown_as(whole, b"", None, size) == Display(6, 2.0)
    for cut in range(len(whole)):
        assert shown_as(whole[:cut], b"", None, size) in (Display(), Display(6, 1.0))
    for kind in (0, 1, 2, 5, 7, 9, 12, 999):
        assert shown_as(tiff_of("<", (274, kind, b"\6\0\0\0")), b"", None, size) == Display()
    for density in ((0, 0), (0, 72), (72, -1), (1, 5), (40, 30), (300, 301), (72, 72)):
        assert shown_as(b"", b"", density, size) == Display()
    assert shown_as(b"", b'tiff:Orientation=9 tiff:Orientation="0"', (1, 2), size) == Display(1, 2.0)


def squeezed(aspect: float, orientation: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return an upright picture, and the stored one with pixels `aspect` times as wide as high."""
    upright = np.asarray(Image.fromarray(noise(6, 5)).resize((240, 160), Image.Resampling.BICUBIC))
    stored = rotated(upright, orientation)
    height, width = stored.shape[:2]
    size = (round(width / aspect), height) if aspect > 1 else (width, round(height * aspect))
    return upright, np.asarray(Image.fromarray(stored).resize(size, Image.Resampling.BOX))


def with_density(stored: np.ndarray, way: str, x: int, y: int, orientation: int = 1) -> bytes:
    block = Image.Exif()
    block[274] = orientation
    if way == "exif":
        block[282], block[283] = x, y
        return encoded(stored, "JPEG", exif=block, quality=95)
    if way == "ratio":  # JFIF without a unit
        data = bytearray(encoded(stored, "JPEG", exif=block, quality=95, dpi=(x, y)))
        assert data[6:10] == b"JFIF" and data[13] == 1
        data[13] = 0
        return bytes(data)
    if way == "png ratio":
        data = encoded(stored, "PNG", exif=block)
        return data[:33] + png_chunk(b"pHYs", struct.pack(">IIB", x, y, 0)) + data[33:]
    options = {
        "JPEG": {"exif": block, "quality": 95},
        "PNG": {"exif": block},
        "TIFF": {"tiffinfo": {274: orientation}},
    }
    return encoded(stored, way, dpi=(x, y), **options.get(way, {}))


@pytest.mark.parametrize("way", ["JPEG", "PNG", "TIFF", "BMP", "exif", "ratio", "png ratio"])
@pytest.mark.parametrize(("x", "y"), [(300, 600), (150, 120), (96, 96)])
def test_pixels_that_are_not_square_are_made_so(way, x, y):
    for orientation in (1, 6) if way != "BMP" else (1,):
        upright, stored = squeezed(y / x, orientation)
        data = with_density(stored, way, x, y, orientation)
        photo = decode_photo(data)
        assert (photo.width, photo.height) == (240, 160) == photo.pixels.shape[1::-1]
        assert np.abs(photo.pixels.astype(int) - upright).mean() < 4
        small = decode_photo(data, min_side_px=40)
        assert (small.width, small.height) == (240, 160)
        ratio = np.array(small.pixels.shape[1::-1]) / (240, 160)
        assert ratio[0] == pytest.approx(ratio[1], rel=0.02)
        # Programs that ignore densities get the photo that labels refer to.
        read = as_others_read(data)
        with Image.open(io.BytesIO(read.data)) as image:
            assert image.size == (read.width, read.height) == (240, 160)


def test_no_picture_grows_beyond_the_limit():
    assert square_size(10_000, 9_000, 2.0) == (10_000, 4_500)
    assert square_size(10_000, 9_000, 0.5) == (5_000, 9_000)
    assert square_size(1_000, 900, 2.0) == (2_000, 900) and square_size(1_000, 900, 0.5) == (1_000, 1_800)


def test_boxes_of_a_list_are_of_the_file_and_those_of_labels_of_the_photo(tmp_path):
    _, stored = squeezed(2)
    (tmp_path / "a.jpg").write_bytes(with_density(stored, "JPEG", 300, 600))
    box = (10.0, 20.0, 60.0, 100.0)

    def crops(boxes_in: str, box: tuple[float, ...]):
        hands = (ListedHand(box, 1.0),)
        return decode_shard([Entry(f"{tmp_path}/a.jpg", "a", hands=hands, boxes_in=boxes_in)], 64).crops

    found = crops("file", box)
    assert found.box_xyxy.tolist() == [[20, 20, 120, 100]] and found.photo_size_px.tolist() == [[240, 160]]
    for boxes_in, same in (("photo", (20, 20, 120, 100)), ("fraction", (20 / 240, 1 / 8, 0.5, 100 / 160))):
        assert np.array_equal(crops(boxes_in, same).pixels, found.pixels)
    photo = Photo(np.zeros((160, 240, 3), np.uint8), 240, 160, (2.0, 1.0))
    with pytest.raises(PhotoError, match="outside"):
        listed_box((120, 0, 130, 9), Entry("a", "a"), photo)
    assert crop_photo(photo.pixels, 240, 160, 32).box_xyxy.tolist() == [[0, 0, 240, 160]]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_samples_that_use_fewer_bits_are_not_dark(bits, monkeypatch):
    values = np.linspace(0, (1 << bits) - 1, 40 * 30).astype(np.uint16).reshape(30, 40)
    expected = values / ((1 << bits) - 1) * 255
    big = tiff(40, 30, [values.astype(">u2").tobytes()], {258: [16], 262: [1], 277: [1]}, order=">")
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    for data in (encoded(Image.fromarray(values), "TIFF"), big, png(40, 30, 16, 0, rows)):
        assert np.abs(decode_photo(data).pixels - expected[..., None]).max() <= 1
        monkeypatch.setattr("annotator.photos.pixels._PIXELS_AT_ONCE", 100)
        assert np.abs(decode_photo(data).pixels - expected[..., None]).max() <= 1
        monkeypatch.undo()


def test_colours_of_12_bits_in_16_are_refused_not_dark():
    def colours(highest: int) -> bytes:
        values = np.linspace(0, highest, 40 * 30 * 3).astype("<u2")
        return tiff(40, 30, [values.tobytes()], {258: [16, 16, 16]})

    assert decode_photo(colours(65535)).pixels.max() == 255
    with pytest.raises(PhotoError, match="12 bits") as raised:
        decode_photo(colours(4095))
    assert raised.value.reason == "unsupported"


def test_12_bits_met_are_as_bright_as_their_file():
    photo = decode_photo(fault("t_gray12.tif"))
    with Image.open(io.BytesIO(fault("t_gray12.tif"))) as image:
        values = np.asarray(image)
    assert np.abs(photo.pixels[..., 0] - values / 16).max() <= 1 and photo.pixels.max() == 255


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (4000, 3), (7, 7), (7, 900)])
def test_a_photo_too_small_to_show_a_hand_has_that_reason(size):
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        with pytest.raises(PhotoError, match=f"{size[0]} x {size[1]} pixels") as raised:
            decode_photo(encoded(Image.new("RGB", size), format))
        assert raised.value.reason == "too_small"
    assert decode_photo(encoded(Image.new("RGB", (8, 500)), "PNG")).width == 8


def test_a_bmp_without_its_file_header_is_unsupported():
    image = Image.new("RGB", (64, 48))
    with pytest.raises(PhotoError, match="DIB") as raised:
        decode_photo(encoded(image, "DIB"))
    assert raised.value.reason == "unsupported"
    assert decode_photo(encoded(image, "BMP")).width == 64


def test_whole_files_of_rare_kinds_are_unsupported_not_damaged():
    for name, words in (("jpegls.jls", "JPEG-LS"), ("t_webp.tif", "TIFF with WebP")):
        with pytest.raises(PhotoError, match=words) as raised:
            decode_photo(fault(name))
        assert raised.value.reason == "unsupported"
    for name in ("jpeg8_lossless.jpg", "lossless_sof3.jpg"):  # newer libjpegs can read these
        try:
            assert decode_photo(fault(name)).pixels.std() > 10
        except PhotoError as error:
            assert error.reason == "unsupported" and "lossless" in str(error)
    for compression, name in ((50002, "JPEG XL"), (34712, "JPEG 2000"), (34887, "LERC")):
        with pytest.raises(PhotoError, match=name) as raised:
            decode_photo(tiff(20, 20, [bytes(1200)], {259: [compression]}))
        assert raised.value.reason == "unsupported"
    for marker, name in ((0xC5, "hierarchical"), (0xF7, "JPEG-LS")):
        data = bytearray(encoded(noise(), "JPEG"))
        data[data.index(b"\xff\xc0") + 1] = marker
        with pytest.raises(PhotoError, match=name) as raised:
            decode_photo(bytes(data))
        assert raised.value.reason == "unsupported"


def test_frames_of_pixels_that_are_not_square_are_made_so():
    av = pytest.importorskip("av")
    fault("sar.mp4")  # 128 x 256 pixels, twice as wide as high
    path = str(FAULTS / "sar.mp4")
    entries = list(list_video(path, "sar.mp4"))
    found = list(read_video(path, [entry.at for entry in entries]))
    with av.open(path) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(found) == len(frames) > 0
    for pixels, stored in zip(found, frames, strict=True):
        assert pixels.shape == (256, 256, 3) and stored.shape == (256, 128, 3)
        assert np.abs(pixels.reshape(256, 128, 2, 3).mean(2) - stored).mean() < 2
