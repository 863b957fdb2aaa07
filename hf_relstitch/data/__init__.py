"""Inputs, their ids, pairs, provenance, modalities."""
