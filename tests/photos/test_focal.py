"""Focal lengths in EXIF, written by Pillow, and in lists: which count, and that labels' cameras have them."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from annotator import UserError
from annotator.job.stages import decode_shard
from annotator.photos.decode import decode_photo
from annotator.sources import ListSource
from annotator.sources.entry import Camera, Entry, ListedHand

REAL = Path(__file__).parents[3] / "shared" / "data" / "sign-digits" / "images"
PHONE = {"mm": 4.25, "film": 26, "size": (4032, 3024)}
CANON = {"mm": 50.0, "film": None, "size": (5472, 3648), "per_inch": IFDRational(5472000, 899)}


def photo(
    size: tuple[int, int],
    *,
    mm: float | None = None,
    film: int | None = None,
    exif_size: tuple[int, int] | None = None,
    per_inch: IFDRational | None = None,
    zoom: float | None = None,
    orientation: int = 1,
    kind: str = "JPEG",
) -> bytes:
    """Return a photo of `size` whose EXIF has these fields."""
    exif = Image.Exif()
    exif[274] = orientation
    inner = exif.get_ifd(0x8769)
    fields = {0x920A: mm, 0xA405: film, 0xA20E: per_inch, 0xA404: zoom}
    fields |= {0xA210: 2} if per_inch else {}
    fields |= dict(zip((0xA002, 0xA003), exif_size, strict=True)) if exif_size else {}
    fractions = (0x920A, 0xA404)
    inner.update(
        {
            tag: IFDRational(round(value * 100), 100) if tag in fractions else value
            for tag, value in fields.items()
            if value is not None
        }
    )
    file = io.BytesIO()
    Image.new("RGB", size, (90, 60, 30)).save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_equivalent_focal_length_compares_diagonals(kind):
    data = photo((403, 302), mm=4.25, film=26, exif_size=(4032, 3024), kind=kind)
    # 35 mm film has a diagonal of 43.27 mm.
    assert decode_photo(data).exif_focal_px == pytest.approx(26 * math.hypot(403, 302) / 43.2666, rel=1e-5)


def test_a_sensor_of_known_resolution_is_exact():
    data = photo((547, 365), exif_size=(5472, 3648), mm=50, per_inch=CANON["per_inch"])
    exact = 50 / 25.4 * 5472000 / 899 * 547 / 5472
    assert decode_photo(data).exif_focal_px == pytest.approx(exact, rel=1e-6)
    both = photo((547, 365), exif_size=(5472, 3648), mm=50, film=80, per_inch=CANON["per_inch"])
    assert decode_photo(both).exif_focal_px == pytest.approx(exact, rel=1e-6)
    # A resolution that contradicts the equivalent focal length is another size's.
    halved = photo((547, 365), exif_size=(5472, 3648), mm=50, film=80, per_inch=IFDRational(2736000, 899))
    assert decode_photo(halved).exif_focal_px == pytest.approx(80 / 36 * 547, rel=1e-2)


def test_a_wide_picture_keeps_the_sensors_width():
    focal_px = decode_photo(photo((1600, 900), film=26, exif_size=(1600, 900))).exif_focal_px
    assert focal_px == pytest.approx(26 / 36 * 1600)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_rotated_and_resized_photos_keep_their_field_of_view(orientation):
    for exif_size in ((4032, 3024), (3024, 4032), (200, 150)):
        data = photo((403, 302), film=26, exif_size=exif_size, orientation=orientation)
        assert decode_photo(data).exif_focal_px == pytest.approx(26 * math.hypot(403, 302) / 43.2666)
    assert decode_photo(photo((403, 302), film=26, exif_size=(4032, 3024)), 40).exif_focal_px > 300


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((400, 300), {"film": 26}),  # EXIF without dimensions may be of any picture
        ((300, 300), {"film": 26, "exif_size": (4032, 3024)}),  # cut
        ((400, 310), {"film": 26, "exif_size": (4032, 3024)}),  # cut a little
        ((300, 300), {"film": 26, "exif_size": (300, 300)}),  # cut, by a program that updates the dimensions
        ((400, 230), {"film": 26, "exif_size": (400, 230)}),
        ((400, 300), {"film": 26, "exif_size": (4032, 3024), "zoom": 2.0}),
        ((400, 300), {"film": 0, "exif_size": (4032, 3024)}),  # EXIF's "unknown"
        ((400, 300), {"film": 3, "exif_size": (4032, 3024)}),
        ((400, 300), {"mm": 4.25, "exif_size": (4032, 3024)}),  # of an unknown sensor
        ((400, 300), {"mm": 4.25, "exif_size": (4032, 3024), "per_inch": IFDRational(72, 1)}),
        ((400, 300), {"film": 26, "exif_size": (0, 0)}),
        ((400, 300), {}),
    ],
)
def test_a_focal_length_that_may_be_of_another_picture_is_ignored(size, fields):
    assert decode_photo(photo(size, **fields)).exif_focal_px is None


def test_real_cuts_whose_exif_was_updated_are_not_trusted():
    files = sorted(REAL.rglob("*.JPG"))[::100]
    if not files:
        pytest.skip("the real photos are not beside this checkout")
    with_focal = 0
    for file in files:
        with Image.open(file) as image:
            fields = image.getexif().get_ifd(0x8769)
        with_focal += 0xA405 in fields  # an older phone wrote no 35 mm equivalent
        assert (fields[0xA002], fields[0xA003]) == image.size
        assert decode_photo(file.read_bytes()).exif_focal_px is None
    assert with_focal > len(files) / 2


def test_damaged_exif_gives_nothing_and_raises_nothing():
    whole = photo((403, 302), mm=4.25, film=26, exif_size=(4032, 3024))
    focal_px = decode_photo(whole).exif_focal_px
    start = whole.index(b"Exif\0\0") + 6
    rng = np.random.default_rng(0)
    end = start - 8 + int.from_bytes(whole[start - 8 : start - 6], "big")
    for at in range(start, end):
        for value in rng.integers(0, 256, 3):
            forged = bytearray(whole)
            forged[at] = value
            found = decode_photo(bytes(forged)).exif_focal_px
            assert found is None or (found > 0 and math.isfinite(found))
    assert focal_px == pytest.approx(302.6, abs=0.1)


def test_labels_take_the_focal_length_of_exif_and_a_list_comes_first(tmp_path):
    (tmp_path / "a.jpg").write_bytes(photo((403, 302), film=26, exif_size=(4032, 3024)))
    (tmp_path / "b.jpg").write_bytes(photo((403, 302)))
    (tmp_path / "hands.csv").write_text(
        "path,fx,fy,cx,cy,x1,y1,x2,y2\na.jpg,,,,,10,10,90,90\nb.jpg,,,,,10,10,90,90\n"
        "a.jpg,500,502,190.5,160,10,20,90,90\nb.jpg,500,,,,10,20,90,90\n"
    )
    crops = decode_shard(list(ListSource(str(tmp_path / "hands.csv"))), 32).crops
    assert crops.focal_source.tolist() == ["exif", "assumed", "given", "given"]
    np.testing.assert_allclose(crops.focal_px, [302.6, 403 * 1.2, 501, 500], atol=0.1)
    np.testing.assert_array_equal(
        crops.principal_px, [[201.5, 151], [201.5, 151], [190.5, 160], [201.5, 151]]
    )


def test_a_list_keeps_the_cameras_columns_and_refuses_impossible_ones(tmp_path):
    (tmp_path / "hands.csv").write_text(
        "path,fx,fy,cx,cy\na.jpg,500,502,190,160\nb.jpg,-1,502,190,160\nc.jpg,,502,,\nd.jpg,500,,190,\n"
        "e.jpg,500,500,1e9,0\nf.jpg,much,,,\n"
    )
    source = ListSource(str(tmp_path / "hands.csv"))
    assert list(source.columns) == ["fx", "fy", "cx", "cy"]
    first, *others = source
    assert first.camera == Camera(500, 502, 190, 160) and first.extra["cx"] == "190"
    assert Entry.from_json(first.to_json()) == first
    for entry, words in zip(
        others, ["fx is -1", "fy is given without fx", "one of cx and cy", "principal", "fx has"], strict=True
    ):
        assert entry.fault.reason == "bad_row" and words in entry.fault.message


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("path,fx,focal_px", "'fx' and 'focal_px': give one"),
        ("path,fy", "no column 'fx'"),
        ("path,fx,cx", "only one of the columns 'cx' and 'cy'"),
        ("path,fx,fy,cx,cy,w,h", "name the box's centre box_cx, box_cy, box_w, box_h"),
    ],
)
def test_ambiguous_camera_columns_are_refused(tmp_path, header, words):
    (tmp_path / "hands.csv").write_text(header + "\n")
    with pytest.raises(UserError, match=words):
        ListSource(str(tmp_path / "hands.csv"))


def test_cx_and_cy_are_a_boxs_centre_without_fx_and_the_cameras_with_it(tmp_path):
    (tmp_path / "box.csv").write_text("path,cx,cy,w,h\na.jpg,50,60,20,40\n")
    (tmp_path / "both.csv").write_text(
        "path,fx,cx,cy,box_cx,box_cy,box_w,box_h\na.jpg,500,320,240,50,60,20,40\n"
    )
    (entry,) = ListSource(str(tmp_path / "box.csv"))
    assert entry.hands == (ListedHand((40, 40, 60, 80)),) and entry.camera is None
    (entry,) = ListSource(str(tmp_path / "both.csv"))
    assert entry.hands == (ListedHand((40, 40, 60, 80)),) and entry.camera == Camera(500, 500, 320, 240)
