"""SentencePiece: the shards' ids are the library's, AutoTokenizer's are the same, and a BERT can be trained on them."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer

from pipeline import fold
from pipeline.data.indexed import IndexedReader
from pipeline.data.manifest import Manifest, read_manifest, tokenizer_fingerprint
from pipeline.data.tokenizer_files import write_tokenizer
from pipeline.data.vocabulary import load_tokenizer, load_vocabulary
from pipeline.errors import DataError, UserError
from preprocessing.tokenizing.sentencepiece_training import train_sentencepiece
from preprocessing.tokenizing.tokenizer import MODEL_FILE, load_encoder, save_tokenizer
from tests.support import ROOT
from tests.support.runs import (
    make_teacher,
    recipe_values,
    run_main,
    run_train_worker,
    train_command,
    write_deepspeed,
    write_recipe,
)
from tests.support.shards import contents, run_script, sentences, write_shard
from tests.support.texts import odd_texts, real_paragraphs

SHARED = Path(os.environ.get("WID_SHARED_DATA", ROOT.parent / "shared" / "data"))
ALBERT = SHARED / "vocab" / "albert-v2-spiece.model"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [f"{line}, Caf\u00e9 No. {i * 7919}! Za\u017c\u00f3\u0142\u0107" for i, line in enumerate(sentences(300))]
SIZE = 200
KINDS = ("unigram", "bpe")
needs_albert = pytest.mark.skipif(not ALBERT.exists(), reason=f"needs the shared data ({ALBERT})")


def saved(source: Path, output: Path) -> Path:
    output.mkdir()
    save_tokenizer(source, output)
    return output


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tmp_path_factory):
    """The model file of each kind and the tokenizer directory made of it."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "my.model").write_bytes(train_sentencepiece(TEXTS, request.param, SIZE, cased=False))
    return folder / "my.model", saved(folder / "my.model", folder / "tokenizer")


def library(path: Path, texts: list[str]) -> list[list[int]]:
    return sentencepiece.SentencePieceProcessor(model_file=str(path)).encode(texts)


def auto_ids(directory: Path, texts: list[str]) -> list[list[int]]:
    return AutoTokenizer.from_pretrained(directory)(texts, add_special_tokens=False)["input_ids"]


def test_trained_ids_are_the_librarys_everywhere(trained):
    model, directory = trained
    texts = [*TEXTS, *odd_texts(30), "[SEP] <unk> \u2581[CLS]"]
    encoder = load_encoder(directory)
    assert [ids.tolist() for ids in encoder(texts)] == library(model, texts)
    assert encoder.vocab_size == SIZE and {ids.dtype for ids in encoder(texts)} == {np.dtype(np.int32)}
    together = "\n".join(TEXTS)  # long enough for rounding to show, were the scores not made for it
    assert auto_ids(directory, [*TEXTS, together]) == library(model, [*TEXTS, together])


@pytest.mark.skipif(not ALBERT.exists(), reason=f"needs the shared data ({ALBERT})")
def test_real_text_gets_the_librarys_ids(trained, tmp_path):
    texts = real_paragraphs(SHARED, 150_000)
    for model, directory in (trained, (ALBERT, saved(ALBERT, tmp_path / "albert"))):
        expected = library(model, texts)
        assert [ids.tolist() for ids in load_encoder(directory)(texts)] == expected
        assert auto_ids(directory, texts) == expected


def test_a_trained_model_has_what_bert_needs(trained):
    model, directory = trained
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.convert_ids_to_tokens(range(5)) == SPECIAL and len(tokenizer) == SIZE
    special = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert (*special, tokenizer.mask_token_id) == (0, 1, 2, 3, 4)
    pair = tokenizer("the fox", "a dog")
    assert pair["token_type_ids"] == [0] * (tokenizer("the fox")["input_ids"].index(3) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(3) - 1
    )
    assert pair["input_ids"][0] == 2 and pair["input_ids"][-1] == 3
    assert tokenizer("the [MASK] fox")["input_ids"].count(4) == 1
    assert tokenizer.decode(tokenizer("the quick fox")["input_ids"], skip_special_tokens=True) == "the quick fox"
    # No text gets a special id: a document cannot forge the loader's separators.
    assert not {2, 3, 4} & {index for ids in library(model, ["[CLS] [SEP] [MASK]"]) for index in ids}
    assert (directory / MODEL_FILE).read_bytes() == model.read_bytes()


def test_a_saved_tokenizer_goes_through_unchanged(trained, tmp_path):
    _, directory = trained
    assert contents(saved(directory, tmp_path / "second")) == contents(directory)
    with pytest.raises(UserError, match="--cased"):
        save_tokenizer(directory, tmp_path, cased=True)


def test_pieces_that_do_not_begin_a_word_continue_one(trained):
    model, directory = trained
    vocabulary = load_vocabulary(directory)
    (ids,) = load_encoder(directory)(["quick fox, xylophone"])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model)).id_to_piece(ids.tolist())
    assert "".join(pieces) == "\u2581quick\u2581fox,\u2581xylophone"
    assert vocabulary.continues_word[ids].tolist() == [not piece.startswith("\u2581") for piece in pieces]
    assert not vocabulary.continues_word[:5].any() and vocabulary.size == SIZE


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_same_model_every_time(kind):
    first = train_sentencepiece(TEXTS, kind, SIZE, cased=True)
    assert train_sentencepiece(TEXTS, kind, SIZE, cased=True) == first
    pieces = {piece.piece for piece in sentencepiece_model_pb2.ModelProto.FromString(first).pieces}
    assert "N" in pieces and "N" not in {
        piece.piece
        for piece in sentencepiece_model_pb2.ModelProto.FromString(
            train_sentencepiece(TEXTS, kind, SIZE, cased=False)
        ).pieces
    }


