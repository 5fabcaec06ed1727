"""Photos of synthetic hands with their true labels."""

from __future__ import annotations

from trainer.synth.hands import Photos, SyntheticHands
from trainer.synth.write import write_photos

__all__ = ["Photos", "SyntheticHands", "write_photos"]
