"""Finding a model's files, in a folder or in a repo on the Hub at one commit."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from hf_relstitch.core.errors import StitchError


@dataclass(frozen=True)
class Repo:
    """A model's folder, or its repo on the Hub at one commit.

    Attributes:
        place: what `from_pretrained` takes: the path of the folder, or the repo id.
        commit: the commit hash; None for a folder.
    """

    place: str
    commit: str | None

    @property
    def name(self) -> str:
        """The repo id, or the folder's name without the path, which is nobody else's business."""
        return self.place if self.commit else Path(self.place).resolve().name

    def file(self, name: str) -> Path | None:
        """The path of one file, downloaded where it has to be; None where the repo has no such file."""
        if self.commit is None:
            path = Path(self.place, name)
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.place, name, revision=self.commit))
        except LocalEntryNotFoundError:
            known = try_to_load_from_cache(self.place, name, revision=self.commit)
            if known is None or isinstance(known, str):
                raise
            return None  # seen to be missing while the Hub could still be reached
        except EntryNotFoundError:
            return None


def locate(place: str | Path, *, revision: str | None = None) -> Repo:
    """The folder at `place`, or else the Hub repo of that name at the commit that `revision` is now.

    Raises:
        StitchError: there is neither such a folder nor such a repo with a config.json.
    """
    if Path(place).is_dir():
        return Repo(str(place), None)
    try:
        config = hf_hub_download(str(place), "config.json", revision=revision)
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise StitchError(
            f"{place} is neither a folder nor a model that the Hub gives ({error}): "
            "check its name, its revision, your token and your connection"
        ) from error
    return Repo(str(place), Path(config).parent.name)
