"""Benchmarks are run by hand and seldom: what they import must be there all the same."""

import importlib

import pytest

from tests.support import ROOT

WORKERS = ("beside_worker", "loader_worker")
"""They read their command line at once."""
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in WORKERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_finds_what_it_imports(name):
    importlib.import_module(f"benchmarks.{name}")
