"""What to do with a file of texts that was given as one of images."""

from pathlib import Path

from emc2dist.data.texts.records import LINES, fields_of, is_table, plain
from emc2dist.errors import DataError, StorageError

_SHOWN, _SHOWN_CHARACTERS = 8, 40  # columns that are named, and characters of each
_HEAD = 2**12  # bytes that tell whether JSON is one object a line
_OF_COLUMNS = (
    "as pairs of texts --kind pairs with --columns query=COLUMN,document=COLUMN, as documents alone --kind texts with "
    "--columns document=COLUMN"
)


def as_texts(file: Path) -> str | None:
    """How a file is read as one of texts; None where it is none by its name."""
    name = plain(file.name)
    if is_table(file.name):
        return f"if {name} holds texts{_columns(file)}: {_OF_COLUMNS}"
    inner = Path(file.name).with_suffix("").name
    if file.suffix.lower() in (".gz", ".bz2", ".xz", ".zst") and is_table(inner):
        return f"if {name} holds texts, unpack it, and then: {_OF_COLUMNS}"
    if file.suffix.lower() == ".json":
        renamed = f"call it {plain(file.stem)}.jsonl" if _is_jsonl(file) else "write an object a line, as .jsonl"
        return f"if {name} holds texts, {renamed}, and then: {_OF_COLUMNS}"
    return f"if {name} holds a text a line, --kind texts" if file.suffix.lower() == LINES else None


def _columns(file: Path) -> str:
    try:
        names = list(fields_of(file))
    except (DataError, StorageError):  # which is said once it is read
        return ""
    shown = ", ".join(plain(name)[:_SHOWN_CHARACTERS] for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    return f" (columns: {shown})" if names else ""


def _is_jsonl(file: Path) -> bool:
    """Whether the first line of a file is a JSON object by its ends."""
    try:
        with file.open("rb") as stream:
            line, end, _ = stream.read(_HEAD).strip().partition(b"\n")
    except OSError:  # it is not needed
        return False
    return line.startswith(b"{") and (line.rstrip().endswith(b"}") or not end)
