"""From YAML and key=value to a `Spec` or a `Sweep`, or to one message that says what is wrong; and back."""

import difflib
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from emc2dist.config import characters, paths, points
from emc2dist.config import text as spec_text
from emc2dist.config.presets import expanded
from emc2dist.config.sections import BUILT_IN, HIDDEN, REFUSED, S3, Encoder
from emc2dist.config.spec import Spec
from emc2dist.config.sweep import WANTED, Range, Sweep
from emc2dist.config.text import Plain
from emc2dist.errors import SpecError
from emc2dist.terminal import say

Model = TypeVar("Model", bound=BaseModel)
Parts = tuple[str, ...]
"""A key, section by section."""

_NULL = {"null", "Null", "NULL", "~"}
_NOTHING = _NULL | {"None", "none", "NONE"}  # where a key may be null
_BOOL = {"true": True, "false": False}
_SWITCH = _BOOL | {"yes": True, "on": True, "no": False, "off": False}
_FORMS = {
    "tuple_type": "write a list in brackets, as in [0.2, 1.0]",
    "dict_type": "write keys and their values, as in {KEY: VALUE}",
    "model_type": "write keys and their values, as in {KEY: VALUE}",
}
_UNSPACED = re.compile(rf"^[ \t]*([\w.]+):(?!//)(?![\s{characters.UNSEEN}]|$)", re.MULTILINE)
"""A key that YAML takes for a piece of text."""
_CHOSEN = {"objective": "emc2", "negatives": "chain"}
"""Sections that are one of several, chosen by their name, and a name for example."""
_SEVERAL = "; several values are for `emc2dist sweep`, see jobs/sweep.yaml, and a number has no comma"
_CARD = re.compile(r"(?:(?:cuda|gpu):?)?(\d+(?:, ?\d+)*)")
"""A GPU by its number, as torch and others take it."""
_SHOWN = 200  # characters of a value that a message repeats
_TOLD = 5  # errors of one spec that a message tells


def load(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read the spec of a run. Raises `SpecError`, see `load_job`."""
    job = load_job(path, overrides)
    if isinstance(job, Sweep):
        raise SpecError(f"{path}: is a sweep; run it with `emc2dist sweep`, or give the spec of a run")
    return job


def parse(text: str, overrides: Sequence[str] = (), *, source: str = "spec") -> Spec:
    """Parse the text of a spec; `source` names it in messages. Raises `SpecError`."""
    with _spaced(text, source):
        return _checked(Spec, _overridden(_tree(text, source), overrides, Spec), source)


def changed(spec: Spec, values: Mapping[str, Any], *, source: str) -> Spec:
    """`spec` with other values of keys as in `optimiser.weight_decay`. Raises `SpecError`, which `source` begins.

    Another backbone has a stem and a norm of its own, where those of the one before were what it has by default.
    """
    tree = spec.model_dump(mode="json")
    if "encoder.backbone" in values:
        encoder = tree["encoder"]
        default = Encoder(backbone=encoder["backbone"]).model_dump()
        tree["encoder"] = {
            key: value for key, value in encoder.items() if key not in ("stem", "norm") or value != default[key]
        }
    return _checked(Spec, _with(tree, values), source)


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read the spec of a sweep. Raises `SpecError`, see `load_job`."""
    job = load_job(path, overrides)
    if isinstance(job, Spec):
        raise SpecError(f"{path}: is a run; a sweep has a `base`, as this could be, and a `space`: see jobs/sweep.yaml")
    return job


def load_job(path: str | Path, overrides: Sequence[str] = ()) -> Spec | Sweep:
    """Read a spec file and apply `key=value` overrides. A sweep's base is read too, and every value of its space tried.

    Raises:
        SpecError: with one message that names the file, the key, the value and what is allowed.
    """
    source = str(path)
    text = spec_text.read(source)
    with _spaced(text, source):
        return _job(_tree(text, source), overrides, source)


def _job(tree: dict[str, Any], overrides: Sequence[str], source: str) -> Spec | Sweep:
    said = {override.partition("=")[0].split(".")[0] for override in overrides}
    if not (tree.keys() | said) & {"base", "space", "parameters", "param_space"}:
        spec = _checked(Spec, _overridden(tree, overrides, Spec), source)
        _refuse_two_readings([spec.data.path], source)
        return spec
    sweep = _with_its_base(_overridden(_flattened(tree, source), overrides, Sweep), source)
    for remark in points.remarks(sweep):
        say(f"{source}: {remark}")
    _refuse_two_readings([sweep.base.data.path, *sweep.ends().get("data.path", ())], source)
    return sweep


def parse_sweep(text: str, *, source: str = "sweep") -> Sweep:
    """Parse what `dump` wrote of a sweep. Raises `SpecError`."""
    with _spaced(text, source):
        return _sweep(_flattened(_tree(text, source), source), source)


def parse_s3(overrides: Sequence[str], others: Sequence[str] = ()) -> S3:
    """The `s3` section alone, from words as in `s3.endpoint=URL`. Raises `SpecError`.

    `others` are sections whose keys may stand among the words; those are left to the caller.
    """
    sections = [*others, "s3"]
    for override in overrides:
        if override.partition(".")[0] not in sections:
            known = ", ".join(sections)
            raise SpecError(f"{override!r}: only keys of {known} can be set here, as in s3.endpoint=URL")
    own = [override for override in overrides if override.startswith("s3.")]
    tree = _settled(_overridden({}, own, Spec), dict[str, S3])
    try:
        return TypeAdapter(dict[str, S3]).validate_python(tree).get("s3", S3())
    except ValidationError as error:
        raise SpecError(_explained(error, Spec)) from None


def given_keys(overrides: Sequence[str]) -> list[str]:
    """The keys of a run's spec that overrides set, each by itself. Raises `SpecError`."""
    return [".".join(parts) for override in overrides for parts, _ in _pairs(override, Spec)]


def dump(spec: Spec | Sweep) -> str:
    """The resolved spec as YAML that `parse`, or `parse_sweep`, reads back to an equal one."""
    return yaml.dump(spec.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Puts a text in quotes that without them is read as null."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^(None|none|NONE)$"), ["N", "n"])


