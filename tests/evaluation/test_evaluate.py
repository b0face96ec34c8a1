"""`pipeline/evaluate.py` end to end on a tiny BERT: learning, seeds, restart, refusals, exit codes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from pipeline import evaluate
from pipeline.errors import run_entry_point
from pipeline.evaluation import encoder as encoders
from pipeline.evaluation import finetune
from tests.support import ROOT

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [f"w{i}" for i in range(20)]
GOOD, BAD = "good", "bad"
FAST = ["--epochs", "6", "--batch-size", "8", "--learning-rate", "3e-3", "--max-length", "24"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A 2 x 32 BERT with masked-LM head, no pooler, and a whole-word vocabulary."""
    path = tmp_path_factory.mktemp("model")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", GOOD, BAD, *WORDS]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(path)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.1,
    }
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **shape)
    BertForMaskedLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """SST-2 with label = presence of a word, a little STS-B with score = 5 x presence, and MNLI without mismatched."""
    root = tmp_path_factory.mktemp("glue")
    generator = torch.Generator().manual_seed(1)

    def sentence(word):
        length = int(torch.randint(2, 8, (), generator=generator))  # predictions run sorted by length
        words = [WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator)]
        words.insert(int(torch.randint(length, (), generator=generator)), word)
        return " ".join(words)

    def write(folder, stem, header, rows):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"{stem}.tsv").write_text("\n".join([header, *rows]) + "\n")

    for stem, rows in (("train", 96), ("dev", 40)):
        write("SST-2", stem, "sentence\tlabel", [f"{sentence((BAD, GOOD)[i % 2])}\t{i % 2}" for i in range(rows)])
        pairs = [f"{sentence('')}\t{sentence((BAD, GOOD)[i % 2])}\t{5 * (i % 2)}.0" for i in range(rows)]
        write("STS-B", stem, "sentence1\tsentence2\tscore", pairs)
    names = ("entailment", "neutral", "contradiction")
    for stem, rows in (("train", 12), ("dev_matched", 9)):
        pairs = [f"{sentence(GOOD)}\t{sentence(BAD)}\t{names[i % 3]}" for i in range(rows)]
        write("MNLI", stem, "sentence1\tsentence2\tgold_label", pairs)
    return root


