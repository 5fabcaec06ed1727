"""`annotate` on every kind of source, on a real Ray: the same photo gives the same hand."""

from __future__ import annotations

import csv
import json
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from annotator import UserError, annotate
from annotator.job.options import ComputeOptions
from annotator.job.run import Progress
from annotator.report import write_report
from annotator.sources import ListSource
from tests.commands.test_cli import run
from tests.conftest import SMALL

pytestmark = pytest.mark.slow


def rows_of(labels: Path) -> list[dict]:
    return [row for path in sorted((labels / "data").iterdir()) for row in pq.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def few(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few")
    for path in sorted(photos.rglob("*.jpg"))[:6]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def plain(few, lively_file, tmp_path_factory, local_ray):
    """Labels of the few as plain files, by name."""
    labels = tmp_path_factory.mktemp("plain") / "labels"
    annotate(str(few), str(labels), checkpoint=lively_file, compute=SMALL)
    return {row["image_id"]: row for row in rows_of(labels)}


def in_a_tar(few: Path, folder: Path) -> str:
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for path in sorted(few.iterdir()):
            tar.add(path, arcname=f"below/{path.name}")
    return "photos.tar"


def in_parquet(few: Path, folder: Path) -> str:
    paths = sorted(few.iterdir())
    table = pa.table({"image": [path.read_bytes() for path in paths], "name": [path.name for path in paths]})
    pq.write_table(table, folder / "photos.parquet", row_group_size=4)
    return "photos.parquet"


def in_a_list(few: Path, folder: Path) -> str:
    lines = [json.dumps({"image": str(path), "subject": 7.5, "tall": True}) for path in sorted(few.iterdir())]
    (folder / "photos.jsonl").write_text("\n".join(lines))
    return "photos.jsonl"


@pytest.mark.parametrize("put", [in_a_tar, in_parquet, in_a_list])
def test_a_photo_gives_the_same_label_wherever_it_lies(put, few, plain, lively_file, tmp_path):
    source = tmp_path / put(few, tmp_path)
    labels = tmp_path / "labels"
    assert annotate(str(source), str(labels), checkpoint=lively_file, compute=SMALL).outcomes == {"ok": 6}
    found = rows_of(labels)
    for name, row in zip(sorted(plain), found, strict=True):
        assert row["vertices_mm"] == plain[name]["vertices_mm"] and row["width"] == plain[name]["width"]
        if put is in_a_list:
            assert (row["subject"], row["tall"], row["duplicate"]) == (7.5, True, False)
    assert len({row["image_id"] for row in found}) == 6
    # The report locates the photos: its pictures equal those of the plain files.
    page = write_report(str(labels), tmp_path / "report", count=6)
    tile = np.asarray(Image.open(page.parent / "contact_sheet.png"))[6:150, 6:150]
    assert tile.std() > 10


def test_frames_of_a_video_have_their_number_and_time(few, lively_file, tmp_path, local_ray):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "clip.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for k in range(25):
            pixels = np.full((64, 96, 3), 10 * k, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    labels = tmp_path / "labels"
    annotate(str(tmp_path / "clip.mp4"), str(labels), checkpoint=lively_file, every=10, compute=SMALL)
    found = rows_of(labels)
    assert [(row["frame_index"], row["frame_time_s"]) for row in found] == [(0, 0.0), (10, 1.0), (20, 2.0)]
    assert [row["image_id"] for row in found] == ["clip.mp4#0", "clip.mp4#10", "clip.mp4#20"]
    for row in found:
        seen = np.array(row["vertex_rgb"])[np.array(row["vertex_visible"])]
        assert abs(np.median(seen) - 10 * row["frame_index"]) < 30
    with pytest.raises(UserError, match="labelled with every 10, this run has 5"):
        annotate(str(tmp_path / "clip.mp4"), str(labels), checkpoint=lively_file, every=5, compute=SMALL)


def test_a_list_of_scenes_says_box_side_and_focal_length(hand_scenes, lively_file, tmp_path, local_ray):
    with (hand_scenes / "boxes.csv").open() as file:
        rows = list(csv.DictReader(file))
    boxes, other = rows[::100], hand_scenes / "images" / rows[50]["image"]
    with (tmp_path / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "x1", "y1", "x2", "y2", "handedness", "focal_px", "id", "fingers", "status"])
        for k, row in enumerate(boxes):
            corners = [row[name] for name in ("x1_px", "y1_px", "x2_px", "y2_px")]
            side = "left" if k % 2 else "Right"
            path = hand_scenes / "images" / row["image"]
            writer.writerow(
                [
                    path,
                    *corners,
                    side,
                    700 + k,
                    f"hand {k}",
                    row["open_fingers"],
                    "x",
                ]
            )
        writer.writerow([other, 5000, 10, 6000, 90, "left", 700, "outside", 1, "x"])
        writer.writerow([path, 90, 10, 10, 90, "left", 700, "inverted", 1, "x"])
    labels = tmp_path / "labels"
    record = annotate(str(tmp_path / "list.csv"), str(labels), checkpoint=lively_file, compute=SMALL)
    assert record.outcomes == {"ok": len(boxes), "unreadable: bad_row": 1, "unreadable: box_outside": 1}
    for k, (row, given) in enumerate(zip(rows_of(labels)[:-2], boxes, strict=True)):
        assert (row["image_id"], row["box_source"], row["hand_index"]) == (f"hand {k}", "list", 0)
        assert row["is_right"] == (k % 2 == 0) and row["side_score"] == 1
        assert row["list_status"] == "x" and row["status"] == "ok"
        np.testing.assert_allclose(
            row["box_xyxy"], [float(given[n]) for n in ("x1_px", "y1_px", "x2_px", "y2_px")]
        )
        camera = row["camera"]
        assert (camera["focal_px"], camera["focal_source"]) == (700 + k, "given")
        # Before that very camera the hand falls where it was seen, near enough to weak perspective.
        points = np.array(row["joints3d_mm"]) + camera["cam_t_mm"]
        centre = [row["width"] / 2, row["height"] / 2]
        seen_px = camera["focal_px"] * points[:, :2] / points[:, 2:] + centre
        off = np.linalg.norm(seen_px - np.array(row["joints2d_px"]), axis=1).mean()
        assert off / (row["crop_xyxy"][2] - row["crop_xyxy"][0]) < 0.08


def test_boxes_of_another_list_are_those_of_the_photos(hand_scenes, lively_file, tmp_path, local_ray):
    photos = tmp_path / "photos"
    photos.mkdir()
    names = sorted(path.name for path in (hand_scenes / "images").iterdir())[::150]
    for name in names:
        shutil.copy(hand_scenes / "images" / name, photos)
    (photos / "unknown.jpg").write_bytes((photos / names[0]).read_bytes())
    labels = tmp_path / "labels"
    record = annotate(
        str(photos), str(labels), checkpoint=lively_file, boxes=str(hand_scenes / "boxes.csv"), compute=SMALL
    )
    with (hand_scenes / "boxes.csv").open() as file:
        given = [row for row in csv.DictReader(file) if row["image"] in names]
    found = rows_of(labels)
    assert record.outcomes == {"no_hand: not_listed": 1, "ok": len(names)}
    assert sorted((row["image_id"], row["hand_index"]) for row in found if row["status"] == "ok") == sorted(
        (name, k) for name in names for k in range(sum(row["image"] == name for row in given))
    )
    with pytest.raises(UserError, match="both locate the hands"):
        annotate(str(photos), str(labels), boxes="x.csv", detector="y.task")


def test_rows_are_done_again_by_another_checkpoint(few, plain, lively_file, tmp_path, local_ray):
    """Relabel uncertain rows with another checkpoint."""
    labels = tmp_path / "labels"
    photos = tmp_path / "photos"
    shutil.copytree(few, photos)
    missing = photos / "zz gone.jpg"
    missing.symlink_to(tmp_path / "nowhere.jpg")
    compute = ComputeOptions(threads=1, shard_size=3)
    first = annotate(str(photos), str(labels), checkpoint="fast", compute=compute)
    assert first.outcomes == {"ok": 6, "unreadable: missing": 1}
    with pytest.raises(UserError, match=r"--relabel"):
        annotate(str(photos), str(labels), checkpoint=lively_file, compute=compute)
    before = {row["image_id"]: row for row in rows_of(labels)}
    surest = sorted(before, key=lambda name: before[name]["joint_std_mm"] or 1e9)[:2]
    limit = before[surest[1]]["joint_std_mm"]
    shutil.copy(few / surest[0], tmp_path / "nowhere.jpg")
    condition = f"joint_std_mm <= {limit + 1e-4} or reason == missing"
    again = annotate(str(photos), str(labels), checkpoint=lively_file, compute=compute, relabel=condition)
    assert again.outcomes == {"ok": 7}
    after = rows_of(labels)
    assert [row["image_id"] for row in after] == [*sorted(plain), "zz gone.jpg"]
    for row in after:
        name = row["image_id"]
        if name in surest or name == "zz gone.jpg":
            assert row["checkpoint"] == again.relabelled[0]["checkpoint"] != before[name]["checkpoint"]
        else:
            assert row == before[name]
    with pytest.raises(UserError, match="there is no column 'sureness'; the columns are image_uri"):
        annotate(str(photos), str(labels), checkpoint=lively_file, compute=compute, relabel="sureness < 3")


def test_boxes_that_came_later_are_taken_and_no_row_is_doubled(few, lively_file, tmp_path, local_ray):
    names = sorted(path.name for path in few.iterdir())
    boxes, labels = tmp_path / "boxes.csv", tmp_path / "labels"

    def list_boxes(known: list[str]) -> None:
        boxes.write_text("image,x1,y1,x2,y2\n" + "".join(f"{name},2,2,30,30\n" for name in known))

    def go(**options):
        return annotate(
            str(few), str(labels), checkpoint=lively_file, boxes=str(boxes), compute=SMALL, **options
        )

    list_boxes(names[:4])
    assert go().outcomes == {"no_hand: not_listed": 2, "ok": 4}
    list_boxes(names)
    assert go().outcomes == {"no_hand: not_listed": 2, "ok": 4}
    assert go(relabel="status == no_hand").outcomes == {"ok": 6}
    assert sorted(row["image_id"] for row in rows_of(labels)) == names
    # An unfinished set is not relabelled.
    for path in (labels / "data").iterdir():
        path.unlink()
    with pytest.raises(
        UserError, match="is not finished: finish it first, with the same command without --relabel"
    ):
        go(relabel="status == no_hand")


def test_the_first_label_is_there_long_before_the_listing_ends(
    few, lively_file, tmp_path, local_ray, monkeypatch
):
    """A listing that comes to a stop after 40 rows, until the first label is there."""
    every, labelled_one, in_time = ListSource.rows, threading.Event(), []

    def rows(self):
        for number, row in enumerate(every(self)):
            if number == 40:
                in_time.append(labelled_one.wait(120))
            yield row

    monkeypatch.setattr(ListSource, "rows", rows)
    (tmp_path / "list.txt").write_text("".join(f"{few}/{path.name}\n" for path in few.iterdir()) * 50)
    reported: list[Progress] = []

    def tell(progress: Progress) -> None:
        reported.append(progress)
        if progress.photos:
            labelled_one.set()

    record = annotate(
        str(tmp_path / "list.txt"),
        str(tmp_path / "labels"),
        checkpoint=lively_file,
        compute=ComputeOptions(threads=1, shard_size=8),
        on_progress=tell,
    )
    assert record.outcomes == {"ok": 300}
    first = next(progress for progress in reported if progress.photos)
    # Rows are read several times: to detect new ones, and to plan shards.
    assert in_time and all(in_time)
    assert not first.listed and first.total <= 40 and reported[-1].listed and reported[-1].total == 300
    # The same photos over and over: all but the first of each are flagged.
    assert sum(row["duplicate"] for row in rows_of(tmp_path / "labels")) == 294


def test_a_dry_run_counts_and_writes_nothing(few, plain, tmp_path, monkeypatch, capsys):
    out = tmp_path / "labels"
    code, printed, _ = run(monkeypatch, capsys, "annotate", few, out, "--dry-run")
    lines = {line.split("  ")[0]: line for line in printed.splitlines()}
    assert code == 0 and not out.exists()
    code, _, error = run(monkeypatch, capsys, "annotate", few, out, "--dry-run", "--relabel", "status != ok")
    assert code == 2 and "--relabel labels photos again" in error
    # Labels of other settings are refused before anybody waits for a run.
    annotate(str(few), str(tmp_path / "left"), side="left", compute=SMALL)
    code, _, error = run(monkeypatch, capsys, "annotate", few, tmp_path / "left", "--dry-run")
    assert code == 2 and "was labelled with side 'left', this run has 'auto'" in error
    precision = ("--precision", "bfloat16", "--side", "left")
    code, _, error = run(monkeypatch, capsys, "annotate", few, tmp_path / "left", "--dry-run", *precision)
    assert code == 2 and "was labelled with precision 'float32', this run has 'bfloat16'" in error
    monkeypatch.setattr("annotator.runtime.precision._has_gpus", lambda address: False)
    half = ("annotate", few, out, "--precision", "float16")
    (dry_code, _, dry), (code, _, error) = (
        run(monkeypatch, capsys, *half, *more) for more in (["--dry-run"], [])
    )
    assert dry_code == code == 2 and dry == error and "leave out --precision" in error
    assert "6" in lines["photos"] and "6" in lines["remaining"] and str(out) in lines["written to"]
    assert "photos/s" in lines["time"] and "KB per hand" in lines["labels"]
