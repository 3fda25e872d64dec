"""From run folders to the page: what is drawn, what is missing and why, tables, HTML.

The page is one file: pictures are embedded, nothing is loaded (a content security policy says so to the browser too),
there is no script. All that comes from a run or a set is escaped.
"""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from jinja2 import Environment, StrictUndefined

from emc2dist import files
from emc2dist.config import S3, leaves
from emc2dist.errors import Emc2Error, RunError
from emc2dist.files import Place
from emc2dist.plotting import COLOURS, Picture
from emc2dist.report import atlas, curves
from emc2dist.report.atlas import Atlas
from emc2dist.report.chains import Chains
from emc2dist.report.runs import ReportedRun
from emc2dist.report.texts import HEADING, TextChains
from emc2dist.run.folder import numbers
from emc2dist.terminal import say

_What = TypeVar("_What")

PAGE = "report.html"


def report(
    runs: Sequence[str | Path],
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    s3: S3 | None = None,
    asked: bool = True,
) -> dict[str, Any]:
    """Write the page and its pictures into the folder `out`, by default `report` in the first run's folder.

    `overrides` are KEY=VALUE of the runs' specs: `data.path=PATH` where the data have moved. What `s3` was given goes
    before what each run's spec says, for run folders, `out` and data. Where nobody has `asked` for the page, it alone
    says what it does not show.

    Returns:
        `page`, the HTML file, and `pictures`, the PNGs, as they would be written on the command line; and `remarks`.

    Raises:
        RunError: one of `runs` is no run folder. StorageError: `out` cannot be written.
    """
    shown = ReportedRun.open_all(runs, s3, overrides)
    folder = files.at(out, s3) if out is not None else shown[0].folder.place / "report"
    files.refuse_file(folder)  # before there is anything to write
    chained = [_find(_chains_of, run, "chains") for run in shown]
    mapped = [_find(Atlas.of, run, "map") for run in shown]
    say("report: drawing and writing")
    sections = _sections(shown, chained, mapped)
    written = _write(folder, _html(shown, sections, _tables(shown, chained)), sections)
    missing = [f"{section.title}: {section.missing}" for section in sections if section.missing]
    for remark in missing if asked else ():
        say(remark)
    return written | {"remarks": [*(remark for run in shown for remark in run.remarks), *missing]}


@dataclass(frozen=True)
class Section:
    """Pictures under a heading, and what is missing there."""

    title: str
    lead: str = ""
    pictures: Sequence[Picture] = ()
    missing: str = ""
    """A sentence; empty where nothing is missing."""
    table: Sequence[Sequence[str]] = ()
    """Rows of text under the first of them, a heading."""


