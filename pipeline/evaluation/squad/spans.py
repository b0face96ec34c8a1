"""From a window's logits to the n best answers of a question, and to how much speaks against any of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

N_BEST = 20
"""How many first and last tokens of a window are looked at, and how many answers of a question are kept."""
LONGEST_ANSWER = 30
"""Tokens of an answer."""


@dataclass(frozen=True, order=True)
class Span:
    """A possible answer; `cost` is the negative sum of its two logits, so that the best one sorts first."""

    cost: float
    first: int
    last: int


@dataclass
class Candidates:
    """What all windows of one question have said so far; `null` is the lowest score of [CLS] as the answer."""

    spans: list[Span] = field(default_factory=list)
    null: float = math.inf

    def add(self, starts: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> None:
        """Take in one window: logits (tokens,) as first and as last token, and the tokens' characters (tokens, 2)."""
        self.null = min(self.null, float(starts[0]) + float(ends[0]))
        self.spans = sorted({*self.spans, *best_spans(starts, ends, spans)})[:N_BEST]

    def texts(self, context: str) -> list[str]:
        """The n best answers, the best first, each once."""
        return list(dict.fromkeys(context[span.first : span.last].strip() for span in self.spans))

    def no_answer(self) -> float:
        """The logistic function of what [CLS] is ahead of the best answer by: near 1 where no answer is to be given."""
        ahead = self.null + self.spans[0].cost if self.spans else math.inf
        return 1 / (1 + math.exp(-max(ahead, -700.0)))


def best_spans(starts: np.ndarray, ends: np.ndarray, spans: np.ndarray) -> Iterable[Span]:
    """The possible answers in one window, the best ones of those that end after they start and are not too long."""
    (inside,) = np.nonzero(spans[:, 0] >= 0)
    first, last = (inside[np.argsort(-logits[inside], kind="stable")[:N_BEST]] for logits in (starts, ends))
    scores = starts[first].astype(np.float64)[:, None] + ends[last].astype(np.float64)
    length = last - first[:, None] + 1
    rows, columns = np.nonzero((length >= 1) & (length <= LONGEST_ANSWER))
    order = np.argsort(-scores[rows, columns], kind="stable")[:N_BEST]
    for row, column in zip(rows[order], columns[order], strict=True):
        yield Span(-float(scores[row, column]), int(spans[first[row], 0]), int(spans[last[column], 1]))
