"""Heads: taking a target model apart, at the input of its last linear layer, into encoder and head."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_relstitch.core.errors import StitchError
from hf_relstitch.encoders import Encoder, load_processor, main_modality, modality_of, preprocess
from hf_relstitch.files import read_json
from hf_relstitch.hub import Repo, hub_options, is_commit, locate
from hf_relstitch.pooling import last_token, mean_of_tokens
from hf_relstitch.provenance import Provenance

TASKS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForImageClassification": AutoModelForImageClassification,
}
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Head:
    """What a target model does to a latent to get logits.

    Attributes:
        linear: its last linear layer.
        id2label: the name of each class.
        problem_type: as in a transformers config; None leaves it to the loss.
        provenance: the target model and where it was cut; None for a layer that came without a model.
    """

    linear: nn.Linear
    id2label: dict[int, str]
    problem_type: str | None = None
    provenance: Provenance | None = None

    @property
    def multi_label(self) -> bool:
        """Whether each class is answered yes or no by itself."""
        return self.problem_type == "multi_label_classification"

    @classmethod
    def of(cls, head: "Head | nn.Linear", *, labels: list[str] | None = None) -> "Head":
        """A head as it is, or a bare linear layer as a head whose classes have these names.

        Raises:
            StitchError: another kind of module, or not as many names as classes.
        """
        if isinstance(head, cls) and labels is None:
            return head
        linear = head.linear if isinstance(head, cls) else head
        if not isinstance(linear, nn.Linear):
            raise StitchError(
                f"the head is a {type(linear).__name__}: expected an nn.Linear from target latents to logits"
            )
        names = labels or [f"LABEL_{index}" for index in range(linear.out_features)]
        if len(names) != linear.out_features:
            raise StitchError(f"{len(names)} labels for a head of {linear.out_features} classes: name each class once")
        problem_type, provenance = (head.problem_type, head.provenance) if isinstance(head, cls) else (None, None)
        return cls(linear, dict(enumerate(names)), problem_type, provenance)

    @classmethod
    def of_model(cls, provenance: Provenance, **options: Any) -> "Head":
        """The head of a classifier on the Hub, without its encoder: its last layer alone is read from the weights.

        `provenance` is that of target anchors, which says where the model was cut; `options` are `token`,
        `cache_dir`, `local_files_only` and `force_download`.

        Raises:
            StitchError: the anchors were not cut from a classifier on the Hub, or it is not there any more.
        """
        cut_at = re.fullmatch(r"input of (\S+), \w+", provenance.pooling)
        if cut_at is None or not is_commit(provenance.revision):
            raise StitchError(
                f"the target anchors come from {provenance.model_id} ({provenance.pooling}), which is no classifier on "
                "the Hub that its head could be read from: give the head"
            )
        repo = locate(provenance.model_id, revision=provenance.revision, **options)
        weight, bias = (read_tensor(repo, f"{cut_at[1]}.{name}") for name in ("weight", "bias"))
        if weight is None:
            raise StitchError(f"{provenance.model_id} has no {cut_at[1]}.weight in its safetensors: give the head")
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        linear.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias})
        config = AutoConfig.from_pretrained(repo.place, **repo.loading)
        return cls(linear.requires_grad_(False), dict(config.id2label), config.problem_type, provenance)


def read_tensor(repo: Repo, name: str) -> Tensor | None:
    """One tensor of a repo's safetensors, or None where they do not hold it."""
    file = "model.safetensors"
    if (index := repo.file(f"{file}.index.json")) is not None:
        file = read_json(index)["weight_map"].get(name, file)
    if (weights := repo.file(file)) is None:
        return None
    with safe_open(weights, "pt") as opened:
        return opened.get_tensor(name) if name in opened.keys() else None  # noqa: SIM118  (it is no mapping)


def copy_linear(linear: nn.Linear) -> nn.Linear:
    """A layer of its own with the same weights."""
    copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    copy.load_state_dict(linear.state_dict())
    return copy


def select_row(rows: str, latents: Tensor, inputs: Mapping[str, Tensor], pad_token_id: int | None) -> Tensor:
    """The row of each input, `(n, d)`, that a model takes from what goes into its last layer, `(n, d)` or `(n, t, d)`.

    transformers' decoders take the last token whose id is not that of padding; an end token that also pads is
    passed over.
    """
    if rows == "pooled":
        return latents
    if rows == "first":
        return latents[:, 0]
    if rows == "mean":
        return mean_of_tokens(latents, inputs.get("attention_mask"))
    ids = inputs.get("input_ids")
    return last_token(latents, None if ids is None or pad_token_id is None else (ids != pad_token_id).int())


class Body(nn.Module):
    """A target model up to the input of its last linear layer: `(n, d_target)` latents from its own inputs."""

    def __init__(self, model: PreTrainedModel, *, layer: str, rows: str) -> None:
        super().__init__()
        self.model = model
        self.layer = layer
        self.rows = rows

    def forward(self, **inputs: Tensor) -> Tensor:
        """The latent of each input."""
        latents, _ = run(self.model, self.layer, inputs)
        return select_row(self.rows, latents, inputs, pad_token_id(self.model))


