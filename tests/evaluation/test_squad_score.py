"""The official scorers: cases computed by hand, the library that has 1.1, and what must hold whatever the data."""

import itertools
import random

import pytest

from pipeline.evaluation.squad.score import (
    apply_threshold,
    best_threshold,
    best_v2,
    exact_match,
    normalise,
    overlap_v1,
    overlap_v2,
    score_v1,
    score_v2,
    scores_v2,
)

WORDS = ("the", "a", "Lake", "lake,", "Zürich", "1,000", "an", "—", "naïve", "the-", "U.S.", "東京", "İ", "ﬁ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat,\tsat.", "cat sat"),
        ("a-b", "ab"),  # punctuation goes before articles: no article is left here
        ("the-rapist", "therapist"),
        ("A.", ""),
        ("th.e end", "end"),  # and here it makes one
        ("an apple a day", "apple day"),
        ("theatre and another", "theatre and another"),
        ("“the” lake", "“ ” lake"),  # punctuation beyond ASCII stays, and parts words
        ("naïve—the", "naïve—"),
        ("Thé", "thé"),
        ("Łódź\u00a0 X", "łódź x"),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("answer", "given", "exact", "v1", "v2"),
    [
        ("Denver Broncos", "the denver broncos!", 1, 1, 1),
        ("Denver Broncos", "Broncos", 0, 2 / 3, 2 / 3),
        ("a b b c", "b b b", 0, 2 / 3, 2 / 3),  # 2 in common, of 3 given and of 3 expected: the article is gone
        ("red green", "blue", 0, 0, 0),
        ("the", "a", 1, 0, 1),  # nothing is left of either
        ("", "", 1, 0, 1),
        ("the", "red", 0, 0, 0),
        ("red", "", 0, 0, 0),
    ],
)
def test_pairs(answer, given, exact, v1, v2):
    assert exact_match(answer, given) == exact
    assert overlap_v1(answer, given) == pytest.approx(v1, abs=1e-15)
    assert overlap_v2(answer, given) == pytest.approx(v2, abs=1e-15)


def test_version_1_by_hand():
    questions = {"1": ["x y", "y"], "2": ["p q r s"], "3": ["m"]}
    given = {"1": "Y.", "2": "p q", "4": "not asked"}
    assert score_v1(questions, given) == {"exact_match": 1 / 3, "f1": (1 + 2 / 3) / 3}


QUESTIONS = {"h1": ["x y"], "h2": ["p"], "h3": ["the"], "n1": [], "n2": []}
GIVEN = {"h1": "x", "h2": "p", "h3": "", "n1": "", "n2": "wrong"}
AGAINST = {"h1": 0.3, "h2": 0.1, "h3": 0.9, "n1": 0.8, "n2": 0.2}


def test_version_2_by_hand():
    assert score_v2(QUESTIONS, GIVEN) == pytest.approx(
        {
            "exact_match": 3 / 5,
            "f1": (2 / 3 + 3) / 5,
            "has_ans_exact_match": 2 / 3,
            "has_ans_f1": (2 / 3 + 2) / 3,
            "no_ans_exact_match": 1 / 2,
            "no_ans_f1": 1 / 2,
        },
        abs=1e-15,
    )
    # No answer at all: 2. Up to 0.1: 3. 0.2: 2. 0.3: 2 (F1 2 2/3). 0.8: as before. 0.9: 3 (F1 3 2/3).
    best = best_v2(QUESTIONS, GIVEN, AGAINST)
    assert best["exact_match"] == (3 / 5, 0.1)
    assert best["f1"] == (pytest.approx((2 / 3 + 3) / 5), 0.9)


def test_rows_without_questions_are_left_out():
    assert not any(name.startswith("no_ans") for name in score_v2({"h": ["x"]}, {"h": "x"}))
    assert score_v2({"n": []}, {"n": ""}) == {
        f"{prefix}{metric}": 1.0 for prefix in ("", "no_ans_") for metric in ("exact_match", "f1")
    }


def test_nothing_answered_can_be_best():
    assert best_v2({"h": ["x"], "n": []}, {"h": "y", "n": "y"}, {"h": 0.5, "n": 0.4})["f1"] == (0.5, 0.0)


