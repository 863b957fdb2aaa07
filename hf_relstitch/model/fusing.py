"""A translation, a head and a readout as one linear layer."""

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.relative import to_working
from hf_relstitch.core.translation import KernelTranslation, Translation


class Fused(nn.Module):
    """Give logits by one linear layer, `x (A Hᵀ + Rᵀ) + (b Hᵀ + h + r)`; nothing of it is saved."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `(n, num_labels)` of source latents `(n, d_source)`, in their dtype."""
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


@torch.no_grad()
def fuse(translation: Translation | KernelTranslation, head: nn.Module, readout: Translation | None = None) -> Fused:
    """Fuse a translation, a head and a readout into one linear layer, in float64, in the translation's dtype.

    Raises:
        StitchError: the translation is not affine: it has a kernel, or gives all latents one norm; or the head is not
            one linear layer.
    """
    if type(head) is not nn.Linear:
        raise StitchError(f"the head is a {type(head).__name__}: only one linear layer fuses with the translation")
    if not isinstance(translation, Translation) or translation.norm != "keep":
        how = "has norm='mean'" if isinstance(translation, Translation) else "has a kernel"
        raise StitchError(
            f"the translation {how}, so that it is not affine and does not fuse with the head: stitch with "
            "prefer='linear' and norm='keep'"
        )
    with align_module_device(head):
        weight = to_working(head.weight) @ to_working(translation.weight).T
        bias = to_working(head.weight) @ to_working(translation.bias)
        bias = bias if head.bias is None else bias + to_working(head.bias)
    if readout is not None:
        weight, bias = weight + to_working(readout.weight).T, bias + to_working(readout.bias)
    return Fused(weight.to(translation.weight), bias.to(translation.weight))
