"""Send shards through their stages on Ray.

    planned --decode (tasks)--> --predict (actors, one model each)--> --write (tasks)--> reports

Ray moves data and starts processes; it retries nothing. Each crash is attributed to a shard here, and
`annotator.job.failures` decides the next step. A bounded number of shards is in flight, which bounds memory.

`remote_tasks.py` submits tasks, `workers.py` has the actors, and `calls.py` waits for both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from typing import Any

from annotator.errors import UserError
from annotator.job import failures
from annotator.job.calls import Calls
from annotator.job.failures import Action
from annotator.job.hand_by_hand import HandByHand, SingleHand
from annotator.job.in_flight import Piece, ShardInFlight
from annotator.job.listing import ListingThread
from annotator.job.manifest import PlannedShard
from annotator.job.remote_tasks import RemoteTasks
from annotator.job.resources import WorkerPlan
from annotator.job.stages import Stages
from annotator.job.tally import ShardReport
from annotator.job.tasks import TaskStats
from annotator.job.workers import QUEUED_PER_WORKER, Worker, Workers

#: Shards queued for any worker, besides those being decoded: enough to keep decoders busy within bounded memory.
_QUEUED = 2


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
        self._calls = Calls()
        self._tasks = RemoteTasks(labels, stages, plan)
        self._workers = Workers(stages.model, plan, self._calls)
        self._has_predict = stages.model is not None
        self._crashed_rows = stages.crashed
        # Shards that wait for the write stage count too: a slow store must not fill the memory of all machines.
        self._max_in_flight = 2 * plan.decoders + (QUEUED_PER_WORKER + 1) * plan.workers + 2
        self._to_decode: deque[Piece] = deque()
        self._to_predict: deque[ShardInFlight | SingleHand] = deque()
        self._in_flight: set[ShardInFlight] = set()
        self._decoding = 0

    def reports(self) -> Generator[ShardReport, None, None]:
        """Process all shards; yield a report as each is committed.

        Raises:
            UserError: labels cannot be written, models cannot start, or `check` raised it.
        """
        try:
            while True:
                self._check()
                self._workers.check_start()
                self._calls.start_due()
                self._start_ready_work()
                if not self._in_flight and self._planned.ended:
                    return
                yield from self._calls.handle_ended()
        finally:
            self._planned.stop()
            self._workers.kill()
            self._calls.cancel()

    def _start_ready_work(self) -> None:
        while self._can_decode():
            if not self._to_decode:
                shard = self._planned.next() if len(self._in_flight) < self._max_in_flight else None
                if shard is None:
                    break
                in_flight = ShardInFlight(shard)
                self._in_flight.add(in_flight)
                self._to_decode += in_flight.cut(len(shard.entries))
            self._begin_decode(self._to_decode.popleft())
        if self._has_predict:
            # One per shard at first: a few photos must not wait until one model per core has started.
            self._workers.start_up_to(len(self._in_flight))
        while self._to_predict and (worker := self._workers.free()):
            self._begin_predict(self._to_predict.popleft(), worker)

    def _can_decode(self) -> bool:
        """Return whether another piece may be decoded."""
        queued = len(self._to_predict) if self._has_predict else 0
        return (
            self._decoding < self._plan.decoders and self._decoding + queued < self._plan.decoders + _QUEUED
        )

    # Decode.

    def _begin_decode(self, piece: Piece) -> None:
        limit_s = failures.hang_limit_s(sum(entry.photos for entry in piece.entries))
        stats, piece.data = self._tasks.decode(piece.entries, limit_s)
        self._decoding += 1
        self._calls.add(stats, lambda ref: self._end_decode(piece, ref))

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
        in_flight.data = parts[0] if len(parts) == 1 else self._tasks.join_pieces(parts)
        in_flight.hands = sum(other.hands for other in in_flight.pieces)
        in_flight.pieces = []
        if not self._has_predict:
            self._begin_write(in_flight)
        elif in_flight.failures.is_suspect and in_flight.hands > 1:
            self._to_predict += HandByHand.of(in_flight, in_flight.data, in_flight.hands).shuffled()
        else:
            self._to_predict.append(in_flight)

    # Predict.

    def _begin_predict(self, work: ShardInFlight | SingleHand, worker: Worker) -> None:
        stats, data = worker.predict(work)
        self._calls.add(stats, lambda ref: self._end_predict(work, worker, ref, data))

    def _end_predict(self, work: ShardInFlight | SingleHand, worker: Worker, ref: Any, data: Any) -> None:
        held_first = worker.work[0]
        worker.work.remove(work)
        in_flight: ShardInFlight = work.shard.in_flight if isinstance(work, SingleHand) else work
        try:
            self._note(in_flight, self._ray.get(ref))
        except Exception as error:
            if not self._process_died(error, in_flight, lambda: self._to_predict.append(work)):
                return
            worker_died = isinstance(error, self._ray.exceptions.RayActorError)
            if worker_died:
                self._workers.died(worker, error, held_first)
            if isinstance(work, SingleHand):
                self._retry_hand(work, error, worker_died)
            elif failures.after_predict_crash(in_flight.failures) is Action.GIVE_UP:
                in_flight.data = self._tasks.give_up(in_flight.data)
                self._begin_write(in_flight)
            else:
                self._decode_again(in_flight, error)
        else:
            if isinstance(work, SingleHand):
                self._end_hand(work, data, is_labelled=True)
                return
            worker.done += 1
            in_flight.data = data
            self._begin_write(in_flight)

    # Predict, hand by hand.

    def _retry_hand(self, hand: SingleHand, error: Exception, worker_died: bool) -> None:
        """Queue a hand without a result again, or give up the hand or its shard."""
        shard = hand.shard
        action = failures.after_hand_crash(hand, worker_died)
        if action is Action.DECODE_AGAIN:  # its machine was lost, and the decoded shard with it
            self._end_hand_by_hand(shard)
            self._decode_again(shard.in_flight, error)
        elif action is Action.GIVE_UP:
            self._end_hand_by_hand(shard)
            shard.in_flight.data = self._tasks.give_up(shard.data)
            self._begin_write(shard.in_flight)
        elif action is Action.GIVE_UP_HAND:
            self._end_hand(hand, self._tasks.give_up_hand(shard.data, hand.number), is_labelled=False)
        elif action is Action.RETRY:
            self._to_predict.append(hand)  # after all others

    def _end_hand(self, hand: SingleHand, data: Any, is_labelled: bool) -> None:
        shard = hand.shard
        if shard.is_over or not shard.ended(hand, data, is_labelled):
            return
        if shard.clears_models:
            self._workers.clear_deaths()
        in_flight: ShardInFlight = shard.in_flight
        in_flight.data = self._tasks.join_hands(shard.data, [each.data for each in shard.hands])
        self._begin_write(in_flight)

    def _end_hand_by_hand(self, shard: HandByHand) -> None:
        shard.is_over = True
        self._to_predict = deque(
            work for work in self._to_predict if not (isinstance(work, SingleHand) and work.shard is shard)
        )

    # Write.

    def _begin_write(self, in_flight: ShardInFlight) -> None:
        written = self._tasks.write(in_flight.shard, in_flight.data)
        self._calls.add(written, lambda ref: self._end_write(in_flight, ref))

    def _end_write(self, in_flight: ShardInFlight, ref: Any) -> ShardReport | None:
        try:
            written, retries = self._ray.get(ref)
        except Exception as error:
            if self._process_died(error, in_flight, lambda: self._begin_write(in_flight)):
                self._decode_again(in_flight, error)
            return None
        self._in_flight.remove(in_flight)
        in_flight.retries.update(retries)
        return replace(written, retries=dict(in_flight.retries), began=in_flight.began)

    # Of any stage.

    def _note(self, in_flight: ShardInFlight, stats: TaskStats) -> None:
        in_flight.retries.update(stats.retries)
        in_flight.began = stats.began

    def _decode_again(self, in_flight: ShardInFlight, error: Exception) -> None:
        """Decode a shard again whose data was lost with a process."""
        in_flight.failures.lose(error)
        self._to_decode.extend(in_flight.cut(len(in_flight.shard.entries)))

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
        self._calls.retry_later(pause_s, retry)
        return False
