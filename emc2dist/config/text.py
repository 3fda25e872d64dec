"""From the bytes of a YAML file to a tree of text: what is bounded, and refused, before anything is made of it.

A plain scalar stays the text that was written, a `Plain`; what it means, `emc2dist.config.loading` decides by the key
that it is for. Whoever wrote the file is trusted with nothing: no tags, so many bytes, levels and values.
"""

import codecs
import difflib
from pathlib import Path
from typing import Any

import yaml

from emc2dist.config import characters, paths
from emc2dist.errors import SpecError

LARGEST = 2**20
"""Bytes of a spec."""
DEEPEST = 32
"""Levels of a spec."""
MOST = 100_000
"""Values of a spec, those that aliases repeat counted each time."""

_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_QUOTES = ("'", '"')


class Plain(str):
    """What was written without quotes."""


def read(path: str | Path, what: str = "a YAML spec") -> str:
    """The text of a spec file: UTF-8, or what its byte order mark says. A `str` is as a person writes it.

    Raises:
        SpecError: it cannot be read, or is no text or too large to be `what` was asked for.
    """
    try:
        file = path if isinstance(path, Path) else paths.on_disk(path)
        if file.is_fifo() and file.parts[:2] not in (("/", "dev"), ("/", "proc")):  # where a shell's pipes lie
            raise ValueError(f"is a pipe, which may never end; give the path of {what}")
        with file.open("rb") as stream:
            data = stream.read(LARGEST + 1)
    except ValueError as error:
        raise SpecError(f"{str(path)!r}: {error}") from None
    except OSError as error:
        near = _nearest(file) if isinstance(error, FileNotFoundError | IsADirectoryError) else ""
        reason = f"{error.strerror}{paths.looked_for_in(str(file))}"
        raise SpecError(f"{path}: cannot be read ({reason}); give the path of {what}{near}") from error
    if len(data) > LARGEST:
        raise SpecError(f"{path}: more than {LARGEST:,} bytes; give the path of {what}")
    try:
        return decoded(data)
    except ValueError as error:
        raise SpecError(f"{path}: {error}; save the file as UTF-8, if it is {what}") from None


def _nearest(file: Path) -> str:
    """The YAML file beside it whose name is most alike, whatever its ending; nothing where none is."""
    names = {one.stem: one for one in sorted(file.parent.glob("*.y*ml")) if one.is_file()}
    return "".join(f"; the nearest is {names[name]}" for name in difflib.get_close_matches(file.stem, names, n=1))


def tree(text: str, source: str) -> Any:
    """What the text of one YAML document says, of dicts, lists, strings and `Plain`; None where it is empty.

    Raises:
        SpecError: it is no YAML, holds a key twice or a tag, or is too deep or too much; names the line.
    """
    if unseen := characters.unseen_blank(text):  # before YAML is asked, which blames the line after it
        raise SpecError(f"{source}: {unseen}")
    try:
        node = yaml.compose(text, _Loader)
        return None if node is None else _Tree().value(node, ())
    except yaml.YAMLError as error:
        tab = "; indent with spaces, for YAML takes no tabs there" if r"'\t'" in str(error) else ""
        odd = characters.misleading_lines(text)
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        slip = f"; {unfilled}" if mark and (unfilled := _unfilled(mark)) else ""
        raise SpecError(f"{source}: not valid YAML ({' '.join(str(error).split())}){tab}{slip}{odd}") from None
    except ValueError as error:
        raise SpecError(f"{source}: {error}") from None


