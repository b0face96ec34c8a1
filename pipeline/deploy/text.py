"""Real text as a model's inputs: full windows to predict masked tokens in, and padded batches of any size."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.data.masking import MaskedBatch, Vocabulary, mask_windows
from pipeline.deploy.subject import Inputs
from pipeline.errors import DataError

MOST_TOKENS, LEAST_TOKENS = 32_768, 2_000
"""Of text: more would take minutes of BERT-base, and fewer decide nothing (about 15 % are predicted)."""
WINDOW = 128
"""Tokens of a window with masked ones, where the model has as many positions."""
FRACTION, SEED = 0.15, 0
_BATCH = 8
"""Windows in one forward pass; their logits over 30,522 tokens take 125 MB."""


@dataclass(frozen=True)
class Text:
    """Token ids of documents joined by [SEP], (tokens,) int64."""

    ids: np.ndarray
    pad_id: int

    def windows(self, vocabulary: Vocabulary, positions: int) -> Iterator[MaskedBatch]:
        """All windows with masked tokens, as in training and evaluation, in batches.

        Masks are a function of a window's number alone.
        """
        content = min(WINDOW, positions) - 2
        count = len(self.ids) // content
        body = self.ids[: count * content].reshape(count, content)
        edge = np.ones((count, 1), np.int64)
        tokens = np.hstack([edge * vocabulary.cls_id, body, edge * vocabulary.sep_id])
        for start in range(0, count, _BATCH):
            part = tokens[start : start + _BATCH]
            numbers = np.arange(start, start + len(part))
            yield mask_windows(part, numbers, np.zeros_like(numbers), vocabulary, SEED, FRACTION)

    def batch(self, rows: int, length: int, vocabulary: Vocabulary, padded: bool) -> Inputs:
        """A batch (rows, length) of text; `padded` cuts every row but the first shorter than the one before."""
        content = length - 2
        body = np.resize(self.ids, rows * content).reshape(rows, content)
        lengths = np.maximum(length - padded * np.arange(rows) * max(1, length // 8), 3)
        place = np.arange(length)[None, :]
        ids = np.hstack([np.full((rows, 1), vocabulary.cls_id), body, np.full((rows, 1), vocabulary.sep_id)])
        ids = np.where(place == lengths[:, None] - 1, vocabulary.sep_id, ids)
        return pad([row[:end].tolist() for row, end in zip(ids, lengths, strict=True)], self.pad_id)


def read_text(texts: Iterable[str], tokenizer: Any, source: str) -> Text:
    """The first `MOST_TOKENS` tokens of the texts.

    Args:
        texts: documents, of which no more are taken than needed.
        tokenizer: the model's.
        source: of the texts, for messages.

    Raises:
        DataError: there is too little text.
    """
    ids = list[int]()
    for text in texts:
        # Tokenizers warn of texts beyond the model's length; these are cut into windows.
        pieces = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids += [*pieces, tokenizer.sep_token_id] if pieces else []
        if len(ids) >= MOST_TOKENS:
            break
    if len(ids) < LEAST_TOKENS:
        raise DataError(f"{source}: it has {len(ids):,} tokens where at least {LEAST_TOKENS:,} were expected")
    return Text(np.array(ids[:MOST_TOKENS], np.int64), tokenizer.pad_token_id)


def pad(rows: list[list[int]], pad_id: int, segments: list[list[int]] | None = None) -> Inputs:
    """One batch of rows of token ids; all of the first segment where there are no numbers of segments."""
    length = max(map(len, rows))
    shape = (len(rows), length)
    inputs = {
        "input_ids": np.full(shape, pad_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "token_type_ids": np.zeros(shape, np.int64),
    }
    for number, (row, numbers) in enumerate(zip(rows, segments or itertools.repeat(None, len(rows)), strict=True)):
        inputs["input_ids"][number, : len(row)] = row
        inputs["attention_mask"][number, : len(row)] = 1
        if numbers:
            inputs["token_type_ids"][number, : len(row)] = numbers
    return inputs
