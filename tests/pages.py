"""The pages, their blocks of code, and the commands in those."""

import contextlib
import itertools
import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted(page for room in ("docs", "cluster", "docker") for page in (ROOT / room).glob("*.md")),
]
FOREIGN = {
    "apt-get", "aws", "base64", "buildah", "chromium", "cp", "docker", "eksctl", "export", "helm", "install", "kubectl",
    "prometheus", "printf", "ray", "rm", "sed",
}  # fmt: skip
"""Programs of others, whose arguments nobody here knows; and the shell's own."""


class Block(NamedTuple):
    page: Path
    line: int
    language: str
    """Of an indented block "": it has none to name."""
    text: str

    @property
    def name(self):
        return f"{self.page.name}:{self.line}"


def blocks(page):
    """The fenced and the indented blocks of a page, in their order."""
    lines = page.read_text().splitlines()
    at = 0
    while at < len(lines):
        line, start = lines[at], at
        fence = re.match(r"```(\w*)$", line)
        if fence:
            at += 1
            while lines[at] != "```":
                at += 1
            yield Block(page, start + 1, fence[1] or "unnamed", "\n".join(lines[start + 1 : at]))
        elif line.startswith("    ") and not lines[start - 1].strip():
            while at + 1 < len(lines) and (lines[at + 1].startswith("    ") or not lines[at + 1].strip()):
                at += 1
            yield Block(page, start + 1, "", "\n".join(one[4:] for one in lines[start : at + 1]).strip())
        at += 1


def commands(text):
    """The commands of a block of shell, as words: of pipes and lists each; of loops those of the first turn."""
    text = re.sub(r"\\\n\s*", " ", text)
    for name, items in re.findall(r"for (\w+) in ([^;]+);", text):
        text = re.sub(rf"\${name}\b", items.split()[0], text)
    text = re.sub(r"for \w+ in [^;]+; do|\bdone\b", "", text)
    text = re.sub(r"eval \"\$\(([^)]*)\)\"", r"\1", text)
    text = re.sub(r"^[A-Z_]+=\S* (?=\w)", "", text, flags=re.MULTILINE)
    for words in lines_of(text):
        program = words[0]
        for is_end, part in itertools.groupby(words, lambda word: word in ("|", "&&", "&", "{", "}")):
            found = [word.rstrip(";") for word in part]
            if not is_end and program == "emc2dist" and found[0] not in FOREIGN | {program}:
                found = [program, *found]  # as in a synopsis: emc2dist list | status JOB
            if not is_end:
                yield found


def lines_of(text):
    """The words of each line, of which those that leave a quote open are one with the next."""
    held = ""
    for line in text.splitlines():
        held = f"{held}\n{line}" if held else line
        with contextlib.suppress(ValueError):
            words = shlex.split(held, comments=True)
            held = ""
            if words:
                yield words
    assert not held
