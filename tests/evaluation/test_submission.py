"""The zip for the GLUE server, read back by a checker that knows it from another source; and mixed-up labels."""

import io
import json
import re
import zipfile
from types import SimpleNamespace

import pytest

from pipeline import evaluate
from pipeline.errors import DataError
from pipeline.evaluation import finetune, kept
from pipeline.evaluation.glue import hub
from pipeline.evaluation.glue.submission import TEST_SETS, answers, read_test_sets, write_submission
from pipeline.evaluation.glue.tasks import GLUE, GLUE_TASKS
from tests.evaluation.test_kept import NAMES, make_model
from tests.support.runs import run_main

NLI = ("entailment", "neutral", "contradiction")
ENTAILED = ("entailment", "not_entailment")
BINARY = ("0", "1")
OFFICIAL = {
    "AX.tsv": (1104, NLI),
    "CoLA.tsv": (1063, BINARY),
    "MNLI-m.tsv": (9796, NLI),
    "MNLI-mm.tsv": (9847, NLI),
    "MRPC.tsv": (1725, BINARY),
    "QNLI.tsv": (5463, ENTAILED),
    "QQP.tsv": (390965, BINARY),
    "RTE.tsv": (3000, ENTAILED),
    "SST-2.tsv": (1821, BINARY),
    "STS-B.tsv": (1379, None),
    "WNLI.tsv": (146, BINARY),
}
"""What the server expects: rows, and the values that a prediction may have; none where it is a number."""

# (file in --data, header, row) of every test set as officially released, but for MNLI and AX, of which only the needed
# columns are here. All of them: texts begin with "first", which is how the predictor below knows that it is given them.
GENERATED = {
    "CoLA": ("CoLA/test", "index\tsentence", '{}\tfirst "one.'),
    "SST-2": ("SST-2/test", "index\tsentence", "{}\tfirst 'one ."),
    "MRPC": ("MRPC/test", "index\t#1 ID\t#2 ID\t#1 String\t#2 String", '{}\t7\t8\tfirst\tsecond "quote'),
    "STS-B": (
        "STS-B/test",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
        "{}\tg\tf\t2012\t7\tn\tn\tfirst\tsecond",
    ),
    "QQP": ("QQP/test", "id\tquestion1\tquestion2", "{}\tfirst\t"),
    "MNLI-m": ("MNLI/test_matched", "index\tgenre\tsentence1\tsentence2", "{}\tg\tfirst\tsecond"),
    "MNLI-mm": ("MNLI/test_mismatched", "index\tgenre\tsentence1\tsentence2", "{}\tg\tfirst\tsecond"),
    "QNLI": ("QNLI/test", "index\tquestion\tsentence", "{}\tfirst\tsecond"),
    "RTE": ("RTE/test", "index\tsentence1\tsentence2", "{}\tfirst\tsecond"),
    "WNLI": ("WNLI/test", "index\tsentence1\tsentence2", "{}\tfirst\tsecond"),
    "AX": ("AX/test", "index\tsentence1\tsentence2", "{}\tfirst\tsecond"),
}


def faults(content):
    """Everything that the GLUE server would not take in a zip."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    if archive.testzip() or sorted(archive.namelist()) != sorted(OFFICIAL):
        return [f"files: {archive.namelist()}"]
    return [fault for name in OFFICIAL for fault in file_faults(name, archive.read(name).decode("ascii"))]


def file_faults(name, text):
    rows, values = OFFICIAL[name]
    header, *lines = text.removesuffix("\n").split("\n")
    cells = [line.split("\t") for line in lines]
    if header != "index\tprediction":
        yield f"{name}: header {header!r}"
    if len(cells) != rows:
        yield f"{name}: {len(cells)} rows"
    if [cell[0] for cell in cells] != [str(number) for number in range(len(cells))]:
        yield f"{name}: indices"
    answers = {cell[1] for cell in cells if len(cell) == 2}
    if any(len(cell) != 2 for cell in cells) or (values and not answers <= set(values)):
        yield f"{name}: values {answers}"
    if not values and not all(re.fullmatch(r"[0-4]\.\d{3}|5\.000", answer) for answer in answers):
        yield f"{name}: numbers {answers}"


def predictions(content, name):
    return {line.split("\t")[1] for line in zipfile.ZipFile(io.BytesIO(content)).read(name).decode().splitlines()[1:]}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All eleven test sets with as many rows as the official ones."""
    root = tmp_path_factory.mktemp("glue")
    for name, (path, header, row) in GENERATED.items():
        file = root / f"{path}.tsv"
        file.parent.mkdir(exist_ok=True)
        lines = [header, *(row.format(index) for index in range(OFFICIAL[f"{name}.tsv"][0]))]
        file.write_text("\n".join(lines) + "\n")
    return root


