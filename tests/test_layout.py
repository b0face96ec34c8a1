"""The floor plan: which room may import which, what each must do without, and how large files and functions get.

Every import counts, also those inside functions and those for annotations alone.
"""

import ast
import shutil
import statistics
from collections.abc import Iterator

import pytest

from tests.support import ROOT
from tests.support.imports import Import, Tree, circles, reached, read_tree

FOLDERS = ("pipeline", "preprocessing", "demo", "slurm", "benchmarks", "tests")
PIPELINE_DOORS = ("pipeline.train", "pipeline.fold", "pipeline.evaluate", "pipeline.report")
PREPROCESSING_DOORS = tuple(
    f"preprocessing.{name}" for name in ("train_tokenizer", "build_shards", "verify_shards", "inspect_shards")
)
EXPORT_DOOR = "pipeline.export"
"""Reads text as the user has it, and so stands above the readers."""
SLURM_DOORS = ("slurm.submit", "slurm.status", "slurm.cancel")
DOORS = (*PIPELINE_DOORS, EXPORT_DOOR, *PREPROCESSING_DOORS, "demo.run", *SLURM_DOORS)

LAYERS = [
    ("pipeline.errors",),
    ("pipeline.files", "pipeline.records", "pipeline.environment", "pipeline.launch"),
    ("pipeline.shapes", "pipeline.parsing", "pipeline.config", "pipeline.recipe", "pipeline.teacher_files"),
    ("pipeline.stages", "pipeline.cost"),
    ("pipeline.data",),
    ("pipeline.models",),
    ("pipeline.compaction",),
    ("pipeline.teachers",),
    ("pipeline.baselines",),
    ("pipeline.methods",),
    ("pipeline.engine",),
    ("pipeline.evaluation",),
    ("pipeline.deploy",),
    ("pipeline.reporting",),
    PIPELINE_DOORS,
    ("preprocessing.readers",),
    (EXPORT_DOOR,),
    ("preprocessing.tokenizing",),
    ("preprocessing.build", "preprocessing.inspection"),
    PREPROCESSING_DOORS,
    ("demo",),
    ("slurm",),
    ("benchmarks",),
    ("tests",),
]
"""From the ground up. A module imports from its own layer and from those before it; a name stands for all below it."""

GROUND_FLOOR = tuple(name for layer in LAYERS[:4] for name in layer)
FRAMEWORKS = ("torch", "transformers", "deepspeed")
SLOW = (*FRAMEWORKS, "datasets", "matplotlib", "scipy", "sklearn", "tensorboard")
"""Libraries that take from half a second to several to import: wrong arguments are said before."""
MACHINE = ("pipeline.environment", "torch", "machine")
"""The one exception to the ground floor's rule: `environment.machine()` asks torch for the GPUs' names."""
RECORDS = ("pipeline.evaluation.results", "pipeline.evaluation.metrics", "pipeline.evaluation.attention.conditions")
"""What reads, writes and names results, the one thing of evaluation that reporting is to know."""
OUTSIDE_WORLD = (
    *("os", "io", "pathlib", "shutil", "tempfile", "glob", "fcntl", "mmap", "json", "yaml", "pickle", "safetensors"),
    *("subprocess", "multiprocessing", "concurrent", "threading", "socket", "signal"),
    *("deepspeed", "torch.distributed", "torch.save", "torch.load"),
    *("pipeline.files", "pipeline.records", "pipeline.environment", "pipeline.launch", "pipeline.stages"),
    "pipeline.data",
)
"""Files, processes and DeepSpeed, with none of which the method in pipeline/compaction has anything to do."""

LONGEST_FILE = 400
LONGEST_FUNCTION = 25
LONGER_FILES: set[str] = set()


