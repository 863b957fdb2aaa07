"""N encoders and M heads or spaces through N + M published anchor sets, each model loaded once."""

from collections import Counter
from itertools import product
from pathlib import Path

import assets
import pico
import pytest
import torch
from hub_server import HubServer
from sklearn.linear_model import LogisticRegression
from torch.testing import assert_close
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, load_classifier, onnx_encoder
from hf_relstitch.bulk import translation_between, translations_into

INPUTS = pico.texts(100)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each model is loaded."""
    counts: Counter = Counter()
    for kind in (AutoModel, AutoModelForSequenceClassification):

        def counted(place: str, *args, before=kind.from_pretrained, **options):
            counts[str(place)] += 1
            return before(place, *args, **options)

        monkeypatch.setattr(kind, "from_pretrained", counted)
    return counts


def push(hub: HubServer, folder: Path, name: str) -> None:
    hub.put_files(name, {file.name: file.read_bytes() for file in folder.iterdir()})


def test_three_encoders_and_two_heads_are_six_models(tmp_path: Path, hub: HubServer, loads: Counter) -> None:
    sources = {"alice/a": "Bert", "alice/b": "Roberta", "alice/c": "MPNet"}
    targets = {"bob/d": "DistilBert", "bob/e": "Electra"}
    for seed, (name, kind) in enumerate({**sources, **targets}.items()):
        push(hub, Path(pico.saved(kind, tmp_path / name, seed=seed)), name)
    for name in sources:
        AnchorSet.encode(Encoder.from_pretrained(name), INPUTS, progress=False).push_to_hub(f"alice/{name[-1]}-anchors")
    for name in targets:
        encoder, _ = load_classifier(name)
        AnchorSet.encode(encoder, INPUTS, progress=False).push_to_hub(f"alice/{name[-1]}-anchors")

    loads.clear()
    anchors = {name: AnchorSet.from_pretrained(f"alice/{name[-1]}-anchors") for name in [*sources, *targets]}
    encoders = {name: Encoder.from_pretrained(name) for name in sources}
    heads = {name: load_classifier(name)[1] for name in targets}
    pairs = {
        (source, target): RelativeStitcher.from_anchor_sets(
            encoders[source], anchors[source], anchors[target], heads[target]
        )
        for source, target in product(sources, targets)
    }
    assert loads == dict.fromkeys([*sources, *targets], 1)
    for (source, target), model in pairs.items():
        alone = RelativeStitcher.from_parts(source, target, INPUTS, progress=False)
        assert_close(model.predict(INPUTS[:5]), alone.predict(INPUTS[:5]))
        assert model.encoder is encoders[source].model
        assert (model.config.source["model_id"], model.config.target["model_id"]) == (source, target)
    pairs["alice/a", "bob/e"].save_pretrained(tmp_path / "saved")
    again = RelativeStitcher.from_pretrained(tmp_path / "saved")
    assert_close(again.predict(INPUTS[:5]), pairs["alice/a", "bob/e"].predict(INPUTS[:5]))


def test_several_encoders_are_fitted_into_one_space(tmp_path: Path, hub: HubServer, source: Encoder) -> None:
    old = AnchorSet.encode(source, INPUTS, progress=False)
    old.push_to_hub("alice/old")
    turned = {
        name: AnchorSet(old.latents @ torch.linalg.qr(torch.randn(16, 16))[0], old.ids, old.provenance)
        for name in ("one", "two")
    }
    for name, anchors in turned.items():
        anchors.save_pretrained(tmp_path / name)
    made = translations_into("alice/old", {"one": tmp_path / "one", "two": turned["two"]}, translates="queries")
    for name, anchors in turned.items():
        expected = translation_between(anchors, old, translates="queries")
        assert made[name].translation.weight.equal(expected.translation.weight)
        assert made[name].translates == "queries"
        assert (made[name](anchors.latents) - old.latents).norm(dim=1).max() < 0.05 * old.latents.norm(dim=1).mean()


@pytest.mark.slow
def test_six_pairs_of_real_models_answer_as_the_heads_do(hub: HubServer) -> None:
    glosses, classes = assets.wordnet_glosses()
    order = torch.randperm(len(glosses), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [row for row in order if classes[row] in (1, 2, 3, 15)][:900]
    texts, labels = [glosses[row] for row in rows], torch.tensor([classes[row] for row in rows])
    minilm = Encoder.from_pretrained(str(assets.minilm()))
    encoders = {
        "minilm": minilm,
        "mpnet": Encoder.from_pretrained(str(assets.mpnet())),
        "para3": onnx_encoder(assets.para3(), processor=minilm.processor, output="onnx::Shape_422", pooling="mean"),
    }
    latents = {name: encoder.encode(texts, progress=False).float() for name, encoder in encoders.items()}
    heads = {}
    for name, encoder in encoders.items():
        published = AnchorSet.from_latents(latents[name][:300], texts[:300], model=encoder.provenance)
        published.push_to_hub(f"alice/{name}")
    for name in ("minilm", "mpnet"):
        head = LogisticRegression(max_iter=2000).fit(latents[name][300:600].numpy(), labels[300:600].numpy())
        heads[name] = Head.from_module(head)
    anchors = {name: AnchorSet.from_pretrained(f"alice/{name}") for name in encoders}
    for source, target in product(encoders, heads):
        model = RelativeStitcher.from_anchor_sets(encoders[source], anchors[source], anchors[target], heads[target])
        own = heads[target].module(latents[target][600:]).argmax(1)
        stitched = model.classify(latents[source][600:]).argmax(1)
        agreement = float((own == stitched).float().mean())
        print(f"{source} before the head of {target}: {agreement:.3f}, expected {model.report['agreement']:.3f}")
        assert agreement > (0.99 if source == target else 0.7)
