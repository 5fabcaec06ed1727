"""A landmark network for smaller crops, taught by MediaPipe's. Not in the paper."""
