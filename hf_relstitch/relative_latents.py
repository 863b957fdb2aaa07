"""RelativeLatents: what one side sends, and who holds only the target's anchors turns into target latents."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.core.inversion import TranslationSettings
from hf_relstitch.files import check_format, whole_file
from hf_relstitch.provenance import Provenance
from hf_relstitch.version import __version__

FORMAT_VERSION = 1


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
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "hf_relstitch_version": __version__,
            "relative_latents": json.dumps(content, sort_keys=True),
        }
        tensors = {"values": self.values.cpu().contiguous(), "ids": self.ids.cpu().contiguous()}
        with whole_file(file) as written:
            save_file(tensors, written, metadata)

    @classmethod
    def load(cls, file: str | Path) -> "RelativeLatents":
        """Read a file that `save` wrote.

        Raises:
            StitchError: it is not there, not whole, or of a newer format.
        """
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                values, ids = opened.get_tensor("values"), opened.get_tensor("ids")
            version = int(metadata["format_version"])
            check_format(
                version, supported=FORMAT_VERSION, what=str(file), written_by=metadata.get("hf_relstitch_version")
            )
            content = json.loads(metadata["relative_latents"])
            return cls(values, ids, TranslationSettings(**content["settings"]), Provenance(**content["target"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StitchError(
                f"{file} is not a whole file of relative latents ({error!r}): ask for it again"
            ) from error
