"""Loading runs no code and asks nothing, unless the user has said that a repo's code may run."""

import builtins
import json
from pathlib import Path

import pico
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from hf_relstitch import Encoder, RelativeStitcher, StitchError, load_classifier

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
class OwnClassifier(BertForSequenceClassification):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose classes are its own code."""
    folder = Path(pico.saved("Bert", tmp_path / "custom"))
    (folder / "own.py").write_text(CODE)
    config = json.loads((folder / "config.json").read_text())
    auto_map = {
        "AutoConfig": "OwnConfig",
        "AutoModel": "OwnModel",
        "AutoModelForSequenceClassification": "OwnClassifier",
    }
    config |= {"model_type": "own", "auto_map": {name: f"own.{kind}" for name, kind in auto_map.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))

    def asked(*args: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr(builtins, "input", asked)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


def test_code_of_a_repo_does_not_run_unless_told(custom: Path, source: Encoder) -> None:
    for load in (Encoder.from_pretrained, load_classifier):
        with pytest.raises(StitchError, match="trust_remote_code=True"):
            load(str(custom))
    with pytest.raises(StitchError, match="trust_remote_code"):
        RelativeStitcher.from_parts(str(custom), str(custom), pico.texts(40), progress=False)


def test_a_trusted_repo_is_source_and_target(custom: Path, tmp_path: Path) -> None:
    source = Encoder.from_pretrained(str(custom), trust_remote_code=True)
    target, head = load_classifier(str(custom), trust_remote_code=True)
    assert type(source.model).__name__ == "OwnModel"
    assert type(target.processor).__name__ == "OwnTokenizer"
    model = RelativeStitcher.from_parts(source, target, pico.texts(40), head=head, progress=False)
    with pytest.raises(StitchError, match="could not be loaded again, so it is not saved"):
        model.save_pretrained(tmp_path / "saved")


def test_a_tokenizer_with_code_beside_a_known_model_asks_nothing(custom: Path) -> None:
    config = json.loads((custom / "config.json").read_text())
    del config["auto_map"]
    (custom / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    assert type(Encoder.from_pretrained(str(custom)).processor).__name__ != "OwnTokenizer"
    assert type(Encoder.from_pretrained(str(custom), trust_remote_code=True).processor).__name__ == "OwnTokenizer"


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_names_no_kernels(field: str, stitched: RelativeStitcher, source_folder: str, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path / "stitched")
    file = tmp_path / "stitched" / "config.json"
    content = json.loads(file.read_text())
    del content["answer_checksums"]  # which whoever crafts a config can write too
    for place in (content, content["source_config"]):
        place[field] = "mallory/kernels"
    file.write_text(json.dumps(content))
    config = AutoConfig.from_pretrained(tmp_path / "stitched")
    assert "mallory" not in json.dumps(config.to_dict())
    assert "mallory" not in str([vars(config), vars(config.source_config)])
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "stitched")
    torch.testing.assert_close(loaded.predict(pico.texts(3)), stitched.predict(pico.texts(3)))
    AutoModel.from_pretrained(source_folder).save_pretrained(tmp_path / "source")
    pico.tokenizer().save_pretrained(tmp_path / "source")
    file = tmp_path / "source" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: "mallory/kernels"}))
    assert "mallory" not in str(vars(Encoder.from_pretrained(str(tmp_path / "source")).model.config))


def test_an_adapter_beside_a_stitched_model_is_refused(stitched: RelativeStitcher, tmp_path: Path) -> None:
    stitched.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(StitchError, match=r"has an adapter_config.json beside the stitched model"):
        RelativeStitcher.from_pretrained(tmp_path)
