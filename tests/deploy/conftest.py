"""Models to export: the shipped teacher, cut to fewer layers where it need not be good, and a kept classifier."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer

from pipeline import export
from pipeline.deploy import latency, text
from tests.support import ROOT
from tests.support.runs import run_main

TEACHER = ROOT / "teachers" / "wiki_books_4x192"
WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture(scope="module", autouse=True)
def small_and_quick():
    """One thread, 4,000 tokens, and a table of latencies that is filled, no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "MOST_TOKENS", 4_000)
        patch.setattr(latency, "SECONDS", 1e-3)
        patch.setattr(latency, "BATCHES", (1, 2))
        patch.setattr(latency, "LENGTHS", (32, 64))
        patch.setattr(latency, "thread_counts", lambda: (1,))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run_export() -> Callable[..., tuple[int, str, str]]:
    """Runs pipeline/export.py in this process: exit code, stdout, stderr."""

    def run(model: Path, output: Path, *more: object) -> tuple[int, str, str]:
        with pytest.MonkeyPatch.context() as patch:
            return run_main(patch, export.main, "--model", model, "--output", output, *more)

    return run


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory) -> Path:
    """The shipped teacher without its last three layers."""
    directory = tmp_path_factory.mktemp("models") / "one_layer"
    shutil.copytree(TEACHER, directory)
    BertForMaskedLM.from_pretrained(TEACHER, num_hidden_layers=1).save_pretrained(directory)
    return directory


def make_classifier(directory: Path, segments: int = 1) -> Path:
    """What `evaluate.py --keep-models` keeps: a classifier for SST-2 that goes by the first word."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={token: number for number, token in enumerate(tokens)}, model_max_length=20).save_pretrained(
        directory
    )
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    names = {0: "negative", 1: "positive"}
    config = BertConfig(
        vocab_size=len(tokens),
        max_position_embeddings=24,
        type_vocab_size=segments,
        initializer_range=0.5,
        id2label=names,
        label2id={name: number for number, name in names.items()},
        **shape,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def write_sst2(folder: Path, rows: int = 60) -> Path:
    """Sentences of 1 to 30 words: some are longer than the tokenizer truncates to."""
    (folder / "SST-2").mkdir(parents=True)
    for stem in ("train", "dev"):
        lines = [
            " ".join(WORDS[(number + place) % 12] for place in range(1 + number % 30)) + f"\t{number % 2}"
            for number in range(rows)
        ]
        (folder / "SST-2" / f"{stem}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def write_words(path: Path) -> str:
    """A text of the classifier's own words, as a SPEC."""
    path.write_text("\n".join(" ".join(WORDS[(line * 5 + place) % 12] for place in range(40)) for line in range(80)))
    return f"lines:{path}"
