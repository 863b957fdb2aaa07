"""Folders and files that appear whole or not at all, and checksums of what is in them."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import torch
import xxhash
import yaml
from filelock import FileLock, Timeout
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hf_relstitch.core.errors import StitchError
from hf_relstitch.version import __version__

WINDOW = 1 << 24
"""Bytes of a file that are mapped at a time."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the system where nothing more can be written."""
PARTIAL = ".partial-"
"""Prefix of what is not whole yet."""
NEW, WHOLE, MOVING = (f"{PARTIAL}{stage}" for stage in ("new", "whole", "moving"))
"""Folders, inside the folder to save to, of files that are being written, that are all there, and that are moved."""
LOCK = f"{PARTIAL}lock"
MOST_YAML, DEEPEST_YAML, LONGEST_NUMBER = 20_000, 50, 1_000
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
PATIENCE = 30
"""Seconds to wait for a save that is being finished."""
FACTS = "hf_relstitch"
"""The field of an exported encoder's settings that holds where it comes from."""
SETTINGS = "config_sentence_transformers.json"
RESULTS_NAME = ".eval_results/hf_relstitch.yaml"


@dataclass(frozen=True)
class Kind:
    """Hold what tells the folders of one kind of artifact.

    Attributes:
        name: its name in messages.
        last: the file that is moved after all others, since it says that the rest is complete.
        owned: globs of the files that go when a newer artifact is saved without them.
        is_checked: whether whoever reads the folder finds out that its files do not belong together.
    """

    name: str
    last: str
    owned: tuple[str, ...] = ()
    is_checked: bool = True


STITCHED_MODEL = Kind("a stitched model", "config.json", ("model*.safetensors*", RESULTS_NAME))
ANCHOR_SET = Kind("an anchor set", "anchor_config.json", ("anchors.safetensors",))
TRANSLATION = Kind("a translation for search", "translation.safetensors")
EXPORTED = Kind(
    "an exported encoder", "config.json", ("model*.safetensors*", "?_Dense/*", "?_Normalize/*"), is_checked=False
)
STITCHED = "relative_stitcher"
LAST = {kind.last for kind in (STITCHED_MODEL, ANCHOR_SET, TRANSLATION, EXPORTED)}


def kind_at(file: Callable[[str], Path | None]) -> Kind | None:
    """Tell what is held where this function finds a file by its name: a kind above, another model, or neither."""
    if (config := file("config.json")) is not None and read_json(config).get("model_type") == STITCHED:
        return STITCHED_MODEL
    if (settings := file(SETTINGS)) is not None and FACTS in read_json(settings):
        return EXPORTED
    if config is not None:
        return Kind(f"a model of type {read_json(config).get('model_type')}", "config.json")
    return next((kind for kind in (ANCHOR_SET, TRANSLATION) if file(kind.last) is not None), None)


def kind_of(folder: Path) -> Kind | None:
    """Tell what a folder holds, see `kind_at`; or which file of another model it has."""
    found = kind_at(lambda name: folder / name if (folder / name).is_file() else None)
    others = (name for name in ("modules.json", "adapter_config.json", "model_index.json") if (folder / name).is_file())
    return found or next((Kind(f"a model with a {name}", name) for name in others), None)


def check_kind(folder: str | Path, kind: Kind) -> None:
    """Refuse to save an artifact over one of another kind.

    Raises:
        StitchError: the folder holds something else.
    """
    if not isinstance(folder, str | os.PathLike):
        raise StitchError(f"the folder is a {type(folder).__name__}: expected a path")
    found = kind_of(Path(folder))
    if found not in (None, kind):
        raise StitchError(f"{folder} holds {found.name}, which saving there would spoil: give another folder")


