"""GLUE files in each official layout, what a score is called, the metrics, and the real files where they are."""

import os
from pathlib import Path

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.glue import hub as glue_hub
from pipeline.evaluation.glue.average import glue_average
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.tasks import GLUE, GLUE_TASKS, WITH_WNLI, trained_tasks
from pipeline.evaluation.metrics import compute, summarise
from pipeline.evaluation.results import Results
from pipeline.evaluation.table import format_table
from tests.support import ROOT

REAL = Path(os.environ.get("WID_SHARED_DATA", ROOT.parent / "shared" / "data")) / "glue"

MNLI_HEADER = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
)
STSB_HEADER = "index genre filename year old_index source1 source2 sentence1 sentence2 score"

# task: (header, row, texts, label id) in the layout of the official release
LAYOUTS = {
    "cola": (None, 'gj04\t0\t*\tHe said "no.', ('He said "no.',), 0),
    "sst2": ("sentence\tlabel", "a fine film \t1", ("a fine film ",), 1),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tOne "quote .\tTwo .',
        ('One "quote .', "Two ."),
        1,
    ),
    "stsb": (
        STSB_HEADER.replace(" ", "\t"),
        "0\tg\tf\t2012\t1\tn\tn\tA man.\tA dog.\t2.600",
        ("A man.", "A dog."),
        2.6,
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "5\t1\t2\tWhy?\tHow?\t0", ("Why?", "How?"), 0),
    "mnli": (
        MNLI_HEADER.replace(" ", "\t") + "\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t1n\tfiction\t( a )\t( b )\t(X a)\t(X b)\tA a\u2028b.\tB.\tneutral\tcontradiction",
        ("A a\u2028b.", "B."),
        2,
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment", ("Who?", "He."), 1),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\tentailment", ("A.", "B."), 0),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", ("A.", "B."), 1),
}


def write_task(root, name, lines, stem="train", newline="\n"):
    header = LAYOUTS[name][0]
    path = root / GLUE_TASKS[name].folder / f"{stem}.tsv"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((newline.join([*([header] if header else []), *lines]) + newline).encode("utf-8"))
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("name", list(LAYOUTS))
def test_reads_the_official_layout(tmp_path, name, newline):
    _, row, texts, label = LAYOUTS[name]
    for stem in ("train", *(dev.stem for dev in GLUE_TASKS[name].dev_sets)):
        write_task(tmp_path, name, [row, row], stem, newline)
    data = load_task(GLUE_TASKS[name], str(tmp_path))
    assert data.missing == {} and set(data.dev) == {dev.name for dev in GLUE_TASKS[name].dev_sets}
    assert [(row.index, row.texts, row.label) for row in data.train.examples] == [(0, texts, label), (1, texts, label)]
    if name == "qqp":  # both dev pairs are trained on
        assert data.dev["qqp"].examples == []
    else:
        assert data.dev[name].examples == data.train.examples


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("sst2", "no label", "train.tsv, line 3: 1 columns where 2 were expected"),
        ("sst2", "two\ttabs\t1", "train.tsv, line 3: 3 columns where 2 were expected"),
        ("rte", "1\tA.\tB.\tperhaps", "train.tsv, line 3: label 'perhaps' where one of entailment, not_entailment"),
        ("stsb", LAYOUTS["stsb"][1].replace("2.600", "nan"), "train.tsv, line 3: label 'nan' where a number"),
        ("cola", "gj04\t1\tbare", "train.tsv, line 2: 3 columns where 4 were expected"),
    ],
)
def test_malformed_row_names_file_and_line(tmp_path, name, row, expected):
    write_task(tmp_path, name, [LAYOUTS[name][1], row])
    with pytest.raises(DataError, match=expected):
        load_task(GLUE_TASKS[name], str(tmp_path))


def test_other_bad_files(tmp_path):
    with pytest.raises(DataError, match="RTE: there is no such folder"):
        load_task(GLUE_TASKS["rte"], str(tmp_path))
    path = write_task(tmp_path, "rte", [])
    with pytest.raises(DataError, match="no rows"):
        load_task(GLUE_TASKS["rte"], str(tmp_path))
    path.write_bytes(b"index\tsentence1\tsentence2\tlabel\n0\tA\xff.\tB.\tentailment\n")
    with pytest.raises(DataError, match="line 2: byte 3 of the line is not utf-8"):
        load_task(GLUE_TASKS["rte"], str(tmp_path))
    path.write_text("index\tpremise\n0\tA\n")
    with pytest.raises(DataError, match="line 1: the header has no column 'sentence1'"):
        load_task(GLUE_TASKS["rte"], str(tmp_path))
    write_task(tmp_path, "rte", [LAYOUTS["rte"][1]])
    with pytest.raises(DataError, match=r"dev\.tsv: there is no such file"):
        load_task(GLUE_TASKS["rte"], str(tmp_path))


