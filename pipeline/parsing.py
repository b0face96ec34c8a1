"""From nested dictionaries, as YAML and JSON give them, to dataclasses; from `--section.key value` to pairs."""

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal

from pipeline.errors import UserError


def parse_overrides(overrides: list[str]) -> list[tuple[str, str]]:
    """`--a.b 1 --c.d=2` -> [(a.b, 1), (c.d, 2)]."""
    pairs, rest = [], list(overrides)
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
        UserError: names the key, what was expected, and the nearest known key.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where}: {prefix.rstrip('.')} must be a section with keys, not {content!r}")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            guess = f", did you mean {prefix}{near[0]}?" if near else f"; known are {', '.join(hints)}"
            raise UserError(f"{where}: there is no key {prefix}{key}{guess}")
    values = {key: _convert(hints[key], value, where, prefix + key) for key, value in content.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), {} if value is None else value, where, key + ".")
    if hint is Any:
        return value
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in options:
            raise UserError(f"{where}: {key} must be one of {', '.join(options)}, not {value!r}")
        return value
    if origin is types.UnionType:
        return None if value is None else _convert(options[0], value, where, key)
    # YAML reads 1e-4 as text and 2 as a whole number: both are fine where a real number is wanted.
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
