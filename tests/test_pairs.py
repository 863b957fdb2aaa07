"""Anchors as pairs: two models that take no common input, one id for both sides of a pair."""

import json
from pathlib import Path

import hypothesis
import numpy as np
import pico
import pytest
import torch
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError
from hf_relstitch.cli.recommend import recommend
from hf_relstitch.data import ids
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.reading import draw_rows, read_inputs

WORDS = st.text(min_size=1, max_size=5)


def pictures(count: int) -> list[Image.Image]:
    """Different gradients of 8 × 8 pixels."""
    return [Image.linear_gradient("L").rotate(7 * index).resize((8, 8)) for index in range(count)]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return pico.saved("ViT", tmp_path_factory.mktemp("image") / "tiny-vit", seed=3)


def test_image_source_on_a_text_head(image_folder: str, target_folder: str, tmp_path: Path) -> None:
    pairs = list(zip(pictures(40), pico.texts(40), strict=True))
    model = RelativeStitcher.from_parts(image_folder, target_folder, pairs, alpha=1.0, ridge=1e-6, progress=False)
    assert model.config.modality == "image"
    order = input_ids(pairs).argsort()
    assert model.anchors.ids.equal(input_ids(pairs)[order])
    source = Encoder.from_pretrained(image_folder).encode(pictures(40), progress=False)
    torch.testing.assert_close(model.anchors.source, source[order])
    model.save_pretrained(tmp_path)
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    batch = model.processor(images=[one.convert("RGB") for one in pictures(3)], return_tensors="pt")
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_each_side_takes_its_own_of_a_pair_and_rows_stay_paired(image_folder: str, source: Encoder) -> None:
    """Shuffled rows, and a picture that stands twice, still meet their own texts."""
    images, texts = pictures(40), pico.texts(40)
    images[7] = images[5]
    pairs = list(zip(images, texts, strict=True))
    ours = AnchorSet.encode(Encoder.from_pretrained(image_folder), pairs, side="first", progress=False)
    theirs = AnchorSet.encode(source, pairs[::-1], side="second", progress=False)
    assert (len(ours), len(theirs)) == (39, 40)
    assert ours.inputs == theirs.inputs
    _, paired = ours.intersect(theirs)
    expected = source.encode([text for row, text in enumerate(texts) if row != 7], progress=False)
    torch.testing.assert_close(paired.latents, expected)


def test_anchors_are_chosen_among_pairs(image_folder: str, target_folder: str) -> None:
    pairs = list(zip(pictures(48), pico.texts(48), strict=True))
    model = RelativeStitcher.from_parts(image_folder, target_folder, pairs, num_anchors=33, progress=False)
    assert set(model.anchors.ids.tolist()) < set(input_ids(pairs).tolist())
    assert len(model.anchors.ids) == 33


def test_an_encoder_and_a_layer_are_a_target_of_pairs_too(image_folder: str, source: Encoder) -> None:
    pairs = list(zip(pico.texts(40), pictures(40), strict=True))
    target = Encoder.from_pretrained(image_folder)
    model = RelativeStitcher.from_parts(source, target, pairs, head=nn.Linear(16, 3), progress=False)
    assert model.config.modality == "text"
    order = input_ids(pairs).argsort()
    torch.testing.assert_close(model.anchors.target, target.encode(pictures(40), progress=False)[order])


def test_swapped_pairs_say_which_comes_first(image_folder: str, target_folder: str) -> None:
    swapped = list(zip(pico.texts(40), pictures(40), strict=True))
    message = r"source takes PIL images .* came in row 0 \(counted from 0\) and 39 others is a str.*\(what the source"
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_parts(image_folder, target_folder, swapped, progress=False)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_wrong_kind_on_either_side_is_refused_before_anything_is_encoded(
    side: str, source: Encoder, image_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong input in the middle is enough, and the source's kind is known before its weights are read."""
    pairs: list[tuple[object, object]] = list(zip(pictures(40), pico.texts(40), strict=True))
    pairs[17] = (pico.texts(1)[0], "storm") if side == "source" else (pictures(1)[0], 3)
    encoded: list[object] = []
    monkeypatch.setattr(Encoder, "encode", lambda self, inputs, **_: encoded.append(inputs))
    message = f"the {side} takes {'PIL images' if side == 'source' else 'texts'}.* and what came in row 17 .* is an? "
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_parts(image_folder, source, pairs, head=nn.Linear(16, 3), progress=False)
    assert not encoded


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ({3: None}, r"the source's inputs are empty in row 3 \(counted from 0\): fill in or remove them"),
        ({3: None, 9: float("nan")}, r"the source's inputs are empty in row 3 \(counted from 0\) and 1 other: fill in"),
        (dict.fromkeys(range(3, 23)), r"inputs are empty in row 3 \(counted from 0\) and 19 others: fill in or remove"),
        ({4: 7, 5: 2.5}, r"takes texts and what came in row 4 .* and 1 other is a float or an int: .* kind of input$"),
    ],
)
def test_empty_cells_and_numbers_among_anchors_say_where_they_are(
    strange: dict[int, object], message: str, source: Encoder, target_folder: str
) -> None:
    anchors = [strange.get(row, text) for row, text in enumerate(pico.texts(40))]
    with pytest.raises(StitchError, match=message.replace("source's", "target's")):
        recommend(target_folder, [target_folder], anchors, progress=False)
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_parts(source, target_folder, anchors, progress=False)


