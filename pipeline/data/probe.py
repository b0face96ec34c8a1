"""Texts that show whether two tokenizers give the same ids.

No text shows it for vocabularies that do not cover it: where everything is [UNK], tokenizers agree by accident. So a
fixed text is joined by words of the vocabulary, spelled in the ways that tokenizers treat differently.
"""

from collections.abc import Iterable, Sequence
from typing import Any

_FIXED = "Ångström's 2nd naïve test: 東京, don't ①②③ -- https://a.b/c?d=f\n\t\u03a3\u03c2 [UNK] 🙂 e\u0301\u200b\ufffd"
_LONG = "x" * 150
"""WordPiece takes words of more than 100 characters for unknown."""
_WORDS = 1_000
"""Words of the vocabulary that are tried, evenly chosen: in all spellings half a second."""
_WORD_BEGINNINGS = "\u2581\u0120"
"""Marks of SentencePiece and byte-level BPE."""


def probe_texts(vocabulary: Iterable[str]) -> dict[str, list[str]]:
    """Texts by what a tokenizer does to them; the first words whose ids differ then say what it is."""
    tokens = sorted({token.lstrip(_WORD_BEGINNINGS) for token in vocabulary})
    alphabetic = [token for token in tokens if token.isalpha()]
    words = _evenly([token for token in alphabetic if token == token.lower()])
    return {
        "splitting": words,
        "lower-casing": [word.capitalize() for word in words] + _evenly([t for t in alphabetic if t != t.lower()]),
        "accents": [f"{word}\u0301" for word in words],
        "Chinese characters": ["東京", *(f"東{word}" for word in words)],
        "rare characters": [_FIXED, _LONG],
    }


def ids_of(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Ids without special tokens, from a tokenizer of transformers."""
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def _evenly(tokens: list[str]) -> list[str]:
    return tokens[:: max(1, len(tokens) // _WORDS)]
