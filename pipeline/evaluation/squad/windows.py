"""From questions to what the model sees: windows of the context behind the question, and where in them the answer is.

A context that is too long is cut into windows that share min(128, half of the room that the question leaves) tokens.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.encoder import Encoder
from pipeline.evaluation.finetune import Rows
from pipeline.evaluation.squad.questions import Question

OVERLAP = 128
"""Tokens that two windows of one context share at most."""
LONGEST_QUESTION = 64
"""Tokens of a question; what is beyond is cut, and so is what is beyond half of the window."""
BATCH = 256
"""Questions that are tokenised at once."""


class Windows(Rows):
    """The windows of all questions, tokenised, with the character spans of their tokens."""

    def __init__(self, questions: Sequence[Question], encoder: Encoder, length: int) -> None:
        """Cut every context into windows of at most `length` tokens, question and special tokens included."""
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.questions: list[int] = []
        """Of every window the number of its question."""
        self.spans: list[np.ndarray] = []
        """Of every window (tokens, 2): first character and the one after the last, in the context; -1 elsewhere."""
        super().__init__({"start_positions": self._starts, "end_positions": self._ends})
        self.fill(self._encode(questions, encoder.tokenizer, length), encoder)

    def _encode(self, questions: Sequence[Question], tokenizer: Any, length: int) -> Iterator[Any]:
        special = tokenizer.num_special_tokens_to_add(pair=True)
        texts, groups = shortened(questions, tokenizer, (length - special) // 2), defaultdict(list)
        for number, (_, tokens) in enumerate(texts):
            groups[min(OVERLAP, (length - special - tokens) // 2)].append(number)
        for overlap, numbers in sorted(groups.items()):
            for first in range(0, len(numbers), BATCH):
                chosen = numbers[first : first + BATCH]
                encoded = tokenizer(
                    [texts[number][0] for number in chosen],
                    [questions[number].context for number in chosen],
                    truncation="only_second",
                    max_length=length,
                    stride=overlap,
                    return_overflowing_tokens=True,
                    return_offsets_mapping=True,
                    return_token_type_ids=True,
                )
                self._note(questions, chosen, encoded)
                yield encoded

    def _note(self, questions: Sequence[Question], chosen: Sequence[int], encoded: Any) -> None:
        """Keep what belongs to the windows of one batch beside their tokens."""
        for window, (sample, offsets) in enumerate(
            zip(encoded["overflow_to_sample_mapping"], encoded["offset_mapping"], strict=True)
        ):
            spans = np.asarray(offsets, np.int32)
            spans[[part != 1 for part in encoded.sequence_ids(window)]] = -1
            answers = questions[chosen[sample]].answers
            start, end = token_span(spans, *answers[0]) if answers else (0, 0)
            self._starts.append(start)
            self._ends.append(end)
            self.questions.append(chosen[sample])
            self.spans.append(spans)


def shortened(questions: Sequence[Question], tokenizer: Any, room: int) -> list[tuple[str, int]]:
    """The questions cut to min(64, room) tokens, each with the number of tokens that it has."""
    limit, texts = min(LONGEST_QUESTION, room), []
    for first in range(0, len(questions), BATCH):
        batch = [question.text.strip() for question in questions[first : first + BATCH]]
        offsets = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        for text, spans in zip(batch, offsets, strict=True):
            count = len(spans)
            while count > limit:
                # Cut as text: a beginning may have other tokens by itself than it had within the whole.
                text = text[: min(spans[limit][0], len(text) - 1)]
                spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
                count = len(spans)
            texts.append((text, count))
    return texts


def token_span(spans: np.ndarray, first: int, answer: str) -> tuple[int, int]:
    """First and last token of an answer, or (0, 0), which is [CLS], where the window does not have all of it.

    Args:
        spans: (tokens, 2), as `Windows` keeps them.
        first: the answer's first character in the context.
        answer: its text.
    """
    last = first + len(answer)
    (inside,) = np.nonzero(spans[:, 0] >= 0)
    if not len(inside) or spans[inside[0], 0] > first or spans[inside, 1].max() < last:
        return 0, 0
    (covered,) = np.nonzero((spans[:, 1] > first) & (spans[:, 0] < last) & (spans[:, 0] >= 0))
    return (int(covered[0]), int(covered[-1])) if len(covered) else (0, 0)
