"""`--keep-models`: what is kept loads without this project and predicts what was scored."""

import itertools
import json
import stat

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizer

from pipeline import evaluate
from pipeline.errors import UserError
from pipeline.evaluation import encoder as encoders
from pipeline.evaluation import finetune, kept
from pipeline.evaluation.glue.load import load_task
from pipeline.evaluation.glue.rows import Example
from pipeline.evaluation.glue.tasks import GLUE_TASKS
from pipeline.evaluation.task import Settings
from tests.support.runs import run_main

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [f"w{i}" for i in range(12)]
OPTIONS = ["--epochs", "2", "--batch-size", "8", "--learning-rate", "3e-3", "--max-length", "12"]
NAMES = ("entailment", "neutral", "contradiction")


def make_model(path, **changes):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(path)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokens), max_position_embeddings=24, initializer_range=0.3, **shape | changes)
    BertForMaskedLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MNLI, SST-2 and STS-B with labels by the first word; some pairs are longer than --max-length."""
    root = tmp_path_factory.mktemp("glue")
    words = itertools.cycle(WORDS)

    def text(row):
        return " ".join([WORDS[row % 3], *itertools.islice(words, row % 9)])

    def write(folder, stem, header, rows):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / f"{stem}.tsv").write_text("\n".join([header, *rows]) + "\n")

    for stem, rows in (("train", range(36)), ("dev", range(3, 30))):
        pairs = [f"{text(i)}\t{text(i + 1)}" for i in rows]
        mnli = "dev_matched" if stem == "dev" else stem
        write("MNLI", mnli, "sentence1\tsentence2\tgold_label", [f"{p}\t{NAMES[i % 3]}" for i, p in enumerate(pairs)])
        write("STS-B", stem, "sentence1\tsentence2\tscore", [f"{p}\t{i % 3}.5" for i, p in enumerate(pairs)])
        write("SST-2", stem, "sentence\tlabel", [f"{text(i)}\t{i % 2}" for i in rows])
    return root


def run(monkeypatch, model, data, output, tasks, *more):
    monkeypatch.setattr(evaluate, "use_one_device", lambda local_rank: None)
    paths = ["--model", model, "--data", data, "--output", output]
    return run_main(monkeypatch, evaluate.main, *paths, "--tasks", tasks, "--seeds", "7", *OPTIONS, *more)


def kept_rows(output, name):
    return [json.loads(line) for line in (output / f"predictions/{name}_7.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("segments", [2, 1])
def test_kept_models_predict_what_was_scored(monkeypatch, tmp_path, data, segments):
    model, output = make_model(tmp_path / "model", type_vocab_size=segments), tmp_path / "out"
    code, _, err = run(monkeypatch, model, data, output, "mnli,sst2,stsb", "--keep-models")
    assert (code, err) == (0, ""), err
    assert sorted(path.name for path in (output / "models").iterdir()) == ["mnli_7", "sst2_7", "stsb_7"]
    for name in ("mnli", "sst2", "stsb"):
        folder, rows = output / "models" / f"{name}_7", load_task(GLUE_TASKS[name], str(data)).dev[name].examples
        classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [list(column) for column in zip(*(row.texts for row in rows), strict=True)]
        with torch.no_grad():
            logits = classifier(**tokenizer(*texts, truncation=True, padding=True, return_tensors="pt")).logits
        found = [row["prediction"] for row in kept_rows(output, name)]
        if name == "stsb":
            assert classifier.config.num_labels == 1 and classifier.config.problem_type == "regression"
            assert logits[:, 0].tolist() == pytest.approx(found, abs=1e-5) and len(set(found)) > 5
        else:
            assert logits.argmax(1).tolist() == found and len(set(found)) > 1
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600 for path in folder.iterdir())
    labels = AutoModelForSequenceClassification.from_pretrained(output / "models/mnli_7").config
    assert labels.id2label == dict(enumerate(NAMES)) and labels.label2id == {name: i for i, name in enumerate(NAMES)}
    assert json.loads((output / "models/sst2_7/config.json").read_text())["id2label"] == {
        "0": "negative",
        "1": "positive",
    }


def test_a_model_that_is_not_there_is_made_again_and_is_the_same(monkeypatch, tmp_path, data):
    model, output = make_model(tmp_path / "model"), tmp_path / "out"
    assert run(monkeypatch, model, data, output, "stsb")[0] == 0
    assert not (output / "models").exists()
    scored = kept_rows(output, "stsb")
    code, out, _ = run(monkeypatch, model, data, output, "stsb", "--keep-models")
    assert code == 0 and "already done" not in out and kept_rows(output, "stsb") == scored
    monkeypatch.setattr(finetune, "fine_tune", None)  # nothing is trained any more
    code, out, _ = run(monkeypatch, model, data, output, "stsb", "--keep-models")
    assert code == 0 and "already done" in out
    monkeypatch.undo()

    encoder, settings = encoders.load_encoder(model), Settings(2.0, 8, 3e-3, 12)
    examples = [
        Example(row.index, row.texts, 0) for row in load_task(GLUE_TASKS["stsb"], str(data)).dev["stsb"].examples
    ]
    rows = finetune.EncodedRows(examples, encoder, settings.max_length)
    again = finetune.predict(kept.load_kept(output / "models/stsb_7"), rows, encoder, settings, "stsb")
    assert again == [row["prediction"] for row in scored]


def test_a_tokenizer_that_cannot_be_kept_is_said_before_training(monkeypatch, tmp_path, data):
    model = make_model(tmp_path / "model")
    monkeypatch.setattr(encoders, "_load_tokenizer", lambda path: without_mask(AutoTokenizer.from_pretrained(path)))
    code, out, err = run(monkeypatch, model, data, tmp_path / "out", "sst2", "--keep-models")
    assert (code, out) == (2, "") and not (tmp_path / "out").exists()
    assert err == "error: --keep-models: the tokenizer has no mask token, which masked-language modelling needs\n"


def without_mask(tokenizer):
    tokenizer.mask_token = None
    return tokenizer


def test_a_damaged_kept_model_is_said(tmp_path):
    (tmp_path / "rte_1").mkdir()
    with pytest.raises(UserError, match="it cannot be loaded; remove it"):
        kept.load_kept(tmp_path / "rte_1")
