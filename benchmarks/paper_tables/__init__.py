"""The paper's tables: their rows, trainings, statistics and page. `ablations.py` is the command."""
