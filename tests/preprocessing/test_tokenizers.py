"""Tokenizers: trained ones are the same every time, and what goes out gives the ids of what came in."""

import json
import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from pipeline.data.tokenizer_source import read_vocabulary
from pipeline.errors import DataError, UserError
from preprocessing import build_shards
from preprocessing.readers.specs import sample_texts
from preprocessing.tokenizing.tokenizer import load_encoder, save_tokenizer
from preprocessing.tokenizing.wordpiece_training import train_wordpiece
from tests.support import ROOT
from tests.support.runs import run_main
from tests.support.shards import contents, run_script, sentences, write_vocabulary
from tests.support.texts import odd_texts, real_paragraphs

SHARED = Path(os.environ.get("WID_SHARED_DATA", ROOT.parent / "shared" / "data"))
BERT_VOCABULARY = SHARED / "vocab" / "bert-base-uncased-vocab.txt"
HARD = [
    "Ünïcode e\u0301 — “quotes”",
    "東京タワー 3.14",
    "\u200b\x00 \ufffd",
    "[SEP] in the text",
    "x" * 300,
    "don't!?",
    "",
]


def saved(source: Path, output: Path, cased: bool | None = None) -> Path:
    output.mkdir()
    save_tokenizer(source, output, cased)
    return output


@pytest.mark.skipif(not BERT_VOCABULARY.exists(), reason=f"needs the shared data ({BERT_VOCABULARY})")
def test_ids_are_those_of_bert_on_every_document(tmp_path):
    """Against transformers' own classes: the fast one, and the original in Python, which shares no code with ours."""
    natural = [*real_paragraphs(SHARED, 150_000), *HARD]
    texts = [*natural, *odd_texts(40)]
    directory = saved(BERT_VOCABULARY, tmp_path / "tokenizer")
    vocabulary = {token: index for index, token in enumerate(read_vocabulary(BERT_VOCABULARY))}
    fast, auto = BertTokenizerFast(vocab=vocabulary), AutoTokenizer.from_pretrained(directory)
    original = BertTokenizerLegacy(str(BERT_VOCABULARY))
    encoder = load_encoder(directory)
    assert (len(auto), encoder.vocab_size) == (30_522, 30_522)
    for text, ids in zip(texts, encoder(texts), strict=True):
        assert ids.tolist() == fast(text, add_special_tokens=False)["input_ids"], text[:100]
        assert ids.tolist() == auto(text, add_special_tokens=False)["input_ids"], text[:100]
    # Not on the odd ones: which characters are marks or controls differs between versions of Unicode.
    for text, ids in zip(natural, encoder(natural), strict=True):
        assert ids.tolist() == original.convert_tokens_to_ids(original.tokenize(text)), text[:100]


def test_a_vocabulary_alone_is_uncased_unless_said_otherwise(tmp_path):
    (tmp_path / "in").mkdir()
    vocabulary = write_vocabulary(tmp_path / "in" / "vocab.txt")
    uncased = AutoTokenizer.from_pretrained(saved(vocabulary, tmp_path / "uncased"))
    assert uncased.tokenize("The FÓX") == ["the", "fox"]
    cased = AutoTokenizer.from_pretrained(saved(tmp_path / "in", tmp_path / "cased", cased=True))
    assert cased.tokenize("The fox") == ["[UNK]", "fox"]
    assert (tmp_path / "cased" / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    ids = cased("fox")["input_ids"]
    assert (ids[0], ids[-1]) == (cased.cls_token_id, cased.sep_token_id) == (2, 3)


def test_a_hugging_face_directory_says_itself_what_it_is(tmp_path):
    """One from before tokenizer.json, with a vocab.txt that alone would be taken for uncased."""
    (tmp_path / "in").mkdir()
    write_vocabulary(tmp_path / "in" / "vocab.txt")
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "in" / "tokenizer_config.json").write_text(json.dumps(config))
    directory = saved(tmp_path / "in", tmp_path / "out")
    texts = [*odd_texts(5), "The FÓX and the fox"]
    expected = AutoTokenizer.from_pretrained(tmp_path / "in")(texts, add_special_tokens=False)["input_ids"]
    assert [ids.tolist() for ids in load_encoder(directory)(texts)] == expected
    assert AutoTokenizer.from_pretrained(directory)(texts, add_special_tokens=False)["input_ids"] == expected
    assert AutoTokenizer.from_pretrained(directory).tokenize("The fox") == ["[UNK]", "fox"]


