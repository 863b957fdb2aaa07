"""Encoder: the same latents however inputs are batched or spread over processes, and clear refusals."""

from pathlib import Path
from threading import Event

import numpy as np
import pandas
import pico
import pytest
import torch
from PIL import ExifTags, Image
from torch import nn

from hf_relstitch import AnchorSet, Encoder, StitchError, load_classifier
from hf_relstitch.data.inputs import load_image
from hf_relstitch.encoders.devices import prefetched
from hf_relstitch.hub.repo import locate


def test_encode_gives_rows_in_the_order_of_the_inputs(source: Encoder) -> None:
    inputs = pico.texts(30)
    together = source.encode(inputs, batch_size=7, progress=False)
    alone = torch.cat([source.encode([one], progress=False) for one in inputs])
    assert together.shape == (30, 16)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_encode_is_the_mean_of_the_models_own_hidden_states(source: Encoder) -> None:
    batch = source.processor(["storm hits the coast"], return_tensors="pt")
    expected = source.model(**batch).last_hidden_state.mean(1)
    torch.testing.assert_close(source.encode(["storm hits the coast"], progress=False), expected)


def test_encode_keeps_no_gradient_and_freezes_the_model(source: Encoder) -> None:
    assert not source.encode(["storm"], progress=False).requires_grad
    assert not any(parameter.requires_grad for parameter in source.model.parameters())
    assert not source.model.training


@pytest.mark.parametrize(("kind", "inputs"), [("ViT", ["storm"]), ("Bert", [Path("storm.png")]), ("Bert", [3])])
def test_encode_refuses_inputs_of_another_kind(tmp_path: Path, kind: str, inputs: list[object]) -> None:
    encoder = Encoder.from_pretrained(pico.saved(kind, tmp_path))
    message = r"the model takes (texts|PIL images or Paths.*) and what came in row 0.* is an? \w+: .* of input$"
    with pytest.raises(StitchError, match=message):
        encoder.encode(inputs, progress=False)


def test_encode_names_the_row_of_all_inputs_whatever_batch_it_is_in(source: Encoder) -> None:
    with pytest.raises(StitchError, match=r"the model's inputs are empty in row 5 \(counted from 0\): fill in"):
        source.encode([*pico.texts(5), None], batch_size=2, progress=False)


def test_what_comes_next_is_made_meanwhile_and_no_more_than_that() -> None:
    """The second is made before the first is let go, the third only then; what fails does so in its turn."""
    begun = [Event() for _ in range(4)]
    used = []

    def make(number: int) -> int:
        begun[number].set()
        if number == 3:
            raise StitchError("three is too many")
        return number * 10

    def use() -> None:
        for number, made in prefetched(make, range(4)):
            assert begun[number + 1].wait(10)
            assert not any(event.is_set() for event in begun[number + 2 :])
            used.append((number, made))

    with pytest.raises(StitchError, match="three is too many"):
        use()
    assert used == [(0, 0), (1, 10), (2, 20)]


def test_encode_refuses_no_inputs(source: Encoder) -> None:
    with pytest.raises(StitchError, match="there are no inputs to encode"):
        source.encode([])


