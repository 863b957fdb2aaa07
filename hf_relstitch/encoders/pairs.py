"""A pair of texts as one input: read as one sequence, or composed of the latents of both texts."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.inputs import row_names

logger = logging.get_logger(f"transformers.{__name__}")  # so that its verbosity is heeded
PAIRS = {
    "joint": "the encoder reads both texts as one sequence, as the tokenizer joins them",
    "compose": "the encoder reads each text alone, and the latent is u, v, |u − v| and u·v of the two, side by side",
}
PARTS = 4
"""How many times as wide as the latent of a text the composed latent of a pair is."""
PROBES = (("storm", "A storm hits the coast."), ("The harbour is closed until the morning.", "A quiet day"), ("a", "b"))


SINGLE = 'holds a single text: give {"text": …, "text_pair": …}'
PAIR = "holds a pair of texts: give one of the texts, or stitch the model over anchors that are pairs"
SEPARATED = (
    "holds the tokenizer's separator, as a pair of texts does: give one of the texts, or stitch the model over anchors "
    "that are pairs; if it is one text with the separator in it, remove that, or call predict, which takes it"
)


def compose(u: Float[Tensor, "n d"], v: Float[Tensor, "n d"]) -> Float[Tensor, "n 4*d"]:
    """Compose latents of two texts, each scaled to a root mean square of 1, as u, v, |u − v|, u·v.

    These are the features of InferSent (Conneau et al. 2017) and of sentence-transformers' softmax loss, with the
    product of the former.
    """
    exact = [side.to(torch.promote_types(side.dtype, torch.float32)) for side in (u, v)]
    first, second = (side * side.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt() for side in exact)
    return torch.cat([first, second, (first - second).abs(), first * second], -1).to(u.dtype)


def describe_pairs(layout: "PairLayout | None") -> dict[str, Any]:
    """Return how pairs are read, as plain values: composed if there is a layout to split them by, else jointly."""
    return {"how": "joint"} if layout is None else {"how": "compose", "layout": asdict(layout)}


def describe_separators(processor: Any) -> dict[str, Any] | None:
    """Return the layout of a tokenizer's pairs, as plain values; None if it does not tell pairs from single texts."""
    if not isinstance(processor, PreTrainedTokenizerBase):
        return None
    try:
        return asdict(PairLayout.from_tokenizer(processor))
    except Exception as error:  # whatever a tokenizer raises that takes no pairs
        logger.debug(f"pairs and single texts are not told apart: {error}")
        return None