@contextmanager
def atomic_folder(folder: str | Path, kind: Kind) -> Iterator[Path]:
    """Yield a temporary folder, and move its files into `folder` when the block ends without an error.

    The temporary folder lies in `folder`, which can be a volume of its own. Files of the same name are replaced, older
    files that the kind owns are removed, and other files stay.

    A save that is cut off before all files are written leaves the old files. After that, `finish_save` or the next save
    moves the others. The next save also removes what was left.

    Raises:
        StitchError: the folder, or anything in the block, cannot be written; it holds an artifact of another kind; or
            another save into it is running.
    """
    folder = Path(folder)
    with _written_to(folder):
        check_output(folder)
        made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with _save_lock(folder):
                _move_new_files(folder)
                check_kind(folder, kind)
                new = folder / NEW
                shutil.rmtree(new, ignore_errors=True)
                new.mkdir()
                try:
                    yield new
                    _give_usual_modes(new)
                    _check_replaceable(new, folder)
                    new.rename(folder / WHOLE)
                except BaseException:
                    shutil.rmtree(new, ignore_errors=True)
                    raise
                _move_new_files(folder)
        except BaseException:
            with suppress(OSError):  # not empty
                for parent in made:
                    parent.rmdir()
            raise


def _check_replaceable(new: Path, folder: Path) -> None:
    """Refuse, while the old files are all there, to replace a folder by a file, or a file by a folder."""
    for entry in new.iterdir():
        place = folder / entry.name
        if place.exists() and place.is_dir() != entry.is_dir():
            raise OSError(f"{place} is a {'folder' if place.is_dir() else 'file'}")


def finish_save(folder: Path) -> bool:
    """Finish a save into a folder that was cut off while it moved the new files, and tell if there was one.

    Raises:
        StitchError: the folder cannot be written, or the save is still running.
    """
    if not any(_is_own_folder(folder / name) for name in (WHOLE, MOVING)):
        return False
    with _written_to(folder), _save_lock(folder, wait=PATIENCE):
        _move_new_files(folder)
    return True


def _move_new_files(folder: Path) -> None:
    """Move the files of `WHOLE` or `MOVING` to their folder; each step can be cut off, and is done again."""
    whole, moving = folder / WHOLE, folder / MOVING
    if _is_own_folder(whole) and (kind := kind_of(whole)) is not None:
        new = {folder / file.relative_to(whole) for file in whole.rglob("*")}
        for file in {file for glob in kind.owned for file in folder.glob(glob)} - new:
            file.unlink()
        if not kind.is_checked:  # without this file nobody takes old and new ones together for a model
            (folder / kind.last).unlink(missing_ok=True)
        whole.rename(moving)
    if _is_own_folder(moving):
        for entry in sorted(moving.iterdir(), key=lambda entry: entry.name in LAST):
            if entry.is_dir():
                shutil.copytree(entry, folder / entry.name, dirs_exist_ok=True)
                shutil.rmtree(entry)
            else:
                entry.replace(folder / entry.name)
        moving.rmdir()


def _is_own_folder(path: Path) -> bool:
    """Whether a path is a folder, and no link to one elsewhere."""
    return path.is_dir() and not path.is_symlink()


def _save_lock(folder: Path, *, wait: float = 0) -> AbstractContextManager[None]:
    """Keep other saves out of a folder."""
    return run_lock(folder / LOCK, doing=f"saving to {folder}", instead="give another folder", wait=wait)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    """Say of an error of writing which folder could not be written, and what to do."""
    try:
        yield
    except StitchError:
        raise
    except Exception as error:
        if isinstance(error, OSError | SafetensorError) or _is_full(error):
            raise _cannot_save(folder, error) from error
        raise


def _is_full(error: Exception) -> bool:
    """Tell whether an error is of a disk that is full; tokenizers, safetensors and FAISS have errors of their own."""
    return getattr(error, "errno", None) in FULL or any(os.strerror(number) in str(error) for number in FULL)


def _cannot_save(folder: Path, error: Exception) -> StitchError:
    remedy = "free some space" if _is_full(error) else "make it writable"
    return StitchError(f"saving to {folder} failed ({error}): {remedy}, or give another folder")