def test_all_eleven_files_of_a_constant_predictor(full, tmp_path):
    tests, missing = read_test_sets([*GLUE, "wnli"], str(full))
    assert missing == {} and [f"{test.name}.tsv" for test in tests] == [f"{test.name}.tsv" for test in TEST_SETS]

    def constant(test, rows):
        assert all(row.texts[0].startswith("first") for row in rows)
        assert len(rows[0].texts) == len(GLUE_TASKS[test.task].texts)
        return [9.75 if test.task == "stsb" else 1] * len(rows)

    write_submission(tmp_path / "submission.zip", tests, constant)
    content = (tmp_path / "submission.zip").read_bytes()
    assert faults(content) == []
    expected = {name: {values[1] if values else "5.000"} for name, (_, values) in OFFICIAL.items()}
    assert {name: predictions(content, name) for name in OFFICIAL} == expected
    write_submission(tmp_path / "again.zip", tests, constant)
    assert (tmp_path / "again.zip").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("RTE.tsv", "\n2999\tentailment\n", "\n", "2999 rows"),
        ("RTE.tsv", "\n7\tentailment", "\n7\t0", "values"),
        ("RTE.tsv", "\n7\tentailment", "\n7", "values"),
        ("WNLI.tsv", "\n1\t", "\n2\t", "indices"),
        ("AX.tsv", "index", "id", "header"),
        ("STS-B.tsv", "\n7\t0.000", "\n7\t-0.001", "numbers"),
        ("STS-B.tsv", "\n7\t0.000", "\n7\t5.001", "numbers"),
    ],
)
def test_the_checker_finds_faults(name, old, new, fault):
    rows, values = OFFICIAL[name]
    answer = values[0] if values else "0.000"
    sound = "".join(["index\tprediction\n", *(f"{index}\t{answer}\n" for index in range(rows))])
    assert list(file_faults(name, sound)) == [] and sound.count(old) == 1
    assert [found for found in file_faults(name, sound.replace(old, new)) if found.startswith(f"{name}: {fault}")]


def test_the_checker_knows_the_names_of_all_files():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in OFFICIAL:
            archive.writestr(name.replace("AX", "diagnostic"), "")
    assert faults(content.getvalue())[0].startswith("files: ['diagnostic.tsv', ")


def test_answers_are_words_digits_or_a_number_in_range():
    assert answers(GLUE_TASKS["mnli"], [0, 1, 2]) == list(NLI)
    assert answers(GLUE_TASKS["rte"], [1, 0]) == answers(GLUE_TASKS["qnli"], [1, 0]) == list(reversed(ENTAILED))
    assert answers(GLUE_TASKS["wnli"], [0, 1]) == ["0", "1"]  # 1 is entailment in its files, too
    assert answers(GLUE_TASKS["stsb"], [-0.2, 2.34567, 5.3, -1e-9]) == ["0.000", "2.346", "5.000", "0.000"]


def test_what_is_missing_or_has_other_rows(full, tmp_path):
    tests, missing = read_test_sets(["rte"], str(full))
    assert [test.name for test in tests] == ["RTE"] and {test.name for test in missing} == {*GENERATED} - {"RTE"}
    (tmp_path / "MNLI").mkdir()
    matched = tmp_path / "MNLI" / "test_matched.tsv"
    matched.write_bytes((full / "MNLI/test_matched.tsv").read_bytes())
    tests, missing = read_test_sets(["mnli"], str(tmp_path))
    reasons = {test.name: reason for test, reason in missing.items()}
    assert reasons["MNLI-mm"] == "MNLI/test_mismatched.tsv is not in the data directory"
    assert (reasons["AX"], reasons["RTE"]) == ("AX/test.tsv is not in the data directory", "rte was not trained")
    with pytest.raises(DataError, match=r"^--predict-test: --data .* has no test set of cola, such as test\.tsv$"):
        read_test_sets(["cola"], str(tmp_path))
    with matched.open("a") as stream:
        stream.write("9796\tg\tfirst\tsecond\n")
    with pytest.raises(DataError, match=rf"^{matched}: 9,797 rows where the GLUE server expects 9,796$"):
        read_test_sets(["mnli"], str(tmp_path))
    matched.write_text("index\tpremise\n")
    with pytest.raises(DataError, match=r"test_matched\.tsv, line 1: the header has no column 'sentence1'$"):
        read_test_sets(["mnli"], str(tmp_path))


