"""Training on Ray: after any kill, the run ends with the same result."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from annotator.config import to_dict
from annotator.errors import UserError
from annotator.hand import load_hand
from annotator.model.checkpoint import load_checkpoint
from annotator.runtime import submission
from tests.conftest import SHARED, at_work
from tests.robustness.hostile_photos import encoded, noise
from tests.support.example_files import write_stick_hands
from tests.support.two_workers import train_on_two
from tests.trainer.test_train import TINY, largest_difference, weights
from trainer.config import OptimizerConfig, SourceConfig, TrainConfig, read_train_config
from trainer.progress import TrainingProgress
from trainer.ray_train import train_on_ray
from trainer.start import start_network
from trainer.train import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 60
#: Time limit, far above the real duration, because a machine may be busy.
RETRY_LIMIT_S = 900
TOKEN = "0123456789abcdef" * 4


def config_for(folder, **settings) -> TrainConfig:
    """One worker and two workers take the same steps."""
    plain = TrainConfig(
        network=TINY,
        data=(SourceConfig(source=str(folder)),),
        batch_size=8,
        steps=STEPS,
        loaders=0,
        checkpoint_every=5,
        log_every=1,
        pictures_every=1000,
        freeze_normalisation=True,
        optimizer=OptimizerConfig(kind="sgd", learning_rate=1e-3, ema=0, warmup_steps=1),
    )
    return replace(plain, **settings)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The working folder: examples, and a configuration with a relative path to them."""
    folder = tmp_path_factory.mktemp("run")
    write_stick_hands(folder / "sticks", 48)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(to_dict(config_for("sticks"))))
    return folder


