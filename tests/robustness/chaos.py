"""A run that is killed at random, on two machines that Ray simulates here, with S3 behind a proxy that breaks requests.

Whatever ends what, the labels must be those of a run that nobody disturbed. `benchmarks/chaos.py` runs it at length.
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

#: What an undisturbed run must share, for labels to be the same to the last bit.
SHARD = BATCH = 8
OPTIONS = ("--shard-size", str(SHARD), "--threads", "1", "--batch-size", str(BATCH))

#: Stalls of 30 s are left after three.
SHORT_ANSWERS = json.dumps({"config_kwargs": {"read_timeout": 3, "connect_timeout": 3}})


@dataclass
class Outcome:
    """What a chaotic run came to."""

    killed: Counter[str] = field(default_factory=Counter)
    drivers: int = 0  # how often the command was typed
    faults: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Chaos:
    """The machines, the store, and the command that is typed again whenever it ended."""

    def __init__(self, stack: ExitStack, folder: Path, photos: Path, checkpoint: str, seed: int) -> None:
        """Start it all; `stack` ends it, and undoes what this process's environment is told for the machines."""
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
        self.driver = self._type()
        stack.callback(lambda: self.driver.kill())

    def _start_machines(self, stack: ExitStack) -> None:
        import ray
        from ray.cluster_utils import Cluster

        # The head takes no work: it holds the cluster's memory, and may not die in Ray's own design.
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

    def _type(self) -> subprocess.Popen[bytes]:
        self.outcome.drivers += 1
        return subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *self._command],
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
        )

    def run(self, kills: int, every_s: tuple[float, float], patience_s: float) -> Outcome:
        """Kill, so many times, then let it end.

        Raises:
            AssertionError: it does not end, or says anything but that it was done.
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
        # Each way once, in any order, then as chance will have it.
        planned = self._chance.sample(range(len(ways)), len(ways))
        while self.outcome.killed.total() < kills:
            time.sleep(self._chance.uniform(*every_s))
            if self.driver.poll() == 0:
                break  # what is killed now kills nothing
            self._type_again()
            way = planned.pop() if planned else self._chance.randrange(len(ways))
            until = time.monotonic() + 60
            while (what := ways[way]()) is None and time.monotonic() < until and self.driver.poll() != 0:
                self._type_again()
                time.sleep(0.05)
            if what:
                self.outcome.killed[what] += 1
            assert time.monotonic() - began < patience_s, "no end"
        while (code := self.driver.poll()) != 0:
            assert time.monotonic() - began < patience_s, "no end"
            if code is not None:
                self._type_again()
            time.sleep(0.1)
        self.outcome.seconds = time.monotonic() - began
        self.outcome.faults = self.proxy.counts()
        return self.outcome

    def _type_again(self) -> None:
        code = self.driver.poll()
        if code is not None:
            # -9 we did; 2 is a line that says to type it again.
            assert code in (-9, 2), code
            self.driver = self._type()

    def _kill_model(self) -> str | None:
        return "model" if self._kill_one("ray::ModelActor") else None

    def _kill_task(self) -> str | None:
        return "task" if self._kill_one("ray::open_piece") or self._kill_one("ray::write_labels") else None

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
        """The raylet and all that it started, at once; another machine joins later."""
        node = self.nodes.pop(self._chance.randrange(len(self.nodes)))
        # Not `remove_node`, which asks the cluster to let it go in peace.
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
    """All rows of a label folder on disk, by photo; read by pyarrow alone."""
    tables = [pq.ParquetFile(path).read() for path in sorted((folder / "data").glob("*.parquet"))]
    return pa.concat_tables(tables).sort_by([("image_id", "ascending"), ("hand_index", "ascending")])
