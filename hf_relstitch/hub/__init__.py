"""Files, repos and cards."""