def _refuse_two_readings(data_paths: Sequence[str], source: str) -> None:
    """What a run keeps says `digits` of scikit-learn's alone; a person may mean what lies here."""
    for name, what in BUILT_IN.items():
        if name in data_paths and os.path.lexists(name):
            raise SpecError(
                f"{source}: data.path: {name} is both {what} and what lies here in ./{name}; write ./{name} for that, "
                "or rename it"
            )


def _tree(text: str, source: str) -> dict[str, Any]:
    tree = spec_text.tree(text, source)
    if not isinstance(tree, dict):
        raise SpecError(f"{source}: expected a mapping of keys to values, got {_shown(tree)}")
    return tree


@contextmanager
def _spaced(text: str, source: str) -> Iterator[None]:
    """A missing space after a colon is told as that, where anything goes wrong: YAML blames the line that follows.

    Where nothing does, it is part of a text of several lines. No value is told: it may be a secret.
    """
    try:
        yield
    except SpecError:
        names = {part for key in (*_keys(Spec), *_written(Sweep)) for part in key.split(".")}
        slips = []
        for found in _UNSPACED.finditer(text):
            if names.issuperset(found[1].split(".")):
                line = text.count("\n", 0, found.start()) + 1
                slips.append(f"line {line}: no space after the colon; write {found[1]}: VALUE")
        if slips:
            raise SpecError(f"{source}: {'; '.join(slips[:_TOLD])}") from None
        raise


def _with_its_base(tree: dict[str, Any], source: str) -> Sweep:
    """The sweep, whose base may lie in a file beside it."""
    if not isinstance(tree.get("base"), str):
        return _sweep(tree, source)
    base = _beside(source, tree["base"])
    text = spec_text.read(base, f"a YAML spec as base, from the folder of {source}")
    with _spaced(text, str(base)):
        return _sweep({**tree, "base": _tree(text, str(base))}, source)


def _beside(source: str, base: str) -> Path:
    try:
        return paths.on_disk(source).parent / paths.on_disk(base)
    except ValueError as error:
        raise SpecError(f"{source}: base: got {base!r}; {error}") from None


