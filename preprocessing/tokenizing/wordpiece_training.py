"""Training of a WordPiece vocabulary, the same one every time.

The trainer of the `tokenizers` library counts in hash maps with random seeds. Two things then differ from run to
run: which of equally rare characters make the cut, and the ids of the single characters, which break ties between
equally frequent pairs. So the characters are chosen here and handed to the trainer in a fixed order.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from pipeline.data.tokenizer_source import SPECIAL_TOKENS
from pipeline.errors import DataError, UserError

_MAX_CHARACTERS = 1_000
"""As in BERT's own vocabulary."""
_MAX_CHARACTER_SHARE = 1 / 8
"""In a small vocabulary, characters must leave room for words."""
_MIN_FREQUENCY = 2


def train_wordpiece(texts: Sequence[str], vocab_size: int, cased: bool) -> list[str]:
    """Return at most `vocab_size` tokens in id order, special tokens first; fewer where the text gives no more.

    Raises:
        DataError: there is no text.
        UserError: the vocabulary is too small for the text's characters.
    """
    normalizer = normalizers.BertNormalizer(lowercase=not cased)
    characters, continuing = _choose_characters(_count_words(texts, normalizer), vocab_size)
    fixed = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in continuing)]
    if len(fixed) >= vocab_size:
        needed = f"its special tokens and characters alone take {len(fixed)}"
        raise UserError(f"a vocabulary of {vocab_size} tokens is too small for this text: {needed}")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=_MIN_FREQUENCY,
        # "Special" only fixes their ids here; the tokenizer that is saved is made anew from the vocabulary.
        special_tokens=fixed,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]


def _count_words(texts: Iterable[str], normalizer: normalizers.BertNormalizer) -> Counter[str]:
    words = Counter[str]()
    for text in texts:
        words.update(normalizer.normalize_str(text).split())
    if not words:
        raise DataError("the input holds no text to train a tokenizer on")
    return words


def _choose_characters(words: Counter[str], vocab_size: int) -> tuple[list[str], list[str]]:
    """Return the characters of the vocabulary and those of them that continue a word, each sorted."""
    total, continuing = Counter[str](), set[str]()
    for piece, count in _split_punctuation(words):
        for character in piece:
            total[character] += count
        continuing.update(piece[1:])
    limit = min(_MAX_CHARACTERS, max(1, int(vocab_size * _MAX_CHARACTER_SHARE)))
    frequent = sorted((c for c in total if total[c] >= _MIN_FREQUENCY), key=lambda c: (-total[c], c))[:limit]
    return sorted(frequent), sorted(continuing.intersection(frequent))


def _split_punctuation(words: Counter[str]) -> Iterator[tuple[str, int]]:
    splitter = pre_tokenizers.BertPreTokenizer()
    for word, count in words.items():
        for piece, _ in splitter.pre_tokenize_str(word):
            yield piece, count
