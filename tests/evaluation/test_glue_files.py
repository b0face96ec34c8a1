"""GLUE rows as JSON lines, and files that are bad: one sentence with file and line."""

import json

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.rows import FULL
from pipeline.evaluation.glue.tasks import GLUE, GLUE_TASKS


def write(root, name, content, stem="train.tsv"):
    path = root / GLUE_TASKS[name].folder / stem
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else "".join(f"{line}\n" for line in content).encode())
    return path


def write_json(root, name, rows, stem="train.jsonl"):
    return write(root, name, [json.dumps(row, ensure_ascii=row.get("idx") == 0) for row in rows], stem)


def objects(name, texts, count=4):
    """Rows as the hub has them."""
    task = GLUE_TASKS[name]
    labels = [0.0, 2.6, 5.0, 1.25] if task.regression else [*range(len(task.classes))] * 2
    return [
        {**dict(zip(task.hub_columns, texts, strict=False)), "label": label, "idx": index}
        for index, label in enumerate(labels[:count])
    ]


@pytest.mark.parametrize("name", [*GLUE, "wnli", "word_order"])
def test_json_lines_and_tsv_are_the_same_rows(tmp_path, name):
    """A label's number is its place in the classes of the TSV file, as on the hub."""
    task, texts = GLUE_TASKS[name], ('A "quote\\ é\u2028.', "'")
    rows = objects(name, texts)
    words = [str(row["label"]) if task.regression else task.classes[row["label"]] for row in rows]
    columns = task.header or (*task.texts, task.label)
    header = [] if task.header else ["\t".join(columns)]
    other = tmp_path / "json"
    other.mkdir()
    for stem in ("train", *(dev.stem for dev in task.dev_sets)):
        values = [{**dict(zip(task.texts, texts, strict=False)), task.label: word} for word in words]
        lines = ["\t".join(row.get(column, "x") for column in columns) for row in values]
        write(tmp_path, name, [*header, *lines], f"{stem}.tsv")
        write_json(other, name, rows, f"{stem}.jsonl")
    expected, found = load_task(task, str(tmp_path)), load_task(task, str(other))
    assert found.train.examples == expected.train.examples and len(found.train.examples) == len(rows)
    assert found.missing == expected.missing == {}
    for scored in found.dev:
        assert found.dev[scored].examples == expected.dev[scored].examples
        if name != "qqp":  # whose dev pairs are all in train here
            assert found.dev[scored].examples == found.train.examples
        assert found.dev[scored].source.endswith(".jsonl")


def test_json_lines_are_official_by_name_and_count_and_stand_alone(tmp_path):
    rows = [{"sentence1": f"A {i}", "sentence2": "B", "label": i % 2, "idx": i} for i in range(635)]
    write_json(tmp_path, "wnli", rows)
    write_json(tmp_path, "wnli", rows[:71], "dev.jsonl").open("ab").write(b"\n\r\n")
    assert load_task(GLUE_TASKS["wnli"], str(tmp_path)).describe("wnli") == FULL
    write(tmp_path, "wnli", ["index\tsentence1\tsentence2\tlabel", "0\tA\tB\t1"])
    with pytest.raises(DataError, match=r"WNLI: train\.tsv and train\.jsonl are there for the train rows"):
        load_task(GLUE_TASKS["wnli"], str(tmp_path))


BAD_JSON = [
    ("mnli", {"label": 3}, r"label 3 where one of 0 \(entailment\), 1 \(neutral\), 2 \(contradiction\) was expected$"),
    ("mnli", {"label": "neutral"}, r'label "neutral" where one of 0 '),
    ("cola", {"label": -1}, r"label -1 where one of 0 \(unacceptable\), 1 \(acceptable\)"),
    ("cola", {"label": True}, "label true where one of 0 "),
    ("cola", {"label": 0.5}, "label 0.5 where one of 0 "),
    ("stsb", {"label": None}, "label null where a number was expected$"),
    ("stsb", {"label": float("nan")}, "label NaN where a number was expected$"),
    ("mnli", {"premise": "  "}, "'premise' is empty where a text was expected$"),
    ("mnli", {"hypothesis": None}, "'hypothesis' is null where a text was expected$"),
    ("mnli", {"hypothesis": "\ud800"}, "'hypothesis' has half of a surrogate pair"),
]


