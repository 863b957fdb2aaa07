"""Words in their texts: what a model that labels tokens is compared on."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import regex

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import check_filled, check_some

SPACELESS = r"\p{Line_Break=ID}\p{Line_Break=CJ}\p{Line_Break=SA}"
"""Unicode's classes of characters between which a line may break without a space: Chinese, Japanese, Thai, Khmer, …"""
WORD = regex.compile(rf"[{SPACELESS}]\p{{M}}*|(?:(?![{SPACELESS}])[\p{{L}}\p{{M}}\p{{N}}])+|\S")


@dataclass(frozen=True)
class Word:
    """Hold a word in its text, from character `start` to character `end`."""

    text: str
    start: int
    end: int

    def __str__(self) -> str:
        return self.text[self.start : self.end]


def split_words(text: str) -> list[Word]:
    """Split a text into words: runs of letters, marks and digits, each other sign alone.

    In scripts without spaces each character is a word. The rule reads no tokenizer, so that both sides of a stitch
    split alike.

    Example:
        >>> [str(word) for word in split_words("Mr. Li, 東京")]
        ['Mr', '.', 'Li', ',', '東', '京']
    """
    return [Word(text, *found.span()) for found in WORD.finditer(text)]


def all_words(inputs: Sequence[str | Word]) -> list[Word]:
    """Return the words of texts, each once; words are returned unchanged.

    Raises:
        StitchError: an input is neither a text nor a word, or there are none.
    """
    check_some(inputs)
    check_filled(inputs, what="the texts are")
    if not all(isinstance(each, str | Word) for each in inputs):
        raise StitchError("a head that labels words takes texts, and what came are other inputs: give a list of texts")
    words = [word for each in inputs for word in (split_words(each) if isinstance(each, str) else [each])]
    return list(dict.fromkeys(words))


def entity_spans(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return the entities in a text's word labels: the kind of each, its first word, and the word after its last.

    An entity goes from a B- label, or from an I- label after another kind, over the I- labels of its kind that follow.

    Example:
        >>> entity_spans(["O", "B-PER", "I-PER", "B-PER", "I-LOC"])
        [('PER', 1, 3), ('PER', 3, 4), ('LOC', 4, 5)]
    """
    spans: list[tuple[str, int, int]] = []
    for place, label in enumerate(labels):
        prefix, kind = label[:2], label[2:]
        if prefix == "I-" and spans and spans[-1][0] == kind and spans[-1][2] == place:
            spans[-1] = kind, spans[-1][1], place + 1
        elif prefix in ("B-", "I-"):
            spans.append((kind, place, place + 1))
    return spans


def entity_f1(found: Sequence[str], true: Sequence[str], texts: Sequence[Hashable]) -> float | None:
    """Return the F1 of whole entities with their kinds, from the labels of words, text after text; None without any.

    `texts` says which text each word is of.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, text in enumerate(texts):
        rows_of.setdefault(text, []).append(row)
    one, other = (
        {(text, *span) for text, rows in rows_of.items() for span in entity_spans([labels[row] for row in rows])}
        for labels in (found, true)
    )
    return 2 * len(one & other) / (len(one) + len(other)) if one or other else None


def has_entities(names: Iterable[str]) -> bool:
    """Tell whether class names are those of entities, with B- or I- before their kinds."""
    return any(name.startswith(("B-", "I-")) for name in names)
