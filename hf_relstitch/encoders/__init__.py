"""Inputs to latents."""

import transformers.models.auto.modeling_auto  # noqa: F401  (before the modules here, which it imports: registration.py)
