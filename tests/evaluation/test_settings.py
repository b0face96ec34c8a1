"""What tasks are fine-tuned with: a default for each, what was asked for before it, and one set for a directory."""

import json
import re
from dataclasses import asdict

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.defaults import default_settings
from pipeline.evaluation.glue.tasks import GLUE_TASKS
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.squad.questions import VERSIONS
from pipeline.evaluation.store import ResultStore
from pipeline.evaluation.task import AskedSettings, Settings
from tests.support import ROOT

NOTHING = AskedSettings()
ALL = AskedSettings(3.0, (32,), (3e-5,))


WIDTHS = (128, 256, 384, 576, 577)
"""The widest of each class."""


def test_every_task_has_a_default_and_narrow_models_a_higher_rate():
    assert default_settings("mrpc", 384, 128) == Settings(5.0, 32, 1e-4, 128)
    assert default_settings("mrpc", 257, 128) == default_settings("mrpc", 384, 128)
    assert default_settings("stsb", 108, 128) == Settings(10.0, 32, 3e-4, 128)
    assert default_settings("stsb", 192, 128) == Settings(10.0, 32, 1e-4, 128)
    assert default_settings("sst2", 192, 64) == Settings(3.0, 32, 1e-4, 64)
    assert default_settings("mnli", 516, 128).learning_rate == 5e-5
    for name in GLUE_TASKS:
        defaults = [default_settings(name, width, 128) for width in WIDTHS]
        rates, epochs = [each.learning_rate for each in defaults], [each.epochs for each in defaults]
        assert rates == sorted(rates, reverse=True) and epochs == sorted(epochs, reverse=True)
        assert 1e-4 <= rates[0] <= 3e-4 and rates[-1] == 3e-5


def test_the_documents_table_is_what_is_used():
    text = (ROOT / "docs" / "formats.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9_, ]+) \| (.* x .*) \|$", text, re.MULTILINE)
    stated = {name: cells for names, cells in rows for name in names.split(", ")}
    used = {}
    for name in (*GLUE_TASKS, *VERSIONS):
        defaults = [default_settings(name, width, 128) for width in WIDTHS]
        assert {each.batch_size for each in defaults} == {32}
        used[name] = [(each.epochs, each.learning_rate) for each in defaults]
    assert {n: [tuple(map(float, c.split(" x "))) for c in cells.split(" | ")] for n, cells in stated.items()} == used


def test_what_was_asked_for_wins():
    default = Settings(4.0, 32, 2e-4, 128)
    assert NOTHING.over(default) == default
    assert AskedSettings(batch_sizes=(8,), max_length=64).over(default) == Settings(4.0, 8, 2e-4, 64)
    assert ALL.over(default) == Settings(3.0, 32, 3e-5, 128)


def test_a_directory_belongs_to_one_set(tmp_path):
    def store(asked):
        return ResultStore(tmp_path / "out", tmp_path / "model", "0", asked.record())

    def fine_tuning(task, settings):
        return Item(task, 1, entries={task: {"data": "full", "data_sha256": "0"}}, settings=asdict(settings))

    first, mrpc = store(NOTHING), fine_tuning("mrpc", default_settings("mrpc", 384, 128))
    first.plan(mrpc)
    first.open(1.0)
    first.finish(mrpc, Outcome({"mrpc": {"f1": {1: 0.5}}}), {"seconds": 1.0})
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["settings"]["epochs"] is None and found["settings"]["max_length"] == 128
    assert found["settings"]["threads"] == 1 and found["settings"]["precision"] == "fp32"
    shape = {"epochs": 5.0, "batch_size": 32, "learning_rate": 1e-4, "max_length": 128, "precision": "fp32"}
    assert found["task_settings"] == {"mrpc": shape}
    again = store(NOTHING)
    again.plan(mrpc)
    again.plan(fine_tuning("rte", default_settings("rte", 384, 128)))
    with pytest.raises(UserError, match="its results for mrpc are of other hyper-parameters"):
        again.plan(fine_tuning("mrpc", Settings(3.0, 32, 2e-4, 128)))  # the default of another version
    with pytest.raises(UserError, match="other hyper-parameters"):
        store(ALL)


def test_several_values_are_a_grid():
    with pytest.raises(UserError, match="--learning-rate: several values are a grid"):
        AskedSettings(learning_rates=(1e-4, 2e-4))
    default = Settings(4.0, 32, 2e-4, 128)
    points = AskedSettings(learning_rates=(1e-4, 3e-5), grid="dev").points(default)
    assert list(points) == ["lr0.0001_b16", "lr0.0001_b32", "lr3e-05_b16", "lr3e-05_b32"]
    assert points["lr3e-05_b16"] == Settings(4.0, 16, 3e-5, 128)
    assert len(AskedSettings(grid="split").points(default)) == 8
