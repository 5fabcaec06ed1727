"""Boxes, sides and 2D joints of the hands in photos, by an off-the-shelf detector (extra `detect`)."""
