"""What no linter holds: how error sentences end, what a command line is called, where constants are explained."""

import ast
import io
import tokenize
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.support import ROOT

FOLDERS = ("pipeline", "preprocessing", "demo", "slurm", "benchmarks")
FILES = {str(path.relative_to(ROOT)): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}


def error_kinds(texts: Iterable[str]) -> set[str]:
    """UserError and every class below it."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for text in texts
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef)
    }
    kinds = {"UserError"}
    while found := {name for name, above in bases.items() if above & kinds} - kinds:
        kinds |= found
    return kinds


ERRORS = error_kinds(path.read_text() for path in FILES.values())
"""What is told to a user in one sentence."""


def full_stops(text: str) -> Iterator[int]:
    """Lines that make an error whose sentence ends with a full stop."""
    for node in ast.walk(ast.parse(text)):
        kind = ast.unparse(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
        if kind in ERRORS and any(_ending(part).endswith(".") for part in node.args):
            yield node.lineno


def _ending(sentence: ast.expr) -> str:
    """The last written characters of a string, also of an f-string and of strings that are added or chosen."""
    match sentence:
        case ast.Constant(value=str(text)):
            return text.rstrip()
        case ast.JoinedStr(values=[*_, last]) | ast.BinOp(right=last):
            return _ending(last)
        case ast.IfExp(body=first, orelse=second):
            return "." if "." in (_ending(first)[-1:], _ending(second)[-1:]) else ""
    return ""


def called_args(text: str) -> Iterator[int]:
    """Lines that call a variable or a parameter `args`; *args is Python's word."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            named = [*node.posonlyargs, *node.args, *node.kwonlyargs]
            yield from (parameter.lineno for parameter in named if parameter.arg == "args")
        elif isinstance(node, ast.Name) and node.id == "args" and isinstance(node.ctx, ast.Store):
            yield node.lineno


def commented_constants(text: str) -> Iterator[int]:
    """Lines of module-level constants with a comment line directly above; a string below them is for that."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {token.start[0] for token in tokens if token.type == tokenize.COMMENT and token.start[1] == 0}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.lineno - 1 in comments:
            names = (part for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))
            if any(name.id.isupper() for name in names):
                yield node.lineno


def found(rule: Callable[[str], Iterator[int]]) -> list[str]:
    """Where the files break a rule."""
    return [f"{name}:{line}" for name, path in FILES.items() for line in rule(path.read_text())]


def test_error_sentences_have_no_full_stop():
    assert found(full_stops) == []


def test_the_command_line_is_called_arguments():
    assert found(called_args) == []


def test_constants_are_explained_below():
    assert found(commented_constants) == []


BROKEN = {
    "plain": (full_stops, 'raise UserError("no.")'),
    "f-string": (full_stops, 'raise UserError(f"{x} no.")'),
    "added": (full_stops, 'raise errors.UserError("a" + f"{x}.")'),
    "chosen": (full_stops, 'raise UserError("a" if x else "b.")'),
    "a subclass": (full_stops, 'raise DataError(path, "b.") from None'),
    "handed on": (full_stops, 'return world.said_once(UserError("b."))'),
    "parameter": (called_args, "def f(a, *, args): pass"),
    "variable": (called_args, "args = 3"),
    "unpacked": (called_args, "args, rest = parse()"),
    "lambda": (called_args, "f = lambda args: 3"),
    "comment": (commented_constants, "# Why.\nX_Y = 3"),
    "annotated": (commented_constants, "# Why.\nX: int = 3"),
    "private": (commented_constants, "# Why.\n_X = 3"),
}
SOUND = {
    "no stop": (full_stops, 'raise UserError(f"see README.md, {x}")'),
    "a value ends it": (full_stops, 'raise UserError(f"see. {x}")'),
    "another error": (full_stops, 'raise ValueError("no.")'),
    "star": (called_args, "def f(*args): return args"),
    "below": (commented_constants, 'X = 3\n"""Why."""\n\n# Another thing.\n\nY = 4  # so'),
    "within": (commented_constants, "X = [\n    # Why.\n    3,\n]"),
    "no constant": (commented_constants, "# Why.\nx = 3"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_found(name):
    rule, text = BROKEN[name]
    assert len(list(rule(text))) == 1


@pytest.mark.parametrize("name", SOUND)
def test_what_keeps_to_the_rules_is_not(name):
    rule, text = SOUND[name]
    assert list(rule(text)) == []
