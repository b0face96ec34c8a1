"""SQuAD's files and the hub's rows: what is read, and one sentence with the place for every fault."""

import json

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.squad.load import convert, load_squad, read_file
from pipeline.evaluation.squad.questions import VERSIONS, Question, acceptable
from tests.support.squad import NAMES, document, question, write_files

V1, V2 = VERSIONS["squad_v1"], VERSIONS["squad_v2"]
CONTEXT = "Ein Fluß — the “Łyna” — is 264 km long."


@pytest.mark.parametrize("folder", ["squad", "."])
@pytest.mark.parametrize("name", VERSIONS)
def test_official_names_in_both_places(tmp_path, name, folder):
    write_files(tmp_path / folder, name, 5, 4, unanswerable=0.5 if name == "squad_v2" else 0)
    data = load_squad(VERSIONS[name], str(tmp_path))
    assert [row.name for row in data.dev.rows] == ["dev0", "dev1", "dev2", "dev3"]
    for row in (*data.train.rows, *data.dev.rows):
        assert all(row.context[start:].startswith(text) for start, text in row.answers)
    assert sum(not row.answers for row in data.dev.rows) == (2 if name == "squad_v2" else 0)
    counts = "87,599", "10,570" if name == "squad_v1" else "11,873"
    train = f"train-{NAMES[name]}.json, 5 questions (official: {'130,319' if name == 'squad_v2' else counts[0]})"
    assert data.describe() == f"train: {train}; dev: dev-{NAMES[name]}.json, 4 questions (official: {counts[1]})"


def test_official_numbers_are_full(tmp_path):
    assert (V1.train, V1.dev, V2.train, V2.dev) == (87599, 10570, 130319, 11873)
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(document(("x y", [question(str(number), "x y", ["y"]) for number in range(3)]))))
    assert read_file(V1, path, 3).describe() == "full" != read_file(V1, path, 4).describe()


def test_several_answers_and_other_characters(tmp_path):
    path = tmp_path / "dev-v1.1.json"
    text = json.dumps(document((CONTEXT, [question("a", CONTEXT, ["Łyna", "“Łyna”", "264 km"])])), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    (row,) = read_file(V1, path, 1).rows
    assert row == Question("a", "which ?", CONTEXT, ((16, "Łyna"), (15, "“Łyna”"), (27, "264 km")))
    assert acceptable([row]) == {"a": ["Łyna", "“Łyna”", "264 km"]}


def test_rows_of_the_fingerprint(tmp_path):
    write_files(tmp_path, "squad_v1", 3, 3)
    first = load_squad(V1, str(tmp_path)).fingerprint()
    assert load_squad(V1, str(tmp_path)).fingerprint() == first
    path = tmp_path / "dev-v1.1.json"
    path.write_text(path.read_text().replace("which", "what"))
    assert load_squad(V1, str(tmp_path)).fingerprint() != first


def spoilt(change):
    """A sound file of 2.0 with two questions, after `change` was at its parts."""
    found = document(("x y z", [question("a", "x y z", ["y"]), question("b", "x y z", [], is_impossible=True)]))
    paragraph = found["data"][0]["paragraphs"][0]
    change(found, paragraph, paragraph["qas"][0])
    return found


FAULTS = {
    "shifted": (lambda f, p, q: q["answers"][0].update(answer_start=1), "question a: the answer 'y' is not in its"),
    "cased": (lambda f, p, q: q["answers"][0].update(text="Y"), "question a: the answer 'Y' is not in its context"),
    "negative": (lambda f, p, q: q["answers"][0].update(answer_start=-3), "not in its context at character -3"),
    "beyond": (lambda f, p, q: q["answers"][0].update(answer_start=99), "not in its context at character 99"),
    "no start": (lambda f, p, q: q["answers"][0].pop("answer_start"), "question a: it has no 'answer_start'"),
    "null start": (lambda f, p, q: q["answers"][0].update(answer_start=None), "'answer_start' is no whole number"),
    "true start": (lambda f, p, q: q["answers"][0].update(answer_start=True), "'answer_start' is no whole number"),
    "blank answer": (lambda f, p, q: q["answers"][0].update(text=" "), "question a: an answer is blank"),
    "answer a text": (lambda f, p, q: q.update(answers=["y"]), "question a: an object with 'answer_start' was"),
    "no answers": (lambda f, p, q: q.pop("answers"), "question a: it has no 'answers'"),
    "hub's answers": (lambda f, p, q: q.update(answers={"text": []}), "question a: its 'answers' is no list"),
    "no id": (lambda f, p, q: q.pop("id"), "data[0].paragraphs[0].qas[0]: it has no 'id'"),
    "id a number": (lambda f, p, q: q.update(id=3), "qas[0]: its 'id' is no text"),
    "same id": (lambda f, p, q: q.update(id="b"), "question b: an earlier question has the same id"),
    "no question": (lambda f, p, q: q.pop("question"), "question a: it has no 'question'"),
    "blank question": (lambda f, p, q: q.update(question=" \n"), "question a: its question is blank"),
    "half a character": (lambda f, p, q: q.update(question="x \ud83d ?"), "a: its question has '\\ud83d', half of a"),
    "half elsewhere": (lambda f, p, q: p.update(context="x y \udfff"), "a: its context has '\\udfff', half of a"),
    "blank id": (lambda f, p, q: q.update(id=""), "its id is blank"),
    "blank context": (lambda f, p, q: p.update(context=""), "question a: its context is blank"),
    "no context": (lambda f, p, q: p.pop("context"), "data[0].paragraphs[0]: it has no 'context'"),
    "no qas": (lambda f, p, q: p.pop("qas"), "data[0].paragraphs[0]: it has no 'qas'"),
    "no paragraphs": (lambda f, p, q: f["data"][0].pop("paragraphs"), "data[0]: it has no 'paragraphs'"),
    "no data": (lambda f, p, q: f.pop("data"), "dev-v2.0.json: it has no 'data'"),
    "empty": (lambda f, p, q: p.update(qas=[]), "dev-v2.0.json: there are no questions in it"),
    "impossible": (lambda f, p, q: q.update(is_impossible=True), "question a: it has answers, and is_impossible is t"),
    "not impossible": (lambda f, p, q: q.update(answers=[], is_impossible=False), "no answers, and is_impossible is f"),
    "perhaps": (lambda f, p, q: q.update(is_impossible="no"), "'is_impossible' is no true or false"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_a_file(tmp_path, name):
    change, words = FAULTS[name]
    path = tmp_path / "dev-v2.0.json"
    path.write_text(json.dumps(spoilt(lambda *parts: None)))
    assert len(read_file(V2, path, 2).rows) == 2
    path.write_text(json.dumps(spoilt(change)))
    refused(path, V2, words)


def refused(path, version, words):
    with pytest.raises(DataError) as error:
        read_file(version, path, 1)
    assert str(error.value).startswith(str(path)) and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"data": [{"x": "\xfc"}]}', "byte 17 is not utf-8"),
        ("{}".encode("utf-16"), "byte 0 is not utf-8"),
        (b'{"data":\n [1,]}', ", line 2, column 5: it is no JSON"),
        (b"", ", line 1, column 1: it is no JSON"),
        (b"[]", "an object with 'data' was expected"),
        (b"[" * 100_000, ": it cannot be read as JSON ("),
        (b'{"data": ' + b"1" * 5000 + b"}", ": it cannot be read as JSON ("),
    ],
)
def test_what_is_no_file_of_squad(tmp_path, content, words):
    path = tmp_path / "dev-v2.0.json"
    path.write_bytes(content)
    refused(path, V2, words)


