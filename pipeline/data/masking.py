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
        documents: (batch, tokens) int64: which document of the window, from 0, a token belongs to.
        windows: (batch,) int64, the window ids, for messages.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    documents: np.ndarray
    windows: np.ndarray


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
    # of its first place, and the stable sort keeps them side by side. The highest bit marks separators: they come last.
    content = tokens[:, 1:-1]
    count = predicted_positions(tokens.shape[1], fraction)
    place = np.arange(content.shape[1])
    key = (seed, epochs[:, None], windows[:, None])
    unit = place[None, :].repeat(len(content), axis=0)
    if whole_word:
        starts = ~vocabulary.continues_word[content]
        starts[:, 0] = True
        unit = np.maximum.accumulate(np.where(starts, place, 0), axis=1)
    draw = hash_bits(*key, unit, _CHOICE) >> np.uint64(1)
    draw |= np.where((content == vocabulary.sep_id) | (content == vocabulary.cls_id), _NOT_A_TOKEN, np.uint64(0))
    chosen = np.sort(np.argsort(draw, axis=1, kind="stable")[:, :count], axis=1)

    labels = np.take_along_axis(content, chosen, axis=1)
    action = hash_bits(*key, chosen, _ACTION) % np.uint64(10)
    random_token = (hash_bits(*key, chosen, _TOKEN) % np.uint64(vocabulary.size)).astype(np.int64)
    shown = np.where(action < 8, vocabulary.mask_id, np.where(action == 8, random_token, labels))
    input_ids = tokens.copy()
    np.put_along_axis(input_ids, chosen + 1, shown, axis=1)
    return MaskedBatch(input_ids, chosen + 1, labels, documents_of(tokens, vocabulary.sep_id), windows)


def documents_of(tokens: np.ndarray, sep_id: int) -> np.ndarray:
    """Number the documents of windows (batch, tokens) before masking, token by token, from 0 in each window.

    A [SEP] is the last token of its document, and [CLS] belongs to the document the window begins in. So every
    document has one [SEP], at which its tokens can look away, as BERT's heads do.
    """
    ends = tokens == sep_id
    return np.cumsum(ends, axis=1) - ends
