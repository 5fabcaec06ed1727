"""HEIC and AVIF compared with FFmpeg's decoder (by PyAV), and files with rare names in a folder."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from annotator.errors import UserError
from annotator.photos import formats, heif
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError
from annotator.sources import open_source
from annotator.sources.read import photos_of
from tests.robustness.hostile_photos import arrow, encoded, exif, noise, rotated
from tests.support.listing import listed

FAULTS = Path(__file__).parents[3] / "shared" / "data" / "inputs"


@pytest.fixture
def faults() -> Path:
    if not FAULTS.is_dir():
        pytest.skip("the files of faults are not beside this checkout")
    pytest.importorskip("pi_heif")
    return FAULTS


@pytest.mark.parametrize("name", ["photo.heic", "photo.hif", "noext_heic", "photo.avif", "noext_avif"])
def test_a_phones_photo_is_read_as_ffmpeg_reads_it(faults, name):
    av = pytest.importorskip("av")
    with av.open(str(faults / name)) as container:
        expected = next(container.decode(video=0)).to_ndarray(format="rgb24")
    photo = decode_photo((faults / name).read_bytes())
    assert (photo.width, photo.height) == expected.shape[1::-1]
    assert np.abs(photo.pixels.astype(int) - expected).mean() < 2  # the decoders upsample chroma differently


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_rotated_once(orientation):
    data = encoded(rotated(arrow(96, 64), orientation), "AVIF", exif=exif(orientation), quality=95)
    photo = decode_photo(data)
    assert (photo.width, photo.height) == (96, 64) and np.abs(
        photo.pixels.astype(int) - arrow(96, 64)
    ).mean() < 4


@pytest.mark.slow
def test_a_heic_or_avif_that_is_cut_is_truncated_and_a_giant_too_large(faults, monkeypatch):
    smooth = Image.fromarray(noise(64, 48)).resize((320, 240), Image.Resampling.BICUBIC)
    for data in ((faults / "photo.heic").read_bytes(), encoded(smooth, "AVIF")):
        for cut in range(40, len(data), len(data) // 30):
            with pytest.raises(PhotoError) as raised:
                decode_photo(data[:cut])
            assert raised.value.reason == "truncated", cut
        size = data.index(b"ispe") + 8
        with pytest.raises(PhotoError) as raised:
            decode_photo(data[:size] + (60_000).to_bytes(4, "big") * 2 + data[size + 8 :])
        assert raised.value.reason in ("too_large", "corrupt")
        for at in range(20, len(data), len(data) // 200):
            damaged = data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]
            try:
                decode_photo(damaged)
            except PhotoError as error:
                assert str(error).isprintable()


def test_a_missing_reader_is_named(faults):
    script = """
import sys
sys.modules["pi_heif"] = None
from annotator.photos.decode import decode_photo
from annotator.photos.errors import PhotoError
try:
    decode_photo(open(sys.argv[1], "rb").read())
except PhotoError as error:
    print(error.reason, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(faults / "photo.heic")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "unsupported HEIC needs pi-heif: pip install 'amvur-annotator[heic]'\n"


def test_brands_of_containers_that_hold_either():
    def start(major: bytes, *others: bytes) -> bytes:
        return (16 + 4 * len(others)).to_bytes(4, "big") + b"ftyp" + major + bytes(4) + b"".join(others)

    assert heif.heif_kind(start(b"mif1", b"miaf", b"avif")) == "AVIF"
    assert heif.heif_kind(start(b"mif1", b"miaf", b"heic")) == heif.heif_kind(start(b"mif1")) == "HEIC"
    assert heif.heif_kind(start(b"isom", b"avif")) == heif.heif_kind(b"") == ""


def test_every_picture_of_a_folder_has_a_row(faults, tmp_path):
    expected = {}
    for path in faults.iterdir():
        if path.is_file() and path.name.startswith(("photo.", "noext_", "jpegls", "t_", "exif6")):
            shutil.copy(path, tmp_path / path.name)
            expected[path.name] = "unsupported" if path.suffix in (".j2k", ".jxl", ".tga", ".jls") else "ok"
    expected["t_webp.tif"] = "unsupported"
    for name in ("photo.j2k", "photo.jxl"):
        shutil.copy(faults / name, tmp_path / f"bare {name[-3:]}")
        expected[f"bare {name[-3:]}"] = "unsupported"
    (tmp_path / "old.dib").write_bytes(encoded(noise(), "BMP"))
    (tmp_path / "list of.cls").write_text("hand 1\n")
    (tmp_path / "page.pdf").write_bytes(b"%PDF-1.4 nothing")
    source = open_source(str(tmp_path))
    entries = listed(source)
    photos = dict(zip([entry.id for entry in entries], photos_of(entries, lambda _: 64), strict=True))
    found = {name: photo.reason if isinstance(photo, PhotoError) else "ok" for name, photo in photos.items()}
    assert found == expected | {"old.dib": "ok"}
    assert source.skipped == ["list of.cls", "page.pdf"]


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "TGZ", "tar.xz", "7z", "rar", "tar.zst"])
def test_an_archive_is_refused_or_gets_a_row_with_its_fault(tmp_path, suffix):
    with zipfile.ZipFile(tmp_path / f"hands.{suffix}", "w") as archive:
        archive.writestr("a.jpg", encoded(noise(), "JPEG"))
    (tmp_path / "a.jpg").write_bytes(encoded(noise(), "JPEG"))
    photo, archived = listed(open_source(str(tmp_path)))
    assert (
        photo.fault is None
        and archived.fault.reason == "unsupported"
        and "unpack it" in archived.fault.message
    )
    with pytest.raises(UserError, match="plain .tar"):
        open_source(str(tmp_path / f"hands.{suffix}"))


def test_typescript_is_not_a_video(tmp_path):
    pytest.importorskip("av")
    (tmp_path / "code.ts").write_text("export const hand = 1;\n" * 30)
    (tmp_path / "empty.ts").touch()
    source = open_source(str(tmp_path))
    assert [(entry.id, entry.fault.reason) for entry in source] == [("empty.ts", "empty")]
    assert source.skipped == ["code.ts"]


def test_the_first_bytes_identify_pictures():
    for format in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM"):
        assert formats.starts_like_a_photo(encoded(noise(), format)[: formats.START_BYTES]), format
    for other in (
        b"",
        b"\xff\xd8",
        b"PK\3\4",
        b"%PDF-1.4",
        b"ID3",
        b"\0\0\0\x20ftypisom",
        b"RIFF\0\0\0\0WAVE",
        bytes(32),
    ):
        assert not formats.starts_like_a_photo(other), other
    assert io.BytesIO(encoded(noise(), "AVIF")).read(12)[4:] == b"ftypavif"
