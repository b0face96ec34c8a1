"""English text that every installation has: the documentation strings of the packages this project depends on.

The demo trains on it where the user names no text of their own. It is read with `ast`, nothing is imported.
"""

import ast
import hashlib
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("numpy", "scipy", "sklearn", "matplotlib", "torch")
"""Those with the most prose for the time it takes to parse them: about 15 MB in 40 s."""

MINIMUM_CHARACTERS = 80
"""Shorter ones are mostly fragments such as `Return the size.`"""


def installed_docstrings() -> Iterator[str]:
    """Yield each documentation string once, in the order of the file names."""
    installed = Path(sysconfig.get_path("purelib"))
    seen: set[bytes] = set()
    for package in PACKAGES:
        for path in sorted((installed / package).rglob("*.py")):
            for docstring in _docstrings_of(path):
                digest = hashlib.blake2b(docstring.encode(), digest_size=16).digest()
                if len(docstring) >= MINIMUM_CHARACTERS and digest not in seen:
                    seen.add(digest)
                    yield docstring


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escape sequences
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return  # test files of packages are wrong on purpose
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text).encode("utf-8", "ignore").decode()
