"""The house itself: what imports what, what is exported, what the README says."""

import ast
import pydoc
import re
from pathlib import Path

import pytest

import emc2dist

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "emc2dist").rglob("*.py"))


def reached(text):
    """Full names of whatever a module imports, or reaches through what it has imported, under any name."""
    nodes, names = list(ast.walk(ast.parse(text))), {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                yield f"{node.module}.{alias.name}"
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            root, _, rest = name.partition(".")
            if root in names:
                yield f"{names[root]}.{rest}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str))


def uses(text, *packages):
    return any(f"{name}.".startswith(f"{package}.") for name in reached(text) for package in packages)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_a_contract_and_keeps_to_its_room(path):
    name, text = path.relative_to(ROOT / "emc2dist").as_posix(), path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert uses(text, "torch.distributed", "torch.nn.parallel") == (name == "train/collectives.py")
    assert name.startswith(("run/", "launch/", "sweep/")) or name == "store/remote.py" or not uses(text, "ray")
    if name != "towers/_torchvision.py":
        assert not uses(text, "torchvision")
    if name != "towers/_timm.py":
        assert not uses(text, "timm")


@pytest.mark.parametrize(
    "text",
    [
        "import torch.distributed",
        "import torch.distributed as d",
        "import torch.distributed.nn",
        "from torch import distributed",
        "from torch import distributed as d",
        "from torch.distributed import barrier",
        "from torch.distributed.nn import functional",
        "import torch\ntorch.distributed.barrier()",
        "import torch as t\nt.distributed.barrier()",
        "import torch.nn\ndef f(): return torch.distributed",
        "import importlib\nimportlib.import_module('torch.distributed')",
        "__import__('torch.distributed')",
        "def f():\n    from torch import distributed",
    ],
)
def test_no_way_round(text):
    assert uses(text, "torch.distributed")
    assert not uses("import torch.distributions\nfrom torch import nn\nself.torch.distributed", "torch.distributed")


def test_nothing_is_decided_by_the_clock_on_the_wall():
    """It may jump. These only show it, have Prometheus ask it, or compare it with others': files', EC2's, S3's."""
    told = {
        "data/cache.py",
        "data/decoded.py",
        "files/disk.py",
        "files/s3.py",
        "launch/output.py",
        "launch/spot.py",
        "run/listeners/prometheus.py",
        "run/listeners/trackers.py",
        "run/lock.py",
        "train/checkpoint.py",
        "train/loop.py",
        "watch/grafana.py",
    }
    clock = re.compile(r"(?<![\w.])(time\.)?time\(\)|datetime\.now|utcnow|time\.localtime")
    asked = {path for path in MODULES if clock.search(path.read_text())}
    assert {path.relative_to(ROOT / "emc2dist").as_posix() for path in asked} == told


def test_no_number_of_processes_or_threads_goes_by_all_cpus_of_a_machine():
    """Slurm or a container may let a process have few of them: `machine.cpus` tells."""
    counts = ("os.cpu_count", "os.process_cpu_count", "multiprocessing.cpu_count", "psutil.cpu_count")
    asked = {path.name for path in MODULES if any(name.startswith(counts) for name in reached(path.read_text()))}
    assert asked == {"machine.py"}


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_what_texts_name_is_there():
    """Files and folders in pages, modules and what is in them in docstrings."""
    folders = [ROOT / name for name in ("docs", "cluster", "docker")]
    pages = [ROOT / "README.md", *(page for folder in folders for page in folder.rglob("*.md"))]
    place = re.compile(r"(?<![\w/.])(?:benchmarks|cluster|docker|docs|emc2dist|jobs|tests)/[\w./-]*\w")
    named = {name for page in pages for name in place.findall(page.read_text())}
    assert "emc2dist/run/failures.py" in named
    assert {name for name in named if not (ROOT / name).exists()} == set()
    module = re.compile(r"`(emc2dist(?:\.\w+)+)`")
    named = {name for path in [*MODULES, *pages] for name in module.findall(path.read_text())}
    assert "emc2dist.run.driver.train" in named
    assert {name for name in named if pydoc.locate(name) is None} == set()


def test_changelog_knows_this_version():
    assert f"## {emc2dist.__version__}" in (ROOT / "CHANGELOG.md").read_text()
