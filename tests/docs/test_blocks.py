"""Every block of code on the pages: commands parse, options exist, specs load, Python compiles and runs where it can.

What can be none of these is of the language `text`.
"""

import contextlib
import io
import itertools
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from pages import FOREIGN, PAGES, ROOT, blocks, commands

from emc2dist.cli import parse
from emc2dist.config import load_job
from emc2dist.config import parse as parse_spec
from emc2dist.errors import SpecError

ANY = "name: any\nepochs: 20\nbatch_size: 64\nlr: 1e-3\n"
"""A spec of which nothing is known: what a part of one, or key=value, is tried on."""
SHOWN = {"text", "diff"}
"""Languages of what is only shown: output, trees; changes, which a test of their page looks at."""


ALL = [block for page in PAGES for block in blocks(page)]


def of(*languages):
    found = [block for block in ALL if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=lambda block: block.name)


def is_shell(text):
    """Whether an indented block is commands: it begins with a program."""
    first = text.split(maxsplit=1)[0]
    return first in {"emc2dist", "python", "make", "pip", "for"} | FOREIGN


def test_every_block_is_of_a_language_that_is_looked_at():
    known = {"sh", "python", "yaml", ""} | SHOWN
    assert [block.name for block in ALL if block.language not in known] == []
    formulas = [block for block in ALL if not block.language and not is_shell(block.text)]
    assert [block.name for block in formulas if not re.search(r" = |∝|->|π", block.text)] == []
    assert len(ALL) > 50
    assert {block.page.name for block in ALL} >= {"README.md", "own-images.md", "kubernetes.md", "quickstart.md"}


def spoken(words):
    """Command lines that a synopsis stands for: without its brackets, and each of `a|b` once."""
    plain = [word.strip("[]") if re.match(r"\[[\w-]+=?\w*\]?$|\.\.\.\]$", word) else word for word in words]
    plain = [word for word in plain if word not in ("key=value", "...")]
    for several in itertools.product(*(word.split("|") if "=" not in word else [word] for word in plain)):
        yield list(several)


def check(words):
    """Fail where a command cannot be meant: ours by their parsers and keys, those of Python by their sources."""
    program, *rest = words
    if program == "emc2dist":
        for line in spoken(rest):
            check_ours(line)
    elif program == "python":
        module = rest[1].replace(".", "/") + ".py" if rest[0] == "-m" else rest[0]
        source = (ROOT / module).read_text()
        if module.startswith("jobs/"):
            load_job(ROOT / f"{module[:-3]}.yaml", [word for word in rest[1:] if "=" in word])
        assert [word for word in rest if word.startswith("--") and f'"{word}"' not in source] == []
    elif program == "make":
        targets = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip":
        extras = re.findall(r"\[(\w+)\]", " ".join(rest))
        assert [extra for extra in extras if f"\n{extra} = [" not in (ROOT / "pyproject.toml").read_text()] == []
    else:
        assert program in FOREIGN, f"{program}: is no program that is known here"


def check_ours(words):
    """Parse a command line by the command's own parser, and its key=value by the config."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            arguments = parse(words)
            overrides = [word for word in getattr(arguments, "overrides", ()) if "=" in word]
            named = [ROOT / "jobs" / f"{Path(word).stem}.yaml" for word in words if word.startswith(("jobs/", "runs/"))]
            job = next((job for job in named if job.is_file()), None)
            _ = load_job(job, overrides) if job else parse_spec(ANY, overrides)
    except (SystemExit, SpecError) as error:
        if getattr(error, "code", 1):  # 0: of --help
            pytest.fail(f"emc2dist {shlex.join(words)}: {error}: {said.getvalue()}", pytrace=False)


@of("sh", "")
def test_commands_are_ones_that_there_are(block):
    if block.language or is_shell(block.text):
        for words in commands(block.text):
            check(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_so_are_commands_within_sentences(page):
    for line in re.findall(r"`(emc2dist \w[^`]*)`", page.read_text()):
        for words in commands(line.replace("\n", " ")):
            check(words if len(words) > 2 else [*words, "--help"])  # a command by its name alone


@pytest.mark.parametrize(
    "line",
    [
        "emc2dist trian jobs/quickstart.yaml",
        "emc2dist train jobs/quickstart.yaml --follow",
        "emc2dist train jobs/quickstart.yaml batchsize=3",
        "emc2dist train jobs/quickstart.yaml lr=-1",
        "emc2dist logs -f JOB | stats JOB",
        "emc2dist negatives RUN OUT --format st|tsv",
        "emc2dist evaluate RUN eval.voter=train",
        "python -m benchmarks.retrieval --sets 3",
        "python jobs/cifar10.py data.paths=FOLDER",
        "make trains",
        "pip install 'emc2dist[texts]'",
        "emc2dits train SPEC",
    ],
)
def test_commands_that_there_are_not_are_found(line):
    last = [*commands(line)][-1]
    with pytest.raises((AssertionError, SpecError, pytest.fail.Exception)):
        check(last)


@of("yaml")
def test_yaml_is_a_spec_or_a_part_of_one(block, tmp_path):
    tree = yaml.safe_load(block.text)
    if "space" in tree:  # a sweep, and its base beside it
        (tmp_path / "sweep.yaml").write_text(block.text)
        (tmp_path / tree["base"]).write_text((ROOT / "jobs" / tree["base"]).read_text())
        load_job(tmp_path / "sweep.yaml")
    else:
        parse_spec(ANY, [f"{key}={json.dumps(value)}" for key, value in tree.items()])


GIVEN = {
    "unnormalised.md": """
import torch
noise, batches = torch.distributions.Normal(0.0, 1.0), torch.randn(3, 16)
mean = torch.zeros((), requires_grad=True)
log_density = lambda x: -(x - mean).square() / 2
""",
}
"""What a page leaves to its reader."""
ELSEWHERE = {"vectors.md": "test_own_images.py", "add-an-objective.md": "the next test", "README.md": "test_results.py",
             "exports.md": "test_exports.py"}  # fmt: skip
"""Pages whose Python, where it needs a file or is a part, another test runs or holds against the code."""


@of("python")
def test_python_compiles_and_runs_where_nothing_is_missing(block):
    code = compile(block.text, block.name, "exec")
    is_part = "import " not in block.text or re.search(r"\.(parquet|safetensors|onnx)\"", block.text)
    if is_part:
        assert block.page.name in ELSEWHERE
    else:
        from emc2dist.towers import _torchvision  # noqa: F401  (some builds of torchvision need it first)

        known = {}
        exec(GIVEN.get(block.page.name, ""), known)
        exec(code, known)


def test_the_worked_example_is_what_stands_in_the_code():
    """docs/add-an-objective.md: the files that it names hold the lines that it shows."""
    shown = [block for block in ALL if block.page.name == "add-an-objective.md"]
    files = ("core/objectives/dclw.py", "core/objectives/__init__.py", "config/objectives.py")
    sources = [
        *((ROOT / "emc2dist" / name).read_text() for name in files),
        (ROOT / "tests/core/oracles.py").read_text(),
    ]
    assert [block.language for block in shown] == ["python", "diff", "diff", "python"]
    for block, source in zip(shown, sources, strict=True):
        lines = [line[1:] if block.language == "diff" else line for line in block.text.splitlines()]
        assert [line for line in lines if line.strip() and line.strip() not in source] == []
