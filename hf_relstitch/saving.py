"""SavedModel: a stitched model's folder and Hub repo, written whole and checked before it is loaded."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from hf_relstitch.callables import Function
from hf_relstitch.cards import write_card
from hf_relstitch.checkpoints import (
    OWNED,
    STUB,
    STUB_NAME,
    auto_map,
    check_loaded,
    is_quantised,
    pin_encoder,
    pinned_encoder,
    read_config,
    verified_weights,
)
from hf_relstitch.configuration_relative_stitcher import SHARES, RelativeStitcherConfig
from hf_relstitch.core.errors import StitchError
from hf_relstitch.devices import accelerate_state, placement
from hf_relstitch.files import check_kind, checksum, read_json, whole_folder
from hf_relstitch.head_modules import CHAIN
from hf_relstitch.hub import HUB_OPTIONS, hub_options, locate, push_folder
from hf_relstitch.processors import LOADERS

ENCODER_OPTIONS = ("device_map", "max_memory", "offload_folder", "quantization_config", "attn_implementation")


class SavedModel(PreTrainedModel):
    """What a `RelativeStitcher` does with folders and repos."""

    config: RelativeStitcherConfig
    encoder: Any
    _processor: Any = None
    _processor_folder: Path | None = None

    @property
    def processor(self) -> Any:
        """The source's tokenizer, image processor or feature extractor.

        Raises:
            StitchError: it has none, as a callable.
        """
        if self._processor is None:
            if self._processor_folder is None:
                raise StitchError(
                    f"the source, {self.config.source['model_id']}, is a callable without a processor: give raw inputs "
                    "to model.predict, or latents to model.classify"
                )
            self._processor = LOADERS[self.config.modality].from_pretrained(self._processor_folder)
        return self._processor

    def save_pretrained(
        self, save_directory: str | Path, *, share: str = "full", repo_id: str | None = None, **kwargs: Any
    ) -> None:
        """Write the whole model: config, safetensors weights, processor, card; a failure leaves the folder as it was.

        Edits of a card that is there already stay; `repo_id` is what the card is to show. Of several processes only the
        main one writes.

        `share="adapter"` leaves the source encoder's weights out and names its Hub repo and commit instead, from
        which loading gets them; that it holds the same weights is checked now and at each loading.

        Raises:
            StitchError: there is no source encoder, or it is not a transformers model, so its architecture cannot be
                stored, or an adapter's is not on the Hub; the folder holds another model or an anchor set.
        """
        check_kind(save_directory, model_type=self.config.model_type)
        if isinstance(self.encoder, Function):
            raise StitchError(
                f"the source, {self.config.source['model_id']}, is a callable or was not given, so that there is no "
                "model to save: save the two anchor sets, and stitch again where they are loaded"
            )
        if self.config.source_config is None:
            raise StitchError(
                f"the source encoder is a {type(self.encoder).__name__}, whose architecture cannot be stored as data: "
                "make it a PreTrainedModel and register it with AutoConfig and AutoModel to save the stitched model; "
                "its anchors can be saved as sets, and stitched again"
            )
        if self.config.head["kind"] == "module":
            raise StitchError(
                f"the head is a {self.config.head['type']}, which works in memory and cannot be stored as data; what "
                f"can be is {CHAIN}"
            )
        if share not in SHARES or kwargs.get("push_to_hub"):
            raise StitchError(
                f"share is {share!r}: expected one of {', '.join(SHARES)}; push with push_to_hub(repo_id)"
            )
        if is_quantised(self) or (share == "full" and is_quantised(self.encoder)):
            raise StitchError(
                "the source encoder is quantised, and quantised weights are not saved: load it from the Hub with a "
                "quantization_config and use share='adapter', which names both, or stitch it unquantised"
            )
        if not kwargs.get("is_main_process", accelerate_state().is_main_process):
            return
        fingerprint = None
        if share == "adapter":
            options = {"token": kwargs["token"]} if "token" in kwargs else {}
            fingerprint = pin_encoder(self.encoder, self.config.source, **options)
            kept = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("encoder.")}
            kwargs["state_dict"] = kept
        self.config.share, self.config.encoder_fingerprint = share, fingerprint
        self.config.auto_map = auto_map(self.config.modality)
        self.config.source_config.name_or_path = self.config.source["model_id"]  # and no path of this machine
        if (timm := getattr(self.config.source_config, "pretrained_cfg", None)) is not None:
            self.config.pretrained_cfg = timm  # timm's image processor has no file of its own
            self.config.image_processor_type = type(self.processor).__name__
        with whole_folder(save_directory, last="config.json", owned=OWNED) as written:
            self.processor.save_pretrained(written)
            self.config.processor_files = sorted(file.name for file in written.iterdir() if file.is_file())
            super().save_pretrained(written, **kwargs)
            (written / STUB_NAME).write_text(STUB, encoding="utf-8")
            self.config.checksums = {file.name: checksum(file) for file in sorted(written.glob("*.safetensors"))}
            if not self.config.checksums:
                raise StitchError("transformers wrote no weights in this process: save in the main process")
            self.config.save_pretrained(written)
            write_card(read_json(written / "config.json"), written, folder=save_directory, repo_id=repo_id)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        share: str = "full",
        commit_message: str = "Push a stitched model",
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        parent_commit: str | None = None,
        max_shard_size: int | str = "50GB",
    ) -> str:
        """Push the whole model as one commit, and give the commit's address; see `save_pretrained` for `share`.

        Of several processes only the main one pushes; the others give an empty address.

        Raises:
            StitchError: the Hub refuses or cannot be reached, or its branch is not at `parent_commit` (by default: has
                moved since this push began).
        """
        if not accelerate_state().is_main_process:
            return ""
        return push_folder(
            lambda folder, name: self.save_pretrained(
                folder, share=share, repo_id=name, max_shard_size=max_shard_size, token=token
            ),
            repo_id,
            owned=OWNED,
            message=commit_message,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            parent_commit=parent_commit,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Load a folder or a Hub repo, as for any transformers model; only safetensors are read.

        Raises:
            StitchError: no such model, weights that are missing, damaged or of other shapes than the config says, a
                newer format, or an adapter whose source encoder is not what it was.
        """
        options = hub_options(kwargs)
        repo = locate(pretrained_model_name_or_path, revision=kwargs.get("revision"), **options)
        folder = repo.folder()
        kwargs = {name: value for name, value in kwargs.items() if name not in (*HUB_OPTIONS, "revision", "subfolder")}
        config = kwargs.pop("config", None) or read_config(folder)
        for name in kwargs.keys() & config.to_dict().keys() - {"dtype"}:
            setattr(config, name, kwargs.pop(name))
        elsewhere = {name: kwargs.pop(name) for name in ENCODER_OPTIONS if name in kwargs and config.share == "adapter"}
        kwargs |= {"use_safetensors": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
        with verified_weights(folder, config):
            model, loading = super().from_pretrained(str(folder), *args, config=config, **kwargs)
        check_loaded(repo.name, loading)
        if config.share == "adapter":
            model.attach(
                pinned_encoder(
                    config, dtype=kwargs.get("dtype", kwargs.get("torch_dtype")), **elsewhere, **repo.options
                )
            )
        model.config.name_or_path = repo.place
        model._processor_folder = folder
        return (model, loading) if output_loading_info else model

    def attach(self, encoder: nn.Module) -> None:
        """Put the source encoder in, and the rest on its device."""
        self.encoder = None
        self.to(placement(encoder)[0])
        self.encoder = encoder
        self.config.source_config = getattr(encoder, "config", None)
        if (device_map := getattr(encoder, "hf_device_map", None)) is not None:
            self.hf_device_map = {f"encoder.{name}".rstrip("."): device for name, device in device_map.items()}
