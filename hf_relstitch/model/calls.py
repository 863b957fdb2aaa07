"""The call that builds a stitched model, as Python, for its card."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hf_relstitch.core.translation import TranslationSettings
from hf_relstitch.data.provenance import Provenance
from hf_relstitch.heads.head import Head
from hf_relstitch.hub.cards import Base
from hf_relstitch.model.anchors import AnchorSet


def write_call(
    method: str,
    source: Provenance,
    head: Any,
    *,
    settings: TranslationSettings,
    prefer: str | None,
    target: Provenance | None = None,
    **arguments: str | None,
) -> str:
    """Write the call that builds a stitched model, as Python, and with no path of this machine.

    Settings that were chosen by `prefer` are left to be chosen again; others are all written. `arguments` are Python
    too; None stands for an argument that was not passed.
    """
    values = asdict(settings) if prefer is None else {"prefer": prefer, "norm": settings.norm, "seed": settings.seed}
    cut = head.provenance if isinstance(head, Head) else None
    code = {
        "source": Base.from_provenance(source.to_dict()).call,
        "target": target and ("target" if cut else Base.from_provenance(target.to_dict()).call),
        **arguments,
        "head": None if head is None else "head",
        **{name: repr(value) for name, value in values.items()},
    }
    given = [f"    {name}={value}," for name, value in code.items() if value is not None]
    loaded = [f"target, head = load_classifier({Base.from_provenance(cut.to_dict()).arguments})"] if cut else []
    return "\n".join([*loaded, f"RelativeStitcher.{method}(", *given, ")"])


def anchors_as_code(anchors: str | Path | AnchorSet, *, name: str) -> str:
    """Write anchors as Python: their Hub id if they have one, or a variable's name."""
    return repr(anchors) if isinstance(anchors, str) and not Path(anchors).exists() else name
