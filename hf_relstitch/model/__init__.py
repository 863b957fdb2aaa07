"""Anchor sets, stitching, and the stitched model."""

import transformers.models.auto.modeling_auto  # noqa: F401  (before the modules here, which it imports: registration.py)