def within(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


def layer(module: str) -> int | None:
    return next((height for height, names in enumerate(LAYERS) if within(module, names)), None)


def faults(tree: Tree) -> list[str]:
    """Everything that the tree does against the plan, one sentence each."""
    circle = (f"circle: {' -> '.join(way)}" for way in circles(tree.edges()))
    return [*circle, *_upward(tree), *_led_to(tree), *_outside_world(tree)]


def _upward(tree: Tree) -> Iterator[str]:
    inside = (found for imports in tree.imports.values() for found in imports if found.target in tree.modules)
    for found in inside:
        importer, target = layer(found.importer), layer(found.target)
        if importer is None or target is None:
            yield f"{_place(found)}: one of the two has no place in LAYERS"
        elif target > importer:
            yield f"{_place(found)}: that is upward"


def _led_to(tree: Tree) -> Iterator[str]:
    """Where a room leads to what it must do without, directly or through modules that it imports."""
    ever, start = ("start", "late", "typing"), ("start",)
    rules = [
        (("pipeline.reporting",), ("torch", "pipeline.engine", "pipeline.data", "pipeline.evaluation"), ever),
        (GROUND_FLOOR, FRAMEWORKS, ever),
        (DOORS, SLOW, start),
    ]
    for rooms, without, times in rules:
        edges = tree.edges(*times)
        for module in (name for name in tree.modules if within(name, rooms)):
            for end, way in reached(edges, module).items():
                for found in tree.imports[end]:
                    excepted = (found.importer, found.target, found.where) == MACHINE or within(found.target, RECORDS)
                    if found.when in times and within(found.target, without) and not excepted:
                        yield f"{' -> '.join(way)}: {_place(found)}, which {module} must do without"


def _outside_world(tree: Tree) -> Iterator[str]:
    for module in (name for name in tree.modules if within(name, ("pipeline.compaction",))):
        used = [(found.target, found.line) for found in tree.imports[module]]
        for node in ast.walk(tree.modules[module]):
            if isinstance(node, ast.Attribute):
                used.append((ast.unparse(node), node.lineno))
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
                used.append(("io.open", node.lineno))
        for name, line in used:
            if within(name, OUTSIDE_WORLD):
                yield f"{module}, line {line}: {name} is of the outside world"


def _place(found: Import) -> str:
    return f"{found.importer}, line {found.line} ({found.when}): imports {found.target}"


def test_the_house_keeps_to_its_plan():
    assert faults(read_tree(ROOT, *FOLDERS)) == []


def test_every_name_of_the_plan_stands_for_something():
    modules = read_tree(ROOT, *FOLDERS).modules
    names = [name for layer in LAYERS for name in layer] + list(DOORS)
    assert [name for name in names if not any(within(module, (name,)) for module in modules)] == []


@pytest.fixture
def plant(tmp_path):
    """Append lines to files of a copy of the tree, and say what is wrong with it then."""
    for folder in ("pipeline", "preprocessing", "demo"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))

    def planted(lines: dict[str, str]) -> list[str]:
        for name, line in lines.items():
            with open(tmp_path / name, "a") as stream:
                stream.write(f"\n{line}\n")
        return faults(read_tree(tmp_path, "pipeline", "preprocessing", "demo"))

    return planted


LATE = "def f():\n    from {} import {}\n"
PLANTED = {
    "upward": ({"pipeline/data/order.py": "import pipeline.engine.state"}, "that is upward"),
    "upward and late": ({"pipeline/teachers.py": LATE.format("pipeline.engine", "state")}, "(late)"),
    "upward by name": ({"pipeline/cost.py": "import importlib\nimportlib.import_module('demo.run')"}, "demo.run"),
    "upward and relative": ({"pipeline/shapes.py": "from . import stages"}, "that is upward"),
    "for annotations": (
        {"pipeline/fold.py": "if TYPE_CHECKING:\n    import preprocessing.readers.hub"},
        "(typing)",
    ),
    "no layer": ({"pipeline/shed.py": "import pipeline.errors"}, "no place in LAYERS"),
    "circle": (
        {"pipeline/shapes.py": "import pipeline.parsing", "pipeline/parsing.py": "import pipeline.shapes"},
        "circle: pipeline.parsing -> pipeline.shapes -> pipeline.parsing",
    ),
    "late circle": (
        {"pipeline/data/order.py": LATE.format("pipeline.data", "masking")},
        "circle: pipeline.data.masking -> pipeline.data.order -> pipeline.data.masking",
    ),
    "reporting reads records only": (
        {"pipeline/records.py": LATE.format("torch", "nn")},
        "pipeline.reporting.tables -> pipeline.records",
    ),
    "reporting without the engine": (
        {"pipeline/reporting/tables.py": LATE.format("pipeline.engine", "anomalies")},
        "pipeline.reporting.tables must do without",
    ),
    "no torch on the ground floor": ({"pipeline/cost.py": "import torch"}, "pipeline.cost must do without"),
    "nor through another": ({"pipeline/parsing.py": LATE.format("transformers", "x")}, "pipeline.recipe -> pipeline.p"),
    "another exception": ({"pipeline/environment.py": LATE.format("torch", "cuda")}, "pipeline.environment must do w"),
    "slow door": ({"pipeline/launch.py": "import transformers"}, "pipeline.evaluate must do without"),
    "files": ({"pipeline/compaction/groups.py": LATE.format("pathlib", "Path")}, "pathlib.Path"),
    "opened": ({"pipeline/compaction/groups.py": "open('x')"}, "io.open"),
    "processes": ({"pipeline/compaction/groups.py": "torch.distributed.barrier()"}, "torch.distributed.barrier"),
    "processes by name": ({"pipeline/compaction/groups.py": "from torch import distributed"}, "torch.distributed"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_against_the_plan_is_found(plant, name):
    lines, words = PLANTED[name]
    assert words in "\n".join(plant(lines))


def test_nothing_is_found_where_nothing_is_planted(plant):
    assert plant({"pipeline/fold.py": LATE.format("pipeline.engine", "state")}) == []


def test_files_are_short():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines())
        for path in [ROOT / "setup.py", *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    }
    assert {name for name, count in lines.items() if count > LONGEST_FILE} <= LONGER_FILES


def test_nine_functions_in_ten_are_short():
    modules = read_tree(ROOT, *FOLDERS[:4]).modules
    lengths = [
        node.end_lineno - node.lineno + 1
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert statistics.quantiles(lengths, n=10)[-1] < LONGEST_FUNCTION