def amvur(folder: Path, *arguments: str, log: str = "log.txt") -> subprocess.Popen:
    """Run the command line and append its output to a file."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    with (folder / log).open("a") as file:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=folder,
            env=environment,
            stdout=file,
            stderr=file,
        )


def steps_of(out: Path) -> list[int]:
    path = out / "metrics.jsonl"
    # The text after the last newline is still being written.
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def wait_for_step(process: subprocess.Popen, out: Path, step: int) -> None:
    until = time.monotonic() + RETRY_LIMIT_S
    while max(steps_of(out), default=0) < step:
        assert process.poll() is None, (out.parent / "log.txt").read_text()
        assert time.monotonic() < until, f"no step {step}"
        time.sleep(0.05)


@contextmanager
def head(log: Path):
    """A separate cluster with a token; the value is its address for submissions."""
    temporary = tempfile.mkdtemp(prefix="ray")  # short: names of sockets have a limit
    ports = free_ports(6)
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    environment |= {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    options = (
        "port dashboard-port dashboard-agent-listen-port dashboard-agent-grpc-port ray-client-server-port"
    )
    arguments = [f"--{name}={port}" for name, port in zip(options.split(), ports, strict=False)]
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")),
            *("start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true"),
            *(f"--temp-dir={temporary}", f"--object-store-memory={1 << 28}", *arguments),
        ],
        cwd=temporary,
        env=environment,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        yield f"http://127.0.0.1:{ports[1]}"
    finally:
        all_of_it = [process, *psutil.Process(process.pid).children(recursive=True)]
        for one in reversed(all_of_it):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        shutil.rmtree(temporary, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def test_a_killed_run_ends_with_the_same_result_and_a_job_finishes_it(run_folder, monkeypatch):
    if importlib.util.find_spec("aiohttp_cors") is None:
        pytest.skip("submissions need ray[default]")
    out = run_folder / "out"
    command = ["train", "tiny.yaml", "out", "--workers", "2"]
    driver = amvur(run_folder, *command)
    try:
        wait_for_step(driver, out, 12)
        family = psutil.Process(driver.pid).children(recursive=True)
        workers = [one for one in family if one.name().startswith("ray::RayTrainW")]
        assert len(workers) == 2
        workers[1].kill()

        wait_for_step(driver, out, 27)
        family = [one for one in psutil.Process(driver.pid).children(recursive=True) if at_work(one)]
    finally:
        driver.kill()
    assert len(family) >= 3
    _, left = psutil.wait_procs(family, 60)
    assert not left
    assert 27 <= max(steps_of(out)) < STEPS

    with head(run_folder / "head.txt") as address:
        wait_for_answer(address)
        with pytest.raises(UserError, match="requires a token"):
            monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
            submission.submit(address, ["--help"], print)
        client = amvur(run_folder, *command, "--address", address)
        assert client.wait(RETRY_LIMIT_S) == 0, (run_folder / "log.txt").read_text()
        # An error of the submission also ends the client.
        client = amvur(run_folder, *command[:3], "--workers", "1000", "--address", address)
        assert client.wait(RETRY_LIMIT_S) == 2
        what_was_trained_labels_photos(run_folder, address)
        jobs_are_listed_followed_and_stopped(run_folder, address)
    log_text = (run_folder / "log.txt").read_text()
    assert "submission raysubmit_" in log_text
    assert f"trained {STEPS} steps" in log_text
    assert "amvur: 1000 workers need a " in log_text
    assert "Traceback" not in log_text

    train(config_for(run_folder / "sticks"), str(run_folder / "whole"), "cpu")
    assert steps_of(out) == list(range(1, STEPS + 1))
    assert load_checkpoint(str(out / "model.safetensors")).info.trained_steps == STEPS
    whole, start = weights(run_folder / "whole"), start_network(config_for("sticks"), load_hand("open"))
    assert largest_difference(whole, weights(out)) < 1e-5
    assert largest_difference(whole, start.state_dict()) > 1e-3
    assert not (run_folder / "ray_results").exists()


def what_was_trained_labels_photos(folder: Path, address: str) -> None:
    """train -> calibrate -> annotate -> filter, and detect, each a submission to the cluster."""
    photos = folder / "photos"
    photos.mkdir()
    for k in range(6):
        (photos / f"{k}.jpg").write_bytes(encoded(noise(64 + k), "JPEG"))
    model = SHARED / "models" / "hand_landmarker.task"
    chain = [
        ["calibrate", "out/model.safetensors", "sticks", "calibrated.safetensors"],
        ["annotate", "photos", "labels", "--checkpoint", "calibrated.safetensors"],
        ["filter", "labels", "best", "--keep-best", "0.5"],
    ]
    if importlib.util.find_spec("mediapipe") and model.is_file():
        chain.append(["detect", "photos", "found", "--model", str(model)])
    for command in chain:
        client = amvur(folder, *command, "--address", address)
        assert client.wait(RETRY_LIMIT_S) == 0, (folder / "log.txt").read_text()
    labels, best = (pq.read_table(folder / name / "data").to_pylist() for name in ("labels", "best"))
    assert [row["status"] for row in labels] == ["ok"] * 6 and len(best) >= 3
    calibrated = load_checkpoint(str(folder / "calibrated.safetensors"))
    assert {row["checkpoint"] for row in labels} == {calibrated.id}
    assert max(row["joint_std_mm"] for row in best) <= sorted(row["joint_std_mm"] for row in labels)[2]
    if len(chain) > 3:
        assert pq.read_table(folder / "found" / "data").num_rows == 6


def jobs_are_listed_followed_and_stopped(folder: Path, address: str) -> None:
    def output_of(*arguments: str, code: int = 0) -> str:
        log_text = folder / "submission.txt"
        log_text.unlink(missing_ok=True)
        assert (
            amvur(folder, "jobs", *arguments, "--address", address, log=log_text.name).wait(RETRY_LIMIT_S)
            == code
        )
        return log_text.read_text()

    listed = output_of("list").splitlines()
    assert listed[0].split() == ["submission", "state", "began", "command"]
    (of_filter,) = [
        line for line in listed if "amvur filter --address auto labels best --keep-best 0.5" in line
    ]
    submission_id = of_filter.split()[0]
    assert " succeeded " in of_filter
    assert "rows in best" in output_of("logs", submission_id)
    assert "had already ended (succeeded)" in output_of("stop", submission_id)
    assert "has no submission 'raysubmit_none': list them with `amvur jobs list`" in output_of(
        "logs", "raysubmit_none", code=2
    )
    # Ctrl-C leaves a submission running, `stop` does not.
    client = amvur(folder, "train", "tiny.yaml", "long", "--set", "steps=100000", "--address", address)
    while len(listed := output_of("list").splitlines()) < 2 or " running " not in listed[1]:
        time.sleep(0.5)
    submission_id = listed[1].split()[0]
    client.send_signal(signal.SIGINT)
    assert client.wait(RETRY_LIMIT_S) == 130
    assert (
        f"submission {submission_id} keeps running. Its log: amvur jobs logs {submission_id} --address"
        in (folder / "log.txt").read_text()
    )
    assert " running " in output_of("list").splitlines()[1]
    assert f"submission {submission_id}: stopped" in output_of("stop", submission_id)


def wait_for_answer(address: str) -> None:
    until = time.monotonic() + RETRY_LIMIT_S
    port = int(address.rsplit(":", 1)[1])
    while True:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until
        time.sleep(0.2)


def on_two_ray_workers(config: TrainConfig, out: Path) -> None:
    """Train on local Ray, and check that Ray Train's cleaner, which delays the end by 12 s, does not run."""
    names: set[str] = set()

    def look(_: TrainingProgress) -> None:
        for one in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                names.add(one.name())

    train_on_ray(config, str(out), 2, on_progress=look)
    assert any(name.startswith("ray::RayTrainW") for name in names)
    assert not any(name.startswith("ray::PlacementG") for name in names)


