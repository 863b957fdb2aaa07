"""Sound: tiny speech encoders as sources and as targets, from samples to the stock pipeline."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForAudioClassification, pipeline

from hf_relstitch import Encoder, Head, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.cli.predict import predict
from hf_relstitch.data.ids import input_ids
from hf_relstitch.data.inputs import load_audio

KINDS = ["wav2vec2", "hubert", "whisper", "audio-spectrogram-transformer"]


def saved(kind: str, folder: Path, **processing: object) -> str:
    """A folder with a tiny audio classifier and its feature extractor."""
    tiny_models.classifier("audio", kind).save_pretrained(folder)
    extractor = tiny_models.processor("audio", kind)
    for name, value in processing.items():
        setattr(extractor, name, value)
    extractor.save_pretrained(folder)
    return str(folder)


def sounds(count: int, *, length: int = 4_000) -> list[np.ndarray]:
    """Chords of different pitch and length."""
    random = np.random.default_rng(0)
    times = np.arange(2 * length) / 16_000
    chords = (np.sin(np.outer(random.uniform(100, 3_000, 3), times)).mean(0) for _ in range(count))
    return [chord[: random.integers(length // 2, length)].astype(np.float32) for chord in chords]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {kind: saved(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_head_of_latents_is_the_models_own_logits(kind: str, folders: dict[str, str]) -> None:
    encoder, head = load_classifier(folders[kind])
    inputs = sounds(5)
    latents = encoder.encode(inputs, batch_size=2, progress=False)
    model = tiny_models.classifier("audio", kind)
    extractor = tiny_models.processor("audio", kind)
    with torch.no_grad():
        own = torch.cat([model(**extractor(one, sampling_rate=16_000, return_tensors="pt")).logits for one in inputs])
    assert encoder.modality == "audio"
    assert own.std(0).min() > 1e-3
    torch.testing.assert_close(head.module(latents), own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_do_not_depend_on_the_batch(kind: str, mask: bool, tmp_path: Path) -> None:
    encoder = Encoder.from_pretrained(saved(kind, tmp_path, return_attention_mask=mask))
    inputs = sounds(5)
    together = encoder.encode(inputs, batch_size=5, progress=False)
    alone = torch.cat([encoder.encode([one], progress=False) for one in inputs])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_mean_is_over_the_frames_that_are_not_padding(folders: dict[str, str]) -> None:
    encoder = Encoder.from_pretrained(folders["wav2vec2"])
    encoder.batching = "padded"  # although its first layers see padding
    short, long = sounds(1)[0][:2_000], sounds(1, length=8_000)[0]
    batch = encoder.processor([short, long], sampling_rate=16_000, padding=True, return_tensors="pt")
    frames = encoder.model(**batch).last_hidden_state[0]
    valid = int(encoder.model._get_feat_extract_output_lengths(len(short)))
    assert valid < len(frames)
    torch.testing.assert_close(encoder.latents(batch)[0], frames[:valid].mean(0))


@pytest.mark.parametrize(("source", "target"), [("wav2vec2", "whisper"), ("whisper", "hubert")])
def test_stitches_saves_loads_and_classifies(source: str, target: str, folders: dict[str, str], tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(folders[source], folders[target], sounds(40), progress=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForAudioClassification.from_pretrained(tmp_path)
    one = sounds(1)[0]
    batch = model.processor(one, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, logits, rtol=1e-5, atol=1e-6)
    answers = pipeline("audio-classification", model=str(tmp_path))(one)
    expected = {tiny_models.LABELS[index]: float(score) for index, score in enumerate(logits.softmax(-1)[0])}
    assert {answer["label"]: answer["score"] for answer in answers} == pytest.approx(expected, abs=1e-5)
    assert "pipeline_tag: audio-classification" in (tmp_path / "README.md").read_text()
    assert model.relative(sounds(3)).values.shape == (3, 40)


def test_an_id_is_that_of_the_samples() -> None:
    first, second = sounds(2)
    assert input_ids([first]).equal(input_ids([first.astype(np.float64)]))
    assert not input_ids([first]).equal(input_ids([second]))
    assert not input_ids([first]).equal(input_ids([first[:-1]]))


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (np.zeros((2, 100), np.float32), r"a float32 array of shape \(2, 100\): expected the samples of one channel"),
        (np.zeros(100, np.int16), "a int16 array.*floats from -1 to 1"),
        (np.zeros(0, np.float32), r"shape \(0,\)"),
    ],
)
def test_refuses_an_array_that_is_no_sound(sound: np.ndarray, message: str) -> None:
    with pytest.raises(StitchError, match=message):
        load_audio(sound)


@pytest.mark.parametrize("rate", [None, 0, -8000, "16000", float("nan"), float("inf")])
def test_a_sound_whose_rate_is_no_rate_is_refused(rate: object) -> None:
    with pytest.raises(StitchError, match=r"has the sampling_rate .*: expected its samples a second"):
        load_audio({"array": sounds(1)[0], "sampling_rate": rate}, sampling_rate=16_000)


def test_a_file_is_read_by_soundfile_where_it_is_installed(tmp_path: Path, folders: dict[str, str]) -> None:
    soundfile = pytest.importorskip("soundfile", reason="pip install soundfile")
    file = tmp_path / "chord.wav"
    soundfile.write(file, sounds(1)[0], 16_000, subtype="FLOAT")
    encoder = Encoder.from_pretrained(folders["wav2vec2"])
    torch.testing.assert_close(encoder.encode([file], progress=False), encoder.encode(sounds(1), progress=False))
    assert input_ids([file]).equal(input_ids(sounds(1)))
    assert len(load_audio(file, sampling_rate=8_000)) == round(len(sounds(1)[0]) / 2)
    file.write_bytes(b"nothing")
    with pytest.raises(StitchError, match="cannot be read as a sound"):
        load_audio(file)


def tone(rate: int, *, pitch: float = 440, seconds: float = 0.4) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(int(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_a_sound_of_another_rate_is_resampled(rate: int, folders: dict[str, str]) -> None:
    sound = load_audio({"array": tone(rate), "sampling_rate": rate}, sampling_rate=16_000)
    assert np.abs(sound - tone(16_000))[1_000:-1_000].max() < 1e-2
    encoder = Encoder.from_pretrained(folders["wav2vec2"])
    pair = [{"array": tone(rate), "sampling_rate": rate}, {"array": tone(16_000), "sampling_rate": 16_000}]
    latents = encoder.encode(pair, progress=False)
    torch.testing.assert_close(latents[0], latents[1], rtol=0.05, atol=0.05)
    with pytest.raises(StitchError, match="a dict of array: expected array and sampling_rate"):
        load_audio({"array": tone(rate)})


def test_arrays_without_a_rate_are_refused_where_the_encoders_differ(folders: dict[str, str], tmp_path: Path) -> None:
    other = saved("wav2vec2", tmp_path / "slow", sampling_rate=8_000)
    with pytest.raises(StitchError, match=r"row 0 .* is an array, and the two encoders take 16000 and 8000 samples"):
        RelativeStitcher.from_parts(other, folders["wav2vec2"], sounds(40), progress=False)
    rated = [{"array": sound, "sampling_rate": 16_000} for sound in sounds(40)]
    assert RelativeStitcher.from_parts(other, folders["wav2vec2"], rated, progress=False).config.num_anchors == 40


def test_one_logit_is_never_a_softmax_over_one(folders: dict[str, str], tmp_path: Path) -> None:
    encoder, _ = load_classifier(folders["wav2vec2"])
    layer = torch.nn.Linear(encoder.encode(sounds(2), progress=False).shape[1], 1)
    for problem_type, is_answer in ((None, False), ("multi_label_classification", True)):
        head = Head(layer, {0: "speech"}, problem_type)
        model = RelativeStitcher.from_parts(folders["wav2vec2"], encoder, sounds(60), head=head, progress=False)
        model.save_pretrained(tmp_path / str(problem_type))
        ((answer,),) = pipeline("audio-classification", model=str(tmp_path / str(problem_type)))(sounds(1))
        (logit,) = model.predict(sounds(1))
        assert answer["score"] == pytest.approx(float(logit.sigmoid() if is_answer else logit), abs=1e-4)
        of = "values are expected to explain" if not is_answer else "of yes-or-no answers"
        assert of in model.report["verdict"]["reason"]


def test_predict_resamples_files(tmp_path: Path, folders: dict[str, str]) -> None:
    soundfile = pytest.importorskip("soundfile", reason="pip install soundfile")
    model = RelativeStitcher.from_parts(folders["wav2vec2"], folders["whisper"], sounds(40), progress=False)
    model.save_pretrained(tmp_path / "model")
    for rate in (16_000, 44_100):
        soundfile.write(tmp_path / f"{rate}.wav", sounds(1)[0], rate)
    (answer,) = predict(str(tmp_path / "model"), [str(tmp_path / "16000.wav")])
    assert answer["label"] in tiny_models.LABELS.values()
    (answer,) = predict(str(tmp_path / "model"), [str(tmp_path / "44100.wav")])
    assert answer["label"] in tiny_models.LABELS.values()


def test_a_file_without_soundfile_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(StitchError, match="needs soundfile: pip install soundfile, or give the samples"):
        load_audio(Path("chord.wav"))


def test_refuses_texts_and_pictures_for_sounds(folders: dict[str, str]) -> None:
    encoder = Encoder.from_pretrained(folders["hubert"])
    with pytest.raises(
        StitchError, match=r"the model takes numpy arrays of sound.*what came in row 0 .* is a str: give it its own"
    ):
        encoder.encode(["storm"], progress=False)


def test_refuses_what_another_processor_made(stitched: RelativeStitcher) -> None:
    with pytest.raises(StitchError, match="the model takes texts, and what came is pixel_values"):
        stitched(pixel_values=torch.zeros(1, 3, 8, 8))
    with pytest.raises(StitchError, match="the model takes texts, and what came is nothing"):
        stitched()
    with pytest.raises(StitchError, match="what came is attention_mask, inputs_embeds: make its inputs"):
        stitched(inputs_embeds=torch.zeros(1, 3, 16), attention_mask=torch.ones(1, 3))