@pytest.mark.parametrize(("name", "change", "expected"), BAD_JSON)
def test_bad_json_rows(tmp_path, name, change, expected):
    rows = objects(name, ("A.", "B."), 2)
    path = write(tmp_path, name, [json.dumps(rows[0]), json.dumps({**rows[1], **change})], "train.jsonl")
    with pytest.raises(DataError, match=rf"^{path}, line 2: {expected}"):
        load_task(GLUE_TASKS[name], str(tmp_path))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"sentence": "A.", "label": 1', "one JSON object a line was expected"),
        (b'["A.", 1]', "one JSON object a line was expected"),
        (b"", "one JSON object a line was expected"),
        (b"sentence\tlabel", "one JSON object a line was expected"),
        (b'{"text": "A.", "label": 1}', "there is no 'sentence'"),
        (b'{"sentence": "A.", "idx": 1}', "there is no 'label'"),
        (b'{"sentence": "A\xe9.", "label": 1}', "byte 15 of the line is not utf-8"),
    ],
)
def test_bad_json_lines(tmp_path, line, expected):
    good = b'{"sentence": "A.", "label": 1}'
    path = write(tmp_path, "sst2", b"\n".join([good, line, good]), "train.jsonl")
    with pytest.raises(DataError) as raised:
        load_task(GLUE_TASKS["sst2"], str(tmp_path))
    assert str(raised.value) == f"{path}, line 2: {expected}"


HEADER = "index\tsentence1\tsentence2\tlabel"
BAD_TSV = {
    "quoted header": (['"index"\t"sentence1"\t"sentence2"\t"label"'], 1, "the header has no column 'sentence1'"),
    "missing column": (["index\tsentence1\tlabel"], 1, "the header has no column 'sentence2'"),
    "comma for tab": (["index,sentence1,sentence2,label"], 1, "the header has no column 'sentence1'"),
    "quoted label": ([HEADER, '0\t"A"\t"B"\t"entailment"'], 2, "label '\"entailment\"' where one of"),
    "label of another task": ([HEADER, "0\tA\tB\tneutral"], 2, "label 'neutral' where one of entailment, not_ent"),
    "tab in quotes": ([HEADER, "0\tA\tB\tentailment", '1\t"A\tA"\tB\tentailment'], 3, "5 columns where 4"),
    "line break in quotes": ([HEADER, '0\t"A', 'A"\tB\tentailment'], 2, "2 columns where 4"),
    "tab at the end": ([HEADER, "0\tA\tB\tentailment\t"], 2, "5 columns where 4"),
    "empty": ([HEADER, "0\tA\t\tentailment"], 2, "'sentence2' is empty where a text was expected"),
    "blank": ([HEADER, "0\t \u00a0\tB\tentailment"], 2, "'sentence1' is empty where a text was expected"),
    "two tabs": ([HEADER, "0\t\tA\tB\tentailment"], 2, "5 columns where 4"),
    "utf-16": ("\n".join([HEADER, "0\tA\tB\tentailment"]).encode("utf-16"), 1, "byte 0 of the line is not utf-8"),
    "latin-1": (f"{HEADER}\n0\tA\tB\u00fc\tentailment".encode("latin-1"), 2, "byte 5 of the line is not utf-8"),
}


@pytest.mark.parametrize("kind", BAD_TSV)
def test_bad_tsv(tmp_path, kind):
    content, line, expected = BAD_TSV[kind]
    path = write(tmp_path, "rte", content)
    with pytest.raises(DataError) as raised:
        load_task(GLUE_TASKS["rte"], str(tmp_path))
    assert str(raised.value).startswith(f"{path}, line {line}: {expected}") and "\n" not in str(raised.value)


def test_lone_quotes_are_text(tmp_path):
    rows = ['0\t"A\t""B\tentailment', "1\t'\tB\"\tnot_entailment"]
    for stem in ("train.tsv", "dev.tsv"):
        write(tmp_path, "rte", [HEADER, *rows], stem)
    examples = load_task(GLUE_TASKS["rte"], str(tmp_path)).train.examples
    assert [row.texts for row in examples] == [('"A', '""B'), ("'", 'B"')]


def test_an_official_file_is_taken_as_it_is(tmp_path):
    """Those of QQP have questions without a word."""
    rows = [f"{i}\tA\t{'' if i == 7 else 'B'}\t{i % 2}" for i in range(635)]
    header = "index\tsentence1\tsentence2\tlabel"
    write(tmp_path, "wnli", [header, *rows])
    write(tmp_path, "wnli", [header, *rows[:71]], "dev.tsv")
    assert load_task(GLUE_TASKS["wnli"], str(tmp_path)).describe("wnli") == FULL
    path = write(tmp_path, "wnli", [header, *rows[:70]], "dev.tsv")
    with pytest.raises(DataError, match=rf"^{path}, line 9: 'sentence2' is empty"):
        load_task(GLUE_TASKS["wnli"], str(tmp_path))
