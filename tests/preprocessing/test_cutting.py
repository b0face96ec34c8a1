"""A long text in parts has the ids of the whole, for every tokenizer that is given parts; the others get it whole."""

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import quick_check
from pipeline.data.tokenizer_files import MODEL_FILE, write_tokenizer
from pipeline.data.tokenizer_source import SPECIAL_TOKENS
from preprocessing import build_shards
from preprocessing.build import reading
from preprocessing.tokenizing import training
from preprocessing.tokenizing.cutting import Cutter, load_cutter
from preprocessing.tokenizing.sentencepiece_model import SentencePieceEncoder
from preprocessing.tokenizing.sentencepiece_training import train_sentencepiece
from preprocessing.tokenizing.tokenizer import (
    Encoder,
    load_encoder,
    save_tokenizer,
)
from preprocessing.tokenizing.wordpiece_training import train_wordpiece
from tests.support import ROOT
from tests.support.runs import run_main
from tests.support.shards import WORDS, sentences, write_vocabulary
from tests.support.texts import odd_texts

TRAINING = sentences(300) + odd_texts(20, seed=5)

NARROW = [*sentences(300), "Été 東京 don't 1234567890"] * 2
"""For a vocabulary that knows few characters, so that others are unknown."""


def long_texts(count: int, seed: int) -> list[str]:
    """Texts of odd pieces and plain words, with every kind of white space between, and special tokens within."""
    draw, odd = random.Random(seed), odd_texts(3, seed=seed)
    pieces = [*odd, *WORDS, *SPECIAL_TOKENS, "1", "x2", "3rd", "don't"]
    gaps = [" ", " ", " ", " ", "  ", "\n", "\t", "", ", ", "\u3000", "\u00a0", " \u0301", "\u200b "]
    return ["".join(draw.choice(pieces) + draw.choice(gaps) for _ in range(80)) for _ in range(count)]


def wordpiece(directory: Path, cased: bool) -> None:
    tokens = train_wordpiece(TRAINING, 700, cased)
    (directory.parent / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens))
    save_tokenizer(directory.parent / "vocab.txt", directory, cased)


def fast(directory: Path, model, trainer, splitter, normalizer=None, added=()) -> None:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.train_from_iterator(TRAINING, trainer(vocab_size=900, special_tokens=list(SPECIAL_TOKENS)))
    tokenizer.add_tokens(list(added))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_TOKENS, strict=True))
    write_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names), directory)


def byte_level(directory: Path, prefix: bool, **more) -> None:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=more.pop("use_regex", True))
    fast(directory, models.BPE(), trainers.BpeTrainer, splitter, **more)


def sentencepiece_model(directory: Path, kind: str, **rules) -> None:
    """The file alone, which makes the ids; `rules` change what the model does with white space."""
    model = sentencepiece_model_pb2.ModelProto.FromString(train_sentencepiece(NARROW, kind, 300, cased=False))
    for name, value in rules.items():
        setattr(model.normalizer_spec, name, value)
    (directory / MODEL_FILE).write_bytes(model.SerializeToString())


def encoder_of(directory: Path) -> Encoder:
    if (directory / MODEL_FILE).exists():
        return SentencePieceEncoder(directory / MODEL_FILE, 0)
    return load_encoder(directory)


