"""RelativeStitcherConfig: everything about a stitched model that is not a tensor."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import torch
from huggingface_hub.dataclasses import type_validator
from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from hf_relstitch.core.errors import StitchError, wrap_errors
from hf_relstitch.core.translation import TranslationSettings
from hf_relstitch.data.modality import MODALITIES, task_of
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.hub.files import STITCHED, check_format
from hf_relstitch.hub.limits import check_counts
from hf_relstitch.hub.repo import without_kernels
from hf_relstitch.layers import SMALLEST, build_chain, build_head, is_temperature
from hf_relstitch.version import __version__

if TYPE_CHECKING:
    from hf_relstitch.encoders.pairs import PairLayout

FORMAT_VERSION = 6
"""1 had nothing after the pooling, 2 no earlier layers, 3 no readout and other names of settings, 4 no pairs.

Formats 1 to 5 had the pooling of a provenance as one text.
"""
OLD_NAMES = {"scale": "norm", "stretch": "output_scale", "sharpness": "gamma"}
"""Settings of a translation as formats 1 to 3 named them; `scale` was "carry" or "mean"."""
LARGEST, MOST_LAYERS = 10_000_000, 200
SHARES = ("full", "adapter")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
CHECKED_BELOW = ("logit_temperature", "share", "pooling", "batching", "checksums", "processor_files", "pairs")
"""Fields whose own errors say more than that their type is wrong."""


class RelativeStitcherConfig(PretrainedConfig):
    """Hold the configuration of a `RelativeStitcher`.

    Args:
        source_config: configuration of the source encoder.
        modality: `text`, `image` or `audio`, of the source.
        pooling: how the source encoder's output becomes a latent; one of `hf_relstitch.encoders.pooling.POOLINGS`.
        after_pooling: the layers that turn a pooled vector into a latent, as data; see `layers.py`.
        batching: which inputs may share a batch; one of `hf_relstitch.encoders.batches.BATCHINGS`.
        pairs: None for single inputs; for pairs of texts `how` they are read, one of
            `hf_relstitch.encoders.pairs.PAIRS`, and for composed ones the `layout` by which they are split.
        separators: the layout of the source tokenizer's pairs, by which a pair is told from a single text; None if it
            does not tell, or pairs are composed.
        d_source: width of the source latents.
        d_target: width of the target latents, which the head takes.
        num_anchors: how many anchors are stored for each side.
        translation: the fields of a `TranslationSettings`.
        selection: how these were chosen: the criterion, and each candidate with its score; None if the caller chose.
        readout: whether a linear readout of the source latents is added to the head's logits.
        logit_temperature: the divisor of the head's logits; 1 leaves them unchanged.
        head: the head as data: `{"kind": "linear", "bias": bool}`; of kind `mlp`, with its `layers`; or of kind
            `prototypes`, with its `temperature`. See `layers.py`.
        source: provenance of the source anchors.
        target: provenance of the target anchors.
        report: what was known about the translation when it was fitted; see `RelativeStitcher.report`.
        call: the Python call that made the model.
        results: measurements on labeled data, each a dict with `task_type`, `dataset_name`, `dataset_id` (None if
            the data are not on the Hub), `split`, `metric` and `value`; where they are known, the data's `config` and
            `revision` and the number of `rows`; and `task_id`, if the data are one of the Hub's benchmarks and the task
            there has another name than `default`.
        fingerprints: hashes of the weights of `encoder`, `translation` and `head` as they were stitched, and `dtype`.
        trained: which of these parts were trained further since; the report is of what they were before.
        checksums: checksums of the weight files.
        processor_files: names of the source's processor's files.
        answer_checksums: checksums of these files, and under `settings` of the config fields that change an answer.
        share: `full`, or `adapter` where the source encoder's weights stay on the Hub.
        encoder_fingerprint: a hash of the weights of an adapter's source encoder; None if it is quantised.
        format_version: the version of this layout; versions newer than this package are refused.

    Raises:
        StitchError: the format is newer, the pooling is unknown, or the settings are invalid.
    """

    model_type = STITCHED
    sub_configs: ClassVar[dict[str, Any]] = {"source_config": AutoConfig}
    has_no_defaults_at_init = True

    def __init__(
        self,
        source_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        modality: str = "text",
        pooling: str = "mean",
        after_pooling: list[dict[str, Any]] | None = None,
        batching: str = "padded",
        pairs: dict[str, Any] | None = None,
        separators: dict[str, Any] | None = None,
        d_source: int = 1,
        d_target: int = 1,
        num_anchors: int = 0,
        translation: dict[str, Any] | None = None,
        selection: dict[str, Any] | None = None,
        readout: bool = False,
        logit_temperature: float = 1.0,
        head: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
        target: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
        call: str | None = None,
        results: list[dict[str, Any]] | None = None,
        checksums: dict[str, str] | None = None,
        processor_files: list[str] | None = None,
        answer_checksums: dict[str, str] | None = None,
        fingerprints: dict[str, str] | None = None,
        trained: list[str] | None = None,
        share: str = "full",
        encoder_fingerprint: str | None = None,
        format_version: int = FORMAT_VERSION,
        hf_relstitch_version: str = __version__,
        **kwargs: Any,
    ) -> None:
        check_format(
            format_version, supported=FORMAT_VERSION, what="the stitched model", written_by=hf_relstitch_version
        )
        sizes = {"d_source": d_source, "d_target": d_target, "num_anchors": num_anchors}
        _check_sizes(kwargs | sizes, head, after_pooling)
        self.source_config = _read_source_config(source_config)
        self.modality = modality
        self.pooling = pooling
        self.after_pooling = after_pooling or []
        self.batching = batching
        self.pairs = pairs
        self.separators = separators
        self.d_source = d_source
        self.d_target = d_target
        self.num_anchors = num_anchors
        self.translation = rename_settings(translation or asdict(TranslationSettings()))
        self.selection = selection
        self.readout = readout
        self.logit_temperature = logit_temperature
        self.head = head or {"kind": "linear", "bias": True}
        self.source = Provenance.from_dict(source).to_dict() if source else {}
        self.target = Provenance.from_dict(target).to_dict() if target else {}
        self.report = report or {}
        self.call = call
        self.results = results or []
        self.checksums = checksums or {}
        self.processor_files = processor_files or []
        self.answer_checksums = answer_checksums or {}
        self.fingerprints = fingerprints or {}
        self.trained = trained or []
        self.share = share
        self.encoder_fingerprint = encoder_fingerprint
        self.format_version = FORMAT_VERSION
        self.hf_relstitch_version = hf_relstitch_version
        if kwargs.pop("earlier_layers", False):
            raise StitchError(
                "the model was stitched with earlier layers of its source, which this version does not read: stitch it "
                "again"
            )
        super().__init__(**without_kernels(kwargs))
        self._check()

    def _check(self) -> None:
        # Imported here, since they import the Auto classes, which may be what is being imported (see registration.py).
        from hf_relstitch.encoders.batches import BATCHINGS
        from hf_relstitch.encoders.pairs import PAIRS
        from hf_relstitch.encoders.pooling import POOLINGS

        if self.pooling not in POOLINGS:
            raise StitchError(f"the config's pooling is {self.pooling!r}: expected one of {', '.join(POOLINGS)}")
        if self.modality not in MODALITIES:
            raise StitchError(f"the config's modality is {self.modality!r}: expected one of {', '.join(MODALITIES)}")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise StitchError(
                f"the config's problem_type is {self.problem_type!r}: expected one of {(None, *PROBLEM_TYPES)}"
            )
        if not is_temperature(self.logit_temperature):
            raise StitchError(
                f"the config's logit_temperature is {self.logit_temperature!r}: expected a number above 0, "
                f"{SMALLEST} to {1 / SMALLEST}"
            )
        if self.batching not in BATCHINGS:
            raise StitchError(f"the config's batching is {self.batching!r}: expected one of {', '.join(BATCHINGS)}")
        if self.pairs is not None and (not isinstance(self.pairs, dict) or self.pairs.get("how") not in PAIRS):
            raise StitchError(f"the config's pairs are {self.pairs!r}: expected how to be one of {', '.join(PAIRS)}")
        self.layouts()
        with torch.device("meta"):
            self.empty_after_pooling()
            build_head(self.head, d_target=self.d_target, num_labels=self.num_labels)
        if not isinstance(self.checksums, dict):
            raise StitchError(f"the config's checksums are {self.checksums}: expected one for each weight file")
        if not isinstance(self.processor_files, list) or not all(isinstance(one, str) for one in self.processor_files):
            raise StitchError(f"the config's processor_files are {self.processor_files}: expected a list of names")
        if self.share not in SHARES:
            raise StitchError(f"share is {self.share!r}: expected one of {', '.join(SHARES)}")
        self.translation_settings  # noqa: B018  (its construction is the check)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a config from the content of a `config.json`.

        Raises:
            StitchError: a field has a value that no stitched model has.
        """
        with wrap_errors("the config of the stitched model cannot be read"):
            check_counts(config_dict, "the config")
            for side in ("source", "target"):
                Provenance.from_dict(config_dict[side])
            for name, hint in get_type_hints(cls.__init__).items():
                if name in config_dict and name not in CHECKED_BELOW:
                    type_validator(name, config_dict[name], hint)
            return super().from_dict(config_dict, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: the code is the package's, and is not copied beside the weights."""

    def empty_after_pooling(self) -> nn.Sequential:
        """Build the layers that follow the pooling, with weights to be filled.

        Raises:
            StitchError: the layers do not fit each other or the width of the latents.
        """
        from hf_relstitch.encoders.pairs import PARTS

        return build_chain(self.after_pooling, gives=self.d_source // PARTS if self.composes_pairs else self.d_source)

    @property
    def composes_pairs(self) -> bool:
        """Tell whether the source reads each text of a pair alone."""
        return self.pairs is not None and self.pairs.get("how") == "compose"

    def layouts(self) -> tuple["PairLayout | None", "PairLayout | None"]:
        """Return the layout by which composed pairs are split, and the one that tells pairs from single texts.

        Raises:
            StitchError: a layout is not of this version.
        """
        from hf_relstitch.encoders.pairs import PairLayout

        return (
            PairLayout.from_data((self.pairs or {}).get("layout")) if self.composes_pairs else None,
            None if self.separators is None else PairLayout.from_data(self.separators),
        )

    def check_one_pass(self, what: str) -> None:
        """Refuse pairs that are composed where an input can only be read in one pass.

        Raises:
            StitchError: the source reads each text of a pair alone.
        """
        if self.composes_pairs:
            raise StitchError(
                f"{what} reads an input in one pass, and this source reads the two texts of a pair apart: save the "
                "stitched model itself, or stitch it with source=Encoder.from_pretrained(…, pairs='joint')"
            )

    @property
    def by_token(self) -> bool:
        """Tell whether the model labels each token, and not the whole input."""
        return self.pooling == "tokens"

    @property
    def task(self) -> str:
        """Return the task of the model, as transformers' pipelines name it."""
        return task_of(vars(self))

    @property
    def translation_settings(self) -> TranslationSettings:
        """Return the settings that fit the translation from the anchors."""
        try:
            return TranslationSettings(**self.translation)
        except TypeError as error:
            raise StitchError(f"the config's translation settings are not of this version: {error}") from error


def rename_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Rename settings of an older format to the names of this format, with as many landmarks as there are anchors."""
    if not settings.keys() & OLD_NAMES.keys():
        return settings
    renamed = {OLD_NAMES.get(name, name): value for name, value in settings.items()}
    norm = "mean" if renamed.get("norm") == "mean" else "keep"
    return renamed | {"norm": norm, "landmarks": sys.maxsize}


def _check_sizes(sizes: dict[str, Any], *chains: Any) -> None:
    """Refuse numbers that no model has, before memory is taken for them.

    Raises:
        StitchError: one is too large, or no whole number.
    """
    for name in ("d_source", "d_target", "num_anchors", "num_labels"):
        if not isinstance(size := sizes.get(name, 0), int) or not 0 <= size <= LARGEST:
            raise StitchError(f"the config's {name} is {size!r}: expected a whole number up to {LARGEST}")
    for chain in chains:
        layers = chain.get("layers", []) if isinstance(chain, dict) else chain or []
        if isinstance(layers, list) and len(layers) > MOST_LAYERS:
            raise StitchError(f"the config has a chain of {len(layers)} layers: expected {MOST_LAYERS} at most")


def _read_source_config(content: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig | None:
    """The source encoder's config, of one of the classes that transformers has or that the user registered.

    Raises:
        StitchError: its model type is not known here.
    """
    if not isinstance(content, dict):
        return content
    try:
        return AutoConfig.for_model(**without_kernels(content))
    except (TypeError, ValueError) as error:
        raise StitchError(
            f"the config's source_config is of model type {content.get('model_type')!r}, which this transformers does "
            "not know: upgrade transformers, or register the encoder's classes with AutoConfig and AutoModel"
        ) from error


AutoConfig.register(RelativeStitcherConfig.model_type, RelativeStitcherConfig)
