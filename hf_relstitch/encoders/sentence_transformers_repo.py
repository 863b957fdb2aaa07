"""A sentence-transformers repo's own files: its pooling, what comes after it, and how long a text may be."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers.normalizers import Lowercase, Normalizer, Prepend, Sequence
from torch import nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import SETTINGS, read_json
from hf_relstitch.hub.repo import CONFIG, MODULES, Repo
from hf_relstitch.layers import Normalize, linear_of

POOLING_MODES = {  # sentence-transformers' name, old and new, and ours
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
    "max": "max",
    "max_tokens": "max",
    "weightedmean": "weighted_mean",
    "weightedmean_tokens": "weighted_mean",
}
NOT_HERE = (
    "name a pooling to use the transformer alone, without what comes after it, or give the whole model as a callable, "
    "CallableEncoder(SentenceTransformer(…).encode, model_id=…)"
)
USUAL = {  # of a Transformer's settings, what changes nothing, None and empty ones aside
    "transformer_task": "feature-extraction",
    "module_output_name": "token_embeddings",
    "unpad_inputs": True,
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
}
MODEL_ARGUMENTS = {"add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "use_memory_efficient_attention"}
"""Of a Transformer's arguments to its model, those that change no embedding of tokens."""
DENSE_ACTIVATIONS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (nn.Tanh, nn.ReLU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ReLU6, nn.LeakyReLU, nn.Mish, nn.Hardswish)
}
MOST_MODULES, WIDEST = 100, 16_384
NAMES = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}


@dataclass(frozen=True)
class SentenceModules:
    """Hold the steps of a sentence-transformers repo on a text and on the transformer's output.

    Attributes:
        pooling: this package's name for its pooling.
        after_pooling: what comes after it, in its order, as layers; a truncation as a linear layer.
        folder: where in the repo the transformer lies; empty for its top.
        max_length: tokens after which a text is cut; None for the tokenizer's own limit.
        lower_case: True if texts become lower case, whatever the tokenizer does.
    """

    pooling: str
    after_pooling: nn.Sequential
    folder: str
    max_length: int | None
    lower_case: bool

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """Return a tokenizer that cuts and lowers texts by the repo's rules."""
        if self.max_length is not None:
            tokenizer.model_max_length = self.max_length
        if self.lower_case and "Lowercase" not in repr(tokenizer.backend_tokenizer.normalizer):
            return _normalizing_first(tokenizer, Lowercase())
        return tokenizer


