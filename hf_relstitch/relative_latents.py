"""RelativeLatents: what one side sends, and who holds only the target's anchors turns into target latents."""

from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import TranslationSettings
from hf_relstitch.files import read_tensors, write_tensors
from hf_relstitch.provenance import Provenance

FORMAT_VERSION = 1
KIND = "relative_latents"


@dataclass(frozen=True, eq=False)
class RelativeLatents:
    """Latents as coordinates against anchors; see `RelativeStitcher.relative` and `AnchorSet.invert`.

    Attributes:
        values: `(n, k)` float32, one column an anchor (pruned subspaces stand side by side).
        ids: `(k,)` int64, which inputs the anchors are, in the order of the columns.
        settings: of the translation that they are one half of.
        target: the model whose anchors turn them into its latents.
    """

    values: Tensor
    ids: Tensor
    settings: TranslationSettings
    target: Provenance

    def save(self, file: str | Path) -> None:
        """Write one safetensors file; a failure leaves what was there."""
        content = {"settings": asdict(self.settings), "target": asdict(self.target)}
        tensors = {"values": self.values, "ids": self.ids}
        write_tensors(file, tensors, content, kind=KIND, format_version=FORMAT_VERSION)

    @classmethod
    def load(cls, file: str | Path) -> "RelativeLatents":
        """Read a file that `save` wrote.

        Raises:
            StitchError: it is not there, not whole, or of a newer format.
        """
        try:
            tensors, content = read_tensors(
                file, kind=KIND, supported=FORMAT_VERSION, otherwise="is no file of RelativeLatents.save"
            )
            settings, target = TranslationSettings(**content["settings"]), Provenance(**content["target"])
            return cls(tensors["values"], tensors["ids"], settings, target)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StitchError(
                f"{file} is not a whole file of relative latents ({error!r}): ask for it again"
            ) from error
