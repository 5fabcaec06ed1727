"""Measure errors and predicted uncertainty, and calibrate one by the other."""
