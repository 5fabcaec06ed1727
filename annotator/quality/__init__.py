"""Measure errors and predicted uncertainty, and calibrate uncertainty by errors."""