def test_a_saved_tokenizer_goes_through_unchanged(tmp_path):
    first = saved(write_vocabulary(tmp_path / "vocab.txt"), tmp_path / "first")
    assert contents(saved(first, tmp_path / "second")) == contents(first)
    with pytest.raises(UserError, match="--cased"):
        saved(first, tmp_path / "third", cased=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[PAD]\n[UNK]\nthe\n", r"lacks \[CLS\], \[SEP\], \[MASK\]"),
        ("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\na\n", "line 8: token 'a' is already on line 6"),
        (b"\xff", "cannot read"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_vocabulary(path)


SPECIAL = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"


@pytest.mark.parametrize("place", ["vocab.txt", "directory", "configured"])
def test_a_vocabulary_with_capitals_must_be_said_to_be_cased_or_not(tmp_path, monkeypatch, place):
    """Alone, in a directory, and beside a configuration that says nothing on case."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "vocab.txt").write_text(SPECIAL + "[unused1]\nfox\nFox\n")
    if place == "configured":
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "model_max_length": 99}')
    (tmp_path / "a.txt").write_text("Fox fox\n")
    source = folder / "vocab.txt" if place == "vocab.txt" else folder
    command = ["--input", f"lines:{tmp_path}/a.txt", "--tokenizer", source, "--workers", 1, "--output"]
    code, _, err = run_main(monkeypatch, build_shards.main, *command, tmp_path / "open")
    assert code == 2 and "vocab.txt, line 8: 'Fox' has capitals" in err and "--cased" in err and "--uncased" in err
    assert not (tmp_path / "open").exists()
    for flag, ids in (("--cased", [7, 6]), ("--uncased", [6, 6])):
        output = tmp_path / flag
        code, _, err = run_main(monkeypatch, build_shards.main, *command, output, flag)
        assert code == 0, err
        assert load_encoder(output / "tokenizer")(["Fox fox"])[0].tolist() == ids
        auto = AutoTokenizer.from_pretrained(output / "tokenizer")
        assert auto("Fox fox", add_special_tokens=False)["input_ids"] == ids
        assert auto.model_max_length == (99 if place == "configured" else 512)


@pytest.mark.parametrize("token", ["[unused1]", "[ENT]", "<S>", "\u211d", "\u6771", "##fox"])
def test_what_lower_casing_leaves_alone_is_no_capital(tmp_path, token):
    """U+211D is an upper-case letter without a lower-case one; bert-base-uncased has it."""
    (tmp_path / "vocab.txt").write_text(f"{SPECIAL}fox\n{token}\n")
    directory = saved(tmp_path / "vocab.txt", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(directory).tokenize("FOX") == ["fox"]


@pytest.mark.parametrize("token", ["##X", "\u00c9", "iPhone", "\u0130"])
def test_any_letter_that_lower_casing_changes_is_a_capital(tmp_path, token):
    (tmp_path / "vocab.txt").write_text(f"{SPECIAL}fox\n{token}\n")
    with pytest.raises(UserError, match=r"line 7: .*--cased .*--uncased"):
        saved(tmp_path / "vocab.txt", tmp_path / "out")


def test_cased_and_uncased_are_for_what_does_not_say_it(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    vocabulary = write_vocabulary(tmp_path / "in" / "vocab.txt")
    (tmp_path / "in" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    for cased in (True, False):
        (tmp_path / f"{cased}").mkdir()
        with pytest.raises(UserError, match="--cased and --uncased are for"):
            save_tokenizer(tmp_path / "in", tmp_path / f"{cased}", cased)
    both = ["--input", "lines:a", "--tokenizer", vocabulary, "--output", tmp_path / "out", "--cased", "--uncased"]
    code, _, err = run_main(monkeypatch, build_shards.main, *both)
    assert code == 2 and "not allowed with" in err


@pytest.mark.parametrize("place", ["vocab.txt", "configured"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n",
        lambda text: "\ufeff" + (text + "\n\n").replace("\n", "\r\n"),
        lambda text: text.removesuffix("\n"),
    ],
    ids=["byte-order mark", "windows", "blank end", "all", "no end"],
)
def test_a_vocabulary_file_is_read_as_it_was_meant(tmp_path, place, change):
    for name in ("sound", "odd"):
        (tmp_path / name).mkdir()
        write_vocabulary(tmp_path / name / "vocab.txt")
        if place == "configured":
            (tmp_path / name / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    odd = tmp_path / "odd" / "vocab.txt"
    odd.write_bytes(change(odd.read_text()).encode())
    sources = [tmp_path / name / ("vocab.txt" if place == "vocab.txt" else "") for name in ("sound", "odd")]
    sound, read = (contents(saved(source, tmp_path / f"{i}")) for i, source in enumerate(sources))
    assert read == sound


@pytest.mark.parametrize("place", ["vocab.txt", "configured"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_blank_line_in_the_middle_of_a_vocabulary_is_refused(tmp_path, place, end):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "vocab.txt").write_bytes((SPECIAL + "fox\n\ndog\n").replace("\n", end).encode())
    if place == "configured":
        (tmp_path / "in" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(UserError, match=r"vocab\.txt, line 7: expected a token, found a blank line") as caught:
        saved(tmp_path / "in" / ("vocab.txt" if place == "vocab.txt" else ""), tmp_path / "out")
    assert caught.value.exit_code == 2


def test_a_broken_or_missing_tokenizer_is_one_sentence(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    for source in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="tokenizer") as caught:
            save_tokenizer(source, tmp_path)
        assert "\n" not in str(caught.value)


def test_training_gives_the_same_vocabulary_every_time():
    texts = [f"{line} {chr(0x4E00 + i)} ñandú No. {i * 7919}" for i, line in enumerate(sentences(900))]
    first = train_wordpiece(texts, 300, cased=False)
    assert len(first) == len(set(first)) == 300
    assert first[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and {"the", "quick", "n"} <= set(first)
    assert all(train_wordpiece(texts, 300, cased=False) == first for _ in range(4))
    assert "N" in train_wordpiece(texts, 300, cased=True)


def test_training_says_what_it_cannot_do():
    with pytest.raises(UserError, match="vocabulary of 6 tokens is too small"):
        train_wordpiece(sentences(100), 6, cased=False)
    with pytest.raises(DataError, match="no text"):
        train_wordpiece(["", "  "], 100, cased=False)


def test_a_sample_is_even_bounded_and_in_order():
    texts = [f"{index:03d}" for index in range(100)]
    assert sample_texts(texts, 300) == texts
    assert sample_texts(texts, 299) == texts[::2]
    assert sample_texts(texts, 100) == texts[::4]
    assert sample_texts(iter(texts), 2) == ["00"]
    assert sample_texts(["\u00e9\u00e9"], 3) == ["\u00e9"]


def test_the_script_trains_says_what_was_reached_and_never_overwrites(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences(200)))
    arguments = ["--input", f"lines:{tmp_path}/a.txt", "--vocab-size", 500, "--output", tmp_path / "out"]
    done = run_script("train_tokenizer", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    size = len(read_vocabulary(tmp_path / "out" / "vocab.txt"))
    assert (
        size < 500 and f"wordpiece vocabulary of {size} tokens" in done.stdout and "500 were asked for" in done.stdout
    )
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) == size
    before = contents(tmp_path)
    again = run_script("train_tokenizer", *arguments, module=True)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
    assert contents(tmp_path) == before
