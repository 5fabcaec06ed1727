"""The workers of a run: actors with a model each, which start as shards arrive and are replaced when they die."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from annotator.errors import UserError, first_line
from annotator.job import failures
from annotator.job.calls import Calls
from annotator.job.hand_by_hand import SingleHand
from annotator.job.in_flight import ShardInFlight
from annotator.job.resources import WorkerPlan
from annotator.job.shard import Shard
from annotator.job.tasks import WorkerActor

#: Shards queued per worker.
QUEUED_PER_WORKER = 2


@dataclass(eq=False)
class Worker:
    """An actor with a model, and its queue."""

    actor: Any
    deaths_before: int  # deaths in a row, without a finished shard, of the workers it replaces
    work: list[ShardInFlight | SingleHand] = field(default_factory=list)  # in the order it is processed
    ready: bool = False
    done: int = 0  # finished shards
    dead: bool = False

    def predict(self, work: ShardInFlight | SingleHand) -> tuple[Any, Any]:
        """Queue a shard or a hand; return references to its `TaskStats` and to its result."""
        self.work.append(work)
        if isinstance(work, SingleHand):
            call = self.actor.predict_hand.options(num_returns=2)
            stats, data = call.remote(work.shard.data, work.number)
        else:
            stats, data = self.actor.predict.options(num_returns=2).remote(work.data)
        return stats, data


class Workers:
    """All workers of a run."""

    def __init__(
        self, model: Callable[[], Callable[[Shard], Shard]] | None, plan: WorkerPlan, calls: Calls
    ) -> None:
        """Prepare workers; `model` is called once in each, None for a run without a predict stage."""
        import ray

        self._ray, self._plan, self._calls = ray, plan, calls
        self._model = None if model is None else ray.put(model)
        self._workers: list[Worker] = []
        self._last_ready = time.monotonic()

    def start_up_to(self, count: int) -> None:
        """Start workers until there are `count`, or as many as the plan has."""
        while len(self._workers) < min(self._plan.workers, count):
            self._start(0)

    def check_start(self) -> None:
        """Raise a `UserError` if all workers have waited too long for a processor."""
        if not self._workers or any(worker.ready for worker in self._workers):
            self._last_ready = time.monotonic()
        else:
            failures.check_start(time.monotonic() - self._last_ready)

    def free(self) -> Worker | None:
        """Return the worker with the shortest queue, or None if all queues are full."""
        # A worker that still waits for a processor would keep work from the others.
        ready = [worker for worker in self._workers if worker.ready]
        worker = min(ready, key=lambda worker: len(worker.work), default=None)
        return worker if worker is not None and len(worker.work) < QUEUED_PER_WORKER else None

    def died(
        self, worker: Worker, error: Exception, held_first: ShardInFlight | SingleHand | None = None
    ) -> None:
        """Replace a dead worker, and count its death against the work that it held first. Later calls do nothing.

        Raises:
            UserError: workers died too often.
        """
        if worker.dead:
            return
        held_hand = isinstance(held_first, SingleHand)
        if held_first is not None:
            failures.blame(held_first if isinstance(held_first, SingleHand) else held_first.failures)
        worker.dead = True
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # an unreachable actor would keep its processor
        self._start(failures.deaths_in_a_row(worker.deaths_before, worker.done, held_hand, error))

    def clear_deaths(self) -> None:
        """Reset the deaths in a row, since hands were their cause."""
        for worker in self._workers:
            worker.deaths_before = 0

    def kill(self) -> None:
        """End all workers."""
        for worker in self._workers:
            self._ray.kill(worker.actor)

    def _start(self, deaths_before: int) -> None:
        plan = self._plan
        kind = self._ray.remote(
            num_cpus=plan.worker_cpus,
            num_gpus=plan.worker_gpus,
            memory=plan.worker_memory,
            max_restarts=0,
        )(WorkerActor)
        worker = Worker(kind.options(scheduling_strategy="SPREAD").remote(), deaths_before)
        self._workers.append(worker)
        self._calls.add(worker.actor.start.remote(self._model), lambda ref: self._end_start(worker, ref))

    def _end_start(self, worker: Worker, ref: Any) -> None:
        try:
            self._ray.get(ref)
        except Exception as error:
            cause = getattr(error, "cause", error)
            if isinstance(error, self._ray.exceptions.RayActorError):
                self.died(worker, error)
            elif isinstance(cause, UserError):
                raise cause from None
            else:
                raise UserError(
                    f"a model failed to start: {type(cause).__name__}: {first_line(cause)}"
                ) from error
        else:
            worker.ready = True
