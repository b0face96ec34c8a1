"""Documents and results files, and what stands in them."""

import json
from typing import Any

from tests.support import ROOT

RESULTS = ROOT / "benchmarks" / "results"


def document(name: str) -> str:
    """A document on one line, so that figures are found wherever lines break."""
    return " ".join((ROOT / name).read_text(encoding="utf-8").split())


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(name: str, first_cell: str) -> dict[str, list[str]]:
    """The rows of the table whose header begins with a cell, without emphasis: first cell -> the others."""
    lines = iter((ROOT / name).read_text(encoding="utf-8").replace("**", "").splitlines())
    next(line for line in lines if line.startswith(f"| {first_cell}"))
    next(lines)
    rows = {}
    for line in lines:
        if not line.startswith("|"):
            break
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[head] = cells
    return rows


def counted(rows: dict[str, Any], name: str) -> str:
    """A step of step_time.py as a multiple of the student's, by what is computed."""
    return f"{rows[name]['macs_per_step'] / rows['student']['macs_per_step']:.2f}"
