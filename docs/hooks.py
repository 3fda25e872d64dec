"""What the site has beyond the pages of docs/: references made of the code, and links that leave docs/.

mkdocs calls `on_files` and `on_page_markdown` (mkdocs.yml, `hooks`). Nothing of it is committed, so nothing goes stale:

    keys.md          every key of a spec and of a sweep, with type, default and what stands under the field
    metric-names.md  every metric as a run's rows have it, its name in Prometheus, unit, kind and source
    commands.md      the help of every command

Links such as `../jobs/objectives` hold where docs/ lies beside them. On the site they lead to the repository, where
`repo_url` of mkdocs.yml says where that is, and are plain text where it does not; those to the modules that a reference
is made of lead to the reference. A link to a file that is not there is a warning, which ends a strict build.
"""

import argparse
import logging
import os
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from emc2dist import cli
from emc2dist.config import Spec, Sweep
from emc2dist.config.sections import Section
from emc2dist.metrics import METRICS, exported_name

ROOT = Path(__file__).parents[1]
OUTWARD = re.compile(r"\[([^\]]+)\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
"""A link to what lies outside docs/: text, target, and what follows `#`."""
REFERENCES = {"emc2dist/config": "keys.md", "emc2dist/metrics.py": "metric-names.md", "emc2dist/cli": "commands.md"}
"""Files, or folders of files, in whose place the site has a page of its own."""
WIDTH = 80
"""Columns of a command's help."""

log = logging.getLogger("mkdocs.hooks.emc2dist")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """The site's files and the references among them."""
    for name, make in {"keys.md": keys, "metric-names.md": metric_names, "commands.md": commands}.items():
        files.append(File.generated(config, name, content=make()))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's text, with links that hold on the site."""
    return outward(markdown, config.repo_url, page.file.src_uri)


def outward(markdown: str, repo_url: str | None, page: str) -> str:
    """The text of `page`, whose links out of docs/ lead to the repository, to a reference, or nowhere."""

    def lead(link: re.Match[str]) -> str:
        text, target = link[1], os.path.normpath(f"docs/{link[2]}")
        if not (ROOT / target).exists():
            log.warning(f"{page}: the link to {link[2]} leads to no file of the repository")
        for source, reference in REFERENCES.items():
            if f"{target}/".startswith(f"{source}/"):
                return f"[{text}]({reference})"
        return f"[{text}]({repo_url.rstrip('/')}/blob/HEAD/{target}{link[3] or ''})" if repo_url else text

    return OUTWARD.sub(lead, markdown)


def keys() -> str:
    """The page of all keys of a spec, and of a sweep."""
    text = [
        "# Every key of a spec\n",
        "Made of `emc2dist/config/` when the site is built. A key of a section is written `section.key=value` on the "
        "command line, and under its section in a file. `emc2dist validate SPEC` prints a spec with all of them.\n",
        *_section(Spec, "", "A run"),
        *_section(Sweep, "", "A sweep"),
    ]
    return "\n".join(text)


def metric_names() -> str:
    """The page of all metrics by the names that rows of metrics.jsonl have."""
    rows = (
        (
            f"`{name}`",
            "" if metric.kind == "event" else f"`{exported_name(name)}`",
            metric.unit,
            metric.kind,
            metric.source,
            metric.panel,
        )
        for name, metric in METRICS.items()
    )
    text = [
        "# Metrics by name\n",
        "Made of `emc2dist/metrics.py` when the site is built. What each of them means, and when to worry, is in "
        "[metrics.md](metrics.md#all-metrics). A `ratio` is from 0 to 1; a `counter` only rises, and a row holds what "
        "its interval adds; an `event` marks a row and is not exported. `row`: it stands in `metrics.jsonl`; `driver` "
        "and `shard` know the others, which Prometheus alone sees.\n",
        *_table(("name", "in Prometheus", "unit", "kind", "source", "panel"), rows),
    ]
    return "\n".join(text)


def commands() -> str:
    """The page of the help of every command."""
    text = ["# Commands\n", "What `--help` of each command says.\n"]
    for parser in _parsers(cli.parser()):
        text += [f"## {parser.prog}\n", "```text", _help(parser), "```\n"]
    return "\n".join(text)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands, in their order."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from _parsers(sub)


def _help(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=WIDTH)  # not that of the terminal
    return parser.format_help().rstrip()


def _section(model: type[Section], prefix: str, title: str) -> Iterator[str]:
    """A heading, the section's own keys, and the sections in it, each under a heading of its own."""
    yield f"## {title}\n"
    yield _linked(model.__doc__ or "") + "\n"
    fields = {name: field for name, field in model.model_fields.items() if not _sections(field)}
    yield from _keys(fields, prefix)
    for name, field in model.model_fields.items():
        kinds = _sections(field)
        if kinds == [Spec]:  # of a sweep's base, which is a run
            yield from _keys({name: field}, prefix)
        elif len(kinds) == 1:
            yield from _section(kinds[0], f"{prefix}{name}.", f"`{prefix}{name}`")
        elif kinds:
            yield from _choice(kinds, field, f"{prefix}{name}")


def _choice(kinds: list[type[Section]], field: FieldInfo, key: str) -> Iterator[str]:
    """One of several sections, chosen by name: what all take, and then what each does."""
    yield f"## `{key}`\n"
    yield _linked(field.description or "") + "\n"
    common = set.intersection(*(set(kind.model_fields) for kind in kinds)) - {"name"}
    if common:
        yield "All of them take:\n"
        shared = {name: field for name, field in kinds[0].model_fields.items() if name in common}
        yield from _keys(shared, f"{key}.")
    for kind in kinds:
        (name,) = get_args(kind.model_fields["name"].annotation)
        yield f"### `{key}: {name}`\n"
        yield _linked(kind.__doc__ or "") + "\n"
        own = {name: field for name, field in kind.model_fields.items() if name not in common | {"name"}}
        yield from _keys(own, f"{key}.")


def _keys(fields: dict[str, FieldInfo], prefix: str) -> Iterator[str]:
    rows = (
        (
            f"`{prefix}{name}`",
            _kind(field.annotation, field.metadata),
            _default(field),
            _linked(field.description or ""),
        )
        for name, field in fields.items()
    )
    if fields:
        yield from _table(("key", "type", "default", "what"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _linked(docstring: str) -> str:
    """A docstring on one line, in which pages are links."""
    return re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", " ".join(docstring.split()))


def _sections(field: FieldInfo) -> list[type[Section]]:
    """The sections that a key may hold; none where it holds a value."""
    kinds = get_args(field.annotation) or (field.annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_written(field.default)}`"


def _written(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_NAMES = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`", type(None): "`null`"}


def _kind(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """A type and its range, in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(inner[0], [*inner[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(one, metadata if one is not type(None) else ()) for one in inner)
    if origin is tuple:
        return f"list of {_kind(inner[0])}" if inner[-1] is ... else f"[{'; '.join(map(_kind, inner))}]"
    if origin is dict:
        return f"mapping to {_kind(inner[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "keys of a run"
    return " ".join([_NAMES.get(annotation, "any value"), *_range(metadata)])


def _range(metadata: Iterable[Any]) -> Iterator[str]:
    """Bounds, of which pydantic keeps some one level down."""
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    for one in metadata:
        if isinstance(one, FieldInfo):
            yield from _range(one.metadata)
        for name, word in words.items():
            if getattr(one, name, None) is not None:
                bound = getattr(one, name)
                yield f"{word} {bound:,}" if isinstance(bound, int) else f"{word} {bound:g}"
