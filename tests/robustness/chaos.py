"""Random kills of a run on two machines simulated by Ray, with S3 behind a proxy that breaks requests.

The labels must equal those of an undisturbed run. `run_chaos.py` runs it for longer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.robustness.faulty_proxy import Faults, Proxy, faulty
from tests.support.s3_server import Server, serve

ROOT = Path(__file__).parents[2]
LABELS = "s3://bucket/labels"

#: Settings that an undisturbed run must share, for identical labels.
SHARD = BATCH = 8
OPTIONS = ("--shard-size", str(SHARD), "--threads", "1", "--batch-size", str(BATCH))

#: Stalls of 30 s are ended after three.
SHORT_ANSWERS = json.dumps({"config_kwargs": {"read_timeout": 3, "connect_timeout": 3}})


@dataclass
class Outcome:
    """The outcome of a disturbed run."""

    killed: Counter[str] = field(default_factory=Counter)
    drivers: int = 0  # starts of the command
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Chaos:
    """The machines, the store, and the command, which is restarted whenever it ends."""

    def __init__(self, stack: ExitStack, folder: Path, photos: Path, checkpoint: str, seed: int) -> None:
        """Start everything; `stack` ends it, and restores the environment variables of this process."""
        self.server: Server = stack.enter_context(serve(folder))
        self.proxy: Proxy = stack.enter_context(
            faulty(self.server.endpoint, Faults.each(0.01, seed=seed), folder / "proxy.log")
        )
        through = dataclasses.replace(self.server, endpoint=self.proxy.endpoint)
        self._environment = {
            **os.environ,
            **through.environment,
            "FSSPEC_S3": SHORT_ANSWERS,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._log = (folder / "driver.log").open("w")
        stack.callback(self._log.close)
        self._command = ["annotate", str(photos), LABELS, "--checkpoint", checkpoint, *OPTIONS]
        self._command += ["--workers", "2", "--address", "auto"]
        self._chance = random.Random(seed)
        self.outcome = Outcome()
        stack.callback(os.environ.update, dict(os.environ))
        os.environ.update(self._environment)
        self._start_machines(stack)
        self.driver = self._start()
        stack.callback(lambda: self.driver.kill())

    def _start_machines(self, stack: ExitStack) -> None:
        import ray
        from ray.cluster_utils import Cluster

        # The head runs no work: it holds the cluster's state, and Ray does not survive its death.
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        stack.callback(self._stop_machines)
        self._environment["RAY_ADDRESS"] = self.cluster.address
        self.nodes = [self._node(), self._node()]
        assert not ray.is_initialized()

    def _node(self) -> Any:
        return self.cluster.add_node(num_cpus=2, object_store_memory=100 << 20)

    def _stop_machines(self) -> None:
        with suppress(Exception):
            self.cluster.shutdown()

    def _start(self) -> subprocess.Popen[bytes]:
        self.outcome.drivers += 1
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *self._command],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )

    def run(self, kills: int, every_s: tuple[float, float], patience_s: float) -> Outcome:
        """Kill parts of the run `kills` times, then let it finish.

        Raises:
            AssertionError: the run does not finish, or ends with an unexpected exit code.
        """
        began = time.monotonic()
        ways: list[Callable[[], str | None]] = [
            self._kill_model,
            self._kill_model,
            self._kill_task,
            self._kill_task,
            self._kill_driver,
            self._kill_node,
            self._cut_off_store,
        ]
        # Each way once in random order, then at random.
        planned = self._chance.sample(range(len(ways)), len(ways))
        while self.outcome.killed.total() < kills:
            time.sleep(self._chance.uniform(*every_s))
            if self.driver.poll() == 0:
                break  # the run has finished, so a kill has no effect
            self._restart()
            way = planned.pop() if planned else self._chance.randrange(len(ways))
            until = time.monotonic() + 60
            while (what := ways[way]()) is None and time.monotonic() < until and self.driver.poll() != 0:
                self._restart()
                time.sleep(0.05)
            if what:
                self.outcome.killed[what] += 1
            assert time.monotonic() - began < patience_s, "no end"
        while (code := self.driver.poll()) != 0:
            assert time.monotonic() - began < patience_s, "no end"
            if code is not None:
                self._restart()
            time.sleep(0.1)
        self.outcome.seconds = time.monotonic() - began
        self.outcome.faults = self.proxy.counts()
        return self.outcome

    def _restart(self) -> None:
        code = self.driver.poll()
        if code is not None:
            # -9 is our own kill; 2 is a message that asks to start it again.
            assert code in (-9, 2), code
            self.driver = self._start()

    def _kill_model(self) -> str | None:
        return "model" if self._kill_one("ray::WorkerActor") else None

    def _kill_task(self) -> str | None:
        return "task" if self._kill_one("ray::decode_piece") or self._kill_one("ray::write_labels") else None

    def _kill_one(self, name: str) -> bool:
        found = []
        for node in self.nodes:
            for process in _below(node):
                with suppress(psutil.NoSuchProcess):
                    if process.name().startswith(name):
                        found.append(process)
        if found:
            with suppress(psutil.NoSuchProcess):
                self._chance.choice(found).kill()
                return True
        return False

    def _kill_driver(self) -> str | None:
        self.driver.kill()
        self.driver.wait()
        return "driver"

    def _kill_node(self) -> str:
        """Kill a raylet and all its processes at once; another machine joins later."""
        node = self.nodes.pop(self._chance.randrange(len(self.nodes)))
        # Not `remove_node`, which shuts the node down gracefully.
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.cluster.worker_nodes.discard(node)
        self.nodes.append(self._node())
        return "node"

    def _cut_off_store(self) -> str:
        self.proxy.pause()
        time.sleep(self._chance.uniform(2, 6))
        self.proxy.resume()
        return "store"


def _below(node: Any) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess, IndexError, KeyError):
        raylet = node.all_processes["raylet"][0].process
        return psutil.Process(raylet.pid).children(recursive=True)
    return []


def labels_below(folder: Path) -> pa.Table:
    """Read all rows of a label set on disk, sorted by photo, with pyarrow alone."""
    tables = [pq.ParquetFile(path).read() for path in sorted((folder / "data").glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by([("image_id", "ascending"), ("hand_index", "ascending")])