def _sweep(tree: dict[str, Any], source: str) -> Sweep:
    changes, base, space = tree.pop("set", {}) or {}, tree.get("base"), tree.get("space")
    if not isinstance(changes, dict):
        raise SpecError(f"{source}: set: got {_shown(changes)}; give it keys of the base and their values")
    unknown = [f"set.{_unknown(key, Spec)}" for key in changes if _place(Spec, key)[1] is Any]
    if unknown:  # told before they are keys of the base, where nobody wrote them
        raise SpecError(f"{source}: {'; '.join(unknown[:_TOLD])}")
    both = [key for key in changes if isinstance(space, dict) and key in space]
    if both:
        raise SpecError(
            f"{source}: {both[0]}: in set it is {_shown(changes[both[0]])}, in space it varies; leave it out of one"
        )
    if isinstance(base, dict):
        tree["base"] = _with(base, changes)
    if isinstance(space, dict):
        for key, value in space.items():
            # Before its values, which mean nothing then; without any it is a piece of one that wants quotes.
            if (value or ":" in key) and _place(Spec, key)[1] is Any:
                outer = _key_of_a_value(key)
                wrong = f"{outer}: got keys and their values; {WANTED}" if outer else _unknown(key, Spec)
                raise SpecError(f"{source}: space.{wrong}")
            if isinstance(value, list) and any(re.match(r"(log)?uniform\(|randint\(", str(one)) for one in value):
                told = ", ".join(map(str, value))
                raise SpecError(f"{source}: space.{key}: got {told} in brackets, which are for choices; leave them out")
        tree["space"] = {key: _choices(key, value) for key, value in space.items()}
    sweep = _checked(Sweep, tree, source)
    for key, values in sweep.ends().items():
        written = _range_of(sweep, key, source)
        seen: set[str] = set()
        for value in values:
            meant = dump(changed(sweep.base, {key: value}, source=f"{source}: space{written}"))
            if meant in seen:
                raise SpecError(f"{source}: space.{key}: holds {_shown(value)} twice; keep one")
            seen.add(meant)
    for number, point in enumerate(points.known_points(sweep) or ()):
        changed(sweep.base, point, source=f"{source}: point {number}")
    return sweep


def _range_of(sweep: Sweep, key: str, source: str) -> str:
    """What was written of a range, as messages on its bounds show it; nothing of a list, whose values they show."""
    written = sweep.space[key]
    if not isinstance(written, str):
        return ""
    kinds = _kinds(_place(Spec, key)[1])
    if Range.parse(written).kind != "randint" and int in kinds and float not in kinds:
        whole = f"randint{written[written.index('(') :]}"
        raise SpecError(f"{source}: space.{key}: got {written!r}; it takes whole numbers: write {whole}, or a list")
    return f": {written}"


def _key_of_a_value(key: str) -> str | None:
    """The part of an unknown key that is a key with a value, under which there are no others; None where none is."""
    parts = key.split(".")
    outer = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((one for one in outer if (kind := _place(Spec, one)[1]) is not Any and not _fields(kind)), None)


def _choices(key: str, value: Any) -> Any:
    """A list as values of the key; anything else as it stands."""
    if not isinstance(value, list):
        return _settled(value, Any)
    _, kind = _place(Spec, key)
    return tuple(_settled(item, kind) for item in value)


def _checked(model: type[Model], tree: dict[str, Any], source: str) -> Model:
    try:
        return model.model_validate(_settled(tree, model))
    except ValidationError as error:
        raise SpecError(f"{source}: {_explained(error, model)}") from None


def _overridden(tree: dict[str, Any], overrides: Sequence[str], model: type[BaseModel]) -> dict[str, Any]:
    """The tree with what `key=value` says; a mapping sets the keys that it holds."""
    said: dict[Parts, str] = {}  # by which of them
    pairs: list[tuple[Parts, Any]] = []
    for override in overrides:
        for parts, item in _pairs(override, model):
            if said.get(parts, override) != override:  # as where a script has its own before what it is given
                say(f"{'.'.join(parts)}: given more than once on the command line; the last one holds")
            said[parts] = override
            pairs.append((parts, item))
            _make_way(tree, parts)
            if parts == ("objective",) and isinstance(item, str) and "negatives" in tree:
                say(f"objective={item}: takes the place of the file's negatives too; objective.name={item} keeps them")
    _put_all(tree, pairs)
    return tree


def _make_way(tree: dict[str, Any], parts: Parts) -> None:
    """Take a key out of a sweep's space that is set on the command line, or out of what is set, and say so."""
    other = {"set": "space", "space": "set"}.get(parts[0])
    held = tree.get(other) if other else None
    if isinstance(held, dict) and parts[-1] in held:
        say(f"{'.'.join(parts)}: takes the place of the file's {other}.{parts[-1]}")
        del held[parts[-1]]


