"""Recipes as text: read, overridden, checked, written, hashed.

A section given as a string is read from that file, relative to the recipe, so that model shapes
have one home in ``configs/models``, and mixtures theirs in ``configs/mixtures``. YAML is read by
the 1.2 rules: ``3e-4`` is a number and ``no`` is a string.
"""

import hashlib
import io
import json
import warnings
from pathlib import Path
from types import NoneType
from typing import Any

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError, YAMLWarning

from teukenjax.errors import UserError, nearest
from teukenjax.recipe.optimizer import AdamWConfig, ScionConfig
from teukenjax.recipe.schema import Recipe
from teukenjax.recipe.section import Section

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
OPTIMIZERS = {"adamw": AdamWConfig, "scion": ScionConfig}
PLAIN = {"bool", "int", "str"}  # of a union of them each has a complaint of its own


def load(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """Reads the recipe at ``path``, applies ``key.subkey=value`` overrides, checks everything.

    Raises:
      UserError: for a missing or unreadable file, an unknown key (with the nearest spelling),
        or a value of the wrong type or range; the message names file and key.
    """
    path = Path(path)
    values = read_yaml(path)
    _read_sections(Recipe, values, path.parent)
    for override in overrides:
        _override(values, override)
    return validate(Recipe, values, str(path))


def validate[S: Section](section: type[S], values: dict, origin: str) -> S:
    """Checks plain ``values`` against ``section``; ``origin`` names them in errors."""
    # By way of JSON, where a list may become a tuple and a string a path, and nothing else.
    # YAML's dates become strings: out=2026-01-31 is a name.
    try:
        text = json.dumps(values, default=str)
    except ValueError:  # json's word for a cycle
        raise UserError(f"{origin}: an alias stands for a part that contains it") from None
    except TypeError:  # and for a key that is a list or bytes
        raise UserError(f"{origin}: a key is not text") from None
    try:
        return section.model_validate_json(text)
    except pydantic.ValidationError as error:
        raise UserError(f"{origin}: {_explain(error, section)}") from None


def read_yaml(path: Path) -> dict:
    """A YAML 1.2 mapping, as plain Python values."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: has more than {MAX_BYTES:,} bytes: is it a recipe?")
        values = _parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    except (YAMLError, YAMLWarning) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}: {where}{problem}") from None
    if not isinstance(values, dict):
        found = "a list" if isinstance(values, list) else f"{values!r:.60}"
        raise UserError(f"{path}: expected a mapping of keys to values, found {found}")
    _refuse_bombs(path, values)
    return _each_its_own(values)


def _parsed(text: str, origin: str) -> Any:
    """YAML 1.2 as plain values; ``origin`` begins a UserError. YAML's own complaints go on."""
    try:
        with warnings.catch_warnings(action="error", category=YAMLWarning):
            return YAML(typ="safe", pure=True).load(text)
    except RecursionError:
        raise UserError(f"{origin}: is nested too deeply") from None
    except (ValueError, IndexError):  # ruamel's of `!!int x`, and Python's of very long numbers
        raise UserError(f"{origin}: a value is not what its tag says, or too long") from None


def _refuse_bombs(path: Path, values: Any) -> None:
    """A few aliases of aliases stand for more values than there is memory; cycles for endless."""
    nodes, left = [values], MAX_VALUES
    while nodes:
        node = nodes.pop()
        children = node.values() if isinstance(node, dict) else node
        if isinstance(node, dict | list | set):
            left -= len(node)
            nodes += children
        if left < 0:
            raise UserError(f"{path}: stands for more than {MAX_VALUES:,} values, by its aliases")


def _each_its_own(value: Any) -> Any:
    """A copy in which no two places are one object, as YAML's aliases would be."""
    if isinstance(value, dict):
        return {key: _each_its_own(child) for key, child in value.items()}
    return [_each_its_own(child) for child in value] if isinstance(value, list) else value


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML that ``load`` reads back to an equal recipe."""
    text = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(recipe.model_dump(mode="json"), text)
    return text.getvalue()


def digest(recipe: Section) -> str:
    """A short hash that changes when any value of the recipe does."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def flatten(section: Section) -> dict[str, Any]:
    """Dotted key → value, for comparing two recipes."""

    def walk(prefix: str, value: Any):
        if isinstance(value, dict):
            for key, child in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            yield prefix, value

    return dict(walk("", section.model_dump(mode="json")))


def _read_sections(section: type[Section], values: dict, folder: Path) -> None:
    """Puts the content of files in the place of their names."""
    for key, value in values.items():
        child = _section(section, key)
        if child and isinstance(value, str):
            values[key] = _read_section(child, key, folder / value)
        elif child and isinstance(value, dict):
            _read_sections(child, value, folder)


def _read_section(section: type[Section], key: str, path: Path) -> dict:
    """The content of the file that stands for a section, and of those in it."""
    try:
        values = read_yaml(path)
    except UserError as error:
        raise UserError(
            f"key '{key}' is \"{path}\": a mapping, or the file of one: {error}"
        ) from None
    _read_sections(section, values, path.parent)
    return values


def _section(parent: type[Section], *keys: object) -> type[Section] | None:
    """The section at a key of ``parent`` (or at a key of a key); none for everything else."""
    for key in keys:
        field = parent.model_fields.get(key)
        if field is None:
            return None
        options = getattr(field.annotation, "__args__", (field.annotation,))
        options = [option for option in options if option is not NoneType]
        parent = options[0]
        if len(options) > 1 or not isinstance(parent, type) or not issubclass(parent, Section):
            return None
    return parent


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}': expected key=value, as in steps=100")
    try:
        value = _parsed(text, f"override '{override:.60}'") if text else None
    except (YAMLError, YAMLWarning):
        raise UserError(
            f"override '{override}': the value is not YAML; text with : [ or @ goes in quotes"
        ) from None
    *parents, last = key.split(".")
    section = _section(Recipe, *parents, last)
    if isinstance(value, str) and section:  # relative to where the command is typed
        value = _read_section(section, key, Path(value))
    target: Any = values
    for name in parents:
        target = _child(target, name, override)
    if isinstance(target, list):
        target[_position(target, last, override)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise UserError(f"override '{override}': '{'.'.join(parents)}' has no keys")


def _child(target: Any, name: str, override: str) -> Any:
    if isinstance(target, list):
        return target[_position(target, name, override)]
    if not isinstance(target, dict):
        raise UserError(f"override '{override}': nothing lies below a plain value")
    if target.get(name) is None:
        target[name] = {}
    return target[name]


def _position(target: list, name: str, override: str) -> int:
    if not name.isdecimal() or int(name) >= len(target):
        raise UserError(f"override '{override}': '{name}' is not one of 0 … {len(target) - 1}")
    return int(name)


def _is_variant(part: str | int) -> bool:
    return part in OPTIMIZERS or "[" in str(part)


def _explain(error: pydantic.ValidationError, section: type[Section]) -> str:
    """The first complaint, in one line with the dotted key."""
    first, *others = error.errors(include_url=False)
    # Unions put the variant's name or its type into the location; neither is a key.
    location = [str(part) for part in first["loc"] if not _is_variant(part)]
    key = ".".join(location)
    if first["type"] == "extra_forbidden":
        *outer, unknown = map(str, first["loc"])  # a key, whatever it looks like
        key = ".".join([part for part in outer if not _is_variant(part)] + [unknown])
        return f"unknown key '{key}': {nearest(unknown, _keys_at(section, first['loc'][:-1]))}"
    if first["type"] == "missing":
        return f"key '{key}' is missing"
    if first["type"] == "union_tag_invalid":  # the one union is told apart by its name
        given = first["input"]["name"]
        return f"key '{key}.name' is {json.dumps(given)}: {nearest(str(given), OPTIMIZERS)}"
    if first["type"] == "union_tag_not_found":
        return f"key '{key}.name' is missing: allowed: {', '.join(OPTIMIZERS)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    message = message[0].lower() + message[1:]
    outer, kind = first["loc"][:-1], first["loc"][-1:]
    also = [e for e in others if e["loc"][:-1] == outer and PLAIN.issuperset(e["loc"][-1:])]
    if PLAIN.issuperset(kind) and also:
        key = ".".join(location[:-1])
        said = (e["msg"].removeprefix("Input should be ") for e in also)
        message = " or ".join([message, *said])
    return f"key '{key}' is {json.dumps(first['input'], default=str):.60}: {message}"


def _keys_at(section: type[Section], location: tuple) -> set[str]:
    """The keys that are allowed at a location of the recipe."""
    for part in location:
        if part in OPTIMIZERS:
            section = OPTIMIZERS[part]
        elif isinstance(part, str):
            section = _section_of(section.model_fields[part].annotation) or section
    return set(section.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The section inside an annotation such as ``tuple[PhaseConfig, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    inner = (_section_of(part) for part in getattr(annotation, "__args__", ()))
    return next((found for found in inner if found), None)
