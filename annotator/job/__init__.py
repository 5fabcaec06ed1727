"""Distributed, resumable jobs: from a source of photos to a label set."""
