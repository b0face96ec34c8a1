"""Tokenizers in and out: whatever the user has goes in, a directory that `AutoTokenizer` loads comes out.

In: a Hugging Face tokenizer directory; a SentencePiece `.model`; a `vocab.txt`, which says neither how it lower-cases
nor how it splits: it is taken for BERT's WordPiece, uncased if no token has capitals; where one has, the user must say.
Either of the files may be alone in a directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from pipeline.data.tokenizer_files import MODEL_FILE, load_fast, vocabulary_size, write_tokenizer
from pipeline.data.tokenizer_source import (
    CONFIG_FILE,
    MAX_LENGTH,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    find_files,
    first_capital,
    load_source,
    read_vocabulary,
    says_case,
    wordpiece_tokenizer,
)
from pipeline.errors import UserError
from preprocessing.tokenizing.sentencepiece_model import SentencePieceEncoder, as_transformers, read_model

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


def save_tokenizer(source: Path, output: Path, cased: bool | None = None) -> None:
    """Write the tokenizer that `source` describes into the existing directory `output`.

    Args:
        source: directory or file.
        output: directory that exists.
        cased: for a vocab.txt, which does not say how upper case is treated.

    Raises:
        UserError: it cannot be read, is not fit for masked-language modelling, leaves open whether it is cased, or
            `AutoTokenizer` would not give back the same ids from `output`.
    """
    vocabulary, model = _file_of(source, VOCABULARY_FILE, ".txt"), _file_of(source, MODEL_FILE, ".model")
    saved = any((source / name).is_file() for name in (TOKENIZER_FILE, CONFIG_FILE))
    files = find_files(source) if saved else {}
    if (saved and says_case(files)) or (model and not saved):
        if cased is not None:
            flags = "--cased and --uncased are for a vocab.txt alone"
            raise UserError(f"{source}: {flags}; this tokenizer says itself how it lower-cases")
    elif vocabulary and cased is None:
        _check_no_capitals(vocabulary)
    if model and (not saved or model.name == MODEL_FILE):
        _save_sentencepiece(model, output)
    elif saved:
        write_tokenizer(load_source(source, files, cased), output)
    elif vocabulary:
        write_tokenizer(wordpiece_tokenizer(read_vocabulary(vocabulary), do_lower_case=not cased), output)
    else:
        expected = "a vocab.txt, a SentencePiece .model or a directory with tokenizer files"
        raise UserError(f"{source}: no tokenizer: expected {expected}")


def _check_no_capitals(path: Path) -> None:
    """Refuse a vocabulary with tokens that lower-casing would put out of reach: its model may be a cased one."""
    if found := first_capital(read_vocabulary(path)):
        number, token = found
        raise UserError(
            f"{path}, line {number}: {token!r} has capitals, and a vocab.txt does not say how upper case is "
            "treated: give --cased to keep it or --uncased to drop it"
        )


def _file_of(source: Path, name: str, suffix: str) -> Path | None:
    """`source` itself, or the file in it of this name, or else its only one with the suffix."""
    if source.is_file():
        return source if source.suffix == suffix else None
    if (source / name).is_file():
        return source / name
    found = sorted(source.glob(f"*{suffix}"))
    return found[0] if len(found) == 1 else None


def _save_sentencepiece(path: Path, output: Path) -> None:
    tokenizer = as_transformers(read_model(path), MAX_LENGTH)
    write_tokenizer(tokenizer, output, path)
    (ids,) = load_encoder(output)([_SENTENCEPIECE_PROBE])
    if tokenizer(_SENTENCEPIECE_PROBE, add_special_tokens=False)["input_ids"] != ids.tolist():
        raise UserError(f"{path}: transformers cannot follow this SentencePiece model; it would give other ids")
