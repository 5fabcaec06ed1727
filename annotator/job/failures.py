"""The failure policy of a run: plain decisions after a process or a store fails, without Ray.

`Dispatcher._process_died` detects a dead process; these functions return the consequence. The shards that it held
are decoded again. Two deaths over one shard make the shard a suspect: its photos are decoded one by one, or its
hands labelled one by one (`annotator.job.hand_by_hand`). A photo or hand that crashes three processes gets a row with
reason `crashed`. Failures without such a culprit end the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from annotator.errors import UserError, first_line
from annotator.job.hand_by_hand import HAND_DEATHS, SingleHand

#: Crashed processes before a shard is split into single photos or hands, and before a single photo is given up.
SHARD_CRASHES, PHOTO_CRASHES = 2, 3

#: Maximum losses of a shard's data in a run.
MAX_DATA_LOSSES = 20

#: Maximum deaths of workers in a row without a finished shard.
WORKER_DEATHS = 5

#: Attempts per shard when a disk or store does not respond, and the base of the doubling pause between them.
MAX_ATTEMPTS, PAUSE_S = 4, 1.0

#: Maximum time of a process on a piece of work, and the extra time per photo.
HANG_S, HANG_PER_PHOTO_S = 240.0, 5.0

#: Maximum wait of all workers for a processor: a cluster may have to start a machine first.
START_S = 1800.0


class Action(Enum):
    """The next step after a failure."""

    RETRY = auto()  # the same work
    SPLIT = auto()  # each photo alone
    DECODE_AGAIN = auto()  # decode the shard again
    GIVE_UP = auto()  # record the photo, or all hands of the shard, as crashed
    GIVE_UP_HAND = auto()  # record this hand as crashed
    IGNORE = auto()  # the shard has already moved on


@dataclass
class ShardFailures:
    """Failures of one shard so far."""

    worker_deaths: int = 0  # of workers that held it first
    losses: int = 0  # of its data, with the process that held it
    store_tries: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether its hands are labelled one by one."""
        return self.worker_deaths >= SHARD_CRASHES

    def lose(self, error: Exception) -> None:
        """Count a loss of the shard's data.

        Raises:
            UserError: the data was lost more than `MAX_DATA_LOSSES` times.
        """
        self.losses += 1
        if self.losses > MAX_DATA_LOSSES:
            raise UserError(
                f"processes died {self.losses} times on one shard ({first_line(error)}): if memory ran out, "
                "lower --shard-size or --workers; run the same command again to resume"
            )

    def store_failed(self, error: OSError, labels: str) -> float:
        """Count an attempt on a disk or store that did not respond; return the pause before the next (s).

        Raises:
            UserError: after `MAX_ATTEMPTS` attempts.
        """
        self.store_tries += 1
        if self.store_tries >= MAX_ATTEMPTS:
            path = getattr(error, "filename", None) or labels
            raise UserError(
                f"'{path}' could not be read or written: {error.strerror or error}; "
                "finished labels are kept, run the same command again to resume"
            ) from None
        return PAUSE_S * 2**self.store_tries


def hang_limit_s(photos: int) -> float:
    """Return the maximum time (s) for a process to decode `photos` photos."""
    return HANG_S + HANG_PER_PHOTO_S * photos


def check_start(waited_s: float) -> None:
    """Raise a `UserError` if all workers have waited too long for a processor."""
    if waited_s > START_S:
        raise UserError(
            f"no worker found a free processor within {START_S / 60:.0f} minutes: see `ray status`, stop other work "
            "there, or add machines; run the same command again to resume"
        )


def after_decode_crash(entries: int, crashes: int) -> Action:
    """Decide about a piece of `entries` entries that has crashed `crashes` decoders."""
    if entries == 1 and crashes >= PHOTO_CRASHES:
        return Action.GIVE_UP
    if entries > 1 and crashes >= SHARD_CRASHES:
        return Action.SPLIT
    return Action.RETRY


def blame(first: ShardFailures | SingleHand) -> None:
    """Count the death of a worker against the work it held first: a worker takes its work in order."""
    if isinstance(first, SingleHand):
        first.shard.died(first)
    else:
        first.worker_deaths += 1


def after_predict_crash(failures: ShardFailures) -> Action:
    """Decide about a shard whose labelling ended without a result."""
    # Only a single hand gets that far: a suspect shard with several is labelled hand by hand.
    return Action.GIVE_UP if failures.worker_deaths >= PHOTO_CRASHES else Action.DECODE_AGAIN


def after_hand_crash(hand: SingleHand, worker_died: bool) -> Action:
    """Decide about a hand whose labelling ended without a result; `worker_died`: its worker died, not its data."""
    if hand.shard.is_over:
        return Action.IGNORE
    if not worker_died:
        return Action.DECODE_AGAIN
    if hand.shard.model_is_suspect:
        return Action.GIVE_UP
    return Action.GIVE_UP_HAND if hand.deaths >= HAND_DEATHS else Action.RETRY


def deaths_in_a_row(before: int, shards_done: int, held_hand: bool, error: Exception) -> int:
    """Return the deaths of workers in a row after one more death.

    Args:
        before: deaths in a row before that worker started.
        shards_done: shards that the worker finished.
        held_hand: it held a single hand first, which counts against the hand, not the worker.
        error: of the death.

    Raises:
        UserError: `WORKER_DEATHS` are reached.
    """
    deaths = 0 if shards_done else before + (not held_hand)
    if deaths >= WORKER_DEATHS:
        raise UserError(
            f"workers died {deaths} times without finishing a shard ({first_line(error)}): if memory ran out, "
            "lower --batch-size or --workers; run the same command again to resume"
        )
    return deaths
