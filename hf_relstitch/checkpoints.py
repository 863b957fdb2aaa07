"""A stitched model's folder: what is checked before it is loaded, and the encoder that an adapter leaves on the Hub."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_relstitch.cards import RESULTS_NAME
from hf_relstitch.configuration_relative_stitcher import RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.devices import fingerprint, placement
from hf_relstitch.files import read_json, verify_checksum, weight_map
from hf_relstitch.hub import hub_options, is_commit, locate
from hf_relstitch.two_towers import as_configured

OWNED = ["model*.safetensors*", RESULTS_NAME]
"""Files of a stitched model that go when a newer one is saved over it without them."""
INDEX = "model.safetensors.index.json"
STUB_NAME = "relative_stitcher.py"
STUB = '''"""Loads the classes that the package brings: pip install hf-relstitch."""

from hf_relstitch import RelativeStitcher, RelativeStitcherConfig  # noqa: F401
'''
AUTO_CLASSES = {
    "text": "AutoModelForSequenceClassification",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
}


def auto_map(modality: str) -> dict[str, str]:
    """Where `trust_remote_code=True` finds the classes: in the stub, which only imports the installed package."""
    stub = Path(STUB_NAME).stem
    return {"AutoConfig": f"{stub}.RelativeStitcherConfig", AUTO_CLASSES[modality]: f"{stub}.RelativeStitcher"}


def read_config(folder: Path) -> RelativeStitcherConfig:
    """The config of a stitched model's folder.

    Raises:
        StitchError: there is none, it is of another kind of model, or of a newer format.
    """
    content = read_json(folder / "config.json")
    if content.get("model_type") != RelativeStitcherConfig.model_type:
        raise StitchError(f"{folder} holds a {content.get('model_type')} model: expected a stitched model")
    return RelativeStitcherConfig.from_dict(content)


@contextmanager
def verified_weights(folder: Path, config: RelativeStitcherConfig) -> Iterator[None]:
    """Compare the weight files with the checksums in the config, on a thread, while the body loads them.

    Raises:
        StitchError: no safetensors, a file that is missing or altered, or an index that names any other file; where
            the body fails too, for the file's fault.
    """
    check_listed(folder, config)
    with ThreadPoolExecutor(1) as thread:
        compared = [thread.submit(verify_checksum, folder / name, digest) for name, digest in config.checksums.items()]
        try:
            yield
        finally:
            for one in compared:
                one.result()


def check_listed(folder: Path, config: RelativeStitcherConfig) -> None:
    """Refuse a folder that lacks a file of the processor, or that names other weights than safetensors beside it."""
    if not config.checksums:
        raise StitchError(f"{folder} lists no safetensors in its config, and nothing else is read: save it again")
    if lacking := [name for name in config.processor_files if not (folder / name).is_file()]:
        raise StitchError(
            f"{folder} has no {lacking[0]} of its processor, without which inputs are read wrongly: copy or download it"
        )
    for name in config.checksums:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise StitchError(f"{folder} lists {name!r} as weights: expected a safetensors file in the same folder")
    if (folder / SAFE_WEIGHTS_NAME).is_file() and SAFE_WEIGHTS_NAME not in config.checksums:
        raise StitchError(
            f"{folder} has a {SAFE_WEIGHTS_NAME} that its config does not list, as after a save that was cut off: "
            "save or download it again"
        )
    if (folder / INDEX).is_file():
        strange = set(weight_map(folder / INDEX).values()) - set(config.checksums)
        if strange:
            raise StitchError(f"{folder / INDEX} names {', '.join(sorted(strange))}, not in the config's list")


def check_loaded(place: str, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not hold every tensor of the model in its right shape."""
    faults = [f"no {name}" for name in sorted(loading["missing_keys"])]
    faults += [f"{name} of shape {tuple(came)} and not {tuple(due)}" for name, came, due in loading["mismatched_keys"]]
    if faults:
        raise StitchError(
            f"{place} is not a whole stitched model: it has {'; '.join(faults)}: save or download it again"
        )


def pin_encoder(encoder: Any, source: dict[str, Any], **options: Any) -> str | None:
    """The fingerprint of an encoder that an adapter may leave out: it is the one on the Hub at the source's commit.

    None for one that is quantised, which is not compared: kernels pack its weights anew as they need them.

    Raises:
        StitchError: the source is not on the Hub at a commit, or its weights there are not the encoder's.
    """
    if not is_commit(source["revision"]):
        raise StitchError(
            f"the source {source['model_id']} was not loaded from the Hub, so an adapter has nothing to load it from "
            "again: push the encoder and stitch from its Hub id, or use share='full'"
        )
    if is_quantised(encoder):
        if getattr(encoder.config.quantization_config, "load_in_4bit", False):
            raise StitchError(
                "the source encoder is quantised to 4 bits by bitsandbytes, which does not give the same latents when "
                "it is loaded again: quantise it to 8 bits, or by another library"
            )
        return None
    _, dtype = placement(encoder)
    pinned, untrained = load_pinned(source, like=encoder.config, dtype=dtype, **options)
    digest = fingerprint(pinned, without=untrained)
    if fingerprint(encoder, without=untrained) != digest:
        raise StitchError(
            f"the source encoder's weights are not those of {source['model_id']} at commit {source['revision']}: "
            "share='full' keeps them as they are"
        )
    return digest


def pinned_encoder(config: RelativeStitcherConfig, *, dtype: Any = None, **options: Any) -> nn.Module:
    """The source encoder of an adapter, from the Hub, the same as when the adapter was saved.

    Raises:
        StitchError: it is not there at that commit any more, or its weights have changed.
    """
    options.setdefault("quantization_config", getattr(config.source_config, "quantization_config", None))
    encoder, untrained = load_pinned(config.source, like=config.source_config, dtype=config.dtype, **options)
    quantised = is_quantised(encoder)
    if not quantised and fingerprint(encoder, without=untrained) != config.encoder_fingerprint:
        raise StitchError(
            f"{config.source['model_id']} at commit {config.source['revision']} does not hold the weights that the "
            "adapter was made for: ask its author for a model with share='full'"
        )
    if quantised or dtype in (None, "auto"):
        return encoder
    return encoder.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def is_quantised(model: nn.Module) -> bool:
    """Whether transformers quantised a model when it was loaded."""
    return getattr(model, "hf_quantizer", None) is not None


def load_pinned(source: dict[str, Any], *, like: Any, **options: Any) -> tuple[nn.Module, set[str]]:
    """An encoder from the Hub at one commit, and the names of its weights that no training has made.

    `like` is a config: what it leaves out of the encoder is left out here. A `quantization_config` of None, or for an
    encoder that is stored quantised, is left out.
    """
    model_id, commit = source["model_id"], source["revision"]
    repo = locate(model_id, revision=commit, **hub_options(options))
    if repo.commit != commit:
        raise StitchError(
            f"{model_id} at commit {commit} is wanted from the Hub, and "
            + (f"the Hub gives commit {repo.commit}" if repo.commit else "a folder here has that name: move it away")
        )
    if (how := options.pop("quantization_config", None)) is not None:
        stored = AutoConfig.from_pretrained(repo.place, **repo.loading)
        options |= {} if hasattr(stored, "quantization_config") else {"quantization_config": how}
    model, loading = AutoModel.from_pretrained(repo.place, output_loading_info=True, **repo.loading | options)
    return as_configured(model, like).eval().requires_grad_(False), set(loading["missing_keys"])
