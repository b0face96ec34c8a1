"""Which tokens go on with a word, as the tokenizer of the shards says."""

from pathlib import Path

import pytest

from pipeline.data.vocabulary import load_vocabulary
from tests.support.runs import make_shards


def test_word_boundaries_follow_the_tokenizer(tmp_path):
    shards = make_shards(tmp_path / "shards", words=400)
    vocabulary = load_vocabulary(shards / "tokenizer")
    pieces = (shards / "tokenizer" / "vocab.txt").read_text().splitlines()
    assert vocabulary.continues_word.tolist() == [piece.startswith("##") for piece in pieces]
    assert 0 < vocabulary.continues_word.sum() < vocabulary.size == len(pieces)


class FakeTokenizer:
    """A tokenizer with these pieces and no special tokens among them."""

    cls_token_id = sep_token_id = mask_token_id = 9
    all_special_ids = (9,)

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = pieces

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


@pytest.mark.parametrize(
    "pieces,continues",
    [
        (["a", "##b", "\u2581", "##c"], [False, True, False, True]),
        (["\u2581a", "b", "\u2581", "##"], [False, True] * 2),
        (["\u0120a", "b", "\u0120", "##"], [False, True] * 2),
    ],
)
def test_one_odd_character_does_not_change_the_kind_of_a_vocabulary(monkeypatch, pieces, continues):
    """A WordPiece vocabulary may hold the character that begins words in SentencePiece's, and vice versa."""
    monkeypatch.setattr("pipeline.data.vocabulary.load_tokenizer", lambda directory: FakeTokenizer(pieces))
    assert load_vocabulary(Path()).continues_word.tolist() == continues
