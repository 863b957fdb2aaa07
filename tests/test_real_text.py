"""Real sentence encoders on real text: minilm and mpnet stitched to each other's heads, from strings to predictions."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import assets
import pytest
import torch
from hub_server import HubServer
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_hub import new_process, printed
from torch import nn
from torch.nn import functional
from trained import trained_chain, trained_head
from transformers import pipeline

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher
from hf_relstitch.core.head_outputs import apply_head
from hf_relstitch.core.relative import directions
from hf_relstitch.data.ids import input_ids

pytestmark = pytest.mark.slow

TRAIN, ANCHORS, TEST = 1500, 1000, 400


@dataclass(frozen=True)
class Side:
    """An encoder with its latents of the training, anchor and test glosses."""

    encoder: Encoder
    train: torch.Tensor
    anchors: AnchorSet
    test: torch.Tensor


@dataclass(frozen=True)
class Glosses:
    """WordNet glosses to train on (the first are the anchors too, without their classes) and to test on."""

    train: list[str]
    train_classes: list[int]
    test: list[str]
    test_classes: list[int]


@pytest.fixture(scope="module")
def glosses() -> Glosses:
    texts, classes = assets.wordnet_glosses()
    rows = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0)).tolist()
    train, test = rows[:TRAIN], rows[TRAIN : TRAIN + TEST]
    return Glosses(
        [texts[row] for row in train],
        [classes[row] for row in train],
        [texts[row] for row in test],
        [classes[row] for row in test],
    )


FOLDERS = {"minilm": assets.minilm, "mpnet": assets.mpnet}


@pytest.fixture(scope="module")
def unnormalised(glosses: Glosses) -> dict[str, Side]:
    """The transformers alone, whose latents have norms that tell more than a head gets from a repo that normalises."""
    made = {}
    for name, folder in FOLDERS.items():
        encoder = Encoder.from_pretrained(str(folder()), pooling="mean")
        train, test = (encoder.encode(texts, progress=False) for texts in (glosses.train, glosses.test))
        made[name] = side(encoder, train, test, glosses)
    return made


@pytest.fixture(scope="module")
def sides(unnormalised: dict[str, Side], glosses: Glosses) -> dict[str, Side]:
    """The encoders as their repos have them; that their latents are the others' at norm 1 is seen on some."""
    made = {}
    for name, folder in FOLDERS.items():
        encoder, alone = Encoder.from_pretrained(str(folder())), unnormalised[name]
        train, test = (functional.normalize(latents, dim=1) for latents in (alone.train, alone.test))
        torch.testing.assert_close(encoder.encode(glosses.test[:40], progress=False), test[:40], rtol=1e-3, atol=1e-5)
        made[name] = side(encoder, train, test, glosses)
    return made


def side(encoder: Encoder, train: torch.Tensor, test: torch.Tensor, glosses: Glosses) -> Side:
    anchors = AnchorSet(train[:ANCHORS], input_ids(glosses.train[:ANCHORS]), encoder.provenance)
    return Side(encoder, train, anchors, test)


def accuracy(predictions: torch.Tensor, classes: list[int]) -> float:
    return float((predictions == torch.tensor(classes)).double().mean())


