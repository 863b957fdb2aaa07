"""One bad input is named by its row, and costs nothing that was done before it."""

import logging

import numpy as np
import pico
import pytest
import tiny_models
import torch
from test_audio import sounds

from hf_relstitch import CallableEncoder, Encoder, RelativeStitcher, StitchError, split_classifier

TEXTS = pico.texts(60)


def without_special_tokens() -> object:
    """A tokenizer that puts no tokens around a text, as GPT-2's."""
    tokenizer = pico.tokenizer()
    from tokenizers.processors import Sequence

    tokenizer.backend_tokenizer.post_processor = Sequence([])
    return tokenizer


@pytest.mark.parametrize("count", [31, 32, 33])
def test_an_empty_text_is_named(count: int) -> None:
    encoder = Encoder(pico.classifier("GPT2").transformer, without_special_tokens())
    with pytest.raises(StitchError, match=rf"row {count} \(counted from 0\) cannot be encoded: .* empty text"):
        encoder.encode([*TEXTS[:count], "", *TEXTS[count:]], progress=False)
    assert len(encoder.encode(TEXTS, progress=False)) == 60


def test_a_clip_shorter_than_the_convolution_is_named() -> None:
    model = tiny_models.classifier("audio", "wav2vec2").wav2vec2
    encoder = Encoder(model, tiny_models.processor("audio", "wav2vec2"))
    inputs = sounds(6)
    inputs[4] = inputs[4][:20]
    with pytest.raises(StitchError, match=r"row 4 \(counted from 0\) cannot be encoded"):
        encoder.encode(inputs, progress=False)


def test_samples_that_are_not_numbers_are_named() -> None:
    model = tiny_models.classifier("audio", "wav2vec2").wav2vec2
    encoder = Encoder(model, tiny_models.processor("audio", "wav2vec2"))
    inputs = sounds(6)
    inputs[2][100] = np.nan
    with pytest.raises(
        StitchError, match=r"row 2 \(counted from 0\) cannot be encoded: .* samples that are not finite"
    ):
        encoder.encode(inputs, progress=False)


@pytest.mark.parametrize("rows", [[3], [3, 40]])
def test_texts_without_a_known_word_are_named(
    rows: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    encoder = Encoder(pico.classifier("Roberta").roberta, pico.tokenizer())
    encoder.encode([*TEXTS, "the xyzzy"], progress=False)
    assert not caplog.records
    texts = [f"xyzzy {'plugh ' * row}" if row in rows else text for row, text in enumerate(TEXTS)]
    assert len(encoder.encode(texts, progress=False)) == len(TEXTS)
    others = " and 1 other" if len(rows) == 2 else ""
    (said,) = {record.message for record in caplog.records}
    assert said.startswith(f"the tokenizer knows no word of row 3 (counted from 0){others}, 'xyzzy plugh")


def test_a_literal_end_token_costs_nothing() -> None:
    encoder, _ = split_classifier(tiny_models.classifier("sequence", "bart"), pico.tokenizer())
    inputs = [*TEXTS[:20], "storm </s> hits the coast", *TEXTS[20:]]
    latents = encoder.encode(inputs, progress=False)
    alone = torch.cat([encoder.encode([text], progress=False) for text in inputs])
    torch.testing.assert_close(latents, alone, rtol=1e-4, atol=1e-4)


def test_a_token_past_the_embeddings_is_named() -> None:
    tokenizer = pico.tokenizer()
    tokenizer.add_tokens([f"new{index}" for index in range(40)])
    encoder = Encoder(pico.classifier("Bert").bert, tokenizer)
    with pytest.raises(
        StitchError, match=r"row 5 \(counted from 0\) .* gives the token 81 and the model has embeddings"
    ):
        encoder.encode([*TEXTS[:5], "storm new39", *TEXTS[5:]], progress=False)


def test_a_latent_that_is_not_finite_is_named(source: Encoder, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source, target_folder, pico.texts(60), progress=False)
    with torch.no_grad():
        source.model.embeddings.word_embeddings.weight[source.processor.convert_tokens_to_ids("lamps")] = torch.inf
    inputs = [*[text.replace("lamps", "light") for text in TEXTS], "the lamps"]
    for encode in (lambda: source.encode(inputs, progress=False), lambda: model.predict(inputs)):
        with pytest.raises(StitchError, match=r"row 60 \(counted from 0\) cannot be encoded: .* not finite"):
            encode()


def vectors(texts: list[str]) -> np.ndarray:
    return np.array([[float(len(text)), float(sum(map(ord, text)))] for text in texts])


def test_a_callable_that_gives_no_number_is_named() -> None:
    def bad(texts: list[str]) -> np.ndarray:
        return np.where(np.array([["bad" in text] for text in texts]), np.nan, vectors(texts))

    with pytest.raises(StitchError, match=r"not finite for row 40 \(counted from 0\).*the 32 inputs before its batch"):
        CallableEncoder(bad, model_id="me/bad").encode([*TEXTS[:40], "bad", *TEXTS[40:]], progress=False)


def test_a_callable_that_raises_goes_on_where_it_failed() -> None:
    seen: list[str] = []

    def bad(texts: list[str]) -> np.ndarray:
        if "bad" in texts:
            raise ValueError("no such word")
        seen.extend(texts)
        return vectors(texts)

    encoder = CallableEncoder(bad, model_id="me/bad")
    inputs = [*TEXTS[:50], "bad", *TEXTS[50:]]
    with pytest.raises(
        StitchError, match=r"fails at row 50 \(counted from 0\): ValueError: no such word; the 48 inputs"
    ):
        encoder.encode(inputs, batch_size=8, progress=False)
    seen.clear()
    latents = encoder.encode(TEXTS, batch_size=8, progress=False)
    assert seen == TEXTS[48:]
    torch.testing.assert_close(latents, torch.from_numpy(vectors(TEXTS)).float())
    encoder.encode(TEXTS[:8], batch_size=8, progress=False)
    assert seen == [*TEXTS[48:], *TEXTS[:8]]


def test_a_callable_that_fails_once_loses_nothing() -> None:
    calls: list[int] = []

    def flaky(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        if len(calls) == 2:
            raise OSError("try again")
        return vectors(texts)

    latents = CallableEncoder(flaky, model_id="me/flaky").encode(TEXTS, progress=False)
    torch.testing.assert_close(latents, torch.from_numpy(vectors(TEXTS)).float())