def test_mrpc_from_the_original_file(tmp_path):
    path = write_task(tmp_path, "mrpc", [f"{i % 2}\t{i}\t{i + 1}\tA {i}\tB {i}" for i in range(6)], newline="\r\n")
    path.rename(path.with_name("msr_paraphrase_train.txt"))
    with pytest.raises(DataError, match=r"dev_ids\.tsv"):
        load_task(GLUE_TASKS["mrpc"], str(tmp_path))
    path.with_name("dev_ids.tsv").write_text("1\t2\n4\t5\n9\t9\n")
    data = load_task(GLUE_TASKS["mrpc"], str(tmp_path))
    assert [row.texts[0] for row in data.dev["mrpc"].examples] == ["A 1", "A 4"]
    assert [row.texts[0] for row in data.train.examples] == ["A 0", "A 2", "A 3", "A 5"]


def test_qqp_broken_rows_and_overlap(tmp_path):
    rows = [f"{i}\t1\t2\tWhy {i}?\tHow {i}?\t{i % 2}" for i in range(5)]
    write_task(tmp_path, "qqp", [*rows, "9\t1\t2\ttorn", "apart\tHow?\t0"])
    write_task(tmp_path, "qqp", ["0\t1\t2\tHow 3?\tWhy 3?\t1", "1\t1\t2\tNew?\tNewer?\t0"], "partition_dev10k")
    data = load_task(GLUE_TASKS["qqp"], str(tmp_path))
    assert [(row.index, row.texts) for row in data.dev["qqp"].examples] == [(1, ("New?", "Newer?"))]
    assert data.describe("qqp") == (
        "train: train.tsv, 5 rows (official: 363,846), 2 broken rows skipped; "
        "dev: partition_dev10k.tsv, 1 rows (official: 40,430), 1 pairs that are also in train left out"
    )
    with pytest.raises(DataError, match="line 57: 1 columns where 6"):
        write_task(tmp_path, "qqp", [*rows, *(["torn"] * 51)])
        load_task(GLUE_TASKS["qqp"], str(tmp_path))


def test_full_means_official_file_and_official_count(tmp_path):
    rows = [f"{i}\tA {i}.\tB.\t{i % 2}" for i in range(635)]
    write_task(tmp_path, "wnli", rows)
    write_task(tmp_path, "wnli", rows[:71], "dev")
    full = load_task(GLUE_TASKS["wnli"], str(tmp_path))
    assert full.describe("wnli") == "full"
    write_task(tmp_path, "wnli", rows[:70], "dev")
    short = load_task(GLUE_TASKS["wnli"], str(tmp_path))
    assert short.describe("wnli") == "train: full; dev: dev.tsv, 70 rows (official: 71)"
    assert short.fingerprint("wnli") != full.fingerprint("wnli")
    (tmp_path / "WNLI/train.tsv").rename(tmp_path / "WNLI/train_subset1k.tsv")
    subset = load_task(GLUE_TASKS["wnli"], str(tmp_path)).describe("wnli")
    assert subset.startswith("train: train_subset1k.tsv, 635 rows (official: 635)")
    write_task(tmp_path, "wnli", rows, "train_subset2k")
    with pytest.raises(DataError, match=r"train_subset1k\.tsv and train_subset2k\.tsv are there for the train rows"):
        load_task(GLUE_TASKS["wnli"], str(tmp_path))


def test_missing_mismatched_set_is_reported(tmp_path):
    for stem in ("train", "dev_matched"):
        write_task(tmp_path, "mnli", [LAYOUTS["mnli"][1]], stem)
    data = load_task(GLUE_TASKS["mnli"], str(tmp_path))
    assert list(data.dev) == ["mnli"]
    assert data.missing == {"mnli_mm": "MNLI/dev_mismatched.tsv is not in the data directory"}


def test_hub_rows_become_the_same_examples():
    rows = [{"premise": "A.", "hypothesis": "B.", "label": 2, "idx": 0}]
    (example,) = glue_hub.convert(GLUE_TASKS["mnli"], rows, "train").examples
    assert (example.texts, example.label) == (("A.", "B."), 2)
    with pytest.raises(DataError, match="row 0: label -1 is no class"):
        glue_hub.convert(GLUE_TASKS["mnli"], [{**rows[0], "label": -1}], "test")
    score = glue_hub.convert(GLUE_TASKS["stsb"], [{"sentence1": "A", "sentence2": "B", "label": 2.5}], "train")
    assert score.examples[0].label == 2.5


def test_task_lists():
    assert trained_tasks(["glue"]) == list(GLUE)
    assert trained_tasks(["mnli_mm", "rte", "mnli", "rte"]) == ["mnli", "rte"]


