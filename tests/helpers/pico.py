"""Tiny random classifiers of many architectures, with a tokenizer or an image processor, built offline."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, ViTImageProcessor

from hf_relstitch.core.translation import Translation

WORDS = (
    "storm hits the northern coast and harbour is closed until morning a quiet day for trade ships sail on river "
    "bread rises slowly in warm kitchens while markets open early children read old books by light of lamps"
).split()
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {
    "Bert": TINY,
    "Roberta": TINY,
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
    "Electra": TINY | {"embedding_size": 16},
    "MPNet": TINY,
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 2},
}
IMAGE = {
    "ViT": TINY | {"image_size": 8, "patch_size": 4},
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
}
LABELS = {0: "calm", 1: "stormy", 2: "closed"}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with padding at 1 as RoBERTa wants it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=32,
        model_input_names=["input_ids", "attention_mask"],
    )


def image_processor() -> ViTImageProcessor:
    """8 × 8 images."""
    return ViTImageProcessor(size={"height": 8, "width": 8})


def classifier(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random classifier of three classes, with weights large enough for logits to differ from input to input."""
    torch.manual_seed(seed)
    options = {"id2label": LABELS} | changes
    if architecture in TEXT:
        limits = {"vocab_size": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        config = getattr(transformers, f"{architecture}Config")(**TEXT[architecture] | limits | options)
        model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    else:
        config = getattr(transformers, f"{architecture}Config")(**IMAGE[architecture] | options)
        model = getattr(transformers, f"{architecture}ForImageClassification")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name.lower():
                parameter.normal_(std=0.3)
    return model.eval()


def processor(architecture: str) -> Any:
    """The tokenizer or image processor of an architecture."""
    return tokenizer() if architecture in TEXT else image_processor()


def saved(architecture: str, folder: Path, *, seed: int = 0, **changes: Any) -> str:
    """A folder with a classifier and its processor."""
    classifier(architecture, seed=seed, **changes).save_pretrained(folder)
    processor(architecture).save_pretrained(folder)
    return str(folder)


def texts(count: int, *, seed: int = 0) -> list[str]:
    """Different word salads of 3 to 12 words."""
    generator = torch.Generator().manual_seed(seed)
    salads: dict[str, None] = {}
    while len(salads) < count:
        length = int(torch.randint(3, 13, (), generator=generator))
        rows = torch.randint(len(WORDS), (length,), generator=generator).tolist()
        salads[" ".join(WORDS[row] for row in rows)] = None
    return list(salads)


def translation(dim: int) -> Translation:
    """A random translation between two spaces of one width, always alike."""
    made = Translation(dim, dim, norm="keep")
    generator = torch.Generator().manual_seed(0)
    made.weight, made.bias = torch.randn(dim, dim, generator=generator), torch.randn(dim, generator=generator)
    made.centre = torch.zeros(dim)
    return made


def logits_by_hand(model: Any, head: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """What a stitched model has to give for source latents: the head of their translation, and the readout if any."""
    with torch.no_grad():
        logits = head(model.translate(latents))
        if model.readout is not None:
            logits = logits + model.readout(latents)
    return logits / model.config.logit_temperature
