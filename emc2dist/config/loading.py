"""From YAML and key=value to a `Spec` or a `Sweep`, or to one message that says what is wrong; and back."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from emc2dist.config.sections import S3
from emc2dist.config.spec import Spec, leaves
from emc2dist.config.sweep import Sweep
from emc2dist.errors import SpecError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, except that `1e-4` is a number, as in YAML 1.2."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}  # noqa: RUF012


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read the spec of a run. Raises `SpecError`, see `load_job`."""
    job = load_job(path, overrides)
    if isinstance(job, Sweep):
        raise SpecError(f"{path}: is a sweep; run it with `emc2dist sweep`, or give the spec of a run")
    return job


def parse(text: str, overrides: Sequence[str] = (), *, source: str = "spec") -> Spec:
    """Parse the text of a spec; `source` names it in messages. Raises `SpecError`."""
    return _checked(Spec, _tree(text, overrides, source), source)


def changed(spec: Spec, values: Mapping[str, Any], *, source: str) -> Spec:
    """`spec` with other values of keys as in `optimiser.weight_decay`. Raises `SpecError`, which `source` begins."""
    tree = spec.model_dump(mode="json")
    for key, value in values.items():
        _put(tree, key, value)
    return _checked(Spec, tree, source)


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
    path = Path(path)
    tree = _tree(_read(path), overrides, str(path))
    if not tree.keys() & {"base", "space"}:
        return _checked(Spec, tree, str(path))
    if isinstance(tree.get("base"), str):
        base = path.parent / tree["base"]
        tree["base"] = _tree(_read(base), (), str(base))
    return _sweep(tree, str(path))


def parse_sweep(text: str, *, source: str = "sweep") -> Sweep:
    """Parse what `dump` wrote of a sweep. Raises `SpecError`."""
    return _sweep(_tree(text, (), source), source)


def parse_s3(overrides: Sequence[str]) -> S3:
    """The `s3` section alone, from words as in `s3.endpoint=URL`. Raises `SpecError`."""
    tree: dict[str, Any] = {}
    for override in overrides:
        if not override.startswith("s3."):
            raise SpecError(f"{override!r}: only keys of s3 can be set here, as in s3.endpoint=URL")
        _apply(tree, override)
    try:
        return TypeAdapter(dict[str, S3]).validate_python(tree).get("s3", S3())
    except ValidationError as error:
        raise SpecError("; ".join(_explain(e, Spec) for e in error.errors())) from None


def dump(spec: Spec | Sweep) -> str:
    """The resolved spec as YAML that `parse`, or `parse_sweep`, reads back to an equal one."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML spec") from error


def _tree(text: str, overrides: Sequence[str], source: str) -> dict[str, Any]:
    tree = _yaml(text, source)
    if not isinstance(tree, dict):
        raise SpecError(f"{source}: expected a mapping of keys to values, got {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    return tree


def _sweep(tree: dict[str, Any], source: str) -> Sweep:
    changes, base, space = tree.pop("set", {}), tree.get("base"), tree.get("space")
    if isinstance(base, dict) and isinstance(changes, dict):
        for key, value in leaves(changes):
            _put(base, key, value)
    if isinstance(space, dict):
        tree["space"] = dict(leaves(space))
    sweep = _checked(Sweep, tree, source)
    for key, values in sweep.ends().items():
        for value in values:
            changed(sweep.base, {key: value}, source=f"{source}: space")
    return sweep


def _checked(model: type[Model], tree: dict[str, Any], source: str) -> Model:
    try:
        return model.model_validate(_tuples(tree))
    except ValidationError as error:
        raise SpecError(f"{source}: " + "; ".join(_explain(e, model) for e in error.errors())) from None


def _yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not valid YAML ({' '.join(str(error).split())})") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise SpecError(f"{override!r}: an override is written key=value, as in lr=1e-3 or data.limit=512")
    _put(tree, key, _yaml(value, override))


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise SpecError(f"{key}: {parent} is a value, not a section")
    tree[leaf] = value


def _tuples(value: Any) -> Any:
    """Strict pydantic takes a tuple for a tuple; YAML has only lists."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _explain(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, list(_keys(model)), n=1, cutoff=0.0)
        return f"{key}: unknown key; the nearest valid key is {nearest[0]}"
    if error["type"] == "missing":
        return f"{key}: missing; give it a value"
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    return f"{key}: got {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{name}.")
