"""The Hub: finding a model's files, in a folder or in a repo at one commit, and pushing a folder as one commit."""

import glob
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from huggingface_hub import HfApi, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is httpx's, or httpx2's
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_relstitch.core.errors import StitchError
from hf_relstitch.data.reading import reads_as_path
from hf_relstitch.hub.files import (
    ANCHOR_SET,
    TRANSLATION,
    YAML_LOADER,
    Kind,
    card_metadata,
    finish_save,
    kind_at,
    read_json,
    weight_map,
)
from hf_relstitch.hub.limits import check_counts, limited_build
from hf_relstitch.hub.processes import accelerate_state

CONFIG, MODULES = "config.json", "modules.json"
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")
HUB_ERRORS: tuple[type[Exception], ...] = (HTTPError, EntryNotFoundError, OSError, ValueError)
MOST_METADATA = 200_000
"""Values in the card of a source model, which may list the results of a whole benchmark."""
NEVER_READ = ["*.bin", "*.pkl", "*.pickle", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack"]
REMEDIES = {
    401: "log in with `hf auth login` or give a token that is valid",
    403: "the token may not do this here: use one with write access, in a namespace of your own, with space left",
    404: "check the name and the revision, and that your token may see it",
    412: "somebody has pushed since: load again and push again, or give their commit as parent_commit",
    413: "it is larger than the Hub takes: use a smaller max_shard_size",
    429: "the Hub asks to slow down: wait some minutes and try again",
    507: "there is no space left: free some, or use share='adapter'",
}


@dataclass(frozen=True)
class Repo:
    """Hold a model's folder, or its repo on the Hub at one commit.

    Attributes:
        place: the path of the folder, or the repo id.
        commit: the commit hash; None for a folder.
        subfolder: the folder of the model inside it.
        options: `cache_dir`, `force_download`, `local_files_only` and `token`, as huggingface_hub takes them.
        trust_remote_code: True if the user lets code of the repo run; transformers is never left to ask.
    """

    place: str
    commit: str | None
    subfolder: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """Return the repo id, or the folder's name without the path, which stays private."""
        return self.place if self.commit else Path(self.place).resolve().name

    @property
    def loading(self) -> dict[str, Any]:
        """Return the keywords with which a transformers `from_pretrained` reads `place` at this commit."""
        place = {"revision": self.commit or "main", "subfolder": self.subfolder}
        return {**place, "trust_remote_code": self.trust_remote_code, **self.options}

    @property
    def model_loading(self) -> dict[str, Any]:
        """Return `loading` for a model, with a config that names no other repo, which may hold code."""
        return self.loading | ({"config": self.config()} if without_kernels(self._content) != self._content else {})

    def config(self) -> Any:
        """Load the transformers config, without the other repos that it names.

        Raises:
            StitchError: the config is damaged, or asks for more layers or labels than any model has.
            OSError, ValueError: transformers does not know it.
        """
        from transformers import AutoConfig  # noqa: PLC0415  (loading it registers our config, which imports this module)

        content = without_kernels(self._content)
        if content != self._content and "model_type" in content and not self.trust_remote_code:
            return AutoConfig.for_model(**content)
        return AutoConfig.from_pretrained(self.place, **self.loading)

    @cached_property
    def _content(self) -> dict[str, Any]:
        """The content of the config, checked before an object is made of it."""
        file = self.file("config.json")
        content = read_json(file) if file else {}
        check_counts(content, f"the config of {self.name}")
        return content

    @contextmanager
    def limited_build(self) -> Iterator[None]:
        """Refuse, while a model is built from this repo, weights that its files do not hold; see `limited_build`."""
        files: list[Path] = []
        for name in ("model.safetensors", "pytorch_model.bin"):
            index = None if files or (file := self.file(name)) else self.file(f"{name}.index.json")
            listed = sorted(set(weight_map(index).values())) if index else []
            files = files or ([file] if not index and file else [path for one in listed if (path := self.file(one))])
        with limited_build(files, f"the config of {self.name}") if files else nullcontext():
            yield

    def file(self, name: str) -> Path | None:
        """Return the path of one file, downloaded if needed; None if the repo lacks the file.

        Raises:
            StitchError: the name leads out of the repo, or the Hub does not give the file.
        """
        _check_inside(name, f"a file that {self.name} names")
        if self.commit is None:
            path = Path(self.place, self.subfolder, name)
            return path if path.is_file() else None
        inside = f"{self.subfolder}/{name}" if self.subfolder else name
        try:
            with hub_errors(f"downloading {inside} of {self.place}"):
                return Path(hf_hub_download(self.place, inside, revision=self.commit, **self.options))
        except StitchError as error:
            if isinstance(error.__cause__, LocalEntryNotFoundError):
                if self._known_missing(inside):
                    return None
                raise StitchError(f"{error}; or load it once online, so that the cache knows of it") from error
            if isinstance(error.__cause__, EntryNotFoundError):
                return None
            raise

    def _known_missing(self, inside: str) -> bool:
        """Whether the cache knows that there is no such file: asked for, or the repo fetched whole, while online."""
        cache = {"revision": self.commit, "cache_dir": self.options.get("cache_dir")}
        if (known := try_to_load_from_cache(self.place, inside, **cache)) is not None:
            return not isinstance(known, str)
        try:
            from huggingface_hub import errors, get_cached_repo_tree  # noqa: PLC0415  (not in older ones)
        except ImportError:
            return False
        with suppress(errors.CachedRepoTreeNotFoundError):
            return inside not in [file.path for file in get_cached_repo_tree(self.place, **cache)]
        return False

    def license(self) -> str | None:
        """Return the licence in the repo's card, as `other (NAME)` if the Hub has no id for it; None if unknown."""
        try:
            card = self.file("README.md")
            block = card_metadata(card.read_text(encoding="utf-8") if card else "", most=MOST_METADATA)
            metadata = yaml.load(block, Loader=YAML_LOADER)  # noqa: S506  (a safe one)
        except (StitchError, OSError, ValueError, yaml.YAMLError):
            return None
        metadata = metadata if isinstance(metadata, dict) else {}
        found, name = metadata.get("license"), metadata.get("license_name")
        if found == "other" and isinstance(name, str):
            return f"other ({name})"
        return found if isinstance(found, str) and found not in ("other", "unknown") else None

    def folder(self) -> Path:
        """Return a local folder with all of the files, except those that could hold pickles.

        Raises:
            StitchError: the Hub does not give them.
        """
        if self.commit is None:
            return Path(self.place, self.subfolder)
        inside = f"{self.subfolder}/*" if self.subfolder else "*"
        with hub_errors(f"downloading {self.place}"):
            whole = snapshot_download(
                self.place,
                revision=self.commit,
                allow_patterns=inside,
                ignore_patterns=NEVER_READ,
                **self.options,
            )
        return Path(whole, self.subfolder)


def locate(
    place: str | Path,
    *,
    config: str = CONFIG,
    revision: str | None = None,
    subfolder: str = "",
    trust_remote_code: bool = False,
    **options: Any,
) -> Repo:
    """Locate the folder at `place`, or else the Hub repo of that name at the commit that `revision` is now.

    A save to the folder that was cut off is finished.

    Raises:
        StitchError: neither a folder nor a repo of this name has this config file, or the Hub cannot be reached.
    """
    if not isinstance(place, str | os.PathLike):
        raise StitchError(f"the place is a {type(place).__name__}: expected a folder or a Hub id")
    _check_inside(subfolder, "the subfolder")
    if os.path.isdir(place):  # noqa: PTH112  (Path.is_dir has an error for a long name)
        finish_save(Path(place, subfolder))
        return Repo(str(place), None, subfolder, options, trust_remote_code)
    if os.path.isfile(place):  # noqa: PTH113
        raise StitchError(f"{place} is a file: give a folder or a Hub id")
    if reads_as_path(str(place)):
        raise StitchError(f"there is no folder {place}: check the path")
    name = f"{subfolder}/{config}" if subfolder else config
    with hub_errors(f"{place} is no folder here, and asking the Hub for its {name}"):
        try:
            file = Path(hf_hub_download(str(place), name, revision=revision, **options))
        except EntryNotFoundError as missing:
            if subfolder or config != CONFIG:
                raise
            name = MODULES  # of a sentence-transformers repo whose transformer has a folder, or that has none
            if isinstance(missing, LocalEntryNotFoundError):  # the Hub was asked already, and did not answer
                options = options | {"local_files_only": True}
            try:
                file = Path(hf_hub_download(str(place), name, revision=revision, **options))
            except EntryNotFoundError:
                raise missing from None
    commit = file.parents[name.count("/")].name  # the cache has it at …/snapshots/COMMIT/NAME
    return Repo(str(place), commit, subfolder, options, trust_remote_code)


def locate_kind(place: str | Path, *, revision: str | None = None) -> tuple[Repo, Kind | None]:
    """Locate a folder or a repo, and return what it holds, see `kind_at`.

    Raises:
        StitchError: neither a folder nor a repo has this name, or the repo holds none of the kinds.
    """
    missing: StitchError | None = None
    for name in ("config.json", ANCHOR_SET.last, TRANSLATION.last):
        try:
            repo = locate(place, config=name, revision=revision)
            return repo, kind_at(repo.file)
        except StitchError as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
            missing = missing or error
    raise missing or AssertionError


def _check_inside(path: str, what: str) -> None:
    """Refuse a path that leads out of a repo."""
    if ".." in Path(path).parts or Path(path).is_absolute():
        raise StitchError(f"{what} is {path!r}: expected a path inside the repo")


IMPLEMENTATIONS = ("attn_implementation", "experts_implementation", "backbone")


def without_kernels(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config, and those inside it, without fields that name a repo: of kernels, or of a backbone."""
    kept = {}
    for name, value in content.items():
        setting = str(name).removeprefix("_").removesuffix("_internal")
        if setting not in IMPLEMENTATIONS or "/" not in str(value):
            kept[name] = without_kernels(value) if isinstance(value, dict) else value
    return kept


def hub_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Select the keywords of a `from_pretrained` that the Hub's client takes, including `subfolder`."""
    return {name: keywords[name] for name in (*HUB_OPTIONS, "subfolder") if keywords.get(name) is not None}


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a commit hash, which names one state of a Hub repo for good."""
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def find_tagged(tags: Sequence[str], *, token: str | bool | None = None) -> list[str]:
    """Find the ids of the model repos on the Hub that have all of these tags.

    Raises:
        StitchError: the Hub cannot be reached.
    """
    with hub_errors("searching the Hub"):
        return [model.id for model in HfApi(token=token).list_models(filter=list(tags))]


@contextmanager
def hub_errors(doing: str, *others: type[Exception]) -> Iterator[None]:
    """Turn errors of the Hub's client, and `others`, into an error that says what failed and what to do."""
    try:
        yield
    except StitchError:
        raise
    except (*HUB_ERRORS, *others) as error:
        raise StitchError(f"{doing} failed: {_explanation(error)}") from error


def _explanation(error: Exception) -> str:
    """The Hub's own words, and the remedy for its status."""
    first_line = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    if isinstance(error, GatedRepoError):
        return f"{first_line}: ask for access on the repo's page, and log in or pass a token"
    status = None
    cause: BaseException | None = error
    while cause is not None and status is None:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__
    if isinstance(error, RepositoryNotFoundError):
        status = 404
    said = f"{first_line} (HTTP status {status})" if status and str(status) not in first_line else first_line
    return f"{said}: {REMEDIES.get(status or 0, 'check the name and your connection, and try again')}"


def push_folder(
    write: Callable[[Path, str], None],
    repo_id: str,
    *,
    owned: Sequence[str],
    message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    parent_commit: str | None = None,
) -> str:
    """Push the files that `write` puts into a folder as one commit, and return the commit's address.

    With several processes only the main one pushes; the others return an empty address.

    `write` gets the folder and the whole repo id. It finds the repo's README.md in the folder if there is one; for a
    new branch, the README.md of the main branch. Older files in the repo that match `owned` are deleted in the same
    commit. A repo that was created for a push that fails is deleted again.

    Raises:
        StitchError: the Hub refuses or cannot be reached, or its branch is not at `parent_commit` (by default: has
            moved since this push began).
    """
    if not accelerate_state().is_main_process:
        return ""
    api = HfApi(token=token)
    with hub_errors(f"pushing to {repo_id}", RuntimeError), TemporaryDirectory() as temporary:
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
        exists, head = api.repo_exists(repo_id), head_of(api, repo_id, revision=revision)
        folder = Path(temporary, "repo")
        folder.mkdir()
        begun_at = head or head_of(api, repo_id, revision=None)
        if begun_at and api.file_exists(repo_id, "README.md", revision=begun_at):
            api.hf_hub_download(repo_id, "README.md", revision=begun_at, local_dir=folder)
            shutil.rmtree(folder / ".cache")  # the client's notes on the download
        write(folder, repo_id)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with nullcontext() if exists else _taken_back(api, repo_id):
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.list_repo_files(repo_id, revision=revision)
            pushed = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                parent_commit=parent_commit or head,
                delete_patterns=[glob.escape(file) for file in there if any(_owns(one, file) for one in owned)],
            )
    return str(pushed.commit_url)


def _owns(pattern: str, file: str) -> bool:
    """Whether a file in a repo matches a pattern whose * stays in one folder, as a local glob's does."""
    return file.count("/") == pattern.count("/") and fnmatchcase(file, pattern)


def head_of(api: HfApi, repo_id: str, *, revision: str | None) -> str | None:
    """Return the commit of a branch, or None if the repo or branch does not exist yet."""
    try:
        return api.model_info(repo_id, revision=revision).sha
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return None


@contextmanager
def _taken_back(api: HfApi, repo_id: str) -> Iterator[None]:
    """Delete a repo that was made just now, and still is as it was made, when the block fails."""
    made = api.model_info(repo_id).sha
    try:
        yield
    except BaseException:
        with suppress(*HUB_ERRORS):
            if api.model_info(repo_id).sha == made:
                api.delete_repo(repo_id)
        raise
