"""Training: examples, losses, the loop, conversion of data sets, synthetic hands, evaluation."""