whitespace, digits = pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits()
CUT = {
    "uncased wordpiece": lambda path: wordpiece(path, False),
    "cased wordpiece": lambda path: wordpiece(path, True),
    "byte-level bpe": lambda path: byte_level(path, False),
    "byte-level bpe with a prefix": lambda path: byte_level(path, True, normalizer=normalizers.NFKC()),
    "bpe of words": lambda path: fast(
        path,
        models.BPE(unk_token="[UNK]"),
        trainers.BpeTrainer,
        pre_tokenizers.Sequence([whitespace, digits]),
        normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
    ),
    "sentencepiece bpe": lambda path: sentencepiece_model(path, "bpe"),
    "sentencepiece bpe that keeps white space": lambda path: sentencepiece_model(
        path, "bpe", remove_extra_whitespaces=False
    ),
    "sentencepiece bpe without prefix": lambda path: sentencepiece_model(
        path, "bpe", remove_extra_whitespaces=False, add_dummy_prefix=False
    ),
}
WHOLE = {
    "sentencepiece unigram": lambda path: sentencepiece_model(path, "unigram"),
    "sentencepiece bpe without prefix or extra spaces": lambda path: sentencepiece_model(
        path, "bpe", add_dummy_prefix=False
    ),
    "an added token with a space": lambda path: byte_level(path, False, added=["the fox"]),
    "an added token that takes the space behind it": lambda path: byte_level(
        path, False, added=[AddedToken("fox", rstrip=True)]
    ),
    "byte-level bpe over words": lambda path: byte_level(path, False, use_regex=False),
    "pieces that depend on where the text begins": lambda path: fast(
        path,
        models.BPE(unk_token="[UNK]"),
        trainers.BpeTrainer,
        pre_tokenizers.Sequence([whitespace, pre_tokenizers.Metaspace(prepend_scheme="first")]),
    ),
    "no splitting at all": lambda path: fast(path, models.BPE(unk_token="[UNK]"), trainers.BpeTrainer, None),
}


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("kind", CUT)
def test_parts_have_the_ids_of_the_whole(directory, monkeypatch, kind):
    CUT[kind](directory)
    encoder, cutter = encoder_of(directory), load_cutter(directory)
    texts = long_texts(120, seed=1) + odd_texts(2)
    whole = encoder(texts)
    assert sum(len(list(cutter.parts(text, 1))) for text in texts) > 500, "nothing was cut"
    for size in (1, 7, 60):
        monkeypatch.setattr(reading, "_BATCH_CHARACTERS", size)
        found = list(reading.encode(encoder, cutter, texts))
        assert [text for text, _ in found] == texts
        for text, (_, ids), expected in zip(texts, found, whole, strict=True):
            assert np.array_equal(ids, expected), (size, text)


@pytest.mark.parametrize("kind", WHOLE)
def test_texts_stay_whole_where_equal_ids_cannot_be_had(directory, kind):
    WHOLE[kind](directory)
    assert load_cutter(directory) == Cutter()
    assert list(load_cutter(directory).parts("the fox and the dog", 1)) == ["the fox and the dog"]


def test_of_these_some_would_have_other_ids(directory):
    """The test of equal ids sees a wrong cut: byte-level BPE that loses the space, and an added token in two."""
    byte_level(directory, False, added=["the fox"])
    encoder, boundary = load_encoder(directory), re.compile(" ")
    text = "so the fox sees the fox"
    for keep_space in (False, True):
        parts = list(Cutter(boundary, keep_space).parts(text, 1))
        assert np.concatenate(encoder(parts)).tolist() != encoder([text])[0].tolist()


def test_a_sentencepiece_part_begins_as_the_library_begins_a_text(directory):
    sentencepiece_model(directory, "bpe")
    whole, first, second = encoder_of(directory)(["the fox", "the", "fox"])
    assert whole.tolist() == [*first, *second]


@pytest.mark.parametrize("size", [1 << 18, 50])
def test_a_long_document_stays_one_sequence(tmp_path, monkeypatch, size):
    """In the shard, beside short ones, with equal bytes whatever the parts."""
    lines = [*sentences(5), " ".join(sentences(60)), *sentences(5, seed=2)]
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n")
    arguments = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", write_vocabulary(tmp_path / "vocab.txt")]
    monkeypatch.setattr(reading, "_BATCH_CHARACTERS", size)
    done = run_main(monkeypatch, build_shards.main, *arguments, "--output", tmp_path / "out", "--workers", 1)
    assert done[0] == 0, done
    (shard,) = quick_check(tmp_path / "out").shards
    reader = IndexedReader(tmp_path / "out" / shard.name)
    encoder = load_encoder(tmp_path / "out" / "tokenizer")
    assert [reader[i].tolist() for i in range(len(reader))] == [ids.tolist() for ids in encoder(lines)]


def test_a_vocabulary_is_the_same_from_parts(tmp_path, monkeypatch):
    text = " ".join(long_texts(40, seed=3) + sentences(40))
    for name, size in (("whole", 1 << 30), ("parts", 20)):
        monkeypatch.setattr(training, "_PART_CHARACTERS", size)
        training.train_and_save([text], "wordpiece", 600, False, tmp_path / name)
    whole, parts = (tmp_path / name / "vocab.txt" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes() and whole.stat().st_size > 1000


@pytest.mark.slow
def test_a_line_of_ten_megabytes_takes_no_hundred_times_its_size(tmp_path):
    """The peak of the whole process: 300 MB for its libraries, and some copies of the text and its ids."""
    (tmp_path / "a.txt").write_text(" ".join(sentences(100_000)) + "\n")
    arguments = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", write_vocabulary(tmp_path / "vocab.txt")]
    code = "import resource, sys; from preprocessing import build_shards; build_shards.main()\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    command = [sys.executable, "-c", code, *arguments, "--output", tmp_path / "out", "--workers", "1"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True, text=True)
    assert int(done.stdout.split()[-1]) < 600_000
