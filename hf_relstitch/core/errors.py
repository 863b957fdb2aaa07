"""The one error that this package raises for input it cannot use."""


class StitchError(ValueError):
    """Report input that cannot be stitched; the message says what was expected, what came and what to do."""
