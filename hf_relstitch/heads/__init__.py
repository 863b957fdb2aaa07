"""Latents to logits."""
