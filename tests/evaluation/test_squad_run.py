"""`pipeline/evaluate.py --tasks squad_v1,squad_v2` on a tiny BERT: learning, seeds, restart, lengths, bad input."""

import json
import os
import sys

import pytest
import torch

from pipeline import evaluate
from pipeline.errors import run_entry_point
from pipeline.evaluation.encoder import fresh_span_head, load_encoder
from pipeline.evaluation.squad import answering
from pipeline.evaluation.squad.load import read_file
from pipeline.evaluation.squad.questions import VERSIONS, acceptable
from pipeline.evaluation.squad.score import best_v2, score_v1, score_v2
from tests.support.squad import save_model, write_files

pytestmark = pytest.mark.usefixtures("one_thread")

LEARN = ("--epochs", "8", "--batch-size", "8", "--learning-rate", "5e-3")
SHORT = ("--epochs", "1", "--batch-size", "8")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), positions=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_files(root / "squad", "squad_v1", 200, 30)
    write_files(root / "squad", "squad_v2", 200, 30, unanswerable=0.4)
    return root


@pytest.fixture
def run(monkeypatch, capfd, model, data):
    """Run the entry point in this process: options -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def call(output, *options, tasks="squad_v1", seeds="1", model=model, data=data):
        paths = ("--model", str(model), "--data", str(data), "--output", str(output))
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *paths, "--tasks", tasks, "--seeds", seeds, *options])
        with pytest.raises(SystemExit) as stop:
            run_entry_point(evaluate.main)
        return stop.value.code, *capfd.readouterr()

    return call


def kept(output, name):
    return json.loads((output / "predictions" / f"{name}.json").read_text())


def results(output):
    return json.loads((output / "results.json").read_text())


def questions(data, name, stem="dev"):
    version = VERSIONS[name]
    found = read_file(version, data / "squad" / f"{stem}-v{version.number}.json", 1)
    return acceptable(found.rows)


def test_version_1_learns_and_is_repeatable(run, tmp_path, data):
    first, again = tmp_path / "first", tmp_path / "again"
    code, out, err = run(first, *LEARN)
    assert (code, err) == (0, "") and len(out.splitlines()) == 8
    assert sorted(path.name for path in (first / "predictions").iterdir()) == ["squad_v1_1.json"]
    answers, entry = kept(first, "squad_v1_1"), results(first)["tasks"]["squad_v1"]
    assert set(answers) == {f"dev{number}" for number in range(30)}
    for metric, value in score_v1(questions(data, "squad_v1"), answers).items():
        assert entry[metric]["seeds"] == {"1": value}
    assert entry["f1"]["mean"] > 0.8 and entry["exact_match"]["mean"] > 0.5
    assert entry["max_length"] == 32 and "trained_length" not in entry
    assert entry["data"].startswith("train: train-v1.1.json, 200 questions (official: 87,599); dev: dev-v1.1.json, 30")
    assert run(again, *LEARN)[0] == 0
    name = "predictions/squad_v1_1.json"
    assert (first / name).read_bytes() == (again / name).read_bytes()


def test_version_2_answers_where_the_threshold_says(run, tmp_path, data):
    output = tmp_path / "out"
    assert run(output, *LEARN, tasks="squad_v2")[0] == 0
    answers, against = kept(output, "squad_v2_1"), kept(output, "squad_v2_1_na")
    entry, expected = results(output)["tasks"]["squad_v2"], score_v2(questions(data, "squad_v2"), answers)
    assert {metric: value["seeds"]["1"] for metric, value in entry.items() if isinstance(value, dict)} == expected
    assert set(expected) == {f"{part}{name}" for part in ("", "has_ans_", "no_ans_") for name in ("exact_match", "f1")}
    assert expected["f1"] > 0.6  # 0.4 are met by no answer at all
    # The official script, given both files, finds the threshold again, and the same F1.
    best, threshold = best_v2(questions(data, "squad_v2"), answers, against)["f1"]
    assert best == pytest.approx(expected["f1"])
    assert all(against[name] > threshold for name in answers if not answers[name])
    assert all(0 <= value <= 1 for value in against.values()) and list(against) == sorted(against)


def test_restart_repeats_only_what_is_missing(run, tmp_path, monkeypatch):
    output, calls, whole = tmp_path / "out", [], answering.answer

    def killed_at_seed_2(task, encoder, seed, settings, keep):
        calls.append((task.name, seed))
        if calls == [("squad_v1", 1), ("squad_v1", 2)]:
            raise KeyboardInterrupt
        return whole(task, encoder, seed, settings, keep)

    monkeypatch.setattr(answering, "answer", killed_at_seed_2)
    with pytest.raises(KeyboardInterrupt):
        run(output, *SHORT, tasks="squad_v1,squad_v2", seeds="1,2")
    assert list(results(output)["tasks"]["squad_v1"]["f1"]["seeds"]) == ["1"] and not results(output)["complete"]
    code, out, _ = run(output, *SHORT, tasks="squad_v1,squad_v2", seeds="1,2")
    assert code == 0 and "squad_v1, seed 1: already done\n" in out
    assert calls[2:] == [("squad_v1", 2), ("squad_v2", 1), ("squad_v2", 2)]
    assert list(results(output)["tasks"]["squad_v2"]["f1"]["seeds"]) == ["1", "2"] and results(output)["complete"]
    code, out, _ = run(output, *SHORT, tasks="squad_v1", seeds="2")
    assert code == 0 and len(calls) == 5


def test_lengths(run, tmp_path, model):
    output = tmp_path / "out"
    assert run(output, *SHORT, "--max-length", "24")[0] == 0
    assert results(output)["tasks"]["squad_v1"]["max_length"] == results(output)["settings"]["max_length"] == 24
    code, _, err = run(tmp_path / "x", *SHORT, "--max-length", "33")
    assert code == 2 and "more than the model's 32 positions" in err
    assert run(tmp_path / "y", *SHORT, tasks="squad_v1,sst2")[0] == 2  # 128 tokens, the default of pairs


def test_another_length_is_refused(run, tmp_path):
    """What says that windows were of another length: 128 may be given, or be the default of other tasks."""
    long = save_model(tmp_path / "long", positions=160)
    assert run(tmp_path / "out", *SHORT, model=long)[0] == 0
    assert results(tmp_path / "out")["settings"]["max_length"] == 128
    assert results(tmp_path / "out")["tasks"]["squad_v1"]["max_length"] == 160
    code, _, err = run(tmp_path / "out", *SHORT, "--max-length", "128", model=long)
    assert code == 2 and "its results for squad_v1 are of windows of 160 tokens, not of 128" in err


def test_a_length_beyond_the_trained_one_is_marked(run, tmp_path):
    student = save_model(tmp_path / "student", positions=32, segments=1)
    (student / "fold.json").write_text('{"trained_seq_len": 16}')
    code, out, _ = run(tmp_path / "out", *SHORT, model=student)
    assert code == 0 and "windows of 32 tokens, the model was trained with 16" in out
    assert results(tmp_path / "out")["tasks"]["squad_v1"]["trained_length"] == 16
    assert out.splitlines()[-1].endswith("30 questions (official: 10,570); 32 tokens, trained with 16 |")
    code, out, _ = run(tmp_path / "other", *SHORT, "--max-length", "16", model=student)
    assert code == 0 and "trained with" not in out
    assert "trained_length" not in results(tmp_path / "other")["tasks"]["squad_v1"]


def test_span_head_is_fresh_and_of_the_seed(model):
    encoder = load_encoder(model)
    first, second, other = (fresh_span_head(encoder, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["qa_outputs.weight"]
    assert not first["qa_outputs.bias"].any() and 0.05 < first["qa_outputs.weight"].std() < 0.15
    for name, weight in encoder.weights.items():
        assert torch.equal(first[f"bert.{name}"], weight)


def test_bad_input_is_said_before_anything_is_written(run, tmp_path, data):
    bad = tmp_path / "bad"
    write_files(bad, "squad_v1", 3, 3)
    path = bad / "dev-v1.1.json"
    path.write_text(path.read_text().replace('"answer_start": ', '"answer_start": 1', 1))
    code, out, err = run(tmp_path / "out", data=bad)
    assert (code, out) == (3, "") and err.count("\n") == 1 and not (tmp_path / "out").exists()
    assert err.startswith(f"error: {path}, question dev0: the answer 'go ")
    code, _, err = run(tmp_path / "out", data=bad, tasks="squad_v2")
    assert code == 3 and "train-v2.0.json: there is no such file" in err


def test_a_tokenizer_that_knows_no_places_is_refused(run, tmp_path, monkeypatch, model):
    monkeypatch.setattr(type(load_encoder(model).tokenizer), "is_fast", False)
    code, _, err = run(tmp_path / "out")
    assert code == 2 and "its tokenizer does not say where in a text its tokens are" in err


def test_divergence_is_said(run, tmp_path):
    code, _, err = run(tmp_path / "out", "--epochs", "1", "--learning-rate", "1e30")
    assert code == 2 and err.startswith("error: squad_v1, seed 1: training diverged") and err.count("\n") == 1
    assert list((tmp_path / "out/predictions").iterdir()) == []
