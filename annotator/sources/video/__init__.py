"""Frames of videos, by PyAV (extra `video`)."""