@pytest.fixture
def sets():
    """Several random sets: questions, of which a third is unanswerable, predictions, and what is against them."""
    generator = random.Random(5)

    def text():
        return " ".join(generator.choices(WORDS, k=generator.randint(0, 4)))

    made = []
    for _, count in itertools.product(range(5), (1, 7, 60)):
        names = [f"q{number}" for number in range(count)]
        questions = {
            name: [text() for _ in range(generator.randint(1, 3))] if generator.random() < 0.7 else [] for name in names
        }
        given = {name: generator.choice([text(), *answers, ""]) for name, answers in questions.items()}
        made.append((questions, given, {name: generator.random() for name in names}))
    return made


def test_the_best_threshold_is_that_of_all_and_its_score_is_met(sets):
    for questions, given, against in sets:
        # Where normalisation leaves nothing of a text, the official search counts it as an answer all the same.
        questions = {name: [text for text in answers if normalise(text)] for name, answers in questions.items()}
        given = {name: text if normalise(text) else "" for name, text in given.items()}
        for metric, compare in (("exact_match", exact_match), ("f1", overlap_v2)):
            value, threshold = best_threshold(scores_v2(questions, given, compare), questions, given, against)
            tried = [
                score_v2(questions, apply_threshold(given, against, limit))[metric] for limit in (0, *against.values())
            ]
            reached = score_v2(questions, apply_threshold(given, against, threshold))[metric]
            assert value == pytest.approx(max(tried)) == pytest.approx(reached)


def test_the_order_of_questions_changes_nothing(sets):
    for questions, given, against in sets:
        against = {name: round(value, 1) for name, value in against.items()}  # ties
        names = list(questions)
        random.Random(1).shuffle(names)
        shuffled = [{name: part[name] for name in names} for part in (questions, given, against)]
        answerable = {name: answers for name, answers in questions.items() if answers}
        if answerable:
            assert score_v1(answerable, given) == score_v1({n: questions[n] for n in names if questions[n]}, given)
        assert score_v2(questions, given) == score_v2(*shuffled[:2])
        assert best_v2(questions, given, against) == best_v2(*shuffled)


def test_one_more_unanswerable_question(sets):
    for questions, given, _ in sets:
        before = score_v2(questions, given)
        for text, gain in (("", 1), ("something", 0)):
            after = score_v2({**questions, "new": []}, {**given, "new": text})
            for metric in ("exact_match", "f1"):
                expected = (before[metric] * len(questions) + gain) / (len(questions) + 1)
                assert after[metric] == pytest.approx(expected, abs=1e-14)
                assert after.get(f"has_ans_{metric}") == before.get(f"has_ans_{metric}")


def test_articles_punctuation_and_case_change_nothing(sets):
    for questions, given, _ in sets:
        dressed = {name: f" The, {text.upper().lower()} ...a! " for name, text in given.items()}
        plain = {name: text.upper().lower() for name, text in given.items()}
        assert score_v2(questions, dressed) == score_v2(questions, plain)


def test_empty_predictions(sets):
    for questions, _, _ in sets:
        empty = dict.fromkeys(questions, "")
        answerable = {name: ["x"] for name, answers in questions.items() if answers}
        if answerable:
            assert score_v1(answerable, empty) == {"exact_match": 0.0, "f1": 0.0}
        values = score_v2({name: answers and ["x"] for name, answers in questions.items()}, empty)
        assert values["f1"] == values["exact_match"] == (len(questions) - len(answerable)) / len(questions)
        assert values.get("no_ans_f1", 1.0) == 1.0 and values.get("has_ans_f1", 0.0) == 0.0


def test_version_1_against_torchmetrics(sets):
    squad = pytest.importorskip("torchmetrics.functional.text").squad
    for questions, given, _ in sets:
        # Where normalisation leaves nothing, torchmetrics has the F1 of 2.0 for 1.1.
        answerable = {
            name: answers
            for name, answers in questions.items()
            if answers and all(normalise(text) for text in (*answers, given[name]))
        }
        if not answerable:
            continue
        preds = [{"id": name, "prediction_text": given[name]} for name in answerable]
        target = [
            {"id": name, "answers": {"text": answers, "answer_start": [0] * len(answers)}}
            for name, answers in answerable.items()
        ]
        theirs, ours = squad(preds, target), score_v1(answerable, given)
        for metric in ours:
            assert 100 * ours[metric] == pytest.approx(float(theirs[metric]), rel=1e-5)
