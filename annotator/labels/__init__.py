"""Label sets: their schema, their files, and conditions on their columns."""
