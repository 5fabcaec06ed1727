"""A landmark network for smaller crops, distilled from MediaPipe's. Not in the paper."""
