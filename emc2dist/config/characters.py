"""Characters that are not seen or look like another: of web pages, word processors, and keyboards with an Alt key.

In a spec and on a command line none of them means anything, but as a part of a text, as of the name of a folder.
"""

import re
import unicodedata
from collections.abc import Iterable

UNSEEN = "\x0b\x0c\x1c-\x1f\x85\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
"""A range for `re`: blanks other than space and tab, and what has no width."""
_DASHES = "\u2010-\u2015\u2212\ufe63\uff0d"
_MEANT = {
    f"[{_DASHES}]": "-",
    "[\u2018-\u201b\u2032\uff07]": "'",
    '[\u201c-\u201f\u2033\u00ab\u00bb\uff02]': '"',
    "[\u2236\ufe55\uff1a]": ":",
    "[\ufe66\uff1d]": "=",
    "[\u201a\u3001\ufe50\uff0c]": ",",
    "[\u2024\uff0e]": ".",
}  # fmt: skip
_MISLEADING = re.compile(f"[{UNSEEN}]|{'|'.join(_MEANT)}")
_STRANGE = re.compile(f"[{UNSEEN}]|[^\x00-\x7f]")
_COMMENT = re.compile(r"(?:^|(?<=[ \t]))#.*")
_BREAK = re.compile("[\x85\u2028\u2029]")
"""Ends a line for YAML, and for nobody who looks at it."""
_BETWEEN = re.compile(rf"^[ \t]*(?:-[ \t]+)*([{UNSEEN}])|:[ \t]*([{UNSEEN}])|([{UNSEEN}])[ \t]*(?=:[ \t]|:?[ \t\r]*$)")
"""Where YAML knows a blank: in the indentation, about a colon, at the end of a line."""
_MOST = 3  # of which a message tells


def named(character: str) -> str:
    """A character by its code point and its name in Unicode, and what is meant by it, if that is known."""
    name = unicodedata.name(character, "a control character")
    meant = next((f" where {sign} is meant" for range_, sign in _MEANT.items() if re.match(range_, character)), "")
    seen = "" if re.match(f"[{UNSEEN}]", character) else f"{character}, "
    return f"{seen}U+{ord(character):04X} ({name}){meant}"


def strange(text: str) -> str:
    """The end of a message on a text that is to be ASCII: what of it is not; empty where all is."""
    return _holds("it", _STRANGE.findall(text))


def misleading(text: str) -> str:
    """The end of a message on any text: what of it is not seen, or looks like a sign of YAML's or a shell's."""
    return _holds("it", _MISLEADING.findall(text))


def misleading_lines(text: str) -> str:
    """The same for the lines of a spec, but for their comments."""
    lines = enumerate(text.split("\n"), 1)
    found = [_holds(f"line {number}", _MISLEADING.findall(_COMMENT.sub("", line))) for number, line in lines]
    return "".join([one for one in found if one][:_MOST])


def unseen_blank(text: str) -> str:
    """What stands unseen in the text of a spec where a space could, with its line; empty where nothing does.

    Within a value, or in a comment, it may stand.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if found := _BREAK.search(line):
            return f"line {number}: holds {named(found[0])}, which ends a line for YAML alone; leave it out"
        bare = _COMMENT.sub("", line)
        if found := _BETWEEN.search(bare):
            at, character = next((found.start(group), found[group]) for group in (1, 2, 3) if found[group])
            before = _STRANGE.sub("", bare[:at]).split()
            where = f"after `{before[-1]}`" if before else "before the first word"
            return f"line {number}: {named(character)}, which is not seen, stands {where}; write a plain space, or none"
    return ""


def unseen_end(value: str) -> str:
    """What stands unseen at an end of a value that was given in one word; empty where nothing does."""
    found = re.search(f"^[{UNSEEN}]|[{UNSEEN}]$", value)
    return f"{found[0]!r} is {named(found[0])}, which is not seen, and stands at an end; leave it out" if found else ""


def dash_for_hyphens(word: str) -> str:
    """The dash of a word that is meant as an option, as an editor makes one of two hyphens; empty where none is."""
    found = re.match(f"-*([{_DASHES}])[-{_DASHES}]*[A-Za-z]", word)
    return found[1] if found else ""


def _holds(what: str, characters: Iterable[str]) -> str:
    told = [named(one) for one in dict.fromkeys(characters)][:_MOST]
    return f"; {what} holds {' and '.join(told)}" if told else ""
