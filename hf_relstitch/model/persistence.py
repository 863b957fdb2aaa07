"""Saving and loading a stitched model: a folder that is whole, checked before it is read."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_relstitch.configuration_relative_stitcher import SHARES, RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.encoders.callable_encoder import Function
from hf_relstitch.encoders.devices import fingerprint, placement
from hf_relstitch.encoders.pooling import LEFT_OUT, as_configured
from hf_relstitch.encoders.sentence_transformers_repo import transformer_in
from hf_relstitch.heads.loading import ADAPTER
from hf_relstitch.hub.cards import write_card
from hf_relstitch.hub.files import (
    STITCHED_MODEL,
    atomic_folder,
    check_kind,
    checksum,
    finish_save,
    read_json,
    verify_checksum,
    weight_map,
)
from hf_relstitch.hub.limits import limited_build
from hf_relstitch.hub.processes import accelerate_state
from hf_relstitch.hub.repo import HUB_OPTIONS, hub_options, is_commit, locate
from hf_relstitch.layers import CHAIN

CONFIG = "config.json"
ENCODER_OPTIONS = ("device_map", "max_memory", "offload_folder", "quantization_config", "attn_implementation")
UNLOADABLE = "the model could not be loaded again, so it is not saved"
REMEDY = (
    "give a source that AutoModel.from_pretrained loads and that changes nothing of it, register its classes with "
    "AutoConfig and AutoModel, or save the two anchor sets and stitch again"
)
MERGE = "merge its adapter into it first, by model.merge_and_unload(), or "
SETTINGS = (
    *("modality", "pooling", "after_pooling", "batching", "translation", "logit_temperature", "head", "readout"),
    *("pairs", "source_config"),
)
INDEX = "model.safetensors.index.json"
STUB_NAME = "relative_stitcher.py"
STUB = '''"""Imports the package; a program that says `import hf_relstitch` itself does not need this file."""

from hf_relstitch import RelativeStitcher, RelativeStitcherConfig, RelativeStitcherModel  # noqa: F401
'''
AUTO_CLASSES = {
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "image-classification": "AutoModelForImageClassification",
    "audio-classification": "AutoModelForAudioClassification",
}


def _auto_map(task: str) -> dict[str, str]:
    """Where `trust_remote_code=True` finds the classes: in the stub, which only imports the installed package."""
    stub = Path(STUB_NAME).stem
    return {
        "AutoConfig": f"{stub}.RelativeStitcherConfig",
        "AutoModel": f"{stub}.RelativeStitcherModel",
        AUTO_CLASSES[task]: f"{stub}.RelativeStitcher",
    }


def read_config(folder: Path) -> RelativeStitcherConfig:
    """Read the config of a stitched model's folder.

    Raises:
        StitchError: the config is missing, of another kind of model, or of a newer format.
    """
    content = read_json(folder / CONFIG)
    if content.get("model_type") != RelativeStitcherConfig.model_type:
        raise StitchError(f"{folder} holds a {content.get('model_type')} model: expected a stitched model")
    return RelativeStitcherConfig.from_dict(content)


@contextmanager
def _verified_weights(folder: Path, config: RelativeStitcherConfig) -> Iterator[None]:
    """Compare the weight files with the checksums in the config, on a thread, while the body loads them.

    Raises:
        StitchError: a file is missing or altered; where the body fails too, for the file's fault.
    """
    with ThreadPoolExecutor(1) as thread:
        compared = [thread.submit(verify_checksum, folder / name, digest) for name, digest in config.checksums.items()]
        try:
            yield
        finally:
            for one in compared:
                one.result()


def _check_listed(folder: Path, config: RelativeStitcherConfig) -> None:
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


def _settings_checksum(content: dict[str, Any]) -> str:
    """A hash of the fields of a `config.json` that change an answer, the weights aside."""
    fields = json.dumps({name: content.get(name) for name in SETTINGS}, sort_keys=True)
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(fields.encode())}"


def _check_answer_checksums(folder: Path, config: RelativeStitcherConfig) -> None:
    """Compare the processor's files and the config's settings with what was saved.

    Raises:
        StitchError: one was altered, by damage or by hand.
    """
    for name, expected in config.answer_checksums.items():
        if name in config.processor_files:
            verify_checksum(folder / name, expected)
        elif name == "settings" and _settings_checksum(read_json(folder / CONFIG)) != expected:
            raise StitchError(
                f"{folder / CONFIG} is damaged or was altered: one of {', '.join(SETTINGS)} is not what was saved; "
                "copy or download it again, or change the model and save it"
            )


def _check_shapes(cls: Any, folder: Path, config: RelativeStitcherConfig) -> None:
    """Compare the shapes that a config asks for with the headers of the weight files, before memory is taken for them.

    Raises:
        StitchError: they differ, or a file's header cannot be read.
    """
    if config.source_config is not None and type(config.source_config) not in MODEL_MAPPING:
        raise StitchError(f"{folder.name} has a source of type {config.source_config.model_type}: expected an encoder")
    files = [folder / name for name in config.checksums if (folder / name).is_file()]
    with torch.device("meta"), limited_build(files, f"the config of {folder.name}"):
        due = {name: [*tensor.shape] for name, tensor in cls(deepcopy(config)).state_dict().items()}
    for name in config.checksums:
        if not (folder / name).is_file():
            continue  # said, with the others, by the checksums
        try:
            with safe_open(folder / name, "pt") as opened:
                stored = {key: opened.get_slice(key).get_shape() for key in opened.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise StitchError(f"{folder / name} is damaged ({error}): copy or download it again") from error
        faults = [key for key, shape in stored.items() if due.get(key, shape) != shape]
        if faults:
            said = "; ".join(f"{key} of shape {tuple(stored[key])} and not {tuple(due[key])}" for key in faults)
            raise StitchError(f"{folder.name} is not a whole stitched model: it has {said}: save or download it again")


def _check_loaded(place: str, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that does not hold every tensor of the model in its right shape."""
    faults = [f"no {name}" for name in sorted(loading["missing_keys"])]
    faults += [f"{name} of shape {tuple(came)} and not {tuple(due)}" for name, came, due in loading["mismatched_keys"]]
    if faults:
        raise StitchError(
            f"{place} is not a whole stitched model: it has {'; '.join(faults)}: save or download it again"
        )


