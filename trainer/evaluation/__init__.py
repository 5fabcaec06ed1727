"""Evaluate checkpoints on photos with known hands, and calibrate their uncertainty."""
