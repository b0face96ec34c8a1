"""Blank lines in GLUE files: at the end they are nothing, elsewhere they are a mistake with a line number."""

from types import SimpleNamespace

import pytest

from pipeline.errors import DataError
from pipeline.evaluation import estimate
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.run import Glue
from pipeline.evaluation.glue.tasks import GLUE_TASKS
from pipeline.evaluation.task import AskedSettings, Request

MODEL = SimpleNamespace(config=SimpleNamespace(hidden_size=16))
ENDINGS = [b"\n", b"\r\n", b"\n\n\n", b"\r\n\r\n", b" \n", b"\t\n", b"  "]


def write(root, name, stem, lines):
    path = root / GLUE_TASKS[name].folder / stem
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(line.encode() + b"\n" for line in lines))
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_blank_lines_at_the_end_change_nothing(tmp_path, ending):
    files = [
        write(tmp_path, "sst2", f"{stem}.tsv", ["sentence\tlabel", "a film\t1", "no\t0"]) for stem in ("train", "dev")
    ]
    files += [
        write(tmp_path, "cola", f"{stem}.tsv", ["x\t1\t\tA bird.", "x\t0\t*\tBird a."]) for stem in ("train", "dev")
    ]
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0", "torn"]
    files += [
        write(tmp_path, "qqp", "train.tsv", rows),
        write(tmp_path, "qqp", "dev.tsv", [rows[0], "0\t1\t2\tA?\tB?\t1"]),
    ]
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    original = [f"{i % 2}\t{i}\t{i + 1}\tA {i}\tB {i}" for i in range(3)]
    files += [write(tmp_path, "mrpc", "msr_paraphrase_train.txt", [header, *original])]
    files += [write(tmp_path, "mrpc", "dev_ids.tsv", ["1\t2"])]
    names = ("sst2", "cola", "qqp", "mrpc")
    before = [load_task(GLUE_TASKS[name], str(tmp_path)) for name in names]
    for path in files:
        path.write_bytes(path.read_bytes() + ending)
    assert [load_task(GLUE_TASKS[name], str(tmp_path)) for name in names] == before
    assert before[2].train.notes == ("1 broken rows skipped",)


@pytest.mark.parametrize("blank", ["", "\r", " "])
def test_a_blank_line_between_rows_is_refused_with_its_line(tmp_path, blank):
    write(tmp_path, "sst2", "train.tsv", ["sentence\tlabel", "a film\t1", blank, blank, "no\t0", ""])
    with pytest.raises(DataError, match=r"train\.tsv, line 3: 1 columns where 2 were expected$"):
        load_task(GLUE_TASKS["sst2"], str(tmp_path))


def test_a_file_of_blank_lines_has_no_rows(tmp_path):
    write(tmp_path, "cola", "train.tsv", ["", ""])
    with pytest.raises(DataError, match=r"there are no rows in it$"):
        load_task(GLUE_TASKS["cola"], str(tmp_path))


def glue(asked, root, output):
    task = Glue(asked, Request(root / "model", str(root), output, [1], AskedSettings()))
    return next(task.check(MODEL))


def test_a_dev_set_that_is_all_in_train_is_refused(tmp_path):
    rows = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tWhy?\tHow?\t0"]
    for stem in ("train.tsv", "dev.tsv"):
        write(tmp_path, "qqp", stem, rows)
    with pytest.raises(DataError, match=r"^qqp: no rows of dev\.tsv are left"):
        glue(["qqp"], tmp_path, tmp_path / "out")


def test_only_the_missing_second_set_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "forward_flops", lambda rows, model, length: 1.0)
    for stem in ("train.tsv", "dev_matched.tsv"):
        write(tmp_path, "mnli", stem, ["sentence1\tsentence2\tgold_label", "A\tB\tneutral"])
    assert glue(["mnli"], tmp_path, tmp_path / "out").missing.keys() == {"mnli_mm"}
    with pytest.raises(DataError, match="dev_mismatched"):
        glue(["mnli_mm"], tmp_path, tmp_path / "out")
