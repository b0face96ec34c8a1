"""The table of tasks: which names it knows, in which order, and that it is light."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.glue.run import Glue
from pipeline.evaluation.latency import Latency
from pipeline.evaluation.task import AskedSettings, Request
from pipeline.evaluation.tasks import NAMES, make_tasks
from tests.support import ROOT

REQUEST = Request(Path("model"), "data", Path("output"), [1], AskedSettings())


def test_names_belong_to_one_task_each_and_are_kept_as_they_were_asked_for():
    assert len(set(NAMES)) == len(NAMES)
    tasks = make_tasks("latency, mnli_mm,rte ,latency,cola", REQUEST)
    assert [type(task) for task in tasks] == [Glue, Latency]
    assert tasks[0].asked == ["mnli_mm", "rte", "cola"]


@pytest.mark.parametrize("text", ["sst2,squad", "", "sst2,,rte"])
def test_an_unknown_name_is_refused(text):
    with pytest.raises(
        UserError,
        match=r"unknown task '\w*'; known are glue, .*, word_order, squad_v1, squad_v2, mlm, latency, attention$",
    ):
        make_tasks(text, REQUEST)


def test_table_and_readers_of_results_import_nothing_heavy():
    heavy = ("torch", "transformers", "deepspeed", "datasets", "sklearn", "scipy", "matplotlib")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({heavy!r}))
import pipeline.evaluate, pipeline.report, pipeline.evaluation.tasks
import pipeline.reporting.summaries, pipeline.reporting.tables
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
