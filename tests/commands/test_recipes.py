"""The recipes for BERT-base: each loads, becomes the student its name says, and has the published hyper-parameters."""

import pytest

from pipeline.recipe import Recipe, load_recipe
from pipeline.shapes import BertShape
from pipeline.teacher_files import resolve_student
from tests.support import ROOT

BERT_BASE = BertShape(layers=12, hidden=768, heads=12, intermediate=3072, vocab_size=30522)
# Millions of parameters without pooler and MLM head, heads, head size.
STUDENTS = {
    "bert_base_to_11m": (11.3, 12, 16),
    "bert_base_to_11m_head": (11.3, 3, 64),
    "bert_base_to_55m": (54.4, 12, 43),
    "bert_base_to_55m_head": (53.7, 8, 64),
}
FAST = {"selection": "taylor", "decay": "anneal", "decay_steps": 500}


def recipe(name: str) -> Recipe:
    return load_recipe(ROOT / "recipes" / f"{name}.yaml", [])


def test_no_recipe_for_bert_base_is_left_out():
    found = {path.stem for path in (ROOT / "recipes").glob("*bert_base_to_*.yaml")}
    assert found == {*STUDENTS, *(f"fast_{name}" for name in STUDENTS)}


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("prefix", ["", "fast_"])
def test_the_student_is_the_one_in_the_name(prefix, name):
    millions, heads, head_size = STUDENTS[name]
    student = resolve_student(recipe(prefix + name), BERT_BASE)
    assert round(student.parameters / 1e6, 1) == millions
    assert (student.heads, student.head_size) == (heads, head_size)
    assert abs(student.parameters / 1e6 - int(name.split("_to_")[1].split("m")[0])) < 1.5


@pytest.mark.parametrize("name", STUDENTS)
def test_hyper_parameters_are_the_published_ones(name):
    published = recipe(name)
    train, compaction, data = published.train, published.compaction, published.data
    assert published.method == "wid" and published.teacher.path == "google-bert/bert-base-uncased"
    assert (data.seq_len, data.mask_fraction, data.whole_word) == (128, 0.15, False)
    assert (train.steps, train.global_batch, train.lr, train.compactor_lr) == (400_000, 960, 1e-6, 5e-5)
    assert (train.warmup, train.weight_decay, train.dropout) == (0.01, 0.01, 0.1)
    assert (compaction.selection, compaction.decay) == ("norm", "penalty")
    assert compaction.interval_steps == 500 and compaction.increments == 16
    assert compaction.last_selection_step == 8_000


@pytest.mark.parametrize("name", STUDENTS)
def test_fast_differs_in_the_schedule_alone(name):
    published, fast = recipe(name).to_dict(), recipe(f"fast_{name}").to_dict()
    assert fast == {**published, "compaction": {**published["compaction"], **FAST}}
    assert recipe(f"fast_{name}").compaction.end_step < recipe(name).compaction.end_step


def test_the_cluster_recipe_is_the_fast_one_with_text_and_tasks():
    cluster = recipe("cluster_11m")
    assert cluster.to_dict() == recipe("fast_bert_base_to_11m").to_dict()
    assert len(cluster.sources.specs) == 2 and cluster.evaluation.tasks == "glue"
