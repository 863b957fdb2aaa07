"""A head and the translation before it as one linear layer."""

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import Translation
from hf_relstitch.core.relative import to_working
from hf_relstitch.core.sharpening import SharpenedTranslation


class Fused(nn.Module):
    """`logits = x (A Hᵀ) + (b Hᵀ + h)`: translation and head as one; nothing of it is saved."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, num_labels)` of source latents `(n, d_source)`, in their dtype."""
        return nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


@torch.no_grad()
def fuse(translation: Translation | SharpenedTranslation, head: nn.Module) -> Fused:
    """One linear layer in the place of a translation and a head, made in float64, in the translation's dtype.

    Raises:
        StitchError: the translation is not affine: it is sharpened, or gives all latents one norm; or the head is not
            one linear layer.
    """
    if type(head) is not nn.Linear:
        raise StitchError(f"the head is a {type(head).__name__}: only one linear layer fuses with the translation")
    if not isinstance(translation, Translation) or translation.scale != "carry":
        how = "has scale='mean'" if isinstance(translation, Translation) else "is sharpened"
        raise StitchError(
            f"the translation {how}, so that it is not affine and does not fuse with the head: stitch with "
            "prefer='linear' and scale='carry'"
        )
    with align_module_device(head):
        weight, readout = to_working(translation.weight), to_working(head.weight)
        bias = readout @ to_working(translation.bias)
        bias = bias if head.bias is None else bias + to_working(head.bias)
    return Fused((readout @ weight.T).to(translation.weight), bias.to(translation.weight))
