"""docs/support.md says what is: a handful of architectures of each kind here, and all of them where there is time."""

import re
from pathlib import Path

import pytest
import support

TABLE = Path(__file__).parent.parent / "docs" / "support.md"
HANDFUL = {
    ("sequence", "t5gemma", "T5GemmaForSequenceClassification"): ("score.out_proj", "last"),
    ("sequence", "llama", "LlamaForSequenceClassification"): ("score", "last"),
    ("sequence", "eurobert", "EuroBertForSequenceClassification"): ("classifier", "mean"),
    ("sequence", "perceiver", "PerceiverForSequenceClassification"): ("perceiver.decoder.decoder.final_layer", "last"),
    ("token", "deberta-v2", "DebertaV2ForTokenClassification"): ("classifier", "each"),
    ("token", "gpt2", "GPT2ForTokenClassification"): ("classifier", "each"),
    ("image", "swiftformer", "SwiftFormerForImageClassification"): ("head and dist_head", "pooled"),
    ("image", "hgnet_v2", "HGNetV2ForImageClassification"): ("fc", "pooled"),
    ("image", "pp_lcnet", "PPLCNetForImageClassification"): ("head", "pooled"),
    ("audio", "whisper", "WhisperForAudioClassification"): ("classifier", "pooled"),
}


NO_SOURCES = {"perceiver": "refused", "pp_lcnet": "refused"}


@pytest.mark.parametrize("case", HANDFUL)
def test_is_cut_at(case: tuple[str, str, str]) -> None:
    row = support.try_cut(*case)
    assert (row.layer, row.row, row.reason) == (*HANDFUL[case], "")
    assert row.saved == NO_SOURCES.get(case[1], "yes")


def test_what_cannot_be_cut_says_why() -> None:
    row = support.try_cut("image", "shieldgemma2", "ShieldGemma2ForImageClassification")
    assert row.built
    assert not row.exact
    assert row.reason.startswith("ShieldGemma2ForImageClassification does not run on pixel_values alone")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # inside transformers
def test_the_table_is_up_to_date() -> None:
    tables = {task: support.rows(task) for task in support.HEADINGS}
    built = [row for table in tables.values() for row in table if row.built]
    types = {task: len({row.model_type for row in table if row.built}) for task, table in tables.items()}
    assert sum(row.exact for row in built) >= 0.98 * len(built)
    sources = [row for row in built if not row.source_batches.startswith("refused: ")]
    assert len(sources) >= 0.95 * len(built)
    assert all(row.source_batches.startswith("yes") and row.saved == "yes" for row in sources)
    texts = [row for row in tables["sequence"] if row.exact]
    assert sum(row.pairs == "yes" for row in texts) >= 0.98 * len(texts)
    kept = TABLE.read_text(encoding="utf-8")
    if f"transformers {support.VERSION}." in kept:
        assert support.render(tables) == kept, "run python scripts/make_support_table.py"
    architectures = set(re.findall(r"^\| \S+ \| (\w+For\w+) \|", kept, flags=re.MULTILINE))
    changed = set(support.render(tables).splitlines()) - set(kept.splitlines())
    assert not [line for line in changed if line.startswith("| ") and line.split(" | ")[1] in architectures]
    assert types["sequence"] >= 115
    assert types["token"] >= 95
    assert types["image"] >= 38
    assert types["audio"] >= 12
