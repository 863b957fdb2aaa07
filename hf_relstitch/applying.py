"""AppliedModel: what a stitched model makes of raw inputs and of latents."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hf_relstitch.callables import Function
from hf_relstitch.core.halves import relative_half
from hf_relstitch.core.inversion import Translation
from hf_relstitch.core.relative import check_latents
from hf_relstitch.core.sharpening import SharpenedTranslation
from hf_relstitch.encoders import encode_batch, in_order
from hf_relstitch.fusing import Fused
from hf_relstitch.inputs import inputs_at
from hf_relstitch.processors import batched, preprocess
from hf_relstitch.provenance import EARLIER_LAYERS, Provenance
from hf_relstitch.relative_latents import RelativeLatents
from hf_relstitch.saving import SavedModel
from hf_relstitch.stitching import AnchorPair, covered


class AppliedModel(SavedModel):
    """What a `RelativeStitcher` does with raw inputs and with latents."""

    after_pooling: nn.Module
    anchors: AnchorPair
    translation: Translation | SharpenedTranslation
    head: nn.Module
    fused: Fused | None

    def encode_batch(self, batch: Mapping[str, Tensor], **options: Any) -> tuple[Tensor, Any]:
        """Source latents `(n, d_source)` of what the processor made, and the encoder's output that they come from."""
        return encode_batch(
            self.encoder,
            batch,
            pooling=self.config.pooling,
            after_pooling=self.after_pooling,
            earlier_layers=self.config.earlier_layers,
            **options,
        )

    def translate(self, latents: Tensor) -> Tensor:
        """Target latents `(n, d_target)` of source latents `(n, d_source)`, in their dtype.

        Raises:
            StitchError: no tensor of floats of this shape.
        """
        self._check(latents)
        return self.translation(latents)

    def classify(self, latents: Tensor) -> Tensor:
        """Logits `(n, num_labels)` of source latents `(n, d_source)` computed elsewhere, in the model's dtype.

        Raises:
            StitchError: no tensor of floats of this shape.
        """
        self._check(latents)
        latents = latents.to(next(self.head.parameters(), latents).dtype)
        logits = self.fused(latents) if self.fused is not None else self.head(self.translation(latents))
        return logits / self.config.logit_temperature

    def _check(self, latents: Tensor) -> None:
        source = f"the source, {self.config.source['model_id']}"
        wider = ", with its earlier layers" if self.config.source["pooling"].endswith(EARLIER_LAYERS) else ""
        check_latents(latents, width=self.config.d_source, of=f" of {source}{wider}")

    @torch.no_grad()
    def predict(self, inputs: Sequence[Any], *, batch_size: int = 32) -> Tensor:
        """Logits `(n, num_labels)` of raw inputs; for sources without a pipeline, as callables are.

        Raises:
            StitchError: no inputs, or inputs of another kind than the source takes.
        """
        return self.classify(self._latents(inputs, batch_size=batch_size))

    @torch.no_grad()
    def relative(self, inputs: Sequence[Any], *, batch_size: int = 32) -> RelativeLatents:
        """Relative latents of raw inputs, which whoever holds the target's anchors turns into target latents.

        `AnchorSet.invert` of them is what `translate` gives, to rounding; see `core/halves.py` for the formula.

        Raises:
            StitchError: no inputs, or inputs of another kind than the source takes.
        """
        values = relative_half(
            self._latents(inputs, batch_size=batch_size),
            source_anchors=self.anchors.source,
            target_anchors=self.anchors.target,
            settings=self.config.translation_settings,
        )
        target = Provenance(**self.config.target)
        return RelativeLatents(values.float().cpu(), self.anchors.ids.cpu(), self.config.translation_settings, target)

    def check(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """The report with `coverage`, the share of these inputs that are like the anchors, and a verdict that knows it.

        The agreement that a report expects holds only for inputs like the anchors.
        """
        accurate = (self.config.selection or {}).get("prefer") == "accuracy"
        latents = self._latents(inputs, batch_size=32)
        return covered(self.config.report, latents, self.anchors.source, accurate=accurate)

    @torch.no_grad()
    def _latents(self, inputs: Sequence[Any], *, batch_size: int) -> Tensor:
        """Source latents `(n, d_source)` of raw inputs, on the device that the model is on; in evaluation mode."""
        self.eval()
        if isinstance(self.encoder, Function):
            return self.encoder.latents(inputs, batch_size=batch_size).to(self.anchors.source.device)
        encoded = []
        for rows in batched(inputs, processor=self.processor, batch_size=batch_size):
            batch = preprocess(self.encoder, self.processor, inputs_at(inputs, rows))
            encoded.append((rows, self.encode_batch(batch)[0]))
        return in_order(encoded).to(self.anchors.source.device)