def _pin_encoder(encoder: Any, source: dict[str, Any], **options: Any) -> str | None:
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
    if _is_quantised(encoder):
        if getattr(encoder.config.quantization_config, "load_in_4bit", False):
            raise StitchError(
                "the source encoder is quantised to 4 bits by bitsandbytes, which does not give the same latents when "
                "it is loaded again: quantise it to 8 bits, or by another library"
            )
        return None
    _, dtype = placement(encoder)
    pinned, untrained = _load_pinned(source, like=encoder.config, dtype=dtype, **options)
    digest = fingerprint(pinned, without=untrained)
    if fingerprint(encoder, without=untrained) != digest:
        raise StitchError(
            f"the source encoder's weights are not those of {source['model_id']} at commit {source['revision']}: "
            "share='full' keeps them as they are"
        )
    return digest


def _pinned_encoder(config: RelativeStitcherConfig, *, dtype: Any = None, **options: Any) -> nn.Module:
    """The source encoder of an adapter, from the Hub, the same as when the adapter was saved.

    Raises:
        StitchError: it is not there at that commit any more, or its weights have changed.
    """
    options.setdefault("quantization_config", getattr(config.source_config, "quantization_config", None))
    encoder, untrained = _load_pinned(config.source, like=config.source_config, dtype=config.dtype, **options)
    quantised = _is_quantised(encoder)
    if not quantised and fingerprint(encoder, without=untrained) != config.encoder_fingerprint:
        raise StitchError(
            f"{config.source['model_id']} at commit {config.source['revision']} does not hold the weights that the "
            "adapter was made for: ask its author for a model with share='full'"
        )
    if quantised or dtype in (None, "auto"):
        return encoder
    return encoder.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def _is_quantised(model: nn.Module) -> bool:
    """Whether transformers quantised a model when it was loaded."""
    return getattr(model, "hf_quantizer", None) is not None


def _load_pinned(source: dict[str, Any], *, like: Any, **options: Any) -> tuple[nn.Module, set[str]]:
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
    repo = transformer_in(repo)
    if (how := options.pop("quantization_config", None)) is not None:
        stored = repo.config()
        options |= {} if hasattr(stored, "quantization_config") else {"quantization_config": how}
    with repo.limited_build():
        model, loading = AutoModel.from_pretrained(repo.place, output_loading_info=True, **repo.model_loading | options)
    return as_configured(model, like).eval().requires_grad_(False), set(loading["missing_keys"])


PARTS = ("encoder", "translation", "head")