def test_metrics_against_hand_computations():
    predictions, labels = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]  # tp 3, fp 1, fn 1, tn 3
    assert compute("accuracy", predictions, labels) == 6 / 8
    assert compute("f1", predictions, labels) == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert compute("matthews", predictions, labels) == pytest.approx((3 * 3 - 1 * 1) / (4 * 4 * 4 * 4) ** 0.5)
    # deviations (-2, -1, 0, 3) and (-3, -1, 1, 3): 16 / sqrt(14 * 20); ranks agree but for nothing
    assert compute("pearson", [1.0, 2.0, 3.0, 6.0], [0.0, 2.0, 4.0, 6.0]) == pytest.approx(16 / 280**0.5)
    assert compute("spearman", [1.0, 2.0, 3.0, 6.0], [0.0, 2.0, 4.0, 6.0]) == pytest.approx(1.0)
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert compute("spearman", [1.0, 2.0, 3.0, 6.0], [0.0, 4.0, 2.0, 6.0]) == pytest.approx(0.8)


def test_metrics_of_a_model_that_learned_nothing():
    for name in ("matthews", "pearson", "spearman"):
        assert compute(name, [1, 1, 1], [1, 0, 1]) is None
        assert compute(name, [1, 0, 1], [1, 1, 1]) is None
    assert compute("f1", [0, 0], [1, 0]) == 0.0
    assert compute("f1", [0, 1], [0, 0]) == 0.0
    assert compute("f1", [0, 0], [0, 0]) is None
    assert compute("pearson", [1e-200, 2e-200, 3e-200], [1.0, 2.0, 3.0]) in (None, pytest.approx(1.0))
    assert compute("matthews", [1, 0, 1, 0], [1, 1, 0, 0]) == 0.0  # defined, and 0


def test_summary_and_average():
    assert summarise({2: 0.5, 1: 0.7}) == {
        "mean": pytest.approx(0.6),
        "std": pytest.approx(0.02**0.5),
        "seeds": {"1": 0.7, "2": 0.5},
    }
    assert summarise({3: 0.5})["std"] == 0.0
    tasks = {
        name: {"data": "full", **{metric: summarise({1: 0.5}) for metric in GLUE_TASKS[name].metrics}} for name in GLUE
    }
    tasks["mnli_mm"] = {"data": "full", "accuracy": summarise({1: 0.9})}
    tasks["mrpc"]["f1"] = summarise({1: 0.7})
    average = glue_average(Results({"tasks": tasks}))
    assert average["mean"] == pytest.approx((6 * 0.5 + 0.7 + 0.6) / 8)
    table = format_table(Results({"tasks": tasks, "not_available": {}, "glue_average": average}))
    assert table.splitlines()[-1].replace("|", "").split() == ["glue", "average", "0.5375", "±", "0.0000", "1"]
    tasks["wnli"] = {"data": "wnli rows", "accuracy": summarise({1: 0.2, 2: 0.3})}
    with_wnli = glue_average(Results({"tasks": tasks}), WITH_WNLI)
    assert with_wnli["seeds"] == {"1": pytest.approx((6 * 0.5 + 0.7 + 0.6 + 0.2) / 9)}
    assert glue_average(Results({"tasks": tasks})) == average
    averages = {"glue_average": average, "glue_average_with_wnli": with_wnli}
    last = format_table(Results({"tasks": tasks, "not_available": {}, **averages})).splitlines()[-2:]
    assert "not all data is full" in last[1] and "not all data is full" not in last[0]
    assert last[1].replace("|", "").split()[:5] == ["glue", "average", "with", "wnli", "0.5000"]
    del tasks["rte"]
    assert glue_average(Results({"tasks": tasks})) is None
    assert glue_average(Results({"tasks": tasks}), WITH_WNLI) is None


REAL_ROWS = {
    "sst2": (67349, 872, "full"),
    "cola": (8551, 1043, "full"),
    "mrpc": (3668, 408, "full"),
    "rte": (2490, 277, "full"),
    "stsb": (5749, 1500, "full"),
    "wnli": (635, 71, "full"),
    "qnli": (9999, 5463, "train: train_subset10k.tsv, 9,999 rows (official: 104,743); dev: full"),
    "mnli": (9999, 9815, "train: train_subset10k.tsv, 9,999 rows (official: 392,702); dev: full"),
    "qqp": (
        9999,
        10000 - 246,
        "train: train_subset10k.tsv, 9,999 rows (official: 363,846); dev: partition_dev10k.tsv, "
        "9,754 rows (official: 40,430), 246 pairs that are also in train left out",
    ),
}


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real GLUE files in {REAL} (set WID_SHARED_DATA)")
@pytest.mark.parametrize("name", list(REAL_ROWS))
def test_real_files(name):
    train, dev, description = REAL_ROWS[name]
    data = load_task(GLUE_TASKS[name], str(REAL))
    assert (len(data.train.examples), len(data.dev[name].examples)) == (train, dev)
    assert data.describe(name) == description
    assert len({row.label for row in data.train.examples}) == (len(GLUE_TASKS[name].classes) or 140)
    assert ("mnli_mm" in data.missing) == (name == "mnli")
