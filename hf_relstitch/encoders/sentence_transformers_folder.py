"""An encoder and its translation as a sentence-transformers model, which runs without this package.

The files have the names and fields of the library's first layout: `text-embeddings-inference` and older versions of
sentence-transformers read no other, and newer versions read it too.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.options import Metric
from hf_relstitch.core.translation import KernelTranslation, Translation
from hf_relstitch.data.inputs import probe_inputs
from hf_relstitch.encoders.batches import BATCHINGS, encode_batch
from hf_relstitch.encoders.devices import placement
from hf_relstitch.encoders.processors import modality_of, preprocess
from hf_relstitch.encoders.sentence_transformers_repo import DENSE_ACTIVATIONS, POOLING_MODES
from hf_relstitch.hub.cards import CARD_NAME, write_card
from hf_relstitch.hub.files import EXPORTED, FACTS, PARTIAL, SETTINGS, atomic_folder, check_kind, read_json, write_json
from hf_relstitch.hub.repo import MODULES
from hf_relstitch.layers import Normalize, flatten_layers, linear_of
from hf_relstitch.version import __version__

INSTALL = 'pip install "hf-relstitch[sentence-transformers]"'
MODES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
SIMILARITIES = {"cosine": "cosine", "ip": "dot", "l2": "euclidean"}
TOLERANCE = 1e-4
Module = tuple[str, dict[str, Any], dict[str, Tensor]]
"""Kind, config and tensors."""
NO_LIMIT = 10**6
"""A tokenizer without a limit has a larger one."""


def translation_layers(
    translation: Translation | KernelTranslation, *, row_norm: float | None = None
) -> list[Normalize | nn.Linear]:
    """Write a translation as layers: one linear layer, with `norm="mean"` after a centring and a normalisation.

    Raises:
        StitchError: the translation has a kernel.
    """
    if isinstance(translation, KernelTranslation):
        raise StitchError(
            "the translation has a kernel, which no module of sentence-transformers computes: fit it with "
            "prefer='linear'"
        )
    layers: list[Normalize | nn.Linear] = []
    if translation.norm == "mean":
        identity = torch.eye(len(translation.centre)).to(translation.weight)
        layers = [linear_of(identity, -translation.centre), Normalize()]
    layers.append(linear_of(translation.weight.T.contiguous(), translation.bias))
    if row_norm is not None:
        layers.append(Normalize())
    if row_norm not in (None, 1.0):
        layers.append(linear_of(row_norm * torch.eye(len(translation.bias)).to(translation.weight), None))
    return layers


def to_sentence_transformer(folder: str | Path | None = None, **parts: Any) -> Any:
    """Return the SentenceTransformer that `save_sentence_transformer` makes of `parts`; keep the folder if given.

    Raises:
        StitchError: as in `save_sentence_transformer`.
    """
    if folder is not None:
        return save_sentence_transformer(folder, **parts)
    with TemporaryDirectory() as temporary:
        return save_sentence_transformer(Path(temporary, "model"), **parts)


@torch.no_grad()
def save_sentence_transformer(
    folder: str | Path,
    *,
    model: Any,
    processor: Any,
    pooling: str,
    layers: Sequence[nn.Module],
    batching: str,
    facts: Mapping[str, Any],
    metric: Metric = "cosine",
    prompts: Mapping[str, str] = MappingProxyType({}),
    repo_id: str | None = None,
) -> Any:
    """Write an encoder, its pooling and the layers after it for sentence-transformers, and return what it loads.

    The folder is there once sentence-transformers has loaded it and has given the encoder's own vectors. An encoder in
    half precision is written in float32. `prompts` are texts to put before an input, by name. The facts are for the
    card: `source` and `target`, each a provenance, the `report`, and what of a search is translated, `translates`.

    Raises:
        StitchError: the `sentence-transformers` extra is not installed; that library has no module for a part, or it
            gives other vectors; the folder holds another model.
    """
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise StitchError(f"a sentence-transformers model needs {error.name}: {INSTALL}") from error
    check_kind(folder, EXPORTED)
    _check_encoder(model, processor, pooling=pooling, batching=batching)
    if torch.finfo(placement(model)[1]).bits < 32:
        model = deepcopy(model).float()
    device = placement(model)[0]
    chain = deepcopy(nn.Sequential(*flatten_layers(nn.Sequential(*layers)))).to(device, torch.float32)
    modules = _list_modules(chain, pooling=pooling)
    expected = _encode_probes(model, processor, chain, pooling=pooling)
    with atomic_folder(folder, EXPORTED) as written:
        model.save_pretrained(written)
        processor.save_pretrained(written)
        if (limit := processor.model_max_length) < NO_LIMIT:
            write_json(written / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
        settings = {
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": SIMILARITIES[metric],
            FACTS: {
                **facts,
                "normalizes_first": any(isinstance(layer, Normalize) for layer in list(chain)[: _last_linear(chain)]),
                "hf_relstitch_version": __version__,
            },
        }
        write_json(written / SETTINGS, settings)
        _write_modules(written, modules)
        write_card(settings, written, folder=folder, repo_id=repo_id)
        try:
            made = SentenceTransformer(str(written), device=str(device))
        except Exception as error:  # whatever that library raises
            raise StitchError(f"sentence-transformers does not load the model: {error}") from error
        _compare(made, expected)
    made[0].auto_model.name_or_path = ""  # the folder that it was loaded from is gone
    return made


def copy_exported(source: Path, folder: Path, *, repo_id: str) -> None:
    """Copy an exported encoder's folder into another one, with a card that shows the repo id and keeps edits there."""
    left_out = shutil.ignore_patterns(f"{PARTIAL}*", CARD_NAME, ".cache")
    shutil.copytree(source, folder, ignore=left_out, dirs_exist_ok=True)
    write_card(read_json(source / SETTINGS), folder, folder=folder, repo_id=repo_id)


