"""The house itself: what imports what, what is exported, what the README says."""

import ast
import re
from pathlib import Path

import pytest

import emc2dist

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "emc2dist").rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_module_has_a_contract_and_keeps_to_its_room(path):
    name = path.relative_to(ROOT / "emc2dist").as_posix()
    assert ast.get_docstring(ast.parse(path.read_text()))
    torch_distributed = any(module.startswith("torch.distributed") for module in imports(path))
    assert torch_distributed == (name == "train/collectives.py")
    if name != "vision/_torchvision.py":
        assert not any(module.split(".")[0] == "torchvision" for module in imports(path))


def test_nothing_is_decided_by_the_clock_on_the_wall():
    """It may jump. These only show it, have Prometheus ask it, or compare it with others': files', EC2's, S3's."""
    told = {"train/loop.py", "train/checkpoint.py", "service/exporter.py", "service/lock.py", "service/trackers.py"}
    told |= {
        "service/launch/following.py",
        "service/launch/spot.py",
        "service/dashboard.py",
        "data/cache.py",
        "files/s3.py",
    }
    clock = re.compile(r"(?<![\w.])(time\.)?time\(\)|datetime\.now|utcnow|time\.localtime")
    asked = {path for path in MODULES if clock.search(path.read_text())}
    assert {path.relative_to(ROOT / "emc2dist").as_posix() for path in asked} == told


def test_what_is_exported_is_there():
    assert emc2dist.__all__ == sorted(emc2dist.__all__)
    for name in emc2dist.__all__:
        assert getattr(emc2dist, name)
    with pytest.raises(AttributeError, match="sweeep"):
        _ = emc2dist.sweeep


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_changelog_knows_this_version():
    assert f"## {emc2dist.__version__}" in (ROOT / "CHANGELOG.md").read_text()