def check_output(folder: Path) -> Path:
    """Return a folder, or the nearest existing one above it; call this before the work whose outcome goes there.

    Raises:
        StitchError: the folder cannot be written, or is a file.
    """
    with _written_to(folder):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        if not there.is_dir():
            raise StitchError(f"{there} is a file: give a folder to save to")
        probe = there / f"{PARTIAL}probe"
        probe.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # removed by another process that checks
            probe.rmdir()
        return there


def _give_usual_modes(*places: Path) -> None:
    """Give files the mode that any new file has there; safetensors makes its own readable by the owner alone."""
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    for folder in {file.parent for file in files}:
        usual = folder / f"{PARTIAL}mode"
        usual.touch()
        mode = usual.stat().st_mode & 0o777
        usual.unlink()
        for file in files:
            if file.parent == folder:
                file.chmod(mode)


@contextmanager
def atomic_write(file: str | Path) -> Iterator[Path]:
    """Yield a temporary file beside `file`: without an error in the block it replaces `file`, else it is deleted."""
    file = Path(file)
    if not file.parent.is_dir():
        raise StitchError(f"there is no folder {file.parent} to write {file.name} into: make it first")
    written = file.with_name(f"{PARTIAL}{file.name}")
    try:
        yield written
        _give_usual_modes(written)
        written.replace(file)
    except BaseException as error:
        written.unlink(missing_ok=True)
        if isinstance(error, Exception) and not isinstance(error, StitchError) and _is_full(error):
            raise _cannot_save(file.parent, error) from error
        raise


@contextmanager
def run_lock(lock: Path, *, doing: str, instead: str, wait: float = 0) -> Iterator[None]:
    """Keep a lock file for one run, and remove it; the lock of a killed run is released. `wait` is in seconds.

    Raises:
        StitchError: another run has it; `doing` says what that run does, and `instead` what else to do.
    """
    try:
        held = FileLock(lock, timeout=wait).acquire()
    except Timeout as error:
        raise StitchError(f"another run is {doing}: let it end, or {instead}") from error
    with held:
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                lock.unlink()


def checksum(file: Path) -> str:
    """Return the XXH3 of a file's bytes; it finds damage, it does not prove who wrote the file."""
    digest, size = xxhash.xxh3_128(), file.stat().st_size
    with file.open("rb") as stream:
        for start in range(0, size, WINDOW):
            with mmap(stream.fileno(), min(WINDOW, size - start), access=ACCESS_READ, offset=start) as content:
                digest.update(content)  # in one call, during which other threads go on
    return f"xxh3_128:{digest.hexdigest()}"


