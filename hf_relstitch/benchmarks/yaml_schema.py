"""YAML as dataclasses; an error names the line and what is allowed there."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml

from hf_relstitch.core.errors import StitchError
from hf_relstitch.hub.files import check_yaml

Path_ = tuple[str | int, ...]
T = TypeVar("T")
DEEPEST, LONGEST = 8, 10_000
"""Most keys that lead to a value, and most values in all: a file of aliases could go on for ever."""


@dataclass(frozen=True)
class Document:
    """Hold the plain values of a YAML file, and the line of each value, by the keys that lead to it.

    Values that come from Python have no lines; `file` is then "the suite".
    """

    content: Any
    file: str = "the suite"
    lines: Mapping[Path_, int] = field(default_factory=dict)

    @classmethod
    def read(cls, file: str | Path) -> "Document":
        """Read a YAML file.

        Raises:
            StitchError: the file does not exist or is not YAML, or a mapping has the same key twice.
        """
        path = Path(file)
        if not path.is_file():
            raise StitchError(f"{path} is no file: give a suite in YAML, or the name of one that is shipped")
        try:
            text = path.read_text(encoding="utf-8")
            check_yaml(text, str(path), aliases=True)
            loader = yaml.SafeLoader(text)
            node = loader.get_single_node()
            lines: dict[Path_, int] = {}
            if node is not None:
                _number(node, (), lines, path.name)
            return cls(loader.construct_document(node) if node is not None else {}, path.name, lines)
        except StitchError:
            raise
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise StitchError(f"{path} is not YAML: {error}") from error

    def error(self, path: Path_, message: str) -> StitchError:
        """Return an error that names the line of the value that these keys lead to."""
        line = next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)
        return StitchError(f"{self.file}, line {line}: {message}" if line else f"{self.file}: {message}")

    def into(self, cls: type[T], content: Any, path: Path_) -> T:
        """Convert a mapping to a dataclass; the rule in each field's `metadata["rule"]` checks and converts its value.

        Raises:
            StitchError: the content is not a mapping, a key is unknown or missing, or a value is not allowed.
        """
        known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
        if not isinstance(content, dict):
            raise self.error(path, f"{_name(path)} is {content!r}: expected a mapping with {_keys(known)}")
        for key in content:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise self.error(
                    (*path, key), f"unknown key {key!r} in {_name(path)}{hint}: it can have {_keys(known)}"
                )
        needed = [name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING]
        if missing := [name for name in needed if name not in content]:
            raise self.error(path, f"{_name(path)} has no {missing[0]!r}, which it needs; it can have {_keys(known)}")
        values = {}
        for key, value in content.items():
            rule, at = known[key].metadata["rule"], (*path, key)
            values[key] = rule(self, value, at)
        return cls(**values)


def one_of(*allowed: str) -> Any:
    """Return a rule that allows only these words."""

    def rule(document: Document, value: Any, path: Path_) -> Any:
        if value not in allowed:
            near = get_close_matches(str(value), allowed, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise document.error(path, f"{_name(path)} is {value!r}{hint}: allowed are {', '.join(allowed)}")
        return value

    return rule


def text(document: Document, value: Any, path: Path_) -> str:
    """Check that a value is text and not empty, and return it."""
    if not isinstance(value, str) or not value:
        raise document.error(path, f"{_name(path)} is {value!r}: expected text")
    return value


def number(*, at_least: int) -> Any:
    """Return a rule that allows whole numbers from `at_least` on."""

    def rule(document: Document, value: Any, path: Path_) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
            raise document.error(path, f"{_name(path)} is {value!r}: expected a whole number, {at_least} or more")
        return value

    return rule


def many(rule: Any) -> Any:
    """Return a rule for a list of one or more different values, each checked by `rule`."""

    def rule_for_all(document: Document, value: Any, path: Path_) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise document.error(path, f"{_name(path)} is {value!r}: expected a list of one or more")
        made = tuple(rule(document, one, (*path, place)) for place, one in enumerate(value))
        if len(set(made)) < len(made):
            raise document.error(path, f"{_name(path)} names something twice: {list(made)}")
        return made

    return rule_for_all


def named(rule: Any) -> Any:
    """Return a rule for a mapping from any names to values, each checked by `rule`."""

    def rule_for_all(document: Document, value: Any, path: Path_) -> dict[str, Any]:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise document.error(path, f"{_name(path)} is {value!r}: expected a mapping from names")
        return {name: rule(document, one, (*path, name)) for name, one in value.items()}

    return rule_for_all


def nested(cls: type[T]) -> Any:
    """Return a rule for a dataclass within a dataclass."""
    return lambda document, value, path: document.into(cls, {} if value is None else value, path)


def _number(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: str) -> None:
    """Record the line of each value; for a value in a mapping, the line of its key."""
    if len(path) > DEEPEST or len(lines) > LONGEST:
        raise StitchError(f"{file}, line {node.start_mark.line + 1}: this is deeper, or longer, than a suite can be")
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise StitchError(f"{file}, line {key.start_mark.line + 1}: a name is text, and this is a {key.id}")
            at = (*path, key.value)
            if at in lines:
                raise StitchError(f"{file}, line {key.start_mark.line + 1}: {key.value!r} stands here a second time")
            lines[at] = key.start_mark.line + 1
            _number(value, at, lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for place, value in enumerate(node.value):
            _number(value, (*path, place), lines, file)


def _name(path: Path_) -> str:
    return ".".join(str(step) for step in path) or "the suite"


def _keys(known: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(known)
