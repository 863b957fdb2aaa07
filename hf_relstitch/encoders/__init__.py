"""Inputs to latents."""
