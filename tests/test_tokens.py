"""Heads that label tokens: words in their texts as anchors, whatever the tokenizers, from strings to entities."""

import json
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pico
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from hub_server import HubServer
from PIL import Image
from test_cli import run
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from trained import trained_head
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTModel,
    pipeline,
)

from hf_relstitch import (
    AnchorSet,
    CallableEncoder,
    Encoder,
    Head,
    RelativeStitcher,
    StitchError,
    load_classifier,
)
from hf_relstitch.benchmarks import run_suite, write_report
from hf_relstitch.cli.recommend import recommend
from hf_relstitch.data.ids import PLACE_BITS, ids_of_texts, input_ids
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.data.words import Word, entity_f1, entity_spans, split_words
from hf_relstitch.encoders.words import find_words
from hf_relstitch.model.stitching import stitch

LABELS = {0: "O", 1: "B-PER", 2: "I-PER"}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
OTHER_SCRIPTS = ["東京タワーに行く。", "naïve  café déjà", "สวัสดีครับ", "ok 👩‍👩‍👧, fine"]
TEXTS = pico.texts(60)


def strong(model: PreTrainedModel) -> Any:
    """A model whose states differ from word to word."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "norm" not in name.lower():
                parameter.normal_(std=0.3)
    return model.eval()


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of another kind than pico's words, trained on its texts and on other scripts."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    if kind == "bytes":  # as GPT-2, RoBERTa and most language models
        made = Tokenizer(models.BPE())
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet)
    else:  # as XLM-R and T5
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>")
    made.train_from_iterator([*TEXTS, *OTHER_SCRIPTS], trainer)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, model_input_names=inputs, **names)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny BERT that labels tokens, a word each."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("tagger") / "tiny-tagger"
    model = strong(BertForTokenClassification(BertConfig(**SIZES, vocab_size=64, id2label=LABELS)))
    with torch.no_grad():  # so that it uses all labels
        logits = model(**pico.tokenizer()(TEXTS, padding=True, return_tensors="pt")).logits
        model.classifier.bias -= logits.mean((0, 1))
    model.save_pretrained(folder)
    pico.tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Encoders with tokenizers of other kinds: bytes of a decoder that is padded on the left, and pieces."""
    torch.manual_seed(4)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    models_of = {
        "bytes": GPT2Model(GPT2Config(**sizes, vocab_size=300)),
        "pieces": MPNetModel(MPNetConfig(**SIZES, vocab_size=150)),
    }
    folders = {}
    for kind, model in models_of.items():
        folders[kind] = str(tmp_path_factory.mktemp("sources") / f"tiny-{kind}")
        strong(model).save_pretrained(folders[kind])
        tokenizer(kind).save_pretrained(folders[kind])
    return folders


