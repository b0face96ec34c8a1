"""Tasks of `evaluate.py` that need no fine-tuning: masked-LM loss on shard directories, and latency."""

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM

from pipeline import evaluate
from pipeline.data.loader import HeldOutData
from pipeline.data.open import open_shards
from pipeline.data.vocabulary import load_tokenizer
from pipeline.errors import run_entry_point
from tests.support.runs import make_shards, make_teacher, vocabulary_of


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with two shard directories, and a model that fits them."""
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("known", "new")):
        make_shards(folder / name, words=800, seed=number)
    model = make_teacher(tmp_path_factory.mktemp("model"), vocabulary_of(folder / "known"))
    load_tokenizer(folder / "known" / "tokenizer").save_pretrained(model)
    return folder, model


def run(monkeypatch, capfd, data: Path, model: Path, output: Path, tasks: str) -> tuple[int, str, str]:
    options = ["--data", str(data), "--model", str(model), "--output", str(output), "--tasks", tasks]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *options, "--max-length", "16"])
    with pytest.raises(SystemExit) as stop:
        run_entry_point(evaluate.main)
    return int(stop.value.code or 0), *capfd.readouterr()


def reference(model: Path, shards: Path) -> tuple[float, float]:
    """Loss and accuracy from logits at every position, picked afterwards."""
    bert = AutoModelForMaskedLM.from_pretrained(model).eval()
    source, _ = open_shards(shards, 16)
    losses, hits = [], []
    for batch, _ in HeldOutData(source, torch.arange(source.windows).numpy(), 0.15).batches(1):
        with torch.no_grad():
            logits = bert(input_ids=torch.from_numpy(batch.input_ids)).logits[0, batch.positions[0]]
        labels = torch.from_numpy(batch.labels[0])
        losses += F.cross_entropy(logits.double(), labels, reduction="none").tolist()
        hits += (logits.argmax(-1) == labels).tolist()
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_every_shard_directory_of_a_folder_is_scored_and_a_second_start_keeps_all(monkeypatch, capfd, inputs, tmp_path):
    folder, model = inputs
    code, out, err = run(monkeypatch, capfd, folder, model, tmp_path / "out", "mlm,latency")
    assert (code, err) == (0, "") and "mlm known" in out and "latency" in out
    written = (tmp_path / "out" / "results.json").read_text()
    tasks = json.loads(written)["tasks"]
    assert tasks.keys() == {"mlm known", "mlm new", "latency"}
    for name in ("known", "new"):
        loss, accuracy = reference(model, folder / name)
        assert tasks[f"mlm {name}"]["loss"]["mean"] == pytest.approx(loss, rel=1e-5)
        assert tasks[f"mlm {name}"]["accuracy"]["mean"] == pytest.approx(accuracy)
    assert tasks["mlm known"]["loss"]["mean"] != tasks["mlm new"]["loss"]["mean"]
    assert len(tasks["latency"]["milliseconds"]["seeds"]) == 5 and tasks["latency"]["milliseconds"]["mean"] > 0
    assert tasks["latency"]["data"].startswith("batch 1, 16 tokens, CPU, 1 thread")

    assert run(monkeypatch, capfd, folder, model, tmp_path / "out", "mlm,latency")[0] == 0
    assert (tmp_path / "out" / "results.json").read_text() == written  # timings included: nothing was measured again
    assert run(monkeypatch, capfd, folder / "new", model, tmp_path / "one", "mlm")[0] == 0
    one = json.loads((tmp_path / "one" / "results.json").read_text())["tasks"]
    assert one == {"mlm new": tasks["mlm new"]}


@pytest.mark.parametrize(
    ("data", "other_vocabulary", "expected"),
    [("empty", False, "task mlm needs a shard directory"), ("shards", True, "the shards have")],
)
def test_mistakes_get_one_sentence(monkeypatch, capfd, inputs, tmp_path, data, other_vocabulary, expected):
    (tmp_path / "empty").mkdir()
    make_shards(tmp_path / "shards", words=400, extra=("zebra",) if other_vocabulary else ())
    code, out, err = run(monkeypatch, capfd, tmp_path / data, inputs[1], tmp_path / "out", "mlm")
    assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1 and expected in err
