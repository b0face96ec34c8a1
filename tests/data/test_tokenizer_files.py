"""What is written of a tokenizer: files that other tools read too, and nothing of machines or batches."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from pipeline.data.tokenizer_files import load_fast, write_tokenizer
from pipeline.data.tokenizer_source import load_auto
from pipeline.data.vocabulary import load_tokenizer
from pipeline.engine.student import write_student
from pipeline.errors import UserError
from preprocessing.tokenizing.tokenizer import load_encoder, save_tokenizer
from tests.support.models import random_teacher
from tests.support.shards import contents, write_vocabulary

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *LETTERS.upper(), *(f"##{c}" for c in LETTERS)]
SPECIAL = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
TEXTS = ["The FÓX naïve 東京 tower", "x" * 150, "Ünicode e\u0301", ""]
TRUNCATED = {"max_length": 128, "strategy": "longest_first", "stride": 0}
PADDED = {"length": 128, "pad_id": 0, "pad_token": "[PAD]"}
DETAILS = {"method": "wid", "step": 4, "tokens": 64, "trained_seq_len": 16}


def bert(**options):
    return BertTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, **options)


def student(tokenizer, output, **details):
    """The directory that fold.py writes."""
    write_student(random_teacher(), tokenizer, DETAILS | details, output)
    return output


def legacy_ids(directory, texts):
    """Ids of BERT's tokenizer in Python, as transformers 4 has it, from vocab.txt and tokenizer_config.json."""
    config = json.loads((directory / "tokenizer_config.json").read_text())
    names = ("do_lower_case", "strip_accents", "tokenize_chinese_chars")
    tokenizer = BertTokenizerLegacy(str(directory / "vocab.txt"), **{name: config[name] for name in names})
    return [tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) for text in texts]


def auto_ids(directory, texts):
    return AutoTokenizer.from_pretrained(directory)(texts, add_special_tokens=False)["input_ids"]


def as_plain_fast(tokenizer):
    """Of the class that transformers gives a tokenizer.json alone."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **SPECIAL)


@pytest.mark.parametrize(
    "make",
    [
        lambda: bert(),
        lambda: bert(do_lower_case=False),
        lambda: bert(strip_accents=False),
        lambda: bert(do_lower_case=False, additional_special_tokens=["[ENT]"]),
        lambda: as_plain_fast(bert(do_lower_case=False)),
    ],
    ids=["uncased", "cased", "accents", "more special tokens", "plain class"],
)
def test_a_wordpiece_student_has_a_vocabulary_file_with_equal_ids(tmp_path, make):
    (tmp_path / "shards").mkdir()
    write_tokenizer(make(), tmp_path / "shards")
    output = student(load_tokenizer(tmp_path / "shards"), tmp_path / "student")
    expected = make()(TEXTS, add_special_tokens=False)["input_ids"]
    assert legacy_ids(output, TEXTS) == auto_ids(output, TEXTS) == expected
    assert len((output / "vocab.txt").read_text().splitlines()) == len(AutoTokenizer.from_pretrained(output))
    config = json.loads((output / "tokenizer_config.json").read_text())
    # Names that transformers 4 knows, where the list of extra_special_tokens would be an error.
    assert config["tokenizer_class"] in ("BertTokenizer", "PreTrainedTokenizerFast")
    assert "extra_special_tokens" not in config
    assert AutoTokenizer.from_pretrained(output).all_special_tokens == make().all_special_tokens


def test_no_vocabulary_file_that_would_give_other_ids(tmp_path):
    tokenizer = bert().backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    write_tokenizer(as_plain_fast(bert()), tmp_path / "sound")
    write_tokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL), tmp_path / "other")
    assert (tmp_path / "sound" / "vocab.txt").is_file() and not (tmp_path / "other" / "vocab.txt").exists()


def test_a_byte_level_bpe_student_has_its_two_files(tmp_path):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(["the quick brown fox"] * 9, trainer)
    trained.model.save(str(tmp_path))
    files = [str(tmp_path / name) for name in ("vocab.json", "merges.txt")]
    original = RobertaTokenizer(vocab=files[0], merges=files[1])
    write_tokenizer(original, tmp_path / "shards")
    output = student(load_tokenizer(tmp_path / "shards"), tmp_path / "student")
    rebuilt = RobertaTokenizer(vocab=str(output / "vocab.json"), merges=str(output / "merges.txt"))
    assert rebuilt(TEXTS)["input_ids"] == original(TEXTS)["input_ids"]
    assert auto_ids(output, TEXTS) == original(TEXTS, add_special_tokens=False)["input_ids"]


def test_nothing_depends_on_the_machine(tmp_path):
    """Two places, and a configuration that someone else's machine has left its marks in."""
    marks = {
        "special_tokens_map_file": "/home/me/map.json",
        "tokenizer_file": None,
        "where": "/scratch/me",
        "token": "x",
    }
    for place in ("a", "b/c"):
        folder = tmp_path / place
        save_source(folder / "source", **marks)
        (folder / "shards").mkdir()
        save_tokenizer(folder / "source", folder / "shards")
        student(load_tokenizer(folder / "shards"), folder / "student")
    for name in ("shards", "student"):
        here, there = contents(tmp_path / "a" / name), contents(tmp_path / "b/c" / name)
        assert here == there
        config = json.loads(here["tokenizer_config.json"])
        odd = {"is_local", "local_files_only", "name_or_path", *marks}
        assert not odd & config.keys() and str(tmp_path).encode() not in b"".join(here.values())
        assert config["do_lower_case"] is False and config["unk_token"] == "[UNK]"


