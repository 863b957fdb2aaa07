"""The tokens of words: a word's latent is the state of the token that begins where the word begins."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.words import Word, all_words


def find_words(inputs: Sequence[str | Word], *, tokenizer: Any) -> list[Word]:
    """Return the words of texts, or those of these words, at which a token begins and which truncation leaves whole.

    Raises:
        StitchError: an input is not a text, or the tokenizer gives no offsets.
    """
    return WordTokens.from_inputs(inputs, tokenizer=tokenizer).words


@dataclass(frozen=True)
class WordTokens:
    """Hold words, and where each lies: the row of its text in `texts`, and the place of its first token there.

    `lengths` holds how many tokens each text has.
    """

    words: list[Word]
    rows: list[int]
    places: list[int]
    texts: list[str]
    lengths: list[int]

    @classmethod
    def from_inputs(cls, inputs: Sequence[str | Word], *, tokenizer: Any) -> "WordTokens":
        """Find the words as `find_words` does."""
        check_offsets(tokenizer)
        words_of: dict[str, list[Word]] = {}
        for word in all_words(inputs):
            words_of.setdefault(word.text, []).append(word)
        found = cls([], [], [], [*words_of], [])
        for row, (text, words) in enumerate(words_of.items()):
            begins, end, length = _token_starts(text, tokenizer)
            kept = [word for word in words if word.start in begins and word.end <= end]
            found.words.extend(kept)
            found.rows.extend([row] * len(kept))
            found.places.extend(begins[word.start] for word in kept)
            found.lengths.append(length)
        return found

    def pick(self, encoded: Iterable[tuple[list[int], Tensor]]) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the numbers of the words of each text and their latents, from the rows of texts and their tokens.

        Raises:
            StitchError: the model gives more or fewer states than there are tokens.
        """
        words_of: dict[int, list[int]] = {}
        for number, row in enumerate(self.rows):
            words_of.setdefault(row, []).append(number)
        for rows, tokens in encoded:
            lengths = [self.lengths[row] for row in rows]
            if sum(lengths) != len(tokens):
                raise StitchError(f"the model gives {len(tokens)} states for {sum(lengths)} tokens: give another model")
            for row, states in zip(rows, tokens.split(lengths), strict=True):
                numbers = words_of.get(row, [])
                yield numbers, states[[self.places[number] for number in numbers]]


def token_rows(states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the states `(tokens, d)` of a batch's tokens, one text after the other, from `(n, t, d)` with padding."""
    mask = batch.get("attention_mask")
    return states.flatten(0, 1) if mask is None else states[mask.bool().to(states.device)]


def padded_rows(parts: Sequence[tuple[list[int], Tensor]], batch: Mapping[str, Tensor]) -> Tensor:
    """Return states `(n, t, d)` of a batch from those of its parts, which are without padding; zeros where it was."""
    mask = batch.get("attention_mask")
    first = parts[0][1]
    rows = len(next(iter(batch.values())))
    states = first.new_zeros(rows, first.shape[1] if mask is None else mask.shape[1], first.shape[2])
    for numbers, part in parts:
        for number, state in zip(numbers, part, strict=True):
            states[number, slice(None) if mask is None else mask[number].bool().to(states.device)] = state
    return states


def _token_starts(text: str, tokenizer: Any) -> tuple[dict[int, int], int, int]:
    """Return the first token that begins at each character, the end of the last token, and the number of tokens."""
    encoded = tokenizer(text, truncation=True, return_offsets_mapping=True)
    names = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    begins: dict[int, int] = {}
    last = 0
    for place, (start, end) in enumerate(encoded["offset_mapping"]):
        start += len(text[start:end]) - len(text[start:end].lstrip())  # noqa: PLW2901  (a space may belong to a token)
        if start < end and names[place] != "▁":  # which SentencePiece puts before a word, and which holds none of it
            begins.setdefault(start, place)
            last = max(last, end)
    return begins, last, len(names)


def check_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not say which characters a token is of.

    Raises:
        StitchError: the tokenizer is a slow one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise StitchError(
            "labels of tokens need a fast tokenizer, which gives character offsets, and the "
            f"{type(tokenizer).__name__} is a slow one: load or convert it as one with a tokenizer.json"
        )