def test_json_lines_and_the_hub_have_the_same_test_rows(monkeypatch, tmp_path):
    rows = [{"sentence1": f"A {i}", "sentence2": "", "label": -1, "idx": i} for i in range(146)]
    (tmp_path / "WNLI").mkdir()
    (tmp_path / "WNLI/test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    ((_, found),) = read_test_sets(["wnli"], str(tmp_path))[0].items()
    assert [row.texts for row in found] == [(f"A {i}", "") for i in range(146)]
    asked = []

    def load(config):
        asked.append(config)
        pair = {"premise": "first", "hypothesis": "second", "label": -1}
        return {test.stem: [pair] * test.rows for test in TEST_SETS if test.hub_config == config}

    monkeypatch.setattr(hub, "_load", load)
    tests, _ = read_test_sets(["mnli"], "hub")
    assert [(test.name, len(rows), rows[0].texts) for test, rows in tests.items()] == [
        (name, OFFICIAL[f"{name}.tsv"][0], ("first", "second")) for name in ("MNLI-m", "MNLI-mm", "AX")
    ]
    assert asked == ["mnli", "mnli", "ax"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Run evaluate.py on MNLI and STS-B without training: labels are predicted by `guess`; -> code, out, err."""
    root = tmp_path / "data"
    for folder, stem, header, label in (
        ("MNLI", "train", "gold_label", lambda i: NAMES[i % 3]),
        ("MNLI", "dev_matched", "gold_label", lambda i: NAMES[i % 3]),
        ("STS-B", "train", "score", lambda i: i % 6),
        ("STS-B", "dev", "score", lambda i: i % 6),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        rows = "".join(f"first {i}\tsecond\t{label(i)}\n" for i in range(500))
        (root / folder / f"{stem}.tsv").write_text(f"sentence1\tsentence2\t{header}\n{rows}")
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(evaluate, "use_one_device", lambda local_rank: None)

    def run(guess, tasks, *more, seeds="5,3"):
        def fine_tune(task, encoder, seed, settings, keep=None):
            if keep:
                keep(SimpleNamespace(config=SimpleNamespace(), save_pretrained=lambda path: None, name=task.name))
            return {name: [guess(label) for label in rows.labels] for name, rows in task.dev.items()}

        monkeypatch.setattr(finetune, "fine_tune", fine_tune)
        options = ["--model", model, "--data", root, "--output", tmp_path / "out", "--max-length", 16]
        return run_main(monkeypatch, evaluate.main, *options, "--tasks", tasks, "--seeds", seeds, *more)

    return run


@pytest.mark.parametrize("shown", [0.248, 0.25])
def test_mixed_up_labels_end_with_3_after_the_results_are_written(command, tmp_path, shown):
    right = iter([*([True] * round(500 * shown)), *([False] * 500)] * 2)
    code, out, err = command(lambda label: label if next(right) else (label + 1) % 3, "mnli", seeds="5")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["complete"] and results["tasks"]["mnli"]["accuracy"]["mean"] == shown and "mnli accuracy" in out
    if shown < 0.25:
        assert (code, err) == (
            3,
            "error: mnli, seed 5: accuracy 0.248 on 500 rows is far below chance: compare the label order of train.tsv "
            "and dev_matched.tsv, entailment, neutral, contradiction was expected in both\n",
        )
    else:
        assert (code, err) == (0, "")


def test_few_rows_may_be_that_bad_by_chance(command, tmp_path):
    dev = tmp_path / "data/MNLI/dev_matched.tsv"
    dev.write_text("\n".join(dev.read_text().splitlines()[:500]) + "\n")
    assert command(lambda label: (label + 1) % 3, "mnli", seeds="5")[0] == 0


def test_predict_test_takes_the_models_of_the_first_seed(command, monkeypatch, full, tmp_path):
    for name in ("STS-B", "MNLI"):
        for path in (full / name).iterdir():
            if path.stem != "test_mismatched":
                (tmp_path / "data" / name / path.name).write_bytes(path.read_bytes())
    loaded = []
    monkeypatch.setattr(kept, "load_kept", lambda path: loaded.append(path.name) or path.name)
    monkeypatch.setattr(finetune, "predict", lambda model, rows, *more: [2 if model == "mnli_5" else 2.5] * len(rows))
    code, out, err = command(lambda label: label, "mnli,stsb", "--predict-test")
    assert (code, err) == (0, ""), err
    content = (tmp_path / "out/submission.zip").read_bytes()
    assert faults(content) == [] and loaded == ["stsb_5", "mnli_5"]
    assert predictions(content, "MNLI-m.tsv") == {"contradiction"} and predictions(content, "STS-B.tsv") == {"2.500"}
    submission = json.loads((tmp_path / "out/results.json").read_text())["submission"]
    assert submission["seed"] == 5 and set(submission["constant"]) == {*OFFICIAL} - {"MNLI-m.tsv", "STS-B.tsv"}
    assert submission["constant"]["MNLI-mm.tsv"] == "MNLI/test_mismatched.tsv is not in the data directory"
    assert submission["constant"]["QQP.tsv"] == "qqp was not trained"
    assert "MNLI-mm.tsv: the same answer in all rows, MNLI/test_mismatched.tsv is not in" in out
    assert sorted(path.name for path in (tmp_path / "out/models").iterdir()) == ["mnli_3", "mnli_5", "stsb_3", "stsb_5"]

    assert command(None, "mnli,stsb", "--predict-test")[0] == 0 and len(loaded) == 2  # it is there
    code, out, err = command(None, "mnli,stsb", "--predict-test", seeds="3")
    assert (code, err) == (0, "") and loaded[2:] == ["stsb_3", "mnli_3"]  # another seed makes it anew
    assert json.loads((tmp_path / "out/results.json").read_text())["submission"]["seed"] == 3


def test_predict_test_needs_a_task_of_glue_and_a_test_set(command):
    code, _, err = command(None, "latency", "--predict-test")
    assert code == 2 and err == "error: --predict-test: there is no task of GLUE in --tasks\n"
    code, _, err = command(None, "mnli", "--predict-test")
    assert code == 3 and "has no test set of mnli, such as test.tsv" in err
