"""The network of the paper: backbone, prior-net, AMVUR, camera, texture, landmarks, and its checkpoints.

The covariance of formula (6) is in `camera.py`, (9) and (10) are in `attention.py`, (11) in `texture.py`. The losses,
(3) to (6), (8) and (12), are in `trainer/losses.py`.
"""
