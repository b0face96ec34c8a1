"""What training must know of a tokenizer, read from the `tokenizer/` beside the shards."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.data.masking import Vocabulary
from pipeline.errors import DataError


def load_tokenizer(directory: Path) -> Any:
    """The Hugging Face tokenizer in `directory`.

    Raises:
        DataError: there is none that `AutoTokenizer` can load.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(directory))
    except (OSError, ValueError) as error:
        raise DataError(f"{directory} holds no tokenizer that transformers can load ({_first_line(error)})") from error


def load_vocabulary(directory: Path) -> Vocabulary:
    """Special ids and word boundaries of the tokenizer in `directory`.

    WordPiece marks the pieces that go on (`##ing`), SentencePiece those that begin a word.

    Raises:
        DataError: the tokenizer cannot be loaded or has no [CLS], [SEP] or [MASK].
    """
    tokenizer = load_tokenizer(directory)
    special = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask")}
    missing = [name for name, token_id in special.items() if token_id is None]
    if missing:
        raise DataError(f"{directory}: the tokenizer has no {missing[0]} token, which masked-language modelling needs")
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Either sign may also be an ordinary character of the other kind's vocabulary.
    begins, goes_on = (sum(piece.startswith(sign) for piece in pieces) for sign in ("\u2581", "##"))
    sentencepiece = begins > goes_on
    ids = set(tokenizer.all_special_ids)
    continues = [
        index not in ids and (not piece.startswith("\u2581") if sentencepiece else piece.startswith("##"))
        for index, piece in enumerate(pieces)
    ]
    return Vocabulary(
        len(pieces), special["cls"], special["sep"], special["mask"], continues_word=np.array(continues, dtype=bool)
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
