"""The one error that this package raises for input it cannot use."""

from collections.abc import Iterator
from contextlib import contextmanager


class StitchError(ValueError):
    """Report input that cannot be stitched; the message says what was expected, what came and what to do."""


@contextmanager
def wrap_errors(failed: str, remedy: str = "copy or download it again") -> Iterator[None]:
    """Turn any error of a library that reads what a user gave into one that says what failed, why, and what to do.

    Raises:
        StitchError: the block failed.
    """
    try:
        yield
    except StitchError:
        raise
    except BaseException as error:  # what a library raises for damaged input is nowhere listed
        if not is_failure(error):
            raise
        reason = str(error).strip().partition("\nModel type should be one of")[0]  # the names of all configs follow
        raise StitchError(f"{failed} ({type(error).__name__}: {reason}): {remedy}") from error


def is_failure(error: BaseException) -> bool:
    """Tell whether an error is a failure, and not the user's wish to stop: a panic of Rust code is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
