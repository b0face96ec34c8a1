"""A metric that is undefined is 0.0 in results.json and says so wherever a user reads it."""

import json

import pytest

from pipeline.evaluation.glue.average import glue_average
from pipeline.evaluation.glue.tasks import GLUE, GLUE_TASKS
from pipeline.evaluation.items import Item, Outcome
from pipeline.evaluation.metrics import UNDEFINED, compute
from pipeline.evaluation.results import Results
from pipeline.evaluation.store import ResultStore
from pipeline.evaluation.table import format_table
from pipeline.reporting.summaries import EvaluationSummary
from pipeline.reporting.tables import evaluation_table
from pipeline.shapes import BertShape


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path / "out", tmp_path / "model", "0", {}, averages={"glue_average": glue_average})


def score(store, name, seeds):
    """Predictions of a name by seed, against labels that alternate."""
    items = []
    for seed, predictions in seeds.items():
        item = Item(name, seed, entries={name: {"data": "full", "data_sha256": "0"}})
        labels = [i % 2 for i in range(len(predictions))]
        values = {metric: {seed: compute(metric, predictions, labels)} for metric in GLUE_TASKS[name].metrics}
        store.plan(item)
        store.open(1.0)
        store.finish(item, Outcome({name: values}), {"seconds": 1.0})
        items.append(item)
    return items


@pytest.mark.parametrize(
    ("name", "constant", "metrics"),
    [("stsb", [2.5] * 6, ("pearson", "spearman")), ("cola", [1] * 6, ("matthews",)), ("cola", [0] * 6, ("matthews",))],
)
def test_constant_predictions(store, capsys, tmp_path, name, constant, metrics):
    for item in score(store, name, {1: constant, 2: [0, 1, 0, 1, 0, 0]}):
        store.say(item)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "  " + "  ".join([name, *(f"{metric} {UNDEFINED}" for metric in metrics)])
    assert UNDEFINED not in second
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"][name]
    for metric in metrics:
        assert entry[metric]["seeds"]["1"] == 0.0 and entry[metric]["undefined"] == ["1"]
        assert entry[metric]["mean"] == entry[metric]["seeds"]["2"] / 2 > 0
    assert format_table(store).count(f"(seed 1: {UNDEFINED})") == len(metrics)


def test_all_seeds_undefined_and_none(store):
    score(store, "stsb", {1: [1.0] * 4, 2: [2.0] * 4})
    score(store, "mrpc", {1: [1, 0, 1, 0], 2: [1, 1, 1, 1]})  # wrong or constant, but f1 and accuracy are defined
    table = format_table(store)
    assert table.count(UNDEFINED) == 2 and "0.0000" not in table.split("stsb")[-1]
    assert all("undefined" not in summary for summary in store.scores("mrpc").values())


def test_the_average_and_the_report_say_it(store, tmp_path):
    for name in GLUE:
        score(store, name, {1: [0.0, 1.0, 0.0, 1.0] if name == "stsb" else [0, 1, 0, 1]})
    assert "undefined" not in format_table(store)
    score(store, "cola", {1: [1, 1, 1, 1]})
    assert "a score in it is undefined and counts as 0" in format_table(store).splitlines()[-1]
    assert store.glue_average["mean"] == pytest.approx(7 / 8)

    shape = BertShape(2, 16, 2, 64, vocab_size=100)
    summary = EvaluationSummary("student", tmp_path / "out", shape, Results.read(tmp_path / "out"), {})
    assert summary.numbers()["scores"]["cola matthews"] == {"mean": 0.0, "std": 0.0, "seeds": 1, "undefined": 1}
    assert summary.numbers()["scores"]["sst2 accuracy"] == {"mean": 1.0, "std": 0.0, "seeds": 1}
    assert evaluation_table([summary]).count(UNDEFINED) == 1
    score(store, "cola", {2: [0, 1, 0, 1]})
    summary = EvaluationSummary("student", tmp_path / "out", shape, Results.read(tmp_path / "out"), {})
    assert f"0.500 ± 0.707 (1 of 2 {UNDEFINED})" in evaluation_table([summary])
