"""Tokenizers in and out: whatever the user has goes in, a directory that `AutoTokenizer` loads comes out.

In: a Hugging Face tokenizer directory; a SentencePiece `.model`; a `vocab.txt`, which says neither how it lower-cases
nor how it splits: it is taken for BERT's uncased WordPiece unless `cased` is asked for. Either of the files may be
alone in a directory.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from pipeline.errors import UserError
from preprocessing.tokenizing.sentencepiece_model import SentencePieceEncoder, as_transformers, read_model

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TOKENIZER_FILE = "tokenizer.json"
MODEL_FILE = "shards.model"
"""A SentencePiece model lies in a tokenizer directory under this name: it, not `TOKENIZER_FILE`, makes the ids."""
# BERT's position table; without it, later tools would never truncate.
_MAX_LENGTH = 512
# What transformers remembers of how it loaded a tokenizer; written along, it would change the fingerprint.
_LOADING_NOTES = ("is_local", "local_files_only", "name_or_path")
_PROBE = "Ångström's 2nd naïve test: 東京, don't ①②③ -- https://a.b/c_d?e=f\n\t\u03a3\u03c2 [UNK] 🙂 e\u0301"
_SENTENCEPIECE_PROBE = "  The 2nd naïve  test: 東京, don't ①②③ -- https://a.b/c_d?e=f\n\t(Cafe\u0301) 🙂 "


class Encoder(Protocol):
    """What turns text into the ids of a shard."""

    vocab_size: int
    """One more than the largest id."""

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (tokens,) int32 of each text, without special tokens."""


class FastEncoder:
    """Ids of the `tokenizers` library."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.vocab_size = vocabulary_size(tokenizer)
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (tokens,) int32 of each text, without special tokens."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def load_encoder(directory: Path) -> Encoder:
    """What makes the ids of shards with the tokenizer in a directory that `save_tokenizer` wrote."""
    tokenizer = load_fast(directory)
    if (directory / MODEL_FILE).is_file():
        return SentencePieceEncoder(directory / MODEL_FILE, vocabulary_size(tokenizer))
    return FastEncoder(tokenizer)


def save_tokenizer(source: Path, output: Path, cased: bool) -> None:
    """Write the tokenizer that `source` describes into the existing directory `output`.

    UserError if it cannot be read, is not fit for masked-language modelling, or `AutoTokenizer` would not give
    back the same ids from `output`.
    """
    vocabulary, model = _file_of(source, "vocab.txt", ".txt"), _file_of(source, MODEL_FILE, ".model")
    saved = any((source / name).is_file() for name in (TOKENIZER_FILE, "tokenizer_config.json"))
    if cased and (saved or model):
        raise UserError(f"{source}: --cased is for a vocab.txt alone; this tokenizer says itself how it lower-cases")
    if model and (not saved or model.name == MODEL_FILE):
        _save_sentencepiece(model, output)
    elif saved:
        save_directory(_load_auto(source), output)
    elif vocabulary:
        save_directory(wordpiece_tokenizer(read_vocabulary(vocabulary), cased), output)
    else:
        expected = "a vocab.txt, a SentencePiece .model or a directory with tokenizer files"
        raise UserError(f"{source}: no tokenizer: expected {expected}")


def wordpiece_tokenizer(vocabulary: list[str], cased: bool) -> Any:
    """A `BertTokenizer` of transformers over `vocabulary`, the token of each id in order."""
    from transformers import BertTokenizer

    # Given as vocab_file=, transformers 5 would ignore the vocabulary and build one of five tokens.
    ids = {token: index for index, token in enumerate(vocabulary)}
    return BertTokenizer(vocab=ids, do_lower_case=not cased, model_max_length=_MAX_LENGTH)


def read_vocabulary(path: Path) -> list[str]:
    """Tokens of a vocab.txt, one a line, in id order. UserError if it cannot be BERT's."""
    try:
        # Not splitlines: Unicode line separators are tokens of real vocabularies.
        tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read the vocabulary: {error}") from error
    if missing := [token for token in SPECIAL_TOKENS if token not in tokens]:
        raise UserError(f"{path}: not a BERT vocabulary: it lacks {', '.join(missing)}")
    seen = dict[str, int]()
    for number, token in enumerate(tokens, 1):
        if token in seen:
            raise UserError(f"{path}, line {number}: token {token!r} is already on line {seen[token]}")
        seen[token] = number
    return tokens


def save_directory(tokenizer: Any, output: Path) -> None:
    """Write a transformers tokenizer to `output`, with a vocab.txt for WordPiece, and check what loads from it."""
    absent = [name for name in ("pad", "unk", "cls", "sep", "mask") if getattr(tokenizer, f"{name}_token") is None]
    if absent:
        raise UserError(f"the tokenizer has no {', '.join(absent)} token, which masked-language modelling needs")
    for note in _LOADING_NOTES:
        tokenizer.init_kwargs.pop(note, None)
    tokenizer.save_pretrained(output)
    if not (output / TOKENIZER_FILE).is_file():
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) has no fast version ({TOKENIZER_FILE})")
    fast = load_fast(output)
    if vocabulary_size(fast) != fast.get_vocab_size():
        raise UserError(f"the tokenizer's {fast.get_vocab_size()} ids are not 0 to {fast.get_vocab_size() - 1}")
    if type(fast.model).__name__ == "WordPiece":
        vocabulary = sorted(fast.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
        text = "".join(f"{token}\n" for token, _ in vocabulary)
        (output / "vocab.txt").write_text(text, encoding="utf-8")
    loaded = _load_auto(output)
    # The shards get their ids from the fast tokenizer, everyone else from AutoTokenizer.
    if loaded(_PROBE, add_special_tokens=False)["input_ids"] != fast.encode(_PROBE, add_special_tokens=False).ids:
        raise UserError(f"the tokenizer ({type(tokenizer).__name__}) gives other ids once AutoTokenizer has loaded it")


def load_fast(directory: Path) -> Tokenizer:
    """The tokenizer of a directory that `save_tokenizer` wrote, as the Rust object that encodes batches."""
    tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def _file_of(source: Path, name: str, suffix: str) -> Path | None:
    """`source` itself, or the file in it of this name, or else its only one with the suffix."""
    if source.is_file():
        return source if source.suffix == suffix else None
    if (source / name).is_file():
        return source / name
    found = sorted(source.glob(f"*{suffix}"))
    return found[0] if len(found) == 1 else None


def _save_sentencepiece(path: Path, output: Path) -> None:
    tokenizer = as_transformers(read_model(path), _MAX_LENGTH)
    save_directory(tokenizer, output)
    shutil.copyfile(path, output / MODEL_FILE)
    (ids,) = load_encoder(output)([_SENTENCEPIECE_PROBE])
    if tokenizer(_SENTENCEPIECE_PROBE, add_special_tokens=False)["input_ids"] != ids.tolist():
        raise UserError(f"{path}: transformers cannot follow this SentencePiece model; it would give other ids")


def _load_auto(directory: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        # transformers raises whatever its parsers raise; all of it means the same to the user.
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"{directory}: transformers cannot load this tokenizer: {reason}") from error
