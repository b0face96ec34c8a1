"""What the report's page says of models beside each other: noise, trade-offs, the verdict."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from pipeline.reporting.comparison import (
    Score,
    distinct_names,
    frontier,
    lower_is_better,
    models_of,
    pairs_within_noise,
)
from pipeline.reporting.labels import Box, place
from pipeline.reporting.roles import roles_of
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.reporting.verdict import caveat, verdicts
from tests.reporting.demo_records import write_demo
from tests.reporting.test_report import write_evaluation


def test_within_noise_is_a_difference_below_the_combined_deviation():
    # The deviations of 0.03 and 0.04 make 0.05.
    assert Score(0.80, 0.03, 3).within_noise(Score(0.8499, 0.04, 3))
    assert Score(0.8499, 0.04, 3).within_noise(Score(0.80, 0.03, 3))
    assert not Score(0.80, 0.03, 3).within_noise(Score(0.8501, 0.04, 3))


@pytest.mark.parametrize(("one", "other"), [(1, 3), (3, 1), (1, 1)])
def test_one_seed_says_nothing_of_noise(one, other):
    assert not Score(0.80, 0.03, one).within_noise(Score(0.80, 0.04, other))


@pytest.mark.parametrize(
    ("lower", "expected"),
    # Point 1 costs as much as 0 and is worse; 3 costs more than 2 and is no better.
    [(True, [0, 2]), (False, [1, 3])],
)
def test_the_frontier(lower, expected):
    assert frontier([(1.0, 5.0), (1.0, 6.0), (2.0, 4.0), (3.0, 7.0)], lower) == expected


def test_equal_quality_at_more_cost_is_beaten():
    assert frontier([(2.0, 0.5), (1.0, 0.5)], lower=False) == [1]


def test_which_metrics_are_better_when_lower():
    assert all(map(lower_is_better, ("loss", "milliseconds", "js", "js_divergence", "relation_q")))
    assert not any(map(lower_is_better, ("accuracy", "f1", "spearman", "exact")))


def test_names_take_as_many_parts_as_tell_them_apart():
    paths = [Path("a/x/student"), Path("b/x/student"), Path("b/teacher"), Path("a/x/student")]
    assert list(distinct_names(paths).values()) == ["a/x/student", "b/x/student", "teacher"]


def test_names_in_a_chart_stand_beside_their_points_and_over_no_other():
    inside = Box(0, 0, 300, 200)
    alone = place([(50, 100), (250, 20)], [60, 60], 12, [], inside)
    assert alone == [Box(58, 94, 118, 106), Box(182, 14, 242, 26)]
    # Nine names of points that almost coincide, at an edge, and two on the other side at the same height.
    points = [(20 + n / 10, 195 - n / 5) for n in range(9)] + [(280, 195), (280, 190)]
    marks = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    boxes = place(points, [130] * len(points), 12, marks, inside)
    assert all(box.within(inside) for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.overlaps(mark) for box in boxes for mark in marks)


def test_a_name_gives_way_to_a_bar():
    inside, bar = Box(0, 0, 300, 200), Box(30, 99, 90, 101)
    (box,) = place([(60, 100)], [50], 12, [bar], inside)
    assert not box.overlaps(bar) and box.within(inside)


def read(runs, evaluations):
    return models_of([EvaluationSummary.read(path) for path in evaluations]), [RunSummary.read(path) for path in runs]


def verdict(models, runs):
    return "\n".join(verdicts(roles_of(models, runs), len(models), len(runs)))


def test_the_demos_verdict(tmp_path):
    models, runs = read(*write_demo(tmp_path))
    assert verdict(models, runs) == (
        "Compressed from teacher (4 layers x 192, 2.66 M parameters) to student (4 layers x 108, 1.06 M parameters) by "
        "WID: the student has 32 % of the encoder's parameters, takes 57 % of the time (5.4 of 9.5 ms), is better on "
        "mlm heldout (loss 2.724 against 3.349) and is worse on word_order (accuracy 0.867 against 0.896) and "
        "mlm prose (loss 5.187 against 3.148)."
    )
    assert pairs_within_noise(models, "word_order", "accuracy") == {
        "teacher": ["continued"],
        "continued": ["teacher"],
        "student": ["slice"],
        "slice": ["student"],
        "scratch": [],
    }
    assert not any(pairs_within_noise(models, "mlm heldout", "loss").values())
    assert caveat(roles_of(models, runs)).startswith("One measurement: mlm heldout, mlm prose. ")


def test_the_teacher_is_the_one_of_the_students_run_though_a_larger_one_was_evaluated(tmp_path):
    runs, evaluations = write_demo(tmp_path / "demo")
    larger = write_evaluation(tmp_path / "larger", 1024, 1.0, {"1": 0.8, "2": 0.8})
    models, runs = read(runs, [larger, *evaluations])
    assert verdict(models, runs).startswith("Compressed from teacher ")
    assert verdict(models, []).startswith("Compressed from teacher ")  # the recipe is where it was
    shutil.rmtree(tmp_path / "demo" / "runs")
    models, _ = read([], [larger, *evaluations])
    assert verdict(models, []).startswith("Compressed from larger_model ")


def test_many_tasks_are_named_without_their_numbers(tmp_path):
    teacher = write_evaluation(tmp_path / "teacher", 32, 3.5, {"1": 0.79, "2": 0.81})
    student = write_evaluation(tmp_path / "student", 16, 4.0, {"1": 0.79, "2": 0.81})
    for directory, mean in ((teacher, 0.9), (student, 0.5)):
        results = json.loads((directory / "results.json").read_text())
        score = {"mean": mean, "std": 0.0, "seeds": {"1": mean}}
        results["glue_average"] = {"mean": mean, "std": 0.01, "seeds": {"1": mean, "2": mean}}
        results["tasks"] |= {task: {"data": "full", "accuracy": score} for task in ("rte", "mrpc", "qnli")}
        (directory / "results.json").write_text(json.dumps(results))
    said = verdict(*read([], [teacher, student]))
    assert said.endswith(
        "is equal or within noise on sst2 and is worse on mlm own, mlm other, rte, mrpc, qnli and GLUE average."
    )
    assert said.startswith("Compressed from teacher_model (2 layers x 32, ")


def test_without_two_models_there_is_nothing_to_compare(tmp_path):
    alone = write_evaluation(tmp_path / "alone", 16, 4.0, {"1": 0.8})
    assert "no student and teacher" in verdict(*read([], [alone]))
    assert verdict([], []) == "This page shows 0 models and 0 runs, among which are no student and teacher to compare."
