"""What training must know of a tokenizer, read from the `tokenizer/` beside the shards."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.masking import Vocabulary
from pipeline.data.tokenizer_source import load_auto
from pipeline.errors import DataError, UserError

_GOES_ON = "##"
_BEGIN = ("\u2581", "\u0120")


def load_tokenizer(directory: Path) -> Any:
    """The Hugging Face tokenizer in `directory`.

    Raises:
        DataError: there is none that `AutoTokenizer` can load.
    """
    try:
        return load_auto(directory)
    except UserError as error:
        raise DataError(str(error)) from error


def load_vocabulary(directory: Path) -> Vocabulary:
    """Special ids and word boundaries of the tokenizer in `directory`.

    WordPiece marks the pieces that go on (`##ing`), SentencePiece and byte-level BPE those that begin a word.

    Raises:
        DataError: the tokenizer cannot be loaded or has no [CLS], [SEP] or [MASK].
    """
    tokenizer = load_tokenizer(directory)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask")}
    missing = [name for name, token_id in special.items() if token_id is None]
    if missing:
        raise DataError(f"{directory}: the tokenizer has no {missing[0]} token, which masked-language modelling needs")
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    continues = _continues_word(pieces) & ~np.isin(np.arange(len(pieces)), tokenizer.all_special_ids)
    return Vocabulary(len(pieces), special["cls"], special["sep"], special["mask"], continues_word=continues)


def _continues_word(pieces: list[str]) -> np.ndarray:
    """(pieces,) bool, read off the mark that most pieces bear: each may be ordinary text in another's vocabulary."""
    marked = {mark: np.array([piece.startswith(mark) for piece in pieces]) for mark in (_GOES_ON, *_BEGIN)}
    mark = max(marked, key=lambda mark: int(marked[mark].sum()))
    return marked[mark] if mark == _GOES_ON else ~marked[mark]
