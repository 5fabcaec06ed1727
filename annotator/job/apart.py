"""A shard that ended models one after the other, its hands labelled one by one: which of them is at fault.

Each hand that ends a model comes again after all others. One that ends three models stays without labels, and the
others keep theirs. Where the first few end every model, the model is as likely at fault: the shard is given up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

#: A hand that ended so many models is left.
HAND_DEATHS = 3

#: Hands of a shard that end models before any hand of it is labelled: then all of it is given up.
FIRST_DEATHS = 4


@dataclass(eq=False)
class Hand:
    """One hand, to be labelled without the others."""

    shard: Apart
    number: int  # among the shard's hands
    deaths: int = 0  # of models that had it first in hand
    data: Any = None  # reference to its part, once it is labelled or given up


@dataclass(eq=False)
class Apart:
    """The hands of one shard."""

    flight: Any  # whatever the shard is part of
    data: Any  # reference to the opened shard
    hands: list[Hand] = field(default_factory=list)  # in the order of the shard
    deaths: int = 0
    labelled: int = 0
    given_up: int = 0
    is_over: bool = False  # what still comes of it is ignored

    @staticmethod
    def of(flight: Any, data: Any, count: int) -> Apart:
        """Cut an opened shard with that many hands."""
        shard = Apart(flight, data)
        shard.hands = [Hand(shard, number) for number in range(count)]
        return shard

    def in_any_order(self) -> list[Hand]:
        """The hands in an order of chance: neighbours often fail together, and one good hand clears the model."""
        return random.Random(len(self.hands)).sample(self.hands, len(self.hands))

    def died(self, hand: Hand) -> None:
        """Note that a model died which had this hand first."""
        hand.deaths += 1
        self.deaths += 1

    @property
    def is_hopeless(self) -> bool:
        """Whether the model may be at fault, since no hand was labelled."""
        return not self.labelled and self.deaths >= min(FIRST_DEATHS, HAND_DEATHS * len(self.hands))

    def ended(self, hand: Hand, data: Any, is_labelled: bool) -> bool:
        """Note a hand's part; whether it was the last."""
        hand.data = data
        self.labelled += is_labelled
        self.given_up += not is_labelled
        return self.labelled + self.given_up == len(self.hands)

    @property
    def has_culprit(self) -> bool:
        """Whether some hands ended models and others did not: so the models are sound."""
        return self.labelled > 0 and self.given_up > 0
