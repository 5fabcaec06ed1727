"""Data sets of hands, turned into one kind of example."""
