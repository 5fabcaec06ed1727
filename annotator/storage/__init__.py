"""Read and write files, on disk or behind a URL."""
