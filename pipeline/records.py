"""Records that grow line by line (metrics.jsonl, selection.jsonl), and the table form in which numbers are shown."""

import json
import math
import os
from pathlib import Path
from typing import Any

from pipeline.files import write_atomically, writing

NOT_TRAINING = ("log", "evaluate", "checkpoint")
"""Phases of a step in metrics.jsonl (`time_ms`) that are left out of its speed."""


class JsonLines:
    """A file of one JSON object per line, which a resumed run cuts back to where it goes on."""

    def __init__(self, path: Path, until_step: int) -> None:
        self.path = path
        kept = [line for line in read_json_lines(path) if line["step"] <= until_step]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def append(self, **fields: Any) -> None:
        """Add one object; a top-level number that is not finite becomes null, which JSON has."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        with writing(self.path), open(self.path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(finite) + "\n")

    def sync(self) -> None:
        """Make all lines durable."""
        with writing(self.path), open(self.path, "rb") as stream:
            os.fsync(stream.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of the file; nothing if it does not exist. A last line cut by a kill is left out."""
    objects = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            objects.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return objects


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """An aligned Markdown table; every column but the first is aligned right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(header), rule, *(line(row) for row in rows)])
