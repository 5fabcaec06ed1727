"""The network of the paper: backbone, prior-net, AMVUR, camera, texture, landmarks, and its checkpoints."""
