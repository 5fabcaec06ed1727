"""The timeline of a tracked set: its data agree with the labels, and a browser plays it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator.commands.track import tracked_tables
from annotator.job.record import RunRecord, TrackSettings, write_run_record
from annotator.labels.folder import write_faces
from annotator.labels.schema import SCHEMA_VERSION, encode_table, label_schema
from annotator.report import write_report
from annotator.report.clips import MAX_FRAMES, SequenceSummary
from annotator.report.timeline import timeline
from annotator.sources.sequences import ADDED, SequenceSource
from tests.report.test_report_browser import CHROMIUM, Browser
from tests.sources.test_video import write_video
from tests.support.moving_labels import (
    HAND,
    HEIGHT,
    VIDEO_COLUMNS,
    WIDTH,
    Moving,
    table_of,
    write_labels,
)
from tests.support.moving_labels import (
    Clip as Drawn,
)

FRAMES = 30


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """Two hands in a real video, and one in a video that is gone."""
    folder = tmp_path_factory.mktemp("tracked")
    video = folder / "two.mp4"
    write_video(video, "libx264", {}, FRAMES, lambda k: np.full((HEIGHT, WIDTH, 3), 60 + 4 * k, np.uint8))
    hands = [
        Moving(range(FRAMES), seed=1, missing=(7, 8)),
        Moving(range(4, 26), is_right=False, start_px=(420, 150), speed_px=(-4, 1)),
    ]
    clips = [Drawn("two.mp4", FRAMES, hands), Drawn("gone.mp4", 12, [Moving(range(12), seed=3)])]
    labels = write_labels(
        folder / "in" / "labels", [table_of(c, VIDEO_COLUMNS) for c in clips], VIDEO_COLUMNS
    )
    source = SequenceSource(str(labels))
    facts = json.dumps(source.facts | {"max_gap": 5})
    schema = label_schema(HAND.vertex_count, {"amvur": facts}, source.columns | ADDED)
    out = folder / "set"
    (out / "data").mkdir(parents=True)
    for number, entry in enumerate(source):
        table = pa.concat_tables(tracked_tables([entry], str(labels), HAND, 5, schema))
        uris = [str(folder / uri) for uri in table["image_uri"].to_pylist()]
        at = table.schema.get_field_index("image_uri")
        table = table.set_column(at, table.schema.field(at), [uris])
        (out / "data" / f"shard-{number:07d}.parquet").write_bytes(encode_table(table))
    settings = TrackSettings(
        SCHEMA_VERSION, str(folder), str(labels), "net-1", HAND.id, HAND.vertex_count, 5, 1
    )
    write_run_record(str(out), RunRecord(settings, outcomes={"ok": FRAMES + 12}))
    write_faces(str(out), HAND.faces)
    return out


@pytest.fixture(scope="module")
def page(tracked, tmp_path_factory) -> Path:
    return write_report(str(tracked), tmp_path_factory.mktemp("report"), count=2)


def player_of(page: Path, number: int) -> dict:
    text = (page.parent / "clips" / f"{number:03d}.js").read_text()
    found = re.fullmatch(rf"amvurClip\({number}, (.*)\);\n", text)
    assert found
    return json.loads(found[1])


def test_a_players_hands_are_the_labels(tracked, page):
    rows = pq.read_table(tracked / "data" / "shard-0000000.parquet").to_pylist()
    player = player_of(page, 0)
    assert player["frames"] == list(range(FRAMES)) and player["size"] == [WIDTH, HEIGHT]
    shown = {
        (frame, hand["track"]): hand
        for frame, hands in zip(player["frames"], player["hands"], strict=True)
        for hand in hands
    }
    assert len(shown) == sum(row["track_id"] is not None for row in rows) == FRAMES + 22
    for row in rows:
        hand = shown[row["frame_index"], row["track_id"]]
        np.testing.assert_allclose(np.reshape(hand["joints"], (21, 2)), row["joints2d_px"], atol=0.06)
        std = np.linalg.norm(row["joints3d_std_mm"], axis=1)
        np.testing.assert_allclose(hand["std"], std, atol=0.06)
        assert hand["filled"] == (row["source"] == "interpolated") and hand["right"] == row["is_right"]


def test_a_players_pictures_are_the_frames_and_a_lost_video_has_none(page):
    import base64
    import io

    for number, source in enumerate(player_of(page, 0)["pictures"]):
        kind, data = source.split(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (480, 360)
        assert np.abs(np.asarray(picture).mean() - (60 + 4 * number)) < 4
    assert player_of(page, 1)["pictures"] == [None] * 12


def test_the_page_has_a_line_and_a_bar_per_track(page):
    text = page.read_text()
    assert text.count('<figure class="clip"') == 2 and "30 frames, 2 tracks, 2 hands filled" in text
    first = text[
        text.index('<figure class="clip"') : text.index("</figure>", text.index('<figure class="clip"'))
    ]
    assert first.count('class="line track-0"') == 1 and first.count('class="line track-1"') == 1
    assert "track 0, frames 7 to 8, filled from other frames" in first
    assert "track 1, frames 4 to 25, labelled" in first


def test_a_set_that_is_not_tracked_has_no_timeline(tracked, tmp_path):
    labels = tracked.parent / "in" / "labels"
    text = write_report(str(labels), tmp_path / "report", count=1).read_text()
    assert 'id="tracks"' not in text and "amvurClip" not in text
    assert not (tmp_path / "report" / "clips").exists()


def test_a_long_sequence_has_a_bounded_chart_whose_peaks_stay():
    clip = SequenceSummary("long.mp4")
    for frame in range(10_000):
        row = {"frame_index": frame, "track_id": 0, "source": "label", "image_uri": "long.mp4"}
        clip.add(row | {"joint_std_mm": 40.0 if frame == 4321 else 8.0}, (0, frame))
    drawn = timeline(clip)
    (line,) = [
        shape
        for shape in drawn.chart.shapes
        if "track-0" in str(shape.attributes.get("class")) and shape.tag == "path"
    ]
    points = re.findall(r"([\d.]+) ([\d.]+)", str(line.attributes["d"]))
    assert 500 < len(points) <= 600 and drawn.in_player == MAX_FRAMES
    peak = min(float(y) for _, y in points)
    flat = max(float(y) for _, y in points)
    floor = drawn.data["bottom"] - 22 - 14  # of the plot
    assert (floor - peak) / (floor - flat) == pytest.approx(5, rel=0.02)
    assert sum(shape.tag == "rect" for shape in drawn.chart.shapes) == 1


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine: apt-get install chromium")
def test_a_browser_plays_the_frames_from_disk(page, tmp_path):
    browser = Browser(tmp_path)
    try:
        browser.open(page)
        browser.run("one('.clip [data-do=open]').click()")
        browser.until("!one('.clip .player').hidden && one('.clip canvas').width > 100")
        browser.until("one('.clip canvas').getContext('2d').getImageData(5, 5, 1, 1).data[3] === 255")
        grey = "one('.clip canvas').getContext('2d').getImageData(5, 5, 1, 1).data[0]"
        assert abs(browser.run(grey) - 60) < 6
        browser.run("(s => { s.value = 20; s.dispatchEvent(new Event('input')); })(one('.clip input'))")
        assert (
            abs(browser.run(grey) - 140) < 6 and browser.run("one('.clip output').textContent") == "frame 20"
        )
        # Joints of the label are drawn where it has them.
        joints = (
            np.reshape(player_of(page, 0)["hands"][20][0]["joints"], (21, 2))
            * browser.run("one('.clip canvas').width")
            / WIDTH
        )
        for x, y in joints[[5, 9, 13, 17]]:
            r, g, b, _ = browser.run(
                f"[...one('.clip canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
            )
            assert max(r, g, b) - min(r, g, b) > 40
        x, y, width, _ = browser.run(
            "(b => [b.x, b.y, b.width, b.height])(one('.clip svg').getBoundingClientRect())"
        )
        click = f"new MouseEvent('click', {{clientX: {x + width - 20}, clientY: {y + 40}}})"
        browser.run(f"one('.clip svg').dispatchEvent({click})")
        assert browser.run("one('.clip output').textContent") == "frame 29"
        browser.run("one('.clip [data-do=play]').click()")
        browser.until("Number(one('.clip input').value) > 3 && Number(one('.clip input').value) < 29")
        assert not browser.complaints()
    finally:
        browser.close()
