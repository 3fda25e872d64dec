"""The pages as a site: built strictly, without a network, with references that the code makes."""

import importlib.util
import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from emc2dist.config import leaves, parse
from emc2dist.metrics import METRICS

ROOT = Path(__file__).parents[2]


def module(name):
    """A module that lies among the pages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found  # a NamedTuple asks for it
    spec.loader.exec_module(found)
    return found


hooks = module("hooks")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder; any warning ends its build."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


class Loaded(HTMLParser):
    """What a page loads, by its attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(attributes.get("src") or "")
        elif tag == "link" and attributes.get("rel") in ("stylesheet", "preconnect", "preload"):
            self.found.append(attributes.get("href") or "")


def test_every_page_is_built_strictly_and_loads_nothing_from_elsewhere(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} | {"keys", "metric-names", "commands"}
    assert {page.parent.name for page in site.glob("*/index.html")} == pages
    for page in site.rglob("*.html"):
        parser = Loaded()
        parser.feed(page.read_text())
        assert parser.found
        assert [one for one in parser.found if re.match(r"(https?:)?//", one)] == []
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize("text", ["[a](none.md)", "[a](#none)", "[a](../none.py)", "![a](none.png)"])
def test_a_link_that_leads_nowhere_ends_the_build(tmp_path, text):
    (tmp_path / "docs").mkdir()
    pages = [path.name for path in (ROOT / "docs").glob("*.md")]
    for name in pages:
        (tmp_path / "docs" / name).write_text("# Page\n\n## All metrics\n")
    own, _, _ = (ROOT / "mkdocs.yml").read_text().partition("nav:\n  - What")
    own = re.sub(r"theme:\n(  .*\n)+", "theme: mkdocs\n", own).replace("docs/hooks.py", hooks.__file__)  # a quicker one
    nav = ", ".join([*pages, "keys.md", "metric-names.md", "commands.md"])
    (tmp_path / "mkdocs.yml").write_text(f"{own}nav: [{nav}]\n")
    build(load_config(str(tmp_path / "mkdocs.yml")))
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{text}\n")
    with pytest.raises(Abort, match="1 warning"):
        build(load_config(str(tmp_path / "mkdocs.yml")))


def test_links_out_of_docs_lead_to_the_repository_to_a_reference_or_are_text(caplog):
    text = (
        "see [its *metrics*](../cluster/grafana.json), [keys](../emc2dist/config/sweep.py) and [here](draws.md#balance)"
    )
    without = hooks.outward(text, None, "p.md")
    assert without == "see its *metrics*, [keys](keys.md) and [here](draws.md#balance)"
    told = hooks.outward(text, "https://forge.example.org/o/r/", "p.md")
    assert "[its *metrics*](https://forge.example.org/o/r/blob/HEAD/cluster/grafana.json)" in told
    with caplog.at_level(logging.WARNING):
        hooks.outward("[x](../gone.py)", None, "p.md")
    assert "p.md: the link to ../gone.py leads to no file" in caplog.text


def test_the_reference_has_every_key_with_its_default_and_range():
    text = hooks.keys()
    spec = parse((ROOT / "jobs" / "quickstart.yaml").read_text())
    named = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    written = {key for key, _ in leaves(spec.model_dump()) if not key.endswith(".name")}
    assert written - named == set()
    assert {f"negatives.{name}" for name in ("kernel", "rows", "rate", "draws", "ceiling")} <= named
    assert {"space", "scheduler.grace", "budget.hours"} <= named  # of a sweep
    row = next(line for line in text.splitlines() if line.startswith("| `views.size`"))
    assert row == "| `views.size` | whole number from 1 to 4,096 | `32` | Side of a view, pixels. |"
    assert "| `data.limit` | whole number from 1 to 281,474,976,710,656 or `null` | `null` |" in text
    assert "| `name` | text | required |" in text
    assert "[data.md](data.md)" in text  # what a docstring calls docs/data.md


def test_every_field_says_what_it_is():
    """The reference has nothing else to say of it."""
    rows = re.findall(r"^\| (`[\w.]+`) \|.*\|([^|]*)\|$", hooks.keys(), re.MULTILINE)
    assert [key for key, what in rows if not what.strip()] == []


def test_the_reference_has_every_metric_and_every_command():
    names = hooks.metric_names()
    assert [name for name in METRICS if f"| `{name}` |" not in names] == []
    assert "| `images` | `emc2_images_total` | images | counter | row | Images trained on |" in names
    commands = hooks.commands()
    for command in ("train", "cluster start", "checkpoint verify", "neighbours", "new"):
        assert f"## emc2dist {command}\n" in commands
    assert "--skip-unreadable" in commands
    assert max(len(line) for line in commands.splitlines()) <= 80


def test_the_pictures_of_concepts_show_what_is_said_of_them():
    concepts = module("concepts")
    told = concepts.visits()
    off = [concepts.distance(told.chain[:count], told.target) for count in concepts.SHOWN]
    assert off[0] > off[1] > off[2]
    assert off[2] < 0.05 < 0.2 < concepts.distance(told.in_batch, told.target)
    at = concepts.shown(told)
    assert told.chain[at][told.states[at - 1]] > 0
    assert concepts.svg(concepts.of_the_chain(told)) == concepts.svg(concepts.of_the_chain(told))
    assert b"<svg" in concepts.svg(concepts.of_the_negatives(told))