@pytest.mark.parametrize(("source", "target"), [("minilm", "mpnet"), ("mpnet", "minilm")])
def test_stitched_head_keeps_its_accuracy_through_save_and_load(
    sides: dict[str, Side], glosses: Glosses, tmp_path: Path, source: str, target: str
) -> None:
    ours, theirs = sides[source], sides[target]
    head = trained_head(theirs.train, glosses.train_classes, C=10)
    assert head.out_features == 26
    own = accuracy(head(theirs.test).argmax(1), glosses.test_classes)
    width = theirs.test.shape[1]
    padded = functional.pad(ours.test, (0, max(0, width - ours.test.shape[1])))[:, :width]
    absolute = accuracy(head(padded).argmax(1), glosses.test_classes)

    model = RelativeStitcher.from_anchor_sets(
        ours.encoder, ours.anchors, theirs.anchors, head, labels=[str(index) for index in range(26)]
    )
    model.save_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path))
    answers = classify(glosses.test, batch_size=32, truncation=True)
    stitched = accuracy(torch.tensor([int(answer["label"]) for answer in answers]), glosses.test_classes)

    print(f"{source} → {target}: own {own:.3f}, absolute {absolute:.3f}, stitched {stitched:.3f}, {model.report}")
    assert stitched >= 0.85 * own
    assert absolute < 0.25
    assert model.report["source"]["condition_number"] < 1e4
    loaded = RelativeStitcher.from_pretrained(tmp_path)
    batch = model.processor(glosses.test[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(("source", "target"), [("minilm", "mpnet"), ("mpnet", "minilm")])
def test_a_regression_is_stitched_to_values_that_are_not_spread_too_far(
    sides: dict[str, Side], glosses: Glosses, source: str, target: str
) -> None:
    ours, theirs = sides[source], sides[target]
    common = max(set(glosses.train_classes), key=glosses.train_classes.count)
    fitted = Ridge().fit(theirs.train.numpy(), [float(one == common) for one in glosses.train_classes])
    model = RelativeStitcher.from_anchor_sets(ours.encoder, ours.anchors, theirs.anchors, fitted)

    def unexplained(latents: torch.Tensor) -> float:
        own = fitted.predict(theirs.test.numpy())
        return float(((fitted.predict(latents.detach().numpy()) - own) ** 2).mean() / own.var())

    translated, centre = model.translate(ours.test), theirs.anchors.latents.mean(0)
    length = (theirs.anchors.latents - centre).norm(dim=1).mean() / (translated - centre).norm(dim=1).mean()
    of_values, of_length = unexplained(translated), unexplained(centre + length * (translated - centre))
    told = 1 - model.report["values_explained"]
    print(
        f"{source} → {target}: unexplained {of_values:.3f}, expected {told:.3f}; at the target's length {of_length:.3f}"
    )
    assert of_values < 0.75 * of_length
    assert abs(of_values - told) < 0.1


@pytest.mark.parametrize("share", ["full", "adapter"])
def test_pushed_model_is_the_same_in_a_fresh_process_with_a_fresh_cache(
    sides: dict[str, Side], glosses: Glosses, hub: HubServer, tmp_path: Path, share: str
) -> None:
    source_id = "sentence-transformers/all-MiniLM-L6-v2"
    files = [file for file in assets.minilm().rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    hub.put_files(source_id, {str(file.relative_to(assets.minilm())): file.read_bytes() for file in files})
    source, theirs = Encoder.from_pretrained(source_id), sides["mpnet"]
    anchors = replace(sides["minilm"].anchors, provenance=source.provenance)
    head = trained_head(theirs.train, glosses.train_classes, C=10)
    model = RelativeStitcher.from_anchor_sets(source, anchors, theirs.anchors, head)
    model.push_to_hub("alice/glosses", share=share)
    script = f"""
import torch, hf_relstitch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
texts = {glosses.test[:8]!r}
batch = AutoTokenizer.from_pretrained("alice/glosses")(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    print(AutoModelForSequenceClassification.from_pretrained("alice/glosses")(**batch).logits.double().tolist())
print(pipeline("text-classification", model="alice/glosses")(texts[0])[0]["label"])
"""
    hub.cut("model.safetensors", after_bytes=30_000_000)
    found, label = printed(new_process(script, tmp_path / "home"))
    assert 206 in {request.status for request in hub.requests}, "the download did not go on from where it was cut"
    batch = model.processor(glosses.test[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
    assert json.loads(found) == expected.double().tolist()
    assert label == model.config.id2label[int(expected[0].argmax())]


@pytest.fixture(scope="module")
def heads(unnormalised: dict[str, Side], glosses: Glosses) -> dict[str, dict[str, Head]]:
    """Heads of several kinds for each encoder, trained on the same latents."""
    return {name: heads_of(side.train, glosses.train_classes) for name, side in unnormalised.items()}


def heads_of(latents: torch.Tensor, classes: list[int]) -> dict[str, Head]:
    torch.manual_seed(0)
    width = latents.shape[1]
    dropout = [nn.Dropout(0.1), nn.Dropout(0.1)]
    layers = nn.Linear(width, width), nn.Linear(width, 26)
    tanh = nn.Sequential(dropout[0], layers[0], nn.Tanh(), dropout[1], layers[1])  # RobertaClassificationHead
    mlp = make_pipeline(
        StandardScaler(), MLPClassifier((128,), max_iter=30, tol=1, n_iter_no_change=30, random_state=0)
    )
    made = {
        "linear": trained_head(latents, classes, C=10),
        "tanh": trained_chain(tanh, latents, classes),
        "mlp": mlp.fit(latents.numpy(), classes),
    }
    return {name: Head.from_module(head) for name, head in made.items()}


def right(head: Head, latents: torch.Tensor, classes: list[int]) -> float:
    return accuracy(apply_head(head.module, latents.double()).argmax(1), classes)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("source", "target"), [("minilm", "mpnet"), ("mpnet", "minilm")])
def test_heads_that_are_not_linear_keep_what_a_linear_head_keeps(
    unnormalised: dict[str, Side], heads: dict[str, dict[str, Head]], glosses: Glosses, source: str, target: str
) -> None:
    """Linear heads, and those trained on standardised latents, would not without the target's centre and scale.

    On latents of norm 1 a stitch is at the right scale without any.
    """
    ours, theirs, classes = unnormalised[source], unnormalised[target], glosses.test_classes
    shares, losses, centre = {}, {}, theirs.anchors.latents.double().mean(0)
    for name, head in heads[target].items():
        model = RelativeStitcher.from_anchor_sets(ours.encoder, ours.anchors, theirs.anchors, head)
        own, translated = right(head, theirs.test, classes), model.translate(ours.test)
        shares[name] = right(head, translated, classes) / own
        unit = directions(translated.double(), centre=centre)
        bare, unscaled = (right(head, latents, classes) / own for latents in (unit, unit + centre))
        factors = {
            factor: right(head, centre + float(factor) * (theirs.test - centre), classes)
            for factor in model.report["scale_invariance"]
        }
        print(
            f"{source} → {target}, {name}: own {own:.3f}, share kept {shares[name]:.3f}, without centre and scale "
            f"{bare:.3f}, without scale {unscaled:.3f}, accuracy by factor {factors}, answers kept "
            f"{model.report['scale_invariance']}"
        )
        losses[name] = shares[name] - bare
        assert factors["1.0"] == own
        assert factors["3.0"] > 0.95 * own
        assert factors["0.1"] < own, "near its centre a head answers with its biases"
        assert model.report["scale_invariance"]["0.1"] < model.report["scale_invariance"]["3.0"]
    kept = {name: min(1.0, share) for name, share in shares.items()}  # above 1 the source is better than the target
    assert min(kept.values()) >= kept["linear"] - 0.05
    assert min(losses["linear"], losses["mlp"]) > 0.05