def pad_token_id(model: PreTrainedModel) -> int | None:
    """The id that a text model takes for padding."""
    return getattr(model.config.get_text_config(), "pad_token_id", None)


def load_target(model_id: str, *, revision: str | None = None, **model_kwargs: Any) -> tuple[Encoder, Head]:
    """Load a text or image classifier from a folder or the Hub and cut it.

    Raises:
        StitchError: no such model, not a classifier that can be cut, or one whose head was never trained.
    """
    repo = locate(model_id, revision=revision, **hub_options(model_kwargs))
    config = AutoConfig.from_pretrained(repo.place, **repo.loading)
    architecture = (config.architectures or ["no architecture"])[0]
    task = next((name for name in TASKS if architecture.endswith(name)), None)
    if task is None:
        raise StitchError(
            f"{repo.name} is {architecture}: the target has to be a …{' or …'.join(TASKS)} model, or give its head "
            "as an nn.Linear (head=)"
        )
    model, loading = TASKS[task].from_pretrained(repo.place, output_loading_info=True, **repo.loading | model_kwargs)
    if loading["missing_keys"]:
        raise StitchError(
            f"{repo.name} lacks trained weights for {', '.join(sorted(loading['missing_keys']))}: train it first"
        )
    return cut(model, load_processor(repo, modality=main_modality(model)), repo=repo)


@torch.no_grad()
def cut(model: PreTrainedModel, processor: Any, *, repo: Repo | None = None) -> tuple[Encoder, Head]:
    """Take a classifier apart into the encoder of its latents and its head, and prove it.

    The last of the modules outside the base model that a forward pass calls has to be the linear layer that
    makes the logits. Its input is the latent: pooled already, or of each input one row, the one that gives the
    model's own logits on a probe batch with padding.

    Raises:
        StitchError: the last module is not linear, or no row of its input gives the logits to 1e-5.
    """
    model = model.eval().requires_grad_(False)
    if isinstance(processor, PreTrainedTokenizerBase) and pad_token_id(model) is None:
        model.config.get_text_config().pad_token_id = processor.pad_token_id
    probe = preprocess(model, processor, probe_inputs(modality_of(processor)))
    name, linear = last_layer(model, probe)
    rows = prove(model, name, linear, probe)
    encoder = Encoder(
        Body(model, layer=name, rows=rows),
        processor,
        pooling="none",
        cut=f"input of {name}, {rows}",
        model_id=repo.name if repo else None,
        revision=repo.commit if repo else None,
        license=repo.license() if repo else None,
    )
    return encoder, Head(linear, dict(model.config.id2label), model.config.problem_type, encoder.provenance)


def probe_inputs(modality: str) -> list[Any]:
    """Two inputs that differ, in length too where they have one."""
    if modality == "text":
        return ["storm", "A storm hits the northern coast, and the harbour is closed until the morning."]
    return [Image.radial_gradient("L"), Image.linear_gradient("L")]


def last_layer(model: PreTrainedModel, probe: Mapping[str, Tensor]) -> tuple[str, nn.Linear]:
    """The last module outside the base model that a forward pass calls, dropout and identity aside."""
    base = model.base_model_prefix + "."
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in model.named_modules()
        if not any(module.children()) and not name.startswith(base) and not isinstance(module, nn.Dropout | nn.Identity)
    ]
    try:
        model(**probe)
    finally:
        for hook in hooks:
            hook.remove()
    last = model.get_submodule(called[-1]) if called and model.base_model is not model else None
    if not isinstance(last, nn.Linear):
        came = f"{called[-1]}, a {type(last).__name__}" if last is not None else "no module outside a base model"
        raise StitchError(
            f"{type(model).__name__} ends in {came}: only heads that end in a linear layer can be cut; give the "
            "encoder and its head as an nn.Linear (head=) instead"
        )
    return called[-1], last


def prove(model: PreTrainedModel, name: str, linear: nn.Linear, probe: Mapping[str, Tensor]) -> str:
    """Which row makes head(latent) the model's own logits on the probe batch."""
    latents, logits = run(model, name, probe)
    differences = {}
    for rows in ["pooled"] if latents.ndim == 2 else ["last", "mean", "first"]:
        found = linear(select_row(rows, latents, probe, pad_token_id(model)))
        if found.shape == logits.shape:
            differences[rows] = float((found - logits).abs().max())
    best = min(differences, key=lambda rows: differences[rows], default=None)
    if best is None or not differences[best] <= TOLERANCE * max(1.0, float(logits.abs().max())):
        raise StitchError(
            f"{type(model).__name__}: {name} gives logits that differ from the model's own (largest differences: "
            f"{differences or 'other shapes'}; {TOLERANCE} is allowed), so it is not the whole head; give the "
            "encoder and its head as an nn.Linear (head=) instead"
        )
    return best


def run(model: PreTrainedModel, layer: str, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What goes into a layer in one forward pass, and the logits that come out of the model."""
    taken: list[Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: taken.append(args[0]))
    try:
        logits = model(**inputs).logits
    finally:
        hook.remove()
    return taken[-1], logits
