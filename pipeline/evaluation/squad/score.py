"""The official scorers of SQuAD 1.1 and 2.0, written anew: float64 fractions that no order of questions changes.

They follow `evaluate-v1.1.py` and `evaluate-v2.0.py` (Rajpurkar et al. 2016 and 2018) to the letter, also where the two
differ: an answer of which normalisation leaves nothing, as "the", has F1 0 in 1.1 and 1 in 2.0 when it is met.
A question is here its acceptable answers by its id; one without answers is unanswerable.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)
"""That of ASCII, as in the official scripts: a dash or a quotation mark beyond it stays."""

Answers = Mapping[str, Sequence[str]]
"""The acceptable answers of every question, by its id."""
Pair = Callable[[str, str], float]
"""What compares an acceptable answer with a prediction."""


def normalise(text: str) -> str:
    """Lower case, then no punctuation, then no articles, then single spaces: in this order and no other."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, prediction: str) -> float:
    """1 where both are the same after normalisation, else 0."""
    return float(normalise(answer) == normalise(prediction))


def overlap_v1(answer: str, prediction: str) -> float:
    """F1 over words, as 1.1 has it: 0 without a word in common."""
    expected, given = normalise(answer).split(), normalise(prediction).split()
    common = sum((Counter(expected) & Counter(given)).values())
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def overlap_v2(answer: str, prediction: str) -> float:
    """F1 over words, as 2.0 has it: 1 where neither has a word."""
    if not normalise(answer) or not normalise(prediction):
        return exact_match(answer, prediction)
    return overlap_v1(answer, prediction)


def best(compare: Pair, answers: Sequence[str], prediction: str) -> float:
    """The score against the acceptable answer that fits best."""
    return max(compare(answer, prediction) for answer in answers)


def score_v1(questions: Answers, predictions: Mapping[str, str]) -> dict[str, float]:
    """`exact_match` and `f1` over all questions; one without a prediction counts 0."""
    found = [(answers, predictions[name]) for name, answers in questions.items() if name in predictions]
    return {
        "exact_match": _mean((best(exact_match, *pair) for pair in found), len(questions)),
        "f1": _mean((best(overlap_v1, *pair) for pair in found), len(questions)),
    }


def scores_v2(questions: Answers, predictions: Mapping[str, str], compare: Pair) -> dict[str, float]:
    """The score of every single question of 2.0, by its id; the answer to an unanswerable one is the empty text.

    Acceptable answers of which normalisation leaves nothing are left out. A question without a prediction counts 0.
    """
    expected = {name: [text for text in answers if normalise(text)] or [""] for name, answers in questions.items()}
    return {
        name: best(compare, answers, predictions[name]) if name in predictions else 0.0
        for name, answers in expected.items()
    }


def best_threshold(
    scores: Mapping[str, float], questions: Answers, predictions: Mapping[str, str], no_answer: Mapping[str, float]
) -> tuple[float, float]:
    """The threshold on `no_answer` with the highest mean of `scores`; returns that mean and the threshold.

    A prediction stands where its value is not above the threshold; above, the empty text stands in its place. The
    search starts with no prediction at all, and takes them in one after the other from the lowest value. Where values
    are equal, the official script keeps the order of its file: here it is that of the ids.
    """
    total = reached = float(sum(not answers for answers in questions.values()))
    threshold = 0.0
    for name in sorted(scores, key=lambda name: (no_answer[name], name)):
        if questions[name]:
            total += scores[name]
        elif predictions[name]:
            total -= 1
        if total > reached:
            reached, threshold = total, no_answer[name]
    return reached / len(scores), threshold


def apply_threshold(predictions: Mapping[str, str], no_answer: Mapping[str, float], threshold: float) -> dict[str, str]:
    """The predictions with the empty text wherever `no_answer` is above the threshold."""
    return {name: "" if no_answer[name] > threshold else text for name, text in predictions.items()}


def score_v2(questions: Answers, predictions: Mapping[str, str]) -> dict[str, float]:
    """The rows of the official script for 2.0 that need no threshold, for predictions as they stand.

    Returns:
        `exact_match` and `f1`; and with `has_ans_` and `no_ans_` before, over the questions that have an answer and
        over those that have none, where there are such.
    """
    groups = {
        "": list(questions),
        "has_ans_": [name for name, answers in questions.items() if answers],
        "no_ans_": [name for name, answers in questions.items() if not answers],
    }
    single = {metric: scores_v2(questions, predictions, compare) for metric, compare in COMPARED.items()}
    return {
        f"{prefix}{metric}": _mean((scores[name] for name in names), len(names))
        for prefix, names in groups.items()
        for metric, scores in single.items()
        if names
    }


def best_v2(
    questions: Answers, predictions: Mapping[str, str], no_answer: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """By metric the official script's best value for 2.0, and the threshold on `no_answer` that it needs."""
    return {
        metric: best_threshold(scores_v2(questions, predictions, compare), questions, predictions, no_answer)
        for metric, compare in COMPARED.items()
    }


COMPARED: dict[str, Pair] = {"exact_match": exact_match, "f1": overlap_v2}
"""The metrics of 2.0."""


def _mean(values: Iterable[float], count: int) -> float:
    return math.fsum(values) / count