def _check_encoder(model: Any, processor: Any, *, pooling: str, batching: str) -> None:
    """Refuse an encoder that sentence-transformers would load as another one, or run in another way."""
    if not isinstance(model, PreTrainedModel):
        raise StitchError(
            f"the encoder is a {type(model).__name__}: expected a transformers model, whose weights can be written"
        )
    if (modality := modality_of(processor)) != "text":
        raise StitchError(f"the encoder is for {modality}: only text encoders are written for sentence-transformers")
    if batching != "padded":
        raise StitchError(
            f"sentence-transformers pads texts of different lengths, and of this encoder {BATCHINGS[batching]}: use "
            "the translation itself"
        )
    if pooling not in POOLING_MODES.values():
        raise StitchError(
            f"the encoder's pooling is {pooling!r}, which sentence-transformers has no module for: expected one of "
            f"{', '.join(dict.fromkeys(POOLING_MODES.values()))}"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise StitchError("the encoder is quantised, and quantised weights are not saved: load it unquantised")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise StitchError("the encoder has an adapter of PEFT: merge it first, by model.merge_and_unload()")


def _list_modules(chain: nn.Sequential, *, pooling: str) -> list[Module]:
    """List the modules after the transformer: kind, config and tensors of each.

    Raises:
        StitchError: sentence-transformers has no module for a layer.
    """
    linears = [layer for layer in chain if isinstance(layer, nn.Linear)]
    mode = next(old for old in MODES if POOLING_MODES.get(old) == pooling)
    modes = {f"pooling_mode_{each}": each == mode for each in MODES}
    modules: list[Module] = [("Pooling", {"word_embedding_dimension": linears[0].in_features, **modes}, {})]
    for index, layer in enumerate(chain):
        if isinstance(layer, Normalize):
            modules.append(("Normalize", {}, {}))
        elif isinstance(layer, nn.Linear):
            follower = chain[index + 1] if index + 1 < len(chain) else None
            activation = "torch.nn.modules.linear.Identity"
            if type(follower) in DENSE_ACTIVATIONS.values():
                activation = f"torch.nn.modules.activation.{type(follower).__name__}"
            sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
            config = {**sizes, "bias": layer.bias is not None, "activation_function": activation}
            tensors = {f"linear.{name}": tensor.contiguous() for name, tensor in layer.state_dict().items()}
            modules.append(("Dense", config, tensors))
        elif type(layer) is nn.LayerNorm and layer.eps == nn.LayerNorm(1).eps and layer.bias is not None:
            tensors = {f"norm.{name}": tensor.contiguous() for name, tensor in layer.state_dict().items()}
            modules.append(("LayerNorm", {"dimension": layer.normalized_shape[0]}, tensors))
        elif type(layer) not in DENSE_ACTIVATIONS.values() or not index or not isinstance(chain[index - 1], nn.Linear):
            raise StitchError(
                f"a layer of the encoder is a {type(layer).__name__}, which sentence-transformers has no module for "
                "there: expected linear layers, each maybe with an activation, and normalisations"
            )
    return modules


def _last_linear(chain: nn.Sequential) -> int:
    """Return the place of the last linear layer."""
    return max(index for index, layer in enumerate(chain) if isinstance(layer, nn.Linear))


def _write_modules(folder: Path, modules: Sequence[Module]) -> None:
    """Write the folder of each module after the transformer, and the list of all."""
    listed = [("", "Transformer"), *[(f"{index}_{kind}", kind) for index, (kind, _, _) in enumerate(modules, 1)]]
    for (path, _), (_, config, tensors) in zip(listed[1:], modules, strict=True):
        (folder / path).mkdir()
        write_json(folder / path / "config.json", config)
        if tensors:
            save_file(tensors, folder / path / "model.safetensors", {"format": "pt"})
    content = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(listed)
    ]
    (folder / MODULES).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _encode_probes(model: Any, processor: Any, chain: nn.Sequential, *, pooling: str) -> Tensor:
    """Return the vectors `(n, d_target)` of some texts by the encoder and its layers.

    Raises:
        StitchError: a layer takes vectors of another width than it gets.
    """
    batch = preprocess(model, processor, probe_inputs("text"))
    vectors, _ = encode_batch(model, batch, pooling=pooling, after_pooling=nn.Sequential())
    for layer in chain:
        if isinstance(layer, nn.Linear) and layer.in_features != vectors.shape[1]:
            raise StitchError(
                f"the translation, or a layer before it, takes vectors {layer.in_features} wide and gets "
                f"{vectors.shape[1]}: give the encoder that the translation was fitted to"
            )
        vectors = layer(vectors)
    return vectors


def _compare(made: Any, expected: Tensor) -> None:
    """Refuse a SentenceTransformer that gives other vectors than the encoder and its layers."""
    found = made.encode(probe_inputs("text"), convert_to_tensor=True, show_progress_bar=False).to(expected)
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if found.shape != expected.shape or not (found - expected).abs().max() <= allowed:
        raise StitchError("sentence-transformers gives other vectors than the translation: use the translation itself")
