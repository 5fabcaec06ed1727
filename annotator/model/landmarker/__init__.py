"""MediaPipe's hand landmark network, a start for training and a teacher. Not in the paper.

`network.py` is the network in torch. `bundle.py` finds it in `hand_landmarker.task`, without torch, and
`released_file.py` reads its weights from there. `distilled_file.py` stores one distilled for smaller crops.
"""
