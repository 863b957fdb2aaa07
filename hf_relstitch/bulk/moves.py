"""Shared steps of the moves of every vector index: the translation, the note in the new index, the checks."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec

from transformers.utils import logging

from hf_relstitch.bulk.search import SearchTranslation
from hf_relstitch.bulk.translator import AnyModel, Translator, load_translation
from hf_relstitch.core.errors import StitchError

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded

Given = ParamSpec("Given")
PARTIAL = "-partial"
"""End of a new index's name until the index is complete."""


def document_translator(model: AnyModel, column: str, batch_size: int) -> Translator:
    """Load the translation of documents, with its settings for stored vectors.

    Raises:
        StitchError: there is no translation, or it is a translation of queries.
    """
    translation, which = load_translation(model)
    if isinstance(translation, SearchTranslation) and translation.translates != "documents":
        raise StitchError(
            "this translation is of queries, which stay out of an index: make one of its documents, "
            "translation_between(old, new, translates='documents')"
        )
    return Translator(translation, column, batch_size, fingerprint=which["fingerprint"])


def check_note(
    note: str | bytes | None, translator: Translator, source: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Check that an unfinished index has the same translation and source, and return its note.

    Raises:
        StitchError: the index was begun with something else.
    """
    content: dict[str, Any] = json.loads(note or "{}")
    expected = {"model": translator.fingerprint} | dict(source)
    begun = {key: content.get(key) for key in expected}
    if begun != expected:
        raise StitchError(f"{name} was begun with {begun} and not {expected}: drop it, or give another name")
    return content


def check_metric(translator: Translator, metric: str, name: str) -> None:
    """Warn if an index searches by another metric than the translation was chosen for.

    Among vectors of norm 1 all metrics find the same neighbours, and there is no warning.
    """
    translation = translator.translation
    if isinstance(translation, SearchTranslation) and translation.metric != metric and not translation.unit:
        logger.warning(
            f"{name} is searched by {metric}, and the translation was chosen and reported for {translation.metric}: "
            f"make it with translation_between(…, metric={metric!r})"
        )


def tell_zeros(translator: Translator, name: str) -> None:
    """Warn of the number of rows of zeros, if there are any."""
    if zeros := translator.tally.get("zeros"):
        logger.warning(f"{zeros} rows of {name} are zeros, as a failed encoding leaves: they stay zeros")


def stopped_moves(move: Callable[Given, int]) -> Callable[Given, int]:
    """Make a move that its database stops, as where the disk is full or a server is gone, raise a StitchError."""

    @wraps(move)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> int:
        try:
            return move(*args, **kwargs)
        except (StitchError, TypeError):
            raise
        except Exception as error:  # each database has its own
            reason = " ".join(str(error).split()) or type(error).__name__
            raise StitchError(f"the move was stopped ({reason}): mend that, and run it again to go on") from error

    return run


@contextmanager
def explain(place: str, *errors: type[Exception]) -> Iterator[None]:
    """Raise a StitchError that begins with `place`, for a StitchError or any of these errors in the block."""
    try:
        yield
    except StitchError as error:
        raise StitchError(f"{place}: {error}") from error
    except errors as error:
        raise StitchError(f"{place}: {error or type(error).__name__}") from error
