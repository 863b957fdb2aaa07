"""A pair of texts as one input, `{"text": …, "text_pair": …}`, from anchors to the stock pipeline."""

import json
from pathlib import Path
from typing import Any

import assets
import numpy as np
import pico
import pytest
import torch
import wordnet_pairs
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import processors
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast, pipeline
from typer.testing import CliRunner

from hf_relstitch import AnchorSet, Encoder, Head, RelativeStitcher, StitchError, load_classifier
from hf_relstitch.benchmarks import run_suite
from hf_relstitch.benchmarks.rows import read_rows
from hf_relstitch.benchmarks.suite import DataSpec
from hf_relstitch.benchmarks.yaml_schema import Document
from hf_relstitch.cli.commands import app
from hf_relstitch.cli.predict import predict
from hf_relstitch.cli.recommend import recommend
from hf_relstitch.core.measures import discounted_gain
from hf_relstitch.data.ids import first_ids, input_ids
from hf_relstitch.data.reading import read_inputs
from hf_relstitch.encoders.pairs import PairLayout
from hf_relstitch.model.exporting import plain_classifier, to_onnx

RELEVANCE = {0: "relevance"}
SHARES = {"inference": 0.85, "ranking": 0.95}
"""Least share of the own accuracy and of the own nDCG that a real stitched model keeps."""