@pytest.mark.parametrize("kind", KINDS)
def test_training_says_what_it_cannot_do(kind):
    with pytest.raises(UserError, match=r"vocabulary of 8 tokens is too small.*alone take"):
        train_sentencepiece(TEXTS, kind, 8, cased=False)
    with pytest.raises(DataError, match="no text"):
        train_sentencepiece(["", " \n"], kind, 100, cased=False)


@needs_albert
def test_alberts_own_special_ids_are_used(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(saved(ALBERT, tmp_path / "albert"))
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["<pad>", "<unk>", *SPECIAL[2:]] and len(tokenizer) == 30_000
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id) == (0, 2, 4)
    texts = odd_texts(30)
    assert [ids.tolist() for ids in load_encoder(tmp_path / "albert")(texts)] == library(ALBERT, texts)


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_that_a_model_lacks_follow_its_own(kind, tmp_path):
    """As in models made for translation, which have <s>, </s> and <unk> only."""
    with open(tmp_path / "other.model", "wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=stream, model_type=kind, vocab_size=SIZE, minloglevel=2
        )
    directory = saved(tmp_path / "other.model", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.convert_tokens_to_ids(special) == [SIZE, SIZE + 1, SIZE + 2, SIZE + 3]
    assert tokenizer.unk_token == "<unk>" and load_encoder(directory).vocab_size == SIZE + 4 == len(tokenizer)
    assert [ids.tolist() for ids in load_encoder(directory)(TEXTS)] == library(tmp_path / "other.model", TEXTS)
    assert not load_vocabulary(directory).continues_word[SIZE:].any()


def test_what_is_no_usable_model_is_one_sentence(tmp_path):
    (tmp_path / "broken.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"broken\.model: cannot read"):
        save_tokenizer(tmp_path / "broken.model", tmp_path)
    for options, message in (
        ({"model_type": "char"}, "unigram or bpe"),
        ({"treat_whitespace_as_suffix": True}, "ends"),
    ):
        with open(tmp_path / "other.model", "wb") as stream:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(TEXTS),
                model_writer=stream,
                **{"model_type": "bpe", "vocab_size": 120, "hard_vocab_limit": False, "minloglevel": 2, **options},
            )
        with pytest.raises(UserError, match=message):
            save_tokenizer(tmp_path / "other.model", tmp_path)


def test_from_text_to_model_to_shards(tmp_path):
    odd = "cafe\u0301\u0323 fox"  # AutoTokenizer drops both marks
    (tmp_path / "a.txt").write_text("\n".join([*TEXTS, odd]), encoding="utf-8")
    training = ["--input", f"lines:{tmp_path}/a.txt", "--vocab-size", SIZE, "--output", tmp_path / "tokenizer"]
    done = run_script("train_tokenizer", "--kind", "unigram", *training, "--sample-bytes", 20_000)
    assert (done.returncode, done.stderr) == (0, "") and f"unigram vocabulary of {SIZE} tokens" in done.stdout
    model = tmp_path / "tokenizer" / MODEL_FILE
    building = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", model, "--output", tmp_path / "shards"]
    done = run_script("build_shards", *building, "--workers", 1)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "shards" / "tokenizer") == contents(tmp_path / "tokenizer")
    readers = [IndexedReader(tmp_path / "shards" / shard.name) for shard in read_manifest(tmp_path / "shards").shards]
    stored = [ids.tolist() for reader in readers for ids in reader]
    assert stored == library(model, [*TEXTS, odd])
    assert stored[:-1] == auto_ids(tmp_path / "shards" / "tokenizer", TEXTS)


def test_a_run_on_sentencepiece_shards_trains_and_folds(trained, tmp_path, monkeypatch):
    """The student's tokenizer gives the ids that it was trained on."""
    model, directory = trained
    shards = tmp_path / "shards"
    shutil.copytree(directory, shards / "tokenizer")
    documents = library(model, TEXTS)
    manifest = Manifest("0" * 64, tokenizer_fingerprint(directory), SIZE, {}, (write_shard(shards / "s", documents),))
    manifest.write(shards)
    values = recipe_values(shards, make_teacher(tmp_path / "teacher", SIZE), data={"whole_word": True})
    recipe = write_recipe(tmp_path / "recipe.yaml", values)
    inputs = {"recipe": recipe, "deepspeed": write_deepspeed(tmp_path / "deepspeed.json")}
    run_train_worker(tmp_path, train_command(inputs, tmp_path / "run"))
    code, _, err = run_main(monkeypatch, fold.main, "--run", tmp_path / "run", "--output", tmp_path / "student")
    assert code == 0, err
    assert auto_ids(tmp_path / "student", TEXTS) == documents
    assert (tmp_path / "student" / MODEL_FILE).read_bytes() == model.read_bytes()
    assert not (tmp_path / "student" / "vocab.json").exists()
    assert [ids.tolist() for ids in load_encoder(tmp_path / "student")(TEXTS)] == documents


@pytest.mark.parametrize("trained", ["unigram"], indirect=True)
def test_a_model_under_the_name_of_its_class_goes_along(trained, tmp_path):
    """As in directories of ALBERT's: another tool's class reads it, the ids come from tokenizer.json."""
    model, _ = trained
    shutil.copyfile(model, tmp_path / "spiece.model")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    expected = auto_ids(tmp_path, TEXTS)
    directory = saved(tmp_path, tmp_path / "shards")
    (tmp_path / "student").mkdir()
    write_tokenizer(load_tokenizer(directory), tmp_path / "student")
    for written in (directory, tmp_path / "student"):
        assert (written / "spiece.model").read_bytes() == model.read_bytes()
        assert not (written / MODEL_FILE).exists() and auto_ids(written, TEXTS) == expected
