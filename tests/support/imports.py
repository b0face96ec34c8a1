"""The imports of a source tree, read from its files without running them."""

import ast
import functools
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Import:
    """One thing that a module imports.

    Attributes:
        target: the imported module; of `from M import NAME` it is `M.NAME` where no file of the tree has that name, so
            that `from torch import distributed` is seen for what it is. A module of the tree stands alone.
        when: `start` when the module is imported, `late` inside a function, `typing` for annotations alone.
        where: the function around it, or nothing.
    """

    importer: str
    target: str
    line: int
    when: Literal["start", "late", "typing"]
    where: str


@dataclass(frozen=True)
class Tree:
    """All modules below a directory and what each one imports, by their dotted names."""

    modules: dict[str, ast.Module]
    imports: dict[str, list[Import]]

    def edges(self, *when: str) -> dict[str, set[str]]:
        """Which modules of the tree each one imports, at these times or at any."""
        return {
            module: {
                found.target for found in imports if found.target in self.modules and (not when or found.when in when)
            }
            for module, imports in self.imports.items()
        }


def read_tree(root: Path, *folders: str) -> Tree:
    """Read every .py file in `folders` of `root`."""
    paths = {_dotted(path.relative_to(root)): path for folder in folders for path in (root / folder).rglob("*.py")}
    modules = {name: _parsed(path.read_text()) for name, path in sorted(paths.items())}
    packages = {name: name if path.stem == "__init__" else name.rpartition(".")[0] for name, path in paths.items()}
    imports = {
        name: [
            Import(name, target, node.lineno, _when(parents), ".".join(_functions(parents)))
            for node, parents in _walk(tree, ())
            for target in _targets(node, packages[name], modules.keys())
        ]
        for name, tree in modules.items()
    }
    return Tree(modules, imports)


def reached(edges: dict[str, set[str]], start: str) -> dict[str, list[str]]:
    """Every module that `start` leads to, with the way there (`start` first, the module last)."""
    ways = {start: [start]}
    waiting = [start]
    while waiting:
        module = waiting.pop(0)
        for following in sorted(edges[module] - ways.keys()):
            ways[following] = [*ways[module], following]
            waiting.append(following)
    return ways


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """One circle through every module that lies on one, each told once, the first module at both ends."""
    found = dict[frozenset[str], list[str]]()
    for module in edges:
        for following in sorted(edges[module]):
            way = reached(edges, following).get(module)
            if way:
                found.setdefault(frozenset(way), [module, *way])
                break
    return list(found.values())


@functools.cache
def _parsed(text: str) -> ast.Module:
    return ast.parse(text)


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _walk(node: ast.AST, parents: tuple[ast.AST, ...]) -> Iterator[tuple[ast.AST, tuple[ast.AST, ...]]]:
    for child in ast.iter_child_nodes(node):
        yield child, (*parents, node)
        yield from _walk(child, (*parents, node))


def _functions(parents: tuple[ast.AST, ...]) -> list[str]:
    return [parent.name for parent in parents if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef)]


def _when(parents: tuple[ast.AST, ...]) -> Literal["start", "late", "typing"]:
    if _functions(parents):
        return "late"
    guards = {ast.unparse(parent.test) for parent in parents if isinstance(parent, ast.If)}
    return "typing" if guards & {"TYPE_CHECKING", "typing.TYPE_CHECKING"} else "start"


def _targets(node: ast.AST, package: str, modules: Set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        names = [f"{base}.{alias.name}" for alias in node.names]
        return sorted({base if base in modules and name not in modules else name for name in names})
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
        return [part.value for part in node.args[:1] if isinstance(part, ast.Constant)]
    return []
