"""A teacher must read text as the shards' tokenizer does."""

import shutil

import pytest

from pipeline.data.agreement import check_same_tokenizer
from pipeline.data.vocabulary import load_tokenizer
from pipeline.errors import UserError
from tests.support.runs import make_shards


def test_a_teacher_with_another_tokenizer_of_the_same_size_is_refused(tmp_path):
    copied = tmp_path / "teacher"
    copied.mkdir()
    shards = make_shards(tmp_path / "shards", words=400)
    tokenizer = load_tokenizer(shards / "tokenizer")
    check_same_tokenizer(str(copied), shards, tokenizer)  # no tokenizer files: nothing to compare
    check_same_tokenizer("google/bert", shards, tokenizer)
    shutil.copytree(shards / "tokenizer", copied, dirs_exist_ok=True)
    check_same_tokenizer(str(copied), shards, tokenizer)
    swapped = tmp_path / "swapped"
    make_shards(swapped, words=400, extra=("zebra", "yak"))
    shutil.copytree(swapped / "tokenizer", copied, dirs_exist_ok=True)
    with pytest.raises(UserError, match="has another vocabulary than"):
        check_same_tokenizer(str(copied), shards, tokenizer)
