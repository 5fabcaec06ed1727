"""Sends shards through their stages on Ray.

    planned --decode (tasks)--> --predict (actors, one model each)--> --write (tasks)--> reports

Ray moves data and starts processes; it retries nothing. Each crash is attributed to a shard here, and
`annotator.job.failures` decides the next step. A bounded number of shards is in flight, which bounds memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from annotator.errors import UserError, first_line
from annotator.job import failures
from annotator.job.failures import Action
from annotator.job.hand_by_hand import HandByHand, SingleHand
from annotator.job.in_flight import Piece, ShardInFlight, Worker
from annotator.job.listing import ListingThread
from annotator.job.manifest import PlannedShard
from annotator.job.resources import WorkerPlan
from annotator.job.shard import join_hands
from annotator.job.stages import Stages, shard_table, write_labels
from annotator.job.tally import ShardReport
from annotator.job.tasks import (
    TaskStats,
    WorkerActor,
    decode_piece,
    give_up,
    give_up_hand,
    join_pieces,
)

#: Shards queued per model.
_AHEAD = 2

#: Shards queued for any model, besides those being opened: enough to keep decoders busy within bounded memory.
_QUEUED = 2

#: Ray retries nothing: it cannot distinguish a photo that crashes processes from a lost machine.
_ONCE: dict[str, Any] = {"max_retries": 0, "scheduling_strategy": "SPREAD"}


class Dispatcher:
    """Sends shards through the stages; used once."""

    def __init__(
        self,
        labels: str,
        planned: Iterator[PlannedShard],
        stages: Stages,
        plan: WorkerPlan,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare tasks and start to list shards.

        Args:
            labels: the label set.
            planned: shards, iterated in a thread.
            stages: functions of the stages. plan: processes per stage.
            check: called in every round of the loop; raises to end the run.
        """
        import ray

        self._ray, self._labels, self._plan, self._check = ray, labels, plan, check
        self._planned = ListingThread(planned, 2 * (plan.decoders + plan.workers))
        self._decode_task: Any = ray.remote(num_returns=2, num_cpus=plan.decoder_cpus, **_ONCE)(decode_piece)
        self._join = ray.remote(num_cpus=plan.decoder_cpus, **_ONCE)(join_pieces)
        self._give_up = ray.remote(num_cpus=plan.decoder_cpus, **_ONCE)(give_up)
        self._give_up_hand = ray.remote(num_cpus=plan.decoder_cpus, **_ONCE)(give_up_hand)
        self._join_hands = ray.remote(num_cpus=plan.decoder_cpus, **_ONCE)(join_hands)
        self._write = ray.remote(num_cpus=plan.decoder_cpus, **_ONCE)(write_labels)
        self._decode = ray.put(stages.decode)
        self._table_of: Any = ray.put(
            partial(shard_table, schema=stages.schema, finish_shard=stages.finish_shard)
        )
        self._model_factory = None if stages.model is None else ray.put(stages.model)
        self._crashed_rows = stages.crashed
        self._workers: list[Worker] = []
        # Shards that wait for the write stage count too: a slow store must not fill the memory of all machines.
        self._max_in_flight = 2 * plan.decoders + (_AHEAD + 1) * plan.workers + 2
        self._to_decode: deque[Piece] = deque()
        self._to_predict: deque[ShardInFlight | SingleHand] = deque()
        self._in_flight: set[ShardInFlight] = set()
        self._waiting: dict[Any, Callable[[Any], ShardReport | None]] = {}
        self._decoding = 0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def reports(self) -> Generator[ShardReport, None, None]:
        """Process all shards; yield a report as each is committed.

        Raises:
            UserError: labels cannot be written, models cannot start, or `check` raised it.
        """
        try:
            yield from self._work()
        finally:
            self._planned.stop()
            for model in self._workers:
                self._ray.kill(model.actor)
            for ref in self._waiting:
                self._ray.cancel(ref)

    def _work(self) -> Iterator[ShardReport]:
        last_ready = time.monotonic()
        while True:
            self._check()
            if not self._workers or any(model.ready for model in self._workers):
                last_ready = time.monotonic()
            else:
                failures.check_start(time.monotonic() - last_ready)
            self._start_ready_work()
            if not self._in_flight and self._planned.ended:
                return
            if not self._waiting:
                time.sleep(0.02)
                continue
            ready, rest = self._ray.wait(list(self._waiting), timeout=0.2, fetch_local=False)
            if rest:
                ready += self._ray.wait(rest, num_returns=len(rest), timeout=0, fetch_local=False)[0]
            for ref in ready:
                report = self._waiting.pop(ref)(ref)
                if report is not None:
                    yield report

    def _start_worker(self, deaths_before: int) -> None:
        plan = self._plan
        kind = self._ray.remote(
            num_cpus=plan.worker_cpus,
            num_gpus=plan.worker_gpus,
            memory=plan.worker_memory,
            max_restarts=0,
        )(WorkerActor)
        model = Worker(kind.options(scheduling_strategy="SPREAD").remote(), deaths_before)
        self._workers.append(model)
        self._waiting[model.actor.start.remote(self._model_factory)] = lambda ref: self._end_start(model, ref)

    def _end_start(self, model: Worker, ref: Any) -> None:
        try:
            self._ray.get(ref)
        except Exception as error:
            cause = getattr(error, "cause", error)
            if isinstance(error, self._ray.exceptions.RayActorError):
                self._worker_died(model, error)
            elif isinstance(cause, UserError):
                raise cause from None
            else:
                raise UserError(
                    f"a model failed to start: {type(cause).__name__}: {first_line(cause)}"
                ) from error
        else:
            model.ready = True

    def _start_ready_work(self) -> None:
        now = time.monotonic()
        for due in [due for due in self._later if due[0] <= now]:
            self._later.remove(due)
            due[1]()
        while self._room():
            if not self._to_decode:
                shard = self._planned.next() if len(self._in_flight) < self._max_in_flight else None
                if shard is None:
                    break
                in_flight = ShardInFlight(shard)
                self._in_flight.add(in_flight)
                self._to_decode += in_flight.cut(len(shard.entries))
            self._begin_decode(self._to_decode.popleft())
        # One per shard at first: a few photos must not wait until one model per core has started.
        while self._model_factory is not None and len(self._workers) < min(
            self._plan.workers, len(self._in_flight)
        ):
            self._start_worker(0)
        # A model that still waits for a processor would keep work from the others.
        ready = [model for model in self._workers if model.ready]
        while self._to_predict and ready:
            model = min(ready, key=lambda model: len(model.work))
            if len(model.work) >= _AHEAD:
                break
            self._begin_predict(self._to_predict.popleft(), model)

    def _room(self) -> bool:
        queued = len(self._to_predict) if self._model_factory is not None else 0
        return (
            self._decoding < self._plan.decoders and self._decoding + queued < self._plan.decoders + _QUEUED
        )

    def _begin_decode(self, piece: Piece) -> None:
        limit_s = failures.hang_limit_s(sum(entry.photos for entry in piece.entries))
        stats, piece.data = self._decode_task.remote(self._decode, piece.entries, limit_s)
        self._decoding += 1
        self._waiting[stats] = lambda ref: self._end_decode(piece, ref)

    def _end_decode(self, piece: Piece, ref: Any) -> None:
        in_flight = piece.in_flight
        self._decoding -= 1
        try:
            stats = self._ray.get(ref)
            self._note(in_flight, stats)
            piece.hands = stats.hands
        except Exception as error:
            if not self._process_died(error, in_flight, lambda: self._to_decode.append(piece)):
                return
            piece.crashes += 1
            action = failures.after_decode_crash(len(piece.entries), piece.crashes)
            if action is Action.GIVE_UP:
                piece.data = self._ray.put(self._crashed_rows(piece.entries))
                self._decoded(piece)
            elif action is Action.SPLIT:
                self._to_decode.extend(in_flight.cut(1))
            else:
                self._to_decode.append(piece)
        else:
            self._decoded(piece)

    def _decoded(self, piece: Piece) -> None:
        in_flight = piece.in_flight
        piece.is_decoded = True
        if not all(other.is_decoded for other in in_flight.pieces):
            return
        parts = [other.data for other in in_flight.pieces]
        in_flight.data = parts[0] if len(parts) == 1 else self._join.remote(*parts)
        in_flight.hands = sum(other.hands for other in in_flight.pieces)
        in_flight.pieces = []
        if self._model_factory is None:
            self._begin_write(in_flight)
        elif in_flight.failures.is_suspect and in_flight.hands > 1:
            self._to_predict += HandByHand.of(in_flight, in_flight.data, in_flight.hands).shuffled()
        else:
            self._to_predict.append(in_flight)

    def _begin_predict(self, work: ShardInFlight | SingleHand, model: Worker) -> None:
        if isinstance(work, SingleHand):
            call = model.actor.predict_hand.options(num_returns=2)
            stats, data = call.remote(work.shard.data, work.number)
        else:
            stats, data = model.actor.label.options(num_returns=2).remote(work.data)
        model.work.append(work)
        self._waiting[stats] = lambda ref: self._end_predict(work, model, ref, data)

    def _end_predict(self, work: ShardInFlight | SingleHand, model: Worker, ref: Any, data: Any) -> None:
        first = model.work[0]
        model.work.remove(work)
        in_flight: ShardInFlight = work.shard.in_flight if isinstance(work, SingleHand) else work
        try:
            self._note(in_flight, self._ray.get(ref))
        except Exception as error:
            if not self._process_died(error, in_flight, lambda: self._to_predict.append(work)):
                return
            is_model = isinstance(error, self._ray.exceptions.RayActorError)
            if is_model and not model.dead:
                failures.blame(first if isinstance(first, SingleHand) else first.failures)
                self._worker_died(model, error, held_hand=isinstance(first, SingleHand))
            if isinstance(work, SingleHand):
                self._retry_hand(work, error, is_model)
            elif failures.after_label_crash(in_flight.failures) is Action.GIVE_UP:
                in_flight.data = self._give_up.remote(in_flight.data)
                self._begin_write(in_flight)
            else:
                self._reopen(in_flight, error)
        else:
            if isinstance(work, SingleHand):
                self._end_hand(work, data, is_labelled=True)
                return
            model.done += 1
            in_flight.data = data
            self._begin_write(in_flight)

    def _retry_hand(self, hand: SingleHand, error: Exception, is_model: bool) -> None:
        """Queue a hand without a result again, or give it or its shard up."""
        shard = hand.shard
        action = failures.after_hand_crash(hand, is_model)
        if action is Action.DECODE_AGAIN:  # its machine was lost, and the opened shard with it
            self._end_hand_by_hand(shard)
            self._reopen(shard.in_flight, error)
        elif action is Action.GIVE_UP:
            self._end_hand_by_hand(shard)
            shard.in_flight.data = self._give_up.remote(shard.data)
            self._begin_write(shard.in_flight)
        elif action is Action.GIVE_UP_HAND:
            self._end_hand(hand, self._give_up_hand.remote(shard.data, hand.number), is_labelled=False)
        elif action is Action.RETRY:
            self._to_predict.append(hand)  # after all others

    def _end_hand(self, hand: SingleHand, data: Any, is_labelled: bool) -> None:
        shard = hand.shard
        if shard.is_over or not shard.ended(hand, data, is_labelled):
            return
        if shard.clears_models:
            for model in self._workers:
                model.deaths_before = 0
        in_flight: ShardInFlight = shard.in_flight
        in_flight.data = self._join_hands.remote(shard.data, *[each.data for each in shard.hands])
        self._begin_write(in_flight)

    def _end_hand_by_hand(self, shard: HandByHand) -> None:
        shard.is_over = True
        self._to_predict = deque(
            work for work in self._to_predict if not (isinstance(work, SingleHand) and work.shard is shard)
        )

    def _worker_died(self, model: Worker, error: Exception, held_hand: bool = False) -> None:
        if model.dead or not isinstance(error, self._ray.exceptions.RayActorError):
            return
        model.dead = True
        self._workers.remove(model)
        self._ray.kill(model.actor)  # an unreachable actor would keep its processor
        self._start_worker(failures.deaths_in_a_row(model.deaths_before, model.done, held_hand, error))

    def _reopen(self, in_flight: ShardInFlight, error: Exception) -> None:
        """Decode a shard again whose data was lost with a process."""
        in_flight.failures.lose(error)
        self._to_decode.extend(in_flight.cut(len(in_flight.shard.entries)))

    def _begin_write(self, in_flight: ShardInFlight) -> None:
        written = self._write.remote(
            self._labels, in_flight.shard.number, in_flight.shard.all_ids, in_flight.data, self._table_of
        )
        self._waiting[written] = lambda ref: self._end_write(in_flight, ref)

    def _end_write(self, in_flight: ShardInFlight, ref: Any) -> ShardReport | None:
        try:
            written, retries = self._ray.get(ref)
        except Exception as error:
            if self._process_died(error, in_flight, lambda: self._begin_write(in_flight)):
                self._reopen(in_flight, error)
            return None
        self._in_flight.remove(in_flight)
        in_flight.retries.update(retries)
        return replace(written, retries=dict(in_flight.retries), began=in_flight.began)

    def _note(self, in_flight: ShardInFlight, stats: TaskStats) -> None:
        in_flight.retries.update(stats.retries)
        in_flight.began = stats.began

    def _process_died(self, error: Exception, in_flight: ShardInFlight, retry: Callable[[], Any]) -> bool:
        """Return whether a process or its machine died; after an error of a disk or store, schedule `retry`.

        Raises:
            UserError: the disk or store failed too often.
            Exception: any error of our own code.
        """
        cause = error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error
        if isinstance(cause, self._ray.exceptions.RayError):
            in_flight.retries["process died"] += 1
            return True
        if isinstance(cause, UserError) or not isinstance(cause, OSError):
            raise cause from None
        pause_s = in_flight.failures.store_failed(cause, self._labels)
        self._later.append((time.monotonic() + pause_s, retry))
        return False