@pytest.fixture(scope="module")
def stitched(sources: dict[str, str], tagger: str) -> RelativeStitcher:
    return RelativeStitcher.from_parts(sources["pieces"], tagger, TEXTS, progress=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Mr. Li's 3 km\t(e.g. naïve)", ["Mr", ".", "Li", "'", "s", "3", "km", "(", "e", ".", "g", ".", "naïve", ")"]),
        ("東京タワー GPU3台", ["東", "京", "タ", "ワ", "ー", "GPU3", "台"]),
        ("สวัสดี", ["ส", "วั", "ส", "ดี"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("한국어 e\u0301te", ["한국어", "e\u0301te"]),
        ("  ", []),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert [str(word) for word in split_words(text)] == words


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_a_word_is_where_a_token_begins(kind: str) -> None:
    """The tokenizers library itself says which token a character is of."""
    fast = tokenizer(kind)
    for text in [*OTHER_SCRIPTS, *TEXTS[:5]]:
        encoding, words = fast(text), split_words(text)
        chars = [encoding.token_to_chars(encoding.char_to_token(word.start)) for word in words]
        begins = [word for word, span in zip(words, chars, strict=True) if not text[span.start : word.start].strip()]
        assert find_words([text], tokenizer=fast) == begins
    assert {str(word) for word in find_words(OTHER_SCRIPTS, tokenizer=fast)} >= {"東", "京", "naïve", "ok", "fine"}


def test_words_that_truncation_cuts_are_left_out() -> None:
    fast = tokenizer("bytes")
    assert fast.tokenize("storm hits") == ["s", "t", "or", "m", "Ġ", "hi", "t", "s"]
    for length, words in {3: [], 4: ["storm"], 7: ["storm"], 8: ["storm", "hits"]}.items():
        fast.model_max_length = length
        assert [str(word) for word in find_words(["storm hits"], tokenizer=fast)] == words


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@torch.no_grad()
def test_the_latent_of_a_word_is_the_state_of_its_first_token(kind: str, sources: dict[str, str]) -> None:
    encoder, alone = Encoder.from_pretrained(sources[kind], pooling="tokens"), AutoModel.from_pretrained(sources[kind])
    fast = AutoTokenizer.from_pretrained(sources[kind])
    texts = ["storm", "naïve  café", "été 東京", *TEXTS[:6]]
    words = encoder.words(texts)
    latents = encoder.encode(words, batch_size=3, progress=False)
    assert len(latents) == len(words) > 20
    assert torch.equal(latents, encoder.encode(texts, batch_size=3, progress=False))
    for word, latent in zip(words, latents, strict=True):
        encoded = fast(word.text, return_tensors="pt")
        states, place = alone(**encoded).last_hidden_state[0], encoded.char_to_token(word.start)
        place += fast.convert_ids_to_tokens(int(encoded["input_ids"][0, place])) == "▁"  # which holds nothing of a word
        torch.testing.assert_close(latent, states[place], rtol=1e-4, atol=1e-5)


def test_entities_by_hand() -> None:
    own = ["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "I-PER"]
    assert entity_spans(own) == [("PER", 0, 2), ("LOC", 3, 4), ("LOC", 4, 5), ("PER", 5, 6)]
    texts = ["a", "a", "a", "b", "b", "b"]
    assert entity_f1(own, own, texts) == 1
    assert entity_f1(["B-PER", "O", "O", "B-LOC", "B-LOC", "O"], own, texts) == pytest.approx(2 * 2 / (3 + 4))
    assert entity_f1(["O"] * 6, ["O"] * 6, texts) is None


def test_ids_of_words_say_the_text_and_the_place() -> None:
    words = split_words("storm hits the coast") + split_words("storm rises")
    ids = input_ids(words)
    assert len(ids.unique()) == 6
    assert len(ids_of_texts(ids).unique()) == 2
    assert (ids & 0xFFFFFFFF).tolist() == [0, 6, 11, 15, 0, 6]
    assert not set(ids.tolist()) & set(input_ids(words, key="secret").tolist())
    assert ids[0] != input_ids(["storm"])[0]


@pytest.mark.parametrize("how", [{"identity": True}, {"alpha": 1.0, "ridge": 0.0}])
def test_gives_the_own_labels_behind_its_own_encoder(how: dict[str, Any], tagger: str, tmp_path: Path) -> None:
    own = AutoModelForTokenClassification.from_pretrained(tagger)
    own.bert.save_pretrained(tmp_path)
    pico.tokenizer().save_pretrained(tmp_path)
    model = RelativeStitcher.from_parts(str(tmp_path), tagger, TEXTS, progress=False, **how)
    batch = pico.tokenizer()(pico.texts(5, seed=9), padding=True, return_tensors="pt")
    kept = batch["attention_mask"].bool()
    with torch.no_grad():
        logits = model(**batch).logits * model.config.logit_temperature
        torch.testing.assert_close(logits[kept], own(**batch).logits[kept], rtol=1e-3, atol=1e-3)
    assert model.report["agreement"] > 0.99
    assert model.report["entity_agreement"] > 0.97


def test_is_saved_and_runs_in_the_stock_pipeline(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, RelativeStitcher)
    batch = stitched.processor(TEXTS[:4], padding=True, return_tensors="pt")
    with torch.no_grad():
        output, expected = loaded(**batch, labels=batch["input_ids"] % 3), stitched(**batch).logits
        assert torch.equal(output.logits, expected)
        torch.testing.assert_close(
            output.loss, torch.nn.functional.cross_entropy(expected.flatten(0, 1), batch["input_ids"].flatten() % 3)
        )
        latents, _ = loaded.encode_batch(batch)
        by_hand = pico.logits_by_hand(loaded, loaded.head, latents[1])
        torch.testing.assert_close(expected[1], by_hand, rtol=1e-4, atol=1e-5)
    words, logits = loaded.words(TEXTS[:4]), loaded.predict(TEXTS[:4])
    assert len(words) == len(logits)
    label = pipeline("token-classification", model=str(tmp_path))
    places = {
        (text, one["start"]): one
        for text, found in zip(TEXTS[:4], label(TEXTS[:4], ignore_labels=[]), strict=True)
        for one in found
    }
    for word, row in zip(words, logits, strict=True):
        one = places.get((word.text, word.start)) or places[word.text, word.start - 1]
        if one["word"] != "▁":
            assert one["entity"] == LABELS[int(row.argmax())]
            assert one["score"] == pytest.approx(float(row.softmax(-1).max()), abs=1e-4)
    label = pipeline("token-classification", model=str(tmp_path), aggregation_strategy="simple")
    assert {one["entity_group"] for found in label(TEXTS) for one in found} == {"PER"}
    card = (tmp_path / "README.md").read_text()
    assert 'pipeline("token-classification"' in card
    assert "share of words" in card


def test_goes_over_the_hub(hub: HubServer, stitched: RelativeStitcher) -> None:
    stitched.push_to_hub("alice/stitched-tagger")
    batch = stitched.processor(TEXTS[:4], padding=True, return_tensors="pt")
    loaded = AutoModelForTokenClassification.from_pretrained("alice/stitched-tagger")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, stitched(**batch).logits)
    entities = pipeline("token-classification", model="alice/stitched-tagger", aggregation_strategy="simple")(TEXTS[0])
    assert entities == pipeline(
        "token-classification", model=stitched, tokenizer=stitched.processor, aggregation_strategy="simple"
    )(TEXTS[0])


@pytest.mark.parametrize("key", [None, "secret"])
def test_two_sides_that_never_meet(sources: dict[str, str], tagger: str, key: str | None, tmp_path: Path) -> None:
    """Each side has its own tokenizer and order; what both have a word for is an anchor."""
    source, (target, head) = Encoder.from_pretrained(sources["bytes"], pooling="tokens"), load_classifier(tagger)
    texts = [*TEXTS, *OTHER_SCRIPTS]
    one = AnchorSet.encode(source, texts, key=key, progress=False)
    other = AnchorSet.encode(target, texts[::-1], key=key, progress=False)
    one.save_pretrained(tmp_path / "one")
    apart = RelativeStitcher.from_anchor_sets(source, tmp_path / "one", other, head)
    together = RelativeStitcher.from_parts(source, tagger, texts, key=key, progress=False)
    assert torch.equal(apart.anchors.ids, together.anchors.ids)
    batch = source.processor(TEXTS[:3], padding=True, return_tensors="pt")
    torch.testing.assert_close(apart(**batch).logits, together(**batch).logits, rtol=1e-4, atol=1e-4)


def test_num_anchors_counts_words(sources: dict[str, str], tagger: str) -> None:
    model = RelativeStitcher.from_parts(sources["pieces"], tagger, TEXTS, num_anchors=50, progress=False)
    assert model.report["num_anchors"] == 50
    assert model.report["agreement_of"] == "words"


def test_the_interval_counts_texts() -> None:
    """Words of one text that are alike tell hardly more than one of them: the interval is wider than that of inputs."""
    drawn = torch.Generator().manual_seed(0)
    texts = torch.randn(60, 12, generator=drawn).repeat_interleave(5, dim=0)
    ids = (torch.arange(60).repeat_interleave(5) << PLACE_BITS) + torch.arange(5).repeat(60)
    latents = [texts + 0.1 * torch.randn(300, 12, generator=drawn) for _ in range(2)]
    latents[0] += torch.randn(60, 12, generator=drawn).repeat_interleave(5, dim=0)
    widths = {}
    for pooling, given in (("tokens", ids), ("mean", torch.arange(300))):
        sides = [AnchorSet(each, given, Provenance("m", "1", pooling)) for each in latents]
        torch.manual_seed(0)
        report = stitch(*sides, Head(torch.nn.Linear(12, 3), LABELS), source=sides[0].provenance).report
        widths[pooling] = report["agreement_interval"][1] - report["agreement_interval"][0]
    assert widths["tokens"] > 1.5 * widths["mean"]


def test_refits_coverage_and_relative_latents(stitched: RelativeStitcher) -> None:
    assert stitched.check(TEXTS[:20])["coverage"] > 0.9
    relative = stitched.relative(TEXTS[:3])
    assert len(relative.values) == len(stitched.words(TEXTS[:3]))


def test_shell(sources: dict[str, str], tagger: str, tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(TEXTS))
    out = tmp_path / "stitched"
    run("stitch", sources["pieces"], tagger, out, "--anchors", file)
    entities = json.loads(run("predict", out, file, "--json").stdout)
    assert {row["label"] for row in entities} == {"PER"}
    assert all(any(text[row["start"] : row["end"]] == row["input"] for text in TEXTS) for row in entities)
    rows = recommend(tagger, [*sources.values()], TEXTS, progress=False)
    assert [row["error"] for row in rows] == [None, None]


def test_a_head_of_no_entities_labels_words(sources: dict[str, str], tagger: str, tmp_path: Path) -> None:
    model = AutoModelForTokenClassification.from_pretrained(tagger)
    model.config.id2label = {0: "NOUN", 1: "VERB", 2: "DET"}
    model.save_pretrained(tmp_path / "pos")
    pico.tokenizer().save_pretrained(tmp_path / "pos")
    stitched = RelativeStitcher.from_parts(sources["pieces"], str(tmp_path / "pos"), TEXTS, progress=False)
    stitched.save_pretrained(tmp_path / "stitched")
    rows = json.loads(run("predict", tmp_path / "stitched", "storm hits the coast", "--json").stdout)
    words = stitched.words(["storm hits the coast"])
    assert [row["input"] for row in rows] == [str(word) for word in words]
    assert [row["label"] for row in rows] == [
        stitched.config.id2label[index] for index in stitched.predict(["storm hits the coast"]).argmax(-1).tolist()
    ]


def test_each_pipeline_takes_its_own_kind(
    stitched: RelativeStitcher, source: Encoder, target_folder: str, tmp_path: Path
) -> None:
    stitched.save_pretrained(tmp_path / "token-classification")
    whole = RelativeStitcher.from_parts(source, target_folder, TEXTS, progress=False)
    whole.save_pretrained(tmp_path / "text-classification")
    tasks = ("token-classification", "text-classification")
    for task, other in (tasks, tasks[::-1]):
        pipeline(task, model=str(tmp_path / task))(TEXTS[0])
        with pytest.raises(ValueError, match=rf"is a model for {task}, and not for {other}: use pipeline\('{task}', …"):
            pipeline(other, model=str(tmp_path / task))


SUITE: dict[str, Any] = {
    "name": "words",
    "data": {"salad": {"inputs": {"text": "tokens"}, "label": "tags", "head_rows": 30, "test_rows": 20}},
    "heads": ["own"],
    "methods": ["linear", "distillation"],
    "anchors": [100],
}


def test_a_suite_measures_words(sources: dict[str, str], tagger: str, tmp_path: Path) -> None:
    """Of all words but those that an encoder cuts off; labels are the tagger's own, so that it is right on all."""
    encoder, head = load_classifier(tagger)
    long = " ".join(pico.WORDS)  # of whose words the tagger reads 30
    texts = [*pico.texts(90), f"{long} {long}"]
    labels = {
        word: int(label)
        for word, label in zip(
            encoder.words(texts), head.module(encoder.encode(texts, progress=False)).argmax(-1), strict=True
        )
    }
    tags = [[labels.get(word, 0) for word in split_words(text)] for text in texts]
    assert sum(map(len, tags)) == len(labels) + 2 * len(pico.WORDS) - 30
    features = Features({"tokens": List(Value("string")), "tags": List(ClassLabel(names=[*LABELS.values()]))})
    rows = Dataset.from_dict({"tokens": [text.split() for text in texts], "tags": tags}, features=features)
    encoders = {
        "pieces": {"model": sources["pieces"], "pooling": "tokens"},
        "bytes": {"model": sources["bytes"], "pooling": "tokens"},
        "tagger": {"classifier": tagger},
    }
    suite = SUITE | {"encoders": encoders}
    suite["data"]["salad"]["pairs"] = [["pieces", "tagger"], ["bytes", "tagger"]]
    results = run_suite(suite, tmp_path / "out", data={"salad": rows}, progress=False)
    assert results["failures"] == []
    cells = {(cell["source"], cell["method"]): cell for cell in results["cells"]}
    assert len(cells) == 4
    own = cells["pieces", "linear"]
    assert (own["native_accuracy"], own["agreement"]) == (1.0, own["accuracy"])
    assert own["expected_agreement"] == pytest.approx(own["agreement"], abs=0.1)
    assert 0 < own["entity_f1"] < 1
    about = results["data"]["salad"]
    assert about["classes"] == [*LABELS.values()]
    assert "F1 of entities" in write_report(tmp_path / "out").read_text()
    whole = {**encoders, "pieces": {"model": sources["pieces"]}}
    with pytest.raises(StitchError, match=r"a label for each word, and encoder 'pieces' gives a latent for each input"):
        run_suite(suite | {"encoders": whole}, tmp_path / "out", data={"salad": rows}, progress=False)
    one = Dataset.from_dict({"tokens": texts, "tags": [str(len(text) % 2) for text in texts]})
    with pytest.raises(
        StitchError, match=r"a label for each input, and encoder 'pieces' gives a latent for each token"
    ):
        run_suite(suite, tmp_path / "out", data={"salad": one}, progress=False)
    short = Dataset.from_dict({"tokens": [text.split()[1:] for text in texts], "tags": tags})
    with pytest.raises(StitchError, match=r"the labels in row 0 are a list of .*expected a list of as many words"):
        run_suite(suite, tmp_path / "out", data={"salad": short}, progress=False)


class SlowTokenizer:
    """What gives no offsets."""

    is_fast = False


def test_each_mix_up_is_one_clear_error(
    sources: dict[str, str], tagger: str, target_folder: str, tmp_path: Path
) -> None:
    def stitch(source: Any, target: Any, anchors: Any) -> None:
        RelativeStitcher.from_parts(source, target, anchors, progress=False)

    vit = pico.saved("ViT", tmp_path / "vit")
    picture = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for anchors in (TEXTS, [picture] * 40, [(picture, text) for text in TEXTS]):
        with pytest.raises(StitchError, match=r"target labels words.*the source takes image.*give a text encoder"):
            stitch(vit, tagger, anchors)
    with pytest.raises(StitchError, match=r"labels words.*the first anchor is a tuple"):
        stitch(sources["pieces"], tagger, [(text, text) for text in TEXTS])
    with pytest.raises(StitchError, match="head labels tokens, and numbers gives one latent an input"):
        stitch(CallableEncoder(lambda texts: np.ones((len(texts), 3)), model_id="numbers"), tagger, TEXTS)
    prompted = Encoder.from_pretrained(sources["pieces"], prompt="storm: ")
    with pytest.raises(StitchError, match=r"puts the prompt 'storm: ' before each text, .*and without a prompt"):
        stitch(prompted, tagger, TEXTS)
    by_token = Encoder.from_pretrained(sources["pieces"], pooling="tokens")
    with pytest.raises(StitchError, match="gives a latent for each token, and the head takes one an input"):
        stitch(by_token, target_folder, TEXTS)
    whole = AnchorSet.encode(Encoder.from_pretrained(sources["pieces"]), TEXTS, progress=False)
    target, head = load_classifier(tagger)
    words = AnchorSet.encode(target, TEXTS, progress=False)
    with pytest.raises(StitchError, match="the target anchors are words and the source anchors whole inputs"):
        RelativeStitcher.from_anchor_sets(by_token, whole, words, head)
    with pytest.raises(StitchError, match="pooling is 'tokens' and the model takes image"):
        Encoder(ViTModel.from_pretrained(vit), pico.image_processor(), pooling="tokens")
    with pytest.raises(StitchError, match=r"need a fast tokenizer.*SlowTokenizer"):
        find_words(TEXTS, tokenizer=SlowTokenizer())
    with pytest.raises(StitchError, match="takes texts, and what came are other inputs"):
        by_token.words([picture])


def test_a_model_of_whole_inputs_has_no_words(sources: dict[str, str], target_folder: str) -> None:
    model = RelativeStitcher.from_parts(sources["pieces"], target_folder, TEXTS, progress=False)
    with pytest.raises(StitchError, match="gives one answer an input, and labels no words"):
        model.words(TEXTS)
    assert str(Word("a storm", 2, 7)) == "storm"


def sentences(rows: list[list[tuple[str, str, str]]]) -> tuple[list[str], dict[tuple[str, int], str]]:
    """Texts of CoNLL's words, and the label at which each word begins."""
    texts = [" ".join(word for word, *_ in row) for row in rows]
    labels = {}
    for text, row in zip(texts, rows, strict=True):
        place = 0
        for word, _, label in row:
            labels[text, place] = label
            place += len(word) + 1
    return texts, labels


@pytest.mark.slow
def test_real_entities_of_mpnet_behind_minilm(hub: HubServer, tmp_path: Path) -> None:
    """Labels of CoNLL 2003 train the head on mpnet; 200 other sentences, without labels, stitch it to MiniLM."""
    mpnet, news = str(assets.mpnet()), assets.conll("train")
    news = [news[row] for row in torch.randperm(len(news), generator=torch.Generator().manual_seed(0))]
    texts, labels = sentences(news[:300])
    encoder = Encoder.from_pretrained(mpnet, pooling="tokens")
    words = [word for word in encoder.words(texts) if (word.text, word.start) in labels]
    names = sorted(set(labels.values()))
    head = trained_head(encoder.encode(words, progress=False), [names.index(labels[w.text, w.start]) for w in words])
    config = AutoConfig.from_pretrained(mpnet, id2label=dict(enumerate(names)))
    tagger = AutoModelForTokenClassification.from_pretrained(mpnet, config=config)
    tagger.classifier.load_state_dict(head.state_dict())
    tagger.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(mpnet).save_pretrained(tmp_path)
    anchors, _ = sentences(news[2000:2200])
    model = RelativeStitcher.from_parts(str(assets.minilm()), str(tmp_path), anchors, progress=False)
    model.push_to_hub("alice/minilm-entities")
    fresh, truth = sentences(news[4000:4120])
    target, _ = load_classifier(str(tmp_path))
    words = [word for word in model.words(target.words(fresh)) if (word.text, word.start) in truth]
    found = model.predict(words).argmax(-1)
    with torch.no_grad():
        own = tagger.classifier(target.encode(words, progress=False)).argmax(-1)
    right = torch.tensor([names.index(truth[word.text, word.start]) for word in words])
    low, high = model.report["agreement_interval"]
    assert low - 0.02 < float((found == own).float().mean()) < high + 0.02
    assert float((found == right).float().mean()) > 0.9 * float((own == right).float().mean())
    label = pipeline("token-classification", model="alice/minilm-entities", aggregation_strategy="first")
    people = {one["word"] for one in label("Peter Smith met John Williams in London.") if one["entity_group"] == "PER"}
    assert people & {"peter smith", "john williams"}