def note_training(model: Any) -> None:
    """Record in the config which parts were trained since the last stitching or saving, and which facts are outdated.

    Weights in another dtype than before are not compared.
    """
    before, now = model.config.fingerprints, model._fingerprints()
    if before and before.get("dtype") == now["dtype"]:
        changed = [name for name in PARTS if name in before and before[name] != now.get(name)]
        if changed:
            model.config.trained = [name for name in PARTS if name in {*model.config.trained, *changed}]
            model.config.report = {name: value for name, value in model.config.report.items() if name != "verdict"}
            model.config.results = []
    model.config.fingerprints = now


def _check_loadable(model: Any, state: dict[str, Tensor], *, share: str) -> None:
    """Refuse a model whose tensors are not those that loading makes of its config.

    Modules that the encoder's class has and this encoder has not, as a pooler or a decoder, are named in its config.

    Raises:
        StitchError: the encoder's class is not the one that loading takes, or tensors differ in name or shape.
    """
    config = deepcopy(model.config)
    config.share = share
    try:
        with torch.device("meta"):
            if share == "full":
                whole = as_configured(
                    AutoModel.from_config(config.source_config, trust_remote_code=False), config.source_config
                )
                _check_class(model.encoder, whole)
                absent = [name for name, _ in whole.named_children() if getattr(model.encoder, name, None) is None]
                if absent:
                    left_out = [*getattr(config.source_config, LEFT_OUT, []), *absent]
                    for each in (config.source_config, model.config.source_config):
                        setattr(each, LEFT_OUT, left_out)
            empty = type(model)(config)
    except StitchError:
        raise
    except (OSError, ValueError) as error:
        raise StitchError(f"{UNLOADABLE}: transformers makes no model of its config ({error}): {REMEDY}") from error
    due = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    written = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if share == "adapter":
        written = {name: shape for name, shape in written.items() if not name.startswith("encoder.")}
    if written != due:
        names = sorted(name for name in written.keys() | due.keys() if written.get(name) != due.get(name))
        first = f"{names[0]} of shape {written.get(names[0], 'none')} where loading makes {due.get(names[0], 'none')}"
        merge = MERGE if any("lora_" in name for name in names) else ""
        raise StitchError(f"{UNLOADABLE}: it has {first}, and {len(names) - 1} other differences: {merge}{REMEDY}")


def _check_class(encoder: Any, whole: Any) -> None:
    """Refuse an encoder of a class that loading would replace by another one with other code."""
    module = type(encoder).__module__
    known = module.startswith("transformers.models.") or type(encoder) is type(whole)
    if not known or module.startswith("transformers_modules."):  # code of a repo, which another process does not have
        raise StitchError(
            f"{UNLOADABLE}: the source encoder is a {type(encoder).__name__}, and loading would make a "
            f"{type(whole).__name__} of its config: {MERGE if hasattr(encoder, 'merge_and_unload') else ''}{REMEDY}"
        )


def _check_savable(model: Any, *, share: str, push_to_hub: bool = False, variant: str | None = None) -> None:
    """Refuse what cannot be stored as data, and arguments that cannot be meant."""
    if isinstance(model.encoder, Function):
        raise StitchError(
            f"the source, {model.config.source['model_id']}, is a callable or was not given, so that there is no "
            "model to save: save the two anchor sets, and stitch again where they are loaded"
        )
    if model.config.source_config is None:
        raise StitchError(
            f"the source encoder is a {type(model.encoder).__name__}, whose architecture cannot be stored as data: "
            "make it a PreTrainedModel and register it with AutoConfig and AutoModel to save the stitched model; "
            "its anchors can be saved as sets, and stitched again"
        )
    if model.config.head["kind"] == "module":
        raise StitchError(
            f"the head is a {model.config.head['type']}, which works in memory and cannot be stored as data; what "
            f"can be is {CHAIN}"
        )
    if push_to_hub:
        raise StitchError("push_to_hub=True is no argument of save_pretrained here: call model.push_to_hub(repo_id)")
    if variant is not None:
        raise StitchError(f"variant is {variant!r}, and stitched models have none: use another dtype, model.half()")
    if share not in SHARES:
        raise StitchError(f"share is {share!r}: expected one of {', '.join(SHARES)}")
    if _is_quantised(model) or (share == "full" and _is_quantised(model.encoder)):
        raise StitchError(
            "the source encoder is quantised, and quantised weights are not saved: load it from the Hub with a "
            "quantization_config and use share='adapter', which names both, or stitch it unquantised"
        )


