"""Two directories that should hold the same results: every value of every file, by a key that a person can read.

A file becomes a table, key -> value: tensors by name, JSON and YAML by path of keys, tables by row and column,
TensorBoard events by step and tag, anything else by its size and hash. Values that time or the machine decide are left
out by their names, but that they are there is compared. Paths of the two sides are replaced by names before.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

MISSING = "(missing)"
LEFT_OUT = "(not compared)"
_SHOWN = 160

UNEQUAL = {
    "runs/*/metrics.jsonl": (
        "*.time_ms.*",
        "*.tokens_per_s",
        "*.model_flop_utilisation",
        "*.model_tflop_per_s",
        "*.memory_gib.*",
        "*.checkpoint_share",
    ),
    "runs/*/lock": ("*",),
    "runs/*/environment.txt": ("[!c]*", "commit"),  # all but the command
    "runs/*/tensorboard": ("*.speed/*", "*.time/*", "*.system/*", "*.run/environment/*", "*._hparams_/*"),
    "*/config.json": ("transformers_version",),
    "evaluations/*/results.json": ("tasks.latency.milliseconds.*",),
    "report/report.json": (
        "machine",
        "commit",
        "versions.*",
        "runs.*.tokens_per_s",
        "runs.*.data_wait",
        "evaluations.*.latency milliseconds.*",
    ),
    "report/report.md": ("*.tokens/s", "*.waits for data", "*.latency milliseconds"),
}
"""Glob of files -> globs of keys whose values are a time, a speed, a machine or a version."""


@dataclass(frozen=True)
class Difference:
    """One value of one file that is not the same on both sides; `reason` says why that is allowed, if it is."""

    file: str
    key: str
    before: str
    after: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {_short(self.before)} -> {_short(self.after)}"


@dataclass(frozen=True)
class Side:
    """What one revision wrote.

    Attributes:
        output: directory that is compared.
        places: paths that the other side has elsewhere -> the name to compare by.
    """

    output: Path
    places: dict[str, str]

    def files(self) -> set[str]:
        """Names from `output` on; all events of a run are one."""
        names = (path.relative_to(self.output) for path in self.output.rglob("*") if path.is_file())
        return {str(name.parent if name.parent.name == "tensorboard" else name) for name in names}

    def values(self, name: str) -> dict[str, str]:
        """The file as a table, and what cannot be read as that by its bytes."""
        path = self.output / name
        read = next(read for glob, read in READERS if fnmatchcase(name, glob))
        try:
            found = dict(read(path))
        except (ValueError, KeyError, yaml.YAMLError):
            found = dict(_whole(path))
        unequal = [key for glob, keys in UNEQUAL.items() if fnmatchcase(name, glob) for key in keys]
        return {
            key: LEFT_OUT if any(fnmatchcase(key, glob) for glob in unequal) else self._without_places(value)
            for key, value in found.items()
        }

    def _without_places(self, value: Any) -> str:
        """The value as text that also tells 1 from 1.0. One place may lie in another: the longer goes first."""
        text = value if isinstance(value, str) else repr(value)
        for place in sorted(self.places, key=len, reverse=True):
            text = text.replace(place, self.places[place])
        return text


def compare(before: Side, after: Side) -> tuple[list[Difference], dict[str, int]]:
    """All differences in order of files and keys, and how much was compared."""
    differences, count = [], {"files": 0, "values": 0}
    for name in sorted(before.files() | after.files()):
        count["files"] += 1
        sizes = [_size(side.output / name) for side in (before, after)]
        if MISSING in sizes:
            differences.append(Difference(name, "file", *sizes))
            continue
        old, new = before.values(name), after.values(name)
        count["values"] += sum(value != LEFT_OUT for value in old.values())
        for key in dict.fromkeys([*old, *new]):
            pair = old.get(key, MISSING), new.get(key, MISSING)
            if pair[0] != pair[1]:
                differences.append(Difference(name, key, *pair))
    return differences, count


@dataclass
class Allowed:
    """An entry of the file of allowed differences, and how many it has matched."""

    file: str
    reason: str
    key: str = "*"
    matched: int = 0

    def matches(self, difference: Difference) -> bool:
        return fnmatchcase(difference.file, self.file) and fnmatchcase(difference.key, self.key)


def read_allowed(path: Path) -> list[Allowed]:
    """The entries of a YAML list of {file, key, reason}. UserError if it is anything else."""
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or []
        allowed = [Allowed(**entry) for entry in entries]
        if not all(
            isinstance(text, str) and text for entry in allowed for text in (entry.file, entry.key, entry.reason)
        ):
            raise ValueError("file, key and reason are texts")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: expected a list of {{file: GLOB, key: GLOB, reason: TEXT}}: {error}") from error
    return allowed


def excused(difference: Difference, allowed: list[Allowed]) -> Difference:
    """The difference with the reason of the first entry that matches it; every entry that does is counted."""
    matching = [entry for entry in allowed if entry.matches(difference)]
    for entry in matching:
        entry.matched += 1
    if not matching:
        return difference
    return Difference(difference.file, difference.key, difference.before, difference.after, matching[0].reason)


Values = Iterator[tuple[str, Any]]


def _whole(path: Path) -> Values:
    raw = path.read_bytes()
    yield "bytes", f"{len(raw)} with sha256 {_hash(raw)}"


def _tensors(path: Path) -> Values:
    """Type, shape and bytes of each tensor of a safetensors file, as the format stores them."""
    raw = path.read_bytes()
    begin = 8 + int.from_bytes(raw[:8], "little")
    for name, entry in json.loads(raw[8:begin]).items():
        if name == "__metadata__":
            yield from _flat(entry, f"{name}.")
        else:
            first, last = (begin + offset for offset in entry["data_offsets"])
            yield name, f"{entry['dtype']} {entry['shape']} with sha256 {_hash(raw[first:last])}"


def _json(path: Path) -> Values:
    return _flat(json.loads(path.read_bytes()))


def _yaml(path: Path) -> Values:
    return _flat(yaml.safe_load(path.read_bytes()))


def _json_lines(path: Path) -> Values:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        yield from _flat(json.loads(line), f"{number}.")


def _named_lines(path: Path) -> Values:
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(": ")
        yield name, value


def _tables(path: Path) -> Values:
    """Cells of Markdown tables as `line row.column`; how wide a column is padded depends on times and is no matter."""
    header: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            header = []
        elif not header:
            header = cells
            yield str(number), " | ".join(cells)
        elif set(line) - set("|-:"):
            yield from ((f"{number} {cells[0]}.{column}", cell) for column, cell in zip(header, cells, strict=True))


def _events(path: Path) -> Values:
    """Values of all event files of a run, in the order of the starts that wrote them."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for start, file in enumerate(sorted(path.iterdir()), 1):
        for raw in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(raw)
            for value in event.summary.value:
                yield f"{start}.{event.step}.{value.tag}", _event_value(value)


def _event_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return value.simple_value
    if kind == "tensor" and value.tensor.string_val:
        return value.tensor.string_val[0].decode(errors="replace")
    content = getattr(value, kind).SerializeToString(deterministic=True) if kind else b""
    return f"{kind} with sha256 {_hash(content)}"


READERS: tuple[tuple[str, Callable[[Path], Values]], ...] = (
    ("*.safetensors", _tensors),
    ("*/predictions/*", _whole),
    ("*/tokenizer*.json", _whole),
    ("*.jsonl", _json_lines),
    ("*.json", _json),
    ("*.yaml", _yaml),
    ("*/environment.txt", _named_lines),
    ("*/report.md", _tables),
    ("*/tensorboard", _events),
    ("*", _whole),
)


def _flat(content: Any, prefix: str = "") -> Values:
    """`{"a": {"b": [1]}}` -> `a.b.0`: 1; what is empty stands for itself."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    if not items:
        yield prefix.removesuffix(".") or "content", content
    for key, value in items:
        yield from _flat(value, f"{prefix}{key}.")


def _hash(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _size(path: Path) -> str:
    if not path.exists():
        return MISSING
    return "events" if path.is_dir() else f"{path.stat().st_size} bytes"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}..."