def save_source(directory, truncation=False, padding=False, **marks):
    """A Hugging Face directory."""
    tokenizer = bert(do_lower_case=False, model_max_length=32)
    if truncation:
        tokenizer.backend_tokenizer.enable_truncation(**TRUNCATED)
    if padding:
        tokenizer.backend_tokenizer.enable_padding(**PADDED)
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | marks))


@pytest.mark.parametrize(("truncation", "padding"), [(True, True), (True, False), (False, True)])
def test_truncation_and_padding_are_not_written(tmp_path, truncation, padding):
    save_source(tmp_path / "teacher", truncation, padding)
    assert len(Tokenizer.from_file(str(tmp_path / "teacher" / "tokenizer.json")).encode("a").ids) == 128 or not padding
    (tmp_path / "shards").mkdir()
    save_tokenizer(tmp_path / "teacher", tmp_path / "shards")
    # Shards of an earlier version carry them on.
    student(load_tokenizer(tmp_path / "teacher"), tmp_path / "of_old_shards")
    student(load_tokenizer(tmp_path / "shards"), tmp_path / "student")
    for name in ("shards", "student", "of_old_shards"):
        written = json.loads((tmp_path / name / "tokenizer.json").read_text())
        assert written["truncation"] is None and written["padding"] is None
        assert len(Tokenizer.from_file(str(tmp_path / name / "tokenizer.json")).encode("a b").ids) == 4
        config = json.loads((tmp_path / name / "tokenizer_config.json").read_text())
        left = {"max_length", "stride", "truncation_strategy", "pad_to_multiple_of", "pad_token_type_id"}
        assert not left & config.keys()
    assert load_encoder(tmp_path / "shards")(["a " * 200])[0].size == 200


def test_a_sound_tokenizer_is_written_as_transformers_writes_it(tmp_path):
    tokenizer = bert(do_lower_case=False)
    write_tokenizer(tokenizer, tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "theirs")
    ours, theirs = contents(tmp_path / "ours"), contents(tmp_path / "theirs")
    assert ours.pop("vocab.txt") == "".join(f"{token}\n" for token in TOKENS).encode()
    assert ours == theirs


def test_a_tokenizer_that_loads_as_another_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.data.tokenizer_files.load_auto", lambda directory: bert(do_lower_case=True))
    with pytest.raises(UserError, match="gives other ids once AutoTokenizer has loaded it"):
        write_tokenizer(bert(do_lower_case=False), tmp_path / "out")


def test_a_tokenizer_made_in_memory_takes_no_model_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards.model").write_bytes(b"someone's")
    (tmp_path / "in").mkdir()
    save_tokenizer(write_vocabulary(tmp_path / "vocab.txt"), tmp_path / "in")
    assert not (tmp_path / "in" / "shards.model").exists()
    assert load_auto(tmp_path / "in").get_vocab() == load_fast(tmp_path / "in").get_vocab()
