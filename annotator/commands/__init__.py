"""Commands of amvur, one per file; `cli.py` parses their arguments and calls them."""
