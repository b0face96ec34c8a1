"""Where a long text may be cut so that its parts have, one after the other, the ids of the whole.

A tokenizer takes about a hundred times the memory of what it is given at once. It can be given a long text in parts
where it looks at words one by one: then a cut at white space between two letters or digits changes nothing. Accents
compose with no space, and no rule for punctuation reaches over it. That holds for

- WordPiece and others with BERT's pre-tokenizer, or one that drops all white space: the space is nobody's;
- byte-level BPE with its own rule for words: the space begins the second part;
- SentencePiece BPE whose pieces span no words: the space begins the second part, or is the one that the library puts
  before every text.

Not for SentencePiece unigram: its scores are summed up in 32 bits over the whole text, and rounding decides between
segmentations of equal worth. Texts for it, and for tokenizers that none of this describes, stay whole.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.data.tokenizer_files import MODEL_FILE
from pipeline.data.tokenizer_source import TOKENIZER_FILE
from preprocessing.tokenizing.sentencepiece_model import SPACE, read_model

_BETWEEN_WORDS = re.compile(r"(?<=[^\W_]) (?=[^\W_])")
_WORD_BY_WORD = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit"})
"""Pre-tokenizers that drop white space and split at it, whatever else they do."""
_WITHIN_WORDS = _WORD_BY_WORD | {"Punctuation", "Digits"}
"""What may follow them: it looks at each word alone, wherever in the text it stands."""
_NORMALIZERS = frozenset({"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"})
"""Normalizers for which a space parts what is before it from what is behind it."""
_SENTENCEPIECE_RULES = frozenset({"identity", "nfkc", "nfkc_cf", "nmt_nfkc", "nmt_nfkc_cf"})
_BPE = 2


@dataclass(frozen=True)
class Cutter:
    """Cuts texts for one tokenizer: at `boundary`, a space, which the second part keeps or not; None never cuts."""

    boundary: re.Pattern[str] | None = None
    keep_space: bool = False

    def parts(self, text: str, characters: int) -> Iterator[str]:
        """Yield the parts of a text, each cut at the first boundary behind so many characters."""
        begin = 0
        while self.boundary and (found := self.boundary.search(text, begin + characters)):
            yield text[begin : found.start()]
            begin = found.start() if self.keep_space else found.end()
        yield text[begin:]


BETWEEN_WORDS = Cutter(_BETWEEN_WORDS)
"""For tokenizers that drop white space, BERT's WordPiece among them."""


def load_cutter(directory: Path) -> Cutter:
    """What may be cut for the tokenizer in a directory that `save_tokenizer` wrote."""
    if (directory / MODEL_FILE).is_file():
        return _for_sentencepiece(read_model(directory / MODEL_FILE))
    return _for_fast(json.loads((directory / TOKENIZER_FILE).read_text(encoding="utf-8")))


def _for_fast(described: dict[str, Any]) -> Cutter:
    """For the tokenizer that a tokenizer.json describes."""
    normalizers = {step["type"] for step in _steps(described["normalizer"], "normalizers")}
    splitters = _steps(described["pre_tokenizer"], "pretokenizers")
    if not splitters or normalizers - _NORMALIZERS or any(map(_reaches_over_a_space, described["added_tokens"])):
        return Cutter()
    first, *others = splitters
    if first["type"] in _WORD_BY_WORD and all(step["type"] in _WITHIN_WORDS for step in others):
        return BETWEEN_WORDS
    by_words = first["type"] == "ByteLevel" and first.get("use_regex", True) and not others
    return Cutter(_BETWEEN_WORDS, keep_space=True) if by_words else Cutter()


def _reaches_over_a_space(token: dict[str, Any]) -> bool:
    """Whether an added token, which is looked for in the whole text, may hold or take the space of a boundary."""
    content = token["content"]
    takes = (token["lstrip"] and content[:1].isalnum()) or (token["rstrip"] and content[-1:].isalnum())
    return bool(takes or re.search(r"\s", content))


def _steps(described: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    if described is None:
        return []
    return described[name] if described["type"] == "Sequence" else [described]


def _for_sentencepiece(model: Any) -> Cutter:
    rules, pieces = model.normalizer_spec, [piece.piece for piece in model.pieces]
    # Unknown characters in a row are one id, so the mark of the space must be known.
    word_by_word = SPACE in pieces and not any(SPACE in piece[1:] or " " in piece for piece in pieces)
    known = rules.name in _SENTENCEPIECE_RULES and rules.escape_whitespaces
    if model.trainer_spec.model_type != _BPE or not word_by_word or not known:
        return Cutter()
    if rules.add_dummy_prefix:
        return BETWEEN_WORDS
    # Without a mark of its own the second part needs its space, which these rules may take for a superfluous one.
    return Cutter() if rules.remove_extra_whitespaces else Cutter(_BETWEEN_WORDS, keep_space=True)
