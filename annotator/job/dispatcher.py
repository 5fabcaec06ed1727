"""Shards through their stations on Ray: tasks that open and write, actors that predict, whatever dies meanwhile.

    planned --open (tasks)--> --predict (actors, one model each)--> --write (tasks)--> reports

Ray moves the data and starts processes; what to do when one ends is decided here, a shard at a time. A process that
dies (killed, out of memory, its machine gone) costs the shards it had in hand, which are opened again. One that dies
twice over the same shard may be its fault: then each of its photos is opened apart, and one that ends three processes
is recorded as `crashed`. Where models die, hands are labelled apart likewise (`annotator.job.apart`). A bounded number
of shards is in flight, so memory is that of the slowest stage's queue.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from annotator.errors import UserError, first_line
from annotator.job.apart import HAND_DEATHS, Apart, Hand
from annotator.job.manifest import PlannedShard
from annotator.job.stages import Shard, crashed_shard
from annotator.job.tally import ShardReport
from annotator.job.tasks import (
    Brief,
    ModelActor,
    give_up,
    give_up_hand,
    join_hands,
    join_pieces,
    open_piece,
    write_labels,
)
from annotator.sources.entry import Entry

#: A shard that ended so many processes is opened photo by photo, or labelled hand by hand; a photo that ended so many
#: is left.
SHARD_CRASHES, PHOTO_CRASHES = 2, 3

#: How often a shard's data may be lost before that is no accident.
LOSSES = 20

#: Models that die one after the other without a shard in between are no accident.
MODEL_DEATHS = 5

#: How often a station that met a disk or store which did not answer is tried again, and after which pause.
TRIES, PAUSE_S = 4, 1.0

#: A process that is busy with a shard for longer hangs: some minutes, and more for each of its photos.
HANG_S, HANG_PER_PHOTO_S = 240.0, 5.0

#: How long all models may wait for a processor: a cluster may have to start a machine for them.
START_S = 1800.0

#: Shards that wait before each model.
_AHEAD = 2

#: Shards that wait for any model, beside those being opened: openers all have work, and memory is not filled.
_QUEUED = 2


@dataclass(frozen=True)
class Stations:
    """What a job does with a shard; all of it travels to other processes."""

    open: Callable[[Sequence[Entry]], Shard]
    #: Made once in each actor; None where nothing is left to do.
    model: Callable[[], Callable[[Shard], Shard]] | None
    schema: pa.Schema
    #: Rows of entries that ended every process which opened them.
    crashed: Callable[[Sequence[Entry]], Shard] = crashed_shard


@dataclass(frozen=True)
class Crew:
    """How many work at each station, and what each declares to Ray."""

    decoders: int
    decoder_cpus: float
    workers: int = 0
    worker_cpus: float = 0.0
    worker_gpus: float = 0.0
    worker_memory: int = 0  # bytes
    threads: int = 1  # of each worker


@dataclass(eq=False)
class _Flight:
    """A shard under way."""

    shard: PlannedShard
    pieces: list[_Piece] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)
    began: float = 0.0
    data: Any = None  # of its last station
    hands: int = 0  # that wait for labels
    deaths: int = 0  # of models that had it first in hand
    losses: int = 0  # of its data, with whatever held it
    tries: int = 0

    def cut(self, size: int) -> list[_Piece]:
        """Its entries as pieces to open."""
        entries = self.shard.entries
        self.data = None
        self.pieces = [_Piece(self, entries[k : k + size]) for k in range(0, len(entries), size)]
        return self.pieces


@dataclass(eq=False)
class _Piece:
    """Entries that are opened together."""

    flight: _Flight
    entries: list[Entry]
    crashes: int = 0
    is_open: bool = False
    data: Any = None
    hands: int = 0  # that wait for labels


@dataclass(eq=False)
class _Model:
    """A model actor and what it has in hand."""

    actor: Any
    tries: int  # how many before it, one in place of the other, died without a shard done
    work: list[_Flight | Hand] = field(default_factory=list)  # in hand, in the order it is taken
    ready: bool = False
    done: int = 0
    dead: bool = False


class Dispatcher:
    """Sends shards through the stations; used once."""

    def __init__(
        self,
        labels: str,
        planned: Iterator[PlannedShard],
        stations: Stations,
        crew: Crew,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Ready to go.

        Args:
            labels: the label folder.
            planned: shards, which are asked for in a thread of its own.
            stations: what to do. crew: by how many.
            check: called again and again; raises to end the run.
        """
        import ray

        self._ray, self._labels, self._crew, self._check = ray, labels, crew, check
        self._planned = _Listing(planned, 2 * (crew.decoders + crew.workers))
        self._open: Any = ray.remote(num_returns=2, num_cpus=crew.decoder_cpus, **_ONCE)(open_piece)
        self._join = ray.remote(num_cpus=crew.decoder_cpus, **_ONCE)(join_pieces)
        self._give_up = ray.remote(num_cpus=crew.decoder_cpus, **_ONCE)(give_up)
        self._give_up_hand = ray.remote(num_cpus=crew.decoder_cpus, **_ONCE)(give_up_hand)
        self._join_hands = ray.remote(num_cpus=crew.decoder_cpus, **_ONCE)(join_hands)
        self._write = ray.remote(num_cpus=crew.decoder_cpus, **_ONCE)(write_labels)
        self._opener, self._schema = ray.put(stations.open), ray.put(stations.schema)
        self._make = None if stations.model is None else ray.put(stations.model)
        self._crashed = stations.crashed
        self._models: list[_Model] = []
        # What waits to be written counts, too: a slow store must not fill the memory of all machines.
        self._most = 2 * crew.decoders + (_AHEAD + 1) * crew.workers + 2
        self._to_open: deque[_Piece] = deque()
        self._to_label: deque[_Flight | Hand] = deque()
        self._flights: set[_Flight] = set()
        self._waiting: dict[Any, Callable[[Any], ShardReport | None]] = {}
        self._opening = 0
        self._later: list[tuple[float, Callable[[], None]]] = []

    def reports(self) -> Generator[ShardReport, None, None]:
        """Work until all is done; a report as each shard is committed.

        Raises:
            UserError: labels can't be written, models can't be started, or `check` says so.
        """
        try:
            yield from self._work()
        finally:
            self._planned.stop()
            for model in self._models:
                self._ray.kill(model.actor)
            for ref in self._waiting:
                self._ray.cancel(ref)

    def _work(self) -> Iterator[ShardReport]:
        last_ready = time.monotonic()
        while True:
            self._check()
            if not self._models or any(model.ready for model in self._models):
                last_ready = time.monotonic()
            elif time.monotonic() - last_ready > START_S:
                raise UserError(
                    f"no model found a free processor within {START_S / 60:.0f} minutes: see `ray status`, stop what "
                    "else runs there, or add machines; the same command goes on where it was"
                )
            self._start_what_can()
            if not self._flights and self._planned.ended:
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

    def _start_model(self, tries: int) -> None:
        crew = self._crew
        kind = self._ray.remote(
            num_cpus=crew.worker_cpus,
            num_gpus=crew.worker_gpus,
            memory=crew.worker_memory,
            max_restarts=0,
        )(ModelActor)
        model = _Model(kind.options(scheduling_strategy="SPREAD").remote(), tries)
        self._models.append(model)
        self._waiting[model.actor.start.remote(self._make)] = lambda ref: self._end_start(model, ref)

    def _end_start(self, model: _Model, ref: Any) -> None:
        try:
            self._ray.get(ref)
        except Exception as error:
            cause = getattr(error, "cause", error)
            if isinstance(error, self._ray.exceptions.RayActorError):
                self._model_died(model, error)
            elif isinstance(cause, UserError):
                raise cause from None
            else:
                raise UserError(
                    f"a model could not be started: {type(cause).__name__}: {first_line(cause)}"
                ) from error
        else:
            model.ready = True

    def _start_what_can(self) -> None:
        now = time.monotonic()
        for due in [due for due in self._later if due[0] <= now]:
            self._later.remove(due)
            due[1]()
        while self._room():
            if not self._to_open:
                shard = self._planned.next() if len(self._flights) < self._most else None
                if shard is None:
                    break
                flight = _Flight(shard)
                self._flights.add(flight)
                self._to_open += flight.cut(len(shard.entries))
            self._begin_open(self._to_open.popleft())
        # As there is work for them: a handful of photos shall not wait for a model a core to start.
        while self._make is not None and len(self._models) < min(self._crew.workers, len(self._flights)):
            self._start_model(0)
        # One that still waits for a processor would hoard what others can do.
        ready = [model for model in self._models if model.ready]
        while self._to_label and ready:
            model = min(ready, key=lambda model: len(model.work))
            if len(model.work) >= _AHEAD:
                break
            self._begin_label(self._to_label.popleft(), model)

    def _room(self) -> bool:
        queued = len(self._to_label) if self._make is not None else 0
        return self._opening < self._crew.decoders and self._opening + queued < self._crew.decoders + _QUEUED

    def _begin_open(self, piece: _Piece) -> None:
        limit_s = HANG_S + HANG_PER_PHOTO_S * sum(entry.photos for entry in piece.entries)
        brief, piece.data = self._open.remote(self._opener, piece.entries, limit_s)
        self._opening += 1
        self._waiting[brief] = lambda ref: self._end_open(piece, ref)

    def _end_open(self, piece: _Piece, ref: Any) -> None:
        flight = piece.flight
        self._opening -= 1
        try:
            brief = self._ray.get(ref)
            self._note(flight, brief)
            piece.hands = brief.hands
        except Exception as error:
            if not self._process_died(error, flight, lambda: self._to_open.append(piece)):
                return
            piece.crashes += 1
            if len(piece.entries) == 1 and piece.crashes >= PHOTO_CRASHES:
                piece.data = self._ray.put(self._crashed(piece.entries))
                self._opened(piece)
            elif len(piece.entries) > 1 and piece.crashes >= SHARD_CRASHES:
                self._to_open.extend(flight.cut(1))
            else:
                self._to_open.append(piece)
        else:
            self._opened(piece)

    def _opened(self, piece: _Piece) -> None:
        flight = piece.flight
        piece.is_open = True
        if not all(other.is_open for other in flight.pieces):
            return
        parts = [other.data for other in flight.pieces]
        flight.data = parts[0] if len(parts) == 1 else self._join.remote(*parts)
        flight.hands = sum(other.hands for other in flight.pieces)
        flight.pieces = []
        if self._make is None:
            self._begin_write(flight)
        elif flight.deaths >= SHARD_CRASHES and flight.hands > 1:
            self._to_label += Apart.of(flight, flight.data, flight.hands).in_any_order()
        else:
            self._to_label.append(flight)

    def _begin_label(self, work: _Flight | Hand, model: _Model) -> None:
        if isinstance(work, Hand):
            call = model.actor.label_hand.options(num_returns=2)
            brief, data = call.remote(work.shard.data, work.number)
        else:
            brief, data = model.actor.label.options(num_returns=2).remote(work.data)
        model.work.append(work)
        self._waiting[brief] = lambda ref: self._end_label(work, model, ref, data)

    def _end_label(self, work: _Flight | Hand, model: _Model, ref: Any, data: Any) -> None:
        suspect = model.work[0]
        model.work.remove(work)
        flight: _Flight = work.shard.flight if isinstance(work, Hand) else work
        try:
            self._note(flight, self._ray.get(ref))
        except Exception as error:
            if not self._process_died(error, flight, lambda: self._to_label.append(work)):
                return
            is_model = isinstance(error, self._ray.exceptions.RayActorError)
            if is_model and not model.dead:
                # Work is taken one after the other: only the first can have ended it.
                self._suspect(suspect)
                self._model_died(model, error, suspect)
            if isinstance(work, Hand):
                self._label_hand_again(work, error, is_model)
            elif flight.deaths >= PHOTO_CRASHES:
                # One hand that ends every model stays without labels.
                flight.data = self._give_up.remote(flight.data)
                self._begin_write(flight)
            else:
                self._reopen(flight, error)
        else:
            if isinstance(work, Hand):
                self._end_hand(work, data, is_labelled=True)
                return
            model.done += 1
            flight.data = data
            self._begin_write(flight)

    def _suspect(self, work: _Flight | Hand) -> None:
        if isinstance(work, Hand):
            work.shard.died(work)
        else:
            work.deaths += 1

    def _label_hand_again(self, hand: Hand, error: Exception, is_model: bool) -> None:
        """Put a hand back that had no answer, or give it up."""
        shard = hand.shard
        if shard.is_over:
            return
        if not is_model:  # the opened shard went with its machine
            self._end_apart(shard)
            self._reopen(shard.flight, error)
        elif shard.is_hopeless:
            self._end_apart(shard)
            shard.flight.data = self._give_up.remote(shard.data)
            self._begin_write(shard.flight)
        elif hand.deaths >= HAND_DEATHS:
            self._end_hand(hand, self._give_up_hand.remote(shard.data, hand.number), is_labelled=False)
        else:
            self._to_label.append(hand)  # after all others

    def _end_hand(self, hand: Hand, data: Any, is_labelled: bool) -> None:
        shard = hand.shard
        if shard.is_over or not shard.ended(hand, data, is_labelled):
            return
        if shard.has_culprit:
            for model in self._models:
                model.tries = 0
        flight: _Flight = shard.flight
        flight.data = self._join_hands.remote(shard.data, *[each.data for each in shard.hands])
        self._begin_write(flight)

    def _end_apart(self, shard: Apart) -> None:
        shard.is_over = True
        left = [work for work in self._to_label if not (isinstance(work, Hand) and work.shard is shard)]
        self._to_label = deque(left)

    def _model_died(self, model: _Model, error: Exception, suspect: _Flight | Hand | None = None) -> None:
        if model.dead or not isinstance(error, self._ray.exceptions.RayActorError):
            return
        model.dead = True
        self._models.remove(model)
        self._ray.kill(model.actor)  # one that only can't be reached would keep its processor
        # A hand that is labelled apart speaks against itself, and no success of others speaks for shards.
        tries = 0 if model.done else model.tries + (not isinstance(suspect, Hand))
        if tries >= MODEL_DEATHS:
            raise UserError(
                f"models died {tries} times without a shard in between ({first_line(error)}): if it was for "
                "want of memory, lower --batch-size or --workers; the same command goes on where it was"
            )
        self._start_model(tries)

    def _reopen(self, flight: _Flight, error: Exception) -> None:
        """Begin a shard anew whose data went with a process; not for ever."""
        flight.losses += 1
        if flight.losses > LOSSES:
            raise UserError(
                f"processes died {LOSSES} times over one shard ({first_line(error)}): if it was for want of memory, "
                "lower --shard-size or --workers; the same command goes on where it was"
            )
        self._to_open.extend(flight.cut(len(flight.shard.entries)))

    def _begin_write(self, flight: _Flight) -> None:
        written = self._write.remote(
            self._labels, flight.shard.number, flight.shard.among, flight.data, self._schema
        )
        self._waiting[written] = lambda ref: self._end_write(flight, ref)

    def _end_write(self, flight: _Flight, ref: Any) -> ShardReport | None:
        try:
            written, retries = self._ray.get(ref)
        except Exception as error:
            if self._process_died(error, flight, lambda: self._begin_write(flight)):
                self._reopen(flight, error)
            return None
        self._flights.remove(flight)
        flight.retries.update(retries)
        return replace(written, retries=dict(flight.retries), began=flight.began)

    def _note(self, flight: _Flight, brief: Brief) -> None:
        flight.retries.update(brief.retries)
        flight.began = brief.began

    def _process_died(self, error: Exception, flight: _Flight, again: Callable[[], Any]) -> bool:
        """Whether a process or its machine did; a store that did not answer is asked `again` later.

        Raises:
            UserError: it has been asked often enough. Anything that our own code raised.
        """
        cause = error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error
        if isinstance(cause, self._ray.exceptions.RayError):
            flight.retries["process died"] += 1
            return True
        if isinstance(cause, UserError) or not isinstance(cause, OSError):
            raise cause from None
        flight.tries += 1
        if flight.tries >= TRIES:
            where = getattr(cause, "filename", None) or self._labels
            raise UserError(
                f"'{where}' could not be read or written: {cause.strerror or cause}; "
                "what is there stays, run the same command again to go on"
            ) from None
        self._later.append((time.monotonic() + PAUSE_S * 2**flight.tries, again))
        return False


#: Ray shall try nothing again by itself: it would not know a photo that ends processes from a machine that is gone.
_ONCE: dict[str, Any] = {"max_retries": 0, "scheduling_strategy": "SPREAD"}


class _Listing:
    """Shards, planned by a thread of its own: the source may be slow, and work must not wait for all of it."""

    def __init__(self, planned: Iterator[PlannedShard], ahead: int) -> None:
        self._queue: queue.Queue[PlannedShard | Exception | None] = queue.Queue(max(4, ahead))
        self.ended = False
        self._stopped = threading.Event()
        threading.Thread(target=self._walk, args=(planned,), daemon=True).start()

    def stop(self) -> None:
        """No more is wanted."""
        self._stopped.set()

    def _walk(self, planned: Iterator[PlannedShard]) -> None:
        try:
            for shard in planned:
                if not self._put(shard):
                    return
            self._put(None)
        except Exception as error:
            self._put(error)

    def _put(self, item: PlannedShard | Exception | None) -> bool:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self._queue.put(item, timeout=0.5)
                return True
        return False

    def next(self) -> PlannedShard | None:
        """The next one, if it is there already."""
        try:
            found = None if self.ended else self._queue.get_nowait()
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        self.ended = found is None
        return found
