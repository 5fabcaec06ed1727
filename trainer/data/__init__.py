"""Training examples: storage, decoding and the order of reading."""