def test_encode_refuses_a_file_that_is_no_image(tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(pico.saved("ViT", tmp_path))
    with pytest.raises(StitchError, match=r"config\.json cannot be read as an image"):
        encoder.encode([tmp_path / "config.json"], progress=False)


def test_a_plain_module_is_an_encoder_too() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(3 * 8 * 8, 5)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.project(pixel_values.flatten(1))

    encoder = Encoder(Flat(), pico.image_processor(), model_id="me/flat")
    assert (encoder.modality, encoder.pooling, encoder.provenance.model_id) == ("image", "none", "me/flat")


def test_refuses_a_processor_that_is_none() -> None:
    with pytest.raises(StitchError, match="the processor is a function: expected a tokenizer, an image processor or a"):
        Encoder(nn.Linear(2, 2), pico.texts)


def test_provenance_tells_models_of_one_name_apart_by_their_weights(tmp_path: Path) -> None:
    first = Encoder.from_pretrained(pico.saved("Bert", tmp_path / "one" / "bert", seed=1))
    again = Encoder.from_pretrained(str(tmp_path / "one" / "bert"))
    other = Encoder.from_pretrained(pico.saved("Bert", tmp_path / "two" / "bert", seed=2))
    assert first.provenance.model_id == other.provenance.model_id == "bert"
    assert first.provenance == again.provenance
    assert "revision" in first.provenance.difference(other.provenance)


def test_refuses_a_pooler_that_was_never_trained(target_folder: str) -> None:
    with pytest.raises(StitchError, match=r"no trained weights for pooler\.dense\.bias"):
        Encoder.from_pretrained(target_folder, pooling="pooler")


def test_refuses_a_place_where_no_model_is(tmp_path: Path) -> None:
    with pytest.raises(StitchError, match=r"^there is no folder /.*nothing: check the path"):
        Encoder.from_pretrained(str(tmp_path / "nothing"))


def test_what_is_a_file_or_reads_as_a_path_is_not_asked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_relstitch.hub.repo.hf_hub_download", lambda *_, **__: pytest.fail("the Hub was asked"))
    monkeypatch.chdir(tmp_path)
    Path("anchors.txt").write_text("storm")
    for place in ("anchors.txt", "./anchors.txt", tmp_path / "anchors.txt"):
        with pytest.raises(StitchError, match=r"anchors\.txt is a file: give a folder or a Hub id"):
            locate(place)
    for place in ("./nosuch", "../nosuch", "~/nosuch", tmp_path / "nosuch"):
        with pytest.raises(StitchError, match=f"^there is no folder {place}: check the path"):
            locate(place)


def test_refuses_a_model_of_another_modality(tmp_path: Path) -> None:
    from transformers import PatchTSTConfig, PatchTSTModel

    PatchTSTModel(PatchTSTConfig(d_model=8, num_attention_heads=2, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(StitchError, match="takes past_values: supported are input_ids, pixel_values, input_values"):
        Encoder.from_pretrained(str(tmp_path))


def test_loads_with_the_dtype_that_is_asked_for(source_folder: str) -> None:
    encoder = Encoder.from_pretrained(source_folder, dtype=torch.bfloat16)
    assert encoder.encode(["storm"], progress=False).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["Roberta", "Bert"])
def test_a_text_longer_than_the_positions_is_cut_though_the_tokenizer_knows_no_limit(tmp_path: Path, kind: str) -> None:
    pico.saved(kind, tmp_path)
    tokenizer = pico.tokenizer()
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(tmp_path)
    text = " ".join(pico.texts(200))
    for encoder in (Encoder.from_pretrained(str(tmp_path)), load_classifier(str(tmp_path))[0]):
        assert encoder.encode([text], progress=False).isfinite().all()


def test_an_image_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    pixels = torch.arange(8 * 8 * 3, dtype=torch.uint8).reshape(8, 8, 3).numpy()
    image = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # shown rotated to the right
    image.save(tmp_path / "turned.png", exif=turned)
    upright = image.transpose(Image.Transpose.ROTATE_270)
    assert load_image(tmp_path / "turned.png").tobytes() == upright.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "unit"])
def test_pictures_of_more_bits_are_scaled_by_their_range(mode: str, tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(256, size=(20, 20), dtype=np.uint8)
    grey[0, 0] = 255
    scaled = {"I": np.int32, "F": np.float32}
    if mode == "unit":
        image = Image.fromarray((grey / 255).astype(np.float32))
    elif mode in scaled:
        image = Image.fromarray((grey * 257.0).astype(scaled[mode]))
    else:
        numbers = (grey * 257.0).astype(">u2" if mode == "I;16B" else "<u2")
        image = Image.frombytes(mode, (20, 20), numbers.tobytes())
    expected = Image.fromarray(grey).convert("RGB").tobytes()
    assert load_image(image).tobytes() == expected
    if mode == "I;16":
        image.save(tmp_path / "deep.png")
        assert load_image(tmp_path / "deep.png").tobytes() == expected


def test_numbers_of_no_known_range_are_refused() -> None:
    for values in (np.array([[1e6]]), np.array([[-1.0]]), np.array([[np.nan]])):
        with pytest.raises(StitchError, match="an image of mode F has numbers from"):
            load_image(Image.fromarray(values.astype(np.float32)))


def test_models_of_one_channel_get_one(tmp_path: Path) -> None:
    processor = pico.image_processor()
    processor.image_mean, processor.image_std = [0.5], [0.5]
    encoder = Encoder(pico.classifier("ViT", num_channels=1).vit, processor)
    latents = encoder.encode([Image.linear_gradient("L"), Image.linear_gradient("L").convert("RGB")], progress=False)
    torch.testing.assert_close(latents[0], latents[1])


def test_a_series_is_read_by_place_and_not_by_its_index(source: Encoder) -> None:
    texts = pandas.Series(pico.texts(60)).sample(frac=1, random_state=0)
    latents = source.encode(texts, progress=False)
    assert torch.equal(latents, source.encode(list(texts), progress=False))
    anchors, expected = (AnchorSet.encode(source, one, progress=False) for one in (texts[:40], list(texts)[:40]))
    assert torch.equal(anchors.latents, expected.latents)
