"""Anchor sets, stitching, and the stitched model."""
