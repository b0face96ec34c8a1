"""Masked-language-modelling targets of fixed shape: the same number of predictions in every window."""

from dataclasses import dataclass

import numpy as np

from pipeline.data.order import hash_bits
from pipeline.shapes import predicted_positions

_CHOICE, _ACTION, _TOKEN = range(3)
_NOT_A_TOKEN = np.uint64(1) << np.uint64(63)


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of the tokenizer.

    Attributes:
        size: number of token ids.
        continues_word: (size,) bool, True for pieces that go on with the word before (`##ing`).
    """

    size: int
    cls_id: int
    sep_id: int
    mask_id: int
    continues_word: np.ndarray


@dataclass(frozen=True)
class MaskedBatch:
    """Windows with some tokens hidden; k = round(fraction x (tokens - 2)) for every window.

    Attributes:
        input_ids: (batch, tokens) int64.
        positions: (batch, k) int64, ascending: where a token is to be predicted.
        labels: (batch, k) int64, the original tokens there.
        ends: (batch, tokens) bool: the [SEP] of each document, which masking may have hidden in `input_ids`.
        windows: (batch,) int64, the window ids, for messages.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    ends: np.ndarray
    windows: np.ndarray

    @property
    def documents(self) -> np.ndarray:
        """(batch, tokens) int64: which document of the window, from 0, a token belongs to.

        A [SEP] is the last token of its document, and [CLS] belongs to the document the window begins in. So every
        document has one [SEP], at which its tokens can look away, as BERT's heads do.
        """
        return np.cumsum(self.ends, axis=1) - self.ends


def mask_windows(
    tokens: np.ndarray,
    windows: np.ndarray,
    epochs: np.ndarray,
    vocabulary: Vocabulary,
    seed: int,
    fraction: float = 0.15,
    whole_word: bool = False,
) -> MaskedBatch:
    """Hide tokens: of the predicted positions 80 % become [MASK], 10 % a random token, 10 % stay.

    A pure function of (seed, epoch, window): not of the batch a window is in, nor of what was drawn before. The
    positions are drawn among the tokens of text; separators only serve where a window has too few of those. With
    `whole_word` whole words are taken up to the count, and the last one is cut.

    Args:
        tokens: (batch, tokens) int64, [CLS] ... [SEP].
        windows: (batch,) window ids.
        epochs: (batch,) epoch of each window.
        vocabulary: what [MASK] and the separators are, and which tokens go on with a word.
        seed: of the run.
        fraction: share of the tokens of text that is predicted.
        whole_word: predict all pieces of a word together.
    """
    # All arrays are (batch, tokens - 2), in places of the text, until `chosen`, which is (batch, count). Every place
    # draws a number from its key, and the `count` lowest are predicted. So the count is the same in every window,
    # which keeps shapes fixed, and no draw depends on another. Under whole_word all pieces of a word share the number
    # of its first place, and the last word that is chosen is cut. The highest bit marks separators: they come last.
    content, ends = tokens[:, 1:-1], tokens == vocabulary.sep_id
    count = predicted_positions(tokens.shape[1], fraction)
    place = np.arange(content.shape[1])
    key = (seed, epochs[:, None], windows[:, None])
    unit = place[None, :]
    if whole_word:
        starts = ~vocabulary.continues_word[content]
        starts[:, 0] = True
        unit = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    draw = hash_bits(*key, unit, _CHOICE)
    draw >>= np.uint64(1)
    draw[ends[:, 1:-1] | (content == vocabulary.cls_id)] |= _NOT_A_TOKEN
    chosen = _lowest(draw, count)

    labels = np.take_along_axis(content, chosen, axis=1)
    action = hash_bits(*key, chosen, _ACTION) % np.uint64(10)
    random_token = (hash_bits(*key, chosen, _TOKEN) % np.uint64(vocabulary.size)).astype(np.int64)
    shown = np.where(action < 8, vocabulary.mask_id, np.where(action == 8, random_token, labels))
    input_ids = tokens.copy()
    np.put_along_axis(input_ids, chosen + 1, shown, axis=1)
    return MaskedBatch(input_ids, chosen + 1, labels, ends, windows)


def _lowest(draw: np.ndarray, count: int) -> np.ndarray:
    """Columns (rows, count), ascending, of the lowest numbers of each row; of equal ones the first."""
    limit = np.partition(draw, count - 1, axis=1)[:, count - 1 : count]
    chosen = draw <= limit
    if np.count_nonzero(chosen) > count * len(draw):  # some of those at the limit are too many
        last = draw == limit
        chosen &= ~last | (np.cumsum(last, axis=1) <= count - (draw < limit).sum(axis=1, keepdims=True))
    return np.flatnonzero(chosen).reshape(-1, count) % draw.shape[1]