@pytest.fixture
def run(monkeypatch, capfd, model, data):
    """Run the entry point in this process: options -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(os, "environ", os.environ.copy())

    def call(output, *options, tasks="sst2", seeds="1", settings=FAST, **replaced):
        paths = {"--model": model, "--data": data, **{f"--{key}": value for key, value in replaced.items()}}
        argv = [*(str(part) for pair in paths.items() for part in pair), "--output", str(output)]
        monkeypatch.setattr(
            sys, "argv", ["evaluate.py", *argv, "--tasks", tasks, "--seeds", seeds, *settings, *options]
        )
        with pytest.raises(SystemExit) as stop:
            run_entry_point(evaluate.main)
        return stop.value.code, *capfd.readouterr()

    return call


def predictions(output, name, seed):
    return [json.loads(line) for line in (output / f"predictions/{name}_{seed}.jsonl").read_text().splitlines()]


def test_learns_keeps_predictions_and_is_deterministic(run, tmp_path, model, data):
    first, again = tmp_path / "first", tmp_path / "again"
    code, out, err = run(first, seeds="1,2")
    assert (code, err) == (0, "")
    # The plan, three lines for each seed, what is left, and a table of three: the library prints nothing.
    assert len(out.splitlines()) == 11
    results = json.loads((first / "results.json").read_text())
    entry = results["tasks"]["sst2"]
    rows = predictions(first, "sst2", 1)
    labels = [int(line.split("\t")[1]) for line in (data / "SST-2/dev.tsv").read_text().splitlines()[1:]]
    assert [row["index"] for row in rows] == list(range(40)) and [row["label"] for row in rows] == labels
    assert entry["accuracy"]["seeds"]["1"] == sum(row["prediction"] == row["label"] for row in rows) / 40
    assert entry["accuracy"]["mean"] > 0.9  # half of the labels are 1
    assert results["complete"] and results["model"] == str(model) and results["settings"]["max_length"] == 24
    assert entry["data"].startswith("train: train.tsv, 96 rows (official: 67,349); dev: dev.tsv, 40 rows")
    assert sorted(path.name for path in first.iterdir()) == ["items", "predictions", "results.json"]

    assert run(again, tasks="stsb", seeds="2")[0] == 0
    assert run(first, tasks="stsb", seeds="2")[0] == 0  # joins the results of the first command
    assert predictions(first, "stsb", 2) == predictions(again, "stsb", 2)
    tasks = json.loads((first / "results.json").read_text())["tasks"]
    assert tasks["stsb"]["spearman"]["mean"] > 0.8 and tasks["sst2"] == entry


def test_restart_repeats_only_what_is_missing(run, tmp_path, monkeypatch):
    output = tmp_path / "out"
    short = ["--epochs", "1", "--max-length", "16"]
    calls = []
    whole = finetune.fine_tune

    def killed_at_seed_2(task, encoder, seed, settings, keep):
        calls.append((task.name, seed))
        if seed == 2:
            raise KeyboardInterrupt
        return whole(task, encoder, seed, settings, keep)

    monkeypatch.setattr(finetune, "fine_tune", killed_at_seed_2)
    with pytest.raises(KeyboardInterrupt):
        run(output, tasks="mnli,mnli_mm", seeds="1,2", settings=short)
    interrupted = json.loads((output / "results.json").read_text())
    assert not interrupted["complete"] and list(interrupted["tasks"]["mnli"]["accuracy"]["seeds"]) == ["1"]
    kept = (output / "predictions/mnli_1.jsonl").stat().st_mtime_ns

    monkeypatch.setattr(finetune, "fine_tune", lambda *a: (calls.append((a[0].name, a[2])), whole(*a))[1])
    code, out, _ = run(output, tasks="mnli,mnli_mm", seeds="1,2", settings=short)
    assert code == 0 and calls == [("mnli", 1), ("mnli", 2), ("mnli", 2)]
    assert (output / "predictions/mnli_1.jsonl").stat().st_mtime_ns == kept
    assert "not available" in out
    results = json.loads((output / "results.json").read_text())
    assert "mnli_mm" not in results["tasks"] and "mnli_mm" in results["not_available"]
    assert list(results["tasks"]["mnli"]["accuracy"]["seeds"]) == ["1", "2"]

    code, _, err = run(output, tasks="mnli", seeds="1", settings=["--epochs", "2", "--max-length", "16"])
    assert code == 2 and "other hyper-parameters" in err


def test_pooler_and_classifier_are_always_fresh(model, tmp_path):
    """A fine-tuned checkpoint (with pooler and 5-way head) gives the same start as its bare encoder."""
    bare = encoders.load_encoder(model)
    tuned = BertForSequenceClassification.from_pretrained(model, num_labels=5)
    with torch.no_grad():
        tuned.bert.pooler.dense.weight.fill_(7.0)
    tuned.save_pretrained(tmp_path)
    bare.tokenizer.save_pretrained(tmp_path)
    starts = [encoders.fresh_classifier(source, 2, seed=3) for source in (bare, encoders.load_encoder(tmp_path))]
    for (name, first), second in zip(starts[0].named_parameters(), starts[1].parameters(), strict=True):
        assert torch.equal(first, second), name
    pooler = starts[0].bert.pooler.dense.weight
    assert 0.08 < pooler.std() < 0.12  # the initializer_range of 0.1
    assert torch.equal(
        starts[0].bert.embeddings.word_embeddings.weight, bare.weights["embeddings.word_embeddings.weight"]
    )
    assert not torch.equal(pooler, encoders.fresh_classifier(bare, 2, seed=4).bert.pooler.dense.weight)


def broken_model(path, model, kind):
    """A copy of the model directory with one thing wrong."""
    path.mkdir()
    for file in model.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    weights = path / "model.safetensors"
    if kind == "no-tokenizer":
        (path / "tokenizer.json").unlink()
    elif kind == "no-bert":
        (path / "config.json").write_text('{"model_type": "gpt2"}')
    elif kind == "cut":
        weights.write_bytes(weights.read_bytes()[:2000])
    else:
        tensors = load_file(weights)
        save_file({name: value for name, value in tensors.items() if "layer.1" not in name}, weights, {"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        ({"tasks": "squad_v3"}, 2, "unknown task 'squad_v3'"),
        ({"seeds": "1,x"}, 2, "--seeds '1,x'"),
        ({"seeds": "-1"}, 2, "--seeds '-1'"),
        ({"model": "absent"}, 2, "absent: there is no such directory"),
        ({"model": ROOT / "pipeline"}, 2, "it has no config.json"),
        ({"model": "no-tokenizer"}, 2, "it has no tokenizer"),
        ({"model": "no-bert"}, 2, "model type 'gpt2' where 'bert'"),
        ({"model": "no-layer"}, 2, "16 encoder weights are missing, such as encoder.layer.1"),
        ({"model": "cut"}, 2, "it cannot be loaded"),
        ({"data": "absent"}, 2, "absent: there is no such directory"),
        ({"tasks": "rte"}, 3, "RTE: there is no such folder"),
        ({"tasks": "mnli_mm"}, 3, "dev_mismatched.tsv is not in the data directory"),
        ({"settings": ["--max-length", "64"]}, 2, "more than the model's 32 positions"),
        ({"settings": ["--learning-rate", "0"]}, 2, "--learning-rate must be greater than 0"),
        ({"output": "occupied"}, 2, "it holds other files"),
    ],
)
def test_mistakes_get_one_sentence(run, tmp_path, model, change, code, expected):
    change = dict(change)
    if change.get("model") in ("no-tokenizer", "no-bert", "cut", "no-layer"):
        change = {"model": broken_model(tmp_path / "broken", model, change["model"])}
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied/notes.txt").write_text("mine")
    status, out, err = run(tmp_path / change.pop("output", "out"), **change)
    assert not (tmp_path / "out").exists()
    assert (status, out) == (code, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err


def test_divergence_is_said_and_leaves_no_score(run, tmp_path):
    code, _, err = run(tmp_path / "out", settings=["--learning-rate", "1e30", "--epochs", "1", "--max-length", "16"])
    assert code == 2 and err.startswith("error: sst2, seed 1: training diverged") and err.count("\n") == 1
    assert list((tmp_path / "out/predictions").iterdir()) == []
    assert not json.loads((tmp_path / "out/results.json").read_text())["complete"]


def test_output_of_another_model_is_refused(run, tmp_path, model):
    output = tmp_path / "out"
    output.mkdir()
    found = {"model": "other", "model_sha256": "0", "settings": {}, "tasks": {}, "not_available": {}}
    (output / "results.json").write_text(json.dumps(found))
    code, _, err = run(output)
    assert code == 2 and "results of another model (other)" in err
    assert json.loads((output / "results.json").read_text()) == found


@pytest.mark.parametrize("command", [["pipeline/evaluate.py"], ["-m", "pipeline.evaluate"]])
def test_runs_as_script_and_as_module(command, tmp_path):
    options = ["--model", "absent", "--tasks", "nosuch", "--data", ".", "--output", str(tmp_path), "--local_rank=0"]
    done = subprocess.run([sys.executable, *command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: --tasks: unknown task 'nosuch'") and done.stderr.count("\n") == 1
