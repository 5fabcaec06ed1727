"""Lists of photos: text, CSV, JSON and Parquet."""
