"""From YAML files and `--section.key value` options to dataclasses, with a sentence for each thing that is wrong."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from pipeline.errors import Refusals, UserError

EXTENDS = "extends"
"""Key of a file that names another one, relative to itself, whose values it starts from."""


def read_sections(path: Path, kind: str, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The sections of a YAML file, those of the file that it extends below its own.

    Args:
        path: of the file.
        kind: what the file is, for messages.
        extending: the files on the way to this one.

    Raises:
        UserError: a file cannot be read, is no YAML, holds no sections, or extends itself.
    """
    path = path.resolve() if extending else path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{kind} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path} is no YAML: byte {error.start} is no UTF-8 text") from error
    except yaml.YAMLError as error:
        raise UserError(f"{kind} {path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise UserError(f"{kind} {path} must hold sections such as `train:`, not a {type(content).__name__}")
    if EXTENDS not in content:
        return content
    base = content.pop(EXTENDS)
    if not isinstance(base, str):
        raise UserError(f"{kind} {path}: {EXTENDS} must name one file, not {base!r}")
    chain = (*extending, path.resolve())
    if (path.parent / base).resolve() in chain:
        raise UserError(f"{kind} {path} extends {base}, which extends it in turn")
    return merged(read_sections(path.parent / base, kind, chain), content)


def merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `own` in their place, section by section."""
    result = dict(base)
    for key, value in own.items():
        below = result.get(key)
        result[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def apply_options(content: dict[str, Any], options: list[str]) -> None:
    """Set the keys that `--section.key value` and `--section.key=value` name; the last one wins.

    Raises:
        UserError: an option of another form, without value, or below a key that is no section.
    """
    for key, value in _pairs(options):
        node = content
        *sections, last = key.split(".")
        for section in sections:
            if node.get(section) is None:  # absent, or `train:` with nothing below it
                node[section] = {}
            node = node[section]
            if not isinstance(node, dict):
                raise UserError(f"--{key}: {section} is no section")
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"--{key}: {value!r} is no YAML value") from error


def _pairs(options: list[str]) -> list[tuple[str, str]]:
    """`--a.b 1 --c.d=2` -> [(a.b, 1), (c.d, 2)]."""
    pairs, rest = [], list(options)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--") or option == "--":
            raise UserError(f"unexpected argument {option!r}: recipe keys are given as --section.key value")
        key, equals, value = option[2:].partition("=")
        if not equals:
            if not rest:
                raise UserError(f"--{key} needs a value")
            value = rest.pop(0)
        pairs.append((key, value))
    return pairs


def build(kind: type, content: Any, where: str, prefix: str = "") -> Any:
    """Make the dataclass `kind` of nested dictionaries, checking keys and types.

    Raises:
        UserError: for all that is wrong: names the key, what was expected, and the nearest known key.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} must be a section with keys, not {content!r}")
    hints, values, refusals = typing.get_type_hints(kind), dict[str, Any](), Refusals()
    for key, value in content.items():
        with refusals.gathering():
            if key not in hints:
                raise UserError(f"{where}: there is no key {prefix}{key}{_guess(str(key), prefix, hints)}")
            values[key] = _convert(hints[key], value, where, prefix + key)
    refusals.refuse()
    return kind(**values)


def _guess(key: str, prefix: str, known: dict[str, Any]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f", did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(known)}"


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {} if value is None else value, where, key + ".")
    if hint is Any:
        return value
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value is False and "off" in options:  # as YAML reads it
            value = "off"
        if value not in options:
            raise UserError(f"{where}: {key} must be one of {', '.join(options)}, not {value!r}")
        return value
    if origin in (types.UnionType, typing.Union):  # the latter where a Literal is in it
        return None if value is None else _convert(options[0], value, where, key)
    return _scalar(hint, value, where, key)


def _scalar(hint: type, value: Any, where: str, key: str) -> Any:
    """A number, a switch or text. YAML reads 1e-4 as text and 2 as a whole number: both may stand for a real one."""
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{where}: {key} must be a finite number, not {value}")
    if hint is str and value is not None and not isinstance(value, (dict, list, bool)):
        return str(value)
    if type(value) is not hint:
        expected = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
        raise UserError(f"{where}: {key} must be {expected}, not {value!r}")
    return value