def read_sentence_modules(repo: Repo) -> SentenceModules | None:
    """Read the modules of a sentence-transformers repo; return None for any other repo.

    Raises:
        StitchError: a module, or a setting of it, is not supported.
    """
    if (file := repo.file(MODULES)) is None:
        return None
    try:
        modules = [(module["type"], module["path"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (KeyError, TypeError, ValueError) as error:
        raise StitchError(f"{repo.name}: {MODULES} lists no modules ({error!r}): download it again") from error
    if len(modules) > MOST_MODULES:
        raise _refused(repo, f"has {len(modules)} modules; read are {MOST_MODULES} at most")
    folder = _inside(modules[0][1]) if modules else ""
    kinds = [kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind for kind, _ in modules]
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", *AFTER)]:
        raise _refused(repo, f"has the module {unknown[0]}; read are Transformer, Pooling, {', '.join(AFTER)}")
    if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(kinds[2:]):
        raise _refused(repo, f"has the modules {', '.join(kinds)}; Transformer and Pooling have to come first, once")
    settings = _read(repo, f"{folder}/sentence_bert_config.json".lstrip("/"))
    for name in ("model_args", "model_kwargs"):
        if isinstance(given := settings.get(name), dict) and given.keys() <= MODEL_ARGUMENTS:
            settings.pop(name)
    max_length, lower_case = settings.pop("max_seq_length", None), settings.pop("do_lower_case", False)
    if odd := [name for name, value in settings.items() if value not in (None, {}, False, USUAL.get(name))]:
        raise _refused(repo, f"has a Transformer with {odd[0]} {settings[odd[0]]!r}")
    (_, pooling), *others = [(kind, path) for kind, (_, path) in zip(kinds, modules, strict=True)][1:]
    layers = [AFTER[kind](repo, path) for kind, path in others]
    after = nn.Sequential(*[layer for some in layers for layer in some], *_truncation(repo, pooling, layers))
    after.eval().requires_grad_(False)
    return SentenceModules(_pooling(repo, pooling), after, folder, max_length, bool(lower_case))


def transformer_in(repo: Repo) -> Repo:
    """Return where the transformer lies in a sentence-transformers repo; any other repo unchanged."""
    file = repo.file(MODULES)
    try:
        modules = json.loads(file.read_text(encoding="utf-8")) if file else []
        folder = _inside(modules[0]["path"]) if modules else ""
    except (KeyError, TypeError, ValueError):
        return repo
    if not folder or repo.file(f"{folder}/{CONFIG}") is None:
        return repo
    return replace(repo, subfolder="/".join(filter(None, [repo.subfolder, folder])))


def _inside(path: str) -> str:
    """A module's path, as part of a repo."""
    return "" if path in ("", ".") else path.strip("/")


def _truncation(repo: Repo, pooling: str, layers: list[list[nn.Module]]) -> list[nn.Module]:
    """The first numbers of each vector, where the repo says how many it is truncated to, as a linear layer."""
    truncate_dim = _read(repo, SETTINGS).get("truncate_dim")
    config = _read(repo, f"{pooling}/config.json")
    widths = [layer.out_features for some in layers for layer in some if isinstance(layer, nn.Linear)]
    width = [config.get("embedding_dimension", config.get("word_embedding_dimension")), *widths][-1]
    if truncate_dim is None or (isinstance(width, int) and width <= truncate_dim):
        return []
    if not isinstance(width, int) or not isinstance(truncate_dim, int) or not 1 <= truncate_dim < width <= WIDEST:
        raise _refused(repo, f"truncates vectors of {width!r} numbers to {truncate_dim!r}")
    return [linear_of(torch.eye(truncate_dim, width), None)]


def _read(repo: Repo, name: str) -> dict[str, Any]:
    file = repo.file(name)
    return dict(read_json(file)) if file else {}


def _refused(repo: Repo, what: str) -> StitchError:
    return StitchError(f"{repo.name} is a sentence-transformers model that {what}: {NOT_HERE}")


def read_prompts(repo: Repo) -> tuple[dict[str, str], str | None]:
    """Read the texts that a sentence-transformers repo may put before an input, by name, and the default one's name."""
    config = _read(repo, SETTINGS)
    prompts = {name: text for name, text in (config.get("prompts") or {}).items() if text}
    default = config.get("default_prompt_name")
    return prompts, default if default in prompts else None


def prepend_prompt(tokenizer: Any, prompt: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer that puts a text before each input; it saves that, and pipelines and exports do it too.

    Raises:
        StitchError: the tokenizer is not one of the tokenizers library.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise StitchError(
            f"a {type(tokenizer).__name__} cannot put the prompt {prompt!r} before each text: save a fast tokenizer "
            "with the model"
        )
    return _normalizing_first(tokenizer, Prepend(prompt))


def _normalizing_first(tokenizer: PreTrainedTokenizerBase, first: Normalizer) -> PreTrainedTokenizerFast:
    """Return a copy of a tokenizer that applies this before its own normalizer, also when it is saved and loaded.

    It is of the general class, since those of an architecture, like BertTokenizer, make a normalizer of their own when
    they are loaded, and leave out the one in the file.
    """
    backend = deepcopy(tokenizer.backend_tokenizer)
    backend.normalizer = Sequence([first, *([backend.normalizer] if backend.normalizer else [])])
    names = ("model_max_length", "model_input_names", "padding_side", "truncation_side")
    settings = {name: getattr(tokenizer, name) for name in names} | dict(tokenizer.special_tokens_map)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def _pooling(repo: Repo, path: str) -> str:
    """Our name for the mode in a `1_Pooling/config.json`, old form or new."""
    config = _read(repo, f"{path}/config.json")
    modes = [
        name.removeprefix("pooling_mode_")
        for name, value in config.items()
        if name.startswith("pooling_mode_") and value
    ]
    if (mode := config.get("pooling_mode")) is not None:
        modes = [mode] if isinstance(mode, str) else list(mode)
    if config.get("include_prompt") is False and read_prompts(repo)[0]:
        raise _refused(repo, "leaves its prompts out of the pooling")
    if len(modes) != 1 or modes[0] not in POOLING_MODES:
        raise _refused(repo, f"pools by {' and '.join(modes) or 'nothing'}")
    return POOLING_MODES[modes[0]]


def _normalize(repo: Repo, path: str) -> list[nn.Module]:
    _check_names(repo, "Normalize", _read(repo, f"{path}/config.json"))
    return [Normalize()]


def _check_names(repo: Repo, kind: str, config: dict[str, Any]) -> None:
    for name, usual in NAMES.items():
        if config.get(name) not in (None, usual):
            raise _refused(repo, f"has a {kind} whose {name} is {config[name]!r}")


def _layer_norm(repo: Repo, path: str) -> list[nn.Module]:
    return [_loaded(repo, path, lambda config: nn.LayerNorm(config["dimension"]), prefix="norm.")]


def _loaded(repo: Repo, path: str, make: Callable[[dict[str, Any]], nn.Module], *, prefix: str) -> nn.Module:
    """The layer that `make` makes of a module's config, with the weights in its folder."""
    config, file = _read(repo, f"{path}/config.json"), repo.file(f"{path}/model.safetensors")
    if file is None:
        raise _refused(repo, f"has no {path}/model.safetensors, and nothing else is read")
    try:
        with torch.device("meta"):  # no memory for numbers of a config before they are compared with the file's
            layer = make(config)
        tensors = {name.removeprefix(prefix): tensor.float() for name, tensor in load_file(file).items()}
        layer.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise StitchError(f"{repo.name}: {path} is no whole module ({error}): download it again") from error
    return layer


def _dense(repo: Repo, path: str) -> list[nn.Module]:
    """A Dense module as a linear layer and its activation."""
    config = _read(repo, f"{path}/config.json")
    _check_names(repo, "Dense", config)
    if config.get("use_residual"):
        raise _refused(repo, "has a Dense with a residual")

    def linear_of_config(config: dict[str, Any]) -> nn.Module:
        return nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))

    linear = _loaded(repo, path, linear_of_config, prefix="linear.")
    return [linear, *_activation(repo, config.get("activation_function", "torch.nn.modules.activation.Tanh"))]


def _activation(repo: Repo, path: str) -> list[nn.Module]:
    """The activation that a Dense names; looked up among those known here, never imported by the name."""
    module, _, name = path.rpartition(".")
    if path == "torch.nn.modules.linear.Identity":
        return []
    if module != "torch.nn.modules.activation" or name not in DENSE_ACTIVATIONS:
        raise _refused(repo, f"has a Dense with the activation {path}")
    return [DENSE_ACTIVATIONS[name]()]


AFTER: dict[str, Callable[[Repo, str], list[nn.Module]]] = {
    "Dense": _dense,
    "Normalize": _normalize,
    "LayerNorm": _layer_norm,
    "Dropout": lambda *_: [],  # which does nothing once a model is trained
}
"""The modules that may follow the pooling, and what reads them as layers."""
