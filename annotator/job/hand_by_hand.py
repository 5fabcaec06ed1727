"""Label the hands of a shard one by one, to find the hand that crashes workers.

A hand that crashes a worker returns to the end of the queue. After three crashes it stays without labels; the other
hands keep theirs. If the first few hands all crash, the model may be at fault, and the shard is given up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

#: Workers that a hand may crash before it is given up.
HAND_DEATHS = 3

#: Workers that hands of a shard may crash before any hand is labelled; then the shard is given up.
FIRST_DEATHS = 4


@dataclass(eq=False)
class SingleHand:
    """One hand, to be labelled without the others."""

    shard: HandByHand
    number: int  # index among the shard's hands
    deaths: int = 0  # of workers that held it first
    data: Any = None  # reference to its result, once labelled or given up


@dataclass(eq=False)
class HandByHand:
    """The hands of one shard, labelled one by one."""

    in_flight: Any  # the dispatcher's record of the shard
    data: Any  # reference to the decoded shard
    hands: list[SingleHand] = field(default_factory=list)  # in the order of the shard
    deaths: int = 0
    labelled: int = 0
    given_up: int = 0
    is_over: bool = False  # later results are ignored

    @staticmethod
    def of(in_flight: Any, data: Any, count: int) -> HandByHand:
        """Split a decoded shard into its `count` hands."""
        shard = HandByHand(in_flight, data)
        shard.hands = [SingleHand(shard, number) for number in range(count)]
        return shard

    def shuffled(self) -> list[SingleHand]:
        """Return the hands in a fixed random order: neighbours often fail together; one success clears the model."""
        return random.Random(len(self.hands)).sample(self.hands, len(self.hands))

    def died(self, hand: SingleHand) -> None:
        """Count the death of a worker that held this hand first."""
        hand.deaths += 1
        self.deaths += 1

    @property
    def model_is_suspect(self) -> bool:
        """Whether the model may be at fault, since no hand was labelled."""
        return not self.labelled and self.deaths >= min(FIRST_DEATHS, HAND_DEATHS * len(self.hands))

    def ended(self, hand: SingleHand, data: Any, is_labelled: bool) -> bool:
        """Store the result of a hand; return whether it was the last."""
        hand.data = data
        self.labelled += is_labelled
        self.given_up += not is_labelled
        return self.labelled + self.given_up == len(self.hands)

    @property
    def clears_models(self) -> bool:
        """Whether some hands crashed workers and others did not, so that the model is not at fault."""
        return self.labelled > 0 and self.given_up > 0