@pytest.mark.parametrize("broken", ["bad \ud800 text", ("fine", "bad \ud800 text")])
def test_a_text_that_is_no_unicode_says_where_it_is(broken: object) -> None:
    message = r"the text in row 2 \(counted from 0\) has half a character, '\\ud800', .*: read it with its own"
    with pytest.raises(StitchError, match=message):
        input_ids([*pico.texts(2), broken])


def test_an_empty_cell_of_a_table_is_told_by_its_row_there(tmp_path: Path) -> None:
    rows = [None if row % 2 else {"text": text} for row, text in enumerate(pico.texts(400))]
    table = tmp_path / "news.jsonl"
    table.write_text("\n".join(json.dumps(row or {"text": None}) for row in rows))
    with pytest.raises(StitchError, match=r"column 'text' of .*news\.jsonl is empty in row (\d+) ") as caught:
        read_inputs(str(table), column="text", count=100)
    drawn = [row for row in draw_rows(400, 100) if row % 2]
    assert f"row {drawn[0]} (counted from 0) and {len(drawn) - 1} others: fill in" in str(caught.value)


def test_chosen_anchors_are_encoded_and_hashed_once_a_side(
    image_folder: str, source: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target encodes all that anchors are chosen among, the source those that were."""
    pairs = list(zip(pictures(48), pico.texts(48), strict=True))
    encoded: list[int] = []
    hashed: list[int] = []
    encode, one_id = Encoder.encode, ids._input_id
    monkeypatch.setattr(Encoder, "encode", lambda s, given, **_: encoded.append(len(given)) or encode(s, given, **_))
    monkeypatch.setattr(ids, "_input_id", lambda one, *_: hashed.append(isinstance(one, tuple)) or one_id(one, *_))
    RelativeStitcher.from_parts(
        image_folder, source, pairs, head=nn.Linear(16, 3), num_anchors=33, alpha=0.5, progress=False
    )
    assert (encoded, sum(hashed)) == ([48, 33], 48)


def test_texts_alone_for_an_image_source_say_what_to_give(image_folder: str, target_folder: str) -> None:
    with pytest.raises(StitchError, match=r"takes PIL images .* and what came in row 0 .* is a str.*are pairs"):
        RelativeStitcher.from_parts(image_folder, target_folder, pico.texts(40), progress=False)


@pytest.mark.parametrize(
    ("given", "side", "message"),
    [
        ([("a", "b"), ("c", "d")], None, "the inputs are pairs: say with side='first' or side='second'"),
        (["a", "b"], "first", "side is 'first' and the inputs are not pairs"),
        ([("a", "b"), "c"], "first", "1 of 2 inputs are pairs, row 0 is one: give pairs only, or none"),
        ([("a", "b"), ("c", "d", "e")], "first", "row 1 is a tuple of 3: expected pairs"),
        ([("a", "b")], "source", "side is 'source': expected 'first' or 'second'"),
        ([("a", 3)], "first", "an input is a int: expected a text"),
    ],
)
def test_refuses_what_are_no_pairs(given: list[object], side: str | None, message: str, source: Encoder) -> None:
    with pytest.raises(StitchError, match=message):
        AnchorSet.encode(source, given, side=side, progress=False)


def test_anchors_that_are_no_list_are_refused_everywhere(source: Encoder, target_folder: str) -> None:
    """A text is a sequence too, of letters, and a generator could be read once only."""
    for stitch in (
        lambda anchors: AnchorSet.encode(source, anchors, progress=False),
        lambda anchors: RelativeStitcher.from_parts(source, target_folder, anchors, progress=False),
        lambda anchors: recommend(target_folder, ["none"], anchors, progress=False),
    ):
        with pytest.raises(StitchError, match=r"the inputs are one text, 'the quick.*where a list of inputs is exp"):
            stitch("the quick brown fox jumps over a lazy dog, and 0123456789 sheep")
        with pytest.raises(StitchError, match="the inputs are a generator, which is read once: give a list of them"):
            stitch(text for text in pico.texts(40))


@hypothesis.given(WORDS, WORDS, WORDS, WORDS)
def test_a_pair_has_its_own_id(a: str, b: str, c: str, d: str) -> None:
    ids = [int(one) for one in input_ids([(a, b), (c, d), a, b])]
    assert (ids[0] == ids[1]) == ((a, b) == (c, d))
    assert ids[0] not in ids[2:]
    assert int(input_ids([(a, b)], key="secret")) != ids[0]


def test_a_pair_of_a_sound_and_its_transcript_has_an_id() -> None:
    sound = np.sin(np.arange(100, dtype=np.float32))
    assert input_ids([(sound, "hello")]).equal(input_ids([(sound.astype(np.float64), "hello")]))
    assert not input_ids([(sound, "hello")]).equal(input_ids([(sound, "hallo")]))
