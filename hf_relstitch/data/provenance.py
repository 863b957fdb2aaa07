"""Where latents come from."""

from dataclasses import asdict, dataclass

from hf_relstitch.core.errors import StitchError

NOT_KNOWN = "not known"
"""The revision of a model that nobody named one for: another may go by the same `model_id`."""

STORED = "stored"
"""The pooling of latents that were computed elsewhere."""


@dataclass(frozen=True)
class Provenance:
    """Hold the origin of latents.

    `revision` is the commit hash of a Hub model, or a hash of the weights of any other. `pooling` says how a model's
    output became one latent, or at which layer a target model was cut. `data` names the inputs. `license` is the
    model's, None if it is not known. `prompt` is the text that the encoder puts before each input, like "query: ".
    """

    model_id: str
    revision: str
    pooling: str
    data: str | None = None
    license: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, str) and (value is not None or name in ("model_id", "revision", "pooling")):
                raise StitchError(f"the {name} of a provenance is {value!r}: expected a text")

    def to_dict(self) -> dict[str, str | None]:
        """Return the fields, the prompt only if there is one, as in files of before there were prompts."""
        return {name: value for name, value in asdict(self).items() if name != "prompt" or value is not None}

    @property
    def by_token(self) -> bool:
        """Tell whether there is a latent for each token: of words in their texts, and not of whole inputs."""
        return self.pooling == "tokens" or self.pooling.endswith(", each")

    def difference(self, other: "Provenance") -> str:
        """Describe in words how two models differ; return an empty text if latents of both lie in one space."""
        names = ("model_id", "revision", "pooling", "prompt")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return ", ".join(f"{name} is {ours!r} and not {theirs!r}" for name, ours, theirs in pairs if ours != theirs)