@pytest.mark.parametrize(
    ("name", "on_two"),
    [("weak", on_two_ray_workers), ("weak-untrained", train_on_two), ("paper/weak", train_on_two)],
    ids=["weak", "weak-untrained", "paper/weak"],
)
def test_two_workers_on_2d_joints_alone_take_the_steps_of_one(request, run_folder, tmp_path, name, on_two):
    """Batch norms keep their statistics, which are per worker otherwise; `weak` freezes the whole backbone."""
    if on_two is on_two_ray_workers:
        request.getfixturevalue("local_ray")
    config = read_train_config(
        name,
        [str(run_folder / "sticks")],
        settings=["batch_size=8", "steps=6", "loaders=0", "log_every=1"],
    )
    assert config.data[0].targets == ("joints2d",)
    assert config.freeze_backbone == (name == "weak")
    network = replace(TINY, landmarks=name != "paper/weak")
    if config.start_from:  # a small network in place of the shipped one, which it names
        before = config_for(run_folder / "sticks", network=network, steps=1)
        train(before, str(tmp_path / "start"), "cpu")
        config = replace(config, start_from=str(tmp_path / "start/model.safetensors"))
    config = replace(
        config,
        network=network,
        freeze_normalisation=not config.freeze_backbone,
        # From random layers, which must not be frozen.
        backbone_from="",
        freeze_early=False,
        # Adam would divide the rounding of gradients near zero by itself.
        optimizer=replace(
            config.optimizer,
            kind="sgd",
            learning_rate=1e-2 if name == "paper/weak" else 1e-3,
            warmup_steps=1,
            ema=0,
        ),
    )
    train(config, str(tmp_path / "one"), "cpu")
    on_two(config, tmp_path / "two")
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert largest_difference(one, two) < 1e-4
    start = start_network(config, load_hand("open")).state_dict()
    assert largest_difference(one, start) > 1e-3
    of_one, of_two = (
        [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    )
    assert len(of_one) == 6
    for first, second in zip(of_one, of_two, strict=True):
        losses = {key: value for key, value in first.items() if key.startswith("loss/")}
        assert losses["loss/joints2d"] and losses["loss/kl_vertices"]
        assert not any(losses[f"loss/{name}"] for name in ("vertices", "joints3d", "camera"))
        assert "loss/aligned" not in losses  # without a weight
        # The first step has the same weights; rounding grows from there.
        close = 1e-5 if first["step"] == 1 else 1e-4
        assert losses == pytest.approx({key: second[key] for key in losses}, rel=close, abs=close)


def test_a_user_error_is_reported_at_once(local_ray, run_folder, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    config = config_for(run_folder / "sticks", steps=2)
    # Only one worker checks the folder; the other waits for it in vain.
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps(to_dict(replace(config, seed=1))))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"other settings \(seed\)"):
        train_on_ray(config, str(tmp_path / "other"), 2)
    assert time.monotonic() - began < RETRY_LIMIT_S
    with pytest.raises(UserError, match="1000 workers need a"):
        train_on_ray(config, str(tmp_path / "many"), 1000)
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_missing_cluster_is_one_line(monkeypatch):
    monkeypatch.setattr(submission, "ANSWER_S", 0.5)
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        for port in (silent.getsockname()[1], free_ports(1)[0]):
            with pytest.raises(UserError, match="no response from 'http://127.0.0.1"):
                submission.submit(f"http://127.0.0.1:{port}", ["--help"], print)


def test_a_job_takes_the_code_and_nothing_else(tmp_path):
    submission._stage(tmp_path, {"annotator/configs/train/mine.yaml": "steps: 3\n"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotator", "cli.py", "trainer"]
    assert not list(tmp_path.rglob("__pycache__"))
    code = (
        "from trainer.config import read_train_config as r; print(r('mine').steps, r('supervised').steps > 3)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": ""}, capture_output=True, text=True
    )
    assert shown.stdout.split() == ["3", "True"], shown.stderr


class CutOffLog:
    """A client whose log is cut off twice and restarts each time."""

    def __init__(self, pieces: list[list[str]]) -> None:
        self.pieces = pieces

    async def tail_job_logs(self, job: str):
        for text in self.pieces.pop(0):
            yield text
        if self.pieces:
            raise RuntimeError("cut off")


def test_a_log_that_restarts_is_shown_once():
    shown: list[str] = []
    log = submission._Log(shown.append)
    client = CutOffLog([["one\n", "two\n"], ["one\ntw"], ["one\ntwo\nth", "ree\n"]])
    for _ in range(3):
        with suppress(RuntimeError):
            asyncio.run(log.read(client, "a job"))
    assert "".join(shown) == "one\ntwo\nthree\n"
