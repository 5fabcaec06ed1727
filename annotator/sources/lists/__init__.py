"""Lists of photos in text, CSV, JSON or Parquet."""
