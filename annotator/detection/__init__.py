"""Detect hands in whole photos: MediaPipe's detector (extra `detect`), the thorough search, duplicates."""
