"""What the GLUE server takes: a zip of eleven TSV files with a prediction for every row of the unlabelled test sets.

File names, row counts and values are those of nyu-mll/jiant (jiant/scripts/benchmarks/benchmarks.py) and of the hub's
card of nyu-mll/glue.
"""

import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import DataError
from pipeline.evaluation.glue import hub, jsonl
from pipeline.evaluation.glue.folder import JSON_LINES, find_official
from pipeline.evaluation.glue.load import HUB
from pipeline.evaluation.glue.rows import Example
from pipeline.evaluation.glue.tasks import GLUE_TASKS, GlueTask
from pipeline.evaluation.glue.tsv import read_columns
from pipeline.files import write_atomically

AX = "AX"
"""The diagnostic set, which the model of MNLI answers."""
LOWEST_SCORE, HIGHEST_SCORE = 0.0, 5.0
"""Of STS-B."""
_DATE = (1980, 1, 1, 0, 0, 0)
"""Of every file in the zip, so that equal predictions make equal bytes."""


@dataclass(frozen=True)
class TestSet:
    """One file of the zip: its name without `.tsv`, the task that answers it, its rows, and where its texts are."""

    __test__ = False  # no test class of pytest

    name: str
    task: str
    rows: int
    stem: str = "test"

    @property
    def folder(self) -> str:
        """Where the file lies in `--data`."""
        return AX if self.name == AX else GLUE_TASKS[self.task].folder

    @property
    def hub_config(self) -> str:
        """What the hub calls it."""
        return "ax" if self.name == AX else self.task


TEST_SETS = (
    TestSet("CoLA", "cola", 1063),
    TestSet("SST-2", "sst2", 1821),
    TestSet("MRPC", "mrpc", 1725),
    TestSet("STS-B", "stsb", 1379),
    TestSet("QQP", "qqp", 390965),
    TestSet("MNLI-m", "mnli", 9796, "test_matched"),
    TestSet("MNLI-mm", "mnli", 9847, "test_mismatched"),
    TestSet("QNLI", "qnli", 5463),
    TestSet("RTE", "rte", 3000),
    TestSet("WNLI", "wnli", 146),
    TestSet(AX, "mnli", 1104),
)

Rows = list[Example]
"""Of a test set; their labels are 0 and mean nothing."""


def read_test_sets(trained: Sequence[str], source: str) -> tuple[dict[TestSet, Rows], dict[TestSet, str]]:
    """The rows of every test set that a task in `trained` answers, and why there are none of the others.

    Args:
        trained: names of tasks.
        source: directory of files, or `hub`.

    Raises:
        DataError: a file is malformed, or has another number of rows than the server expects, or there are none.
    """
    rows: dict[TestSet, Rows] = {}
    missing: dict[TestSet, str] = {}
    for test in TEST_SETS:
        path = None if source == HUB else find_official(Path(source) / test.folder, test.stem)
        if test.task not in trained:
            missing[test] = f"{test.task} was not trained"
        elif source != HUB and path is None:
            missing[test] = f"{test.folder}/{test.stem}.tsv is not in the data directory"
        else:
            rows[test] = _read(test, path)
    if not rows:
        raise DataError(f"--predict-test: --data {source} has no test set of {', '.join(trained)}, such as test.tsv")
    return rows, missing


def _read(test: TestSet, path: Path | None) -> Rows:
    """All rows of a file, or of the hub where there is no `path`."""
    task = GLUE_TASKS[test.task]
    if path is None:
        texts = hub.load_texts(task, test.hub_config, test.stem)
    elif path.suffix == JSON_LINES:
        texts = [row for _, row, _ in jsonl.read_texts(task, path)]
    else:
        texts = [tuple(values) for _, values in read_columns(path, task.texts)]
    if len(texts) != test.rows:
        where = path or f"hub: {test.hub_config}, {test.stem}"
        raise DataError(f"{where}: {len(texts):,} rows where the GLUE server expects {test.rows:,}")
    return [Example(index, row, 0) for index, row in enumerate(texts)]


def answers(task: GlueTask, predictions: Sequence[float]) -> list[str]:
    """Class ids or values as the server wants them: the words or digits of the TSV files, or three decimals."""
    if task.regression:
        return [f"{min(HIGHEST_SCORE, max(LOWEST_SCORE, value)):.3f}" for value in predictions]
    return [task.classes[int(value)] for value in predictions]


def write_submission(
    path: Path, tests: dict[TestSet, Rows], predict: Callable[[TestSet, Rows], Sequence[float]]
) -> None:
    """Write the zip with the predictions of `predict` for `tests`, and the first class or 0 in all other rows.

    Args:
        path: of the zip, which appears whole.
        tests: rows of the test sets that are predicted.
        predict: class ids, or values for STS-B, in the order of the rows.

    Raises:
        UserError: it cannot be written.
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for test in TEST_SETS:
            predictions = predict(test, tests[test]) if test in tests else [0] * test.rows
            lines = enumerate(answers(GLUE_TASKS[test.task], predictions))
            text = "".join(["index\tprediction\n", *(f"{index}\t{answer}\n" for index, answer in lines)])
            archive.writestr(zipfile.ZipInfo(f"{test.name}.tsv", _DATE), text, zipfile.ZIP_DEFLATED)
    write_atomically(path, content.getvalue())
