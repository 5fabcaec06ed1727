"""Fit pose, shape and camera of a parametric hand to 21 image landmarks.

`landmarks.py` is the input, `chain.py` the joints and their derivatives, `objective.py` the cost, `solver.py` the
second-order steps. `hand_fit.py` combines them: `fit_landmarks`.
"""