def pairs(count: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Different pairs of word salads; each first text stands in four of them."""
    firsts, seconds = pico.texts(-(-count // 4), seed=seed), pico.texts(count, seed=seed + 100)
    return [{"text": firsts[row // 4], "text_pair": seconds[row]} for row in range(count)]


def split(some: list[dict[str, str]]) -> tuple[list[str], list[str]]:
    return [one["text"] for one in some], [one["text_pair"] for one in some]


@pytest.fixture(scope="module")
def stitched_pairs(source_folder: str, target_folder: str) -> RelativeStitcher:
    """A model over pairs, for tests that change nothing of it."""
    source = Encoder.from_pretrained(source_folder, pairs="compose")
    return RelativeStitcher.from_parts(source, target_folder, pairs(100), progress=False)


def test_target_latents_of_pairs_are_those_of_its_own_pair_encoding(target_folder: str) -> None:
    encoder, head = load_classifier(target_folder)
    some = pairs(10)
    model = AutoModelForSequenceClassification.from_pretrained(target_folder)
    tokens = AutoTokenizer.from_pretrained(target_folder)(
        *split(some), padding=True, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        torch.testing.assert_close(head.module(encoder.encode(some, progress=False)), model(**tokens).logits)


def test_composed_latents_are_those_of_both_texts_alone(source_folder: str) -> None:
    """Each text is cut as the tokenizer cuts pairs; short ones are not."""
    alone = Encoder.from_pretrained(source_folder)
    composed = Encoder.from_pretrained(source_folder, pairs="compose")
    some = pairs(20)
    u, v = (alone.encode(side, progress=False) for side in split(some))
    u, v = (side / side.square().mean(1, keepdim=True).sqrt() for side in (u, v))
    expected = torch.cat([u, v, (u - v).abs(), u * v], 1)
    torch.testing.assert_close(composed.encode(some, batch_size=7, progress=False), expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_of_pairs_is_split_into_what_the_tokenizer_makes_of_each_text(side: str) -> None:
    tokenizer = pico.tokenizer()
    tokenizer.padding_side = side
    layout = PairLayout.from_tokenizer(tokenizer)
    assert (layout.before, layout.between, layout.last) == ([0], [2, 2], [2])
    firsts, seconds = split(pairs(6))
    seconds[3] = ""
    made = layout.split(tokenizer(firsts, seconds, padding=True, return_tensors="pt"))
    due = tokenizer([*firsts, *seconds], padding=True, return_tensors="pt")
    assert {name: tensor.tolist() for name, tensor in made.items()} == {name: t.tolist() for name, t in due.items()}
    cut = tokenizer(firsts, seconds, padding=True, truncation=True, max_length=9, return_tensors="pt")
    assert int(layout.split(cut)["attention_mask"].sum()) == int(cut["attention_mask"].sum())


def test_composed_pairs_are_not_exported_as_one_pass(stitched_pairs: RelativeStitcher) -> None:
    for export in (plain_classifier, RelativeStitcher.to_sentence_transformer):
        with pytest.raises(StitchError, match="reads an input in one pass, and this source reads the two texts"):
            export(stitched_pairs)


@pytest.mark.filterwarnings("ignore")
def test_pairs_that_are_read_jointly_are_exported(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    source = Encoder.from_pretrained(source_folder, pairs="joint")
    model = RelativeStitcher.from_parts(source, target_folder, pairs(60), progress=False)
    session = onnxruntime.InferenceSession(to_onnx(model, tmp_path / "model.onnx"))
    some = pairs(4, seed=9)
    batch = model.processor(*split(some), padding=True, return_tensors="np")
    np.testing.assert_allclose(session.run(None, dict(batch))[0], model.predict(some).numpy(), atol=1e-4)


def test_texts_with_the_separator_and_single_texts_are_not_split(stitched_pairs: RelativeStitcher) -> None:
    classify = pipeline("text-classification", model=stitched_pairs, tokenizer=stitched_pairs.processor)
    with pytest.raises(StitchError, match=r"row 0 .* has the tokenizer's separator in a text.*: remove it"):
        classify({"text": "storm </s> </s> coast", "text_pair": "storm"})
    with pytest.raises(StitchError, match=r"takes pairs of texts and row 0 .* holds a single text: give \{\"text\""):
        classify("storm hits the coast")


def test_a_tokenizer_that_does_not_mark_the_second_text_reads_jointly(tmp_path: Path) -> None:
    tokenizer = pico.tokenizer()
    content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"post_processor": None}
    pico.classifier("Bert").base_model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(StitchError, match=r"does not mark where the second text of a pair begins.*use pairs='joint'"):
        Encoder.from_pretrained(str(tmp_path), pairs="compose")
    assert [each.pairs for each in Encoder.from_pretrained(str(tmp_path)).ways_to_read_pairs()] == ["joint"]


@pytest.mark.parametrize("how", ["joint", "compose"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_stock_pipeline_gives_the_same_as_predict(
    how: str, batch_size: int, source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    source = Encoder.from_pretrained(source_folder, pairs=how)
    model = RelativeStitcher.from_parts(source, target_folder, pairs(80), progress=False)
    model.save_pretrained(tmp_path)
    some = pairs(8, seed=9)
    logits = RelativeStitcher.from_pretrained(tmp_path).predict(some)
    assert torch.equal(logits, model.predict(some))
    classify = pipeline("text-classification", model=str(tmp_path), top_k=None, function_to_apply="none")
    answers = classify(some, batch_size=batch_size)
    for row, answer in enumerate(answers):
        found = {one["label"]: one["score"] for one in answer}
        assert [found[name] for name in pico.LABELS.values()] == pytest.approx(logits[row].tolist(), abs=1e-5)
    single = {one["label"]: one["score"] for one in classify(some[0])}
    assert [single[name] for name in pico.LABELS.values()] == pytest.approx(logits[0].tolist(), abs=1e-5)


def test_the_way_of_reading_pairs_is_chosen_by_expected_agreement(source_folder: str, target_folder: str) -> None:
    model = RelativeStitcher.from_parts(source_folder, target_folder, pairs(100), progress=False)
    expected = model.report["pairs"]
    assert set(expected) == {"joint", "compose"}
    assert expected[model.config.pairs["how"]] == max(expected.values()) == model.report["agreement"]


def test_ids_of_pairs_are_stable_and_their_own() -> None:
    pair = {"text": "storm", "text_pair": "coast"}
    ids = input_ids([pair, dict(reversed(pair.items())), {"text": "coast", "text_pair": "storm"}, "storm", "coast"])
    assert int(ids[0]) == int(ids[1]) == -2979474439352795
    assert len({*ids.tolist(), int(input_ids([("storm", "coast")]))}) == 5
    assert int(input_ids([pair], key="secret")) != int(ids[0])


@pytest.mark.parametrize(
    ("strange", "message"),
    [
        ({"text": "storm"}, r"the input in row 3 .* is a dict of text: a pair of texts is \{\"text\": …"),
        (
            {"text": "a", "text_pair": "b", "label": 1},
            "row 3 .* is a dict of text, text_pair, label: a pair of texts is",
        ),
        ({"premise": "a", "hypothesis": "b"}, "row 3 .* is a dict of premise, hypothesis: a pair of texts is"),
        ({"text": "a", "text_pair": None}, "the text_pair in row 3 .* is a NoneType: expected a text"),
        ("storm", "39 of 40 inputs are pairs of texts, row 0 is one: give pairs only, or none"),
    ],
)
def test_what_is_no_pair_is_told_by_its_row(strange: Any, message: str, source: Encoder, target_folder: str) -> None:
    anchors: list[Any] = pairs(40)
    anchors[3] = strange
    with pytest.raises(StitchError, match=message):
        RelativeStitcher.from_parts(source, target_folder, anchors, progress=False)


def test_pairs_and_single_texts_are_not_mixed_up_after_stitching(
    stitched: RelativeStitcher, stitched_pairs: RelativeStitcher
) -> None:
    with pytest.raises(StitchError, match=r"takes pairs of texts and what came in row 0 .* is a str: give \{\"text\""):
        stitched_pairs.predict(["storm"])
    with pytest.raises(
        StitchError, match=r"takes single inputs and what came in row 0 .* is a pair of texts: give one"
    ):
        stitched.predict(pairs(2))


def typed_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that gives token types, as BERT's does."""
    tokenizer = pico.tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
    return tokenizer


TOKENIZERS = {"with types": typed_tokenizer(), "without types": pico.tokenizer()}
TEXTS = st.lists(st.sampled_from([*pico.WORDS[:4], "</s>", "</s></s>", "<s>", "<pad>", "ß", " "]), max_size=6).map(
    " ".join
)


@given(
    st.sampled_from([*TOKENIZERS]), st.sampled_from(["right", "left"]), st.lists(st.tuples(TEXTS, TEXTS), min_size=1)
)
@settings(deadline=None, derandomize=True, database=None)
def test_pairs_and_single_texts_are_told_apart_whatever_stands_in_them(
    kind: str, side: str, some: list[tuple[str, str]]
) -> None:
    """What is wrong is always refused; what is right never, unless a text has the separator and types do not tell."""
    tokenizer = TOKENIZERS[kind]
    tokenizer.padding_side = side
    layout = PairLayout.from_tokenizer(tokenizer)
    firsts, seconds = map(list, zip(*some, strict=True))
    together = tokenizer(firsts, seconds, padding=True, truncation=True, max_length=12, return_tensors="pt")
    alone = tokenizer(firsts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    layout.check(together, pairs=True)
    if layout.types or not any("</s>" in text for text in firsts):
        layout.check(alone, pairs=False)
        with pytest.raises(
            StitchError, match=r"takes pairs of texts and row 0 .* holds a single text: give \{\"text\""
        ):
            layout.check(alone, pairs=True)
    message = "a pair of texts: give one of" if layout.types else "the tokenizer's separator, as a pair of texts does"
    with pytest.raises(StitchError, match=rf"takes single texts and row 0 .* holds {message}"):
        layout.check(together, pairs=False)


@pytest.mark.parametrize("how", ["joint", None])
def test_the_stock_pipeline_tells_single_texts_and_pairs_apart(
    how: str | None, target_folder: str, tmp_path: Path
) -> None:
    pico.classifier("Bert", seed=1).base_model.save_pretrained(tmp_path / "source")
    typed_tokenizer().save_pretrained(tmp_path / "source")
    source = Encoder.from_pretrained(str(tmp_path / "source"), pairs=how)
    anchors = pairs(60) if how else pico.texts(60)
    RelativeStitcher.from_parts(source, target_folder, anchors, progress=False).save_pretrained(tmp_path / "model")
    classify = pipeline("text-classification", model=str(tmp_path / "model"))
    right, wrong = (pairs(4), pico.texts(4)) if how else (pico.texts(4), pairs(4))
    assert len(classify(right, batch_size=2)) == 4
    assert classify(right[0])
    message = "holds a single text: give" if how else "holds a pair of texts: give one of the texts"
    for some in (wrong[0], wrong, [right[0], wrong[0]]):
        with pytest.raises(StitchError, match=message):
            classify(some, batch_size=2)


def test_a_pair_is_refused_where_tokens_alone_do_not_prove_it(stitched: RelativeStitcher) -> None:
    """A text may hold the separator; a tokenizer without types makes the same of it as of a pair."""
    classify = pipeline("text-classification", model=stitched, tokenizer=stitched.processor)
    texts = pico.texts(3)
    assert len(classify(texts, batch_size=2)) == 3
    holding = f"{texts[1]} </s></s> {texts[2]}"
    for wrong in (pairs(1)[0], [texts[0], holding], holding):
        with pytest.raises(StitchError, match=r"takes single texts and row \d .* holds the tokenizer's separator"):
            classify(wrong, batch_size=2)
    assert stitched.predict([holding]).shape == (1, stitched.config.num_labels)


def test_image_and_sound_models_take_no_pairs(tmp_path: Path, target_folder: str) -> None:
    folder = pico.saved("ViT", tmp_path)
    with pytest.raises(
        StitchError, match=r"the source takes PIL images .* and what came in row 0 .* is a pair of texts"
    ):
        RelativeStitcher.from_parts(folder, target_folder, pairs(40), progress=False)
    with pytest.raises(StitchError, match="pairs is 'compose' and the encoder takes image: leave it out"):
        Encoder.from_pretrained(folder, pairs="compose")
    with pytest.raises(StitchError, match="pairs is 'both': expected one of joint, compose"):
        Encoder.from_pretrained(target_folder, pairs="both")


def test_an_image_source_reads_pictures_where_the_target_reads_pairs(tmp_path: Path, target_folder: str) -> None:
    pictures = [Image.linear_gradient("L").rotate(7 * index).resize((8, 8)) for index in range(40)]
    model = RelativeStitcher.from_parts(
        pico.saved("ViT", tmp_path), target_folder, list(zip(pictures, pairs(40), strict=True)), progress=False
    )
    assert model.config.pairs is None
    target = load_classifier(target_folder)[0].encode(pairs(40), progress=False)
    torch.testing.assert_close(model.anchors.target.sort(0).values, target.sort(0).values)


@pytest.mark.parametrize("labels", [("entailment", "neutral", "contradiction"), ("NOT_DUPLICATE", "DUPLICATE")])
def test_a_classifier_of_pairs_refuses_tuples_and_single_texts(
    labels: tuple[str, ...], source: Encoder, tmp_path: Path
) -> None:
    target = pico.saved("Roberta", tmp_path, id2label=dict(enumerate(labels)))
    tuples = list(zip(*split(pairs(40)), strict=True))
    with pytest.raises(
        StitchError, match=r"apart \(.*\) and the anchors are tuples, of which the source reads the first"
    ):
        RelativeStitcher.from_parts(source, target, tuples, progress=False)
    with pytest.raises(
        StitchError, match=r"tells pairs of texts apart \(.*\) and the anchors are texts: give each pair"
    ):
        RelativeStitcher.from_parts(source, target, pico.texts(40), progress=False)
    assert RelativeStitcher.from_parts(source, target, pairs(40), progress=False).config.pairs["how"]


def test_a_cross_encoder_refuses_tuples_and_a_head_of_texts_refuses_pairs(source: Encoder, tmp_path: Path) -> None:
    settings = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity", "version": "6.2.0"}}
    target = pico.saved("Roberta", tmp_path, id2label=RELEVANCE, **settings)
    tuples = list(zip(*split(pairs(40)), strict=True))
    with pytest.raises(StitchError, match="the anchors are tuples, of which the source reads the first"):
        RelativeStitcher.from_parts(source, target, tuples, progress=False)
    head = Head.from_class_names(source, ["storm", "calm"])
    with pytest.raises(StitchError, match="the head was trained on single texts and the anchors are pairs of texts"):
        RelativeStitcher.from_parts(source, source, pairs(40), head=head, progress=False)


def test_tuples_of_texts_stay_one_input_a_side_and_say_so(
    source: Encoder, target_folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    tuples = list(zip(pico.texts(40), pico.texts(40, seed=1), strict=True))
    model = RelativeStitcher.from_parts(source, target_folder, tuples, progress=False)
    assert 'one input of both is {"text": …, "text_pair": …}' in caplog.text
    order = input_ids(tuples).argsort()
    expected = source.encode([first for first, _ in tuples], progress=False)
    assert model.anchors.ids.equal(input_ids(tuples)[order])
    torch.testing.assert_close(model.anchors.source, expected[order])
    assert model.config.pairs is None


def reranker(folder: Path, **settings: Any) -> str:
    return pico.saved("Roberta", folder, id2label=RELEVANCE, **settings)


def test_a_reranker_reports_how_well_its_order_is_kept(source_folder: str, tmp_path: Path) -> None:
    """The order of held-out anchors: 1 where the source is the target's own encoder."""
    reranker(tmp_path)
    own = RelativeStitcher.from_parts(str(tmp_path), str(tmp_path), pairs(120), alpha=1.0, ridge=1e-9, progress=False)
    other = RelativeStitcher.from_parts(source_folder, str(tmp_path), pairs(120), progress=False)
    assert other.report["agreement"] is None
    for name in ("spearman", "ndcg"):
        assert other.report[name] < own.report[name] <= 1.0
    assert set(other.report["pairs"]) == {"joint", "compose"}


@pytest.mark.parametrize(
    ("problem_type", "function"),
    [(None, torch.sigmoid), ("regression", lambda logits: logits), ("multi_label_classification", torch.sigmoid)],
)
def test_one_logit_is_what_it_was_in_the_stock_pipeline(
    problem_type: str | None, function: Any, source_folder: str, tmp_path: Path
) -> None:
    target = reranker(tmp_path / "target", problem_type=problem_type)
    some = pairs(3, seed=9)
    model = RelativeStitcher.from_parts(source_folder, target, pairs(60), progress=False)
    model.save_pretrained(tmp_path / "model")
    scores = [one["score"] for one in pipeline("text-classification", model=str(tmp_path / "model"))(some)]
    assert scores == pytest.approx(function(model.predict(some))[:, 0].tolist(), abs=1e-5)
    is_answer = problem_type == "multi_label_classification"
    assert ("variance" in model.report["verdict"]["reason"]) == (not is_answer)


@pytest.mark.parametrize("activation", ["Identity", None])
def test_a_cross_encoder_takes_the_stitched_model(activation: str | None, source_folder: str, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    settings = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}} if activation else {}
    model = RelativeStitcher.from_parts(
        source_folder, reranker(tmp_path / "target", **settings), pairs(60), progress=False
    )
    model.save_pretrained(tmp_path / "model")
    scorer = sentence_transformers.CrossEncoder(str(tmp_path / "model"), device="cpu")
    some = pairs(8, seed=9)
    logits = model.predict(some)[:, 0]
    expected = logits if activation else logits.sigmoid()
    found = scorer.predict([(one["text"], one["text_pair"]) for one in some], show_progress_bar=False)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    ranked = scorer.rank(some[0]["text"], [one["text_pair"] for one in some[:4]])
    assert [one["corpus_id"] for one in ranked] == logits[:4].argsort(descending=True).tolist()


def test_a_cross_encoder_of_several_classes_is_told_their_number(
    stitched_pairs: RelativeStitcher, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    stitched_pairs.save_pretrained(tmp_path)
    some = pairs(4, seed=9)
    with pytest.raises(StitchError, match="1 classes are asked for and the head of the stitched model has 3"):
        sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    scorer = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu", num_labels=3)
    found = scorer.predict([(one["text"], one["text_pair"]) for one in some], show_progress_bar=False)
    np.testing.assert_allclose(found, stitched_pairs.predict(some).numpy(), atol=1e-5)


def test_half_precision_composes_the_same(source_folder: str) -> None:
    half, full = (
        Encoder.from_pretrained(source_folder, pairs="compose", dtype=dtype).encode(pairs(8), progress=False)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.1)


def test_anchor_sets_of_pairs_are_stitched_without_their_inputs(
    source_folder: str, target_folder: str, tmp_path: Path
) -> None:
    some, (target, head) = pairs(60), load_classifier(target_folder)
    source = Encoder.from_pretrained(source_folder, pairs="compose")
    for name, encoder in (("source", source), ("target", target)):
        AnchorSet.encode(encoder, some, progress=False).save_pretrained(tmp_path / name)
    loaded = [AnchorSet.from_pretrained(tmp_path / name) for name in ("source", "target")]
    assert loaded[0].groups.equal(input_ids([one["text"] for one in some]))
    model = RelativeStitcher.from_anchor_sets(source, *loaded, head)
    assert model.config.pairs["how"] == "compose"
    with pytest.raises(StitchError, match="pooling is 'mean, composed pairs' and not 'mean'"):
        RelativeStitcher.from_anchor_sets(Encoder.from_pretrained(source_folder), *loaded, head)


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    file = folder / "pairs.jsonl"
    content = [
        {"premise": one["text"], "hypothesis": one["text_pair"], "label": row % 2} for row, one in enumerate(rows)
    ]
    file.write_text("\n".join(map(json.dumps, content)))
    return file


def test_pairs_are_two_columns_of_a_table(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    some = pairs(60)
    file = str(table(tmp_path, some))
    columns = ["--column", "premise", "--pair-column", "hypothesis"]
    assert read_inputs(file, column="premise", pair_column="hypothesis") == some
    result = CliRunner().invoke(
        app, ["stitch", source_folder, target_folder, str(tmp_path / "m"), "--anchors", file, *columns]
    )
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "m"), file, *columns, "--json"])
    rows = json.loads(result.stdout)
    model = RelativeStitcher.from_pretrained(tmp_path / "m")
    answers = [pico.LABELS[answer] for answer in model.predict(some).argmax(-1).tolist()]
    assert [row["label"] for row in rows] == answers
    assert rows[0]["input"] == f"{some[0]['text']} | {some[0]['text_pair']}"
    with pytest.raises(StitchError, match=r"takes pairs of texts and what came in row 0 .* is a str"):
        predict(str(tmp_path / "m"), ["storm"])
    with pytest.raises(
        StitchError, match="second texts of pairs are column 'hypothesis': name the column of the first"
    ):
        read_inputs(file, pair_column="hypothesis")
    for second in ("pair_column", "target_column"):
        with pytest.raises(StitchError, match="both columns are 'premise': name two different ones"):
            read_inputs(file, column="premise", **{second: "premise"})
    ranked = recommend(target_folder, [source_folder], some, progress=False)
    assert ranked[0]["agreement"] == model.report["agreement"]


def test_the_shell_makes_anchor_sets_of_pairs(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    given = ["--anchors", str(table(tmp_path, pairs(60))), "--column", "premise", "--pair-column", "hypothesis"]
    sides = {"source": [source_folder, "--pairs", "compose"], "target": [target_folder, "--target"]}
    for name, (model, *how) in sides.items():
        arguments = ["anchors", model, str(tmp_path / name), *given, *how]
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    ours, theirs = (AnchorSet.from_pretrained(tmp_path / name) for name in sides)
    source = Encoder.from_pretrained(source_folder, pairs="compose")
    made = RelativeStitcher.from_anchor_sets(source, ours, theirs, load_classifier(target_folder)[1])
    whole = RelativeStitcher.from_parts(source, target_folder, pairs(60), progress=False)
    torch.testing.assert_close(made.predict(pairs(3)), whole.predict(pairs(3)), rtol=1e-3, atol=1e-4)


SUITE = """
name: pairs
data:
  salad:
    path: {data}
    inputs: {{text: premise}}
    text_pairs: {{text: hypothesis}}
    head_rows: 40
    test_rows: 40
    pairs: [[source, other]]
encoders:
  source: {{model: {source}, pairs: compose}}
  other: {{classifier: {target}}}
methods: [auto]
anchors: [32]
raw_rows: 30
"""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_suite_measures_pairs(source_folder: str, target_folder: str, tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    content = SUITE.format(data=table(tmp_path, pairs(200)), source=source_folder, target=target_folder)
    file.write_text(content)
    results = run_suite(file, tmp_path / "out", progress=False)
    assert results["failures"] == []
    (raw,) = results["raw_inputs"]
    assert raw["accuracy"] == raw["accuracy_from_latents"]
    assert results["data"]["salad"]["encoders"]["source"]["pairs"] == "compose"
    file.write_text(content.replace("text_pairs: {text:", "text_pairs: {txt:"))
    with pytest.raises(StitchError, match=r"line 7: 'salad' has no input 'txt' with the first texts: text"):
        run_suite(file, tmp_path / "other", progress=False)


@pytest.mark.parametrize("test_split", [None, "test"])
def test_pairs_of_one_first_text_are_for_one_purpose(test_split: str | None, tmp_path: Path) -> None:
    """A head or a translation that has seen a premise would be tested on it otherwise."""
    rows = [{"premise": f"storm {row // 5}", "hypothesis": f"coast {row}", "label": row % 2} for row in range(300)]
    parts = DatasetDict(train=Dataset.from_list(rows[:200]), test=Dataset.from_list(rows[190:300]))
    for name, part in parts.items():
        part.to_parquet(tmp_path / "data" / f"{name}.parquet")
    spec = DataSpec(
        inputs={"text": "premise"},
        path=str(tmp_path / "data"),
        text_pairs={"text": "hypothesis"},
        head_rows=42,
        test_rows=33,
        test_split=test_split,
    )
    read = read_rows("salad", spec, Document({}), most_anchors=20, given=None)
    inputs = read.inputs["text"]
    firsts = [{one["text"] for one in inputs[part]} for part in (read.heads, read.tests, read.candidates)]
    assert [len(inputs[part]) for part in (read.heads, read.tests)] == [42, 33]
    assert len(inputs[read.candidates]) == 80
    assert not firsts[0] & firsts[1]
    assert not (firsts[0] | firsts[1]) & firsts[2]


def test_an_encoder_with_a_head_reads_pairs_too(source: Encoder) -> None:
    model = RelativeStitcher.from_parts(source, source, pairs(60), head=nn.Linear(16, 3), progress=False)
    assert model.report["agreement"] > 0.8


def test_the_card_shows_how_to_give_pairs_and_how_their_order_is_kept(source_folder: str, tmp_path: Path) -> None:
    model = RelativeStitcher.from_parts(source_folder, reranker(tmp_path / "target"), pairs(60), progress=False)
    model.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'print(classify({"text": "One text", "text_pair": "Another text"}))' in card
    assert f"| Spearman of the values | {model.report['spearman']:.3f} |" in card
    assert f"| nDCG of the values | {model.report['ndcg']:.3f} |" in card


@pytest.mark.slow
def test_a_real_classifier_of_pairs_is_stitched_to_another_encoder(tmp_path: Path) -> None:
    """The target's own accuracy, and that of the stitched model through the stock pipeline, in batches."""
    folder, anchors, tests, labels = wordnet_pairs.problem("inference", anchors=1000, tests=400)
    target, head = load_classifier(str(folder))
    own = head.module(target.encode(tests, progress=False)).argmax(-1)
    model = RelativeStitcher.from_parts(str(assets.minilm()), target, anchors, head=head, progress=False)
    assert model.config.pairs["how"] == "compose"
    model.save_pretrained(tmp_path)
    answers = pipeline("text-classification", model=str(tmp_path))(tests, batch_size=32)
    found = torch.tensor([model.config.label2id[answer["label"]] for answer in answers])
    truth = torch.tensor(labels)
    assert float((found == truth).double().mean()) >= SHARES["inference"] * float((own == truth).double().mean())
    low, high = model.report["agreement_interval"]
    assert low - 0.05 <= float((found == own).double().mean()) <= high + 0.05


@pytest.mark.slow
def test_a_real_reranker_is_stitched_to_another_encoder(tmp_path: Path) -> None:
    """The nDCG of the target's own order, and that of the stitched model as a CrossEncoder."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder, anchors, tests, grades = wordnet_pairs.problem("ranking", anchors=1000, tests=400)
    target, head = load_classifier(str(folder))
    own = head.module(target.encode(tests, progress=False))[:, 0]
    model = RelativeStitcher.from_parts(str(assets.minilm()), target, anchors, head=head, progress=False)
    assert model.config.pairs["how"] == "compose"
    model.save_pretrained(tmp_path)
    scorer = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    found = torch.tensor(scorer.predict([tuple(one.values()) for one in tests], show_progress_bar=False))
    groups, relevance = first_ids(tests), torch.tensor(grades).double()
    share = discounted_gain(found.double(), relevance, groups) / discounted_gain(own.double(), relevance, groups)
    assert share >= SHARES["ranking"]