def flow(text: str, source: str) -> Any:
    """A value that was given in one word: a list in brackets, a mapping in braces, quoted text, or else `Plain`.

    Raises:
        SpecError: see `tree`; or a closing bracket is not the end of it, or lacks its other.
    """
    starts_as_yaml = text.strip().startswith(("[", "{", *_QUOTES))
    torn = any(text.count(one) != text.count(other) for one, other in ("[]", "{}"))
    if torn and not (starts_as_yaml and _composes(text)):
        raise SpecError(
            f"{source}: got {text!r}, a part of a value: a shell takes it apart at spaces and in braces; put all of it "
            f"in quotes, as in '{source}=VALUE'"
        )
    if not starts_as_yaml:
        return Plain(text)
    value, node = tree(text, source), yaml.compose(text, _Loader)
    rest = text[node.end_mark.index :].strip() if node else ""
    if rest:
        raise SpecError(f"{source}: {rest!r} comes after the end of its value; leave it out, or put all in quotes")
    return value


def _composes(text: str) -> bool:
    try:
        yaml.compose(text, _Loader)
    except (yaml.YAMLError, ValueError):
        return False
    return True


def unquoted(text: str) -> str:
    """The text within, where the whole of it is one quoted YAML scalar; else a `Plain` of it as it stands."""
    if text.startswith(_QUOTES):
        try:
            node = yaml.compose(text, _Loader)
        except yaml.YAMLError:
            return Plain(text)
        if isinstance(node, yaml.ScalarNode) and node.style in _QUOTES and node.end_mark.index == len(text):
            return node.value
    return Plain(text)


def decoded(data: bytes) -> str:
    """The text of a file that a person wrote: UTF-8, or as its mark says. Raises ValueError, which names the line."""
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in data:
        line = data.count(b"\n", 0, data.index(0)) + 1
        what = "UTF-16 without its byte order mark" if data.count(0) > len(data) // 4 else "a file that is no text"
        raise ValueError(f"line {line}: holds a NUL byte, as does {what}")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line, name = data.count(b"\n", 0, error.start) + 1, encoding.removesuffix("-sig").upper()
        raise ValueError(f"line {line}: byte {data[error.start]:#04x} is not {name}") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes; a plain scalar's tag is that of a string, so any other tag was written."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        if self.depth > 2 * DEEPEST:  # a node counts as a key's value and as what it holds
            raise ValueError(f"line {self.peek_event().start_mark.line + 1}: nested too deep for a spec")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


class _Tree:
    def __init__(self) -> None:
        self._left = MOST

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > DEEPEST:
            raise ValueError(f"{_where(node)}: aliases make more of it than a spec can hold; write it out")
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in ("str", "seq", "map"):
            raise ValueError(f"{_where(node)}: holds the tag {kind}; a spec takes none")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(at))) for at, item in enumerate(node.value)]
        return Plain(node.value) if isinstance(node, yaml.ScalarNode) and node.style is None else node.value

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                wrong = _unfilled(key.start_mark) or "a key that is a list or a mapping; keys are words"
                raise ValueError(f"{_where(key)}: {wrong}")
            here = (*path, key.value)
            if key.value in lines:
                both = f"in lines {lines[key.value]} and {key.start_mark.line + 1}"
                raise ValueError(f"{'.'.join(here)}: given twice, {both}; keep one")
            lines[key.value] = key.start_mark.line + 1
            if key.value == "<<" and key.style is None:
                merged = self._merged(item, here)
            else:
                own[key.value] = self.value(item, here)
        return merged | own

    def _merged(self, node: yaml.Node, path: tuple[str, ...]) -> dict[str, Any]:
        """What YAML's `<<` brings in: of several mappings the first one that has a key says it."""
        value = self.value(node, path)
        merged: dict[str, Any] = {}
        for one in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(one, dict):
                raise ValueError(f"{_where(node)}: << takes a mapping, as in <<: *other")
            merged |= one
        return merged


def _where(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _unfilled(mark: yaml.Mark) -> str | None:
    """What the line of a mark holds that a shell or a template should have filled in; None where nothing is."""
    text = mark.buffer or ""  # of a str it is all of it, and a NUL
    before, after = text[: mark.pointer], text[mark.pointer :].rstrip("\0")
    return paths.stand_in(before.rpartition("\n")[2] + after.partition("\n")[0])