class Line(NamedTuple):
    """A line of a table: one value per run."""

    name: str
    values: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs disagree."""
        return len(set(self.values)) > 1


class _Found(NamedTuple, Generic[_What]):
    """A thing that was looked for, or why there is none."""

    what: _What | None
    why: str


def _find(look: Callable[[ReportedRun], _What], run: ReportedRun, name: str) -> _Found[_What]:
    say(f"report: {name} of {run.label}")
    try:
        return _Found(look(run), "")
    except Emc2Error as error:
        return _Found(None, str(error).rstrip("."))


def _chains_of(run: ReportedRun) -> Chains | TextChains:
    if run.spec.data.kind == "texts":
        raise RunError("negatives are shown of images and of pairs, and this run is over texts by themselves")
    return TextChains.of(run) if run.spec.of_pairs else Chains.of(run)


def _sections(
    runs: Sequence[ReportedRun], chained: Sequence[_Found[Chains | TextChains]], mapped: Sequence[_Found[Atlas]]
) -> list[Section]:
    suffixes = [f"-{number}" if len(runs) > 1 else "" for number in range(1, len(runs) + 1)]
    chains_drawn = [
        _chains(run, found, f"chains{suffix}", colour)
        for run, found, suffix, colour in zip(runs, chained, suffixes, COLOURS, strict=False)
    ]
    maps_drawn = [
        _atlas(run, found, f"map{suffix}")
        for run, found, suffix in zip(runs, mapped, suffixes, strict=True)
    ]  # fmt: skip
    return [*chains_drawn, _curves(runs), *maps_drawn]


def _curves(runs: Sequence[ReportedRun]) -> Section:
    absent = ", ".join(curves.not_recorded(runs))
    missing = f"Not recorded, so not drawn: {absent}." if absent else ""
    return Section("Curves", "From metrics.jsonl, over epochs.", list(curves.draw(runs)), missing)


def _chains(run: ReportedRun, found: _Found[Chains | TextChains], name: str, colour: str) -> Section:
    title = f"Negatives of {run.label}"
    if found.what is None:
        return Section(title, missing=f"No negatives to show: {found.why}.")
    chains, step = found.what, run.newest.manifest.step
    table = [HEADING, *chains.table()] if isinstance(chains, TextChains) and not chains.images else ()
    return Section(title, chains.told(step), chains.draw(name, colour), table=table)


def _atlas(run: ReportedRun, found: _Found[Atlas], name: str) -> Section:
    title = f"Map of {run.label}"
    if found.what is None:
        return Section(title, missing=f"No map to show: {found.why}.")
    lead = f"Features of plain views at step {run.newest.manifest.step:,}, in two dimensions."
    return Section(title, lead, atlas.draw(found.what, name))


def _tables(runs: Sequence[ReportedRun], chained: Sequence[_Found[Chains | TextChains]]) -> dict[str, list[Line]]:
    """Lines of each table, by title."""
    results = [
        _results(run) | (found.what.numbers() if found.what is not None else {})
        for run, found in zip(runs, chained, strict=True)
    ]
    return {
        "results": _lines(results),
        "spec": _lines([dict(leaves(run.spec.model_dump())) for run in runs]),
        "versions": _lines([run.folder.versions() for run in runs]),
        "summary": _lines([run.folder.summary() or {} for run in runs]),
    }


def _results(run: ReportedRun) -> dict[str, Any]:
    """The first lines of the table on top."""
    resumed = [row["step"] for row in run.rows if row.get("resumed")]
    return {
        "objective": run.spec.method,
        "finished": "yes" if run.folder.summary() else f"no, of {run.spec.epochs} epochs",
        **numbers(run.rows),
        "steps": run.rows[-1]["step"] if run.rows else None,
        "resumed at step": ", ".join(map(str, resumed)) or None,
        **({"remarks": "; ".join(run.remarks)} if run.remarks else {}),
    }


def _lines(columns: Sequence[dict[str, Any]]) -> list[Line]:
    """A line for every name that some run has."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [Line(name, [_text(column.get(name)) for column in columns]) for name in names]


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _html(runs: Sequence[ReportedRun], sections: Sequence[Section], tables: dict[str, list[Line]]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    template = environment.from_string(resources.files(__package__).joinpath("page.html.j2").read_text("utf-8"))
    return template.render(
        runs=[(run.label, str(run.folder.place), colour) for run, colour in zip(runs, COLOURS, strict=False)],
        sections=sections,
        tables=tables,
    )


def _write(folder: Place, html: str, sections: Sequence[Section]) -> dict[str, Any]:
    """Write all of it; or, of what was not there before, nothing."""
    pictures = {f"{picture.name}.png": picture.png for section in sections for picture in section.pictures}
    contents = {**pictures, PAGE: html.encode()}
    before = {entry.name for entry in folder.entries()}
    try:
        for name, content in contents.items():
            (folder / name).write(content)
    except BaseException:
        for name in contents.keys() - before:
            (folder / name).remove()
        raise
    return {"page": str(folder / PAGE), "pictures": [str(folder / name) for name in pictures]}
