"""Training of a SentencePiece model that BERT can use, the same one every time."""

import io
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pipeline.data.tokenizer_source import SPECIAL_TOKENS
from pipeline.errors import DataError, UserError

_SENTENCE_CHARACTERS = 1_000
"""The trainer skips sentences of more than 4,192 bytes."""
_THREADS = 8
"""Shares of the text, whose sums depend on their number: fixed, so that every machine gets the same model."""
_SCORES_PER_UNIT = 16
"""Sums of these stay exact in 32 bits up to 2^20, over 100,000 tokens: the library and the copy of the model in
AutoTokenizer then agree on documents of any usual length. Without, they parted in 8 of 181 long articles."""


def train_sentencepiece(texts: Sequence[str], kind: str, vocab_size: int, cased: bool) -> bytes:
    """Return the model file of at most `vocab_size` pieces, special tokens first; `kind` is unigram or bpe.

    Raises:
        DataError: there is no text.
        UserError: the vocabulary is too small for the text's characters.
    """
    if not any(map(str.strip, texts)):
        raise DataError("the input holds no text to train a tokenizer on")
    pad, unknown, *control = SPECIAL_TOKENS
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc" if cased else "nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            pad_piece=pad,
            unk_piece=unknown,
            # Control symbols never match text: what a document says cannot pass for a separator.
            control_symbols=control,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(_plain(error, vocab_size)) from error
    return _with_exact_scores(written.getvalue()) if kind == "unigram" else written.getvalue()


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), _SENTENCE_CHARACTERS):
                yield line[start : start + _SENTENCE_CHARACTERS]


def _with_exact_scores(raw: bytes) -> bytes:
    model = sentencepiece_model_pb2.ModelProto.FromString(raw)
    for piece in model.pieces:
        piece.score = round(piece.score * _SCORES_PER_UNIT) / _SCORES_PER_UNIT
    return model.SerializeToString(deterministic=True)


def _plain(error: RuntimeError, vocab_size: int) -> str:
    needed = re.search(r"required_chars. \d+ vs (\d+)", str(error))
    if needed:
        reason = f"its special tokens and characters alone take {needed[1]}"
        return f"a vocabulary of {vocab_size} tokens is too small for this text: {reason}"
    reason = str(error).strip().split("\n")[-1]
    return f"the sentencepiece library cannot make {vocab_size} tokens of this text: {reason}"
