"""Convert data sets to training examples, one file per source."""
