"""The Python snippets of the README and the docs run, with a Hub on loopback that has tiny models of the same names."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lancedb
import numpy as np
import pandas as pd
import pico
import pytest
import soundfile
import torch
import transformers
from datasets import Dataset
from hub_server import HubServer
from huggingface_hub import HfApi
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_callables import Hidden, exported
from test_docs import PAGES, blocks

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, bulk, load_classifier
from hf_relstitch.data.provenance import Provenance

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of other libraries; what is tested is that the snippet runs
]
NOT_HERE = ("setfit", "TorchAoConfig", "langchain_huggingface")
"""What only snippets name that need packages which the tests do not install; these are left out."""
ENCODERS = ("sentence-transformers/all-MiniLM-L6-v2", "BAAI/bge-small-en-v1.5", "alice/encoder", "alice/new-encoder")
ENCODERS += ("alice/old-encoder", "alice/german-encoder")
CLASSIFIERS = ("mpnet-news-classifier", "english-classifier", "roberta-news", "classifier")


def upload(hub: HubServer, name: str, folder: Path) -> None:
    hub.put_files(name, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})


def saved(model: Any, processor: Any, folder: Path) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def sizes(**changes: Any) -> dict[str, Any]:
    return pico.TINY | {"vocab_size": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} | changes


def sequence(labels: list[str], folder: Path) -> Path:
    config = transformers.RobertaConfig(**sizes(id2label=dict(enumerate(labels))))
    return saved(transformers.RobertaForSequenceClassification(config), pico.tokenizer(), folder)


def tokens(folder: Path) -> Path:
    config = transformers.RobertaConfig(**sizes(id2label={0: "O", 1: "B-PER", 2: "I-PER"}))
    return saved(transformers.RobertaForTokenClassification(config), pico.tokenizer(), folder)


def sounds(folder: Path, *, classifier: bool) -> Path:
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
        conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_feat_extract_layers=2, id2label={0: "yes", 1: "no"}, classifier_proj_size=8,
    )  # fmt: skip
    kind = transformers.Wav2Vec2ForSequenceClassification if classifier else transformers.Wav2Vec2Model
    return saved(kind(config), transformers.Wav2Vec2FeatureExtractor(), folder)


def clip(folder: Path) -> Path:
    config = transformers.CLIPConfig(
        text_config=sizes(max_position_embeddings=32),
        vision_config=pico.TINY | {"image_size": 8, "patch_size": 4},
        projection_dim=16,
    )
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(size=8, crop_size=8), pico.tokenizer())
    return saved(transformers.CLIPModel(config), processor, folder)


@pytest.fixture
def models(hub: HubServer, tmp_path: Path) -> HubServer:
    """The Hub with all models that the pages name."""
    for index, name in enumerate(ENCODERS):
        upload(hub, name, Path(pico.saved("Bert", tmp_path / f"encoder-{index}")))  # one space, so that a search finds
    for index, name in enumerate(CLASSIFIERS):
        upload(hub, f"alice/{name}", Path(pico.saved("Roberta", tmp_path / name, seed=50 + index)))
    inference = ["entailment", "neutral", "contradiction"]
    for name in ("alice/mpnet-inference", "alice/mpnet-nli"):
        upload(hub, name, sequence(inference, tmp_path / name))
    upload(hub, "cross-encoder/my-reranker", sequence(["relevance"], tmp_path / "reranker-target"))
    upload(hub, "alice/mpnet-entities", tokens(tmp_path / "entities"))
    upload(hub, "facebook/wav2vec2-base", sounds(tmp_path / "wav2vec2", classifier=False))
    upload(hub, "alice/hubert-keywords", sounds(tmp_path / "keywords", classifier=True))
    upload(hub, "facebook/dinov2-small", Path(pico.saved("ViT", tmp_path / "dino", seed=3)))
    upload(hub, "alice/vit-classifier", Path(pico.saved("ResNet", tmp_path / "vit", seed=4)))
    upload(hub, "openai/clip-vit-base-patch32", clip(tmp_path / "clip"))
    return hub


def of_readme(hub: HubServer) -> dict[str, Any]:
    rows = "\n".join(["text,label", *(f"{text},0" for text in pico.texts(100))])
    hub.put_files("fancyzhx/ag_news", {"test.csv": rows.encode()}, repo_type="dataset")
    return {}


def of_what_one_has() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    Path("photos").mkdir()
    Path("clips").mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(f"photos/{index}.jpg")
        soundfile.write(f"clips/{index}.wav", rng.normal(size=4000) / 4, 16000)
    texts = pico.texts(100)
    latents = torch.nn.functional.normalize(Encoder.from_pretrained("alice/old-encoder").encode(texts))
    client = SimpleNamespace(embed=lambda inputs: [[len(one), *map(ord, f"{one:8.8}")] for one in inputs])
    return {
        "texts": texts,
        "classifier": LogisticRegression().fit(latents.numpy(), np.arange(100) % 2),
        "client": client,
        "fitted": make_pipeline(StandardScaler(), LogisticRegression()).fit(client.embed(texts), np.arange(100) % 2),
        "german_texts": pico.texts(100, seed=1),
        "english_texts": texts,
        "rows": list(zip(texts, pico.texts(100, seed=1), strict=True)),
        "sentences": texts,
    }


def of_export() -> dict[str, Any]:
    new, old = (
        AnchorSet.encode(Encoder.from_pretrained(f"alice/{age}-encoder"), pico.texts(100)) for age in ("new", "old")
    )
    to_old = bulk.translation_between(new, old, translates="queries")
    folder = Path(to_old.after("alice/new-encoder", folder="made") and "made")
    HfApi().create_repo("alice/new-in-old-space")
    HfApi().upload_folder(repo_id="alice/new-in-old-space", folder_path=folder)
    source = Encoder.from_pretrained(pico.saved("DistilBert", Path("distilbert")), pooling="cls")
    anchors = {"new_anchors": new, "old_anchors": old}
    return anchors | {"source": source, "translation_between": bulk.translation_between}


def of_libraries() -> dict[str, Any]:
    texts = pico.texts(20)
    model = RelativeStitcher.from_parts("alice/encoder", "alice/classifier", pico.texts(100))
    model.push_to_hub("alice/stitched")
    batch = model.processor(texts, padding=True)
    rows = [{name: batch[name][row] for name in batch} | {"labels": row % 3} for row in range(20)]
    return {"labelled": rows, "data": Dataset.from_dict({"text": texts, "label": [row % 3 for row in range(20)]})}


def of_bulk() -> dict[str, Any]:
    texts, names = pico.texts(100), ("old-encoder", "new-encoder")
    old, new = (Encoder.from_pretrained(f"alice/{name}").encode(texts).numpy() for name in names)
    rows = [{"id": row, "vector": old[row], "text": texts[row]} for row in range(100)]
    table = lancedb.connect("lancedb-folder").create_table("docs", rows)
    given = {"old_vectors": old, "new_vectors": new, "table": table, "vectors": old[:3], "queries": texts[:3]}
    for age, vectors in (("old", old), ("new", new)):
        given |= {f"{age}_queries": vectors[:30], f"{age}_documents": vectors[30:]}
    return given


def of_heads() -> dict[str, Any]:
    return {
        "make_pipeline": make_pipeline,
        "StandardScaler": StandardScaler,
        "MLPClassifier": MLPClassifier,
        "latents": np.random.default_rng(0).normal(size=(60, 16)),
        "labels": np.arange(60) % 3,
        "latents_of_cats": torch.randn(5, 16),
        "latents_of_dogs": torch.randn(5, 16),
    }


def of_sharing() -> dict[str, Any]:
    encoders = {name: Encoder.from_pretrained(ENCODERS[place]) for place, name in enumerate("abc")}
    anchors = {name: AnchorSet.encode(encoder, pico.texts(100)) for name, encoder in encoders.items()}
    for name, repo in {"a": "a-anchors", "b": "b-anchors", "c": "old-anchors"}.items():
        anchors[name].push_to_hub(f"alice/{repo}")
    heads = {name: Head(torch.nn.Linear(16, 3), pico.LABELS) for name in "xy"}
    for name in heads:
        anchors[name] = AnchorSet(torch.randn(100, 16), anchors["a"].ids, Provenance(name, "1", "none"))
    return {"encoders": encoders, "heads": heads, "anchors": anchors}


def of_sources() -> dict[str, Any]:
    encoder, texts = Encoder.from_pretrained("alice/encoder"), pico.texts(100)
    batch = dict(encoder.processor(texts[:2], padding=True, return_tensors="pt"))
    exported(Hidden(encoder.model), batch, ["last_hidden_state"], Path("model.onnx"))
    pd.DataFrame({"latents": list(encoder.encode(texts).numpy())}).to_parquet("latents.parquet")
    client = SimpleNamespace(embed=lambda inputs: [[len(one), 1.0] for one in inputs])
    return {"tokenizer": encoder.processor, "client": client}


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "i-have": of_what_one_has,
    "export": of_export,
    "libraries": of_libraries,
    "bulk": of_bulk,
    "heads": of_heads,
    "sharing": of_sharing,
    "sources": of_sources,
}
"""What the snippets of a page take from the reader, beside texts, an encoder and a classifier."""


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_runs(page: Path, models: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    texts = pico.texts(100)
    pairs = [{"premise": one, "hypothesis": other} for one, other in zip(texts, pico.texts(100, seed=1), strict=True)]
    names: dict[str, Any] = {"RelativeStitcher": RelativeStitcher, "AnchorSet": AnchorSet, "Encoder": Encoder}
    names |= {"nn": torch.nn, "texts": texts, "inputs": texts, "sentences": texts, "anchors": texts, "rows": pairs}
    names |= {"source": "alice/encoder", "target": "alice/classifier"}
    names |= {"encoder": Encoder.from_pretrained("alice/encoder"), "load_classifier": load_classifier}
    names |= of_readme(models) if page.stem == "README" else GIVEN.get(page.stem, dict)()
    for code in blocks(page, "python"):
        if not any(name in code for name in NOT_HERE):
            exec(compile(re.sub(r"\b(me|you)/", "alice/", code), page.name, "exec"), names)