def save_model(
    model: Any, folder: str | Path, *, share: str = "full", repo_id: str | None = None, **kwargs: Any
) -> None:
    """Write a stitched model's folder whole, or leave it unchanged; see `RelativeStitcher.save_pretrained`."""
    check_kind(folder, STITCHED_MODEL)
    _check_savable(model, share=share, **{name: kwargs[name] for name in ("push_to_hub", "variant") if name in kwargs})
    if not kwargs.get("is_main_process", accelerate_state().is_main_process):
        return
    _check_loadable(model, kwargs.get("state_dict") or model.state_dict(), share=share)
    note_training(model)
    fingerprint = None
    if share == "adapter":
        options = {"token": kwargs["token"]} if "token" in kwargs else {}
        fingerprint = _pin_encoder(model.encoder, model.config.source, **options)
        state = kwargs.get("state_dict") or model.state_dict()
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
        kwargs["state_dict"] = kept
    model.config.share, model.config.encoder_fingerprint = share, fingerprint
    model.config.auto_map = _auto_map(model.config.task)
    model.config.source_config.name_or_path = model.config.source["model_id"]  # and no path of this machine
    if (timm := getattr(model.config.source_config, "pretrained_cfg", None)) is not None:
        model.config.pretrained_cfg = timm  # timm's image processor has no file of its own
        model.config.image_processor_type = type(model.processor).__name__
    with atomic_folder(folder, STITCHED_MODEL) as written:
        model.processor.save_pretrained(written)
        model.config.processor_files = sorted(file.name for file in written.iterdir() if file.is_file())
        PreTrainedModel.save_pretrained(model, written, **kwargs)
        (written / STUB_NAME).write_text(STUB, encoding="utf-8")
        model.config.checksums = {file.name: checksum(file) for file in sorted(written.glob("*.safetensors"))}
        if not model.config.checksums:
            raise StitchError("transformers wrote no weights in this process: save in the main process")
        model.config.answer_checksums = {name: checksum(written / name) for name in model.config.processor_files}
        model.config.save_pretrained(written)
        model.config.answer_checksums["settings"] = _settings_checksum(read_json(written / CONFIG))
        model.config.save_pretrained(written)
        write_card(read_json(written / CONFIG), written, folder=folder, repo_id=repo_id)


def load_model(cls: Any, place: str | Path, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
    """Load a stitched model of class `cls`; see `RelativeStitcher.from_pretrained`."""
    with wrap_errors(f"{place} cannot be loaded as a stitched model"):
        options = hub_options(kwargs)
        if finish_save(Path(place, options.get("subfolder", ""))) and kwargs.get("config") is not None:
            raise StitchError(f"a save to {place} had been cut off and is finished now: load the model again")
        repo = locate(place, revision=kwargs.get("revision"), **options)
        folder = repo.folder()
        if (folder / ADAPTER).is_file() or kwargs.get("_adapter_model_path"):
            raise StitchError(
                f"{repo.name} has an {ADAPTER} beside the stitched model, by which PEFT would change its weights: take "
                "that file away, or load the stitched model and then the adapter"
            )
        kwargs = {name: value for name, value in kwargs.items() if name not in (*HUB_OPTIONS, "revision", "subfolder")}
        stored = read_config(folder)
        config = kwargs.pop("config", None) or stored
        classes = kwargs.pop("num_labels", len(kwargs.get("id2label", config.id2label)))
        if classes != stored.num_labels:
            raise StitchError(
                f"{classes} classes are asked for and the head of the stitched model has {stored.num_labels}: stitch "
                "it to a head of others; where a library asks by itself, like CrossEncoder, say "
                f"num_labels={stored.num_labels}"
            )
        if kwargs.pop("variant", None) is not None:
            raise StitchError("a stitched model has no variants of its weights: leave variant out, and give dtype=")
        for name in kwargs.keys() & config.to_dict().keys() - {"dtype"}:
            setattr(config, name, kwargs.pop(name))
        _check_listed(folder, config)
        _check_answer_checksums(folder, config)
        _check_shapes(cls, folder, config)
        elsewhere = {name: kwargs.pop(name) for name in ENCODER_OPTIONS if name in kwargs and config.share == "adapter"}
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with _verified_weights(folder, config):
            model, loading = PreTrainedModel.from_pretrained.__func__(cls, str(folder), *args, config=config, **kwargs)
        _check_loaded(repo.name, loading)
        if config.share == "adapter":
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            model.attach(_pinned_encoder(config, dtype=dtype, **elsewhere, **repo.options))
        model.encoder.requires_grad_(False)  # as after stitching: the head trains, and what the user unfreezes
        model.after_pooling.requires_grad_(False)
        model.config.name_or_path = repo.place
        model._processor_folder = folder
        return (model, loading) if output_loading_info else model
