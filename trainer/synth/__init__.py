"""Photos of synthetic hands with their true labels."""

from __future__ import annotations

from trainer.synth.hands import DrawnPhotos, SyntheticHands
from trainer.synth.write import write_photos

__all__ = ["DrawnPhotos", "SyntheticHands", "write_photos"]