def verify_checksum(file: Path, expected: str) -> None:
    """Compare a file with the checksum recorded when it was saved.

    Raises:
        StitchError: the file is missing, or its bytes differ from the saved bytes.
    """
    if not file.is_file():
        raise StitchError(f"{file.parent} has no file {file.name}, which its config lists: copy or download it again")
    if (found := checksum(file)) != expected:
        raise StitchError(
            f"{file} is damaged or was altered: its checksum is {found} and {expected} was saved; "
            "copy or download it again"
        )


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, indented and with sorted keys."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        StitchError: the file is missing, or does not hold a JSON object.
    """
    if not file.is_file():
        is_cut_off = (file.parent / NEW).is_dir()
        remedy = "a save to it was cut off, so save again" if is_cut_off else "is it the right folder?"
        raise StitchError(f"{file.parent} has no file {file.name}: {remedy}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StitchError(f"{file} is not valid JSON ({error}): copy or download it again") from error
    if not isinstance(content, dict):
        raise StitchError(f"{file} holds a {type(content).__name__} where a JSON object was expected")
    return content


def card_metadata(text: str, *, most: int = MOST_YAML) -> str:
    """Return the YAML at the top of a README.md, empty if there is none, which can be read in no time.

    Raises:
        StitchError: it has aliases, or is longer or deeper than metadata are.
        YAMLError: it cannot be read.
    """
    block = REGEX_YAML_BLOCK.search(text)
    if block is None:
        return ""
    check_yaml(block[2], "the metadata at the top of README.md", most=most)
    return block[2]


def check_yaml(text: str, what: str, *, most: int = MOST_YAML, aliases: bool = False) -> None:
    """Refuse YAML that would take long to read, or more memory than there is.

    Raises:
        StitchError: it has aliases, or is longer or deeper than what people write.
        YAMLError: it cannot be read.
    """
    depth = 0
    for number, event in enumerate(yaml.parse(text[: 50 * most], Loader=YAML_LOADER)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise StitchError(f"{what} has YAML aliases (*NAME): write their values out")
        is_number = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and len(event.value) > LONGEST_NUMBER
        if depth > DEEPEST_YAML or (is_number and re.fullmatch(r"[\w.:+-]+", event.value)):
            raise StitchError(f"{what} is deeper than {DEEPEST_YAML} levels, or has a number of thousands of digits")
        if number > most or len(text) > 50 * most:
            raise StitchError(f"{what} is longer than {most} values or {50 * most} characters: shorten it")


def weight_map(index: Path) -> dict[str, str]:
    """Map each tensor to its file, from the index of safetensors in several files.

    Raises:
        StitchError: the index does not say so.
    """
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise StitchError(f"{index} has no weight_map of tensors to files: copy or download it again")
    return found


def check_format(version: object, *, supported: int, what: str, written_by: object) -> None:
    """Refuse an artifact whose format is newer than this package.

    Raises:
        StitchError: the format version is not one that this package reads.
    """
    if not isinstance(version, int) or version < 1:
        raise StitchError(f"{what} has format version {version!r}: expected a whole number from 1 to {supported}")
    if version > supported:
        is_number = re.fullmatch(r"\d+(\.\d+){0,3}", str(written_by), re.ASCII)  # it is to be copied into a shell
        newer = f"'hf-relstitch>={written_by}'" if is_number else "hf-relstitch"
        raise StitchError(
            f"{what} has format version {version}, and this hf_relstitch reads versions up to {supported}: "
            f"pip install -U {newer}"
        )


def write_tensors(
    file: str | Path, tensors: dict[str, Tensor], content: dict[str, Any], *, kind: str, format_version: int
) -> None:
    """Write one safetensors file, whole or not at all; the other content stands under `kind` in its metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        "format_version": str(format_version),
        "hf_relstitch_version": __version__,
        kind: json.dumps(content, sort_keys=True),
    }
    metadata["checksum"] = _checksum_of(tensors, metadata)
    with atomic_write(file) as written, _written_to(Path(file).parent):
        save_file(tensors, written, metadata)


def _checksum_of(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Return the XXH3 of tensors, their names and metadata."""
    digest = xxhash.xxh3_128(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return f"xxh3_128:{digest.hexdigest()}"


def read_tensors(
    file: str | Path, *, kind: str, supported: int, otherwise: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the content of a file from `write_tensors`.

    Raises:
        StitchError: the file is of another kind (the message says `otherwise`), of a newer format, or damaged.
        OSError, SafetensorError, KeyError, ValueError: the file is missing or damaged.
    """
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
        if kind not in metadata:
            raise StitchError(f"{file} {otherwise}")
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    version, written_by = int(metadata["format_version"]), metadata.get("hf_relstitch_version")
    check_format(version, supported=supported, what=str(file), written_by=written_by)
    expected = metadata.pop("checksum", None)  # which older files lack
    is_whole = metadata.keys() == {"format_version", "hf_relstitch_version", kind}
    if not is_whole or (expected is not None and _checksum_of(tensors, metadata) != expected):
        raise StitchError(f"{file} is damaged or was altered: copy or download it again")
    return tensors, json.loads(metadata[kind])
