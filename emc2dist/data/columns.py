"""The columns of Parquet files that others wrote: where the images stand, and what the labels mean.

    images   `image`, or the only column that can hold them: struct<bytes: binary, ...> as Hugging Face writes it, or
             binary itself; any of Arrow's binary types, which may differ from file to file
    labels   `label`, or the first of `LABELS` that is there: whole numbers of any width, floats that are whole (as
             pandas writes numbers some of which are missing), booleans, or strings, which name the classes. -1, null,
             NaN and the empty string say that an image has no label

A column that is called as one of splits is not read, for files tell the splits, and that is said.

What was guessed is a remark. Labels that cannot be read are no error until somebody needs them.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from emc2dist.data.foreign import opened
from emc2dist.data.splits import COLUMNS
from emc2dist.errors import DataError
from emc2dist.files import Entry, Place

LABELS = ("label", "labels", "fine_label", "target", "class", "cls", "category", "y")
"""Columns that are taken for labels, the first that is there."""
_LOOKED_AT = 16  # rows, for what stands in place of images
_ADDRESS = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_BASE64 = re.compile(r"data:image/[\w+.-]+;base64,|iVBORw0KGgo|/9j/|R0lGOD|UklGR")  # PNG, JPEG, GIF, WebP
_BETWEEN = re.compile(r"[|;,/+&\s]+")  # the items of a list
_MISSING = frozenset(("", "nan", "<na>", "na", "n/a", "#n/a", "nat", "none", "null"))
"""Names of classes that may stand for none, without capitals and blanks."""
_SHOWN = 5  # columns, or pairs of classes
_SHOWN_CHARACTERS = 60  # of a value
_END = 8  # bytes of a file after its footer: the footer's size, and PAR1


class Footer(NamedTuple):
    """What the footer of one file says."""

    counts: list[int]
    """Rows of each row group."""
    image: str
    """The images' column, as in `image.bytes`."""
    label: str | None
    """The labels' column, where there is one."""
    kind: str
    """What its values are: a key of `_READ`, or else its type, which cannot be read."""
    classes: list[str]
    """Names of the classes, where the footer tells them."""
    digest: str
    """SHA-256 of the footer, which says of every column how long it is, packed and unpacked, and where it lies."""
    split: str | None
    """A column that is called as one of splits, where there is one."""
    nulls: int
    """Rows without the bytes of an image, as far as the footer says."""
    others: list[str]
    """Columns that are neither image, label nor split."""

    @property
    def rows(self) -> int:
        """Rows of the file."""
        return sum(self.counts)

    @property
    def labelled(self) -> bool:
        """Whether any row may have a label."""
        return self.label is not None and self.kind != "none"


def read_footer(place: Place, entry: Entry) -> Footer:
    """What the footer of a file says. Raises DataError where there are no images, or several columns of them."""
    with opened(place, entry) as file:
        metadata, schema = file.metadata, file.schema_arrow
        twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
        if twice is not None:
            raise DataError(f"{place}: has {schema.names.count(twice)} columns `{twice}`; leave one of them")
        image = _image_column(place, file)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        counts, nulls = [group.num_rows for group in groups], sum(_nulls(group, image) for group in groups)
    size = metadata.serialized_size
    footer = place.read_range(entry.size - _END - size, size, entry.tag)
    label = next((name for wanted in LABELS for name in schema.names if name.lower() == wanted), None)
    kind = _kind(schema.field(label).type) if label else ""
    classes = _class_names(place, schema, label)
    split = next((name for name in schema.names if name.lower() in COLUMNS and name != label), None)
    others = [name for name in schema.names if name not in (image.split(".")[0], label, split)]
    return Footer(counts, image, label, kind, classes, hashlib.sha256(footer).hexdigest(), split, nulls, others)


def _nulls(group: pq.RowGroupMetaData, image: str) -> int:
    """How many values of a row group's images are null, if that is said."""
    columns = (group.column(number) for number in range(group.num_columns))
    said = next((one.statistics for one in columns if one.path_in_schema == image), None)
    return (said.null_count or 0) if said is not None else 0


def remarks_on(footers: list[Footer]) -> list[str]:
    """What a person should know of the columns that were chosen, but for that of the labels."""
    image = footers[0].image.split(".")[0]
    found = [f"the images are those of column `{image}`"] if image != "image" else []
    splits = sorted({footer.split for footer in footers if footer.split})
    found += [f"column `{name}` was not read: only names of files tell splits" for name in splits]
    others = list(dict.fromkeys(name for footer in footers for name in footer.others))
    shown = ", ".join(f"`{name}`" for name in others[:_SHOWN]) + (", ..." if len(others) > _SHOWN else "")
    return found + ([f"{len(others)} further columns were not read: {shown}"] if others else [])


def on_labels(footers: list[Footer]) -> list[str]:
    """What a person should know of the column of the labels, if they are read."""
    label = footers[0].label
    return [f"the labels are those of column `{label}`"] if label not in (None, "label") else []


