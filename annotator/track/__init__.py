"""Hands of a video joined over its frames, and their motion smoothed by each frame's own predicted variance."""