def test_every_question_of_version_1_has_an_answer(tmp_path):
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(document(("x y", [question("a", "x y", [])]))))
    refused(path, V1, "question a: it has no answer, and in SQuAD 1.1 every question has one")


def test_a_missing_file_is_named(tmp_path):
    write_files(tmp_path / "squad", "squad_v1", 2, 2)
    (tmp_path / "squad" / "dev-v1.1.json").unlink()
    with pytest.raises(DataError, match=r"squad/dev-v1\.1\.json: there is no such file, and no dev-v1\.1\.json in"):
        load_squad(V1, str(tmp_path))
    with pytest.raises(DataError, match=r"squad/train-v2\.0\.json: there is no such file"):
        load_squad(V2, str(tmp_path))


def test_rows_of_the_hub():
    row = {"id": "a", "title": "t", "context": CONTEXT, "question": "Where?"}
    some = {**row, "answers": {"text": ["264 km"], "answer_start": [27]}}
    none = {**row, "id": "b", "answers": {"text": [], "answer_start": []}}
    found = convert(V2, [some, none], "validation")
    assert [question.answers for question in found.rows] == [((27, "264 km"),), ()]
    assert found.describe() == "hub split validation, 2 questions (official: 11,873)"
    with pytest.raises(DataError, match=r"hub: rajpurkar/squad, train, question b: it has no answer"):
        convert(V1, [some, none], "train")
    some["answers"]["answer_start"] = [26]
    with pytest.raises(DataError, match=r"validation, question a: the answer '264 km' is not in its context at char"):
        convert(V2, [some], "validation")


@pytest.mark.parametrize(("name", "version"), [("dev-v1.1", V1), ("dev-v2.0", V2)])
def test_real_files(shared_data, name, version):
    found = read_file(version, shared_data / "squad" / f"{name}.reconstructed.json", version.dev)
    assert found.describe() == "full"
    assert sum(not question.answers for question in found.rows) == (5945 if version.unanswerable else 0)