def _pairs(override: str, model: type[BaseModel]) -> Iterator[tuple[Parts, Any]]:
    """The keys that `key=value` sets, and their values."""
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SpecError(f"{override!r}: an override is written key=value, as in lr=1e-3 or data.limit=512")
    _, kind = _place(model, key)
    if _fields(kind) and value in ("", *_NULL):
        form = f"{key}={_CHOSEN[key]}" if key in _CHOSEN else f"{key}={{KEY: VALUE}}"
        wanted = "its name" if key in _CHOSEN else "keys and their values"
        raise SpecError(f"{key}: got nothing; give it {wanted}, as in {form}")
    if unseen := characters.unseen_end(value):
        raise SpecError(f"{key}: got {value!r}; {unseen}")
    if not value.strip() and types.NoneType in _kinds(kind):  # as where the shell knows no such variable
        raise SpecError(f"{key}: got nothing; give it a value, or null if none is meant")
    yield from _flat(model, key, spec_text.unquoted(value) if _takes_text(kind) else spec_text.flow(value, key))


def _with(tree: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    _put_all(tree, [pair for key, value in values.items() for pair in _flat(Spec, key, value)])
    return tree


def _flattened(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """The tree of a sweep with keys as in `data.limit` in `set` and `space`, whether they were written so or not."""
    for part in tree.keys() & {"set", "space"}:
        if isinstance(tree[part], dict):
            tree[part] = {parts[-1]: value for parts, value in _once(_flat(Sweep, part, tree[part]), source)}
    return tree


def _once(pairs: Iterable[tuple[Parts, Any]], source: str) -> Iterator[tuple[Parts, Any]]:
    seen: set[Parts] = set()
    for parts, value in pairs:
        if parts in seen:
            raise SpecError(f"{source}: {'.'.join(parts)}: given twice, by itself and in its section; keep one")
        seen.add(parts)
        yield parts, value


def _flat(model: type[BaseModel], key: str, value: Any) -> Iterator[tuple[Parts, Any]]:
    """The keys that a value sets: it alone, or those that a mapping for a section holds."""
    parts, kind = _place(model, key)
    if isinstance(value, dict) and (_fields(kind) or parts[0] == "space"):
        for name, item in value.items():
            yield from _flat(model, f"{key}.{name}", item)
    else:
        yield parts, value


def _place(model: Any, key: str) -> tuple[Parts, Any]:
    """Where a key stands, and what it may be; `Any` where it is unknown.

    What stands under a section's mapping of free names (labels, a space) is one name, whatever dots it holds.
    """
    head, dot, rest = key.partition(".")
    if model is Sweep and head in ("set", "space"):
        kind = _place(Spec, rest)[1] if rest and head == "set" else Any
        return ((head, rest) if dot else (head,)), (kind if rest or head == "space" else Spec)
    field = _fields(model).get(head)
    kind = field.annotation if field else Any
    if not dot:
        return (head,), kind
    if not _fields(kind):
        return (head, rest), _named(kind)
    parts, kind = _place(kind, rest)
    return (head, *parts), kind


def _put_all(tree: dict[str, Any], pairs: Sequence[tuple[Parts, Any]]) -> None:
    """Set keys: first those that choose a section, for what they choose then takes the other keys."""
    for parts, value in sorted(pairs, key=lambda pair: _rank(pair[0])):
        _put(tree, parts, value)


def _rank(parts: Parts) -> int:
    for rank, section in enumerate(_CHOSEN):
        if parts[-1:] == (section,):
            return 2 * rank
        if parts[-2:] == (section, "name"):
            return 2 * rank + 1
    return 2 * len(_CHOSEN)


def _put(tree: dict[str, Any], parts: Parts, value: Any) -> None:
    *parents, leaf = parts
    for parent in parents:
        if tree.get(parent) in ("", *_NULL):  # a section whose keys are all left out
            tree[parent] = {}
        if parent in _CHOSEN and not isinstance(tree.get(parent), dict):
            tree |= _expanded(tree)
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            way = f"; write set.{'.'.join(parts[1:])}, which changes the base" if parent == "base" else ""
            raise SpecError(f"{'.'.join(parts)}: {parent} is a value, not a section{way}")
    if leaf == "objective" and isinstance(value, str):
        tree.pop("negatives", None)  # an objective by its bare name brings its own
    if leaf == "name" and parents and parents[-1] in _CHOSEN and tree.get("name") != value:
        tree.clear()  # the keys of another one
    tree[leaf] = value


def _expanded(tree: dict[str, Any]) -> dict[str, Any]:
    try:
        return expanded(tree)
    except ValueError as error:
        raise SpecError(str(error)) from None


def _settled(value: Any, kind: Any) -> Any:
    """What was written, as what the key takes: text stays as it stands, and the rest is what YAML 1.2 reads.

    Lists become tuples: strict pydantic takes a tuple for a tuple, and YAML has only lists.
    """
    if isinstance(value, dict):
        fields = _fields(kind)
        other = Any if fields else _named(kind)
        return {key: _settled(item, fields[key].annotation if key in fields else other) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(_settled(item, Any) for item in value)
    return _meant(value, kind) if isinstance(value, Plain) else value


def _meant(word: Plain, kind: Any) -> Any:
    kinds = _kinds(kind)
    may_be_null = types.NoneType in kinds
    if not word or word in (_NOTHING if may_be_null else set() if _takes_text(kind) else _NULL):
        is_section = _fields(kind) or get_origin(kind) is dict
        return {} if is_section and not may_be_null else None
    if _takes_text(kind):  # a switch is no name: pydantic refuses it
        return _SWITCH.get(word.lower(), str(word)) if may_be_null else str(word)
    words = _SWITCH if bool in kinds else _BOOL
    if word.lower() in words:
        return words[word.lower()]
    number = _number(word)
    whole = isinstance(number, float) and int in kinds and float not in kinds and number.is_integer()
    return int(number) if whole else number  # as in limit=1e6


def _number(word: str) -> Any:
    for read in (int, lambda text: int(text, 0), float):  # 010 is ten, 0x10 sixteen
        try:
            return read(word)
        except ValueError:
            pass
    return str(word)


def _takes_text(kind: Any) -> bool:
    return {str} == _kinds(kind) - {types.NoneType}


def _fields(kind: Any) -> dict[str, FieldInfo]:
    """The keys of a section, or of all those that a name chooses among; none where it is no section.

    Where two of these have a key of one name it takes the same.
    """
    sections = [one for one in _kinds(kind) if isinstance(one, type) and issubclass(one, BaseModel)]
    return {name: field for section in sections for name, field in section.model_fields.items()}


def _named(kind: Any) -> Any:
    """What a mapping of free names holds."""
    return get_args(kind)[1] if get_origin(kind) is dict else Any


def _kinds(kind: Any) -> set[Any]:
    """The types that an annotation allows."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {type(one) for one in arguments}
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(_kinds, arguments))
    return {kind}


def _explained(error: ValidationError, model: type[BaseModel]) -> str:
    found = sorted(error.errors(), key=lambda one: one["type"] == "missing")  # last: a key that is unknown tells why
    more = [f"and {len(found) - _TOLD} more"] if len(found) > _TOLD else []
    return "; ".join([_explain(one, model) for one in found[:_TOLD]] + more)


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(_untagged(error["loc"]))
    if error["type"] == "extra_forbidden":
        section, _, option = key.rpartition(".")
        if section.rpartition(".")[2] in _CHOSEN and key in _keys(model):
            return f"{section}: {error['loc'][-2]} takes no {option}: {_shown(error['input'])} would be read by nobody"
        return "; ".join(_unknown(one, model) for one in _held(key, error["input"]))
    if error["type"] == "missing":
        return f"{key}: missing; give it a value"
    if error["type"] == HIDDEN:
        return f"{key}: {error['msg']}"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    value, kind = error["input"], _place(model, key)[1]
    message = error["msg"] if error["type"] == REFUSED else error["msg"][0].lower() + error["msg"][1:]
    message = _FORMS.get(error["type"], message)
    if error["type"].endswith(("_type", "_parsing")) and types.NoneType in _kinds(kind):
        message += ", or null"
    if isinstance(value, str) and error["type"] != REFUSED and (slip := paths.stand_in(value)):
        message = slip
    elif error["type"] not in _FORMS and _is_quoted(value, kind):
        message = "the quotes around it make it text; leave them out"
    elif key.endswith("device") and (card := _CARD.fullmatch(str(value))):
        message += f"; which of several GPUs is for the environment to say: CUDA_VISIBLE_DEVICES={card[1]}"
    elif error["type"] not in _FORMS and _are_several(value):
        message += _SEVERAL
    odd = characters.strange(value) if isinstance(value, str) else ""
    return f"{key}: got {_shown(value)}; {message}{odd}"


def _are_several(value: Any) -> bool:
    """Whether a value looks like several, as Hydra takes them."""
    return isinstance(value, tuple) or (isinstance(value, str) and bool(re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+", value)))


def _is_quoted(value: Any, kind: Any) -> bool:
    """Whether a value that is refused as text would not be text if it were written without quotes."""
    if not isinstance(value, str) or not value or _takes_text(kind):
        return False
    return type(_meant(Plain(value), kind)) in (_kinds(kind) | {int, float, bool}) - {str}


def _untagged(place: tuple[int | str, ...]) -> Iterator[str]:
    """The parts of a key, without the name of what was chosen."""
    chosen = False
    for part in place:
        if not chosen:
            yield str(part)
        chosen = part in _CHOSEN and not chosen


def _held(key: str, value: Any) -> list[str]:
    """The keys within an unknown section, for each may be known elsewhere; or the key itself."""
    within = isinstance(value, dict) and key not in _OF_OTHERS
    names = [str(name) for name in value] if within else []
    return [f"{key}.{name}" for name in names[:_TOLD]] or [key]


def _unknown(key: str, model: type[BaseModel]) -> str:
    known = _written(model)
    if key in known:
        section = "its section, or in set" if key.startswith("base.") else "its section"
        return f"{key}: with a dot this is for the command line; in a file it stands in {section}"
    if not key.startswith("base."):  # what is wrong in the base is told by its own keys
        known = [one for one in known if not one.startswith("base.")]
    name, colon, _ = key.partition(":")
    if colon and name in known:
        return f"{name}: no space after the colon; write {name.rpartition('.')[2]}: VALUE"
    if key.strip() in known:
        return f"{_shown(key)}: leave out the spaces beside {key.strip()}"
    nearest, section = nearest_key(key, known), key.rpartition(".")[0]
    beside = [one.removeprefix(f"{section}.") for one in known if section and one.startswith(f"{section}.")]
    told = f"{section} takes {', '.join(beside)}" if beside else "`emc2dist validate SPEC` prints those that there are"
    told = f"the nearest valid key is {nearest}" if nearest else told
    return f"{_shown(key)[1:-1]}: unknown key; {told}{characters.strange(key)}"


def _written(model: type[BaseModel]) -> list[str]:
    """The keys as a person writes them: of a sweep's base, those in `set` and `space` too."""
    parts = ("set", "space") if model is Sweep else ()
    return [*_keys(model), *(f"{part}.{key}" for part in parts for key in _keys(Spec))]


_OF_OTHERS = {
    "parameters": "space",
    "param_space": "space",
    "method": "search.name",
    "mode": "goal",
    "num_workers": "data.loaders",
    **dict.fromkeys(("amp", "use_amp", "autocast", "fp16", "bf16"), "precision"),
    **dict.fromkeys(("gpus", "nproc_per_node"), "workers"),
    **dict.fromkeys(("grad_accum", "accumulate_grad_batches", "gradient_accumulation_steps"), "optimiser.accumulate"),
    "wd": "optimiser.weight_decay",
    "tau": "temperature",
    "arch": "encoder.backbone",
}
"""What keys are called by W&B and Ray Tune, by torch and by those who train with it."""
_ALIKE = 0.55
"""The least likeness of a key that is worth naming."""
_ALIKE_ELSEWHERE = 0.75
"""The same of the last part, where its section is another one."""


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The most alike of the known keys, as a whole or by its last part: a section is easily another one.

    None where none is like it.
    """

    def likeness(other: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, other).ratio()
        (section, _, name), (elsewhere, _, called) = key.rpartition("."), other.rpartition(".")
        ends = difflib.SequenceMatcher(None, name, called).ratio()
        if section and section == elsewhere:  # which is alike in itself
            return ends, whole
        if section in sections and whole < _ALIKE_ELSEWHERE:
            whole = 0
        counts = ends == 1 or (section and ends >= _ALIKE_ELSEWHERE)
        return max(whole, ends if counts else 0), whole

    key = key.replace("learning_rate", "lr")
    known, ours = list(known), _OF_OTHERS.get(key.rpartition(".")[2])
    if ours in known:
        return ours
    sections = {one.rpartition(".")[0] for one in known} - {""}
    known = [one for one in known if not key.startswith(f"{one}.")]
    nearest = max(known, key=likeness)
    return nearest if likeness(nearest)[0] >= _ALIKE else None


def is_key(key: str) -> bool:
    """Whether a run's spec or a sweep's has this key, as in `optimiser.weight_decay` or `set.lr`."""
    return key in {*_keys(Spec), *_written(Sweep)}


def _shown(value: Any) -> str:
    """A value in a message, cut where it is long; nothing is what an empty file or an empty value is."""
    if value is None:
        return "nothing"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _keys(section: Any, prefix: str = "") -> Iterator[str]:
    for name, field in _fields(section).items():
        yield prefix + name
        yield from _keys(field.annotation, f"{prefix}{name}.")