@dataclass(frozen=True)
class PairLayout:
    """Hold the special tokens that a tokenizer puts around one text and around two, by which pairs are split again.

    Attributes:
        before: tokens before a single text.
        after: tokens after a single text.
        first: tokens before the first text of a pair.
        between: tokens between the texts of a pair.
        last: tokens after the second text of a pair.
        pad: the token of padding.
        padding_side: `right` or `left`.
        types: token types that only pairs have; none, unless the tokenizer gives types.
    """

    before: Sequence[int]
    after: Sequence[int]
    first: Sequence[int]
    between: Sequence[int]
    last: Sequence[int]
    pad: int
    padding_side: str
    types: Sequence[int] = ()

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase) -> "PairLayout":
        """Find the special tokens of a tokenizer, and prove on probes that its pairs can be split.

        Raises:
            StitchError: nothing stands between the texts of a pair, or a text has other tokens in a pair than alone.
        """
        texts = PROBES[1]
        joined = [tokenizer(texts[0]), tokenizer(*texts)]
        single, pair = (list(each["input_ids"]) for each in joined)
        types, types_of_pair = ({*each.get("token_type_ids", [])} for each in joined)
        plain = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        alone, start = _find(plain[0], single), _find(plain[0], pair)
        end = start + len(plain[0])
        second = _find(plain[1], pair, start=end)
        layout = cls(
            before=single[:alone],
            after=single[alone + len(plain[0]) :],
            first=pair[:start],
            between=pair[end:second],
            last=pair[second + len(plain[1]) :],
            pad=int(tokenizer.pad_token_id or 0),
            padding_side=tokenizer.padding_side,
            types=sorted(types_of_pair - types),
        )
        if min(alone, start, second) < 0 or not layout.between or not layout._splits(tokenizer):
            raise StitchError(
                f"the tokenizer, a {type(tokenizer).__name__}, does not mark where the second text of a pair begins, "
                "or reads a text in a pair otherwise than alone, so that pairs cannot be composed: use pairs='joint'"
            )
        return layout

    @classmethod
    def from_data(cls, content: Any) -> "PairLayout":
        """Read a layout of plain values.

        Raises:
            StitchError: a value is missing, unknown or of another kind.
        """
        tokens = [each.name for each in fields(cls) if each.name not in ("pad", "padding_side")]
        try:
            layout = cls(**content)
            whole = all(isinstance(one, int) for name in tokens for one in [*getattr(layout, name), layout.pad])
            if not whole or layout.padding_side not in ("left", "right") or not layout.between:
                raise TypeError("lists of tokens, a token of padding and its side are expected")
        except TypeError as error:
            raise StitchError(f"the config's layout of pairs is {content!r}: {error}") from error
        return layout

    def _splits(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether split probes are what the tokenizer makes of their texts."""
        firsts, seconds = map(list, zip(*PROBES, strict=True))
        made = self.split(tokenizer(firsts, seconds, padding=True, return_tensors="pt"))
        due = tokenizer([*firsts, *seconds], padding=True, return_tensors="pt")
        return all(name in due and torch.equal(tensor, due[name]) for name, tensor in made.items())

    def split(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Split a batch of n pairs into a batch of 2n texts, the first of each pair and then the second of each.

        Raises:
            StitchError: a row holds a single text, or the tokens that separate texts stand in a text too.
        """
        ids, ends, separated = self._separators(batch)
        counts = separated.sum(1)
        if (counts != 1).any():
            rows = (counts != 1).nonzero().flatten().tolist()
            if counts[rows[0]] == 0:
                raise StitchError(f"the model takes pairs of texts and {row_names(rows)} of the batch {SINGLE}")
            raise StitchError(
                f"{row_names(rows)} of the batch has the tokenizer's separator in a text, so that it is not clear "
                "where the second text begins: remove it from the text"
            )
        begins = ends.new_full(ends.shape, len(self.first))
        middle = separated.int().argmax(1)
        sides = [self._single(ids, begins, middle), self._single(ids, middle + len(self.between), ends)]
        width = max(tokens.shape[1] for tokens, _ in sides)
        tokens = torch.cat([pad(tokens, (0, width - tokens.shape[1]), value=self.pad) for tokens, _ in sides])
        filled = torch.cat([size for _, size in sides])
        places = torch.arange(width, device=ids.device)
        kept = (places < filled[:, None]).to(batch.get("attention_mask", ids).dtype)
        if self.padding_side == "left":
            order = (places + filled[:, None]) % width
            tokens, kept = tokens.gather(1, order), kept.gather(1, order)
        split = {"input_ids": tokens, "attention_mask": kept, "token_type_ids": torch.zeros_like(tokens)}
        return {name: tensor for name, tensor in split.items() if name in batch}

    def check(self, batch: Mapping[str, Tensor], *, pairs: bool) -> None:
        """Refuse single texts where the model takes pairs, and pairs where it takes single texts.

        Token types tell for certain. Without them, a row without a separator is a single text, and one with a separator
        a pair; a single text that holds the separator itself has the tokens of a pair, and counts as one.

        Raises:
            StitchError: a row of the batch is of the other kind.
        """
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        if self.types and "token_type_ids" in batch:
            types = torch.tensor([*self.types], device=ids.device)
            found = (torch.isin(batch["token_type_ids"], types) & mask.bool()).any(1)
        elif mask.shape != ids.shape or "attention_mask" not in batch:
            return
        else:
            found = self._separators(batch)[2].any(1)
        if (found != pairs).any():
            rows = row_names((found != pairs).nonzero().flatten().tolist())
            takes, came = ("pairs of texts", SINGLE) if pairs else ("single texts", PAIR if self.types else SEPARATED)
            raise StitchError(f"the model takes {takes} and {rows} of the batch {came}")

    def _separators(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens with padding to the right, where each second text would end, and where a separator begins."""
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", ids != self.pad)
        places = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.gather(1, (places + mask.int().argmax(1)[:, None]) % ids.shape[1])
        ends = mask.sum(1) - len(self.last)
        separated = (places >= len(self.first)) & (places + len(self.between) <= ends[:, None])
        for offset, token in enumerate(self.between):
            separated &= ids.roll(-offset, 1) == token
        return ids, ends, separated

    def _single(self, ids: Tensor, begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of single texts, padded on the right, from where each begins and ends, and how many each has."""
        count = (ends - begins).clamp_min(0)
        sizes = len(self.before) + count + len(self.after)
        places = torch.arange(int(sizes.max()), device=ids.device) - len(self.before)
        tokens = ids.gather(1, (begins[:, None] + places).clamp(0, ids.shape[1] - 1))
        tokens = tokens.masked_fill((places < 0) | (places >= count[:, None]), self.pad)
        tokens[:, : len(self.before)] = tokens.new_tensor(self.before)
        for offset, token in enumerate(self.after):
            tokens.scatter_(1, (len(self.before) + count + offset)[:, None], token)
        return tokens, sizes


def _find(part: list[int], whole: list[int], *, start: int = 0) -> int:
    """Where a list stands in another one, from `start` on; -1 for nowhere."""
    places = range(max(start, 0), len(whole) - len(part) + 1)
    return next((place for place in places if whole[place : place + len(part)] == part), -1)