def label_problem(places: list[Place], footers: list[Footer]) -> str | None:
    """Why the labels that are there cannot be read; None where they can."""
    labelled = [one for one in zip(places, footers, strict=True) if one[1].labelled]
    for place, footer in labelled:
        first_place, first = labelled[0]
        if footer.kind not in _READ:
            return (
                f"{place}: column `{footer.label}` has type {footer.kind}; labels are whole numbers or strings, one "
                "for each image"
            )
        if (footer.label, footer.kind == "text", footer.classes) != (first.label, first.kind == "text", first.classes):
            here, there = (f"column `{one.label}` holds {_held(one)}" for one in (footer, first))
            return f"{place}: {here}, but in {first_place} {there}; files of one split need the same"
    return None


def _held(footer: Footer) -> str:
    """What a column of labels holds, in words."""
    words = {"whole": "whole numbers", "floats": "whole numbers", "truth": "booleans", "text": "names of classes"}
    return words[footer.kind] + (f" of the classes {', '.join(footer.classes)}" if footer.classes else "")


class Labels(NamedTuple):
    """The labels of all rows."""

    numbers: NDArray[np.int64]
    """Class of each row; -1 where it has none."""
    classes: list[str]
    """Names of the classes; empty where there are none."""


def read_labels(places: list[Place], entries: list[Entry], footers: list[Footer]) -> Labels:
    """The labels of some files, end to end. Raises DataError where one is no label; names file and row."""
    text = any(footer.kind == "text" for footer in footers)
    missing = "" if text else -1
    parts = [_read_column(*one, missing) for one in zip(places, entries, footers, strict=True)]
    values: NDArray[Any] = np.concatenate(parts)
    if text:
        names, numbers = np.unique(values[values != missing], return_inverse=True)
        labels = np.full(len(values), -1)
        labels[values != missing] = numbers
        return Labels(labels, names.tolist())
    booleans = any(footer.kind == "truth" for footer in footers)
    return Labels(values.astype(np.int64), ["false", "true"] if booleans else footers[0].classes)


def check_labels(labels: NDArray[np.int64], classes: list[str], where: Callable[[int], str]) -> None:
    """Raise DataError where a label is no class's number (-1 says that an image has none); `where` names the image.

    So it does where two classes have one name, by which they are matched.
    """
    twice = next((name for name, times in Counter(classes).items() if times > 1), None)
    if twice is not None:
        numbers = [number for number, name in enumerate(classes) if name == twice]
        raise DataError(f"{where(0)}: its classes {numbers[0]} and {numbers[1]} are both called {twice!r}; rename one")
    wrong = np.flatnonzero((labels < -1) | (labels >= (len(classes) or 2**62)))
    if len(wrong):
        known = f"there are {len(classes)} classes, from 0" if classes else "classes count from 0, and -1 is none"
        first = int(wrong[0])
        raise DataError(f"{where(first)}: has label {labels[first]}, but {known}; correct the label or the classes")


def on_joined(classes: Sequence[str], labels: NDArray[np.int64]) -> list[str]:
    """A remark on the classes whose names list those of others, as `cat|dog` does, if images [n] have such labels."""
    known = set(classes)
    lists = [{*filter(None, _BETWEEN.split(name))} for name in classes]
    joined = [number for number, parts in enumerate(lists) if len(parts) > 1 and parts <= known]
    images = int(np.isin(labels, joined).sum())
    if not images:
        return []
    return [
        f"{images} of {len(labels)} images are of classes whose names list others, as {classes[joined[0]]!r}, and "
        "count as of these alone, not of those that are listed; where an image shows several things, give it the "
        "label of one, or do without labels"
    ]


def on_spelling(classes: Sequence[str], labels: NDArray[np.int64]) -> list[str]:
    """Remarks on classes that are called as another one but for capitals and blanks, and on such as are called as
    programs write a missing label, with how many of the images [n] have such labels.
    """
    keys = ["".join(unicodedata.normalize("NFC", name).casefold().split()) for name in classes]
    first: dict[str, int] = {}
    alike = [(first[key], number) for number, key in enumerate(keys) if first.setdefault(key, number) != number]
    remarks = []
    if alike:
        of_them = int(np.isin(labels, np.unique(alike)).sum())
        pairs = ", ".join(f"{classes[one]!r} and {classes[other]!r}" for one, other in alike[:_SHOWN])
        remarks.append(
            f"{len(alike)} of {len(classes)} classes are called as another one but for capitals or blanks ({pairs}"
            f"{', ...' * (len(alike) > _SHOWN)}): {of_them} of {len(labels)} images are of these; if they are one, "
            "call them the same"
        )
    for number, key in enumerate(keys):
        if key in _MISSING and (images := int((labels == number).sum())):
            remarks.append(
                f"{images} of {len(labels)} images are of a class that is called {classes[number]!r}, as programs "
                "write a missing label; if they have none, leave it empty"
            )
    return remarks


def groups_of(contents: NDArray[Any]) -> NDArray[np.int64]:
    """Number of the group of equal contents that each is of, [n]; -1 where it is alone."""
    _, group, members = np.unique(contents, return_inverse=True, return_counts=True)
    return np.where(members[group] > 1, group, -1)


