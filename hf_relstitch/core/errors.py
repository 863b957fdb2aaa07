"""The one error that this package raises for input it cannot use."""


class StitchError(ValueError):
    """Input that cannot be stitched; the message names what was expected, what came and what to do."""
