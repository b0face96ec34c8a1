"""Who is who in a report: students get a sentence each, controls are named as what they are; attention and remarks."""

import json

from pipeline.reporting.comparison import models_of
from pipeline.reporting.html import page
from pipeline.reporting.roles import roles_of
from pipeline.reporting.summaries import EvaluationSummary, RunSummary
from pipeline.reporting.tables import markdown
from pipeline.reporting.verdict import controls, verdicts
from tests.reporting.demo_records import write_demo

MADE_WITH = {"machine": "a machine", "commit": "abc123"}


def read(runs, evaluations):
    return [RunSummary.read(path) for path in runs], [EvaluationSummary.read(path) for path in evaluations]


def roles(runs, evaluations):
    return roles_of(models_of(evaluations), runs)


def change(evaluation, tasks):
    path = evaluation / "results.json"
    results = json.loads(path.read_text())
    results["tasks"] |= tasks
    path.write_text(json.dumps(results))


def test_in_whatever_order_the_student_is_the_one_whose_compactors_learn(tmp_path):
    runs, evaluations = read(*write_demo(tmp_path))
    for ordered in (sorted(evaluations, key=lambda e: e.name), sorted(evaluations, key=lambda e: e.name, reverse=True)):
        # The recipes are read where the runs are, too, if the runs are not among what is shown.
        for shown in (runs, []):
            found = roles(shown, ordered)
            assert [(student.name, teacher.name) for student, teacher in found.students] == [("student", "teacher")]
            assert {control.name for control in found.controls} == {"continued", "slice", "scratch"}


def test_a_control_is_named_as_what_it_is(tmp_path):
    runs, evaluations = read(*write_demo(tmp_path))
    said = {line.partition(" ")[0]: line for line in controls(roles(runs, evaluations))}
    assert said["continued"] == "continued is a control (the teacher, trained on as it is)."
    assert said["slice"] == (
        "slice is a control (a slice of the teacher, trained without compactors); student is better on mlm heldout and "
        "mlm prose and is equal or within noise on word_order."
    )
    assert said["scratch"].startswith("scratch is a control (trained from scratch); student is better on ")
    text = page(runs, evaluations, MADE_WITH)
    assert "<td>control: trained from scratch</td>" in text and "<td>student by WID</td>" in text


def test_every_student_has_a_sentence(tmp_path):
    directories, evaluations = write_demo(tmp_path)
    for directory in directories:  # with learning compactors the slice would be a second student
        recipe = directory / "config.yaml"
        recipe.write_text(recipe.read_text().replace("compactor_lr: 0.0", "compactor_lr: 0.001"))
    found = roles(*read(directories, evaluations))
    lines = verdicts(found, 5, 4)
    assert len(lines) == 2 and all(line.startswith("Compressed from teacher ") for line in lines)
    assert {control.name for control in found.controls} == {"continued", "scratch"}
    assert page(*read(directories, evaluations), MADE_WITH).count('<p class="verdict">') == 2


def test_a_length_beyond_the_trained_one_is_marked(tmp_path):
    directories, evaluations = write_demo(tmp_path)
    score = {"mean": 0.5, "std": 0.0, "seeds": {"1": 0.5}}
    marked = {"data": "full", "f1": score, "max_length": 384, "trained_length": 128}
    change(evaluations[2], {"squad_v1": marked})
    read_ = read(directories, evaluations)
    assert "all official rows; 384 tokens, trained with 128" in page(*read_, MADE_WITH)
    assert "\n- student, squad_v1: 384 tokens, trained with 128\n" in markdown(*read_)
    assert read_[1][2].numbers()["remarks"] == {"squad_v1": "384 tokens, trained with 128"}


def test_attention_has_a_table_with_its_verdict(tmp_path):
    directories, evaluations = write_demo(tmp_path)
    entry = {"data": "32 windows", "js": {"mean": 0.125, "std": 0.0, "seeds": {"0": 0.125}}}
    said = {**entry, "verdict": "closer to the teacher than <it>"}
    change(evaluations[2], {"attention prose": said, "attention prose scratch": entry})
    read_ = read(directories, evaluations)
    text = page(*read_, MADE_WITH)
    assert "<caption>attention prose, student<small>closer to the teacher than &lt;it&gt;</small></caption>" in text
    assert text.count("<td>0.1250</td>") == 2 and "control: trained from scratch</th><td>0.1250" in text
    table = markdown(*read_)
    scores = next(line for line in table.splitlines() if "in the encoder" in line)
    assert "attention" not in scores and "- student, attention prose: closer to the teacher than <it>" in table
