"""Loading: what lacks a file, a weight or a word is refused by name."""

from pathlib import Path

import pico
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast

from hf_relstitch import AnchorSet, Encoder, RelativeStitcher, StitchError, load_classifier


@pytest.mark.parametrize("architecture", ["Bert", "Roberta", "GPT2", "DistilBert", "MPNet"])
def test_a_folder_without_tokenizer_files_is_refused(architecture: str, tmp_path: Path) -> None:
    pico.classifier(architecture).save_pretrained(tmp_path)
    for load in (Encoder.from_pretrained, load_classifier):
        with pytest.raises(StitchError, match=r"lacks tokenizer.json \(or .*(vocab.txt|vocab.json)"):
            load(str(tmp_path))


@pytest.mark.parametrize("kind", ["t5", "llama", "xlm-roberta", "esm", "xlnet"])
def test_other_folders_without_tokenizer_files_are_refused(kind: str, tmp_path: Path) -> None:
    tiny_models.classifier("sequence", kind).save_pretrained(tmp_path)
    with pytest.raises(StitchError, match=r"(lacks|has no) tokenizer.json"):
        Encoder.from_pretrained(str(tmp_path))


def test_a_tokenizer_of_far_fewer_tokens_is_refused() -> None:
    model = pico.classifier("Bert", vocab_size=4_000).bert
    with pytest.raises(StitchError, match="has 4000 token embeddings and its tokenizer knows 42 tokens"):
        Encoder(model, pico.tokenizer())


def tokenizer_of(kind: str, *, size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of this many tokens, none of them of a word."""
    special = {"<unk>": 0, "<pad>": 1}
    tokens = special | {f"w{index}" if kind == "WordLevel" else chr(0xA000 + index): index for index in range(2, size)}
    options = {} if kind == "without unknown" else {"unk_token": "<unk>"}
    made = models.WordLevel(tokens, "<unk>") if kind == "WordLevel" else models.BPE(tokens, [], **options)
    whole = Tokenizer(made)
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=whole, pad_token="<pad>", **options)


@pytest.mark.parametrize("kind", ["WordLevel", "BPE", "without unknown"])
def test_a_tokenizer_that_knows_no_words_is_refused(kind: str) -> None:
    model = pico.classifier("Bert", vocab_size=1_000).bert
    with pytest.raises(StitchError, match=r"100% of the tokens that BertModel's tokenizer makes .*\.json there"):
        Encoder(model, tokenizer_of(kind, size=1_000))


def test_a_tokenizer_that_knows_few_words_of_the_anchors_is_refused(source: Encoder, target_folder: str) -> None:
    anchors = [f"{text} {text[::-1]} weiter fort {row}" for row, text in enumerate(pico.texts(40))]
    with pytest.raises(StitchError, match=r"5\d% of the tokens that tiny-\S+ tokenizer makes of the inputs"):
        RelativeStitcher.from_parts(source, target_folder, anchors, progress=False)
    assert len(AnchorSet.encode(source, [f"{text} weiter" for text in pico.texts(40)], progress=False)) == 40


def drop(folder: Path, *names: str) -> None:
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if name not in names}, file, {"format": "pt"})


LAYER = "encoder.layer.1.output.dense.weight"


def test_an_encoder_without_a_layer_is_refused(tmp_path: Path) -> None:
    pico.classifier("Bert").bert.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    drop(tmp_path, LAYER)
    with pytest.raises(StitchError, match=f"no trained weights for {LAYER}, which its latents are made by"):
        Encoder.from_pretrained(str(tmp_path))


def test_an_encoder_without_any_weights_of_its_own_is_refused(tmp_path: Path) -> None:
    pico.classifier("Bert").bert.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StitchError, match="no trained weights for embeddings"):
        Encoder.from_pretrained(str(tmp_path))


def test_a_pooler_that_is_not_used_may_be_missing(tmp_path: Path) -> None:
    model = pico.classifier("Bert").bert
    model.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    drop(tmp_path, "pooler.dense.weight", "pooler.dense.bias")
    encoder = Encoder.from_pretrained(str(tmp_path))
    assert encoder.encode(pico.texts(3), progress=False).isfinite().all()
    assert encoder.model.state_dict()["pooler.dense.weight"].isfinite().all()
    with pytest.raises(StitchError, match=r"no trained weights for pooler.dense.bias.*choose another pooling"):
        Encoder.from_pretrained(str(tmp_path), pooling="pooler")


def test_weights_of_other_shapes_are_refused(tmp_path: Path) -> None:
    pico.saved("Bert", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["bert." + LAYER] = tensors["bert." + LAYER][:, :-1].contiguous()
    save_file(tensors, file, {"format": "pt"})
    for load in (Encoder.from_pretrained, load_classifier):
        with pytest.raises(StitchError, match="cannot be loaded as a"):
            load(str(tmp_path))
    with pytest.raises(RuntimeError):
        AutoModel.from_pretrained(tmp_path)