def _read_column(place: Place, entry: Entry, footer: Footer, missing: str | int) -> NDArray[Any]:
    if not footer.labelled:
        return np.full(footer.rows, missing)
    with opened(place, entry) as file:
        column = file.read(columns=[footer.label], use_threads=False).column(0)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return _READ[footer.kind](place, column)


def _whole(place: Place, column: Any) -> NDArray[Any]:
    largest = column.cast(pa.uint64()).fill_null(0).to_numpy() if pa.types.is_uint64(column.type) else np.zeros(0)
    _refuse(place, largest >= 2**63, column, "classes count from 0, without gaps")
    numbers = column.cast(pa.int64()).fill_null(-1).to_numpy()
    _refuse(place, numbers < -1, column, "give the number of a class, from 0, or -1 where there is none")
    return numbers


def _floats(place: Place, column: Any) -> NDArray[Any]:
    numbers = column.cast(pa.float64()).fill_null(np.nan).to_numpy()
    whole = np.where(np.isnan(numbers), -1, numbers)
    wrong = (whole < -1) | (whole >= 2**63) | (whole != np.floor(whole))
    _refuse(place, wrong, column, "it is no whole number, and so no class; write whole numbers or strings")
    return whole.astype(np.int64)


def _text(place: Place, column: Any) -> NDArray[Any]:
    return column.cast(pa.large_string()).fill_null("").to_numpy().astype(str)


_READ = {"whole": _whole, "floats": _floats, "truth": _whole, "text": _text}


def _refuse(place: Place, wrong: NDArray[np.bool_], column: Any, advice: str) -> None:
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError(f"{place}, row {row}: the label is {column[row].as_py()}; {advice}")


def _kind(label: pa.DataType) -> str:
    """What the values of a column of labels are, see `Footer.kind`."""
    value = label.value_type if pa.types.is_dictionary(label) else label
    tests = {
        "none": pa.types.is_null,
        "whole": pa.types.is_integer,
        "floats": pa.types.is_floating,
        "truth": pa.types.is_boolean,
        "text": _is_text,
    }
    return next((kind for kind, test in tests.items() if test(value)), str(label))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _image_column(place: Place, file: pq.ParquetFile) -> str:
    schema = file.schema_arrow
    found = {field.name: path for field in schema if (path := _path_of_bytes(field))}
    if "image" in found:
        return found["image"]
    if len(found) == 1:
        return next(iter(found.values()))
    columns = ", ".join(f"{field.name}: {field.type}" for field in schema) or "no columns"
    if found:
        raise DataError(f"{place}: {' and '.join(found)} could all be the images ({columns}); call one of them `image`")
    instead = _in_place_of_images(file) or (
        "write the images' files into such a column, as Hugging Face datasets does, or ingest the folder that they "
        "lie in"
    )
    raise DataError(f"{place}: no column `image` of type struct<bytes: binary> or binary, but {columns}; {instead}")


def _in_place_of_images(file: pq.ParquetFile) -> str | None:
    """What a column of text holds for images, and what helps, by its first values; None where that tells nothing."""
    names = [field.name for field in file.schema_arrow if _is_text(field.type)]
    if not names or not file.metadata.num_rows:
        return None
    rows = next(file.iter_batches(_LOOKED_AT, columns=names)).to_pylist()
    for name in names:
        value = next((row[name] for row in rows if row[name]), "")
        if _ADDRESS.match(value):
            shown = value[:_SHOWN_CHARACTERS]
            return (
                f"`{name}` holds addresses ({shown}): fetch what lies there, as with `img2dataset --input_format "
                f"parquet --url_col {name} --output_format webdataset`, and ingest what that writes"
            )
        if _BASE64.match(value):
            return f"`{name}` holds images in base64: write what base64.b64decode gives of each into such a column"
    return None


def _path_of_bytes(field: "pa.Field[Any]") -> str | None:
    """The path of the images' bytes in a column that can hold them."""
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
        return f"{field.name}.bytes" if _is_binary(field.type.field("bytes").type) else None
    return field.name if _is_binary(field.type) else None


def _is_binary(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_binary(value) or pa.types.is_large_binary(value) or pa.types.is_binary_view(value)


def image_values(column: Any, path: str) -> Any:
    """The images' bytes, large_binary, out of the column that `path` was read as."""
    for name in path.split(".")[1:]:
        column = pc.struct_field(column, name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_binary())


def _class_names(place: Place, schema: pa.Schema, label: str | None) -> list[str]:
    """Class names, as Hugging Face writes them, or under `classes` with commas between."""
    metadata = schema.metadata or {}
    try:
        told = json.loads(metadata.get(b"huggingface", b"{}"))
        plain = metadata.get(b"classes", b"").decode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: the metadata of its schema are damaged ({error}); write it again") from error
    for key in ("info", "features", label):
        told = told.get(key) if isinstance(told, dict) else None
    names = told.get("names") if isinstance(told, dict) else None
    if isinstance(names, list):
        return [str(name) for name in names]
    return plain.split(",") if plain else []
