"""A teacher with compactors that are still the identity folds to a student with exactly the teacher's scores."""

import copy

import torch
from safetensors.torch import load_file
from transformers import BertTokenizer

from pipeline import evaluate
from pipeline.compaction.fold import fold
from tests.support.models import compacted, random_teacher
from tests.support.runs import run_main

WORDS = [f"w{i}" for i in range(56)]


def test_the_identity_scores_as_its_teacher(tmp_path, monkeypatch):
    teacher = random_teacher(2, 24, 3, vocab=61)
    student = fold(compacted(copy.deepcopy(teacher), 24, 8, "dim").eval())[0].float()
    for name, model in (("teacher", teacher), ("student", student)):
        model.save_pretrained(tmp_path / name)
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
        BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(tmp_path / name)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "student"))
    encoder = [name for name in first if name.startswith("bert.") and "pooler" not in name]
    assert encoder and all(torch.equal(first[name], second[name]) for name in encoder)

    (tmp_path / "SST-2").mkdir()
    for stem, rows in (("train", 64), ("dev", 32)):
        lines = [f"{WORDS[(3 * i) % 54]} {WORDS[54 + i % 2]}\t{i % 2}" for i in range(rows)]
        (tmp_path / "SST-2" / f"{stem}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    short = ("--epochs", 3, "--max-length", 16, "--learning-rate", "1e-3", "--tasks", "sst2", "--seeds", "1,2")
    for name in ("teacher", "student"):
        paths = ("--model", tmp_path / name, "--data", tmp_path, "--output", tmp_path / f"scores_{name}")
        assert run_main(monkeypatch, evaluate.main, *paths, *short)[0] == 0
    for seed in (1, 2):
        predicted = [
            (tmp_path / f"scores_{n}/predictions/sst2_{seed}.jsonl").read_bytes() for n in ("teacher", "student")
        ]
        assert (
            predicted[0] == predicted[1] and b'"prediction": 0' in predicted[0] and b'"prediction": 1' in predicted[0]
        )
