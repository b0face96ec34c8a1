"""A teacher must give text the ids that the shards' tokenizer gives."""

import json
import shutil

import pytest
from huggingface_hub import constants
from transformers import BertConfig, BertTokenizer, PreTrainedTokenizerFast

from pipeline.data.agreement import check_same_tokenizer
from pipeline.data.vocabulary import load_tokenizer
from pipeline.errors import UserError
from preprocessing.tokenizing.tokenizer import save_tokenizer
from tests.support.runs import make_shards

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *LETTERS.upper(), ".", *(f"##{c}" for c in LETTERS)]
REVISION = "0" * 40


def bert(**options):
    return BertTokenizer(vocab={token: index for index, token in enumerate(TOKENS)}, **options)


def write_tokens(directory, config=None, teacher=True):
    """A directory with a vocab.txt and, if given, a tokenizer_config.json; a teacher's has a config.json too."""
    directory.mkdir(parents=True)
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in TOKENS))
    if config is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"} | config))
    if teacher:
        BertConfig(vocab_size=len(TOKENS)).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Tokenizers of shards made of the same vocabulary, by whether they keep upper case."""
    folder = tmp_path_factory.mktemp("tokenizers")
    source = write_tokens(folder / "source", teacher=False) / "vocab.txt"
    for cased in (True, False):
        (folder / str(cased)).mkdir()
        save_tokenizer(source, folder / str(cased), cased)
    return {cased: load_tokenizer(folder / str(cased)) for cased in (True, False)}


def test_a_teacher_with_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    copied = tmp_path / "teacher"
    copied.mkdir()
    shards = make_shards(tmp_path / "shards", words=400)
    tokenizer = load_tokenizer(shards / "tokenizer")
    check_same_tokenizer(str(copied), shards, tokenizer)  # no tokenizer files: nothing to compare
    check_same_tokenizer("google/bert", shards, tokenizer)  # nowhere: loading the weights says so
    shutil.copytree(shards / "tokenizer", copied, dirs_exist_ok=True)
    check_same_tokenizer(str(copied), shards, tokenizer)
    swapped = tmp_path / "swapped"
    make_shards(swapped, words=400, extra=("zebra", "yak"))
    shutil.copytree(swapped / "tokenizer", copied, dirs_exist_ok=True)
    with pytest.raises(UserError, match="has another vocabulary than"):
        check_same_tokenizer(str(copied), shards, tokenizer)


@pytest.mark.parametrize("cased", [True, False])
@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json"])
def test_a_teacher_that_treats_upper_case_otherwise_is_refused(shards, tmp_path, files, cased):
    """Both have the same vocabulary."""
    teacher = tmp_path / "teacher"
    if files == "vocab.txt":
        write_tokens(teacher, {"do_lower_case": not cased})
    else:
        bert(do_lower_case=not cased).save_pretrained(teacher)
    check_same_tokenizer(str(teacher), tmp_path, shards[cased])
    with pytest.raises(UserError, match=r"differ in lower-casing \('A' is .*with the model's tokenizer directory"):
        check_same_tokenizer(str(teacher), tmp_path, shards[not cased])


@pytest.mark.parametrize(
    ("options", "treatment"),
    [({"strip_accents": False}, "accents"), ({"tokenize_chinese_chars": False}, "Chinese characters")],
)
def test_other_treatments_of_text_are_refused_too(shards, tmp_path, options, treatment):
    bert(**options).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"they differ in {treatment} "):
        check_same_tokenizer(str(tmp_path), tmp_path, shards[False])


def test_a_teacher_that_says_nothing_on_case_follows_the_shards(shards, tmp_path):
    """transformers would lower-case for it; whoever built the shards has said what is right."""
    for number, config in enumerate((None, {"model_max_length": 64})):
        teacher = write_tokens(tmp_path / f"teacher{number}", config)
        for cased in (True, False):
            check_same_tokenizer(str(teacher), tmp_path, shards[cased])


def test_a_vocabulary_written_by_windows_is_the_same_vocabulary(shards, tmp_path):
    teacher = write_tokens(tmp_path / "teacher", {"do_lower_case": False})
    text = (teacher / "vocab.txt").read_text()
    (teacher / "vocab.txt").write_bytes(("\ufeff" + text + "\n").replace("\n", "\r\n").encode())
    check_same_tokenizer(str(teacher), tmp_path, shards[True])


def test_truncation_and_padding_are_no_difference(shards, tmp_path):
    tokenizer = bert(do_lower_case=False)
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=4)
    tokenizer.save_pretrained(tmp_path)
    check_same_tokenizer(str(tmp_path), tmp_path, shards[True])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The directory of a repository `someone/bert` in the cache of the hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache" / "models--someone--bert"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION)
    return repository


@pytest.mark.parametrize("files", ["vocab.txt", "tokenizer.json"])
def test_a_teacher_of_the_hub_is_compared_like_a_directory(shards, tmp_path, hub, files):
    snapshot = write_tokens(hub / "snapshots" / REVISION, {"do_lower_case": False})
    if files == "tokenizer.json":
        bert(do_lower_case=False).save_pretrained(snapshot)
        (snapshot / "vocab.txt").unlink()
    check_same_tokenizer("someone/bert", tmp_path, shards[True])
    with pytest.raises(UserError, match=r"teacher someone/bert and .* differ in lower-casing"):
        check_same_tokenizer("someone/bert", tmp_path, shards[False])


def test_a_teacher_of_the_hub_without_tokenizer(shards, tmp_path, hub):
    """One that is known to have none passes; one whose tokenizer cannot be fetched does not."""
    BertConfig().save_pretrained(hub / "snapshots" / REVISION)
    with pytest.raises(UserError, match="tokenizer of teacher someone/bert cannot be loaded from disk or from the hub"):
        check_same_tokenizer("someone/bert", tmp_path, shards[True])
    absent = hub / ".no_exist" / REVISION
    absent.mkdir(parents=True)
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
    for name in (*names, "tokenizer_config.json"):
        (absent / name).touch()
    check_same_tokenizer("someone/bert", tmp_path, shards[True])


def test_a_broken_tokenizer_of_a_teacher_is_one_sentence(shards, tmp_path):
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=bert().backend_tokenizer, **special).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="transformers cannot load this tokenizer") as caught:
        check_same_tokenizer(str(tmp_path), tmp_path, shards[True])
    assert "\n" not in str(caught.value)
