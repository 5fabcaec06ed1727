"""Find the hands in whole photos: MediaPipe's detector (extra `detect`), a thorough search, duplicates."""
